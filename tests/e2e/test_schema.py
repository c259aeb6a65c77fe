"""Tables that change, differ, or are not wanted, and realms that are not this file's."""

import asyncio
from pathlib import Path

import pytest

from reunite import Database, SyncError
from reunite_transport import Sync
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    assert_quiet,
    contents,
    execute,
    fetch,
    make,
    one,
    plain,
    read,
    relay_on,
    sync_once,
    table_names,
    track_and_sync,
    write,
)

BOOK = "CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)"
BOOKS = "INSERT INTO book VALUES (1, 'one'), (2, 'two')"


async def two_files(folder: Path, url: str) -> tuple[Path, Path]:
    """Two files that have synced."""
    first, second = make(folder / "first.db", BOOK, BOOKS), folder / "second.db"
    await track_and_sync(first, url)
    await sync_once(second, url)
    return first, second


@pytest.mark.parametrize("connected", [False, True], ids=["offline", "connected"])
def test_a_new_column_is_kept_where_it_is_not_known_yet(
    connected: bool, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url)
            add = "ALTER TABLE book ADD COLUMN pages INTEGER DEFAULT 5"
            if connected:
                async with Database(first) as db, Sync(db, relay.url) as sync:
                    await sync.caught_up(SECONDS_MAX)
                    write(first, add)
                    write(first, "UPDATE book SET pages = 9 WHERE id = 1")
                    await sync.caught_up(SECONDS_MAX)
            else:
                write(first, add)
                write(first, "UPDATE book SET pages = 9 WHERE id = 1")
                await sync_once(first, relay.url)
            rows = await fetch(postgres_url, "SELECT * FROM book ORDER BY id")
            assert list(map(tuple, rows)) == [(1, "one", 9), (2, "two", 5)]
            # The second file does not have the column, edits the rows, and loses nothing of it.
            await sync_once(second, relay.url)
            write(second, "UPDATE book SET title = 'uno' WHERE id = 1")
            write(second, "INSERT INTO book VALUES (3, 'three')")
            await sync_once(second, relay.url)
            await sync_once(first, relay.url)
            everything = [(1, "uno", 9), (2, "two", 5), (3, "three", 5)]
            assert read(first, "SELECT * FROM book") == everything
            assert read(second, "PRAGMA table_info(book)")[-1][1] == "title"
            await assert_quiet(postgres_url, first, second)
            # Once it has the column, it has the values, and adding it was no edit.
            write(second, add)
            await sync_once(second, relay.url)
            assert read(second, "SELECT * FROM book") == everything
            third = tmp_path / "third.db"
            await sync_once(third, relay.url)
            await sync_once(first, relay.url)
            await assert_converged(postgres_url, first, second, third)

    asyncio.run(scenario())


