"""A relay on Postgres and clients on files, all of it real, and what they hold, compared.

Files are read here by plain `sqlite3` and Postgres by plain asyncpg, as a user's other programs
would do it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

from reunite import Database
from reunite.adopt import Choice
from reunite.keys import key_values, pack_key
from reunite.schema import quoted
from reunite_transport import Sync
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import Relay, serve
from reunite_transport.relay.service import Limits

# A machine under load: reached only by a test that fails.
SECONDS_MAX = 30.0
QUICK = Limits(poll_seconds=0.05, store_seconds=5.0, drain_seconds=2.0)

Exact: TypeAlias = tuple[str, object]


@asynccontextmanager
async def relay_on(
    postgres_url: str,
    *,
    port: int = 0,
    create_tables: bool = True,
    history: bool = True,
    track_all: bool = False,
    track_new: bool = True,
    limits: Limits = QUICK,
) -> AsyncIterator[Relay]:
    """A relay in this process; with `track_all` it takes in all tables that are in the database,
    and with `track_new` those that come."""
    store = await open_postgres(postgres_url)
    try:
        if track_all:
            assert await store.track(None) == ()
        relay = await serve(
            store,
            port=port,
            create_tables=create_tables,
            history=history,
            track_new=track_all and track_new,
            limits=limits,
        )
        try:
            yield relay
        finally:
            await relay.close()
    finally:
        await store.close()


async def sync_once(file: Path | Database, url: str, *, adopt: Choice | None = None) -> None:
    """Open the file if need be, catch up with the relay, and go offline again."""
    if isinstance(file, Path):
        async with Database(file) as db:
            await sync_once(db, url, adopt=adopt)
        return
    async with Sync(file, url, adopt=adopt) as sync:
        await sync.caught_up(timeout=SECONDS_MAX)


async def track_and_sync(file: Path, url: str) -> None:
    """Take all tables of the file into sync and push them."""
    async with Database(file) as db:
        await db.track_all()
        await sync_once(db, url)


async def settle(*syncs: Sync) -> None:
    """Let everybody push what they have, then let everybody have it."""
    for _ in range(2):
        for sync in syncs:
            await sync.caught_up(timeout=SECONDS_MAX)


async def until(condition: Callable[[], bool], what: str, seconds: float = SECONDS_MAX) -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - a file has no event to wait for
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


# SQLite, read by others.


@contextmanager
def plain(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection as any other program would have it: a transaction that is committed."""
    with closing(sqlite3.connect(file, timeout=SECONDS_MAX)) as conn, conn:
        yield conn


def make(file: Path, *statements: str) -> Path:
    """Run statements on a file, creating it."""
    with plain(file) as conn:
        for statement in statements:
            conn.execute(statement)
    return file


def write(file: Path, sql: str, *parameters: object) -> None:
    """Write as another program does, in a transaction of its own."""
    with plain(file) as conn:
        conn.execute(sql, parameters)


