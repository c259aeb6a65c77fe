"""Tables that are in Postgres already: taking them into the realm, and following what migrations of
any tool do to tables that are in it.

A table is taken in as it stands: its description is registered, triggers capture what is written
from then on, and its rows are noted as captured ones that have no time, in the same transaction. So
the next commit folds them, below any edit. A column that was added since is noticed when the
catalogs are looked at again, and its values are noted likewise, where they are not its default.

Other changes of a table in the realm (a column or table that went, or got another name or type) are
not followed: they are told by the table's name, and what they concern waits.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from reunite.errors import TableError
from reunite.schema import Column, Table, ascii_lower, quoted
from reunite.types import plain_type
from reunite_transport.relay.postgres_bookkeeping import Connection, OwnTables, Reader
from reunite_transport.relay.postgres_capture import (
    install_function,
    install_triggers,
    literal,
    uncaptured,
)
from reunite_transport.relay.postgres_catalog import (
    RealColumn,
    Relation,
    read_columns,
    read_relations,
)
from reunite_transport.relay.postgres_columns import is_of
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.postgres_reflect import reflect
from reunite_transport.relay.postgres_registry import highest_id, read_registry, register
from reunite_transport.relay.registry import Growth, Registered, grow

_log = logging.getLogger(__name__)

# What of the catalogs a relay looks at: another value of it says that some table was altered.
_MARK: Final = """
SELECT md5(coalesce(string_agg(concat_ws(' ',
    c.oid, c.relname, c.relkind, c.relacl, c.relrowsecurity, a.attnum, a.attname, a.atttypid,
    a.atttypmod, a.attnotnull, a.attgenerated, a.attidentity
), ',' ORDER BY c.oid, a.attnum), '')) || (
    SELECT count(*) FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c
    ON c.oid = t.tgrelid WHERE c.relnamespace = n.oid AND starts_with(t.tgname, '_reunite_')
    AND t.tgenabled IN ('O', 'A')
)
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relkind = 'r'
    AND NOT starts_with(c.relname, '_reunite_')
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 GROUP BY n.oid
"""


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of the realm: all its tables, whether it grew, why tables are not in order, and
    tables that were without triggers."""

    registered: tuple[Registered, ...]
    grew: bool
    troubles: Mapping[str, str]
    uncaptured: tuple[str, ...]


async def capture_all(connection: Connection, schema: str, lock_wait_ms: int) -> None:
    """Make sure that what backends write to the realm's tables is captured."""
    own = OwnTables(schema)
    with translated():
        async with connection.transaction(isolation="read_committed"):
            await connection.execute("SET TRANSACTION READ WRITE")
            await connection.execute(f"SET LOCAL lock_timeout = {lock_wait_ms}")
            await connection.execute("SET LOCAL client_min_messages = warning")
            await connection.execute(f"LOCK TABLE {own.meta} IN EXCLUSIVE MODE")
            await install_function(connection, own)
            relations = await read_relations(connection, schema)
            # Of others `follow` tells.
            able = {relation.name for relation in relations if relation.grant is None}
            tables = [entry.table for entry in await read_registry(connection, own)]
            tables = [table for table in tables if table.name in able]
            missing = await uncaptured(connection, own, tables)
            for table in missing:
                log_uncaptured(table.name)
            await install_triggers(connection, own, missing)


def log_uncaptured(table: str) -> None:
    """Say that a table has had no triggers for a while."""
    _log.warning(
        "table %r was without our triggers: what backends wrote to it meanwhile is not known to"
        " clients",
        table,
    )


async def catalog_mark(reader: Reader, schema: str) -> str:
    """Another text after every migration of the schema's tables."""
    found: str | None = await reader.fetchval(_MARK, schema)
    return found or ""


async def take_in(
    connection: Connection, own: OwnTables, names: Sequence[str] | None
) -> tuple[Growth, tuple[TableError, ...]]:
    """Take tables of these names, or (None) all that can be, into the realm, under the head's lock.
    Those that are in it stay as they are. Returns what was added, and why others were not. Raises
    TableError for a named table that cannot be."""
    known = await read_registry(connection, own)
    tracked = {ascii_lower(entry.table.name) for entry in known}
    wanted = None if names is None else [n for n in names if ascii_lower(n) not in tracked]
    if wanted is not None and not wanted:
        return Growth((), (), ()), ()
    reflected = await reflect(connection, own.schema, wanted, tracked=tracked)
    new = [table for table in reflected.tables if ascii_lower(table.name) not in tracked]
    growth = grow(known, new, highest_id=await highest_id(connection, own))
    await _add(connection, own, growth)
    refused = [error for error in reflected.refused if ascii_lower(error.table) not in tracked]
    return growth, tuple(refused)


