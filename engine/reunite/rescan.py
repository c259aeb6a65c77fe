"""Rescan: noticing that a tracked table's own shape changed, and what that means for its rows.

Runs before any fold when SQLite's schema counter has moved, for the tables whose own text, columns
or triggers changed: a table rebuilt by a migration tool has lost its triggers, so every row is
compared with its document. A new column takes the cells that are kept for it before it is
compared; a declared type that changed is no edit of the cells it converted; a column renamed in
place keeps its id; a table that was dropped is no longer tracked, and its documents stay.

A column that is declared to merge from now on, or no more, does so as long as the relay does not
have it. After that the realm's type decides, and what was declared is told in `reunite_rejected`.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final

from reunite import changes, outbox
from reunite.adopt import match_ids
from reunite.bookkeeping import Row, Tracked, lines_of, save_rows, save_table
from reunite.capture import (
    capture_all,
    capture_vanished,
    clear,
    fetch_text,
    has_hidden_collisions,
    install,
    last_captured,
    remove,
    trigger_names,
    trigger_statements,
)
from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR, NEVER
from reunite.columns import Columns, columns_of
from reunite.document import EMPTY, KIND_MASK, Document, cell_key, decode, encode
from reunite.errors import TableError
from reunite.inbox import made_visible
from reunite.keys import key_values
from reunite.payload import ABSENT, Entry, Kind, RowRef, pack_image, unpack_image
from reunite.rebase import Step, merging_rows, steps
from reunite.rejected import record_entry
from reunite.schema import Column, Table, default_value, quoted, read_table, through_affinity
from reunite.state import State
from reunite.types import MERGING, MERGING_TAKES, fits, fitting_type, logical_type


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
    _end_merging(state, before, table)
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
        _tell_disagreements(state, after, [(declared[column.id], column) for column in retyped])
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
            replace(
                numbered, type=_type_now(state, before, found, old_by_name[column.name], column)
            )
            if column.name in old_by_name
            else numbered
            for numbered, column in zip(table.columns, found.columns, strict=True)
        ),
    )


def _type_now(state: State, before: Tracked, found: Table, old: Column, new: Column) -> str:
    """The logical type of a column that was here before: the one that it had, unless one of the
    two merges and the relay does not have it. A column begins to merge only where its kind can hold
    all that was ever written to it, or the relay would refuse what is pending."""
    if MERGING.isdisjoint((old.type, new.type)) or _is_in_realm(before, old):
        return old.type
    held = fetch_text(state.conn, f"SELECT {quoted(new.name)} FROM {quoted(found.name)}", ())
    values = [row[0] for row in held] + _pending_values(state, before, old)
    if new.type not in MERGING:
        return fitting_type(new.type, values)
    fitting = all(fits(new.type, value) for value in (default_value(new), *values))
    return new.type if fitting else old.type


def _is_in_realm(tracked: Tracked, column: Column) -> bool:
    return tracked.remote is not None and column.id in {each.id for each in tracked.remote.columns}


def _pending_values(state: State, tracked: Tracked, column: Column) -> list[Value]:
    """What a column showed after each pending edit of it."""
    key, columns = cell_key(column.id), columns_of(tracked.table.cells)
    refs = {
        entry.row
        for changeset in outbox.everything(state.conn)
        for entry in changeset.entries()
        if entry.row.table == tracked.id
    }
    return [
        columns.value_of(step.after, key)
        for (_, _, data), step in steps(state, refs).items()
        if any(cell & ~KIND_MASK == key for cell in decode(data).cells)
    ]


def _end_merging(state: State, before: Tracked, table: Table) -> None:
    """Let pending edits of columns that merge no more, or otherwise, say what value they made.
    Nothing would make them anew when something before them is refused, or when this file becomes
    another replica, in whose name they are not."""
    type_by_id = {column.id: column.type for column in table.cells}
    keys = {
        cell_key(column.id)
        for column in before.table.cells
        if column.type in MERGING and type_by_id.get(column.id, column.type) != column.type
    }
    refs = {ref for ref in merging_rows(state) if ref.table == before.id} if keys else set()
    made, columns = steps(state, refs), columns_of(before.table.cells)
    for changeset in outbox.pending(state.conn) if refs else ():
        entries = changeset.entries()
        fresh = [
            _plain(entry, made[changeset.id, entry.row, entry.document], columns, keys)
            # What is offered is others' work, too, and stays as it is.
            if entry.row in refs and entry.kind != Kind.OFFERED
            else entry
            for entry in entries
        ]
        if changeset.number is None and fresh != entries:
            outbox.encode_anew(state.conn, changeset.id, fresh)
    save_rows(state.conn, made_visible(state, lines_of(state.conn, refs)).items())


def _plain(entry: Entry, step: Step, columns: Columns, keys: Collection[int]) -> Entry:
    document = decode(entry.document)
    cells: dict[int, Register] = {}
    for key, cell in document.cells.items():
        column = key & ~KIND_MASK
        if column in keys:
            mark = max(cell[0], cells.get(column, cell)[0])
            cells[column] = (mark, columns.value_of(step.after, column))
        else:
            cells[key] = cell
    return entry._replace(document=encode(document._replace(cells=cells)))


_REALM_DECIDES: Final = (
    "column {name!r} is declared {declared} here, and the realm has it as {type}, which decides;"
    " add a column of another name for what you want"
)
_DOES_NOT_FIT: Final = (
    "column {name!r} is declared {declared}, which takes {takes} or NULL, and other values were"
    " written to it or are its default, so it stays {type}; add a column of another name for what"
    " you want"
)


def _tell_disagreements(
    state: State, tracked: Tracked, columns: Iterable[tuple[str, Column]]
) -> None:
    """Note in `reunite_rejected` which columns do not do as they are declared now; each comes with
    how it was declared before."""
    for declared_before, column in columns:
        was, declared = logical_type(declared_before), logical_type(column.declared)
        if declared in (was, column.type) or MERGING.isdisjoint((was, declared)):
            continue
        said = _REALM_DECIDES if _is_in_realm(tracked, column) else _DOES_NOT_FIT
        intent = Document(NEVER, NEVER, NEVER, {cell_key(column.id): (FLOOR, column.declared)})
        record_entry(
            state.conn,
            tracked,
            Entry(RowRef(tracked.id, None), Kind.PARTIAL, encode(intent), state.now_ms, 0),
            state.now_ms,
            "declared",
            said.format(
                name=column.name,
                declared=column.declared or "without a type",
                type=column.type,
                takes=MERGING_TAKES.get(declared),
            ),
            changeset=None,
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
        if kept:
            changes.note_column(state, tracked, column.name, [key for _, *key in kept])


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
