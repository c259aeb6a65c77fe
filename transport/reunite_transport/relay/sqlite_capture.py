"""Capture on SQLite: triggers that note what other programs write to a relay's tables, and reading
what they noted.

A write is a line of `_reunite_captured` and a line for each column in `_reunite_captured_values`,
which keeps values as they are. While the relay itself writes, a flag that only its own transaction
sees keeps the triggers still. A row that gives way to an `INSERT OR REPLACE` because of another
UNIQUE than its key goes without a trigger, as SQLite has it: write without OR REPLACE here.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from reunite.cells.register import Value
from reunite.schema import Table, quoted
from reunite_transport.relay.store import Written

# Writes that are read and folded at a time.
PART_WRITES: Final = 2_000

# SQLite 3.40 has no milliseconds since 1970 of its own.
_NOW_MS: Final = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)"
_PREFIX: Final = "_reunite_capture_"


def install_triggers(connection: sqlite3.Connection, tables: Iterable[Table]) -> None:
    """Capture what is written to these tables from now on, by everybody but the relay."""
    for table in tables:
        for event in ("insert", "update", "delete"):
            connection.execute(f"DROP TRIGGER IF EXISTS {quoted(_name(table, event))}")
            connection.execute(_trigger(table, event))


def uncaptured(connection: sqlite3.Connection, tables: Sequence[Table]) -> list[Table]:
    """Those of these tables that lack a trigger."""
    found = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    }
    wanted = ("insert", "update", "delete")
    return [table for table in tables if not {_name(table, e) for e in wanted} <= found]


def take(connection: sqlite3.Connection) -> list[Written]:
    """The next writes, in order; nothing at the end. They are taken out."""
    writes = connection.execute(
        "SELECT id, tbl, at, had, has FROM _reunite_captured ORDER BY id LIMIT ?", (PART_WRITES,)
    ).fetchall()
    if not writes:
        return []
    last = writes[-1][0]
    before: dict[int, dict[int, Value]] = {}
    after: dict[int, dict[int, Value]] = {}
    for write, column, old, new in connection.execute(
        "SELECT write, col, before, after FROM _reunite_captured_values WHERE write <= ?", (last,)
    ):
        before.setdefault(write, {})[column] = old
        after.setdefault(write, {})[column] = new
    connection.execute("DELETE FROM _reunite_captured WHERE id <= ?", (last,))
    connection.execute("DELETE FROM _reunite_captured_values WHERE write <= ?", (last,))
    return [
        Written(
            table,
            # SQLite has no number for it, so each write stands for itself.
            write,
            at << 16,
            before.get(write, {}) if had else None,
            after.get(write, {}) if has else None,
        )
        for write, table, at, had, has in writes
    ]


def _name(table: Table, event: str) -> str:
    return f"{_PREFIX}{table.id}_{event}"


def _trigger(table: Table, event: str) -> str:
    had, has = event != "insert", event != "delete"
    values = ", ".join(
        f"((SELECT max(id) FROM _reunite_captured), {column.id},"
        f" {f'OLD.{quoted(column.name)}' if had else 'NULL'},"
        f" {f'NEW.{quoted(column.name)}' if has else 'NULL'})"
        for column in table.columns
    )
    return (
        f"CREATE TRIGGER {quoted(_name(table, event))} AFTER {event.upper()}"
        f" ON {quoted(table.name)} WHEN NOT (SELECT writes FROM _reunite_relay) BEGIN"
        " INSERT INTO _reunite_captured (tbl, at, had, has)"
        f" VALUES ({table.id}, {_NOW_MS}, {int(had)}, {int(has)});"
        f" INSERT INTO _reunite_captured_values (write, col, before, after) VALUES {values}; END"
    )
