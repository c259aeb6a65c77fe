"""What a merge overwrote can be seen by everybody, and brought back."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reunite import Database, Overwritten
from reunite.overwritten import ROW_PLACES_MAX
from reunite_transport import Sync
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    fetch,
    make,
    read,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
)

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, note TEXT)"
ROW = "INSERT INTO todo VALUES (1, 'milk', NULL)"
NAMES = ("one.db", "two.db", "three.db")


async def three_copies(folder: Path, url: str) -> list[Path]:
    """Three files that have synced one row, which the first brought."""
    first, *others = (folder / name for name in NAMES)
    make(first, TODO, ROW)
    await track_and_sync(first, url)
    for file in others:
        await sync_once(file, url)
    return [first, *others]


async def titles(db: Database) -> list[Overwritten]:
    """What was overwritten in the title of the row."""
    return [each for each in await db.history("todo", 1) if each.column == "title"]


def test_the_value_that_lost_is_found_everywhere_and_comes_back(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay, AsyncExitStack() as stack:
            files = await three_copies(tmp_path, relay.url)
            one, two, three = [await stack.enter_async_context(Database(file)) for file in files]
            begin = datetime.now(UTC)
            await two.execute("UPDATE todo SET title = 'oat milk' WHERE id = 1")
            await asyncio.sleep(0.01)  # another millisecond
            await three.execute("UPDATE todo SET title = 'rice milk' WHERE id = 1")
            # The later edit is there first, so the earlier one comes too late.
            for db in (three, two, one):
                await sync_once(db, relay.url)
            syncs = [
                await stack.enter_async_context(Sync(db, relay.url)) for db in (one, two, three)
            ]
            await settle(*syncs)
            by_two, by_three = [
                (await db.on_engine(db.replica.standing)).replica for db in (two, three)
            ]
            for db in (one, two, three):
                lost, original = await titles(db)
                assert (lost.value, lost.replica, lost.replaced_by) == (
                    "oat milk",
                    by_two,
                    by_three,
                )
                assert lost.at is not None
                assert lost.replaced_at is not None
                slack = timedelta(milliseconds=1)
                assert begin - slack <= lost.at < lost.replaced_at <= datetime.now(UTC)
                # It came with its table, so nobody knows who wrote it.
                assert (original.value, original.at, original.replica) == ("milk", None, None)
            changeset = await one.restore((await titles(one))[0])
            assert changeset is not None
            assert await one.synced(changeset, SECONDS_MAX)
            await settle(*syncs)
            for file, db in zip(files, (one, two, three), strict=True):
                assert read(file, "SELECT title FROM todo") == [("oat milk",)]
                assert [each.value for each in await titles(db)] == [
                    "rice milk",
                    "oat milk",
                    "milk",
                ]
        await assert_converged(postgres_url, *files)

    asyncio.run(scenario())


def test_without_a_connection_a_file_tells_what_it_saw(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two, three = await three_copies(tmp_path, relay.url)
            for file, title in ((one, "oat milk"), (two, "rice milk")):
                async with Database(file) as db:
                    await db.execute("UPDATE todo SET title = ?", (title,))
                    await sync_once(db, relay.url)
            await sync_once(three, relay.url)
        async with Database(two) as db:
            assert [each.value for each in await titles(db)] == ["oat milk", "milk"]
        # It was away while there was oat milk, and the relay that knows of it is gone.
        async with Database(three) as db, Sync(db, "ws://127.0.0.1:1"):
            assert [each.value for each in await titles(db)] == ["milk"]

    asyncio.run(scenario())


def test_a_row_that_is_written_all_day_has_a_history_that_ends(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, _, three = await three_copies(tmp_path, relay.url)
            async with Database(one) as db, Sync(db, relay.url) as sync:
                for number in range(ROW_PLACES_MAX + 10):
                    await db.execute("UPDATE todo SET title = ?", (str(number),))
                    if number % 20 == 0:
                        await sync.caught_up(timeout=SECONDS_MAX)
                await sync.caught_up(timeout=SECONDS_MAX)
            expected = [str(number) for number in range(ROW_PLACES_MAX + 8, 8, -1)]
            async with Database(three) as db, Sync(db, relay.url) as sync:
                await sync.caught_up(timeout=SECONDS_MAX)
                # And what this file saw itself, which is older.
                assert [each.value for each in await titles(db)] == [*expected, "milk"]
        ((kept,),) = await fetch(postgres_url, "SELECT count(*) FROM _reunite_history")
        assert kept == ROW_PLACES_MAX
        assert len(read(one, "SELECT 1 FROM _reunite_history")) == ROW_PLACES_MAX

    asyncio.run(scenario())


def test_a_relay_that_keeps_no_history_is_not_asked(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url, history=False) as relay:
            one, two, three = await three_copies(tmp_path, relay.url)
            for file, title in ((one, "oat milk"), (two, "rice milk")):
                async with Database(file) as db:
                    await db.execute("UPDATE todo SET title = ?", (title,))
                    await sync_once(db, relay.url)
            async with Database(three) as db, Sync(db, relay.url) as sync:
                await sync.caught_up(timeout=SECONDS_MAX)
                assert [each.value for each in await titles(db)] == ["milk"]
            assert await fetch(postgres_url, "SELECT * FROM _reunite_history") == []

    asyncio.run(scenario())
