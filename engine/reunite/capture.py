"""Capture: noticing ordinary SQL writes, whoever makes them. Owns the triggers and the log.

Triggers append a row's key and the time to `_reunite_log`, which has no constraint that could fail
the app's statement. An update that changes the key logs both keys. `INSERT OR REPLACE` on a further
UNIQUE index deletes its victim without firing a trigger, so tables that have one get BEFORE
triggers that log the keys a write is about to collide with. Two cases cannot be seen by triggers:
such an index over an expression, where every write makes the fold look for vanished rows, and a
table rebuilt without its triggers, which `rescan` notices by its schema.
"""

import sqlite3
from collections.abc import Iterator
from typing import Any, Final

from reunite.bookkeeping import Row, Tracked
from reunite.cells.register import Value
from reunite.keys import key_values
from reunite.schema import quoted

# Milliseconds since 1970; SQLite before 3.42 knows no `unixepoch('subsec')`.
_NOW: Final = "CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER)"
# A fold works through the log in windows, so that its memory does not follow the log's length.
WINDOW: Final = 20_000


def install(conn: sqlite3.Connection, tracked: Tracked) -> None:
    """Create the table's capture triggers, replacing what is left of earlier ones."""
    remove(conn, tracked.id)
    _widen_log(conn, len(tracked.table.key))
    for statement in trigger_statements(conn, tracked):
        conn.execute(statement)


def remove(conn: sqlite3.Connection, table_id: int) -> None:
    """Drop the table's capture triggers."""
    for name in trigger_names(conn, table_id):
        conn.execute(f"DROP TRIGGER {quoted(name)}")


def trigger_names(conn: sqlite3.Connection, table_id: int) -> dict[str, str]:
    """The table's capture triggers that exist: {name: the table they are on}."""
    return dict(
        conn.execute(
            "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name GLOB ?",
            (f"_reunite_{table_id}_*",),
        ).fetchall()
    )


def trigger_statements(conn: sqlite3.Connection, tracked: Tracked) -> list[str]:
    """The DDL of a table's capture triggers."""
    table = tracked.table
    on = quoted(table.name)
    key = [quoted(column.name) for column in table.key]
    into = ", ".join(f"k{index}" for index in range(len(key)))

    def log(source: str) -> str:
        keys = ", ".join(f"{source}.{name}" for name in key)
        return f"INSERT INTO _reunite_log (tbl, at, {into}) VALUES ({tracked.id}, {_NOW}, {keys});"

    moved = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in key)
    prefix = f"_reunite_{tracked.id}"
    statements = [
        f"CREATE TRIGGER {prefix}_insert AFTER INSERT ON {on} BEGIN {log('NEW')} END",
        f"CREATE TRIGGER {prefix}_update AFTER UPDATE ON {on} BEGIN {log('NEW')} END",
        f"CREATE TRIGGER {prefix}_move AFTER UPDATE ON {on} WHEN {moved} BEGIN {log('OLD')} END",
        f"CREATE TRIGGER {prefix}_delete AFTER DELETE ON {on} BEGIN {log('OLD')} END",
    ]
    for number, (over, partial) in enumerate(_unique_indexes(conn, table.name)):
        matches = " AND ".join(
            f"{quoted(name)} = NEW.{quoted(name)} COLLATE {quoted(collation)}"
            for name, collation in over
        )
        keys = ", ".join(key)
        collide = (
            f"INSERT INTO _reunite_log (tbl, at, {into})"
            f" SELECT {tracked.id}, {_NOW}, {keys} FROM {on} WHERE {matches};"
        )
        changed = " OR ".join(f"OLD.{quoted(name)} IS NOT NEW.{quoted(name)}" for name, _ in over)
        # A row can also enter a partial index by another column.
        when = "" if partial else f" WHEN {changed}"
        statements += [
            f"CREATE TRIGGER {prefix}_collide{number} BEFORE INSERT ON {on} BEGIN {collide} END",
            f"CREATE TRIGGER {prefix}_recollide{number} BEFORE UPDATE ON {on}{when}"
            f" BEGIN {collide} END",
        ]
    return statements


