"""When `reunite sync --once` has waited for long enough, and when it has not."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web

from reunite import CatchUpTimeout, Database, SyncError
from reunite_transport import Sync
from reunite_transport.codec import decode, encode
from reunite_transport.messages import (
    SUBPROTOCOL,
    VERSION,
    Barrier,
    ClientMessage,
    Hello,
    Page,
    Pull,
    Reached,
    RelayMessage,
    Verdict,
    Welcome,
)
from reunite_transport.watch import IDLE_SECONDS_MAX, Watch
from tests.transport.commands import NO_RELAY

SECONDS_MAX = 20.0
# The relay's only commit, as it tells of it.
SEQ, TOKEN = 1, b"8 bytes."

Answer = Callable[[ClientMessage], RelayMessage | None]


@asynccontextmanager
async def relay_that_says(answer: Answer) -> AsyncIterator[str]:
    """A relay that answers each message as it is told to, and says nothing else."""

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,))
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            while (frame := await socket.receive()).type == WSMsgType.BINARY:
                message = decode(frame.data, "relay")
                assert message is not None
                said = answer(message)
                if said is not None:
                    await socket.send_bytes(encode(said))
        return socket

    app = web.Application()
    app.router.add_get("/", connect)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def welcome(message: ClientMessage) -> RelayMessage | None:
    """Answers a Hello, and nothing else."""
    if not isinstance(message, Hello):
        return None
    at = message.sent_ms
    return Welcome(VERSION, (), b"realm " * 2 + b"four", at, at, Verdict.CONTINUE, (), SEQ, 0, ())


def empty_realm(message: ClientMessage) -> RelayMessage | None:
    """Answers as a relay does that has no tables."""
    if isinstance(message, Pull):
        return Page((), SEQ, b"", True, TOKEN)
    return Reached(message.id, SEQ) if isinstance(message, Barrier) else welcome(message)


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while not condition():  # noqa: ASYNC110 - a status has no event to wait for
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {SECONDS_MAX} s: {what}") from None


async def within(seconds: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(seconds):
        await work


def hurried() -> float:
    """A clock that runs a thousand times as fast."""
    return time.monotonic() * 1_000


def test_a_relay_that_is_silent_in_a_first_load_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relay_that_says(welcome) as url, Database(tmp_path / "new.db") as db:
            watch = Watch(1e9, clock=hurried)
            async with Sync(db, url, on_event=watch.on_event) as running:
                with pytest.raises(SyncError, match="the relay answered nothing for"):
                    await within(SECONDS_MAX, watch.until_caught_up(running, first_load=True))
                assert running.status.state == "loading"

    asyncio.run(scenario())


def test_a_relay_that_never_registers_a_table_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with relay_that_says(welcome) as url, Database(tmp_path / "one.db") as db:
            await db.execute("CREATE TABLE item (id TEXT PRIMARY KEY)")
            await db.execute("INSERT INTO item VALUES ('a')")
            await db.track_all()
            watch = Watch(1e9, clock=hurried)
            async with Sync(db, url, on_event=watch.on_event) as running:
                with pytest.raises(SyncError, match="1 changeset pending"):
                    await within(SECONDS_MAX, watch.until_caught_up(running, first_load=True))

    asyncio.run(scenario())


def test_the_time_that_the_file_itself_takes_is_not_the_relays(tmp_path: Path) -> None:
    """Another program holds the file while the relay's Welcome is to be written there."""
    file = tmp_path / "one.db"
    seconds, looks = 0.0, 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return seconds

    async def scenario() -> None:
        nonlocal seconds
        with closing(sqlite3.connect(file, isolation_level=None)) as other:

            def answer(message: ClientMessage) -> RelayMessage | None:
                if isinstance(message, Hello):
                    other.execute("BEGIN IMMEDIATE")
                return empty_realm(message)

            async with relay_that_says(answer) as url, Database(file) as db:
                watch = Watch(30, clock=clock)
                async with Sync(db, url, on_event=watch.on_event) as running:
                    caught_up = asyncio.ensure_future(
                        within(SECONDS_MAX, watch.until_caught_up(running, first_load=True))
                    )
                    await until(lambda: running.status.working and looks > 6, "seen at work")
                    seconds, seen = 2 * IDLE_SECONDS_MAX, looks
                    await until(lambda: looks > seen + 6 or caught_up.done(), "looked at")
                    assert running.status.working
                    other.execute("ROLLBACK")
                    await caught_up
                    assert not running.status.working

    asyncio.run(scenario())


def test_catching_up_that_takes_too_long_says_why_and_what_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Database(tmp_path / "one.db") as db:
            await db.execute("CREATE TABLE item (id TEXT PRIMARY KEY)")
            await db.execute("INSERT INTO item VALUES ('a')")
            await db.track_all()
            async with Sync(db, NO_RELAY) as running:
                await until(lambda: running.status.last_error is not None, "an error")
                with pytest.raises(CatchUpTimeout) as late:
                    await running.caught_up(timeout=0.05)
        assert str(late.value) == (
            f"not caught up after 0.05 s: no connection to {NO_RELAY}: connection refused (is the"
            " relay running?); changesets that wait in the file: 1. Sync goes on while it is open"
        )

    asyncio.run(scenario())
