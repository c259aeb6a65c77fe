"""The domains of columns that merge: one schema of them for all realms of a database.

A relay makes them when it opens a realm, where its role may; a backend can then declare columns of
them as well. Where it may not, nothing is said until a column needs one: then the table is refused
with the statements that an administrator has to run. A realm may live in the same schema.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from reunite.errors import TableError
from reunite.schema import Column, Table
from reunite.sqlalchemy_types import DOMAIN_SCHEMA
from reunite.types import MERGING
from reunite_transport.relay.postgres_bookkeeping import Connection
from reunite_transport.relay.postgres_schema import cast_type, domain_type

_KINDS: Final = tuple(sorted(MERGING))
_NAMES: Final = tuple(domain_type(kind).rpartition(".")[2] for kind in _KINDS)

# By the catalogs alone, as names in a schema that one may not use cannot be looked up otherwise.
_FOUND: Final = """
SELECT wanted.kind, t.oid IS NOT NULL AS taken,
    t.typtype = 'd' AND t.typbasetype = wanted.base::regtype AS there
FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (kind, name, base)
LEFT JOIN (
    SELECT p.oid, p.typname, p.typtype, p.typbasetype FROM pg_catalog.pg_type AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid = p.typnamespace WHERE n.nspname = $4
) AS t ON t.typname = wanted.name
"""
_RIGHTS: Final = """
SELECT n.oid IS NOT NULL AS made, pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use,
    CASE WHEN n.oid IS NULL
        THEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
        ELSE pg_catalog.has_schema_privilege(n.oid, 'CREATE')
    END AS may_create,
    pg_catalog.quote_ident(current_user) AS role
FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = $1
"""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a database lacks. `missing` are the kinds without a domain, `taken` those of them whose
    name something else has, `statements` what would make the rest; `may_make` says whether this
    role can run them, `may_use` whether it can name what is there."""

    missing: Set[str]
    taken: Set[str]
    statements: tuple[str, ...]
    may_make: bool
    may_use: bool


async def make_domains(connection: Connection) -> None:
    """Make what is missing and may be made, in a transaction of the caller's that sees what others
    commit (READ COMMITTED). Two relays may do this at once: the second waits for the first."""
    found = await _look(connection)
    if not (found.statements and found.may_make):
        return
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('reunite domains', 0))")
    found = await _look(connection)
    if found.may_make:
        for statement in found.statements:
            await connection.execute(statement)


async def require_domains(connection: Connection, columns: Sequence[tuple[Table, Column]]) -> None:
    """Make sure that these merging columns can be made. Raises TableError, which says what an
    administrator has to do, where a domain is missing and this role cannot make it."""
    await make_domains(connection)
    found = await _look(connection)
    for table, column in columns:
        said = f"column {column.name!r} merges as {column.type}"
        domain = domain_type(column.type)
        if column.type in found.taken:
            raise TableError(
                table.name,
                f"{said}, and {domain} in the relay's database is something else than a domain over"
                f" {cast_type(column.type).lower()}; rename that, or keep the realm in a database"
                " of its own",
            )
        if column.type in found.missing or not found.may_use:
            raise TableError(
                table.name,
                f"{said}, and the relay may not make the type {domain} in its database; let an"
                f" administrator run there: {'; '.join(found.statements)};",
            )


async def _look(connection: Connection) -> _Found:
    bases = list(map(cast_type, _KINDS))
    domains = await connection.fetch(_FOUND, _KINDS, _NAMES, bases, DOMAIN_SCHEMA)
    schema = await connection.fetchrow(_RIGHTS, DOMAIN_SCHEMA)
    assert schema is not None, "a query without a table has one row"
    missing = {row["kind"] for row in domains if not row["there"]}
    taken = {row["kind"] for row in domains if row["taken"]} & missing
    statements = []
    if not schema["made"]:
        # It holds types alone, and every role that writes such a column may have to name them.
        statements.append(f"CREATE SCHEMA {DOMAIN_SCHEMA}")
        statements.append(f"GRANT USAGE ON SCHEMA {DOMAIN_SCHEMA} TO PUBLIC")
    elif not schema["may_use"]:
        statements.append(f"GRANT USAGE ON SCHEMA {DOMAIN_SCHEMA} TO {schema['role']}")
    statements += [
        f"CREATE DOMAIN {domain_type(kind)} AS {cast_type(kind).lower()}"
        for kind in _KINDS
        if kind in missing - taken
    ]
    may_use = not schema["made"] or schema["may_use"]
    return _Found(missing, taken, tuple(statements), may_use and schema["may_create"], may_use)
