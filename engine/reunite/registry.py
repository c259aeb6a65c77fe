"""The registry: how the relay numbers tables and columns, and what this file makes of it.

Before a file meets a relay, its documents number columns in order of declaration. The registry's
numbers replace them once, in every document that the file keeps. Tables of the realm that the file
lacks are created from their description; where an untracked table of the name exists, it is left
alone, and the realm's rows are kept as documents until it is tracked. A table that the relay has
let go and taken in again is another one, of other rows: this file's is then left alone, too.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from reunite import capture, outbox
from reunite.adopt import match_ids
from reunite.apply import apply_rows
from reunite.bookkeeping import Row, Tracked, lines_of, save_rows, save_table
from reunite.cells.register import Register
from reunite.ddl import add_column_statement, create_statements
from reunite.document import EMPTY, KIND_MASK, Document, cell_key, decode, encode, merge
from reunite.payload import ABSENT, RowRef, pack_image, unpack_image
from reunite.rebase import merging_rows, steps
from reunite.rejected import record_entry
from reunite.schema import PROVISIONAL_ID, Table, ascii_lower, parents_first
from reunite.state import State

_LOST_TABLE: Final = (
    "the relay was restored from a backup that has no such table, and this file does not track it"
)
_ANOTHER_TABLE: Final = (
    "the relay has let this table go and taken it in again, so that it is another one; track it in"
    " this file to join both"
)


def take_registry(state: State, tables: Sequence[Table]) -> None:
    """Take over the relay's registry: number what is here by it, create what is not here."""
    by_name = {ascii_lower(t.table.name): t for t in state.tables.values()}
    by_registry = state.by_registry()
    # A copy: other transactions share the state's own until this one has committed.
    state.tables = dict(state.tables)
    changed = False
    joined: set[RowRef] = set()
    here: set[str] = set()
    unique: dict[str, list[set[str]]] = {}
    for table in parents_first(tables):
        known = by_registry.get(table.id) or by_name.get(ascii_lower(table.name))
        if known is not None and _is_another(known, table):
            capture.remove(state.conn, known.id)
            state.conn.execute("DELETE FROM _reunite_log WHERE tbl = ?", (known.id,))
            _drop(state, known, _ANOTHER_TABLE)
            known = None
        if known is None:
            here = here or _names(state.conn)
            unique = unique or _unique_keys(tables)
            _create(state, table, unique, here)
            changed = True
        elif known.remote != table:
            joined |= _renumber(state, known, table)
            _add_columns(state, known, table)
            changed = True
    if changed:
        state.tables_changed()
    apply_rows(state, lines_of(state.conn, joined))


def forget(state: State, tables: Sequence[Table]) -> None:
    """Take back the numbers that a restored relay's registry no longer gives, or gives to others:
    what has them here is described again. Cells of columns that this file does not have go with
    their numbers; the files that have the column bring them."""
    by_id = {table.id: table for table in tables}
    state.tables = dict(state.tables)
    for known in list(state.tables.values()):
        if known.remote is None:
            continue
        now = by_id.get(known.remote.id)
        if now is not None and ascii_lower(now.name) != ascii_lower(known.remote.name):
            now = None
        names = {column.id: column.name for column in now.columns} if now else {}
        stale = [c.id for c in known.remote.columns if names.get(c.id) != c.name]
        if now is not None and not stale:
            continue
        if not known.tracked and now is None:
            # No table shows them here, so this file cannot describe it; others may.
            _drop(state, known, _LOST_TABLE)
            continue
        moved: dict[int, int | None] = dict.fromkeys(map(cell_key, stale))
        ids = {column.name: column.id for column in known.table.columns}
        for column in known.table.columns:
            if column.id in stale:
                state.meta.provisional += 1
                ids[column.name] = state.meta.provisional
                moved[cell_key(column.id)] = cell_key(state.meta.provisional)
        table = known.table.renumbered(ids) if known.tracked else known.table
        # What is left of it, so that `take_registry` sees what is new.
        left = tuple(c for c in known.remote.columns if c.id not in stale)
        remote = replace(known.remote, columns=left) if now else None
        changed = replace(known, table=table, remote=remote)
        save_table(state.conn, changed)
        state.tables[known.id] = changed
        _rekey_outbox(state, known.id, moved)
        _rekey_history(state, known.id, moved)
        _rekey_rows(state, known.id, moved)
    state.save("provisional")
    state.tables_changed()


