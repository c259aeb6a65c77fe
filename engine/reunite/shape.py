"""Shape: what folding and applying need of a table, worked out once for each version of it."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from reunite.bookkeeping import Tracked
from reunite.capture import Captured, has_hidden_collisions
from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR
from reunite.columns import Columns
from reunite.document import Document, cell_key
from reunite.keys import stored_key
from reunite.schema import Table, ascii_lower


class Parent(NamedTuple):
    """A foreign key to a parent's primary key: the parent's table id, the cell keys of the
    referring columns (or minus the place in the key) in the order of the parent's key, and what
    the parent's deletion does."""

    table: int
    columns: tuple[int, ...]
    on_delete: str

    def key_of(self, key: Sequence[Value], cells: Mapping[int, Register]) -> Value:
        """The stored key of the parent of a row with this key and these cells; None when it has
        none, or its columns are not all here."""
        values = [
            key[-column - 1] if column < 0 else cells.get(column, (FLOOR, None))[1]
            for column in self.columns
        ]
        return None if None in values else stored_key(values)


class Shape(NamedTuple):
    """What the fold needs of a table, computed once."""

    tracked: Tracked
    captured: Captured
    columns: Columns
    parents: tuple[Parent, ...]
    # True when `keys` are in the order that documents keep, which is almost always.
    ascending: bool
    # A UNIQUE index over an expression: REPLACE can delete rows that no trigger sees.
    hidden_collisions: bool

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of the columns' registers, in column order."""
        return self.columns.keys


def shapes_of(conn: sqlite3.Connection, tables: Mapping[int, Tracked]) -> dict[int, Shape]:
    """The shapes of the tracked tables by their id."""
    by_name = {ascii_lower(t.table.name): t for t in tables.values() if t.tracked}
    return {
        tracked.id: Shape(
            tracked,
            Captured(tracked),
            Columns(tracked.table.cells),
            tuple(_parents(tracked.table, by_name)),
            (ids := [column.id for column in tracked.table.cells]) == sorted(ids),
            has_hidden_collisions(conn, tracked.table.name),
        )
        for tracked in by_name.values()
    }


def _parents(table: Table, by_name: Mapping[str, Tracked]) -> Iterator[Parent]:
    for foreign_key in table.foreign_keys:
        parent = by_name.get(ascii_lower(foreign_key.parent))
        if parent is None:
            continue
        places = {
            ascii_lower(theirs): own
            for own, theirs in zip(foreign_key.columns, foreign_key.parent_columns, strict=True)
        }
        names = [places.get(ascii_lower(column.name)) for column in parent.table.key]
        columns = [table.column(name) for name in names if name is not None]
        # A generated column is in no document.
        if None not in columns and len(columns) == len(places) == len(parent.table.key):
            yield Parent(
                parent.id,
                tuple(
                    -column.key if column.key else cell_key(column.id)
                    for column in columns
                    if column
                ),
                foreign_key.on_delete,
            )


def expected(shape: Shape, document: Document, image: Mapping[int, Value] | None) -> list[Value]:
    """What the table holds of a living row, in column order."""
    found = shape.columns.values(document)
    if image:
        found = [image.get(key, value) for key, value in zip(shape.keys, found, strict=True)]
    return found


def changed_values(
    shape: Shape, held: Sequence[Value], values: Sequence[Value]
) -> dict[int, Value]:
    """The values that differ from what the table held, by the keys of their columns."""
    return {
        key: value
        for key, value, old in zip(shape.keys, values, held, strict=True)
        if value is not old
        and (type(value) is not type(old) or value != old or type(value) is float)
        and not same(value, old)
    }