def test_tables_that_are_tracked_while_connected_reach_the_others(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url)
            async with (
                Database(first) as mine,
                Database(second) as theirs,
                Sync(mine, relay.url) as here,
                Sync(theirs, relay.url) as there,
            ):
                await here.caught_up(SECONDS_MAX)
                await there.caught_up(SECONDS_MAX)
                await mine.execute("CREATE TABLE shelf (id TEXT PRIMARY KEY, room TEXT)")
                await mine.execute("INSERT INTO shelf VALUES ('a', 'hall')")
                await here.caught_up(SECONDS_MAX)  # whatever there was to notice is noticed
                await mine.track("shelf")
                await here.caught_up(SECONDS_MAX)
                await there.caught_up(SECONDS_MAX)
                assert read(second, "SELECT * FROM shelf") == [("a", "hall")]
                await theirs.execute("UPDATE shelf SET room = 'attic'")
                await there.caught_up(SECONDS_MAX)
                await here.caught_up(SECONDS_MAX)
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_an_untracked_table_of_the_same_name_is_left_alone(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", BOOK, BOOKS)
            await track_and_sync(first, relay.url)
            second = make(
                tmp_path / "second.db", BOOK, "INSERT INTO book VALUES (1, 'one'), (7, 'mine')"
            )
            before = contents(second)
            async with Database(second) as db:
                await sync_once(db, relay.url)
                assert contents(second) == before
                write(first, "UPDATE book SET title = 'zwei' WHERE id = 2")
                await sync_once(first, relay.url)
                await sync_once(db, relay.url)
                assert contents(second) == before
                # Tracked later, it takes part with what it has.
                await db.track("book")
                await sync_once(db, relay.url)
            await sync_once(first, relay.url)
            assert read(first, "SELECT * FROM book") == [(1, "one"), (2, "zwei"), (7, "mine")]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_table_with_another_key_is_refused_by_name(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", BOOK, BOOKS)
            await track_and_sync(first, relay.url)
            other = "CREATE TABLE book (isbn TEXT PRIMARY KEY, title TEXT)"
            second = make(tmp_path / "second.db", other, "INSERT INTO book VALUES ('x', 'y')")
            before = contents(second)
            async with Database(second) as db:
                await db.track_all()
                async with Sync(db, relay.url) as sync:
                    with pytest.raises(SyncError, match="'book'") as caught:
                        await sync.caught_up(SECONDS_MAX)
                    assert sync.status.state == "stopped"
                    assert sync.status.last_error is caught.value
                assert await db.verify() == []
            assert contents(second) == before

    asyncio.run(scenario())


def test_a_relay_that_creates_no_tables_names_the_one_it_lacks(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url)
        async with relay_on(postgres_url, create_tables=False) as relay:
            make(first, "CREATE TABLE secret (id INTEGER PRIMARY KEY, v TEXT)")
            async with (
                Database(first) as mine,
                Database(second) as theirs,
                Sync(theirs, relay.url) as there,
            ):
                await there.caught_up(SECONDS_MAX)
                await mine.track_all()
                async with Sync(mine, relay.url) as here:
                    with pytest.raises(SyncError, match="'secret'") as caught:
                        await here.caught_up(SECONDS_MAX)
                    assert caught.value.code == "unknown-table"
                    assert here.status.state == "stopped"
                await theirs.execute("INSERT INTO book VALUES (3, 'three')")
                await there.caught_up(SECONDS_MAX)
                assert there.status.state == "live"
            third = tmp_path / "third.db"
            await sync_once(third, relay.url)
            assert one(third, "SELECT count(*) FROM book") == 3
            assert table_names(third) == ["book"]
        async with relay_on(postgres_url) as relay:
            for file in (first, second, third):
                await sync_once(file, relay.url)
            await assert_converged(postgres_url, first, second, third)

    asyncio.run(scenario())


def test_a_file_of_another_realm_is_turned_away(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            file = make(tmp_path / "first.db", BOOK, BOOKS)
            await track_and_sync(file, relay.url)
        before = contents(file)
        # Another realm: the same database with our tables gone.
        for (name,) in await fetch(
            postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ):
            await execute(postgres_url, f'DROP TABLE "{name}" CASCADE')
        async with relay_on(postgres_url) as relay, Database(file) as db:
            async with Sync(db, relay.url) as sync:
                with pytest.raises(SyncError) as caught:
                    await sync.caught_up(SECONDS_MAX)
                assert caught.value.code == "realm"
                assert sync.status.state == "stopped"
            assert await db.verify() == []
        assert contents(file) == before

    asyncio.run(scenario())


def test_a_table_that_a_migration_rebuilt_goes_on(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 17: the rebuild drops the triggers, and changes a row and the shape besides."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url)
            with plain(first) as conn:
                conn.execute("CREATE TABLE new (id INTEGER PRIMARY KEY, title TEXT, year INTEGER)")
                conn.execute("INSERT INTO new SELECT id, title, 1900 + id FROM book")
                conn.execute("DROP TABLE book")
                conn.execute("ALTER TABLE new RENAME TO book")
                conn.execute("UPDATE book SET title = 'dos' WHERE id = 2")
                conn.execute("DELETE FROM book WHERE id = 1")
            await sync_once(first, relay.url)
            await sync_once(second, relay.url)
            write(second, "ALTER TABLE book ADD COLUMN year INTEGER")
            await sync_once(second, relay.url)
            write(first, "INSERT INTO book VALUES (4, 'four', 4)")
            await sync_once(first, relay.url)
            await sync_once(second, relay.url)
            assert read(second, "SELECT * FROM book") == [(2, "dos", 1902), (4, "four", 4)]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())
