"""The relay's own tables in a realm's schema: what each holds, and making them once.

All names start with `_reunite_`. Format 1 of these tables; a newer one is refused.
"""

import secrets
from typing import Final, TypeAlias

import asyncpg

from reunite.clock import RELAYS_FROM
from reunite.schema import quoted
from reunite_transport.messages import REALM_BYTES
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.store import StoreError

# Generic in their stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Reader: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)

FORMAT: Final = 1

# Scope of rows that no rule puts elsewhere; scopes come with a later format of the registry.
_MAIN_SCOPE: Final = 0

_TABLES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "meta",
        "one boolean PRIMARY KEY DEFAULT true CHECK (one), realm bytea NOT NULL,"
        " format integer NOT NULL",
        "Which realm this schema is, and the format of these tables. One row.",
    ),
    (
        "head",
        "one boolean PRIMARY KEY DEFAULT true CHECK (one), seq bigint NOT NULL,"
        " token bytea NOT NULL, registry bigint NOT NULL",
        "The last commit, and how often the registry has grown. One row; whoever commits locks it,"
        " so commits have one order.",
    ),
    (
        "tables",
        "id integer PRIMARY KEY, name text NOT NULL, columns_used integer NOT NULL,"
        " description jsonb NOT NULL",
        "The schema registry. columns_used is the highest column id ever given, so that none is"
        " given twice.",
    ),
    (
        "documents",
        "tbl integer NOT NULL, key bytea NOT NULL,"
        f" scope integer NOT NULL DEFAULT {_MAIN_SCOPE}, seq bigint NOT NULL,"
        " document bytea NOT NULL, PRIMARY KEY (tbl, key)",
        "The CRDT document of every row, the dead ones too, and the commit that changed it last.",
    ),
    (
        "commits",
        "seq bigint PRIMARY KEY, token bytea NOT NULL, at timestamptz NOT NULL,"
        " relay bigint NOT NULL",
        "Every commit. A client's cursor is a (seq, token): one that is not here belongs to"
        " another history, so this database was restored or wiped.",
    ),
    (
        "replicas",
        "replica bigint PRIMARY KEY, term bigint NOT NULL, last bigint NOT NULL,"
        " seen_at timestamptz NOT NULL",
        "Clients: the term of the newest session, which fences off older ones, and the number of"
        " the last accepted changeset.",
    ),
    (
        "changesets",
        "replica bigint NOT NULL, number bigint NOT NULL, nonce bytea NOT NULL,"
        " seq bigint NOT NULL, PRIMARY KEY (replica, number)",
        "Accepted changesets, so that a client that reconnects learns which of its own are in, and"
        " a copied file is told from its twin.",
    ),
)
# Of a later release of this format: made in schemas that lack it, too.
_HISTORY: Final = (
    "history",
    "tbl integer NOT NULL, key bytea NOT NULL, place bigint NOT NULL, seq bigint NOT NULL,"
    " replaced_by bytea NOT NULL, document bytea NOT NULL, PRIMARY KEY (tbl, key, place)",
    "What commits overwrote, the newest of each row: a document of the cells that gave way, the"
    " stamp of what took their place, and the commit. place counts within a row, a large document"
    " by its size, so that a row can end its history.",
)
_CAPTURED: Final = (
    "captured",
    "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tx xid8 NOT NULL, tbl integer NOT NULL,"
    " at timestamptz, before json, after json, before_nulls text[], after_nulls text[]",
    "What backends wrote to the app's tables and no commit has folded yet: the row before and"
    " after, in the order in which it was done; neither where a table was emptied. at is missing"
    " where a row was there before its table was tracked.",
)
_INDEXES: Final[tuple[tuple[str, str, str], ...]] = (
    # The feed reads in this order: pages of one commit can end anywhere.
    ("documents_feed", "documents", "seq, tbl, key"),
    # A load is named by the commit that its last page saw.
    ("commits_token", "commits", "token"),
    # A copied file pushes what the other has pushed, under another replica id.
    ("changesets_nonce", "changesets", "nonce"),
)


