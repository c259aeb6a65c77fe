"""Adopting: taking an existing table and its rows into sync without changing them.

Rows that came with a table carry the floor stamp, below any edit. When the file meets a realm that
has rows under the same keys, they are compared before anything is sent: a row equal to the
realm's, or one whose differing columns the realm has edited since, is simply the realm's row; if
any other differs, the two files are not copies of one, and sync stops until the user chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from reunite import changes, outbox
from reunite.apply import apply_rows
from reunite.bookkeeping import Row, Tracked, lines_of, save_rows, save_table
from reunite.capture import capture_all, fetch_text, install, vanished
from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR, NEVER, edit_time, stamp, time_of
from reunite.columns import Columns
from reunite.document import KIND_MASK, Document, decode, encode, merge
from reunite.errors import AdoptionConflict, TableError
from reunite.fold import fold
from reunite.inbox import made_visible
from reunite.keys import stored_key
from reunite.payload import Entry, Kind, RowRef
from reunite.rebase import merging_rows, rebase, steps
from reunite.rejected import record_entry
from reunite.schema import (
    OWN_PREFIX,
    Column,
    Table,
    ascii_lower,
    default_value,
    parents_first,
    quoted,
    read_table,
)
from reunite.state import State
from reunite.types import MERGING, MERGING_TAKES, fits, fitting_type, key_type

Choice: TypeAlias = Literal["theirs", "ours"]

# Of a value that an error shows as an example: enough to find it by.
_SHOWN_CHARS_MAX: Final = 60


def track(state: State, names: Sequence[str]) -> list[str]:
    """Adopt tables with their rows, parents first. Returns those that were not tracked already.
    Raises TableError, and then the caller's transaction must be rolled back."""
    for name in names:
        if name.startswith(OWN_PREFIX):
            raise TableError(name, "is internal bookkeeping and is never synced")
    found = {ascii_lower(t.name): t for t in (read_table(state.conn, name) for name in names)}
    known_by_name = {ascii_lower(t.table.name): t for t in state.tables.values()}
    number = max(state.tables, default=0)
    adopted: list[Tracked] = []
    for table in parents_first(list(found.values())):
        known = known_by_name.get(ascii_lower(table.name))
        if known is not None and known.tracked:
            continue
        table = _with_fitting_types(state, table)
        sql = state.conn.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
        ).fetchone()[0]
        if known is None:
            number += 1
            tracked = Tracked(number, table, True, None, sql)
        elif known.remote is None:
            tracked = Tracked(known.id, table, True, None, sql)
        else:
            matched = match_ids(state, table, known.remote)
            tracked = replace(known, table=matched, tracked=True, sql=sql)
        save_table(state.conn, tracked)
        install(state.conn, tracked)
        adopted.append(tracked)
    if adopted:
        state.tables_changed()
    for tracked in adopted:
        _take_rows(state, tracked)
    return [tracked.table.name for tracked in adopted]


def _take_rows(state: State, tracked: Tracked) -> None:
    capture_all(state.conn, tracked, state.now_ms)
    changeset = outbox.next_id(state.conn)
    entries = fold(
        state.conn,
        state.shapes,
        state.meta,
        changeset,
        session=state.session,
        now_ms=state.now_ms,
        adopting=True,
    ).entries
    state.written.add(tracked.id)
    if state.meta.feed:
        changes.note_entries(state, entries, set())
    outbox.add(state, changeset, entries, loose=True, adopting=True)
    _show_missing(state, tracked)


def _show_missing(state: State, tracked: Tracked) -> None:
    """Write the realm's rows that the table does not have."""
    missing = {RowRef(tracked.id, stored_key(key)) for key in vanished(state.conn, tracked)}
    apply_rows(state, lines_of(state.conn, missing))


