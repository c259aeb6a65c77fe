"""Rebase: making pending edits anew when what they were made on is there no more.

What an entry holds of a cell that merges follows from what was there before it: a counter's part is
a total, a set's removal names adds, a Yjs edit builds on others. So when a changeset is given up,
or the file becomes another replica, the edits behind it are made again: what each did to the value
that it saw is done to the value that is there without what is gone.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

from reunite import outbox
from reunite.bookkeeping import lines_of
from reunite.cells import KINDS, NAMING
from reunite.cells.register import Register
from reunite.columns import Columns, columns_of
from reunite.document import (
    EMPTY,
    KIND_MASK,
    Document,
    decode,
    encode,
    fits_onto,
    merge,
    merges,
)
from reunite.errors import FormatError
from reunite.payload import Entry, Kind, RowRef
from reunite.state import State
from reunite.types import MERGING, logical_type


class Step(NamedTuple):
    """A row around one of its pending entries, with all that was pending before it."""

    before: Document
    after: Document


Steps: TypeAlias = Mapping[tuple[int, RowRef, bytes], Step]
"""By changeset, row and the entry's document."""


def merging_rows(state: State) -> set[RowRef]:
    """The rows that have pending entries which write a cell that merges."""
    tables = {
        number
        for number, tracked in state.tables.items()
        if _may_merge(columns_of(tracked.table.cells))
    }
    if not tables:
        return set()
    return {
        entry.row
        for changeset in outbox.everything(state.conn)
        for entry in changeset.entries()
        if entry.row.table in tables and merges(decode(entry.document))
    }


def _may_merge(columns: Columns) -> bool:
    """True also for what was declared to merge and does not, as the realm says: what was done to
    it before that was known can be pending yet."""
    return bool(columns.kinds_by_key) or any(
        logical_type(column.declared) in MERGING for column in columns.columns
    )


def steps(
    state: State,
    refs: Collection[RowRef],
    *,
    bases: Mapping[RowRef, bytes | None] | None = None,
) -> Steps:
    """What the pending entries of these rows were made on and what they made of it, as it is
    before anything is taken away. `bases` are as for `rebase`."""
    if not refs:
        return {}
    known = _bases(state, refs) if bases is None else _decoded(bases)
    rows = dict(known)
    found = {}
    for changeset in outbox.everything(state.conn):
        for entry in changeset.entries():
            if entry.row in rows:
                # A row that came with its table was edited as it was here, not as the realm has it;
                # unless the realm's was here before the table was tracked.
                before = EMPTY if entry.kind == Kind.ADOPTED else rows[entry.row]
                delta = decode(entry.document)
                try:
                    after = merge(before, delta)
                except FormatError:
                    try:
                        before = merge(known[entry.row], before)
                        after = merge(before, delta)
                    except FormatError:
                        # It is more than a row can hold, and the relay will say so.
                        after = before
                rows[entry.row] = after
                found[changeset.id, entry.row, entry.document] = Step(before, after)
    return found


def with_whole_cells(entry: Entry, step: Step) -> Entry:
    """The entry with all that its texts, lists and JSON build on, for a relay that lacks some. What
    others counted, or added to a set, is theirs to say."""
    document = decode(entry.document)
    cells = dict(document.cells)
    for key in document.cells:
        if key & KIND_MASK not in (0, *NAMING) and key in step.after.cells:
            cells[key] = (document.cells[key][0], step.after.cells[key][1])
    return entry._replace(document=encode(document._replace(cells=cells)))


def names_authors(document: Document) -> bool:
    """True when a cell says who did what, so that the same by another would count twice."""
    return any(key & KIND_MASK in NAMING for key in document.cells)


def holds_more(known: Document, stated: Document, replica: int) -> bool:
    """True when a document holds work in this replica's name that it has not done: there is a copy
    of its file, and nobody knows yet."""
    for key, (_, data) in stated.cells.items():
        kind = NAMING.get(key & KIND_MASK)
        if kind is None:
            continue
        assert isinstance(data, bytes)
        theirs = kind.part_of(data, replica)
        mine = known.cells[key][1] if key in known.cells else kind.EMPTY
        assert isinstance(mine, bytes)
        if kind.merge(mine, theirs) != mine:
            return True
    return False


