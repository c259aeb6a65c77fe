"""`reunite simulate`: what it prints, writes and refuses."""

import asyncio
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from reunite_simulations.loop import run
from reunite_transport.__main__ import main
from tests.transport.commands import heeding_ctrl_c

CHINOOK = Path(__file__).parents[3] / "shared" / "data" / "chinook.sqlite"


COMMAND = [sys.executable, "-m", "reunite_transport", "simulate"]
# The same command with an engine that is broken on purpose.
BROKEN = """
import sys
from reunite_simulations.canaries import CANARIES
from reunite_transport.__main__ import main
sys.argv[0] = "reunite"
with CANARIES["knows-duplicates-by-number"]():
    main()
"""


def simulate(
    *arguments: str | Path, command: Sequence[str] = COMMAND
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs a command that is refused before it begins, in this process: its code and what it said,
    all on stderr."""

    def run_here(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["reunite", "simulate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert told.out == ""
        assert isinstance(ended.value.code, int)
        return ended.value.code, told.err

    return run_here


def test_a_schema_of_the_users_own_is_simulated_and_reported(tmp_path: Path) -> None:
    schema, page = tmp_path / "my schema.sql", tmp_path / "out.html"
    schema.write_text(
        'CREATE TABLE "my table" (id TEXT PRIMARY KEY, "a column" INTEGER, price DECIMAL(10,2));'
    )
    ran = simulate(
        *("--schema", schema, "--replicas", "3", "--minutes", "1", "--seeds", "2"),
        *("--report", page, "--json"),
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["seeds"] == [1, 2]
    assert found["violations"] == []
    assert found["simulated_hours"] > 0
    assert len(found["trace_hash"]) == 64
    assert found["checks"]["convergence"] > 4
    html = page.read_text()
    assert "Every promise was kept" in html
    assert "--schema" in html


def test_one_seed_is_run_again_the_same(tmp_path: Path) -> None:
    told = [simulate("--seed", "7", "--replicas", "3", "--minutes", "1", "--json") for _ in "ab"]
    assert told[0].stdout == told[1].stdout != ""


@pytest.mark.skipif(not CHINOOK.exists(), reason="the Chinook sample database is not here")
def test_a_database_that_nobody_wrote_for_it_is_simulated_and_left_alone() -> None:
    before = CHINOOK.read_bytes()
    ran = simulate(
        "--database", CHINOOK, "--replicas", "3", "--minutes", "0.5", "--seeds", "1", "--json"
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["violations"] == []
    assert CHINOOK.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--faults", "rain"], 2, "'rain' is no fault"),
        (["--schema", "a.sql", "--database", "b.db"], 2, "two ways"),
        (["--schema", "absent.sql"], 1, "absent.sql cannot be used"),
        (["--database", "absent.db"], 1, "absent.db cannot be read"),
        (["--replicas", "0"], 2, "replicas"),
        (["--only", "crash:1"], 2, "give --seed too"),
        (["--only", "crash", "--seed", "1"], 2, "'crash' is no event"),
        (["--only", "rain:1", "--seed", "1"], 2, "'rain:1' is no event"),
        (["--only", "", "--seed", "1"], 2, "no event is named"),
        (["--seed", "1", "--seeds", "2"], 2, "give one of them"),
        (["--minutes", "nan"], 2, "minutes"),
        (["--minutes", "inf"], 2, "minutes are inf"),
        (["--minutes", "0.001"], 2, "minutes"),
        (["--faults", ""], 2, "no fault is named"),
        (["--report", "absent/out.html"], 1, "there is no folder"),
        (["--report", "."], 1, "it is a folder"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    arguments: list[str], code: int, said: str, refused: Callable[..., tuple[int, str]]
) -> None:
    found, told = refused(*arguments)
    assert found == code
    assert said in told
    assert "Traceback" not in told


def test_a_wrong_call_ends_the_process_with_its_code() -> None:
    ran = simulate("--faults", "rain")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "'rain' is no fault" in ran.stderr


def test_a_violation_is_told_with_its_seed_commit_history_and_what_replays_it() -> None:
    broken = [sys.executable, "-c", BROKEN, "simulate"]
    arguments = ["--replicas", "3", "--minutes", "1", "--faults", "copy,crash,clock"]
    ran = simulate(*arguments, "--shrink-seconds", "3", "--seeds", "30", "--json", command=broken)
    assert ran.returncode == 1, ran.stderr
    found = json.loads(ran.stdout)
    violation, failure = found["violations"][0], found["failure"]
    assert violation["seed"] == found["seeds"][-1]
    assert violation.keys() == {"seed", "promise", "at", "message"}
    assert failure["commit"]
    assert f"reunite {failure['commit']}" in ran.stderr
    assert failure["history"]
    assert failure["replay"] in ran.stderr
    reunite, simulates, *again = shlex.split(failure["replay"])
    assert (reunite, simulates) == ("reunite", "simulate")
    replayed = simulate(*again, "--shrink-seconds", "0", command=broken)
    assert replayed.returncode == 1
    told, retold = (
        text[text.index(" at ") :].partition("run it again:")[0]
        for text in (ran.stderr, replayed.stderr)
    )
    assert told.replace("the shortest history that was found", "its history") == retold
    assert simulate(*again).returncode == 0


def test_an_interrupted_run_says_what_was_done() -> None:
    with subprocess.Popen(
        [*COMMAND, "--minutes", "1", "--replicas", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
    ) as process:
        assert process.stderr is not None
        assert "100 seeds of 2 replicas" in process.stderr.readline()
        assert "of 100 seeds done" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate()
    assert process.returncode == 130
    assert json.loads(told)["seeds"] == list(range(1, len(json.loads(told)["seeds"]) + 1))


def test_what_is_asked_is_said_before_it_is_run() -> None:
    ran = simulate("--seed", "3", "--replicas", "1", "--relays", "1", "--minutes", "0.02")
    assert ran.stderr.startswith("1 seed of 1 replica and 1 relay, 0.02 virtual minutes each\n")


def test_the_first_seed_counts_when_it_is_interrupted(tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    with subprocess.Popen(
        [*COMMAND, "--minutes", "600", "--seeds", "1", "--json", "--report", str(page)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
    ) as process:
        assert process.stderr is not None
        assert "1 seed of 10 replicas" in process.stderr.readline()
        assert "0 of 1 seed done" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        told, complaint = process.communicate()
    assert process.returncode == 130
    found = json.loads(told)
    assert found["seeds"] == []
    assert found["rows_written"] > 0
    assert found["checks"]["convergence"] > 0
    assert "was not written: no seed was finished" in complaint
    assert not page.exists()


def test_ctrl_c_is_heeded_where_sqlite_would_lose_it() -> None:
    conn = sqlite3.connect(":memory:")
    conn.set_trace_callback(lambda _statement: signal.raise_signal(signal.SIGINT))

    async def work() -> None:
        conn.execute("SELECT 1")
        await asyncio.sleep(1)
        raise AssertionError("it was lost")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(work())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        conn.close()


@pytest.mark.parametrize("of", ["schema", "database", "other"])
def test_a_page_is_not_written_over_what_is_none(tmp_path: Path, of: str) -> None:
    schema, database, other = (tmp_path / f"a.{of}" for of in ("schema", "database", "other"))
    schema.write_text("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)")
    with sqlite3.connect(database) as conn:
        conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)")
    conn.close()
    other.write_text("dear diary")
    target = {"schema": schema, "database": database, "other": other}[of]
    before = target.read_bytes()
    origin: list[str | Path] = (
        ["--database", database] if of == "database" else ["--schema", schema]
    )
    ran = simulate(*origin, "--report", target, "--seed", "1")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "name another file" in ran.stderr
    assert target.read_bytes() == before


def test_a_failure_is_told_though_its_page_cannot_be_written(tmp_path: Path) -> None:
    code = BROKEN.replace("knows-duplicates-by-number", "shows-without-merging")
    # The folder goes away while the world runs.
    code = code.replace(
        "    main()",
        """
    import shutil
    from reunite_simulations import command
    run = command.run_seed
    command.run_seed = lambda *a: [run(*a), shutil.rmtree(sys.argv[-1])][0]
    main()
""",
    )
    page = tmp_path / "gone" / "out.html"
    page.parent.mkdir()
    arguments = ["--seed", "1", "--replicas", "3", "--minutes", "1", "--shrink-seconds", "0"]
    broken = [sys.executable, "-c", code.replace("sys.argv[-1]", repr(str(page.parent)))]
    ran = simulate("simulate", *arguments, "--report", page, command=broken)
    assert ran.returncode == 1
    assert "\nseed 1 at " in ran.stderr
    assert "\nits history, " in ran.stderr
    assert "run it again: reunite simulate --seed 1" in ran.stderr
    assert "out.html was not written" in ran.stderr


def test_a_temporary_folder_without_room_is_named_and_no_promise_is_called_broken(
    tmp_path: Path,
) -> None:
    code = """
import resource, sys
from reunite_transport.__main__ import main
sys.argv[0] = "reunite"
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main()
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        ran = simulate(
            *("simulate", "--seed", "3", "--minutes", "0.1"),
            command=[sys.executable, "-c", code],
        )
    assert ran.returncode == 1
    assert f"seed 3 ran out of room in {tmp_path}" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "promise" not in ran.stderr


def test_an_error_of_the_simulator_itself_names_its_seed() -> None:
    code = """
import sys
from reunite_simulations import world
from reunite_transport.__main__ import main
sys.argv[0] = "reunite"
def fail(_world):
    raise LookupError("a slip")
world.conflicts.found = fail
main()
"""
    ran = simulate(
        *("simulate", "--seed", "6", "--replicas", "1", "--minutes", "0.1"),
        command=[sys.executable, "-c", code],
    )
    assert ran.returncode == 1
    assert "in the world of seed 6" in ran.stderr
    assert "seed 6 could not be run: LookupError('a slip')" in ran.stderr


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("", "it has no tables"),
        ("CREATE VIEW v AS SELECT 1 AS a", "it has no tables"),
        ("CREATE TABLE t (a)", "no table that can be synced: t: has no primary key"),
        ("CREATE TABLE simulated_append (id TEXT PRIMARY KEY)", "'simulated_append'"),
        ("CREATE TABLE _Reunite_x (id TEXT PRIMARY KEY)", "'_Reunite_x'"),
        ("BEGIN; CREATE TABLE t (id TEXT PRIMARY KEY)", "does not end it"),
        ("ATTACH 'evil.db' AS e; CREATE TABLE e.t (id TEXT PRIMARY KEY)", "attaches another file"),
        ("CREATE TABL t", "syntax error"),
    ],
)
def test_a_schema_that_no_world_can_begin_with_is_refused(
    tmp_path: Path, sql: str, said: str, refused: Callable[..., tuple[int, str]]
) -> None:
    schema = tmp_path / "a.sql"
    schema.write_text(sql)
    code, told = refused("--schema", schema, "--seed", "1")
    assert code in (1, 2)
    assert told.startswith(f"reunite: {schema}")
    assert said in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [schema]
    assert not Path("evil.db").exists()


