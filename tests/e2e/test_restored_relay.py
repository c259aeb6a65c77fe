"""A relay whose database was restored from a backup: files bring back what it lost.

The backup is a copy that Postgres makes of a database, and the relay afterwards runs on the copy.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from reunite import Database
from reunite_transport import Sync
from reunite_transport.client_session import Event, Refilling
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import Relay, serve
from tests.e2e.world import (
    QUICK,
    assert_converged,
    assert_quiet,
    execute,
    fetch,
    make,
    one,
    read,
    rejected,
    relay_on,
    sync_once,
    track_and_sync,
    write,
)

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, done BOOLEAN DEFAULT 0)"
NOTE = (
    "CREATE TABLE note (id TEXT PRIMARY KEY,"
    " todo_id INTEGER NOT NULL REFERENCES todo (id) ON DELETE CASCADE, body TEXT)"
)
TITLES = "SELECT id, title FROM todo ORDER BY id"


async def backup_of(postgres_url: str) -> str:
    """A copy of the database as it is now; returns its URL."""
    name = urlsplit(postgres_url).path.lstrip("/")
    elsewhere = postgres_url.replace(f"/{name}", "/postgres", 1)
    await execute(elsewhere, f'CREATE DATABASE "{name}_backup" TEMPLATE "{name}"')
    return postgres_url.replace(f"/{name}", f"/{name}_backup", 1)


@asynccontextmanager
async def discarding(postgres_url: str) -> AsyncIterator[Relay]:
    """A relay whose operator does not want back what came after the backup."""
    store = await open_postgres(postgres_url)
    relay = await serve(store, refill=False, limits=QUICK)
    try:
        yield relay
    finally:
        await relay.close()
        await store.close()


async def before_and_after(postgres_url: str, *files: Path) -> str:
    """Files that share rows, a backup, and then work that only the files remember."""
    a, b = files
    async with relay_on(postgres_url) as relay:
        await track_and_sync(a, relay.url)
        await sync_once(b, relay.url)
    backup = await backup_of(postgres_url)
    async with relay_on(postgres_url) as relay:
        write(a, "INSERT INTO todo VALUES (10, 'after the backup', 0)")
        write(a, "INSERT INTO note VALUES ('n10', 10, 'and its child')")
        write(a, "UPDATE todo SET title = 'renamed' WHERE id = 1")
        write(a, "DELETE FROM todo WHERE id = 2")
        await sync_once(a, relay.url)
        await sync_once(b, relay.url)
        write(b, "UPDATE todo SET done = 1 WHERE id = 10")
        await sync_once(b, relay.url)
    return backup


def two_files(folder: Path) -> tuple[Path, Path]:
    a = make(folder / "a.db", TODO, NOTE, "INSERT INTO todo VALUES (1, 'one', 0), (2, 'two', 0)")
    return a, folder / "b.db"


def test_files_bring_back_what_the_relay_lost(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        a, b = two_files(tmp_path)
        backup = await before_and_after(postgres_url, a, b)
        late = tmp_path / "late.db"
        async with relay_on(backup) as relay:
            await sync_once(late, relay.url)
            assert read(late, TITLES) == [(1, "one"), (2, "two")]
            write(late, "UPDATE todo SET done = 1 WHERE id = 1")
            write(a, "INSERT INTO todo VALUES (11, 'never sent', 0)")
            await sync_once(late, relay.url)
            events: list[Event] = []
            async with Database(b) as db, Sync(db, relay.url, on_event=events.append) as sync:
                await sync.caught_up(timeout=30)
            assert [type(event) for event in events].count(Refilling) == 1
            for file in (a, late, b):
                await sync_once(file, relay.url)
        assert read(a, "SELECT * FROM todo ORDER BY id") == [
            (1, "renamed", 1),
            (10, "after the backup", 1),
            (11, "never sent", 0),
        ]
        await assert_converged(backup, a, b, late, tables=["note"])

    asyncio.run(scenario())


def test_what_was_restored_and_what_came_since_are_merged(
    tmp_path: Path, postgres_url: str
) -> None:
    """The parent of a lost row is deleted meanwhile: the row cannot come back, and is kept."""

    async def scenario() -> None:
        a, b = two_files(tmp_path)
        async with relay_on(postgres_url) as relay:
            await track_and_sync(a, relay.url)
        backup = await backup_of(postgres_url)
        async with relay_on(postgres_url) as relay:
            write(a, "INSERT INTO note VALUES ('lost', 2, 'child of two')")
            write(a, "INSERT INTO note VALUES ('fine', 1, 'child of one')")
            await sync_once(a, relay.url)
        async with relay_on(backup) as relay:
            await sync_once(b, relay.url)
            write(b, "DELETE FROM todo WHERE id = 2")
            await sync_once(b, relay.url)
            await sync_once(a, relay.url)
            await sync_once(b, relay.url)
        assert read(b, "SELECT id FROM note") == [("fine",)]
        assert rejected(a) == [("note", "lost", "insert", "constraint")]
        await assert_converged(backup, a, b, tables=["note"], rejections=1)

    asyncio.run(scenario())


def test_an_operator_may_discard_what_came_after_the_backup(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        a, b = two_files(tmp_path)
        backup = await before_and_after(postgres_url, a, b)
        write(a, "INSERT INTO todo VALUES (11, 'never sent', 0)")
        async with discarding(backup) as relay:
            for file in (a, b, a):
                await sync_once(file, relay.url)
        assert read(a, TITLES) == read(b, TITLES) == [(1, "one"), (2, "two"), (11, "never sent")]
        given_up = rejected(a)
        assert {reason for *_, reason in given_up} == {"expired"}
        assert {key for table, key, *_ in given_up if table == "todo"} == {1, 2, 10}
        await assert_quiet(backup, a, b, rejections=len(given_up) + len(rejected(b)))

    asyncio.run(scenario())


def test_columns_and_tables_that_the_backup_lacks_are_described_again(
    tmp_path: Path, postgres_url: str
) -> None:
    """The restored registry gives the lost numbers to others first."""

    async def scenario() -> None:
        a, b = two_files(tmp_path)
        async with relay_on(postgres_url) as relay:
            await track_and_sync(a, relay.url)
            await sync_once(b, relay.url)
        backup = await backup_of(postgres_url)
        async with relay_on(postgres_url) as relay:
            write(a, "ALTER TABLE todo ADD COLUMN color TEXT")
            write(a, "UPDATE todo SET color = 'red' WHERE id = 1")
            write(a, "CREATE TABLE tag (id TEXT PRIMARY KEY, name TEXT)")
            write(a, "INSERT INTO tag VALUES ('t', 'urgent')")
            async with Database(a) as db:
                await db.track_all()
            await sync_once(a, relay.url)
            await sync_once(b, relay.url)
        other = tmp_path / "other.db"
        async with relay_on(backup) as relay:
            await sync_once(other, relay.url)
            write(other, "ALTER TABLE todo ADD COLUMN effort REAL")
            write(other, "UPDATE todo SET effort = 2.5 WHERE id = 1")
            write(other, "CREATE TABLE person (id TEXT PRIMARY KEY, age INTEGER)")
            write(other, "INSERT INTO person VALUES ('p', 33)")
            async with Database(other) as db:
                await db.track_all()
            for file in (other, b, a, other, b):
                await sync_once(file, relay.url)
        rows = await fetch(backup, "SELECT color, effort FROM todo WHERE id = 1")
        assert [tuple(row) for row in rows] == [("red", 2.5)]
        assert one(a, "SELECT color FROM todo WHERE id = 1") == "red"
        assert one(other, "SELECT effort FROM todo WHERE id = 1") == 2.5
        for file in (a, b, other):
            assert read(file, "SELECT * FROM tag") == [("t", "urgent")]
            assert read(file, "SELECT * FROM person") == [("p", 33)]
        await assert_quiet(backup, a, b, other)

    asyncio.run(scenario())


@pytest.mark.parametrize("rows", [6_000])
def test_a_load_that_a_restore_interrupts_begins_again(
    tmp_path: Path, postgres_url: str, rows: int
) -> None:
    """The load stood at a commit that the backup lacks; what others write there must not be
    skipped."""

    async def scenario() -> None:
        a, _ = two_files(tmp_path)
        async with relay_on(postgres_url) as relay:
            await track_and_sync(a, relay.url)
        backup = await backup_of(postgres_url)
        loading = tmp_path / "loading.db"
        async with relay_on(postgres_url) as relay:
            async with Database(a) as db:
                await db.execute(
                    "WITH RECURSIVE n(i) AS (VALUES (100) UNION ALL SELECT i + 1 FROM n"
                    f" WHERE i < {100 + rows}) INSERT INTO todo SELECT i, 'lost', 0 FROM n"
                )
                await sync_once(db, relay.url)
            async with Database(loading) as db, Sync(db, relay.url) as sync:
                while not (sync.status.progress and sync.status.progress.rows):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        assert not one(loading, "SELECT value FROM _reunite_meta WHERE name = 'loaded'")
        async with relay_on(backup) as relay:
            write(a, "UPDATE todo SET title = 'renamed' WHERE id = 1")
            for file in (a, loading, a):
                await sync_once(file, relay.url)
        await assert_converged(backup, a, loading, tables=[])

    asyncio.run(scenario())
