"""What a world begins with: a schema in SQL or a database file, checked before anything runs.

A user's database is copied and the copy looked at: SQLite makes files beside one in WAL mode, even
for those who only read. Owns which names are taken, and which tables a world leaves out and why.
"""

import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from reunite.errors import FileError, ReuniteError, UsageError
from reunite.schema import OWN_PREFIX, Table, ascii_lower, read_table, table_names
from reunite_simulations.nodes import copy_files
from reunite_simulations.workload import APPEND_TABLE

SQLITE_MAGIC: Final = b"SQLite format 3\0"
_TAKEN: Final = frozenset({APPEND_TABLE, "reunite_rows", "reunite_rejected"})
# Text without any of these is no SQL that makes a table.
_OF_SQL: Final = (" ", "\n", "\t", ";", "(")


def read_schema(path: Path) -> str:
    """The SQL of a file. Raises FileError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise FileError(f"{path} cannot be used as a schema: {error}") from error


def check_schema(sql: str, said: str = "the schema") -> Mapping[str, str]:
    """Make the tables in memory. Returns those that a world leaves out, and why. Raises FileError
    when it is no SQL, reaches for other files or leaves a transaction open, UsageError when there
    is nothing to sync. `said` is what messages call it."""
    attached = False

    def no_other_file(action: int, *_: str | None) -> int:
        nonlocal attached
        attached |= action == sqlite3.SQLITE_ATTACH
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK

    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.set_authorizer(no_other_file)
        try:
            conn.executescript(sql)
        except (sqlite3.Error, ValueError) as error:
            why = "it attaches another file" if attached else str(error)
            if not any(mark in sql.strip() for mark in _OF_SQL):
                why = "it is neither SQL nor a file that exists"
            raise FileError(f"{said} cannot be used as a schema: {why}") from error
        conn.set_authorizer(None)
        if conn.in_transaction:
            raise FileError(
                f"{said} cannot be used as a schema: it begins a transaction and does not end it;"
                " end it with COMMIT"
            )
        return _looked_at(conn, said)


def check_database(path: Path) -> Mapping[str, str]:
    """Look at a copy of a database: the file and its folder stay as they are. Returns the tables
    that a world leaves out, and why. Raises FileError when it is no database that a world can begin
    with, UsageError when there is nothing to sync."""
    journal = Path(f"{path}-journal")
    if journal.exists() and journal.stat().st_size:
        raise FileError(
            f"{path} cannot be read: a transaction on it is not finished ({journal.name});"
            " let the program that writes it end, or open it once with SQLite"
        )
    with tempfile.TemporaryDirectory(prefix="reunite-look-") as folder:
        copy = Path(folder) / "copy.db"
        try:
            with path.open("rb"):
                copy_files(path, copy)
            with closing(sqlite3.connect(copy, isolation_level=None)) as conn:
                (found,) = conn.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise FileError(f"{path} is damaged: {' '.join(str(found).split())}")
                if conn.execute(
                    "SELECT 1 FROM sqlite_master WHERE name = '_reunite_meta'"
                ).fetchone():
                    raise FileError(
                        f"{path} is tracked already; simulate begins with a file that is not"
                    )
                return _looked_at(conn, str(path))
        except (OSError, sqlite3.Error) as error:
            raise FileError(f"{path} cannot be read: {error}") from error


def tables_of(conn: sqlite3.Connection) -> tuple[Sequence[Table], Mapping[str, str]]:
    """The tables that can be synced, and why each of the others cannot."""
    found: list[Table] = []
    left_out: dict[str, str] = {}
    virtual = [
        name
        for (name,) in conn.execute(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'virtual'"
        )
    ]
    for name in [*table_names(conn), *virtual]:
        try:
            found.append(read_table(conn, name))
        except ReuniteError as error:
            left_out[name] = str(error).removeprefix(f"table {name!r}: ")
    return found, left_out


def need_tables(tables: Sequence[Table], left_out: Mapping[str, str], said: str) -> None:
    """Raise UsageError when no table is left but the simulator's own."""
    if any(table.name != APPEND_TABLE for table in tables):
        return
    why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    raise UsageError(f"{said} has no table that can be synced: {why or 'it has no tables'}")


def _looked_at(conn: sqlite3.Connection, said: str) -> Mapping[str, str]:
    for (name,) in conn.execute("SELECT name FROM sqlite_master ORDER BY rowid"):
        lowered = ascii_lower(name)
        if lowered in _TAKEN or lowered.startswith(OWN_PREFIX):
            raise UsageError(f"{said} uses the name {name!r}, which is reunite's own; rename it")
    tables, left_out = tables_of(conn)
    need_tables(tables, left_out, said)
    return left_out
