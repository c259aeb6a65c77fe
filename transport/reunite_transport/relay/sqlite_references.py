"""Foreign keys on SQLite: which of them the store holds, and whether they still hold.

SQLite checks foreign keys at once or at the COMMIT, and says neither before it nor which; a store
has to say it for each write. So it asks for the rows that a write concerns: written children, and
children of parents that are gone. It knows no action: a parent is not deleted from under a child.

As on Postgres, a foreign key is not held while its parent is not in the registry, where the columns
it refers to are neither the parent's key nor UNIQUE, and where the two sides have different types;
and children that came before their parent's table are not checked until they refer to another row.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reunite.cells.register import Value
from reunite.schema import Column, ForeignKey, Table, ascii_lower, quoted
from reunite.types import plain_type
from reunite_transport.relay.sqlite_bookkeeping import in_batches
from reunite_transport.relay.store import Violation


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key that is held: `columns` of `child` refer to `referred` of `parent`."""

    child: Table
    parent: Table
    columns: tuple[Column, ...]
    referred: tuple[Column, ...]

    def check_children(
        self, connection: sqlite3.Connection, keys: Sequence[tuple[Value, ...]]
    ) -> None:
        """Raise Violation when a child with one of these keys refers to no parent."""
        if _find_orphan(connection, self, self.child.key, keys):
            raise Violation(
                f"table {self.child.name!r}: column {self._listed} refers to a row of"
                f" {self.parent.name!r} that is not there"
            )

    def check_parents(
        self, connection: sqlite3.Connection, values: Sequence[tuple[Value, ...]]
    ) -> None:
        """Raise Violation when a child still refers to these values and no parent has them."""
        if _find_orphan(connection, self, self.columns, values):
            raise Violation(
                f"table {self.child.name!r}: column {self._listed} of other rows still refers to a"
                f" row of {self.parent.name!r} that is deleted or changed"
            )

    @property
    def _listed(self) -> str:
        return ", ".join(repr(column.name) for column in self.columns)


def references(tables: Sequence[Table]) -> list[Reference]:
    """The foreign keys that are held among these tables."""
    by_name = {ascii_lower(table.name): table for table in tables}
    return [reference for table in tables for reference in _held(table, by_name)]


def _held(child: Table, by_name: Mapping[str, Table]) -> Iterator[Reference]:
    for foreign_key in child.foreign_keys:
        parent = by_name.get(ascii_lower(foreign_key.parent))
        if parent is not None and _has_unique(parent, foreign_key):
            columns = _columns(child, foreign_key.columns)
            referred = _columns(parent, foreign_key.parent_columns)
            if list(map(_type, columns)) == list(map(_type, referred)):
                yield Reference(child, parent, columns, referred)


def _has_unique(parent: Table, foreign_key: ForeignKey) -> bool:
    wanted = sorted(map(ascii_lower, foreign_key.parent_columns))
    unique: list[Iterable[str]] = [index.columns for index in parent.indexes if index.unique]
    unique.append(column.name for column in parent.key)
    return any(sorted(map(ascii_lower, columns)) == wanted for columns in unique)


def _columns(table: Table, names: Iterable[str]) -> tuple[Column, ...]:
    return tuple(column for name in names if (column := table.column(name)) is not None)


def _type(column: Column) -> str:
    """What must be equal on both sides: the plain type, where none is text."""
    kind = plain_type(column.type)
    return "text" if kind == "any" else kind


def _find_orphan(
    connection: sqlite3.Connection,
    reference: Reference,
    columns: Sequence[Column],
    rows: Sequence[tuple[Value, ...]],
) -> bool:
    """Whether a child that has one of these `rows` in these `columns` refers to no parent."""
    given = ", ".join(_name("c", column) for column in columns)
    # The storage class too, as documents compare values: only so are the parents that `=` would
    # find for a child the ones whose children are looked for when they go.
    matches = " AND ".join(
        f"{_name('p', theirs)} = {_name('c', own)}"
        f" AND typeof({_name('p', theirs)}) = typeof({_name('c', own)})"
        for own, theirs in zip(reference.columns, reference.referred, strict=True)
    )
    refers = " AND ".join(f"{_name('c', own)} IS NOT NULL" for own in reference.columns)
    for values, parameters in in_batches(rows):
        # VALUES within a SELECT, as only a plain SELECT is looked up by an index.
        found = connection.execute(
            f"SELECT 1 FROM {quoted(reference.child.name)} AS c"
            f" WHERE ({given}) IN (SELECT * FROM ({values})) AND {refers} AND NOT EXISTS ("
            f"SELECT 1 FROM {quoted(reference.parent.name)} AS p WHERE {matches}) LIMIT 1",
            parameters,
        ).fetchone()
        if found:
            return True
    return False


def _name(alias: str, column: Column) -> str:
    return f"{alias}.{quoted(column.name)}"