def read(file: Path, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with closing(sqlite3.connect(file, timeout=SECONDS_MAX)) as conn:
        return conn.execute(sql, parameters).fetchall()


def one(file: Path, sql: str, *parameters: object) -> Any:
    """The one value of a query."""
    ((value,),) = read(file, sql, *parameters)
    return value


def table_names(file: Path) -> list[str]:
    """The tables that are the user's own."""
    return [
        name
        for (name,) in read(
            file,
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB '_reunite_*'"
            " AND name NOT GLOB 'sqlite_*' AND name <> 'reunite_rejected' ORDER BY name",
        )
    ]


def exact(value: object) -> Exact:
    """A value with its class, and a float by its bits: 1 is not 1.0, nor 0.0 -0.0."""
    return type(value).__name__, value.hex() if isinstance(value, float) else value


def rows_of(file: Path, table: str) -> list[tuple[Exact, ...]]:
    """All rows of a table, exactly, in an order of their own; columns in order of name."""
    names = sorted(row[1] for row in read(file, f"PRAGMA table_info({quoted(table)})"))
    columns = ", ".join(map(quoted, names))
    rows = read(file, f"SELECT {columns} FROM {quoted(table)}")
    return sorted((tuple(map(exact, row)) for row in rows), key=repr)


def contents(file: Path) -> dict[str, list[tuple[Exact, ...]]]:
    """All tables of a file."""
    return {name: rows_of(file, name) for name in table_names(file)}


def rejected(file: Path) -> list[tuple[Any, ...]]:
    """What was given up: (table, key, kind, reason)."""
    return read(file, 'SELECT "table", key, kind, reason FROM reunite_rejected ORDER BY id')


def queued(file: Path) -> int:
    """How many changesets wait in the outbox."""
    count: int = one(file, "SELECT count(*) FROM _reunite_changesets")
    return count


# Postgres, read by others.


async def fetch(postgres_url: str, sql: str, *parameters: object) -> list[asyncpg.Record]:
    """The rows of a query to Postgres."""
    connection = await asyncpg.connect(postgres_url)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(sql, *parameters)
        return rows
    finally:
        await connection.close()


async def until_fetched(postgres_url: str, sql: str) -> None:
    """Wait until a query to Postgres finds anything."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await fetch(postgres_url, sql):  # noqa: ASYNC110 - no event either
            await asyncio.sleep(0.01)


async def execute(postgres_url: str, sql: str) -> None:
    """Run a statement in Postgres."""
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def postgres_rows(postgres_url: str, table: str) -> list[tuple[Exact, ...]]:
    """All rows of a table as asyncpg gives them, exactly; columns in order of name."""
    rows = await fetch(postgres_url, f"SELECT * FROM {quoted(table)}")
    ordered = [tuple(exact(value) for _, value in sorted(row.items())) for row in rows]
    return sorted(ordered, key=repr)


# Together.


async def assert_converged(
    postgres_url: str, *files: Path, tables: Sequence[str] | None = None, rejections: int = 0
) -> None:
    """All files and Postgres hold the same rows, of classes that both know; documents are equal
    to the byte; nothing waits, and every table equals its documents.

    `tables` are those whose classes Postgres keeps as they are; None for all.
    """
    first, *others = files
    expected = contents(first)
    for other in others:
        assert contents(other) == expected, f"{other.name} differs from {first.name}"
    for table in expected if tables is None else tables:
        assert await postgres_rows(postgres_url, table) == expected[table], table
    await assert_quiet(postgres_url, *files, rejections=rejections)


async def assert_quiet(postgres_url: str, *files: Path, rejections: int = 0) -> None:
    """Nothing waits anywhere, bases equal the relay's documents, tables equal theirs."""
    stated = {
        (row["name"], bytes(row["key"])): bytes(row["document"])
        for row in await fetch(
            postgres_url,
            "SELECT t.name, d.key, d.document FROM _reunite_documents AS d"
            " JOIN _reunite_tables AS t ON t.id = d.tbl",
        )
    }
    given_up = 0
    for file in files:
        assert queued(file) == 0, f"{file.name} has changesets queued"
        assert one(file, "SELECT count(*) FROM _reunite_inbox") == 0
        assert one(file, "SELECT count(*) FROM _reunite_rows WHERE mark = 'blocked'") == 0
        async with Database(file) as db:
            assert await db.verify() == []
        given_up += len(rejected(file))
        assert bases(file) == stated, f"{file.name}: documents differ from the relay's"
    assert given_up == rejections


def bases(file: Path) -> dict[tuple[str, bytes], bytes]:
    """The authoritative documents that a file has, by table and key as they travel."""
    found = {}
    for table in {name for (name,) in read(file, "SELECT name FROM _reunite_tables")}:
        keys = len(read(file, f"SELECT 1 FROM pragma_table_info({quoted(table)}) WHERE pk > 0"))
        for key, base in read(
            file,
            "SELECT r.key, r.base FROM _reunite_rows AS r JOIN _reunite_tables AS t ON t.id = r.tbl"
            " WHERE t.name = ? AND r.base IS NOT NULL",
            table,
        ):
            found[table, pack_key(key_values(key, keys))] = base
    return found