def match_ids(
    state: State, table: Table, remote: Table, kept: Mapping[str, int] | None = None
) -> Table:
    """A local table with the registry's column ids, and provisional ones for what it lacks. How a
    column merges, the registry decides: files that declare it differently must agree.

    `kept` are the ids that columns have already, by the name that they have here: a column that
    was renamed here has another name there. Raises TableError for another primary key.
    """
    ids = dict(kept or {})
    taken = set(ids.values())
    for column in table.columns:
        theirs = remote.column(column.name)
        if column.name in ids:
            continue
        if theirs is not None and theirs.id not in taken:
            ids[column.name] = theirs.id
        else:
            state.meta.provisional += 1
            ids[column.name] = state.meta.provisional
    state.save("provisional")
    if [ids[column.name] for column in table.key] != [column.id for column in remote.key]:
        raise TableError(
            table.name,
            f"its primary key here is ({', '.join(column.name for column in table.key)}), and the"
            " relay's is"
            f" ({', '.join(column.name for column in remote.key)}); they must be the same",
        )
    theirs_by_id = {column.id: column for column in remote.columns}
    matched = table.renumbered(ids)
    return replace(
        matched,
        columns=tuple(
            replace(column, type=_merging_as(column, theirs_by_id.get(column.id)))
            for column in matched.columns
        ),
    )


def reconcile(state: State, choice: Choice | None) -> None:
    """Compare adopted rows that are not sent yet with what the realm has under their keys. What is
    offered again (see `refill`) and is there already goes without a word.

    Raises AdoptionConflict when rows differ and `choice` is None; the caller's transaction must
    then be rolled back.
    """
    # What was done since the table was tracked builds on its rows as they were here.
    merging = merging_rows(state)
    made = steps(state, merging)
    counts: dict[str, int] = {}
    stale: dict[RowRef, Row] = {}
    quiet: list[tuple[RowRef, Row]] = []
    # Tables of which a row is equal are of one origin; elsewhere a row of which nothing is equal
    # may be another's, though all of it was edited since.
    related: set[int] = set()
    doubtful: list[tuple[int, Entry]] = []
    for changeset in outbox.pending(state.conn):
        if not changeset.adopting:
            continue
        entries = changeset.entries()
        rows = lines_of(state.conn, {entry.row for entry in entries})
        kept: list[Entry] = []
        for entry in entries:
            row = rows[entry.row]
            if row.base is None:
                kept.append(entry)
                continue
            if entry.kind == Kind.OFFERED:
                if not _holds(row.base, entry.document):
                    kept.append(entry)
                elif row.changeset == changeset.id and row.visible == row.base:
                    # The table shows it already, and the app's triggers need not hear of it.
                    quiet.append((entry.row, row._replace(visible=None, changeset=None)))
                else:
                    stale[entry.row] = row
                continue
            base, ours = decode(row.base), decode(entry.document)
            stale[entry.row] = row
            columns = state.shapes[entry.row.table].columns
            if _same_origin(columns, base, ours):
                if _any_equal(columns, base, ours):
                    related.add(entry.row.table)
                else:
                    doubtful.append((changeset.id, entry))
                continue
            tracked = state.tables[entry.row.table]
            if choice is None:
                counts[tracked.table.name] = counts.get(tracked.table.name, 0) + 1
            elif choice == "theirs":
                record_entry(
                    state.conn,
                    tracked,
                    entry,
                    state.now_ms,
                    "adoption",
                    "the relay had another row under this key and was chosen",
                    changeset=changeset.id,
                )
            else:
                kept.append(_as_edit(state, entry, base, ours))
        save_rows(state.conn, quiet)
        quiet.clear()
        if not counts:
            # What is left has been compared: it may be sent.
            if kept != entries:
                outbox.replace_entries(state, changeset, kept)
            keeps = {entry.row for entry in kept}
            for ref in rows:
                if ref in stale and ref not in keeps and stale[ref].changeset == changeset.id:
                    stale[ref] = stale[ref]._replace(changeset=None)
            if not kept:
                outbox.remove(state.conn, changeset.id)
    if counts:
        raise AdoptionConflict(counts)
    for number, entry in doubtful:
        if entry.row.table not in related:
            record_entry(
                state.conn,
                state.tables[entry.row.table],
                entry,
                state.now_ms,
                "adoption",
                "the relay's row under this key was edited in every column, so it may have been"
                " another row; the relay's is kept, and these were the values here",
                changeset=number,
            )
    state.conn.execute("UPDATE _reunite_changesets SET adopting = 0")
    if made:
        state.renew_session()
        rebase(state, merging, made)
    if choice == "ours":
        # What was done since the table was tracked comes after its rows, which are edits of now.
        stale |= lines_of(state.conn, outbox.restamp(state) - stale.keys())
    rebuild(state, stale)


def rebuild(state: State, rows: Mapping[RowRef, Row]) -> None:
    """Make these rows visible anew, base joined with pending, and write their tables."""
    apply_rows(state, made_visible(state, rows))


