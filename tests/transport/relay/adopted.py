"""Tables that were in Postgres before a relay came: described, written and read back."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import asyncpg

from reunite.cells.register import Value
from reunite.document import EMPTY, Document, merge
from reunite.schema import Table, quoted
from reunite_transport.relay.postgres_columns import (
    ColumnSql,
    any_session_text,
    read_column_sql,
    value_of,
)
from reunite_transport.relay.postgres_reflect import reflect
from reunite_transport.relay.postgres_rows import RowWriter
from reunite_transport.relay.store import RowChange, RowId
from tests.contracts.pushes import A, at, deleted, edited, inserted, row

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Key: TypeAlias = Value | tuple[Value, ...]
# As the relay sets them for each commit.
SETTINGS = {"TimeZone": "UTC", "DateStyle": "ISO, YMD", "search_path": "pg_catalog"}
OTHER_SETTINGS = {
    "TimeZone": "Asia/Kolkata",
    "DateStyle": "German",
    "bytea_output": "escape",
    "search_path": "pg_catalog",
}


@dataclass(frozen=True)
class Adopted:
    """Tables of one schema with what it takes to write them, by name."""

    schema: str
    tables: Mapping[str, Table]
    real_types: Mapping[int, Mapping[str, ColumnSql]]
    writer: RowWriter

    def sql_of(self, table: str) -> Mapping[str, ColumnSql]:
        """The special columns of a table."""
        return self.real_types.get(self.tables[table].id, {})


@asynccontextmanager
async def connected(url: str, settings: Mapping[str, str] = SETTINGS) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(url, server_settings=dict(settings))
    try:
        yield connection
    finally:
        await connection.close()


async def adopt(connection: Connection, *names: str, schema: str = "public") -> Adopted:
    """Describe the tables, parents first, and number them from 1."""
    reflected = await reflect(connection, schema, names)
    tables = [replace(table, id=place) for place, table in enumerate(reflected.tables, 1)]
    real_types, present = await read_column_sql(connection, schema, tables)
    writer = RowWriter(schema, tables, real_types, present)
    return Adopted(schema, {table.name: table for table in tables}, real_types, writer)


class Rows:
    """Rows of adopted tables and their documents, as a relay has them. Each write answers with what
    Postgres made different, by column name."""

    def __init__(self, connection: Connection, adopted: Adopted) -> None:
        self._connection = connection
        self._adopted = adopted
        self._documents: dict[RowId, Document] = {}
        self._now = 1_000

    async def insert(self, table: str, key: Key, values: Mapping[str, Value]) -> dict[str, Value]:
        """Write a new row."""
        return await self._write(table, key, inserted, values)

    async def update(self, table: str, key: Key, values: Mapping[str, Value]) -> dict[str, Value]:
        """Change some cells of a row."""
        return await self._write(table, key, edited, values)

    async def delete(self, table: str, key: Key) -> None:
        """Delete a row."""
        await self._write(table, key, lambda now, _: deleted(now), {})

    async def _write(
        self,
        table: str,
        key: Key,
        make: Callable[[bytes, Mapping[int, Value]], Document],
        values: Mapping[str, Value],
    ) -> dict[str, Value]:
        described = self._adopted.tables[table]
        id_by_name = {column.name: column.id for column in described.columns}
        self._now += 1
        delta = make(at(self._now, A), {id_by_name[name]: v for name, v in values.items()})
        changed = row(key, described.id)
        before = self._documents.get(changed, EMPTY)
        change = RowChange(changed, before, merge(before, delta))
        async with self._connection.transaction():
            made = await self._adopted.writer.write(self._connection, [change])
        self._documents[changed] = change.after
        assert made.keys() <= {changed}
        name_by_id = {column.id: column.name for column in described.columns}
        return {name_by_id[column]: value for column, value in made.get(changed, {}).items()}


async def as_text(connection: Connection, adopted: Adopted, table: str) -> list[dict[str, Value]]:
    """All rows, each column read by its own expression."""
    described = adopted.tables[table]
    special = adopted.sql_of(table)
    read = [
        special[column.name].text(quoted(column.name))
        if column.name in special
        else f"{quoted(column.name)}::text"
        for column in described.columns
    ]
    return await _rows(connection, adopted, table, read)


async def as_other(connection: Connection, adopted: Adopted, table: str) -> list[dict[str, Value]]:
    """All rows, each column read as in a session of other settings."""
    special = adopted.sql_of(table)
    read = [
        any_session_text(f"t.{quoted(column.name)}", column, special.get(column.name))
        for column in adopted.tables[table].columns
    ]
    return await _rows(connection, adopted, table, read)


async def _rows(
    connection: Connection, adopted: Adopted, table: str, read: Sequence[str]
) -> list[dict[str, Value]]:
    described, special = adopted.tables[table], adopted.sql_of(table)
    keys = ", ".join(quoted(column.name) for column in described.key)
    records = await connection.fetch(
        f"SELECT {', '.join(read)} FROM {quoted(adopted.schema)}.{quoted(table)} AS t"
        f" ORDER BY {keys}"
    )
    return [
        {
            column.name: value_of(text, column, special.get(column.name))
            for column, text in zip(described.columns, record, strict=True)
        }
        for record in records
    ]
