"""The schema registry on Postgres: reading it, and creating what `registry.grow` decided."""

import json
from collections.abc import Sequence
from dataclasses import replace

import asyncpg

from reunite.errors import TableError
from reunite.schema import Table, ascii_lower, from_wire, quoted, to_wire
from reunite.types import MERGING
from reunite_transport.relay.postgres_bookkeeping import Connection, OwnTables, Reader
from reunite_transport.relay.postgres_capture import install_triggers
from reunite_transport.relay.postgres_domains import require_domains
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.postgres_schema import (
    add_column_statement,
    create_statements,
    foreign_key_statements,
    holds_default,
)
from reunite_transport.relay.registry import Growth, Registered
from reunite_transport.relay.store import StoreError, Violation


async def read_registry(reader: Reader, own: OwnTables) -> list[Registered]:
    """The tables as they are registered, in order of id."""
    rows = await reader.fetch(
        f"SELECT id, columns_used, description FROM {own.tables} WHERE description <> '{{}}'"
        " ORDER BY id"
    )
    return [
        Registered(from_wire(json.loads(row["description"])), row["columns_used"]) for row in rows
    ]


async def highest_id(reader: Reader, own: OwnTables) -> int:
    """The highest table id that was ever given, also to a table that left."""
    found: int = await reader.fetchval(f"SELECT coalesce(max(id), 0) FROM {own.tables}")
    return found


async def create(
    connection: Connection, own: OwnTables, known: Sequence[Registered], growth: Growth
) -> None:
    """Create the new tables and columns and register them, under the head's lock.

    Raises TableError for a name that an unregistered relation has, for what Postgres cannot hold,
    and for a merging column whose domain cannot be made. Indexes and constraints over columns of
    tables that exist are not altered, but for foreign keys that waited for a table that is new.
    """
    await _refuse_taken(connection, own, growth.created)
    new = [(table, column) for table in growth.created for column in table.columns]
    merging = [(table, column) for table, column in (*new, *growth.added) if column.type in MERGING]
    if merging:
        await require_domains(connection, merging)
    for table in growth.created:
        await _define(connection, table, create_statements(own.schema, table))
    for table, column in growth.added:
        held = column if holds_default(column) else replace(column, notnull=False)
        await _define(connection, table, [add_column_statement(own.schema, table, held)])
    await _add_foreign_keys(connection, own, known, growth)
    grown = {table.id: table for table, _ in growth.added}
    await install_triggers(connection, own, (*growth.created, *grown.values()))
    await register(connection, own, growth)


async def register(connection: Connection, own: OwnTables, growth: Growth) -> None:
    """Write down what is new in the registry."""
    await connection.executemany(
        f"INSERT INTO {own.tables} (id, name, columns_used, description)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE"
        " SET columns_used = excluded.columns_used, description = excluded.description",
        [
            (entry.table.id, entry.table.name, entry.columns_used, _described(entry.table))
            for entry in growth.registered
        ],
    )


async def _refuse_taken(connection: Connection, own: OwnTables, created: Sequence[Table]) -> None:
    rows = await connection.fetch(
        "SELECT relname FROM pg_catalog.pg_class"
        " WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r','p','v','m','f','S')",
        quoted(own.schema),
    )
    taken = {ascii_lower(row["relname"]): row["relname"] for row in rows}
    for table in created:
        if ascii_lower(table.name) in taken:
            raise TableError(
                table.name,
                f"{taken[ascii_lower(table.name)]!r} is in the relay's database already and does"
                " not sync; rename one of them",
            )


async def _add_foreign_keys(
    connection: Connection, own: OwnTables, known: Sequence[Registered], growth: Growth
) -> None:
    """Those of the new tables, and those of older ones that waited for a new table."""
    created = {ascii_lower(table.name) for table in growth.created}
    by_id = {entry.table.id: entry.table for entry in (*known, *growth.registered)}
    parents = {ascii_lower(table.name): table for table in by_id.values()}
    for child in by_id.values():
        new = ascii_lower(child.name) in created
        waiting = {ascii_lower(f.parent) for f in child.foreign_keys} & created
        if not new and not waiting:
            continue
        for name, statements in foreign_key_statements(own.schema, child, parents, validated=new):
            held = not new and await connection.fetchval(
                "SELECT true FROM pg_catalog.pg_constraint"
                " WHERE connamespace = to_regnamespace($1) AND conname = $2",
                quoted(own.schema),
                name,
            )
            if not held:
                await _define(connection, child, statements)


def _described(table: Table) -> str:
    return json.dumps(to_wire(table), ensure_ascii=False)


async def _define(connection: Connection, table: Table, statements: Sequence[str]) -> None:
    try:
        with translated(table.name):
            for statement in statements:
                await connection.execute(statement)
    except Violation as error:
        raise TableError(table.name, f"Postgres cannot hold it: {error}") from error
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, asyncpg.SyntaxOrAccessError) and not isinstance(
            cause, asyncpg.InsufficientPrivilegeError
        ):
            raise TableError(table.name, f"Postgres cannot hold it: {cause.message}") from error
        raise