def unique_indexes(conn: sqlite3.Connection, table: str) -> list[list[tuple[str, str]]]:
    """The further UNIQUE indexes over plain columns: lists of (column, collation)."""
    return [over for over, _ in _unique_indexes(conn, table)]


def has_hidden_collisions(conn: sqlite3.Connection, table: str) -> bool:
    """True when a UNIQUE index over an expression can delete rows that no trigger sees."""
    return any(
        name is None
        for (index,) in conn.execute(
            'SELECT name FROM pragma_index_list(?) WHERE "unique"', (table,)
        ).fetchall()
        for name, _ in _indexed(conn, index)
    )


def capture_all(conn: sqlite3.Connection, tracked: Tracked, now_ms: int) -> None:
    """Capture every row of a table, as if each had just been written, but for those that are
    captured already: a change of their table does not make an edit later than it was."""
    keys = ", ".join(quoted(column.name) for column in tracked.table.key)
    into = ", ".join(f"k{index}" for index in range(len(tracked.table.key)))
    # A key with a NULL in it is neither in a list nor not.
    conn.execute(
        f"INSERT INTO _reunite_log (tbl, at, {into})"
        f" SELECT ?, ?, {keys} FROM {quoted(tracked.table.name)}"
        f" WHERE ({keys}) IN (SELECT {into} FROM _reunite_log WHERE tbl = ?) IS NOT 1",
        (tracked.id, now_ms, tracked.id),
    )


def capture_vanished(conn: sqlite3.Connection, tracked: Tracked, now_ms: int) -> None:
    """Capture the rows that our lines call alive and the table does not have, but for those that
    are captured already: nearly all of them were deleted then, and not replaced later."""
    count = len(tracked.table.key)
    into = ", ".join(f"k{index}" for index in range(count))
    marks = ", ".join("?" * count)
    known = set(conn.execute(f"SELECT {into} FROM _reunite_log WHERE tbl = ?", (tracked.id,)))
    conn.executemany(
        f"INSERT INTO _reunite_log (tbl, at, {into}) VALUES (?, ?, {marks})",
        [
            (tracked.id, now_ms, *values)
            for values in vanished(conn, tracked)
            if values not in known
        ],
    )


def vanished(conn: sqlite3.Connection, tracked: Tracked) -> list[tuple[Value, ...]]:
    """The keys of rows that our lines call alive and the table does not have."""
    key = [quoted(column.name) for column in tracked.table.key]
    stored = key[0] if len(key) == 1 else " || ',' || ".join(f"quote({name})" for name in key)
    return [
        key_values(found, len(key))
        for (found,) in conn.execute(
            "SELECT key FROM _reunite_rows WHERE tbl = ? AND alive EXCEPT"
            f" SELECT {stored} FROM {quoted(tracked.table.name)}",
            (tracked.id,),
        )
    ]


def last_captured(conn: sqlite3.Connection) -> int:
    """The log's last id, 0 when it is empty."""
    found: int | None = conn.execute("SELECT max(id) FROM _reunite_log").fetchone()[0]
    return found or 0


def captured_tables(conn: sqlite3.Connection, after: int, until: int) -> list[int]:
    """The ids of the tables that have captures in this window of the log."""
    return [
        row[0]
        for row in conn.execute(
            "SELECT DISTINCT tbl FROM _reunite_log WHERE id > ? AND id <= ?", (after, until)
        )
    ]


