"""Rescan: noticing that a tracked table's own shape changed, and what that means for its rows.

Runs before any fold when SQLite's schema counter has moved, for the tables whose own text, columns
or triggers changed: a table rebuilt by a migration tool has lost its triggers, so every row is
compared with its document. A new column takes the cells that are kept for it before it is
compared; a declared type that changed is no edit of the cells it converted; a column renamed in
place keeps its id; a table that was dropped is no longer tracked, and its documents stay.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace

from reunite.adopt import match_ids
from reunite.bookkeeping import Row, Tracked, save_rows, save_table
from reunite.capture import (
    capture_all,
    capture_vanished,
    clear,
    has_hidden_collisions,
    install,
    last_captured,
    remove,
    trigger_names,
    trigger_statements,
)
from reunite.cells.register import Value, same
from reunite.columns import columns_of
from reunite.document import EMPTY, KIND_MASK, cell_key, decode
from reunite.errors import TableError
from reunite.keys import key_values
from reunite.payload import ABSENT, RowRef, pack_image, unpack_image
from reunite.schema import Column, Table, quoted, read_table, through_affinity
from reunite.state import State


def notice_schema_changes(state: State) -> None:
    """Bring tracked tables up to date with the file's schema, when it has changed at all."""
    version = schema_version(state.conn)
    if version == state.meta.schema_version:
        return
    for tracked in list(state.tables.values()):
        if tracked.tracked:
            _look_at(state, tracked)
    state.meta.schema_version = schema_version(state.conn)
    state.save("schema_version")


def schema_version(conn: sqlite3.Connection) -> int:
    """SQLite's counter of schema changes."""
    version: int = conn.execute("PRAGMA schema_version").fetchone()[0]
    return version


def is_current(conn: sqlite3.Connection, tracked: Tracked) -> bool:
    """True when the table's text and its capture triggers are as they were left."""
    found = conn.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (tracked.table.name,)
    ).fetchone()
    if found is None or found[0] != tracked.sql:
        return False
    triggers = {
        sql
        for (sql,) in conn.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB ?",
            (f"_reunite_{tracked.id}_*",),
        )
    }
    return triggers == set(trigger_statements(conn, tracked))


def _look_at(state: State, tracked: Tracked) -> None:
    name = tracked.table.name
    renamed = set(trigger_names(state.conn, tracked.id).values()) - {name}
    exists = state.conn.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)
    ).fetchone()
    if exists and is_current(state.conn, tracked):
        if has_hidden_collisions(state.conn, name) != state.shapes[tracked.id].hidden_collisions:
            state.tables_changed()
            # The index may have deleted rows before it was noticed.
            capture_vanished(state.conn, tracked, state.now_ms)
        return
    if not exists:
        if not renamed:
            _let_go(state, tracked)
            return
        name = renamed.pop()
    try:
        table = _with_ids(state, tracked, read_table(state.conn, name))
    except TableError:
        # It lost its key, has another, or became a view: it can no longer be synced, and nothing
        # is deleted.
        _let_go(state, tracked)
        return
    _rescan(state, tracked, table)


def _let_go(state: State, tracked: Tracked) -> None:
    remove(state.conn, tracked.id)
    save_table(state.conn, replace(tracked, tracked=False, sql=None))
    state.tables_changed()


def _rescan(state: State, before: Tracked, table: Table) -> None:
    sql = state.conn.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
    ).fetchone()[0]
    after = replace(before, table=table, sql=sql)
    save_table(state.conn, after)
    install(state.conn, after)
    state.tables_changed()
    old_ids = {column.id for column in before.table.columns}
    fresh = [column for column in table.cells if column.id not in old_ids]
    if fresh:
        _fill_kept_cells(state, after, fresh)
    declared = {column.id: column.declared for column in before.table.columns}
    retyped = [c for c in table.cells if declared.get(c.id, c.declared) != c.declared]
    if retyped:
        _accept_conversions(state, after, retyped)
    capture_all(state.conn, after, state.now_ms)
    capture_vanished(state.conn, after, state.now_ms)