# What a role lacks to have tables in a schema; NULL where it may.
_GRANT: Final = """
SELECT pg_catalog.format(
    'GRANT %s ON SCHEMA %I TO %I', string_agg(p.name, ', ' ORDER BY p.name DESC), n.nspname,
    current_user
)
FROM pg_catalog.pg_namespace AS n CROSS JOIN unnest('{USAGE,CREATE}'::text[]) AS p (name)
WHERE n.nspname = $1 AND NOT pg_catalog.has_schema_privilege(n.oid, p.name)
GROUP BY n.oid, n.nspname
"""


class OwnTables:
    """The qualified names of the relay's own tables in one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.meta, self.head, self.tables, self.documents = map(
            self._qualified, ("meta", "head", "tables", "documents")
        )
        self.commits, self.replicas, self.changesets, self.history, self.captured = map(
            self._qualified, ("commits", "replicas", "changesets", "history", "captured")
        )

    def _qualified(self, name: str) -> str:
        return f"{quoted(self.schema)}.{quoted('_reunite_' + name)}"


async def bootstrap(connection: Connection, schema: str) -> bytes:
    """Make the tables where they are missing, and return the realm's identity. Two relays may do
    this at once: the second waits for the first."""
    own = OwnTables(schema)
    with translated():
        async with connection.transaction(isolation="read_committed"):
            await connection.execute("SET TRANSACTION READ WRITE")
            await connection.execute("SET LOCAL client_min_messages = warning")
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"reunite {schema}"
            )
            # Asked first: a relay without the right to create schemas may be given one.
            if not await connection.fetchval("SELECT to_regnamespace($1)", quoted(schema)):
                await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
            grant = await connection.fetchval(_GRANT, schema)
            if grant is not None:
                raise StoreError(
                    f"the relay's role may not make its tables in schema {schema!r}; let the"
                    f" schema's owner run {grant}"
                )
            if await connection.fetchval("SELECT to_regclass($1)", own.meta) is None:
                await _create(connection, own)
            if await connection.fetchval("SELECT to_regclass($1)", own.history) is None:
                await _create_table(connection, own, *_HISTORY)
            if await connection.fetchval("SELECT to_regclass($1)", own.captured) is None:
                await _create_table(connection, own, *_CAPTURED)
                # It fills and empties all the time, and polling passes over what is dead in it.
                await connection.execute(
                    f"ALTER TABLE {own.captured} SET (autovacuum_vacuum_scale_factor = 0,"
                    " autovacuum_vacuum_threshold = 2000)"
                )
            found = await connection.fetchrow(f"SELECT realm, format FROM {own.meta}")
    if found is None:
        raise StoreError(f"{own.meta} is empty; restore this schema, or drop its _reunite_ tables")
    if found["format"] > FORMAT:
        raise StoreError(
            f"schema {schema!r} was written by a newer reunite (format {found['format']}, this one"
            f" knows {FORMAT}); upgrade the relay"
        )
    return bytes(found["realm"])


async def _create(connection: Connection, own: OwnTables) -> None:
    for name, columns, purpose in _TABLES:
        await _create_table(connection, own, name, columns, purpose)
    for index, name, columns in _INDEXES:
        await connection.execute(
            f"CREATE INDEX {quoted('_reunite_' + index)}"
            f" ON {quoted(own.schema)}.{quoted('_reunite_' + name)} ({columns})"
        )
    await connection.execute(
        f"INSERT INTO {own.meta} (realm, format) VALUES ($1, $2)",
        secrets.token_bytes(REALM_BYTES),
        FORMAT,
    )
    await connection.execute(f"INSERT INTO {own.head} (seq, token, registry) VALUES (0, '', 0)")


async def _create_table(
    connection: Connection, own: OwnTables, name: str, columns: str, purpose: str
) -> None:
    table = f"{quoted(own.schema)}.{quoted('_reunite_' + name)}"
    await connection.execute(f"CREATE TABLE {table} ({columns})")
    literal = purpose.replace("'", "''")
    await connection.execute(f"COMMENT ON TABLE {table} IS '{literal}'")


def new_replica_id() -> int:
    """A replica id of a relay; see `reunite.clock`."""
    return secrets.randbits(63) | RELAYS_FROM