def _holds(base: bytes, offered: bytes) -> bool:
    """True when the realm has all that is offered to it."""
    if base == offered:
        return True
    known = decode(base)
    return merge(known, decode(offered)) == known


def _any_equal(columns: Columns, base: Document, ours: Document) -> bool:
    """True when a column shows that both rows are one; a row of nothing but its key is one."""
    held = {key & ~KIND_MASK for key in base.cells}
    return not ours.cells or any(
        key in held and same(theirs, own)
        for key, theirs, own in zip(
            columns.keys, columns.values(base), columns.values(ours), strict=True
        )
    )


def _same_origin(columns: Columns, base: Document, ours: Document) -> bool:
    """True when the realm's row can have begun as ours: every column equal or edited since."""
    edited: set[int] = set()
    if base.born == FLOOR:
        edited = {key & ~KIND_MASK for key, cell in base.cells.items() if cell[0] != FLOOR}
    return all(
        key in edited or same(theirs, own)
        for key, theirs, own in zip(
            columns.keys, columns.values(base), columns.values(ours), strict=True
        )
    )


def _as_edit(state: State, entry: Entry, base: Document, ours: Document) -> Entry:
    """Our row as an edit made now on top of the realm's."""
    seen = time_of(base.latest())
    mark = stamp(edit_time(state.now_ms, state.meta.offset_ms, seen), state.meta.replica)
    columns = state.shapes[entry.row.table].columns
    edits = [
        columns.edit(base, key, own, state.author)
        for key, own, theirs in zip(
            columns.keys, columns.values(ours), columns.values(base), strict=True
        )
        if not base.alive or not same(theirs, own)
    ]
    cells: dict[int, Register] = {edit.key: (mark, edit.delta) for edit in edits}
    if base.alive:
        document, kind = Document(NEVER, mark, NEVER, cells), Kind.PARTIAL
    else:
        document, kind = Document(mark, mark, NEVER, cells), Kind.WHOLE
    return Entry(entry.row, kind, encode(document), state.now_ms, seen)


def _with_fitting_types(state: State, table: Table) -> Table:
    folded = ascii_lower(table.name)
    known = (t.remote for t in state.tables.values() if ascii_lower(t.table.name) == folded)
    remote = next(known, None)
    columns = []
    for column in table.columns:
        wanted = _merging_as(column, remote.column(column.name) if remote else None)
        if wanted in MERGING:
            _check_merging(state, table, column, wanted)
        elif column.key or wanted not in ("any", "text"):
            found = fetch_text(
                state.conn, f"SELECT {quoted(column.name)} FROM {quoted(table.name)}", ()
            )
            values = [row[0] for row in found]
            untyped = wanted == "any" and column.key
            wanted = key_type(values) if untyped else fitting_type(wanted, values)
        columns.append(replace(column, type=wanted))
    return replace(table, columns=tuple(columns))


def _merging_as(column: Column, theirs: Column | None) -> str:
    """The logical type of a column here, where the realm's column is `theirs`: the realm's when
    either of them merges. No key does, whatever a relay says."""
    if theirs is None or column.key or MERGING.isdisjoint((column.type, theirs.type)):
        return column.type
    return theirs.type


def _check_merging(state: State, table: Table, column: Column, wanted: str) -> None:
    """Raise TableError where a column that is to merge has a default, or holds a value, that its
    kind cannot hold."""
    said = f"column {column.name!r} is declared {column.declared or 'without a type'}"
    remedy = "correct such values, or declare the column as another type, then track it"
    if wanted != column.type:
        said += f" and merges as {wanted} in the realm"
        remedy = "correct such values, then track it, or rename the column"
    said += f", so it takes {MERGING_TAKES[wanted]} or NULL;"
    if not fits(wanted, default_value(column)):
        raise TableError(
            table.name,
            f"{said} its default is {_shortened(column.default)}: declare another, then track it",
        )
    # In one query, since only so is a value's key known.
    names = ", ".join(quoted(part.name) for part in (column, *table.key))
    for value, *key in fetch_text(state.conn, f"SELECT {names} FROM {quoted(table.name)}", ()):
        if not fits(wanted, value):
            raise TableError(
                table.name,
                f"{said} the row with the key {', '.join(map(_shortened, key))} holds"
                f" {_shortened(value)}: {remedy}",
            )


def _shortened(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}..."
