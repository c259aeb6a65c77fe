"""Columns and cells: what a row's document shows in each column, and which cell an edit makes.

A column has a cell of each kind that was ever written to it, and the one that was edited last
shows. So NULL, or a text that is no JSON, can stand in a column that merges: it is a register
beside the cell, and what is counted or typed after it shows again. A missing cell means the
column's declared default.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from reunite.cells import EMPTY_STATE, KINDS, NAMING, counter
from reunite.cells.counter import KIND as COUNTER
from reunite.cells.kinds import Author
from reunite.cells.register import Register, Value, same
from reunite.cells.set import KIND as SET
from reunite.cells.yjs import JSON_KIND, LIST_KIND, TEXT_KIND
from reunite.clock import FLOOR
from reunite.document import EMPTY, KIND_MASK, Document, cell_key
from reunite.schema import Column, default_value

# The kinds that a column of each type writes, in the order in which they are tried. A JSON column
# that holds an array is a list.
KINDS_OF_TYPE: Final[Mapping[str, tuple[int, ...]]] = {
    "counter": (COUNTER,),
    "crdt_text": (TEXT_KIND,),
    "crdt_set": (SET,),
    "crdt_list": (LIST_KIND,),
    "crdt_json": (JSON_KIND, LIST_KIND),
}


# Kinds whose beginning is all there is to say of it; a number counts for each who writes it.
_BEGIN_ALIKE: Final = frozenset({TEXT_KIND, LIST_KIND, JSON_KIND})


class CellEdit(NamedTuple):
    """An edit of one column: its cell's key, what the entry carries of it, and the cell's state
    after it. For a register both are the value."""

    key: int
    delta: Value
    after: Value


class Columns:
    """The columns of a table that are cells, in order. `keys` are the keys of their registers,
    which stand for the columns wherever one is named."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.keys = tuple(cell_key(column.id) for column in columns)
        self.defaults = tuple(default_value(column) for column in columns)
        self.kinds_by_key = {
            key: KINDS_OF_TYPE[column.type]
            for key, column in zip(self.keys, columns, strict=True)
            if column.type in KINDS_OF_TYPE
        }
        self._place_by_key = {key: place for place, key in enumerate(self.keys)}
        # For the key lists of documents, which a table has few of: the cells that merge, as
        # (place, key). Nearly always none.
        self._merging: dict[tuple[int, ...], tuple[tuple[int, int], ...]] = {}

    def values(self, document: Document) -> list[Value]:
        """What the table shows of a living row, in column order."""
        cells = document.cells
        keys = tuple(cells)
        if keys == self.keys:
            return [cell[1] for cell in cells.values()]
        found = [
            cells[key][1] if key in cells else default
            for key, default in zip(self.keys, self.defaults, strict=True)
        ]
        for place, key in self._merging_cells(keys):
            if shows(cells, key):
                state = cells[key][1]
                assert isinstance(state, bytes)
                found[place] = KINDS[key & KIND_MASK].value(state)
        return found

    def value(self, document: Document, place: int) -> Value:
        """What the table shows in the column at this place."""
        cells, key = document.cells, self.keys[place]
        for other_place, merging in self._merging_cells(tuple(cells)):
            if other_place == place and shows(cells, merging):
                state = cells[merging][1]
                assert isinstance(state, bytes)
                return KINDS[merging & KIND_MASK].value(state)
        return cells[key][1] if key in cells else self.defaults[place]

    def values_at(self, document: Document, places: Sequence[int]) -> list[Value]:
        """What the table shows in the columns at these places. The others are not read, as a cell
        that merges costs something to read."""
        if self.kinds_by_key and len(places) < len(self.keys):
            return [self.value(document, place) for place in places]
        found = self.values(document)
        return [found[place] for place in places]

    def changed(self, before: Document, after: Document) -> list[int]:
        """The places of the columns that show another value after than before."""
        old, new = before.cells, after.cells
        if old is new:
            return []
        # Only of these, as a cell that merges costs something to read.
        touched = {
            self._place_by_key[column]
            for key, cell in new.items()
            if old.get(key) is not cell and (column := key & ~KIND_MASK) in self._place_by_key
        }
        return [
            place
            for place in sorted(touched)
            if not same(self.value(before, place), self.value(after, place))
        ]

    def value_of(self, document: Document, key: int) -> Value:
        """What the table shows in a column, by its register's key."""
        return self.value(document, self._place_by_key[key])

    def is_same(self, key: int, old: Value, new: Value) -> bool:
        """True when two values mean the same to a column, such as JSON with other spaces."""
        return same(old, new) or (
            key in self.kinds_by_key and same(self.tidy(key, old), self.tidy(key, new))
        )

    def tidy(self, key: int, value: Value) -> Value:
        """The value as every replica shows it: JSON in its one form."""
        for kind in self.kinds_by_key.get(key, ()):
            content = KINDS[kind].content(value)
            if content is not None:
                return KINDS[kind].shown(content)
        return value

    def respelt(self, values: Sequence[Value]) -> dict[int, Value] | None:
        """The values that are written otherwise than every replica shows them; None for none."""
        if not self.kinds_by_key:
            return None
        found = {
            key: value
            for key, value in zip(self.keys, values, strict=True)
            if not same(self.tidy(key, value), value)
        }
        return found or None

    def edit(
        self,
        document: Document,
        key: int,
        value: Value,
        author: Author,
        *,
        seen: tuple[Value] | None = None,
    ) -> CellEdit:
        """The edit that makes a column, by its register's key, show `value`. Where the author saw
        another value, `seen`, than the document says, it is what was done to that."""
        for kind in self.kinds_by_key.get(key, ()):
            wanted = KINDS[kind].content(value)
            if wanted is None:
                continue
            begun = key | kind in document.cells
            before = self.state(document, key, kind)
            if kind == COUNTER and seen is None and is_hidden(document, key | kind):
                anew = counter.anew(before, wanted, author)
                if anew is not None:
                    return CellEdit(key | kind, anew.delta, anew.after)
                continue
            if seen is not None:
                was = KINDS[kind].content(seen[0])
                if was is None:
                    # Such as NULL: then all of it was added.
                    was = KINDS[kind].content(KINDS[kind].value(EMPTY_STATE[kind]))
                assert was is not None
                known = KINDS[kind].content(KINDS[kind].value(before))
                if known is None:
                    continue
                wanted = KINDS[kind].carried(was, wanted, known)
            if not begun and kind in _BEGIN_ALIKE and before == EMPTY_STATE[kind]:
                # Who writes the same where there was nothing has begun the same.
                state = KINDS[kind].initial(wanted)
                return CellEdit(key | kind, state, state)
            edit = KINDS[kind].edit(before, wanted, author)
            if edit is not None:
                # The first edit brings along what the cell began with.
                delta = edit.delta if begun else edit.after
                return CellEdit(key | kind, delta, edit.after)
        return CellEdit(key, value, value)

    def again(
        self, document: Document, key: int, delta: bytes, made_on: Document, author: Author
    ) -> CellEdit | None:
        """What the delta of a counter or set, by its cell's key, did to the document that it was
        made on, done to this one; None where its kind cannot hold it."""
        column, kind = key & ~KIND_MASK, key & KIND_MASK
        before = self.state(document, column, kind)
        edit = NAMING[kind].again(before, delta, self.state(made_on, column, kind), author)
        if edit is None:
            return None
        delta = edit.delta if key in document.cells else edit.after
        return CellEdit(key, delta, edit.after)

    def begin(self, key: int, value: Value) -> CellEdit:
        """A column that begins with `value`, wherever it does: a default, or a row that came with
        its table."""
        for kind in self.kinds_by_key.get(key, ()):
            content = KINDS[kind].content(value)
            if content is not None:
                state = KINDS[kind].initial(content)
                return CellEdit(key | kind, state, state)
        return CellEdit(key, value, value)

    def inserted(self, values: Sequence[Value], mark: bytes, author: Author) -> dict[int, Register]:
        """The cells of a row that nobody here knew: what is at its default is at the floor, so that
        a late "insert if missing" erases nobody's edit."""
        cells: dict[int, Register] = {}
        for key, value, default in zip(self.keys, values, self.defaults, strict=True):
            if same(value, default):
                edit, at = self.begin(key, value), FLOOR
            else:
                edit, at = self.edit(EMPTY, key, value, author), mark
            cells[edit.key] = (at, edit.after)
        return cells

    def state(self, document: Document, key: int, kind: int) -> bytes:
        """The state of a column's cell of one kind, or what its first edit would begin with."""
        cell = document.cells.get(key | kind)
        if cell is None:
            return self._beginning(document, key, kind)
        assert isinstance(cell[1], bytes)
        return cell[1]

    def _beginning(self, document: Document, key: int, kind: int) -> bytes:
        """The state that a column's cell begins with: what the column showed until now."""
        place = self._place_by_key[key]
        shown = self.defaults[place] if document is EMPTY else self.value(document, place)
        content = KINDS[kind].content(shown)
        return KINDS[kind].initial(content) if content is not None else EMPTY_STATE[kind]

    def _merging_cells(self, keys: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        found = self._merging.get(keys)
        if found is None:
            if len(self._merging) >= _KEY_LISTS_MAX:
                self._merging.clear()
            found = self._merging[keys] = tuple(
                (self._place_by_key[key & ~KIND_MASK], key)
                for key in keys
                if key & KIND_MASK and key & ~KIND_MASK in self._place_by_key
            )
        return found


# Key lists that are remembered for a table; a peer makes them.
_KEY_LISTS_MAX: Final = 256


@lru_cache(maxsize=1_024)
def columns_of(columns: tuple[Column, ...]) -> Columns:
    """The same `Columns` for the same columns, where no shape of the table is at hand."""
    return Columns(columns)


def shows(cells: Mapping[int, Register], key: int) -> bool:
    """True when this cell of a column is the one that was edited last."""
    rank = (cells[key][0], key)
    column = key & ~KIND_MASK
    return not any(
        (cells[other][0], other) > rank
        for other in range(column, column + KIND_MASK + 1)
        if other in cells
    )


def is_hidden(document: Document, key: int) -> bool:
    """True when this cell is there and does not show: another of its column was edited last, or the
    row is deleted."""
    return key in document.cells and not (document.alive and shows(document.cells, key))
