"""File format 1 is frozen: apps hold such files. A later format adds a file beside it."""

import sqlite3
from pathlib import Path

import pytest

from reunite.payload import Kind
from reunite.replica import Replica
from reunite.verify import verify
from tests.engine.peer import Clock, chance, connect

GOLDEN = Path(__file__).parent.parent / "golden" / "file-1.sql"


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file as reunite 0.1 wrote it: synced rows, an image, a tombstone, an edit and an insert
    that wait to be sent, and a row of another program that is not folded yet."""
    path = tmp_path / "old.db"
    conn = sqlite3.connect(path)
    conn.executescript(GOLDEN.read_text(encoding="utf-8"))
    conn.close()
    return path


def test_a_file_of_format_1_is_as_it_was_left(old_file: Path) -> None:
    conn = connect(old_file)
    assert verify(conn) == []
    assert conn.execute(
        'SELECT key, state FROM reunite_rows WHERE "table" = ?', ("todo",)
    ).fetchall() == [
        (1, "pending"),
        (2, "synced"),
        (4, "pending"),
    ]
    conn.close()


def test_a_file_of_format_1_goes_on(old_file: Path) -> None:
    conn = connect(old_file)
    replica = Replica(conn, chance=chance(9), clock=Clock())
    replica.prepare()
    greeting = replica.greeting()
    assert (greeting.acknowledged, greeting.seq, len(greeting.nonces)) == (3, 4, 2)
    first, second = replica.outgoing(changesets_max=10, bytes_max=1 << 20)
    assert [(rows.kinds, len(rows.documents)) for rows in first.rows] == [
        ([Kind.PARTIAL, Kind.WHOLE], 2)
    ]
    assert [rows.kinds for rows in second.rows] == [[Kind.WHOLE]]
    assert verify(conn) == []
    conn.close()