def _with_ids(state: State, before: Tracked, found: Table) -> Table:
    """The table as found, its columns under the ids that they had."""
    old_by_name = {}
    for position, column in enumerate(found.columns):
        old = before.table.column(column.name) or _renamed(state, before, found, position)
        if old is not None:
            old_by_name[column.name] = old
    kept = {name: old.id for name, old in old_by_name.items()}
    table = match_ids(state, found, before.remote or before.table, kept)
    return replace(
        table,
        columns=tuple(
            replace(column, type=old_by_name[column.name].type)
            if column.name in old_by_name
            else column
            for column in table.columns
        ),
    )


def _renamed(state: State, before: Tracked, found: Table, position: int) -> Column | None:
    """What the column at this place was before it was renamed; None when it is a new one."""
    if len(before.table.columns) != len(found.columns):
        return None
    old, column = before.table.columns[position], found.columns[position]
    if found.column(old.name) or (old.declared, old.key) != (column.declared, column.key):
        return None
    return old if _all_equal(state, before, found, old, column) else None


def _all_equal(state: State, before: Tracked, found: Table, old: Column, new: Column) -> bool:
    """True when every row has in the new column what its document has in the old one."""
    if old.key:
        return True
    key = cell_key(old.id)
    for _, row, value, kept in _kept_of(state, before, before.table, found, new, key):
        image = unpack_image(row.image) or {}
        if not same(image.get(key, kept), value):
            return False
    return True


def _column_of(
    state: State, tracked: Tracked, table: Table, column: Column
) -> list[tuple[RowRef, Row, Value]]:
    """One column's value of every known row of a table, with the row's line."""
    key = [quoted(part.name) for part in table.key]
    # The sign takes the affinity off, without which SQLite would not search by our key.
    stored = f"+{key[0]}" if len(key) == 1 else " || ',' || ".join(f"quote({k})" for k in key)
    return [
        (RowRef(tracked.id, found[0]), Row(*found[1:7]), found[7])
        for found in state.conn.execute(
            "SELECT r.key, r.base, r.visible, r.image, r.changeset, r.alive, r.mark,"
            f" t.{quoted(column.name)} FROM {quoted(table.name)} AS t JOIN _reunite_rows AS r"
            f" ON r.tbl = {tracked.id} AND r.key = {stored}"
        ).fetchall()
    ]


def _kept_of(
    state: State, tracked: Tracked, known: Table, table: Table, column: Column, key: int
) -> Iterator[tuple[RowRef, Row, Value, Value]]:
    """The rows whose documents have a cell of a column, by its register's key among `known`'s, each
    with its line, what `table` holds in `column`, and what the document says."""
    columns = columns_of(known.cells)
    for ref, row, value in _column_of(state, tracked, table, column):
        document = decode(row.document) if row.document else EMPTY
        if any(cell & ~KIND_MASK == key for cell in document.cells):
            yield ref, row, value, columns.value_of(document, key)


def _fill_kept_cells(state: State, tracked: Tracked, columns: list[Column]) -> None:
    where = " AND ".join(f"{quoted(column.name)} = ?" for column in tracked.table.key)
    count = len(tracked.table.key)
    for column in columns:
        key = cell_key(column.id)
        table = tracked.table
        kept = [
            (value, *key_values(ref.key, count))
            for ref, _, _, value in _kept_of(state, tracked, table, table, column, key)
        ]
        last = last_captured(state.conn)
        state.conn.executemany(
            f"UPDATE {quoted(tracked.table.name)} SET {quoted(column.name)} = ? WHERE {where}", kept
        )
        clear(state.conn, last, last_captured(state.conn))


def _accept_conversions(state: State, tracked: Tracked, columns: list[Column]) -> None:
    """Cells that the new declared type turned into what the table now holds become images."""
    for column in columns:
        key = cell_key(column.id)
        lines = []
        table = tracked.table
        rows = list(_kept_of(state, tracked, table, table, column, key))
        converted = through_affinity(column.declared, [wanted for *_, wanted in rows])
        for (ref, row, value, wanted), stored in zip(rows, converted, strict=True):
            image = unpack_image(row.image) or {}
            if same(stored, value) and not same(wanted, value) and image != ABSENT:
                image[key] = value
                lines.append((ref, row._replace(image=pack_image(image))))
            elif key in image and same(wanted, value):
                del image[key]
                lines.append((ref, row._replace(image=pack_image(image or None))))
        save_rows(state.conn, lines)
