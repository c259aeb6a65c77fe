"""Fixtures of the command line's tests: the command, a file that nobody tracks, a relay."""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.transport.commands import (
    ODD,
    REUNITE,
    SECONDS_MAX,
    Command,
    Finished,
    heeding_ctrl_c,
    started,
)


@pytest.fixture
def reunite(tmp_path: Path) -> Command:
    """The command, in a folder of the test."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> Finished:
        return subprocess.run(
            [REUNITE, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            env=env,
            check=False,
            preexec_fn=heeding_ctrl_c,
        )

    return run


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """An SQLite file that nobody tracks: two tables, in the mode that SQLite starts with."""
    path = tmp_path / "music.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(
            f"""
            CREATE TABLE artist (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
            CREATE TABLE "{ODD}" (id TEXT PRIMARY KEY);
            INSERT INTO artist VALUES (1, 'Mira Holt'), (2, 'Oda Lind');
            """
        )
    return path


@pytest.fixture
def relay_url(postgres_url: str) -> Iterator[str]:
    """A relay of its own process on an empty database."""
    options = ("--postgres", postgres_url, "--create-tables", "--port", 0, "--json")
    with started("relay", *options) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
