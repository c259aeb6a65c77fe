"""Writes rows of the app's tables from their documents: batched, checked, with what came back.

Updates come first, then deletes (children before parents), then inserts (parents first): a child
that leaves a parent has left when the parent goes, so that no foreign key action of Postgres
changes a row behind the documents. Constraints are deferred until all is written.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Final, TypeAlias

from asyncpg import Record

from reunite.cells.register import Value
from reunite.keys import unpack_key
from reunite.schema import Column, Table, ascii_lower
from reunite.types import fitting_type
from reunite_transport.relay.postgres_bookkeeping import Connection
from reunite_transport.relay.postgres_capture import Decoders
from reunite_transport.relay.postgres_columns import ColumnSql, value_of
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.postgres_keys import key_texts
from reunite_transport.relay.postgres_row_sql import (
    Shape,
    delete_sql,
    hold_sql,
    insert_sql,
    lock_sql,
    referring_sql,
    shape_of,
    there_sql,
    update_sql,
)
from reunite_transport.relay.postgres_schema import enforceable_keys, text_function
from reunite_transport.relay.postgres_sequences import advance
from reunite_transport.relay.store import Busy, RowChange, RowId, Violation

_CHANGING_ACTIONS: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
# Sets of changed columns can be many where tables are wide; their statements can be made again.
_UPDATES_MAX: Final = 1_000

# Tables whose rows a trigger may change while they are updated (tgtype: 1 row, 2 before, 16
# update). Asked each time, as anyone may add one.
_REWRITTEN: Final = """
SELECT DISTINCT c.relname
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 19 = 19
"""

_RowsByTable: TypeAlias = dict[int, list[RowChange]]
_Made: TypeAlias = dict[RowId, dict[int, Value]]
_UpdateKey: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]


class RowWriter:
    """Writes to the tables of one version of the registry."""

    def __init__(
        self,
        schema: str,
        tables: Sequence[Table],
        real_types: Mapping[int, Mapping[str, ColumnSql]] | None = None,
        names: Mapping[str, Set[str]] | None = None,
        sequences: Mapping[int, str] | None = None,
    ) -> None:
        """`tables` stand parents first. `real_types` holds the SQL of columns of other types than
        a relay makes, by table id and column name; `names` are the columns that the tables really
        have, by table; `sequences` are those behind keys (see `postgres_sequences`)."""
        self.tables = tuple(tables)
        self._schema = schema
        self._sequences = sequences or {}
        special = real_types or {}
        self.decoders = Decoders(self.tables, special, names or {})
        self._shapes = {
            table.id: shape_of(schema, table, special.get(table.id, {})) for table in tables
        }
        self._inserts = {table: insert_sql(shape) for table, shape in self._shapes.items()}
        self._deletes = {table: delete_sql(shape) for table, shape in self._shapes.items()}
        self._updates: dict[_UpdateKey, str] = {}
        self._children = _changing_children(self.tables, self._shapes)

    async def hold(
        self, connection: Connection, rows: Sequence[RowId], *, patiently: bool
    ) -> set[RowId]:
        """Lock rows; see `StoreTransaction.hold`. The caller holds a savepoint."""
        rows_by_table: dict[int, list[RowId]] = {}
        for row in rows:
            rows_by_table.setdefault(row.table, []).append(row)
        held: set[RowId] = set()
        for table, some in rows_by_table.items():
            shape = self._shapes[table]
            with translated(shape.table.name):
                found = await connection.fetch(
                    hold_sql(shape, patiently=patiently), *key_texts(shape, some)
                )
            held.update(some[place - 1] for (place,) in found)
        return held

    async def write(self, connection: Connection, changes: Sequence[RowChange]) -> _Made:
        """Write the rows; see `StoreTransaction.write_rows`. The caller holds a savepoint."""
        inserts, updates, deletes = _sorted_out(changes)
        made: _Made = {}
        with translated():
            await connection.execute("SET CONSTRAINTS ALL DEFERRED")
        rewritten = await self._rewritten(connection) if updates else frozenset[str]()
        for table, rows in updates.items():
            await self._update(connection, self._shapes[table], rows, rewritten, made)
        for table in reversed(self._shapes):
            if table in deletes:
                await self._delete(connection, self._shapes[table], deletes, made)
        for table in self._shapes:
            if table in inserts:
                await self._insert(connection, self._shapes[table], inserts[table], made)
        with translated():
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        return made

    async def _rewritten(self, connection: Connection) -> frozenset[str]:
        with translated():
            rows = await connection.fetch(_REWRITTEN, self._schema)
        return frozenset(row["relname"] for row in rows)

    async def _update(
        self,
        connection: Connection,
        shape: Shape,
        rows: Sequence[RowChange],
        rewritten: frozenset[str],
        made: _Made,
    ) -> None:
        rows_by_changed: dict[tuple[int, ...], list[RowChange]] = {}
        for change in rows:
            changed = tuple(shape.columns.changed(change.before, change.after))
            if changed:
                rows_by_changed.setdefault(changed, []).append(change)
        everything = tuple(range(len(shape.cells)))
        for changed, group in rows_by_changed.items():
            compared = everything if shape.table.name in rewritten else changed
            sql = self._update_statement(shape, changed, compared)
            found = await _run(connection, sql, shape, group, compared)
            if found[0]["written"] != len(group):
                if await _there(connection, shape, group) == len(group):
                    raise _kept_out(shape)
                raise Busy(f"table {shape.table.name!r}: a row to update is not there")
            _note(found, shape, group, [shape.cells[place] for place in compared], made)

    async def _delete(
        self, connection: Connection, shape: Shape, deletes: _RowsByTable, made: _Made
    ) -> None:
        rows = deletes[shape.table.id]
        children = self._children.get(shape.table.id, ())
        if children:
            # Waits for a backend's open insert of a child, so that the look below sees it.
            await _run(connection, lock_sql(shape), shape, rows, ())
        for child, sql in children:
            going = key_texts(child, _rows(deletes.get(child.table.id, ())))
            with translated(child.table.name):
                referring = await connection.fetchval(sql, *key_texts(shape, _rows(rows)), *going)
            if referring:
                raise Violation(
                    f"table {child.table.name!r}: rows still refer to a deleted row of"
                    f" {shape.table.name!r}"
                )
        for (place,) in await _run(connection, self._deletes[shape.table.id], shape, rows, ()):
            made[rows[place - 1].row] = {}

    async def _insert(
        self, connection: Connection, shape: Shape, rows: Sequence[RowChange], made: _Made
    ) -> None:
        places = range(len(shape.cells))
        found = await _run(connection, self._inserts[shape.table.id], shape, rows, places)
        counts, name = found[0], shape.table.name
        if counts["misspelt"]:
            raise Violation(f"table {name!r}: a key is not written as Postgres writes it")
        if counts["written"] != len(rows):
            if await _there(connection, shape, rows) < len(rows):
                raise _kept_out(shape)
            raise Busy(f"table {name!r}: a row to insert is already there")
        if counts["matched"] != len(rows):
            raise Violation(f"table {name!r}: a trigger changes the primary key")
        _note(found, shape, rows, shape.cells, made)
        sequence = self._sequences.get(shape.table.id)
        if sequence is not None:
            keys = [key for row in rows for key in unpack_key(row.row.key) if isinstance(key, int)]
            with translated(name):
                await advance(connection, sequence, keys)

    def _update_statement(
        self, shape: Shape, changed: tuple[int, ...], compared: tuple[int, ...]
    ) -> str:
        identity = (shape.table.id, changed, compared)
        found = self._updates.get(identity)
        if found is None:
            if len(self._updates) >= _UPDATES_MAX:
                self._updates.clear()
            found = self._updates[identity] = update_sql(shape, changed, compared)
        return found


def _changing_children(
    tables: Sequence[Table], shapes: Mapping[int, Shape]
) -> dict[int, list[tuple[Shape, str]]]:
    """For each parent: the children whose rows Postgres would change with it, and the question
    whether there are such rows."""
    by_name = {ascii_lower(table.name): table for table in tables}
    children: dict[int, list[tuple[Shape, str]]] = {}
    for table in tables:
        for foreign_key, parent in enforceable_keys(table, by_name):
            if foreign_key.on_delete in _CHANGING_ACTIONS:
                pairs = zip(foreign_key.columns, foreign_key.parent_columns, strict=True)
                sides = [(_exact(table, own), _exact(parent, theirs)) for own, theirs in pairs]
                child = shapes[table.id]
                sql = referring_sql(shapes[parent.id], child, sides)
                children.setdefault(parent.id, []).append((child, sql))
    return children


def _sorted_out(
    changes: Sequence[RowChange],
) -> tuple[_RowsByTable, _RowsByTable, _RowsByTable]:
    inserts: _RowsByTable = {}
    updates: _RowsByTable = {}
    deletes: _RowsByTable = {}
    for change in changes:
        was, is_now = change.before.alive, change.after.alive
        if was or is_now:
            kind = (updates if is_now else deletes) if was else inserts
            kind.setdefault(change.row.table, []).append(change)
    return inserts, updates, deletes


def _rows(changes: Sequence[RowChange]) -> list[RowId]:
    return [change.row for change in changes]


async def _there(connection: Connection, shape: Shape, rows: Sequence[RowChange]) -> int:
    (found,) = await _run(connection, there_sql(shape), shape, rows, ())
    return int(found["count"])


def _kept_out(shape: Shape) -> Violation:
    name = shape.table.name
    return Violation(f"table {name!r}: a trigger keeps a row from being written", table=name)


async def _run(
    connection: Connection,
    sql: str,
    shape: Shape,
    rows: Sequence[RowChange],
    places: Sequence[int],
) -> list[Record]:
    texts = [*key_texts(shape, _rows(rows)), *_cell_texts(shape, rows, places)]
    try:
        with translated(shape.table.name):
            found: list[Record] = await connection.fetch(sql, *texts)
            return found
    except Violation as error:
        unfit = _unfit_column(shape, rows, places)
        if unfit is None:
            raise
        raise Violation(
            f"{error} (column {unfit!r})", table=error.table, constraint=error.constraint
        ) from error


def _cell_texts(
    shape: Shape, rows: Sequence[RowChange], places: Sequence[int]
) -> Iterator[list[str | None]]:
    documents = [shape.columns.values_at(change.after, places) for change in rows]
    for at, place in enumerate(places):
        column = shape.cells[place]
        text = text_function(column.type)
        try:
            yield [text(values[at]) for values in documents]
        except ValueError as error:
            raise Violation(
                f"table {shape.table.name!r}: column {column.name!r}: {error}"
            ) from error


def _note(
    found: Sequence[Record],
    shape: Shape,
    rows: Sequence[RowChange],
    columns: Sequence[Column],
    made: _Made,
) -> None:
    """Collect what Postgres made different; the first record holds the counts."""
    for record in found[1:]:
        values = made.setdefault(rows[record["place"] - 1].row, {})
        for at, column in enumerate(columns):
            difference = record[f"d{at}"]
            if difference is not None:
                special = shape.special.get(column.name)
                values[column.id] = value_of(difference[0], column, special)


def _unfit_column(shape: Shape, rows: Sequence[RowChange], places: Sequence[int]) -> str | None:
    """The first column that holds a value its type cannot hold, to name it."""
    documents = [shape.columns.values(change.after) for change in rows]
    for place in places:
        column = shape.cells[place]
        values = [found[place] for found in documents]
        kind = column.type.partition("(")[0]
        has_nul = any(isinstance(value, str) and "\0" in value for value in values)
        if has_nul or not _all_fit(kind, values):
            return column.name
    return None


def _all_fit(kind: str, values: Sequence[Value]) -> bool:
    try:
        return fitting_type(kind, values) == kind
    except RecursionError:  # JSON as deep as no parser goes
        return False


def _exact(table: Table, name: str) -> str:
    column = table.column(name)
    assert column is not None, "descriptions are checked where they arrive"
    return column.name
