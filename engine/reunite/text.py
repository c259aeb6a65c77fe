"""The text editor's way to a CRDT_TEXT column: edits at places, others' edits as they come.

An UPDATE says what a text has become, and the fold finds out what was done; an editor knows. What
it does is a delta of the cell from the start, so that every character stays the one that it was.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from reunite.bookkeeping import NO_ROW, lines_of, save_rows
from reunite.cells.register import Value
from reunite.cells.text_edit import Replacement
from reunite.cells.yjs import EMPTY, TEXT, TEXT_KIND, LiveText
from reunite.changeset import fold_own
from reunite.columns import CellEdit, shows
from reunite.document import cell_key, decode
from reunite.errors import UsageError
from reunite.fold import fold_cell
from reunite.keys import key_values, stored_key
from reunite.outbox import next_id
from reunite.payload import RowRef
from reunite.schema import quoted
from reunite.state import State

# How often an open text looks for what others did.
POLL_SECONDS: Final = 0.03


class TextCell(NamedTuple):
    """Where a text is: its row, and its column's register key and name."""

    ref: RowRef
    column: int
    name: str


class Stale(Exception):
    """An edit builds on what is there no more, such as an edit that was refused."""

    def __init__(self, data: bytes) -> None:
        super().__init__("the text was changed by a refusal")
        self.data = data


def find(state: State, table: str, key: Value | Sequence[Value], column: str) -> TextCell:
    """The cell of a row. Raises UsageError for what is no text that merges."""
    tracked, parts = state.named_row(table, key)
    found = tracked.table.column(column)
    if found is None or found.key:
        raise UsageError(f"table {table!r} has no column {column!r} that could be edited")
    if found.type != "crdt_text":
        raise UsageError(
            f"column {column!r} of {table!r} is {found.declared or 'without a type'}; only"
            " CRDT_TEXT columns can be edited in places"
        )
    return TextCell(RowRef(tracked.id, stored_key(parts)), cell_key(found.id), found.name)


def read(state: State, cell: TextCell) -> bytes:
    """The text that the table shows, for `LiveText`: none where NULL replaced it. Raises UsageError
    when the row is not there."""
    return _shown(state, cell)[0]


def _shown(state: State, cell: TextCell) -> tuple[bytes, bool]:
    """The state that `read` returns, and whether the cell has it: who types over NULL has deleted
    the text below it."""
    row = lines_of(state.conn, [cell.ref])[cell.ref]
    document = decode(row.document) if row.document else None
    if document is None or not document.alive:
        table = state.tables[cell.ref.table].table.name
        raise UsageError(f"table {table!r} has no row with the key {cell.ref.key!r}")
    if row.mark is not None:
        # Its table does not have it as the document does; an edit would say that it has.
        table = state.tables[cell.ref.table].table.name
        raise UsageError(
            f"the row of {table!r} with the key {cell.ref.key!r} is {row.mark}: see reunite_rows"
        )
    found = state.shapes[cell.ref.table].columns.state(document, cell.column, TEXT_KIND)
    key = cell.column | TEXT_KIND
    if key not in document.cells or shows(document.cells, key):
        return found, True
    cleared = TEXT.edit(found, "", state.author)
    assert cleared is not None, "a text can be empty"
    return cleared.after, False


def write(state: State, cell: TextCell, delta: bytes) -> int | None:
    """Make an edit, in the caller's transaction, and return its changeset. Raises Stale, and
    UsageError as `read` does."""
    before, stored = _shown(state, cell)
    if not TEXT.fits_onto(before, delta):
        raise Stale(before)
    row = lines_of(state.conn, [cell.ref]).get(cell.ref, NO_ROW)
    shape = state.shapes[cell.ref.table]
    after = TEXT.merge(before, delta)
    key = cell.column | TEXT_KIND
    assert row.document is not None, "it was read"
    new = key not in decode(row.document).cells
    folded = fold_cell(
        shape,
        state.meta,
        state.author,
        next_id(state.conn),
        cell.ref,
        row,
        CellEdit(key, delta if stored and not new else after, after),
        state.now_ms,
    )
    assert folded.entry is not None and folded.row is not None, "an edit has both"  # noqa: PT018
    save_rows(state.conn, [(cell.ref, folded.row)])
    table = shape.tracked.table
    where = " AND ".join(f"{quoted(part.name)} = ?" for part in table.key)
    state.conn.execute(
        f"UPDATE {quoted(table.name)} SET {quoted(cell.name)} = ? WHERE {where}",
        (TEXT.value(after), *key_values(cell.ref.key, len(table.key))),
    )
    return fold_own(state, [folded.entry])


Observer = Callable[[list[Replacement]], None]


class Editor:
    """An open text, as given by `Database.text`. Places and lengths are in code points.

    What is inserted and deleted shows at once, is saved by `save` and at the end of the block, and
    survives what others do meanwhile. Only what was saved survives the end of the program.
    """

    def __init__(
        self,
        data: bytes,
        *,
        save: Callable[[bytes], Awaitable[int | None]],
        load: Callable[[], Awaitable[bytes]],
        new_session: Callable[[], int],
        has_changed: Callable[[], Awaitable[bool]],
    ) -> None:
        self._text = LiveText(data, new_session())
        # The cell as it was last taken in; None after a save.
        self._data: bytes | None = data
        self._save, self._load = save, load
        self._new_session, self._has_changed = new_session, has_changed
        self._observers: list[Observer] = []
        self._busy = asyncio.Lock()

    def __str__(self) -> str:
        return self._text.value

    def __len__(self) -> int:
        return len(self._text.value)

    def __repr__(self) -> str:
        return f"Editor({self._text.value!r})"

    def insert(self, at: int, text: str) -> None:
        """Insert `text` before the character at place `at`. Raises IndexError outside the text."""
        self.replace(at, 0, text)

    def delete(self, at: int, length: int) -> None:
        """Delete `length` characters from place `at`. Raises IndexError outside the text."""
        self.replace(at, length, "")

    def replace(self, at: int, length: int, text: str) -> None:
        """Put `text` in the place of `length` characters. Raises IndexError outside the text."""
        if at < 0 or length < 0 or at + length > len(self):
            raise IndexError(f"place {at} + {length} is not in a text of {len(self)} characters")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the text is not valid Unicode: it holds half of a pair") from error
        if length or text:
            self._text.replace(at, at + length, text)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` with what others changed, as replacements of `text[start:end]` from the
        text's start to its end, after `str(text)` shows it. Returns a function that ends it."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    async def save(self) -> int | None:
        """Keep the edits, in a transaction of their own; returns its changeset, for
        `Database.synced`, or None where there was nothing to save. What is edited meanwhile is kept
        in one more, which is then the one returned. Raises UsageError when the row is gone."""
        async with self._busy:
            changeset = None
            while True:
                delta, count = self._text.unsaved()
                if delta == EMPTY:
                    return changeset
                try:
                    changeset = await self._save(delta)
                except Stale as stale:
                    self._take(stale.data)
                else:
                    self._text.saved(count)
                    self._data = None

    async def refresh(self) -> None:
        """Take in what others did until now; happens by itself all the time."""
        async with self._busy:
            self._take(await self._load())

    async def follow(self) -> None:
        """Refresh whenever the file has changed, until cancelled or the row is gone."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if await self._has_changed():
                try:
                    await self.refresh()
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                        raise
                except UsageError:
                    # Deleted: it may be written again, and saving says so.
                    continue

    def _take(self, data: bytes) -> None:
        if data == self._data:
            return
        self._data = data
        changes = self._text.refresh(data, self._new_session())
        if changes:
            for observer in list(self._observers):
                observer(changes)