class Captured:
    """Reads captured rows of one table: what the log, the table and our line say of each key."""

    def __init__(self, tracked: Tracked) -> None:
        key = tracked.table.key
        self.id = tracked.id
        self.name = tracked.table.name
        self.key_count = len(key)
        self.cells = tracked.table.cells
        parts = [f"k{index}" for index in range(len(key))]
        stored = self.stored = (
            "l.k0" if len(key) == 1 else " || ',' || ".join(f"quote(l.{part})" for part in parts)
        )
        join = " AND ".join(
            f"t.{quoted(column.name)} = l.{part}" for column, part in zip(key, parts, strict=True)
        )
        values = "".join(f", t.{quoted(column.name)}" for column in self.cells)
        group = ", ".join(parts)
        lines = ", ".join(f"l.{part}" for part in parts)
        null_safe = " AND ".join(f"t.{quoted(column.name)} IS ?" for column in key)
        cells = ", ".join(f"t.{quoted(column.name)}" for column in self.cells) or "1"
        self.null_sql = f"SELECT {cells} FROM {quoted(self.name)} AS t WHERE {null_safe}"
        self.sql = (
            f"SELECT {stored}, l.at, r.base, r.visible, r.image, r.changeset, r.alive, r.mark,"
            f" r.key IS NOT NULL, {lines}, t.{quoted(key[0].name)} IS NOT NULL{values}"
            f" FROM (SELECT {group}, max(at) AS at FROM _reunite_log"
            f" WHERE tbl = {tracked.id} AND id > ? AND id <= ? GROUP BY {group}) AS l"
            f" LEFT JOIN {quoted(self.name)} AS t ON {join}"
            f" LEFT JOIN _reunite_rows AS r ON r.tbl = {tracked.id} AND r.key = {stored}"
        )

    def living(self, conn: sqlite3.Connection) -> list[Value]:
        """The stored keys of all captured rows that our lines call alive."""
        return [
            key
            for (key,) in conn.execute(
                # CROSS: SQLite would go through our lines and look for each in the whole log.
                f"SELECT DISTINCT r.key FROM _reunite_log AS l CROSS JOIN _reunite_rows AS r"
                f" ON r.tbl = {self.id} AND r.key = {self.stored}"
                f" WHERE l.tbl = {self.id} AND r.alive"
            )
        ]

    def read(
        self, conn: sqlite3.Connection, after: int, until: int
    ) -> Iterator[tuple[Value, int, Row | None, tuple[Value, ...], tuple[Value, ...] | None]]:
        """Yield (stored key, time, our line, key values, cell values or None when absent)."""
        line_end = 9
        values_from = line_end + self.key_count + 1
        for found in fetch_text(conn, self.sql, (after, until)):
            row = Row(*found[2:8]) if found[8] else None
            present = found[values_from - 1]
            yield (
                found[0],
                found[1],
                row,
                found[line_end : line_end + self.key_count],
                found[values_from:] if present else None,
            )

    def read_null(
        self, conn: sqlite3.Connection, key: tuple[Value, ...]
    ) -> list[tuple[Value, ...]]:
        """The cell values of the rows that have this key with a NULL in it, which `=` never
        finds; SQLite takes several of them."""
        if None not in key:
            return []
        found = fetch_text(conn, self.null_sql, key)
        return found if self.cells else [() for _ in found]


def fetch_text(
    conn: sqlite3.Connection, sql: str, parameters: tuple[Value, ...]
) -> list[tuple[Any, ...]]:
    """All rows of a query. Text that is not UTF-8, which SQLite allows, reads with surrogates in
    place of the bad bytes; whoever encodes it will notice."""
    try:
        return conn.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
    before = conn.text_factory
    conn.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        return conn.execute(sql, parameters).fetchall()
    finally:
        conn.text_factory = before


def clear(conn: sqlite3.Connection, after: int, until: int) -> None:
    """Remove a window of the log."""
    conn.execute("DELETE FROM _reunite_log WHERE id > ? AND id <= ?", (after, until))


def _unique_indexes(
    conn: sqlite3.Connection, table: str
) -> list[tuple[list[tuple[str, str]], bool]]:
    """The same, each with whether it is partial."""
    found = []
    for index, partial in conn.execute(
        "SELECT name, partial FROM pragma_index_list(?) WHERE \"unique\" AND origin <> 'pk'",
        (table,),
    ).fetchall():
        over = _indexed(conn, index)
        if all(name is not None for name, _ in over):
            found.append(([(str(name), collation) for name, collation in over], bool(partial)))
    return found


def _indexed(conn: sqlite3.Connection, index: str) -> list[tuple[str | None, str]]:
    return conn.execute(
        "SELECT name, coll FROM pragma_index_xinfo(?) WHERE key = 1 ORDER BY seqno", (index,)
    ).fetchall()


def _widen_log(conn: sqlite3.Connection, keys: int) -> None:
    have = len(conn.execute("SELECT name FROM pragma_table_info('_reunite_log')").fetchall()) - 3
    for index in range(have, keys):
        conn.execute(f"ALTER TABLE _reunite_log ADD COLUMN k{index}")