def rebase(
    state: State,
    refs: Collection[RowRef],
    known: Steps,
    *,
    renamed: bool = False,
    bases: Mapping[RowRef, bytes | None] | None = None,
    copied: Collection[RowRef] = (),
) -> None:
    """Make the pending entries of these rows anew on what is left before them, but for what is on
    its way, unless it is of a `copied` row: a copy of this file was faster, so that it will not be
    taken under its number. `known` is what `steps` said before; `renamed` that this file's replica
    has another id now; `bases` are what the relay states, where it is not in the rows' lines yet.
    """
    if not known:
        return
    rows = _bases(state, refs) if bases is None else _decoded(bases)
    for changeset in outbox.everything(state.conn):
        entries = changeset.entries()
        fresh = []
        for entry in entries:
            step = known.get((changeset.id, entry.row, entry.document))
            if entry.row in rows:
                sent = changeset.number is not None and entry.row not in copied
                unsent = not sent and changeset.seq is None
                # What is offered stays as it was, unless what it builds on is gone.
                stays = entry.kind == Kind.OFFERED and _fits(entry, rows[entry.row])
                if step is not None and unsent and entry.kind != Kind.ADOPTED and not stays:
                    entry = _made_anew(state, entry, step, rows[entry.row], renamed=renamed)
                try:
                    rows[entry.row] = merge(rows[entry.row], decode(entry.document))
                except FormatError:
                    if step is None:
                        raise
                    # As it was sent, nobody can take it: what it was made on is not there.
                    entry = _made_anew(state, entry, step, rows[entry.row], renamed=renamed)
                    rows[entry.row] = merge(rows[entry.row], decode(entry.document))
            fresh.append(entry)
        if fresh != entries:
            outbox.encode_anew(state.conn, changeset.id, fresh)


def _fits(entry: Entry, onto: Document) -> bool:
    try:
        return fits_onto(onto, decode(entry.document))
    except FormatError:
        return False


def _made_anew(state: State, entry: Entry, step: Step, onto: Document, *, renamed: bool) -> Entry:
    document = decode(entry.document)
    columns = columns_of(state.tables[entry.row.table].table.cells)
    cells: dict[int, Register] = {}
    for key, (mark, value) in document.cells.items():
        kind, column = key & KIND_MASK, key & ~KIND_MASK
        if not kind or column not in columns.keys or _stays(key, step, onto, renamed=renamed):
            cells[key] = (mark, value)
            continue
        if kind in NAMING and kind in columns.kinds_by_key.get(column, ()):
            assert isinstance(value, bytes)
            again = columns.again(onto, key, value, step.before, state.author)
            if again is not None:
                cells[again.key] = (mark, again.delta)
                continue
        edit = columns.edit(
            onto,
            column,
            columns.value_of(_only(step.after, key), column),
            state.author,
            seen=(columns.value_of(_only(step.before, key), column),),
        )
        cells[edit.key] = (mark, edit.delta)
    if cells == document.cells:
        return entry
    return entry._replace(document=encode(document._replace(cells=cells)))


def _stays(key: int, step: Step, onto: Document, *, renamed: bool) -> bool:
    """True when a delta says on this document what it said where it was made."""
    kind = key & KIND_MASK
    before, now = step.before.cells.get(key), onto.cells.get(key)
    if kind in NAMING:
        return before == now and not renamed
    if before is None or now is None:
        return before is now
    seen, there = before[1], now[1]
    assert isinstance(seen, bytes)
    assert isinstance(there, bytes)
    try:
        # All that it was made on is there.
        return KINDS[kind].merge(there, seen) is there
    except FormatError:
        return False


def _only(document: Document, key: int) -> Document:
    """The document without the other cells of a column, so that this one shows."""
    column = key & ~KIND_MASK
    cells = {k: cell for k, cell in document.cells.items() if k == key or k & ~KIND_MASK != column}
    return document._replace(cells=cells)


def _bases(state: State, refs: Collection[RowRef]) -> dict[RowRef, Document]:
    return _decoded({ref: row.base for ref, row in lines_of(state.conn, refs).items()})


def _decoded(bases: Mapping[RowRef, bytes | None]) -> dict[RowRef, Document]:
    return {ref: decode(base) if base else EMPTY for ref, base in bases.items()}
