"""What an app shows of sync, and steers: the status, connecting and disconnecting, and whether a
write is on the server."""

import asyncio
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import text

from reunite import CatchUpTimeout, Database, UsageError
from reunite_transport import Sync, SyncStatus, sync
from tests.e2e.processes import REUNITE, free_port
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    execute,
    make,
    relay_on,
    sync_once,
    track_and_sync,
)

ITEM = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT UNIQUE, n INTEGER)"
INSERT = "INSERT INTO item (name) VALUES (?)"


async def until_it_is(syncing: Sync, *states: str) -> list[SyncStatus]:
    """Follow the stream until one of these states; what it said."""
    said = []
    async with asyncio.timeout(SECONDS_MAX):
        async for status in syncing.watch_status():
            said.append(status)
            if status.state in states:
                return said
    raise AssertionError(f"sync ended: {said}")


def test_a_program_disconnects_works_on_and_connects_again(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        first, second = make(tmp_path / "first.db", ITEM), tmp_path / "second.db"
        async with relay_on(postgres_url) as relay, Database(first) as db:
            await db.track_all()
            async with (
                asyncio.timeout(SECONDS_MAX),
                Sync(db, relay.url, connected=False) as syncing,
            ):
                assert syncing.status.state == "disconnected"
                await db.execute(INSERT, ("offline",))
                with pytest.raises(CatchUpTimeout, match=r"disconnected.*1\. .*connect\(\)"):
                    await syncing.caught_up(0.05)
                waiting = asyncio.create_task(syncing.caught_up(SECONDS_MAX))
                for _ in range(2):
                    await syncing.connect()
                await waiting
                for _ in range(2):
                    await syncing.disconnect()
                    assert str(syncing.status) == "disconnected"
                result = await db.execute(INSERT, ("offline again",))
                async for status in syncing.watch_status():
                    if str(status) == "disconnected, 1 queued":
                        break
                with pytest.raises(CatchUpTimeout, match="waits"):
                    await db.synced(result.changeset, timeout=0.05)
                await syncing.connect()
                assert await db.synced(result.changeset, SECONDS_MAX)
            assert syncing.status.state == "disconnected"
            with pytest.raises(UsageError, match="ended"):
                await syncing.connect()
            await sync_once(second, relay.url)
        await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_the_status_is_told_from_the_first_try_to_the_end(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "BACK_OFF_SECONDS", (3600.0, 3600.0))
    port = free_port()

    async def scenario() -> list[SyncStatus]:
        async with Database(make(tmp_path / "first.db", ITEM)) as db:
            await db.track_all()
            async with Sync(db, f"ws://127.0.0.1:{port}/sync") as syncing:
                first = await until_it_is(syncing, "offline")
                assert str(first[-1]).startswith("offline: no connection to ws://")
                assert first[-1].retry_in is not None
                assert first[-1].retry_at_ms is not None
                assert first[-1].retry_at_ms - db.clock() > 1_700_000
                said: list[SyncStatus] = []

                async def follow() -> None:
                    async for status in syncing.watch_status():
                        said.append(status)

                following = asyncio.create_task(follow())
                async with relay_on(postgres_url, port=port):
                    # The next try is half an hour away; somebody has pressed a button.
                    await syncing.connect()
                    await syncing.caught_up(SECONDS_MAX)
            await following
            return said

    said = asyncio.run(scenario())
    states = [status.state for status in said]
    assert states[0] in ("offline", "connecting")
    assert "live" in states
    assert states[-1] == "disconnected"
    assert all(one != other for one, other in pairwise(said))
    live = next(status for status in said if status.state == "live")
    assert (live.reason, live.retry_in, live.retry_at_ms) == (None, None, None)


def test_a_connection_that_hangs_is_left_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()
            writer.close()
            gone.set()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with Database(tmp_path / "file.db") as db, Sync(db, f"ws://127.0.0.1:{port}/") as it:
            await asked.wait()
            async with asyncio.timeout(SECONDS_MAX):
                await it.disconnect()
            assert it.status.state == "disconnected"
        await gone.wait()
        server.close()

    asyncio.run(scenario())


def test_a_write_is_synced_or_refused_also_asked_in_another_run(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        first = make(tmp_path / "first.db", ITEM)
        async with relay_on(postgres_url) as relay:
            await track_and_sync(first, relay.url)
            await execute(postgres_url, "ALTER TABLE item ADD CHECK (n <> 13)")
            async with Database(first) as db:
                good = await db.executemany(INSERT, [("a",), ("b",)])
                async with db.transaction() as tx:
                    await tx.execute("UPDATE item SET n = 1")
                    await tx.execute("INSERT INTO item (name, n) VALUES ('bad', 13)")
                    assert tx.changeset is None
                bad = tx.changeset
                later = await db.execute("INSERT INTO item (name, n) VALUES ('later', 1)")
                none = await db.execute("UPDATE item SET n = 1 WHERE id = 99")
                assert none.changeset is None
                assert await db.synced(none.changeset)
                assert len({good.changeset, bad, later.changeset}) == 3
                waiting = [
                    asyncio.create_task(db.synced(changeset, SECONDS_MAX))
                    for changeset in (good.changeset, bad, later.changeset)
                ]
                async with Sync(db, relay.url):
                    assert await asyncio.gather(*waiting) == [True, False, True]
                await db.execute("DELETE FROM reunite_rejected")
            copy = tmp_path / "copy.db"
            with sqlite3.connect(first) as conn:
                conn.execute("VACUUM INTO ?", (str(copy),))
            conn.close()
            for file in (first, copy):
                async with Database(file) as db:
                    # The copy finds that it is one, and goes on as another replica.
                    await db.execute(INSERT, (file.name,))
                    await sync_once(db, relay.url)
                    asked = [good.changeset, bad, later.changeset]
                    assert [await db.synced(each, 1) for each in asked] == [True, False, True]
                    with pytest.raises(UsageError, match="no changeset"):
                        await db.synced(1 << 60)

    asyncio.run(scenario())


def test_a_write_that_another_process_syncs_is_synced(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        file = make(tmp_path / "file.db", ITEM)
        async with relay_on(postgres_url) as relay, Database(file) as db:
            await db.track_all()
            result = await db.execute(INSERT, ("a",))
            waiting = asyncio.create_task(db.synced(result.changeset, SECONDS_MAX))
            process = await asyncio.create_subprocess_exec(
                REUNITE, "sync", str(file), relay.url, "--once"
            )
            assert await waiting
            assert await process.wait() == 0

    asyncio.run(scenario())


def test_rejections_are_told_whoever_was_not_looking(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        file = make(tmp_path / "file.db", ITEM)
        async with relay_on(postgres_url) as relay:
            await track_and_sync(file, relay.url)
            await execute(postgres_url, "ALTER TABLE item ADD CHECK (n <> 13)")
            async with Database(file) as db:
                await db.execute("INSERT INTO item VALUES (1, 'before', 13)")
                await sync_once(db, relay.url)
                stream = db.watch_rejected()
                assert (await anext(stream))["key"] == 1
                async with Sync(db, relay.url), asyncio.timeout(SECONDS_MAX):
                    # The line's id is given again once it is deleted.
                    await db.execute("DELETE FROM reunite_rejected")
                    await db.execute("INSERT INTO item VALUES (2, 'two', 13)")
                    await db.execute("INSERT INTO item VALUES (3, 'three', 13)")
                    assert [(await anext(stream))["key"] for _ in range(2)] == [2, 3]

    asyncio.run(scenario())


@pytest.mark.parametrize("inside", ["a transaction", "a session"])
def test_catching_up_inside_a_transaction_is_refused_at_once(tmp_path: Path, inside: str) -> None:
    async def refused(syncing: Sync) -> None:
        with pytest.raises(UsageError, match="inside a transaction"):
            await syncing.caught_up(timeout=SECONDS_MAX)

    async def scenario() -> None:
        async with (
            Database(make(tmp_path / "file.db", ITEM)) as db,
            Sync(db, "ws://127.0.0.1:1", connected=False) as syncing,
        ):
            if inside == "a session":
                async with db.session() as session, session.begin():
                    await session.execute(text("INSERT INTO item (name) VALUES ('in it')"))
                    await refused(syncing)
            else:
                async with db.transaction() as tx:
                    await tx.execute(INSERT, ("in it",))
                    await refused(syncing)
            assert (await db.fetch_all("SELECT name FROM item"))[0]["name"] == "in it"

    asyncio.run(scenario())