def _is_another(known: Tracked, table: Table) -> bool:
    """True when a table of the registry has the name of one that is not in it any more: numbers
    are given once, and names to one table at a time."""
    remote = known.remote
    return (
        remote is not None
        and remote.id != table.id
        and ascii_lower(remote.name) == ascii_lower(table.name)
    )


def _drop(state: State, known: Tracked, why: str) -> None:
    """Forget a table, and keep what was done to its rows and not sent in `reunite_rejected`."""
    made = steps(state, merging_rows(state))
    del state.tables[known.id]
    state.conn.execute("DELETE FROM _reunite_tables WHERE id = ?", (known.id,))
    state.conn.execute("DELETE FROM _reunite_rows WHERE tbl = ?", (known.id,))
    state.conn.execute("DELETE FROM _reunite_history WHERE tbl = ?", (known.id,))
    for changeset in outbox.everything(state.conn):
        entries = changeset.entries()
        kept = [entry for entry in entries if entry.row.table != known.id]
        for entry in entries:
            if entry.row.table == known.id:
                step = made.get((changeset.id, entry.row, entry.document))
                record_entry(
                    state.conn,
                    known,
                    entry,
                    state.now_ms,
                    "expired",
                    why,
                    changeset=changeset.id,
                    before=step.before if step else EMPTY,
                )
        if not kept:
            outbox.remove(state.conn, changeset.id)
        elif len(kept) < len(entries):
            outbox.replace_entries(state, changeset, kept)


def undescribed(state: State) -> list[Table]:
    """The tracked tables that the registry lacks, or lacks columns of, parents first."""
    return parents_first(
        [
            tracked.table
            for tracked in state.tables.values()
            if tracked.tracked
            and (
                tracked.remote is None
                or any(column.id >= PROVISIONAL_ID for column in tracked.table.columns)
            )
        ]
    )


def left_alone(state: State) -> list[str]:
    """The realm's tables that this file has under the same name without tracking them."""
    return [t.table.name for t in state.tables.values() if not t.tracked]


def _names(conn: sqlite3.Connection, table: str | None = None) -> set[str]:
    """The names that the schema has taken, or those of what belongs to one table."""
    where, parameters = ("", ()) if table is None else (" WHERE tbl_name = ?", (table,))
    found = conn.execute(f"SELECT name FROM sqlite_master{where}", parameters).fetchall()
    return {ascii_lower(name) for (name,) in found}


def _create(
    state: State, table: Table, unique: Mapping[str, Sequence[set[str]]], taken: set[str]
) -> None:
    """Create a table of the realm. `unique` is as of `_unique_keys`; `taken` are the names that
    the schema has, to which the new ones are added."""
    number = max(state.tables, default=0) + 1
    exists = ascii_lower(table.name) in taken
    if exists:
        tracked = Tracked(number, table, False, table)
    else:
        tracked = Tracked(number, _with_parents_of(unique, table), True, table)
        state.conn.execute("SAVEPOINT reunite_create")
        try:
            for statement in create_statements(tracked.table, taken):
                state.conn.execute(statement)
        except sqlite3.OperationalError:
            # This SQLite cannot have the table (a newer one could): its rows are kept as documents,
            # and it is listed among those left alone.
            state.conn.execute("ROLLBACK TO reunite_create")
            tracked = Tracked(number, table, False, table)
        finally:
            state.conn.execute("RELEASE reunite_create")
    if not exists and tracked.tracked:
        (sql,) = state.conn.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
        ).fetchone()
        tracked = replace(tracked, sql=sql)
        state.meta.made += f"{number},"
        state.save("made")
        capture.install(state.conn, tracked)
        taken |= _names(state.conn, table.name)
    save_table(state.conn, tracked)
    state.tables[number] = tracked


def _add_columns(state: State, known: Tracked, remote: Table) -> None:
    """Give a table that was made from the description of one that the relay's database has of its
    own, the columns that it has got there since. What an app has made, here or elsewhere, is the
    app's to change in each file. `rescan` takes the columns in, with the cells kept for them."""
    made = remote.adopted and str(known.id) in state.meta.made.split(",")
    if not made or not known.tracked or known.remote is None:
        return
    for column in remote.columns:
        if known.remote.column(column.name) is None and known.table.column(column.name) is None:
            state.conn.execute("SAVEPOINT reunite_add")
            try:
                state.conn.execute(add_column_statement(known.table, column))
            except sqlite3.OperationalError:
                # The app was quicker, or this SQLite cannot have it: its cells are kept.
                state.conn.execute("ROLLBACK TO reunite_add")
            finally:
                state.conn.execute("RELEASE reunite_add")


