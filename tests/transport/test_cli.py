"""The command line as a shell meets it: output, exit codes, signals, and what it must not touch."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from reunite_transport import cli
from reunite_transport.relay.postgres_query import fetch_rows
from reunite_transport.relay.run import default_data, without_password
from tests.transport.commands import (
    NO_RELAY,
    ODD,
    REUNITE,
    SECONDS_MAX,
    Command,
    failed,
    query,
    started,
)

# Calls


@pytest.mark.parametrize("command", ["relay", "track", "sync", "status", "verify", "demo"])
def test_every_command_explains_itself_with_an_example(reunite: Command, command: str) -> None:
    shown = reunite(command, "--help")
    assert shown.returncode == 0
    assert re.search(rf"Examples?:\n\s+reunite {command}\b", shown.stdout)
    assert command in reunite().stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("relay", "--port", "many"),
        ("relay", "--port", "65536"),
        ("relay", "--nonsense"),
        ("relay", "--postgres", "nonsense"),
        ("relay", "--postgres", "postgresql://host:port/x"),
        ("relay", "--postgres", "postgresql://host/x", "--data", "here"),
        ("relay", "--host", "0.0.0.0", "--data", "here"),
        ("track",),
        ("track", "music.db"),
        ("track", "music.db", "artist", "--all"),
        ("sync", "music.db"),
        ("sync", "music.db", "http://127.0.0.1"),
        ("sync", "music.db", "ws://127.0.0.1:66666"),
        ("sync", "music.db", "ws://"),
        ("sync", "music.db", NO_RELAY, "--adopt", "both"),
        ("sync", "music.db", NO_RELAY, "--timeout", "-1"),
        ("sync", "music.db", NO_RELAY, "--json"),
        ("sync", NO_RELAY, "music.db"),
        ("sync", "music.db", "ws://two..dots:8800"),
        ("status",),
        ("verify", "music.db", "more"),
        ("demo", "more"),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_refused_with_code_2(
    reunite: Command, music: Path, arguments: tuple[str, ...]
) -> None:
    before = music.read_bytes()
    failed(reunite(*arguments), 2)
    assert music.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((NO_RELAY, "music.db"), f"reunite sync music.db {NO_RELAY}"),
        (("music.db", "http://127.0.0.1:8800"), "; write ws://127.0.0.1:8800"),
        (("music.db", "https://relay.example/sync"), "; write wss://relay.example/sync"),
        (("music.db", "localhost:8800"), "; write ws://localhost:8800"),
        (("music.db", "phone.db"), ", as ws://127.0.0.1:8800 is"),
    ],
    ids=str,
)
def test_a_sync_with_its_arguments_mixed_up_says_what_was_meant(
    reunite: Command, music: Path, arguments: tuple[str, ...], hint: str
) -> None:
    refused = reunite("sync", *arguments)
    failed(refused, 2)
    assert refused.stderr.endswith(f"{hint}\n")


def test_a_sync_of_what_can_be_no_file_makes_none(reunite: Command, tmp_path: Path) -> None:
    failed(reunite("sync", tmp_path, NO_RELAY), 1, f"{tmp_path} is a folder")
    failed(reunite("sync", "no/such.db", NO_RELAY), 1, "there is no folder no;")
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_package(reunite: Command) -> None:
    assert reunite("--version").stdout == f"reunite {version('reunite')}\n"


@pytest.mark.parametrize(
    ("imported", "arguments"),
    [
        ("typer", ("status", "music.db")),
        ("aiohttp", ("sync", "music.db", NO_RELAY)),
        ("asyncpg", ("relay", "--data", "here")),
        ("asyncpg", ("demo",)),
    ],
)
def test_ctrl_c_during_an_import_ends_it_without_a_word(
    reunite: Command, tmp_path: Path, imported: str, arguments: tuple[str, ...]
) -> None:
    stand_in = tmp_path / f"{imported}.py"
    stand_in.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = reunite(*arguments, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGINT, "", "")
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [stand_in]


def test_a_command_that_needs_no_network_imports_none(
    reunite: Command, music: Path, tmp_path: Path
) -> None:
    (tmp_path / "aiohttp.py").write_text("raise AssertionError('imported')")
    (tmp_path / "asyncpg.py").write_text("raise AssertionError('imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command in (("track", music, "artist"), ("status", music), ("verify", music)):
        assert reunite(*command, env=environment).stderr == ""


@pytest.mark.parametrize("command", ["track", "status", "verify"])
def test_a_file_that_is_not_there_is_not_made(
    reunite: Command, tmp_path: Path, command: str
) -> None:
    options = ("--all",) if command == "track" else ()
    failed(reunite(command, "none.db", *options), 1, "none.db does not exist")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["track", "status", "verify", "sync"])
def test_what_is_no_database_is_refused_and_left_as_it_is(
    reunite: Command, tmp_path: Path, command: str
) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Dear reader, " * 100)
    options = {"track": ("--all",), "sync": (NO_RELAY, "--once")}.get(command, ())
    failed(reunite(command, text, *options), 1, "file is not a database")
    failed(reunite(command, tmp_path, *options), 1)
    assert text.read_text() == "Dear reader, " * 100
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("wal", [False, True])
@pytest.mark.parametrize("command", ["status", "verify"])
def test_looking_at_a_file_that_is_not_tracked_changes_nothing(
    reunite: Command, music: Path, command: str, wal: bool
) -> None:
    with closing(sqlite3.connect(music, isolation_level=None)) as conn:
        if wal:
            # Kept open, so that what was written last still waits in the -wal.
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("INSERT INTO artist VALUES (3, 'new')")
        before = {path: path.read_bytes() for path in music.parent.iterdir()}
        failed(reunite(command, music), 1, "is not tracked", "reunite track")
        after = {path: path.read_bytes() for path in music.parent.iterdir()}
    # The -shm is memory that readers share.
    assert {path for path in before if before[path] != after[path]} <= {Path(f"{music}-shm")}


# Files


def test_track_says_what_it_took_in_and_that_it_switched_to_wal(
    reunite: Command, music: Path
) -> None:
    first = reunite("track", music, "ARTIST")
    assert first.returncode == 0
    assert first.stdout.splitlines()[0].startswith(f"switched {music} to WAL mode")
    assert "tracking artist: 2 rows" in first.stdout
    second = reunite("track", music, "--all", "--json")
    assert json.loads(second.stdout) == {
        "file": str(music),
        "tracked": [{"name": ODD, "rows": 0}],
        "already": ["artist"],
        "wal": False,
    }
    assert query(music, "SELECT id, name FROM artist") == [(1, "Mira Holt"), (2, "Oda Lind")]


def test_a_table_that_cannot_be_tracked_leaves_the_file_unchanged(
    reunite: Command, music: Path
) -> None:
    query(music, "CREATE TABLE loose (a, b)")
    before = music.read_bytes()
    failed(reunite("track", music, "--all"), 1, "loose", "no primary key")
    failed(reunite("track", music, "artist", "nobody"), 1, "nobody", "no such table")
    failed(reunite("track", music, "\udcff"), 1)
    assert music.read_bytes() == before
    assert [path.name for path in music.parent.iterdir()] == [music.name]


def test_an_empty_file_has_nothing_to_track(reunite: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    failed(reunite("track", "empty.db", "--all"), 1, "no tables")
    assert (tmp_path / "empty.db").read_bytes() == b""


def test_status_counts_what_waits_to_be_sent(reunite: Command, music: Path) -> None:
    reunite("track", music, "artist")
    query(music, "UPDATE artist SET name = 'M. Holt' WHERE id = 1")
    found = json.loads(reunite("status", music, "--json").stdout)
    assert re.fullmatch("[0-9a-f]{16}", found.pop("replica"))
    assert found == {
        "file": str(music),
        "realm": None,
        "last_sync": None,
        "pending": 1,
        "unfolded": 1,
        "rejected": 0,
        "blocked": 0,
        "left_alone": [],
        "local_only": [],
        "untracked": [ODD],
        "tables": [{"name": "artist", "rows": 2}],
    }
    shown = reunite("status", music).stdout
    assert re.search(r"pending +1\n", shown)
    assert re.search(r"artist +2\n", shown)


def test_verify_finds_a_row_that_was_changed_behind_the_triggers(
    reunite: Command, music: Path
) -> None:
    reunite("track", music, "artist")
    equal = reunite("verify", music)
    assert (equal.returncode, equal.stdout) == (0, "2 rows in 1 table: all equal\n")
    query(music, "UPDATE artist SET name = 'forged' WHERE id = 2")
    query(music, "DELETE FROM _reunite_log")
    differs = reunite("verify", music)
    assert differs.returncode == 1
    assert "artist 2 name: the table has 'forged', the document 'Oda Lind'" in differs.stdout
    assert differs.stdout.endswith("2 rows in 1 table: 1 difference\n")
    found = reunite("verify", music, "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout) == {
        "file": str(music),
        "tables": 1,
        "rows": 2,
        "differences": [
            {
                "table": "artist",
                "key": 2,
                "column": "name",
                "message": "the table has 'forged', the document 'Oda Lind'",
            }
        ],
    }


@pytest.mark.parametrize("command", [("track", "--all"), ("sync", NO_RELAY, "--once")], ids=str)
def test_a_file_that_is_locked_is_named_with_what_may_help(
    reunite: Command,
    music: Path,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reunite("track", music, "artist")
    # In this process, as a command of its own would wait for ten seconds.
    monkeypatch.setattr("reunite.connection.BUSY_TIMEOUT_MS", 1)
    monkeypatch.setattr("sys.argv", ["reunite", command[0], str(music), *command[1:]])
    with closing(sqlite3.connect(music, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"reunite: {music}: database is locked; another program holds a write transaction on it;"
        " let it finish first\n"
    )


def test_names_print_as_they_are_and_cannot_control_the_terminal(
    reunite: Command, tmp_path: Path
) -> None:
    path = tmp_path / "odd.db"
    names = [ODD, "two\nlines", "red\x1b[31m", "Käse  1", "right\u202eleft"]
    for name in names:
        query(path, f'CREATE TABLE "{name}" (id BLOB PRIMARY KEY, v)')
        query(path, f"INSERT INTO \"{name}\" VALUES (X'00FF', 1)")
    for command in (("track", path, "--all"), ("status", path), ("verify", path)):
        shown = reunite(*command)
        assert shown.returncode == 0, shown.stderr
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", shown.stdout)
    listed = [line[:-6].rstrip() for line in reunite("status", path).stdout.splitlines()[-5:]]
    assert listed == [ODD, r"two\nlines", r"red\x1b[31m", "Käse  1", r"right\u202eleft"]
    found = json.loads(reunite("status", path, "--json").stdout)
    assert [table["name"] for table in found["tables"]] == names


def test_a_reader_that_leaves_early_ends_it_without_a_traceback(
    reunite: Command, music: Path
) -> None:
    reunite("track", music, "artist")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as pipe:
        done = subprocess.run(
            [REUNITE, "status", music], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


# The relay


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGTERM, ()), (signal.SIGINT, ("--json",))]
)
def test_a_relay_brings_its_postgres_and_takes_it_down_when_told(
    reunite: Command, music: Path, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    data = tmp_path / "relay data"
    reunite("track", music, "artist")
    with started("relay", "--data", data, "--port", 0, *options) as process:
        assert process.stdout is not None
        if options:
            shown = json.loads(process.stdout.readline())
        else:
            lines = [process.stdout.readline().split(maxsplit=1) for _ in range(3)]
            shown = {name: value.strip() for name, value in lines}
        assert shown["data"] == str(data)
        assert shown["postgres"].startswith("postgresql://")
        # It listens by now, and makes tables on its own Postgres without being asked.
        assert reunite("sync", music, shown["url"], "--once").returncode == 0
        second = reunite("relay", "--data", data, "--port", shown["url"].split(":")[2][:-5])
        failed(second, 1, "cannot listen", "--port")
        process.send_signal(number)
        _, err = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, err) == (0, "")
    assert not (data / "cluster" / "postmaster.pid").exists()


def test_tables_are_made_on_a_given_postgres_only_when_asked(
    reunite: Command, music: Path, postgres_url: str
) -> None:
    reunite("track", music, "artist")
    with started("relay", "--postgres", postgres_url, "--port", 0, "--json") as process:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        assert announced == {"url": announced["url"], "postgres": postgres_url, "data": None}
        failed(reunite("sync", music, announced["url"], "--once"), 1, "artist")


@pytest.mark.parametrize(("options", "kept"), [((), 1), (("--no-history",), 0)])
def test_what_is_overwritten_is_kept_unless_the_relay_is_told_not_to(
    reunite: Command, music: Path, postgres_url: str, options: tuple[str, ...], kept: int
) -> None:
    reunite("track", music, "artist")
    options = ("--postgres", postgres_url, "--create-tables", "--port", "0", "--json", *options)
    with started("relay", *options) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        reunite("sync", music, url, "--once")
        query(music, "UPDATE artist SET name = 'M. Holt' WHERE id = 1")
        assert reunite("sync", music, url, "--once").returncode == 0
    rows = asyncio.run(fetch_rows(postgres_url, "SELECT seq FROM _reunite_history"))
    assert len(rows) == kept


def test_a_postgres_that_does_not_answer_is_an_error(reunite: Command) -> None:
    failed(reunite("relay", "--postgres", "postgresql://127.0.0.1:1/x", "--port", 0), 1, "Postgres")


def test_a_password_is_not_printed() -> None:
    url = "postgresql://me:s3cret@[::1]:5432/app?sslmode=require&password=s3cret"
    assert without_password(url) == (
        "postgresql://me:***@[::1]:5432/app?sslmode=require&password=***"
    )
    assert without_password("postgresql://host/app") == "postgresql://host/app"


def test_the_data_folder_follows_the_users_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data() == tmp_path / "reunite-data"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data() == tmp_path / ".local/share/reunite-data"