async def follow(connection: Connection, own: OwnTables, *, track_new: bool) -> Followed:
    """Notice what migrations did, under the head's lock: columns that were added join the realm,
    and with `track_new` tables."""
    known = await read_registry(connection, own)
    relations = {each.name: each for each in await read_relations(connection, own.schema)}
    real: dict[str, dict[str, RealColumn]] = {entry.table.name: {} for entry in known}
    for column in await read_columns(connection, own.schema, real):
        real[column.table][column.name] = column
    troubles: dict[str, str] = {}
    described: list[Table] = []
    for entry in known:
        table = entry.table
        said = _trouble(table, real[table.name], relations.get(table.name))
        if said is not None:
            troubles[table.name] = said
            continue
        try:
            described += await _with_new_columns(connection, own, table, real[table.name])
        except TableError as error:
            troubles[table.name] = error.reason
    if track_new:
        tracked = {ascii_lower(entry.table.name) for entry in known}
        reflected = await reflect(connection, own.schema, None, tracked=tracked)
        described += [t for t in reflected.tables if ascii_lower(t.name) not in tracked]
    growth = grow(known, described, highest_id=await highest_id(connection, own))
    await _add(connection, own, growth)
    healthy = [entry.table for entry in known if entry.table.name not in troubles]
    missing = await uncaptured(connection, own, healthy)
    await install_triggers(connection, own, missing)
    by_id = {entry.table.id: entry for entry in (*known, *growth.registered)}
    return Followed(
        tuple(by_id.values()),
        bool(growth.registered),
        troubles,
        tuple(table.name for table in missing),
    )


async def _with_new_columns(
    connection: Connection, own: OwnTables, table: Table, real: Mapping[str, RealColumn]
) -> list[Table]:
    """The table with the columns that it has got, if there are any that can sync."""
    known = {ascii_lower(column.name) for column in table.columns}
    if all(ascii_lower(name) in known for name in real):
        return []
    (reflected,) = (await reflect(connection, own.schema, [table.name])).tables
    new = [column for column in reflected.columns if ascii_lower(column.name) not in known]
    return [replace(table, columns=(*table.columns, *new))] if new else []


def _trouble(table: Table, real: Mapping[str, RealColumn], relation: Relation | None) -> str | None:
    """Why a table of the realm cannot be written as it is registered; None when it can."""
    if relation is None or not real:
        return "is not in the database any more; bring it back, or untrack it"
    if relation.grant is not None:
        return (
            "may not be read, written and given triggers by the relay's role any more; let its"
            f" owner run {relation.grant}"
        )
    for column in table.columns:
        found = real.get(column.name)
        if found is None:
            return (
                f"column {column.name!r} is not there any more; bring it back (columns that go or"
                " get another name are not followed yet), or untrack the table"
            )
        if not is_of(column, found):
            return (
                f"column {column.name!r} is now of the type {found.type.said}, and clients have it"
                f" as {column.type}; change it back, or untrack the table"
            )
    return None


async def _add(connection: Connection, own: OwnTables, growth: Growth) -> None:
    """Register tables and columns that are there, and note the values that they have."""
    grown = {table.id: table for table, _ in growth.added}
    await install_triggers(connection, own, (*growth.created, *grown.values()))
    for table in growth.created:
        await connection.execute(
            f"INSERT INTO {own.captured} (tx, tbl, after, after_nulls)"
            f" SELECT pg_current_xact_id(), $1, row_to_json({_ROW}.*), {_nulls(table.columns)}"
            f" FROM {quoted(own.schema)}.{quoted(table.name)} AS {_ROW}",
            table.id,
        )
    for table in grown.values():
        columns = [column for each, column in growth.added if each.id == table.id]
        key = _fields(table.key)
        # A default may be younger than the column, or set aside by a backend: then NULL is a value.
        held = "true"
        if all(column.default is None for column in columns):
            held = f"num_nonnulls({', '.join(_named(c) for c in columns)}) > 0"
        await connection.execute(
            f"INSERT INTO {own.captured} (tx, tbl, before, after, after_nulls)"
            f" SELECT pg_current_xact_id(), $1, json_build_object({key}),"
            f" json_build_object({key}, {_fields(columns)}), {_nulls(columns)}"
            f" FROM {quoted(own.schema)}.{quoted(table.name)} AS {_ROW}"
            f" WHERE {held}",
            table.id,
        )
    await register(connection, own, growth)


# Followed by a dot: a column may have any name, this one, too.
_ROW: Final = '"_reunite_row"'


def _named(column: Column) -> str:
    return f"{_ROW}.{quoted(column.name)}"


def _fields(columns: Collection[Column]) -> str:
    return ", ".join(f"{literal(c.name)}, {_named(c)}" for c in columns)


def _nulls(columns: Collection[Column]) -> str:
    """The names of the columns that hold JSON's null, which is not SQL's."""
    cases = [
        f"CASE WHEN {_named(c)} IS NOT NULL AND json_typeof(to_json({_named(c)})) = 'null'"
        f" THEN {literal(c.name)} END"
        for c in columns
        if plain_type(c.type) == "json"
    ]
    if not cases:
        return "NULL::text[]"
    return f"nullif(array_remove(ARRAY[{', '.join(cases)}]::text[], NULL), '{{}}')"
