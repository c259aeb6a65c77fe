"""What we show must run: the demo, the README's program, the example, and the protocol's page."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from reunite_transport import messages
from reunite_transport.codec import decode
from reunite_transport.demo import EDITS, RULES
from reunite_transport.relay.postgres_query import fetch_rows
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import Relay, serve
from tests.transport.commands import heeding_ctrl_c

ROOT = Path(__file__).resolve().parents[2]
REUNITE = Path(sys.executable).with_name("reunite")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
# What the demo promises.
DEMO_SECONDS_MAX = 30


def in_folder(folder: Path) -> dict[str, str]:
    """The environment of a program whose temporary files are the test's."""
    return {**os.environ, "TMPDIR": str(folder)}


# The demo


def test_the_demo_ends_with_all_replicas_and_postgres_equal(tmp_path: Path) -> None:
    played = subprocess.run(
        [REUNITE, "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS_MAX,
        env=in_folder(tmp_path),
        check=False,
    )
    assert (played.returncode, played.stderr) == (0, "")
    found = json.loads(played.stdout)
    assert found.pop("seconds") < DEMO_SECONDS_MAX
    assert found == {
        "equal": True,
        "rows": {"artist": 3, "album": 3, "track": 6},
        "replicas": ["studio", "train", "cabin"],
        "edits": len(EDITS),
        "differences": 0,
    }
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_what_merged_without_a_terminal(tmp_path: Path) -> None:
    played = subprocess.run(
        [REUNITE, "demo"],
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS_MAX,
        env=in_folder(tmp_path),
        check=False,
    )
    assert played.returncode == 0, played.stderr
    assert "\x1b" not in played.stdout
    before, apart, merged = re.split(r"\n(?=Apart|Back online)", played.stdout)
    assert before.count("Salt Roads 1999") == 3
    # Each of the three sees another library.
    for seen in ("Salt Road 1999", "Salt Roads 2001", "Low Water 5*", "Low Water 1*"):
        assert apart.count(seen) == 1
    # On the three, and in Postgres.
    for seen in ("Salt Road 2001", "Low Water 5*", "Interlude 4*", "Harbour 3*", "Meltwater 5*"):
        assert merged.count(seen) == 4
    assert merged.count("Grey Gulls") == 4 + sum("Grey Gulls" in rule for rule in RULES)
    assert "All three and Postgres are equal." in merged


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [REUNITE, "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**in_folder(tmp_path), "PYTHONUNBUFFERED": "1"},
        preexec_fn=heeding_ctrl_c,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Before")
        process.send_signal(number)
        _, err = process.communicate(timeout=DEMO_SECONDS_MAX)
    assert (process.returncode, err) == (128 + number, "")
    assert list(tmp_path.iterdir()) == []


# What the pages show


@asynccontextmanager
async def relay_on(postgres_url: str) -> AsyncIterator[Relay]:
    store = await open_postgres(postgres_url)
    relay = await serve(store)
    try:
        yield relay
    finally:
        await relay.close()
        await store.close()


async def run_program(*arguments: str, folder: Path, **environment: str) -> str:
    """What a Python program prints; it must not fail."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


def programs() -> list[str]:
    """The Python of the README, in its order."""
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readmes_program_runs_as_it_stands(tmp_path: Path, postgres_url: str) -> None:
    program = programs()[0]
    assert "ws://127.0.0.1:8800" in program

    async def run() -> None:
        async with relay_on(postgres_url) as relay:
            script = tmp_path / "app.py"
            script.write_text(program.replace("ws://127.0.0.1:8800", relay.url))
            assert "Buy milk" in await run_program(str(script), folder=tmp_path)
        assert ("Buy milk",) in await fetch_rows(postgres_url, "SELECT title FROM todo")

    asyncio.run(run())


def test_the_readmes_blocking_program_runs_as_it_stands(tmp_path: Path, postgres_url: str) -> None:
    (program,) = (found for found in programs() if "BlockingSync(db," in found)

    async def run() -> None:
        async with relay_on(postgres_url) as relay:
            script = tmp_path / "app.py"
            script.write_text(program.replace("ws://127.0.0.1:8800", relay.url))
            for _ in "twice":
                await run_program(str(script), folder=tmp_path)
        assert await fetch_rows(postgres_url, "SELECT title FROM todo") == [("Drink tea",)]

    asyncio.run(run())


def test_the_readmes_models_run_as_they_stand(tmp_path: Path) -> None:
    (program,) = (found for found in programs() if "class Song" in found)
    script = tmp_path / "app.py"
    script.write_text(program)
    with subprocess.Popen(
        [sys.executable, "-u", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout
            assert running.stdout.readline() == "[('Ferry Song', 1)]\n"
        finally:
            running.kill()


def test_two_lists_of_the_example_become_one(tmp_path: Path, postgres_url: str) -> None:
    example = str(ROOT / "examples" / "todo.py")

    async def run() -> None:
        async with relay_on(postgres_url) as relay:

            async def todo(file: str, *arguments: str) -> str:
                return await run_program(example, *arguments, folder=tmp_path, TODO_DB=file)

            await todo("a.db", "add", "Buy milk")
            await todo("b.db", "add", "Call Ada")
            await todo("a.db", "sync", relay.url)
            assert len((await todo("b.db", "sync", relay.url)).splitlines()) == 2
            await todo("b.db", "done", "1")
            await todo("b.db", "sync", relay.url)
            merged = await todo("a.db", "sync", relay.url)
            assert merged.splitlines() == ["  1 [ ] Call Ada", "  2 [x] Buy milk"]

    asyncio.run(run())


def test_the_example_says_in_one_line_why_it_cannot_sync(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, ROOT / "examples" / "todo.py", "sync", "http://127.0.0.1:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"todo: .*begins with ws:// or wss://\n", refused.stderr)


def test_the_example_ends_quietly_on_ctrl_c(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, ROOT / "examples" / "todo.py", "sync", "ws://127.0.0.1:1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
    ) as process:
        # The file is there from the moment at which the program has begun.
        deadline = time.monotonic() + DEMO_SECONDS_MAX
        while not (tmp_path / "todo.db").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEMO_SECONDS_MAX)
    assert (process.returncode, out, err) == (128 + signal.SIGINT, "", "")


def test_the_protocols_page_states_the_limits_that_the_code_has() -> None:
    stated = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d,]+) \|", PROTOCOL, re.MULTILINE))
    sizes = [name for name in vars(messages) if re.search("_(MAX|GOAL|BYTES)$", name)]
    assert {name: int(value.replace(",", "")) for name, value in stated.items()} == {
        name: getattr(messages, name) for name in sizes
    }


def fields_by_message(page: str) -> dict[str, str]:
    """The page's table of messages; a row without a type goes on with the one above."""
    found: dict[str, str] = {}
    for number, name, fields in re.findall(
        r"^\| *(\d*) *\| *(\w*) *\| *([a-z][a-z_, ]+?) *\|$", page, re.MULTILINE
    ):
        if number:
            found[f"{number} {name}"] = fields
        elif found:
            last = next(reversed(found))
            found[last] = f"{found[last]} {fields}"
    return found


def test_the_protocols_page_names_every_message_reason_and_code() -> None:
    specification = messages.__doc__ or ""
    specified = fields_by_message(specification)
    assert len(specified) == 17
    assert fields_by_message(PROTOCOL) == specified
    listed = re.findall(r"^(?:Reasons|Codes) of .*?\.$", specification, re.MULTILINE | re.DOTALL)
    for word in re.findall("`([a-z-]+)`", " ".join(listed)):
        assert f"| `{word}` |" in PROTOCOL


def test_the_frames_on_the_protocols_page_decode_to_what_it_says() -> None:
    shown = re.findall(r"^(\w+) +(client|relay)\n((?:[0-9a-f ]+\n)+)", PROTOCOL, re.MULTILINE)
    assert len(shown) >= 6
    for name, sender, frame in shown:
        message = decode(bytes.fromhex(frame), "relay" if sender == "client" else "client")
        assert type(message).__name__ == name
