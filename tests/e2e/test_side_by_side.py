"""What goes on at the same time: tables that several bring at once, waiting twice, bulk work."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from reunite import Database, fold
from reunite_transport import Sync
from reunite_transport.client_session import BarrierReached, Event
from reunite_transport.relay import flusher, postgres_store
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    execute,
    fetch,
    make,
    plain,
    read,
    rejected,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
    until,
    until_fetched,
)

BOOK = "CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)"
NAMES = ("author", "shelf", "loan")
A_PUSH_WAITS = (
    "SELECT 1 FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
    " WHERE NOT l.granted AND l.mode = 'RowShareLock' AND d.datname = current_database()"
)


def table(name: str) -> tuple[str, str]:
    """A table and its rows."""
    return (
        f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, note TEXT)",
        f"INSERT INTO {name} VALUES (1, '{name}'), (2, 'more')",
    )


def test_tables_that_are_tracked_one_after_another_while_live_all_arrive(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        first, second = make(tmp_path / "first.db", BOOK), tmp_path / "second.db"
        async with relay_on(postgres_url) as relay, Database(first) as db, Database(second) as far:
            await db.track_all()
            async with Sync(db, relay.url) as mine, Sync(far, relay.url) as theirs:
                await settle(mine, theirs)
                for name in NAMES:
                    for statement in table(name):
                        await db.execute(statement)
                for name in NAMES:
                    await db.track(name)
                await settle(mine, theirs)
                assert [s.status.last_error for s in (mine, theirs)] == [None, None]
            for name in NAMES:
                assert read(second, f"SELECT note FROM {name} ORDER BY id") == [(name,), ("more",)]
        await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


@pytest.mark.parametrize("_time", range(5))
def test_two_that_start_together_with_tables_of_their_own_have_both(
    _time: int, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        files = [make(tmp_path / f"{name}.db", *table(name)) for name in NAMES[:2]]
        first, second = map(Database, files)
        async with relay_on(postgres_url) as relay, first, second:
            for db in (first, second):
                await db.track_all()
            async with Sync(first, relay.url) as mine, Sync(second, relay.url) as theirs:
                await settle(mine, theirs)
                assert [s.status.last_error for s in (mine, theirs)] == [None, None]
        await assert_converged(postgres_url, *files)

    asyncio.run(scenario())


def test_two_may_wait_to_be_caught_up_at_the_same_time(tmp_path: Path, postgres_url: str) -> None:
    events: list[Event] = []

    def answers() -> int:
        return sum(isinstance(event, BarrierReached) for event in events)

    async def scenario() -> None:
        file = make(tmp_path / "file.db", BOOK)
        async with relay_on(postgres_url) as relay, Database(file) as db:
            await db.track_all()
            async with Sync(db, relay.url, on_event=events.append) as sync:
                await sync.caught_up(SECONDS_MAX)
                before = answers()
                connection = await asyncpg.connect(postgres_url)
                try:
                    # While nothing can be committed, both have their answer and wait for the work.
                    async with connection.transaction():
                        await connection.execute("LOCK TABLE book")
                        await db.execute("INSERT INTO book VALUES (1, 'one')")
                        one = asyncio.create_task(sync.caught_up(SECONDS_MAX))
                        await until(lambda: answers() == before + 1, "the first answer")
                        two = asyncio.create_task(sync.caught_up(SECONDS_MAX))
                        await until(lambda: answers() == before + 2, "the second answer")
                        assert not one.done()
                        assert not two.done()
                finally:
                    await connection.close()
                await asyncio.gather(one, two)
        assert len(await fetch(postgres_url, "SELECT id FROM book")) == 1

    asyncio.run(scenario())


def nonces(file: Path) -> list[bytes]:
    """What names the changesets that wait in the outbox; one that is refused gets another."""
    return [nonce for (nonce,) in read(file, "SELECT nonce FROM _reunite_changesets ORDER BY id")]


async def push(file: Path, postgres_url: str, url: str) -> int:
    """Sync, and see that the relay took every changeset as it was first sent; returns how many."""
    async with Database(file) as db:
        await db.on_engine(db.replica.outbox_mark)
        sent = nonces(file)
        await sync_once(db, url)
    taken = await fetch(postgres_url, "SELECT nonce FROM _reunite_changesets ORDER BY seq, number")
    assert [bytes(row["nonce"]) for row in taken][-len(sent) :] == sent
    return len(sent)


def test_a_bulk_import_and_a_bulk_delete_are_taken_without_a_refusal(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several windows of captures, as twenty times as many rows would be, and a commit for each
    # changeset, so that none is saved by the next one.
    monkeypatch.setattr(fold, "WINDOW", 1_000)
    monkeypatch.setattr(flusher, "BATCH_ROWS_MAX", 1)
    tables = (
        "CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER NOT NULL REFERENCES p (id))",
        "CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT)",
    )
    count = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"

    async def scenario() -> None:
        first, second = make(tmp_path / "first.db", *tables), tmp_path / "second.db"
        async with relay_on(postgres_url) as relay:
            await track_and_sync(first, relay.url)
            with plain(first) as conn:
                conn.execute(count.format(1_500) + " INSERT INTO p SELECT i, 'x' FROM n")
                conn.execute(count.format(1_500) + " INSERT INTO c SELECT i, 1501 - i FROM n")
            assert await push(first, postgres_url, relay.url) == 3
            await sync_once(second, relay.url)
            await assert_converged(postgres_url, first, second)
            with plain(second) as conn:
                conn.execute("DELETE FROM c")
                conn.execute("DELETE FROM p")
            assert await push(second, postgres_url, relay.url) == 3
            await sync_once(first, relay.url)
            assert read(first, "SELECT id FROM p") == read(first, "SELECT id FROM c") == []
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_changeset_that_a_refusal_left_empty_goes_through(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A push that gave up waiting would be tried again together with what came after it.
    monkeypatch.setattr(postgres_store, "LOCK_WAIT_MS", 30_000)

    async def scenario() -> None:
        first, second = make(tmp_path / "first.db", BOOK), tmp_path / "second.db"
        async with relay_on(postgres_url) as relay, Database(first) as db:
            await db.track_all()
            async with Sync(db, relay.url) as sync:
                await sync.caught_up(SECONDS_MAX)
                await execute(postgres_url, "ALTER TABLE book ADD CHECK (title <> 'bad')")
                connection = await asyncpg.connect(postgres_url)
                try:
                    # The insert is on its way alone, so that its delete cannot save it.
                    async with connection.transaction():
                        await connection.execute("LOCK TABLE book")
                        await db.execute("INSERT INTO book VALUES (1, 'bad')")
                        await until_fetched(postgres_url, A_PUSH_WAITS)
                        await db.execute("DELETE FROM book")
                        await db.execute("INSERT INTO book VALUES (2, 'two')")
                finally:
                    await connection.close()
                await sync.caught_up(SECONDS_MAX)
            await sync_once(second, relay.url)
        assert [(key, kind) for _, key, kind, _ in rejected(first)] == [(1, "insert")]
        assert read(second, "SELECT id, title FROM book") == [(2, "two")]
        await assert_converged(postgres_url, first, second, rejections=1)

    asyncio.run(scenario())
