"""Replicas that come and go, over connections that break, with constraints: all end up equal."""

import asyncio
import os
import random
import sqlite3
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from reunite import Database
from reunite_transport import Sync
from tests.e2e.proxy import Proxy, proxy_to
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    contents,
    make,
    read,
    rejected,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
    write,
)

# How many random histories; more by the environment, to look for what a few do not show.
SEEDS = int(os.environ.get("REUNITE_SEEDS", "2"))

TABLES = (
    "CREATE TABLE list (id TEXT PRIMARY KEY, name TEXT UNIQUE, rank INTEGER)",
    "CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT,"
    " list_id TEXT REFERENCES list (id) ON DELETE CASCADE,"
    " next_id TEXT REFERENCES todo (id) ON DELETE SET NULL)",
)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_replicas_with_constraints_end_up_equal(
    seed: int, tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(seed)
    files = [tmp_path / f"{name}.db" for name in ("one", "two", "three")]

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay, proxy_to(relay.url) as proxy:
            make(files[0], *TABLES)
            await track_and_sync(files[0], relay.url)
            for file in files[1:]:
                await sync_once(file, relay.url)
            for _ in range(12):
                async with asyncio.TaskGroup() as together:
                    for file in files:
                        own = random.Random(chance.random())
                        together.create_task(a_round(own, file, proxy))
            async with AsyncExitStack() as stack:
                syncs = []
                for file in files:
                    db = await stack.enter_async_context(Database(file))
                    syncs.append(await stack.enter_async_context(Sync(db, relay.url)))
                await settle(*syncs)
        given_up = sum(len(rejected(file)) for file in files)
        await assert_converged(postgres_url, *files, rejections=given_up)
        assert read(files[0], "PRAGMA foreign_key_check") == []

    asyncio.run(scenario())


async def a_round(chance: random.Random, file: Path, proxy: Proxy) -> None:
    """Some edits, connected or not; now and then the connections break."""
    async with Database(file) as db, AsyncExitStack() as stack:
        sync = None
        if chance.random() < 0.6:
            sync = await stack.enter_async_context(Sync(db, proxy.url))
        for _ in range(chance.randrange(8)):
            # A statement that this file's own constraints refuse is no edit.
            with suppress(sqlite3.IntegrityError):
                await an_edit(chance, file, db)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.05:
                chance.choice([proxy.up, proxy.down]).cut_after = chance.randrange(1, 600)
        if sync is not None and chance.random() < 0.5:
            await sync.caught_up(timeout=SECONDS_MAX)


async def an_edit(chance: random.Random, file: Path, db: Database) -> None:
    """A statement of another program, or a transaction of the app."""
    if chance.random() < 0.4:
        statement, parameters = a_statement(chance)
        write(file, statement, *parameters)
        return
    async with db.transaction() as tx:
        for _ in range(chance.randrange(1, 4)):
            await tx.execute(*a_statement(chance))


def a_statement(chance: random.Random) -> tuple[str, tuple[object, ...]]:
    """A statement on one of few rows, so that the replicas meet."""
    here, there = f"l{chance.randrange(5)}", f"l{chance.randrange(5)}"
    todo, other = f"t{chance.randrange(9)}", f"t{chance.randrange(9)}"
    name = f"name {chance.randrange(6)}"
    return chance.choice(
        [
            ("INSERT OR IGNORE INTO list VALUES (?, ?, ?)", (here, name, chance.randrange(9))),
            ("INSERT OR REPLACE INTO list (id, name) VALUES (?, ?)", (here, name)),
            ("UPDATE OR IGNORE list SET name = ? WHERE id = ?", (name, here)),
            ("UPDATE list SET rank = ? WHERE id IN (?, ?)", (chance.randrange(9), here, there)),
            ("DELETE FROM list WHERE id = ?", (here,)),
            ("INSERT OR IGNORE INTO todo (id, list_id) SELECT ?, id FROM list LIMIT 1", (todo,)),
            ("UPDATE todo SET list_id = ? WHERE id = ?", (there, todo)),
            ("UPDATE todo SET next_id = ? WHERE id = ?", (other, todo)),
            ("UPDATE todo SET title = ? WHERE list_id = ?", (name, here)),
            ("DELETE FROM todo WHERE id = ?", (todo,)),
        ]
    )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_three_replicas_that_come_and_go_end_up_equal(
    seed: int, tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(seed)
    files = [tmp_path / f"{name}.db" for name in ("one", "two", "three")]

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            make(files[0], *FREE_TABLES)
            await track_and_sync(files[0], relay.url)
            for file in files[1:]:
                await sync_once(file, relay.url)
            for _ in range(20):
                async with asyncio.TaskGroup() as together:
                    for file in files:
                        own = random.Random(chance.random())
                        together.create_task(a_free_round(own, file, relay.url))
            async with AsyncExitStack() as stack:
                syncs = []
                for file in files:
                    db = await stack.enter_async_context(Database(file))
                    syncs.append(await stack.enter_async_context(Sync(db, relay.url)))
                await settle(*syncs)
        await assert_converged(postgres_url, *files)
        assert sum(map(len, contents(files[0]).values())) > 10

    asyncio.run(scenario())


FREE_TABLES = (
    "CREATE TABLE note"
    " (id TEXT PRIMARY KEY, title TEXT NOT NULL DEFAULT '', size INTEGER, body BLOB)",
    "CREATE TABLE member"
    " (club INTEGER, name TEXT, role TEXT, PRIMARY KEY (club, name)) WITHOUT ROWID",
)


async def a_free_round(chance: random.Random, file: Path, url: str) -> None:
    """Some edits by this app and by others, connected or not, for as long as it takes or not."""
    async with Database(file) as db, AsyncExitStack() as stack:
        sync = None
        if chance.random() < 0.6:
            sync = await stack.enter_async_context(Sync(db, url))
        for _ in range(chance.randrange(8)):
            statement, parameters = a_free_statement(chance)
            if chance.random() < 0.5:
                write(file, statement, *parameters)
            else:
                await db.execute(statement, parameters)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.05)
        if sync is not None and chance.random() < 0.5:
            await sync.caught_up(timeout=SECONDS_MAX)


def a_free_statement(chance: random.Random) -> tuple[str, tuple[object, ...]]:
    """A statement on one of few rows, so that the replicas meet."""
    word = chance.choice(["", "a", "b", "ß", "🙂", "it's"]) * chance.randrange(1, 4)
    note, club, name = f"n{chance.randrange(12)}", chance.randrange(3), f"m{chance.randrange(4)}"
    return chance.choice(
        [
            ("INSERT OR IGNORE INTO note (id, title) VALUES (?, ?)", (note, word)),
            ("INSERT OR REPLACE INTO note VALUES (?, ?, ?, ?)", (note, word, 7, word.encode())),
            ("UPDATE note SET title = ? WHERE id = ?", (word, note)),
            ("UPDATE note SET size = coalesce(size, 0) + 1 WHERE id = ?", (note,)),
            ("UPDATE note SET body = ? WHERE id >= ?", (chance.randbytes(5), note)),
            ("DELETE FROM note WHERE id = ?", (note,)),
            ("INSERT OR REPLACE INTO member VALUES (?, ?, ?)", (club, name, word)),
            ("UPDATE OR IGNORE member SET club = ? WHERE name = ?", (club, name)),
            ("DELETE FROM member WHERE club = ? AND name = ?", (club, name)),
        ]
    )
