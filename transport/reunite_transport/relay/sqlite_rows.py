"""Writes rows of the app's tables from their documents: batched, checked, with what came back.

Deletes come first, then updates, then inserts, so that a unique value which a row gives up is free
for the next; rows that exchange such values are deleted and inserted again. Foreign keys are asked
about when all is written. Then the rows are read back: a column's affinity, or a trigger, may have
made something else of a value.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from reunite.cells.register import Value, same
from reunite.columns import Columns
from reunite.document import Document
from reunite.errors import FormatError
from reunite.keys import unpack_key
from reunite.schema import Column, Table, ascii_lower, quoted, through_affinity
from reunite_transport.relay.sqlite_bookkeeping import in_batches
from reunite_transport.relay.sqlite_errors import translated
from reunite_transport.relay.sqlite_references import Reference, references
from reunite_transport.relay.store import Busy, RowChange, RowId, Violation

# A unique value is taken; and such a value of the primary key, in its two kinds.
_UNIQUE: Final = sqlite3.SQLITE_CONSTRAINT_UNIQUE
_KEY_TAKEN: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
)

_Key: TypeAlias = tuple[Value, ...]
_Made: TypeAlias = dict[RowId, dict[int, Value]]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What writing a table needs of its description. `exact` are the classes of values that each
    key column keeps as they are."""

    table: Table
    name: str
    keys: tuple[Column, ...]
    exact: tuple[frozenset[type], ...]
    cells: tuple[Column, ...]
    columns: Columns
    insert: str
    delete: str


class _Row(NamedTuple):
    """A row to write: the cells at these places, which are all of them where it is new."""

    change: RowChange
    key: _Key
    places: tuple[int, ...]


class _Write(NamedTuple):
    """What to write of one table."""

    shape: _Shape
    inserts: list[_Row]
    updates: list[_Row]
    deletes: list[_Row]


class RowWriter:
    """Writes to the tables of one version of the registry."""

    def __init__(self, tables: Sequence[Table]) -> None:
        """`tables` stand parents first."""
        self.tables = tuple(tables)
        self._shapes = {table.id: _shape_of(table) for table in tables}
        self._references = references(self.tables)

    def write(self, connection: sqlite3.Connection, changes: Sequence[RowChange]) -> _Made:
        """Write the rows; see `StoreTransaction.write_rows`. The caller holds a savepoint."""
        writes = self._sorted_out(changes)
        for shape, _, _, deletes in writes.values():
            with translated(shape.table.name):
                connection.executemany(shape.delete, [row.key for row in deletes])
        for shape, _, updates, _ in writes.values():
            with translated(shape.table.name):
                _update(connection, shape, updates)
        for shape, inserts, _, _ in writes.values():
            with translated(shape.table.name):
                _insert(connection, shape, inserts)
        with translated():
            for reference in self._references:
                _check(connection, reference, writes)
            return _read_back(connection, writes.values())

    def _sorted_out(self, changes: Sequence[RowChange]) -> dict[int, _Write]:
        """What to do, by table."""
        writes: dict[int, _Write] = {}
        for change in changes:
            was, is_now = change.before.alive, change.after.alive
            if not (was or is_now):
                continue
            table = change.row.table
            write = writes.get(table)
            if write is None:
                write = writes[table] = _Write(self._shapes[table], [], [], [])
            shape = write.shape
            key = _key_of(shape, change.row)
            if not is_now:
                write.deletes.append(_Row(change, key, ()))
            elif not was:
                write.inserts.append(_Row(change, key, tuple(range(len(shape.cells)))))
            else:
                places = tuple(shape.columns.changed(change.before, change.after))
                if places:
                    write.updates.append(_Row(change, key, places))
        for shape, inserts, _, _ in writes.values():
            _check_keys(shape, inserts)
        return writes


def _shape_of(table: Table) -> _Shape:
    columns = (*table.key, *table.cells)
    name = quoted(table.name)
    names = ", ".join(quoted(column.name) for column in columns)
    return _Shape(
        table=table,
        name=name,
        keys=table.key,
        exact=tuple(_exact_classes(table, column) for column in table.key),
        cells=table.cells,
        columns=Columns(table.cells),
        insert=f"INSERT INTO {name} ({names}) VALUES ({', '.join('?' * len(columns))})",
        delete=f"DELETE FROM {name} WHERE {_is_key(table)}",
    )


def _exact_classes(table: Table, column: Column) -> frozenset[type]:
    if table.strict and column.type == "any":
        return frozenset({int, str, bytes})
    samples: list[Value] = [1, "1", b"1"]
    kept = through_affinity(column.declared, samples)
    return frozenset(type(a) for a, b in zip(samples, kept, strict=True) if same(a, b))


def _is_key(table: Table) -> str:
    return " AND ".join(f"{quoted(column.name)} = ?" for column in table.key)


def _key_of(shape: _Shape, row: RowId) -> _Key:
    try:
        key = unpack_key(row.key)
    except FormatError as error:
        raise Violation(f"table {shape.table.name!r}: a key does not fit: {error}") from error
    if len(key) != len(shape.keys):
        raise Violation(f"table {shape.table.name!r}: a key has too few or too many parts")
    return key


def _check_keys(shape: _Shape, rows: Sequence[_Row]) -> None:
    """Refuse a key that its column would keep as another: two documents would name one row."""
    for place, (column, exact) in enumerate(zip(shape.keys, shape.exact, strict=True)):
        doubtful = [row.key[place] for row in rows if type(row.key[place]) not in exact]
        if doubtful and not all(map(same, doubtful, through_affinity(column.declared, doubtful))):
            raise Violation(
                f"table {shape.table.name!r}: key column {column.name!r} holds a value of which"
                f" {column.declared} makes another; write that one"
            )