def test_tables_that_are_left_out_are_named(tmp_path: Path) -> None:
    schema, page = tmp_path / "a.sql", tmp_path / "a.html"
    schema.write_text(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE TABLE u (a);"
        " CREATE VIRTUAL TABLE f USING fts5(x);"
    )
    ran = simulate(
        *("--schema", schema, "--seed", "1", "--replicas", "2", "--minutes", "0.1"),
        *("--report", page, "--json"),
    )
    assert ran.returncode == 0, ran.stderr
    assert "left out: u: has no primary key" in ran.stderr
    assert set(json.loads(ran.stdout)["left_out"]) == {"u", "f"}
    assert "has no primary key" in page.read_text()


def test_the_folder_of_a_database_in_wal_mode_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "wal.db"
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE in_main (id INTEGER PRIMARY KEY, x)")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()
    for open_too in (False, True):
        if open_too:
            conn = sqlite3.connect(path, isolation_level=None)
            conn.execute("CREATE TABLE in_wal (id INTEGER PRIMARY KEY, x)")
        before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
        assert ("wal.db-wal" in before) == open_too
        ran = simulate(
            *("--database", path, "--seed", "1", "--replicas", "2", "--minutes", "0.1", "--json")
        )
        assert ran.returncode == 0, ran.stderr
        assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    conn.close()


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "torn.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    ran = simulate("--database", path)
    assert ran.returncode == 1
    assert "torn.db cannot be read" in ran.stderr


def test_a_file_that_is_tracked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tracked.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE _reunite_meta (name)")
    conn.close()
    ran = simulate("--database", path)
    assert ran.returncode == 1
    assert "tracked already" in ran.stderr