def _unique_keys(realm: Sequence[Table]) -> dict[str, list[set[str]]]:
    """The sets of columns that are unique, by the table's name."""
    return {
        ascii_lower(parent.name): [
            {ascii_lower(column.name) for column in parent.key},
            *({ascii_lower(c) for c in index.columns} for index in parent.indexes if index.unique),
        ]
        for parent in realm
    }


def _with_parents_of(unique: Mapping[str, Sequence[set[str]]], table: Table) -> Table:
    """The table without foreign keys that SQLite could not follow here: with them it would refuse
    every write. The parent may not be of the realm, or be unique only by an index that does not
    travel; the relay and the file that it comes from hold what they can."""
    kept = tuple(
        foreign_key
        for foreign_key in table.foreign_keys
        if {ascii_lower(name) for name in foreign_key.parent_columns}
        in unique.get(ascii_lower(foreign_key.parent), [])
    )
    return replace(table, foreign_keys=kept)


def _renumber(state: State, known: Tracked, remote: Table) -> set[RowRef]:
    """Number a table by the registry. Returns the rows whose documents had cells under a number
    that a column of ours has only now: the table does not show them yet."""
    numbered = {column.id for column in known.remote.columns} if known.remote else set()
    # A column that was renamed here keeps its number, and so does a provisional one that the
    # registry still lacks.
    kept = {
        column.name: column.id
        for column in known.table.columns
        if column.id in numbered
        or (column.id >= PROVISIONAL_ID and remote.column(column.name) is None)
    }
    table = match_ids(state, known.table, remote, kept) if known.tracked else remote
    ids = {
        column.id: now.id
        for column in known.table.columns
        if (now := table.column(column.name)) is not None
    }
    save_table(state.conn, replace(known, table=table, remote=remote))
    moved: dict[int, int | None] = {
        cell_key(old): cell_key(new) for old, new in ids.items() if old != new
    }
    if not moved:
        return set()
    _rekey_outbox(state, known.id, moved)
    _rekey_history(state, known.id, moved)
    return _rekey_rows(state, known.id, moved)


def _rekeyed(document: Document, moved: Mapping[int, int | None]) -> Document:
    """The document with cells under other keys, and without those that have none any more."""
    stays: dict[int, Register] = {}
    goes: dict[int, Register] = {}
    for key, cell in document.cells.items():
        column, kind = key & ~KIND_MASK, key & KIND_MASK
        new = moved.get(column, column)
        if new is not None:
            (stays if new == column else goes)[new | kind] = cell
    # Cells of one column that came under both numbers are of one column.
    return merge(document._replace(cells=stays), document._replace(cells=goes))


def _rekey_rows(state: State, table: int, moved: Mapping[int, int | None]) -> set[RowRef]:
    lines = []
    joined = set()
    kept_before = set(moved.values()) - moved.keys()
    for key, base, visible, image, *rest in state.conn.execute(
        "SELECT key, base, visible, image, changeset, alive, mark FROM _reunite_rows WHERE tbl = ?",
        (table,),
    ).fetchall():
        seen = unpack_image(image)
        if seen is not None and seen != ABSENT:
            seen = {
                new: value
                for cell, value in seen.items()
                if (new := moved.get(cell, cell)) is not None
            }
        row = Row(
            # What the relay stated is numbered by the registry already.
            base,
            encode(_rekeyed(decode(visible), moved)) if visible else None,
            pack_image(seen),
            *rest,
        )
        lines.append((RowRef(table, key), row))
        for data in (base, visible):
            columns = {cell & ~KIND_MASK for cell in decode(data).cells} if data else set()
            if not kept_before.isdisjoint(columns):
                joined.add(RowRef(table, key))
    save_rows(state.conn, lines)
    return joined


def _rekey_outbox(state: State, table: int, moved: Mapping[int, int | None]) -> None:
    for changeset in outbox.pending(state.conn):
        entries = changeset.entries()
        fresh = [
            entry._replace(document=encode(_rekeyed(decode(entry.document), moved)))
            if entry.row.table == table
            else entry
            for entry in entries
        ]
        if fresh != entries:
            outbox.encode_anew(state.conn, changeset.id, fresh)


def _rekey_history(state: State, table: int, moved: Mapping[int, int | None]) -> None:
    lines = state.conn.execute(
        "SELECT key, place, document FROM _reunite_history WHERE tbl = ?", (table,)
    ).fetchall()
    state.conn.executemany(
        "UPDATE _reunite_history SET document = ? WHERE tbl = ? AND key = ? AND place = ?",
        [
            (encode(_rekeyed(decode(document), moved)), table, key, place)
            for key, place, document in lines
        ],
    )
