"""What `reunite relay` writes to its log, by its options."""

import json
import signal
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.transport.commands import SECONDS_MAX, Command, failed, started

SECRET = "5ecret of nobody"


def log_of(reunite: Command, music: Path, postgres_url: str, *options: str) -> list[str]:
    """The lines that a relay has logged while a file pushed to it, with a row that it rejects."""
    reunite("track", music, "artist")
    options = ("--postgres", postgres_url, "--create-tables", "--port", "0", "--json", *options)
    with started("relay", *options) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert reunite("sync", music, url, "--once").returncode == 0
        other = music.with_name("other.db")
        assert reunite("sync", other, url, "--once").returncode == 0
        for key, file in enumerate((other, music), 10):
            with closing(sqlite3.connect(file)) as conn, conn:
                conn.execute("INSERT INTO artist VALUES (?, ?)", (key, SECRET))
            assert reunite("sync", file, url, "--once").returncode == 0
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 0
    return err.splitlines()


def test_a_relay_that_has_no_trouble_says_nothing(
    reunite: Command, music: Path, postgres_url: str
) -> None:
    assert log_of(reunite, music, postgres_url) == []


@pytest.mark.parametrize("level", ["debug", "info"])
def test_the_log_as_text(reunite: Command, music: Path, postgres_url: str, level: str) -> None:
    lines = log_of(reunite, music, postgres_url, "--log-level", level)
    assert all(line.startswith("reunite relay: ") for line in lines)
    assert lines[0].startswith("reunite relay: listening at ws://127.0.0.1:")
    assert "reunite relay: connection 1 opened" in lines
    assert lines[-1] == "reunite relay: stopped"
    assert any(" is rejected: constraint (table 'artist'" in line for line in lines)
    assert any(": commit 1: 2 rows of 1 changesets in " in line for line in lines) == (
        level == "debug"
    )
    assert SECRET not in "".join(lines)


def test_the_log_as_json(reunite: Command, music: Path, postgres_url: str) -> None:
    options = ("--log-format", "json", "--log-level", "debug")
    lines = log_of(reunite, music, postgres_url, *options)
    assert SECRET not in "".join(lines)
    found = [json.loads(line) for line in lines]
    for each in found:
        assert datetime.fromisoformat(each["time"]).utcoffset() == timedelta(0)
        assert each["level"] in ("debug", "info")
        assert each["logger"].startswith("reunite")
    commits = [each for each in found if "seq" in each]
    assert [each["seq"] for each in commits] == [1, 2]
    assert (commits[0]["rows"], commits[0]["changesets"]) == (2, 1)
    assert all(0 < each["seconds"] < SECONDS_MAX for each in commits)
    status = json.loads(reunite("status", music, "--json").stdout)
    (rejection,) = [each for each in found if "reason" in each]
    assert rejection["replica"] == status["replica"]
    assert (rejection["reason"], rejection["table"]) == ("constraint", "artist")
    assert "artist" in rejection["constraint"]
    closed = [each for each in found if each["message"].endswith(" closed")]
    assert {each["connection"] for each in closed} == {1, 2, 3, 4}
    assert [each["replica"] for each in closed].count(status["replica"]) == 2


@pytest.mark.parametrize("option", [("--log-level", "loud"), ("--log-format", "xml")], ids=str)
def test_other_levels_and_formats_are_refused(reunite: Command, option: tuple[str, str]) -> None:
    failed(reunite("relay", "--data", "here", *option), 2, option[0])
