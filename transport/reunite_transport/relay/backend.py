"""Backend writes: what ordinary SQL on the relay's database did to rows, as edits of documents.

A backend saw the row that it wrote, so what it did comes after everything that the row's document
says, and it is never written back to the table: the table is where it comes from. An edit is what
differs between the values before a transaction and after it, so a counter gets what was added and a
text what was typed, and a column that was set to what it held is no edit, nor is a row that was
deleted and inserted again.

Nothing here waits or reads a database; `fold` asks a transaction for what it needs.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, TypeAlias

from reunite.cells.kinds import Author
from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR, NEVER, stamp, time_of
from reunite.columns import Columns, columns_of
from reunite.document import (
    CELLS_MAX,
    DOCUMENT_BYTES_MAX,
    KIND_MASK,
    Document,
    decode,
    encode,
)
from reunite.errors import FormatError
from reunite.keys import key_problem, pack_key
from reunite.overwritten import Loss, losses
from reunite.schema import Table
from reunite_transport.relay.store import (
    RowId,
    StoreError,
    StoreTransaction,
    Unfoldable,
    Written,
)

# Above this a commit is pulled and not streamed, so its rows need not be remembered.
STATED_ROWS_MAX: Final = 10_000

_log = logging.getLogger(__name__)


class Folded:
    """What folding did. `rows` are the documents that it made, None when they are too many to be
    remembered; `count` is how many writes were folded."""

    def __init__(self) -> None:
        self.rows: dict[RowId, bytes] | None = {}
        self.count = 0

    def add(self, documents: Mapping[RowId, bytes]) -> None:
        """Note documents that were recorded."""
        if self.rows is not None:
            self.rows.update(documents)
            if len(self.rows) > STATED_ROWS_MAX:
                self.rows = None


async def fold(
    transaction: StoreTransaction, replica: int, folded: Folded, *, history: bool
) -> None:
    """Fold all that backends wrote and no commit has folded, record the documents, and add them to
    `folded`. With `history` what is overwritten is kept. Each part is done with before the next is
    read, so that a statement which changed all rows of a large table takes little memory."""
    try:
        await _fold(transaction, replica, folded, history=history)
    except StoreError:
        raise
    except Exception as error:
        # Whoever pushes meanwhile is not to blame.
        raise Unfoldable(
            "what backends wrote cannot be merged, by an error of the relay; its log says where,"
            " and pushes wait until it is mended"
        ) from error


async def _fold(
    transaction: StoreTransaction, replica: int, folded: Folded, *, history: bool
) -> None:
    tables = {table.id: table for table in transaction.tables}
    async for part in transaction.captured():
        start = 0
        for at, written in enumerate(part):
            if written.before is None and written.after is None:
                await _fold_part(transaction, part[start:at], tables, replica, folded, history)
                await _empty(transaction, written, replica, folded)
                start = at + 1
        await _fold_part(transaction, part[start:], tables, replica, folded, history)
        folded.count += len(part)


async def _fold_part(
    transaction: StoreTransaction,
    part: Sequence[Written],
    tables: Mapping[int, Table],
    replica: int,
    folded: Folded,
    history: bool,
) -> None:
    edits = Edits(tables, replica, transaction.now_ms)
    steps = edits.steps(part)
    rows = list(dict.fromkeys(row for row, _ in steps))
    if not rows:
        return
    stored = await transaction.documents(rows)
    before = {row: decode(data) for row, data in stored.items()}
    after, lost = edits.applied(steps, before)
    changed = {
        row: data
        for row, document in after.items()
        if (data := edits.encoded(row, document)) is not None and data != stored.get(row)
    }
    await transaction.keep(changed, lost if history else {})
    folded.add(changed)


async def _empty(
    transaction: StoreTransaction, written: Written, replica: int, folded: Folded
) -> None:
    """All rows of a table are gone."""
    async for documents in transaction.documents_of(written.table):
        changed: dict[RowId, bytes] = {}
        for row, data in documents.items():
            document = decode(data)
            if document.alive:
                changed[row] = encode(_deleted(document, written.at or 0, replica))
        await transaction.keep(changed)
        folded.add(changed)


class Edits:
    """Turns what was written into edits by one relay."""

    def __init__(self, tables: Mapping[int, Table], replica: int, now_ms: int) -> None:
        self._tables = tables
        self._keys = {
            table.id: tuple(column.id for column in table.key) for table in tables.values()
        }
        self._columns = {table.id: columns_of(table.cells) for table in tables.values()}
        self._replica = replica
        # Its id is new at every start, so it numbers this run of the process as well.
        self._author = Author(replica, replica)
        self._now = now_ms << 16

    def steps(self, part: Sequence[Written]) -> list[tuple[RowId, Written]]:
        """Each row's writes, in order, those of one transaction as one. One that gave a row another
        key is two: the old row went, and a new one came. A row whose key cannot leave the database
        is left out."""
        steps: dict[tuple[RowId, int], list[Written]] = {}

        def add(row: RowId, written: Written) -> None:
            steps.setdefault((row, written.transaction), []).append(written)

        for written in part:
            key = self._keys.get(written.table)
            if key is None:
                continue  # not tracked any more
            old = _key(key, written.before)
            new = _key(key, written.after)
            after = self._row(written.table, new)
            if old == new:
                if after is not None:
                    add(after, written)
                continue
            before = self._row(written.table, old)
            if before is not None:
                add(before, written._replace(after=None))
            if after is not None:
                add(after, written._replace(before=None))
        together = [(row, _as_one(writes)) for (row, _), writes in steps.items()]
        return [
            (row, written)
            for row, written in together
            if written.before is not None or written.after is not None
        ]

    def applied(
        self, steps: Sequence[tuple[RowId, Written]], known: Mapping[RowId, Document]
    ) -> tuple[dict[RowId, Document], dict[RowId, list[Loss]]]:
        """The documents after these writes, and what was overwritten."""
        made: dict[RowId, Document] = {}
        lost: dict[RowId, list[Loss]] = {}
        for row, written in steps:
            before = made.get(row) or known.get(row)
            try:
                after = self._after(row, before, written)
            except (FormatError, RecursionError) as error:
                # One row must not keep all others from being folded.
                _log.error(
                    "table %r: what a backend wrote to a row cannot be merged (%s); clients keep"
                    " the row as it was",
                    self._tables[row.table].name,
                    error if isinstance(error, FormatError) else "nested too deep",
                )
                continue
            if after is None or after is before:
                continue
            if before is not None and after.cells is not before.cells:
                edited = {k: c for k, c in after.cells.items() if before.cells.get(k) is not c}
                found = losses(before, Document(NEVER, after.edited, NEVER, edited))
                if found:
                    lost.setdefault(row, []).extend(found)
            made[row] = after
        return made, lost

    def encoded(self, row: RowId, document: Document) -> bytes | None:
        """The bytes of a document; None, which is logged, for one that no client would take."""
        data = encode(document)
        if len(data) <= DOCUMENT_BYTES_MAX and len(document.cells) <= CELLS_MAX:
            return data
        _log.error(
            "table %r: what a backend wrote makes a row of %d bytes, over the %d that can sync;"
            " clients keep the row as it was until a backend makes it smaller",
            self._tables[row.table].name,
            len(data),
            DOCUMENT_BYTES_MAX,
        )
        return None

    def _row(self, table: int, key: tuple[Value, ...] | None) -> RowId | None:
        if key is None:
            return None
        problem = key_problem(key)
        if problem is not None:
            name = self._tables[table].name
            _log.error("table %r: a backend's row does not sync: %s", name, problem)
            return None
        return RowId(table, pack_key(key))

    def _after(self, row: RowId, before: Document | None, written: Written) -> Document | None:
        at = self._now if written.at is None else written.at
        if written.at is None and written.before is None and before is not None:
            return before  # it came with its table, and more is known of it
        if written.after is None:
            return _deleted(before, at, self._replica) if before and before.alive else before
        columns = self._columns[row.table]
        if before is None:
            return self._inserted(columns, written, at)
        if not before.alive:
            return self._revived(columns, before, written.after, at)
        return self._updated(columns, before, written, at)

    def _inserted(self, columns: Columns, written: Written, at: int) -> Document:
        assert written.after is not None
        values = _values(columns, written.after)
        if written.at is None:
            begun = [
                columns.begin(key, value) for key, value in zip(columns.keys, values, strict=True)
            ]
            cells: dict[int, Register] = {edit.key: (FLOOR, edit.after) for edit in begun}
            return Document(FLOOR, FLOOR, NEVER, cells)
        mark = stamp(at, self._replica)
        return Document(mark, mark, NEVER, columns.inserted(values, mark, self._author))

    def _revived(
        self, columns: Columns, before: Document, after: Mapping[int, Value], at: int
    ) -> Document:
        """A row that was deleted and is there again has nothing of what it was."""
        mark = stamp(max(at, time_of(before.latest()) + 1), self._replica)
        cells = before.cells.copy()
        for key, value in zip(columns.keys, _values(columns, after), strict=True):
            edit = columns.edit(before, key, value, self._author)
            cells[edit.key] = (mark, edit.after)
        return before._replace(edited=mark, cells=cells)

    def _updated(self, columns: Columns, before: Document, written: Written, at: int) -> Document:
        assert written.after is not None
        cells = before.cells.copy()
        touched = False
        for place, column in enumerate(columns.columns):
            if column.id not in written.after:
                continue
            key, now = columns.keys[place], written.after[column.id]
            if written.before is not None and written.at is not None:
                # A column that was added since has its default in the rows that were there.
                was = written.before.get(column.id, columns.defaults[place])
            else:
                # It is what was there when the table or column came, whoever wrote it: a backend's
                # write of a new column may be known already.
                was = columns.value(before, place)
            if columns.is_same(key, was, now):
                continue
            # Only now, as a cell that merges costs something to read.
            shown = columns.value(before, place)
            seen = None if same(was, shown) else (was,)
            edit = columns.edit(before, key, now, self._author, seen=seen)
            # Above all cells of the column, or another of them would go on showing.
            marks = [cells[k][0] for k in cells if k & ~KIND_MASK == key]
            time = max(at, time_of(max(marks, default=NEVER)) + 1)
            cells[edit.key] = (stamp(time, self._replica), edit.after)
            touched = True
        if not touched:
            return before
        return before._replace(edited=max(before.edited, stamp(at, self._replica)), cells=cells)


def _key(columns: Sequence[int], values: Mapping[int, Value] | None) -> tuple[Value, ...] | None:
    return None if values is None else tuple([values.get(column) for column in columns])


def _as_one(writes: Sequence[Written]) -> Written:
    """What one transaction did to a row, from its writes in the order in which they were noted.

    That is not always the order in which they were done: what a trigger does to other rows of its
    statement is noted before the statement's own writes of them, which came first. Then it began
    with the values that none of the writes left, and ended with those that none began with. Where
    these are the same it did nothing, also to a row that came and went.
    """
    if len(writes) == 1:
        return writes[0]
    before, after = writes[0].before, writes[-1].after
    if any(one.after != other.before for one, other in pairwise(writes)):
        befores, afters = [w.before for w in writes], [w.after for w in writes]
        begun, ended = _without(befores, afters), _without(afters, befores)
        before = begun[0] if begun else before
        after = ended[-1] if ended else before
    if before == after:
        before = after = None
    return writes[-1]._replace(before=before, after=after)


_Values: TypeAlias = Mapping[int, Value] | None


def _without(some: Sequence[_Values], others: Sequence[_Values]) -> list[_Values]:
    left = list(some)
    for other in others:
        if other in left:
            left.remove(other)
    return left


def _values(columns: Columns, found: Mapping[int, Value]) -> list[Value]:
    return [
        found.get(column.id, default)
        for column, default in zip(columns.columns, columns.defaults, strict=True)
    ]


def _deleted(before: Document, at: int, replica: int) -> Document:
    time = max(at, time_of(before.edited) + 1)
    return before._replace(deleted=stamp(time, replica))
