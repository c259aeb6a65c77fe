"""`reunite sync` as a shell meets it, on a relay of its own process."""

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.transport.commands import (
    NO_RELAY,
    ODD,
    SECONDS_MAX,
    Command,
    failed,
    query,
    started,
)


def test_a_file_syncs_once_and_a_new_one_gets_all_its_tables(
    reunite: Command, music: Path, relay_url: str, tmp_path: Path
) -> None:
    reunite("track", music, "--all")
    sent = reunite("sync", music, relay_url, "--once")
    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout == f"{music}: 1 changeset sent, 0 rows received, 0 changesets pending\n"
    query(music, "UPDATE artist SET name = 'M. Holt' WHERE id = 1")
    assert json.loads(reunite("sync", music, relay_url, "--once", "--json").stdout)["sent"] == 1
    came = reunite("sync", "new.db", relay_url, "--once", "--json")
    assert came.returncode == 0, came.stderr
    assert json.loads(came.stdout) == {
        "file": "new.db",
        "sent": 0,
        "received": 2,
        "pending": 0,
        "rejected": [],
        "local": 0,
        "left_alone": [],
    }
    artists = "SELECT id, name FROM artist ORDER BY id"
    assert query(tmp_path / "new.db", artists) == query(music, artists)
    assert reunite("verify", "new.db").returncode == 0
    assert json.loads(reunite("status", "new.db", "--json").stdout)["last_sync"]


def test_a_rejection_is_one_line_on_stderr_and_in_the_json(
    reunite: Command, music: Path, relay_url: str, tmp_path: Path
) -> None:
    reunite("track", music, "artist")
    reunite("sync", music, relay_url, "--once")
    for name in ("b.db", "c.db"):
        reunite("sync", name, relay_url, "--once")
    for key, name in ((8, "music.db"), (9, "b.db"), (10, "c.db")):
        query(tmp_path / name, f"INSERT INTO artist VALUES ({key}, 'the same name')")
    assert reunite("sync", music, relay_url, "--once").stderr == ""
    refused = reunite("sync", "b.db", relay_url, "--once")
    assert refused.returncode == 0
    assert len(refused.stderr.splitlines()) == 1
    assert "rejected (constraint): artist 9: " in refused.stderr
    assert refused.stdout.endswith(", 1 rejected (1 kept in reunite_rejected)\n")
    again = reunite("sync", "b.db", relay_url, "--once")
    assert again.stdout.endswith(", 0 changesets pending (1 kept in reunite_rejected)\n")
    found = json.loads(reunite("sync", "c.db", relay_url, "--once", "--json").stdout)
    (rejection,) = found["rejected"]
    assert rejection["reason"] == "constraint"
    assert rejection["rows"] == [["artist", 10]]
    assert json.loads(reunite("status", "b.db", "--json").stdout)["rejected"] == 1


def test_rows_that_cannot_leave_the_file_are_counted(
    reunite: Command, music: Path, relay_url: str
) -> None:
    query(music, f"INSERT INTO \"{ODD}\" VALUES (NULL), (NULL), ('sent')")
    reunite("track", music, "--all")
    synced = reunite("sync", music, relay_url, "--once")
    assert synced.returncode == 0
    assert synced.stderr == (
        "reunite: 2 rows stay in this file only; see the table reunite_rejected, reason 'local'\n"
    )
    noted = query(music, "SELECT count(*) FROM reunite_rejected WHERE reason = 'local'")
    assert noted == [(2,)]
    again = reunite("sync", music, relay_url, "--once", "--json")
    assert (json.loads(again.stdout)["local"], again.stderr) == (2, "")


def test_two_different_files_are_not_mixed_until_someone_decides(
    reunite: Command, music: Path, relay_url: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(music.read_bytes())
    query(other, "UPDATE artist SET name = 'Someone else' WHERE id = 1")
    for path in (music, other):
        reunite("track", path, "artist")
    reunite("sync", music, relay_url, "--once")
    failed(reunite("sync", other, relay_url, "--once"), 1, "1 row of artist", "--adopt theirs")
    assert query(other, "SELECT name FROM artist WHERE id = 1") == [("Someone else",)]
    settled = reunite("sync", other, relay_url, "--once", "--adopt", "ours")
    assert settled.returncode == 0
    reunite("sync", music, relay_url, "--once")
    assert query(music, "SELECT name FROM artist WHERE id = 1") == [("Someone else",)]


def test_a_table_that_is_not_tracked_is_left_alone_and_named(
    reunite: Command, music: Path, relay_url: str, tmp_path: Path
) -> None:
    reunite("track", music, "artist")
    reunite("sync", music, relay_url, "--once")
    query(tmp_path / "own.db", "CREATE TABLE artist (mine)")
    synced = reunite("sync", "own.db", relay_url, "--once")
    assert synced.returncode == 0
    assert "'artist' is not tracked here and was left alone" in synced.stderr
    found = json.loads(reunite("sync", "own.db", relay_url, "--once", "--json").stdout)
    assert found["left_alone"] == ["artist"]
    assert query(tmp_path / "own.db", "SELECT * FROM artist") == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (NO_RELAY, "connection refused (is the relay running?)"),
        ("ws://no-such-host.invalid:8800", " (is the address right?)"),
    ],
)
def test_a_relay_that_cannot_be_reached_is_given_up_in_time(
    reunite: Command, music: Path, url: str, why: str
) -> None:
    reunite("track", music, "artist")
    gone = reunite("sync", music, url, "--once", "--timeout", "0.5")
    failed(gone, 1, f"reunite: no connection to {url}: ", f"{why}; tried for 0.5 s, --timeout")
    assert len(gone.stderr) < 160
    assert json.loads(reunite("status", music, "--json").stdout)["pending"] == 1


def test_a_new_file_is_taken_back_when_no_relay_was_met(
    reunite: Command, tmp_path: Path, relay_url: str
) -> None:
    (tmp_path / "empty.db").touch()
    for name in ("new.db", "empty.db"):
        failed(reunite("sync", name, NO_RELAY, "--once", "--timeout", "0.2"), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]
    assert reunite("sync", "new.db", relay_url, "--once").returncode == 0
    failed(reunite("sync", "new.db", NO_RELAY, "--once", "--timeout", "0.2"), 1)
    assert query(tmp_path / "new.db", "SELECT count(*) FROM reunite_rejected") == [(0,)]


@pytest.mark.parametrize("use", ["writes", "looks"])
def test_a_new_file_that_somebody_else_uses_is_kept(tmp_path: Path, use: str) -> None:
    path = tmp_path / "new.db"
    with started("sync", path, NO_RELAY) as process:
        assert process.stderr is not None
        assert "trying again" in process.stderr.readline()
        with closing(sqlite3.connect(path)) as other:
            other.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if use == "writes":
                other.execute("CREATE TABLE mine (id)")
                other.close()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, err.strip()) == (128 + signal.SIGINT, "")
    expected = [("mine",)] if use == "writes" else []
    assert query(path, "SELECT name FROM sqlite_master WHERE name = 'mine'") == expected
    assert query(path, "SELECT count(*) FROM reunite_rejected") == [(0,)]


def test_ctrl_c_ends_a_sync_with_its_status(music: Path, reunite: Command, relay_url: str) -> None:
    reunite("track", music, "artist")
    with started("sync", music, relay_url) as process:
        assert process.stdout is not None
        assert "0 changesets pending" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 128 + signal.SIGINT
    assert out == f"{music}: 1 changeset sent, 0 rows received, 0 changesets pending\n"
    assert "Traceback" not in err
