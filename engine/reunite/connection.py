"""Connections to an app's file: how each is opened, and what is run on one.

Everything here runs on the thread of its connection, outside of the event loop.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from reunite.errors import FileError, UsageError
from reunite.row import Row

T = TypeVar("T")
# What sqlite3 binds: a value adapter may take more than the five storage classes.
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any]

# How long to wait for another program's write lock before giving up, in milliseconds.
BUSY_TIMEOUT_MS: Final = 10_000
# A statement's first word, after any comments.
_FIRST_WORD: Final = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(\w+)", re.DOTALL)


class Result(NamedTuple):
    """What a statement did: rows of a RETURNING clause or query, and SQLite's counters.

    `changeset` names what is to be sent, for `Database.synced`; None where no tracked row was
    edited, and inside of a transaction, which has one of its own.
    """

    rows: list[Row]
    rowcount: int
    lastrowid: int | None
    changeset: int | None = None


def connect(
    path: Path, *, foreign_keys: bool, query_only: bool = False, statements_kept: int = 128
) -> sqlite3.Connection:
    """Open the file in WAL mode; with `foreign_keys` it is left to others to checkpoint. Raises
    FileError."""
    try:
        conn = sqlite3.connect(
            path,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_MS / 1000,
            cached_statements=statements_kept,
        )
    except sqlite3.OperationalError as error:
        raise FileError(
            f"{path} cannot be opened ({error}); check the folder and permissions"
        ) from error
    try:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")
        if foreign_keys:
            conn.execute("PRAGMA wal_autocheckpoint = 0")
        if query_only:
            conn.execute("PRAGMA query_only = 1")
    except sqlite3.DatabaseError as error:
        conn.close()
        raise FileError(f"{path} cannot be used: {error}") from error
    return conn


def check_text(sql: object) -> None:
    """Raise UsageError for a statement that is not text, such as one of SQLAlchemy."""
    if not isinstance(sql, str):
        raise UsageError(
            f"this takes SQL as text, not {type(sql).__name__}; statements of SQLAlchemy are for"
            " db.session(), and a select() also for db.watch()"
        )


def execute(conn: sqlite3.Connection, sql: str, parameters: Parameters) -> Result:
    """Run one statement to its end."""
    check_text(sql)
    cursor = conn.cursor()
    cursor.row_factory = Row
    cursor.execute(sql, parameters)
    return Result(cursor.fetchall(), cursor.rowcount, cursor.lastrowid)


def executemany(conn: sqlite3.Connection, sql: str, parameters: Sequence[Parameters]) -> Result:
    """Run one statement for each set of parameters; `rowcount` is the rows changed."""
    check_text(sql)
    cursor = conn.executemany(sql, parameters)
    return Result([], cursor.rowcount, cursor.lastrowid)


def made(rows: Iterable[Row], into: Callable[..., T]) -> list[T]:
    """Rows as objects of the caller's: `into` is called with a row's columns by name."""
    return [into(**dict(zip(row.keys(), row, strict=True))) for row in rows]


def rollback(conn: sqlite3.Connection) -> None:
    """End what is under way, if anything is."""
    if conn.in_transaction:
        conn.execute("ROLLBACK")


def checkpoint(conn: sqlite3.Connection) -> None:
    """Bring the write-ahead log into the file, as far as nobody reads it."""
    conn.execute("PRAGMA wal_checkpoint(PASSIVE)")


def runs_alone(sql: str) -> bool:
    """True for statements that SQLite refuses inside a transaction."""
    first = _FIRST_WORD.match(sql)
    return first is not None and first[1].upper() in ("PRAGMA", "VACUUM", "ATTACH", "DETACH")