def _values(shape: _Shape, document: Document, places: Sequence[int]) -> list[Value]:
    return shape.columns.values_at(document, places)


def _insert(connection: sqlite3.Connection, shape: _Shape, rows: Sequence[_Row]) -> None:
    try:
        connection.executemany(
            shape.insert,
            [(*row.key, *_values(shape, row.change.after, row.places)) for row in rows],
        )
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode in _KEY_TAKEN:
            raise Busy(f"table {shape.table.name!r}: a row to insert is already there") from error
        raise


def _update(connection: sqlite3.Connection, shape: _Shape, rows: Sequence[_Row]) -> None:
    if not rows:
        return
    connection.execute("SAVEPOINT updates")
    try:
        for places, group in _by_places(rows).items():
            sets = ", ".join(f"{quoted(shape.cells[place].name)} = ?" for place in places)
            updated = connection.executemany(
                f"UPDATE {shape.name} SET {sets} WHERE {_is_key(shape.table)}",
                [(*_values(shape, row.change.after, places), *row.key) for row in group],
            )
            if updated.rowcount != len(group):
                raise Busy(f"table {shape.table.name!r}: a row to update is not there")
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != _UNIQUE:
            raise
        connection.execute("ROLLBACK TO updates")
        _exchange(connection, shape, rows)
    connection.execute("RELEASE updates")


def _exchange(connection: sqlite3.Connection, shape: _Shape, rows: Sequence[_Row]) -> None:
    """Update rows of which one may need what another gives up: SQLite asks after each row whether
    a value is unique, so all are taken out and put in again."""
    everything = tuple(range(len(shape.cells)))
    found = _read(connection, shape, rows, everything)
    again = []
    for row, values in zip(rows, found, strict=True):
        if values is None:
            raise Busy(f"table {shape.table.name!r}: a row to update is not there")
        whole = list(values)
        for place, value in zip(
            row.places, _values(shape, row.change.after, row.places), strict=True
        ):
            whole[place] = value
        again.append((*row.key, *whole))
    connection.executemany(shape.delete, [row.key for row in rows])
    connection.executemany(shape.insert, again)


def _check(
    connection: sqlite3.Connection, reference: Reference, writes: Mapping[int, _Write]
) -> None:
    """Raise Violation when what was written breaks a foreign key."""
    child = writes.get(reference.child.id)
    if child is not None:
        own = {place for place, c in enumerate(child.shape.cells) if c in reference.columns}
        moved = [row for row in child.updates if not own.isdisjoint(row.places)]
        keys = [row.key for row in (*child.inserts, *moved)]
        reference.check_children(connection, keys)
    parent = writes.get(reference.parent.id)
    if parent is not None:
        shape = parent.shape
        theirs = {place for place, c in enumerate(shape.cells) if c in reference.referred}
        gone = [row for row in parent.updates if not theirs.isdisjoint(row.places)]
        values = [_referred(shape, reference, row) for row in (*parent.deletes, *gone)]
        reference.check_parents(connection, values)


def _referred(shape: _Shape, reference: Reference, row: _Row) -> _Key:
    """What children of a row referred to before this write."""
    return tuple(
        row.key[column.key - 1]
        if column.key
        else _values(shape, row.change.before, [shape.cells.index(column)])[0]
        for column in reference.referred
    )


def _read_back(connection: sqlite3.Connection, writes: Iterable[_Write]) -> _Made:
    """What the table holds differently of what was written. A trigger may have changed any cell."""
    triggered = {
        ascii_lower(name)
        for (name,) in connection.execute(
            "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"
        )
    }
    made: _Made = {}
    for shape, inserts, updates, _ in writes:
        rows = [*inserts, *updates]
        if ascii_lower(shape.table.name) in triggered:
            everything = tuple(range(len(shape.cells)))
            rows = [row._replace(places=everything) for row in rows]
        for places, group in _by_places(rows).items():
            for row, held in zip(group, _read(connection, shape, group, places), strict=True):
                if held is None:
                    raise Violation(
                        f"table {shape.table.name!r}: a trigger changes the primary key, or removes"
                        " the row"
                    )
                written = _values(shape, row.change.after, places)
                different = {
                    shape.cells[place].id: value
                    for place, value, given in zip(places, held, written, strict=True)
                    if not (value is given or same(value, given))
                }
                if different:
                    made[row.change.row] = different
    return made


def _read(
    connection: sqlite3.Connection, shape: _Shape, rows: Sequence[_Row], places: Iterable[int]
) -> list[tuple[Value, ...] | None]:
    """The cells at these places of each row; None where the table has no such row."""
    names = "".join(f", t.{quoted(shape.cells[place].name)}" for place in places)
    # The first column of VALUES is the row's place in `rows`, its key follows.
    matches = " AND ".join(
        f"t.{quoted(column.name)} = given.column{at}" for at, column in enumerate(shape.keys, 2)
    )
    found: list[tuple[Value, ...] | None] = [None] * len(rows)
    for values, parameters in in_batches([(at, *row.key) for at, row in enumerate(rows)]):
        # CROSS: the given rows are looked up in the table, whatever its statistics say.
        for at, *cells in connection.execute(
            f"SELECT given.column1{names} FROM ({values}) AS given"
            f" CROSS JOIN {shape.name} AS t ON {matches}",
            parameters,
        ):
            found[at] = tuple(cells)
    return found


def _by_places(rows: Iterable[_Row]) -> dict[tuple[int, ...], list[_Row]]:
    groups: dict[tuple[int, ...], list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.places, []).append(row)
    return groups
