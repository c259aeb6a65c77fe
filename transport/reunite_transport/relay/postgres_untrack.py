"""Letting go of tables: triggers and bookkeeping leave a Postgres, the app's tables stay.

A table that leaves the realm keeps its number in the registry, so that no other gets it: clients
that have it may still push to it, and are refused. When all leave, nothing of a relay remains.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import asyncpg

from reunite.errors import TableError
from reunite.schema import ascii_lower, quoted
from reunite.sqlalchemy_types import DOMAIN_SCHEMA
from reunite_transport.relay.postgres_bookkeeping import Connection, OwnTables
from reunite_transport.relay.postgres_capture import drop_function, drop_triggers
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.postgres_registry import read_registry
from reunite_transport.relay.store import StoreError

# For a relay's commit under way, and for whoever uses the tables.
LOCK_WAIT_MS: Final = 5_000


async def untrack(url: str, names: Sequence[str] | None, *, schema: str = "public") -> list[str]:
    """Let go of tables by name, or (None) of all and of everything that a relay made in the schema;
    returns their names. Relays should not run meanwhile. Raises TableError for a table that is not
    tracked, StoreError where there is nothing of a relay, Busy when a table is in use for long."""
    with translated():
        connection: Connection = await asyncpg.connect(url)
        try:
            own = OwnTables(schema)
            async with connection.transaction(isolation="read_committed"):
                await connection.execute("SET TRANSACTION READ WRITE")
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
                await connection.execute("SET LOCAL client_min_messages = warning")
                if await connection.fetchval("SELECT to_regclass($1)", own.meta) is None:
                    raise StoreError(
                        f"schema {schema!r} of this database has no tables of a relay; check the"
                        " URL"
                    )
                await _require_ownership(connection, schema)
                await connection.execute(f"SELECT FROM {own.head} FOR UPDATE")
                gone = await _let_go(connection, own, names)
            if names is None:
                await _drop_domains(connection)
        finally:
            await connection.close()
    return gone


async def _require_ownership(connection: Connection, schema: str) -> None:
    """Triggers can be put on a table by whoever has the right to, and taken away by its owner."""
    owner: str | None = await connection.fetchval(
        "SELECT pg_catalog.pg_get_userbyid(c.relowner) FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE') AND ("
        "c.relname = '_reunite_meta' OR EXISTS (SELECT FROM pg_catalog.pg_trigger AS t"
        " WHERE t.tgrelid = c.oid AND starts_with(t.tgname, '_reunite_'))) LIMIT 1",
        schema,
    )
    if owner is not None:
        raise StoreError(
            "only the owners of the tables may let them go, and this role may not act as"
            f" {owner!r}; untrack as a superuser, or as a role that is a member of them"
        )


async def _let_go(connection: Connection, own: OwnTables, names: Sequence[str] | None) -> list[str]:
    known = await read_registry(connection, own)
    by_name = {ascii_lower(entry.table.name): entry.table for entry in known}
    for name in names or ():
        if ascii_lower(name) not in by_name:
            raise TableError(name, "is not tracked; check the name, or pass --all")
    wanted = by_name if names is None else {ascii_lower(name) for name in names}
    tables = [table for folded, table in by_name.items() if folded in wanted]
    await drop_triggers(connection, own, tables)
    ids = [table.id for table in tables]
    if names is None:
        await drop_function(connection, own)
        for table in (
            *(own.meta, own.head, own.tables, own.documents, own.commits, own.replicas),
            *(own.changesets, own.history, own.captured),
        ):
            await connection.execute(f"DROP TABLE IF EXISTS {table}")
    else:
        for table in (own.documents, own.history, own.captured):
            await connection.execute(f"DELETE FROM {table} WHERE tbl = ANY ($1::integer[])", ids)
        await connection.execute(
            f"UPDATE {own.tables} SET description = '{{}}' WHERE id = ANY ($1::integer[])", ids
        )
        await connection.execute(f"UPDATE {own.head} SET registry = registry + 1")
    return [table.name for table in tables]


async def _drop_domains(connection: Connection) -> None:
    """The domains of merging columns, where no column of any realm is of one."""
    domains = await connection.fetch(
        "SELECT t.typname FROM pg_catalog.pg_type AS t"
        " JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace"
        " WHERE n.nspname = $1 AND t.typtype = 'd'",
        DOMAIN_SCHEMA,
    )
    with suppress(asyncpg.DependentObjectsStillExistError, asyncpg.InsufficientPrivilegeError):
        async with connection.transaction():
            for row in domains:
                await connection.execute(f"DROP DOMAIN {DOMAIN_SCHEMA}.{quoted(row['typname'])}")
            if domains:
                await connection.execute(f"DROP SCHEMA {DOMAIN_SCHEMA}")
