"""Copies of one file that were edited apart by any program, and what they merge to."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from reunite import Database
from reunite_transport import Sync
from tests.e2e.world import (
    QUICK,
    SECONDS_MAX,
    assert_converged,
    contents,
    fetch,
    make,
    plain,
    read,
    relay_on,
    sync_once,
    track_and_sync,
    write,
)

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, note TEXT, done INTEGER DEFAULT 0)"
ROWS = "INSERT INTO todo (id, title, note) VALUES (1, 'milk', 'two'), (2, 'bread', NULL)"


async def two_copies(folder: Path, url: str) -> tuple[Path, Path]:
    """Two files that have synced and know the same rows."""
    one = make(folder / "one.db", TODO, ROWS)
    two = folder / "two.db"
    await track_and_sync(one, url)
    await sync_once(two, url)
    return one, two


async def sync_all(url: str, *files: Path) -> None:
    """One after the other, and then again, so that each has what the others pushed."""
    for file in (*files, *files):
        await sync_once(file, url)


def test_edits_of_different_columns_both_survive(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = await two_copies(tmp_path, relay.url)
            write(one, "UPDATE todo SET title = 'oat milk' WHERE id = 1")
            write(two, "UPDATE todo SET done = 1, note = NULL WHERE id = 1")
            await sync_all(relay.url, one, two)
            assert read(one, "SELECT * FROM todo WHERE id = 1") == [(1, "oat milk", None, 1)]
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())


@pytest.mark.parametrize("first", ["one", "two"])
def test_the_later_edit_of_a_column_wins_whoever_syncs_first(
    first: str, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = await two_copies(tmp_path, relay.url)
            write(one, "UPDATE todo SET title = 'earlier' WHERE id = 1")
            await asyncio.sleep(0.01)  # another millisecond
            write(two, "UPDATE todo SET title = 'later' WHERE id = 1")
            await sync_all(relay.url, *((one, two) if first == "one" else (two, one)))
            assert read(one, "SELECT title FROM todo WHERE id = 1") == [("later",)]
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_delete_after_an_edit_deletes(first: str, tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = await two_copies(tmp_path, relay.url)
            write(one, "UPDATE todo SET title = 'earlier' WHERE id = 1")
            await asyncio.sleep(0.01)  # another millisecond
            write(two, "DELETE FROM todo WHERE id = 1")
            await sync_all(relay.url, *((one, two) if first == "one" else (two, one)))
            assert read(one, "SELECT id FROM todo") == [(2,)]
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())


@pytest.mark.parametrize("first", ["one", "two"])
def test_an_edit_after_a_delete_brings_the_row_back_whole(
    first: str, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = await two_copies(tmp_path, relay.url)
            write(one, "DELETE FROM todo WHERE id = 1")
            await asyncio.sleep(0.01)  # another millisecond
            write(two, "UPDATE todo SET done = 1 WHERE id = 1")
            await sync_all(relay.url, *((one, two) if first == "one" else (two, one)))
            assert read(one, "SELECT * FROM todo WHERE id = 1") == [(1, "milk", "two", 1)]
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())


def test_a_late_insert_if_missing_erases_no_edit(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 28: columns at their default lie at the floor; over a dead row all are stamped."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = await two_copies(tmp_path, relay.url)
            settings = "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT, level INTEGER)"
            for file in (one, two):
                make(file, settings)
            async with Database(one) as db:
                await db.track("setting")
                await db.execute("INSERT INTO setting VALUES ('theme', NULL, NULL)")
                await db.execute("UPDATE setting SET value = 'dark'")
                await sync_once(db, relay.url)
            async with Database(two) as db:
                await db.track("setting")
                await db.execute("INSERT OR IGNORE INTO setting (name) VALUES ('theme')")
            await sync_all(relay.url, two, one)
            assert read(two, "SELECT value FROM setting") == [("dark",)]
            write(one, "DELETE FROM todo WHERE id = 1")
            await sync_all(relay.url, one, two)
            write(two, "INSERT INTO todo (id, title) VALUES (1, 'again')")
            await sync_all(relay.url, two, one)
            assert read(one, "SELECT title, note FROM todo WHERE id = 1") == [("again", None)]
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())


def test_a_row_that_the_relay_forgot_is_sent_whole(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 29: an edit of a purged row must not make half a row."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = await two_copies(tmp_path, relay.url)
            await fetch(postgres_url, "DELETE FROM _reunite_documents WHERE key = '\\x9101'")
            await fetch(postgres_url, "DELETE FROM todo WHERE id = 1")
            write(one, "UPDATE todo SET done = 1 WHERE id = 1")
            await sync_all(relay.url, one, two)
            whole = [(1, "milk", "two", 1)]
            assert read(two, "SELECT * FROM todo WHERE id = 1") == whole
            assert contents(one) == contents(two)
            rows = await fetch(postgres_url, "SELECT * FROM todo WHERE id = 1")
            assert list(map(tuple, rows)) == whole

    asyncio.run(scenario())


def test_catching_up_never_shows_part_of_a_changeset(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 41: each changeset moves from one account to another, so that the sum stays, but
    the pages of a catch-up hold the latest state of each row and cut through the changesets."""
    accounts = 60

    async def scenario() -> None:
        async with relay_on(postgres_url, limits=replace(QUICK, page_rows_max=7)) as relay:
            one = make(
                tmp_path / "one.db", "CREATE TABLE account (id INTEGER PRIMARY KEY, sum INT)"
            )
            with plain(one) as conn:
                conn.executemany(
                    "INSERT INTO account VALUES (?, 100)", ((n,) for n in range(accounts))
                )
            await track_and_sync(one, relay.url)
            two = tmp_path / "two.db"
            await sync_once(two, relay.url)
            chance = random.Random(41)
            async with Database(one) as db:
                for _ in range(200):
                    giver, taker = chance.sample(range(accounts), 2)
                    async with db.transaction() as tx:
                        await tx.execute("UPDATE account SET sum = sum - 1 WHERE id = ?", (giver,))
                        await tx.execute("UPDATE account SET sum = sum + 1 WHERE id = ?", (taker,))
                await sync_once(db, relay.url)
            seen: list[int] = []
            before = contents(two)
            async with Database(two) as db:

                def look(_event: object) -> None:
                    seen.append(read(two, "SELECT sum(sum) FROM account")[0][0])

                async with Sync(db, relay.url, on_event=look) as sync:
                    await sync.caught_up(timeout=SECONDS_MAX)
            assert len(seen) > accounts / 7
            assert set(seen) == {100 * accounts}
            assert contents(two) != before
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())
