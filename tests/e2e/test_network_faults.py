"""Connections that break, stop or lie, and relays that are not there: all heals by itself."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web

from reunite import Database
from reunite.driver import real_clock
from reunite.errors import SyncError
from reunite_transport import Sync, websocket
from reunite_transport.messages import SUBPROTOCOL
from tests.e2e.processes import free_port
from tests.e2e.proxy import proxy_to
from tests.e2e.world import (
    QUICK,
    SECONDS_MAX,
    assert_converged,
    contents,
    fetch,
    make,
    one,
    plain,
    queued,
    relay_on,
    sync_once,
    track_and_sync,
    until,
    until_fetched,
    write,
)

ITEM = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, size INTEGER)"
ROWS = 5_000


def fill(file: Path, rows: int = ROWS) -> Path:
    make(file, ITEM)
    with plain(file) as conn:
        conn.executemany(
            "INSERT INTO item VALUES (?, ?, ?)", ((n, f"item {n}", n * n) for n in range(rows))
        )
    return file


@pytest.mark.parametrize("direction", ["push", "first load"])
def test_a_load_that_is_cut_at_random_bytes_resumes(
    direction: str, tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(6)
    cuts = 8

    async def scenario() -> None:
        source, empty = fill(tmp_path / "source.db"), tmp_path / "empty.db"
        async with (
            relay_on(postgres_url, limits=replace(QUICK, page_rows_max=500)) as relay,
            proxy_to(relay.url) as proxy,
        ):
            if direction == "first load":
                await track_and_sync(source, relay.url)
                file, way = empty, proxy.down
            else:
                file, way = source, proxy.up
            async with Database(file) as db:
                await db.track_all()
                async with Sync(db, proxy.url) as sync:
                    for number in range(cuts):
                        way.cut_after = chance.randrange(1, 400 * (number + 1) ** 2)
                        await until(lambda: way.cut_after is None, "a cut")
                    await sync.caught_up(SECONDS_MAX)
            assert proxy.cuts == cuts
            await sync_once(empty, relay.url)
            await assert_converged(postgres_url, source, empty)
            assert one(empty, "SELECT count(*) FROM item") == ROWS

    asyncio.run(scenario())


def test_a_cut_between_commit_and_acknowledgement_doubles_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    """Schedule 8, with a clock that jumps meanwhile: what was sent once is never stamped again, so
    an edit made between the two wins everywhere."""
    ahead_ms = 0

    def clock() -> int:
        return real_clock() + ahead_ms

    async def scenario() -> None:
        nonlocal ahead_ms
        first, second = fill(tmp_path / "one.db", 3), tmp_path / "two.db"
        async with relay_on(postgres_url) as relay, proxy_to(relay.url) as proxy:
            await track_and_sync(first, relay.url)
            await sync_once(second, relay.url)
            async with Database(first, clock=clock) as db, Sync(db, proxy.url) as mine:
                await mine.caught_up(SECONDS_MAX)
                proxy.down.lossy = True
                await db.execute("UPDATE item SET name = 'mine' WHERE id = 1")
                await until_fetched(postgres_url, "SELECT 1 FROM item WHERE name = 'mine'")
                assert queued(first) == 1
                write(second, "UPDATE item SET name = 'theirs' WHERE id = 1")
                await sync_once(second, relay.url)
                ahead_ms = -30_000
                proxy.cut()
                proxy.down.lossy = False
                await mine.caught_up(SECONDS_MAX)
                assert one(first, "SELECT name FROM item WHERE id = 1") == "theirs"
            await sync_once(second, relay.url)
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_queue_whose_acknowledgements_are_lost_again_and_again_arrives_once(
    tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(7)

    async def scenario() -> None:
        file, fresh = fill(tmp_path / "one.db", 3), tmp_path / "two.db"
        async with relay_on(postgres_url) as relay, proxy_to(relay.url) as proxy:
            async with Database(file) as db, Sync(db, proxy.url) as mine:
                await db.track_all()
                await mine.caught_up(SECONDS_MAX)
                for number in range(15):
                    await db.execute("INSERT INTO item (name) VALUES (?)", (f"new {number}",))
                    await db.execute("UPDATE item SET size = coalesce(size, 0) + 1")
                    await asyncio.sleep(chance.random() / 50)
                    way = chance.choice([proxy.up, proxy.down])
                    way.lossy = True
                    await db.execute("UPDATE item SET size = size + 1 WHERE id = 1")
                    await asyncio.sleep(chance.random() / 50)
                    proxy.cut()
                    way.lossy = False
                await mine.caught_up(SECONDS_MAX)
            await sync_once(fresh, relay.url)
            assert one(fresh, "SELECT count(*) FROM item") == 18
            await assert_converged(postgres_url, file, fresh)

    asyncio.run(scenario())


@pytest.mark.parametrize("when", ["live", "connecting"])
def test_a_relay_that_stops_answering_is_given_up(
    when: str, tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open socket: the connection stands, and nothing comes."""
    monkeypatch.setattr(websocket, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(websocket, "CONNECT_SECONDS", 0.3)

    async def scenario() -> None:
        file = fill(tmp_path / "one.db", 3)
        async with relay_on(postgres_url) as relay, proxy_to(relay.url) as proxy:
            if when == "connecting":
                proxy.down.open.clear()
            async with Database(file) as db, Sync(db, proxy.url) as mine:
                await db.track_all()
                if when == "live":
                    await mine.caught_up(SECONDS_MAX)
                    proxy.down.open.clear()
                before = proxy.connections
                await db.execute("INSERT INTO item (name) VALUES ('new')")
                await until(lambda: proxy.connections > before + 1, "tried again")
                proxy.cut()
                proxy.down.open.set()
                await mine.caught_up(SECONDS_MAX)
            fresh = tmp_path / "two.db"
            await sync_once(fresh, relay.url)
            await assert_converged(postgres_url, file, fresh)

    asyncio.run(scenario())


def test_a_slow_way_only_takes_longer(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        file, fresh = fill(tmp_path / "one.db", 50), tmp_path / "two.db"
        async with relay_on(postgres_url) as relay, proxy_to(relay.url) as proxy:
            proxy.down.open.clear()
            async with Database(file) as db, Sync(db, proxy.url) as mine:
                await db.track_all()
                with pytest.raises(SyncError, match="not caught up after"):
                    await mine.caught_up(timeout=0.2)
                proxy.down.open.set()
                await mine.caught_up(SECONDS_MAX)
            await sync_once(fresh, relay.url)
            await assert_converged(postgres_url, file, fresh)

    asyncio.run(scenario())


def test_a_relay_may_come_late_and_come_back_elsewhere(tmp_path: Path, postgres_url: str) -> None:
    port = free_port()

    async def scenario() -> None:
        first, second = fill(tmp_path / "one.db", 3), tmp_path / "two.db"
        async with Database(first) as db:
            await db.track_all()
            async with Sync(db, f"ws://127.0.0.1:{port}/sync") as mine:
                await until(lambda: mine.status.last_error is not None, "an error")
                assert mine.status.last_error is not None
                assert mine.status.last_error.code == "offline"
                await db.execute("INSERT INTO item (name) VALUES ('early')")
                for number in range(3):
                    async with relay_on(postgres_url, port=port):
                        await mine.caught_up(SECONDS_MAX)
                        assert mine.status.last_error is None
                        await db.execute("INSERT INTO item (name) VALUES (?)", (f"n {number}",))
                    await until(lambda: mine.status.state != "live", "offline")
            async with relay_on(postgres_url) as elsewhere:
                await sync_once(db, elsewhere.url)
                await sync_once(second, elsewhere.url)
        await assert_converged(postgres_url, first, second)
        assert one(second, "SELECT count(*) FROM item") == 7

    asyncio.run(scenario())


Handler = Callable[[web.WebSocketResponse], Awaitable[None]]


@asynccontextmanager
async def fake_relay(handler: Handler, protocol: str = SUBPROTOCOL) -> AsyncIterator[str]:
    """Something that takes WebSockets and says what it likes."""

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(protocol,))
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client has had enough
            await handler(socket)
        return socket

    app = web.Application()
    app.router.add_get("/sync", connect)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/sync"
    finally:
        await runner.cleanup()


def garbage(number: int) -> bytes:
    """Frames that are nearly right, and frames that are not at all."""
    chance = random.Random(number)
    return chance.choice(
        [
            b"",
            b"\x00",
            b"\x01\x28\xb5\x2f\xfd",
            b"\x00" + b"\x91" * 200_000,
            b"\x00\xdd\xff\xff\xff\xff",
            b"\x00\x99\x10\x01\x90" + chance.randbytes(30),
            b"\x00\x94\x16" + chance.randbytes(chance.randrange(40)),
            chance.randbytes(chance.randrange(2_000)),
        ]
    )


@pytest.mark.parametrize("kind", ["one frame", "a flood", "text", "another protocol", "silence"])
def test_a_relay_that_talks_nonsense_harms_no_file(
    kind: str, tmp_path: Path, postgres_url: str
) -> None:
    connections = 0

    async def talk(socket: web.WebSocketResponse) -> None:
        nonlocal connections
        connections += 1
        await socket.receive()
        if kind == "silence":
            await socket.close()
        elif kind == "text":
            await socket.send_str("hello")
        else:
            for number in range(1 if kind == "one frame" else 500):
                await socket.send_bytes(garbage(connections + number))
        while (await socket.receive()).type == WSMsgType.BINARY:
            pass

    async def scenario() -> None:
        file = fill(tmp_path / "one.db", 20)
        before = contents(file)
        protocol = "other.1" if kind == "another protocol" else SUBPROTOCOL
        async with fake_relay(talk, protocol) as url, Database(file) as db:
            await db.track_all()
            async with Sync(db, url) as mine:
                await until(lambda: connections >= 4 or mine.status.state == "stopped", "tries")
                if kind in ("one frame", "a flood", "another protocol"):
                    assert mine.status.last_error is not None
            assert contents(file) == before
            assert await db.verify() == []
            async with relay_on(postgres_url) as relay:
                await sync_once(db, relay.url)
        assert (await fetch(postgres_url, "SELECT count(*) AS n FROM item"))[0]["n"] == 20
        assert contents(file) == before

    asyncio.run(scenario())


def test_two_syncs_of_one_file_do_no_harm(tmp_path: Path, postgres_url: str) -> None:
    """They take turns, as the relay lets in the last that came; nothing is lost or doubled."""

    async def scenario() -> None:
        file, fresh = fill(tmp_path / "one.db", 3), tmp_path / "two.db"
        async with relay_on(postgres_url) as relay:
            await track_and_sync(file, relay.url)
            async with (
                Database(file) as db,
                Database(file) as again,
                Sync(db, relay.url) as mine,
                Sync(db, relay.url) as twin,
                Sync(again, relay.url) as third,
            ):
                for number in range(30):
                    writer = (db, again)[number % 2]
                    await writer.execute("INSERT INTO item (name) VALUES (?)", (f"n {number}",))
                    await writer.execute("UPDATE item SET size = size + 1 WHERE id = 1")
                    await asyncio.sleep(0.02)
                await until(lambda: queued(file) == 0, "all is sent")
                assert {mine.status.state, twin.status.state, third.status.state} <= {
                    "live",
                    "loading",
                    "connecting",
                    "offline",
                }
            await sync_once(file, relay.url)
            await sync_once(fresh, relay.url)
            assert one(fresh, "SELECT size FROM item WHERE id = 1") == 31
            assert one(fresh, "SELECT count(*) FROM item") == 33
            await assert_converged(postgres_url, file, fresh)

    asyncio.run(scenario())
