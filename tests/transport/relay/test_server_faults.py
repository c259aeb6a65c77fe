"""The relay over real sockets, misused: what one connection does, the others do not notice."""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from reunite.errors import TableError, UsageError
from reunite_transport import relay_session
from reunite_transport.codec import encode
from reunite_transport.messages import (
    FRAME_BYTES_MAX,
    SUBPROTOCOL,
    Barrier,
    Commit,
    Pull,
    Reached,
    Verdict,
    Welcome,
)
from reunite_transport.relay.server import Relay, serve
from reunite_transport.relay.service import open_service
from reunite_transport.relay.store import FeedPage, Greeting, StoreError, WentBack
from tests.transport.relay.clients import TODO, hello, push, todo
from tests.transport.relay.memory_store import MemoryStore
from tests.transport.relay.sockets import QUICK, World, health, http_url, running


def test_garbage_of_one_connection_leaves_the_others_untouched() -> None:
    async def scenario() -> None:
        async with running() as world:
            good = await world.live(1)
            for garbage in (b"", b"\0", b"\1\x28\xb5\x2f\xfd", b"\0" + b"\x91" * 10_000, b"\7"):
                bad = await world.connect()
                await bad.socket.send_bytes(garbage)
                assert await bad.error() == "malformed"
                assert await bad.closed() == 1008
            text = await world.connect()
            await text.socket.send_str("hello")
            assert await text.error() == "malformed"
            big = await world.connect()
            with contextlib.suppress(ConnectionError):
                await big.socket.send_bytes(bytes(FRAME_BYTES_MAX + 100))
            assert await big.closed() in (1009, 1006)
            early = await world.connect()
            await early.say(Pull(0, b""))
            assert await early.error() == "unexpected"
            await good.say(push(1, todo(1, 1, "milk")))
            assert (await good.next(Commit)).acknowledged == (1,)

    asyncio.run(scenario())


def test_another_version_and_another_subprotocol_are_refused() -> None:
    async def scenario() -> None:
        async with running() as world:
            newer = await world.connect()
            await newer.say(replace(hello(1), version=2))
            assert await newer.error() == "version"
            for protocols in ((), ("reunite.2",)):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await world.connect(protocols=protocols)
                assert refused.value.status == 400

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/", "/sync"])
def test_both_paths_serve_and_a_browser_is_told_what_this_is(path: str) -> None:
    async def scenario() -> None:
        async with running() as world:
            socket = await world.connect(path)
            assert (await socket.greet(hello(1))).head == 0
            async with world.http.get(http_url(world, path)) as answer:
                assert answer.status == 400
                assert SUBPROTOCOL in await answer.text()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", None),
        ("null", None),
        ("http://rebound.example", "rebound.example"),
    ],
)
def test_a_page_of_another_site_may_not_connect(origin: str, host: str | None) -> None:
    async def scenario() -> None:
        async with running() as world:
            headers = {"Origin": origin} | ({"Host": host} if host else {})
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await world.connect(headers=headers)
            assert refused.value.status == 403
            own = f"http://{world.relay.host}:{world.relay.port}"
            await (await world.connect(headers={"Origin": own})).greet(hello(1))

    asyncio.run(scenario())


def test_a_silent_connection_ends() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, hello_seconds=0.01)) as world:
            silent = await world.connect()
            assert await silent.error() == "unexpected"
            await silent.closed()
            greeted = await world.connect()
            await greeted.greet(hello(1))

    asyncio.run(scenario())


def test_connections_are_counted() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, connections_max=2)) as world:
            first = await world.live(1)
            await world.live(2)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await world.connect()
            assert refused.value.status == 503
            await first.socket.close()
            # The relay lets go of a closed socket in its own time.
            for _ in range(1_000):
                with contextlib.suppress(aiohttp.WSServerHandshakeError):
                    await world.live(1)
                    break
            assert len(world.relay.service.connections) == 2

    asyncio.run(scenario())


def test_a_restored_database_ends_the_sessions_that_know_better() -> None:
    async def scenario() -> None:
        async with running() as world:
            client = await world.live(1)
            await client.say(push(1, todo(1, 1, "milk")))
            await client.next(Commit)
            world.store.restore(0)
            assert await client.error() == "restored"

    asyncio.run(scenario())


def test_a_database_that_goes_back_again_and_again_is_waited_for_and_given_up() -> None:
    """As one whose restore is half done: it states a head that it does not have."""

    async def scenario() -> None:
        asked = 0

        async def question() -> None:
            nonlocal asked
            asked += 1
            raise WentBack

        service = await open_service(MemoryStore(TODO), limits=replace(QUICK, store_seconds=0.3))
        try:
            with pytest.raises(WentBack):
                await service.ask(question)
        finally:
            await service.close()
        assert 2 <= asked <= 20

    asyncio.run(scenario())


@pytest.mark.parametrize("asked", ["look", "hello", "pull", "push"])
def test_whoever_asks_first_of_a_database_that_went_back_ends_all_sessions(asked: str) -> None:
    """Also when another relay has committed over the lost numbers."""

    async def scenario() -> None:
        seldom = QUICK if asked in ("look", "push") else replace(QUICK, poll_seconds=60.0)
        async with running(limits=seldom) as world:
            author, reader = await world.live(1), await world.live(2)
            loading = await world.connect()
            await loading.greet(hello(3))
            await author.say(push(1, todo(1, 1, "milk")))
            for client in (author, reader):
                await client.next(Commit)
            world.store.restore(0)
            for _ in range(3):
                world.store.commit_elsewhere()
            match asked:
                case "hello":
                    lost = replace(hello(4), seq=1, token=b"lost....")
                    late = await world.connect()
                    assert (await late.greet(lost)).verdict is Verdict.LOST
                case "pull":
                    await loading.say(Pull(0, b""))
                case "push":
                    await reader.say(push(1, todo(2, 2, "bread")))
            for client in (author, reader, loading):
                assert await client.error() == "restored"
            again = await world.live(5)
            await again.say(replace(push(1, todo(5, 5, "bread")), nonce=b"another8"))
            assert (await again.next(Commit)).seq == 4

    asyncio.run(scenario())


def test_what_is_queued_is_not_committed_to_another_history() -> None:
    """There the tables that it names may have other numbers."""

    async def scenario() -> None:
        async with running(limits=replace(QUICK, poll_seconds=60.0)) as world:
            client, service = await world.live(1), world.relay.service
            await client.say(push(1, todo(1, 1, "milk")))
            await client.next(Commit)
            world.store.gate.clear()
            world.store.began.clear()
            await client.say(push(2, todo(1, 2, "bread")))
            await world.store.began.wait()
            world.store.restore(0)
            world.store.commit_elsewhere()
            assert (await service.look()).seq == 1
            assert service.flusher.queued_bytes == 0
            world.store.gate.set()
            assert await client.error() == "restored"
            assert len(world.store.documents) == 0

    asyncio.run(scenario())


def test_an_answer_of_a_lost_history_is_asked_for_again() -> None:
    """The Hello was compared with a history that was lost before the answer came."""

    class Slow(MemoryStore):
        answered = asyncio.Event()
        released = asyncio.Event()

        async def greet(
            self, replica: int, acknowledged: int, nonces: Sequence[bytes], seq: int, token: bytes
        ) -> Greeting:
            greeting = await super().greet(replica, acknowledged, nonces, seq, token)
            if seq:
                self.answered.set()
                await self.released.wait()
            return greeting

    async def scenario() -> None:
        async with running(store=Slow(TODO)) as world:
            assert isinstance(world.store, Slow)
            author, slow = await world.live(1), await world.connect()
            await author.say(push(1, todo(1, 1, "milk")))
            token = (await author.next(Commit)).token
            await slow.say(replace(hello(2), seq=1, token=token))
            await world.store.answered.wait()
            world.store.restore(0)
            world.store.commit_elsewhere()
            assert await author.error() == "restored"
            world.store.released.set()
            assert (await slow.next(Welcome)).verdict is Verdict.LOST

    asyncio.run(scenario())


@asynccontextmanager
async def reader_of_nothing(world: World, replica: int) -> AsyncIterator[None]:
    """A client that is live and then leaves all in its socket, whose buffers are small."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (world.relay.host, world.relay.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1_024)
    try:
        writer.write(
            f"GET /sync HTTP/1.1\r\nHost: {world.relay.host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n".encode()
        )
        for message in (hello(replica), Pull(0, b"")):
            frame = encode(message)
            # A short binary frame under a mask of zeros, which leaves it as it is.
            writer.write(bytes([0x82, 0x80 | len(frame), 0, 0, 0, 0]) + frame)
        await reader.readuntil(b"\r\n\r\n")
        yield
    finally:
        writer.transport.abort()


def test_a_slow_reader_is_dropped_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "LIVE_BYTES_MAX", 1 << 20)

    async def scenario() -> None:
        async with running(limits=replace(QUICK, send_seconds=0.1)) as world:
            one, two = await world.live(1), await world.live(2)
            async with reader_of_nothing(world, 3):
                number = 0
                while len(world.relay.service.connections) < 3 or number == 0:
                    number += 1
                    await one.say(push(number, todo(1, 1, "t", at=number)))
                    await one.next(Commit)
                    await two.next(Commit)
                while len(world.relay.service.connections) == 3:
                    number += 1
                    noise = secrets.token_hex(300_000)  # hardly packs
                    await one.say(push(number, todo(1, 1, noise, at=number)))
                    assert number in (await one.next(Commit)).acknowledged
                    assert (await two.next(Commit)).seq == number

    asyncio.run(scenario())


def test_a_database_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    async def scenario() -> None:
        async with running() as world:
            client = await world.live(1)
            world.store.failing = StoreError("gone")
            while await health(world) != 503:
                pass
            await client.say(push(1, todo(1, 1, "milk")))
            world.store.failing = None
            assert (await client.next(Commit)).acknowledged == (1,)
            world.store.failing = StoreError("gone")
            await client.say(Barrier(1))
            asyncio.get_running_loop().call_later(0.1, world.store.come_back)
            assert (await client.next(Reached)).seq == 1
            while await health(world) != 200:
                pass

            world.store.failing = StoreError("gone")
            await client.say(Barrier(2))
            assert await client.error() == "internal"

    asyncio.run(scenario())


def test_a_database_that_hangs_is_not_healthy(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    class Silent(MemoryStore):
        silent = False

        async def head(self) -> tuple[int, bytes]:
            if self.silent:
                await asyncio.Event().wait()
            return await super().head()

    async def scenario() -> None:
        store = Silent(TODO)
        async with running(limits=replace(QUICK, store_seconds=0.05), store=store) as world:
            assert await health(world) == 200
            store.silent = True
            while await health(world) != 503:
                pass
            store.silent = False
            while await health(world) != 200:
                pass

    asyncio.run(scenario())


def test_a_commit_that_does_not_end_is_not_healthy() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, batch_seconds=0.05)) as world:
            client = await world.live(1)
            assert await health(world) == 200
            world.store.gate.clear()
            await client.say(push(1, todo(1, 1, "milk")))
            while await health(world) != 503:
                pass
            world.store.gate.set()
            await client.next(Commit)
            while await health(world) != 200:
                pass

    asyncio.run(scenario())


def test_a_client_that_vanishes_during_the_upgrade_is_no_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(relay: Relay, request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()

    async def scenario() -> None:
        async with running() as world:
            with monkeypatch.context() as patch:
                # Called right before the upgrade.
                patch.setattr(Relay, "_check_origin", vanish)
                for _ in range(3):
                    with pytest.raises(aiohttp.ClientError):
                        await world.connect()
            await world.live(1)
            assert len(world.relay.service.connections) == 1

    asyncio.run(scenario())
    assert caplog.messages == []


async def connect_without_end(world: World) -> None:
    while True:
        await (await world.connect()).socket.close()


def test_closing_finishes_the_batch_under_way_and_says_goodbye() -> None:
    async def scenario() -> None:
        async with running() as world:
            one, two = await world.live(1), await world.live(2)
            world.store.gate.clear()
            world.store.began.clear()
            await one.say(push(1, todo(1, 1, "milk")))
            await world.store.began.wait()
            closing = asyncio.create_task(world.relay.close())
            with pytest.raises(aiohttp.ClientError):
                await connect_without_end(world)
            world.store.gate.set()
            assert (await one.next(Commit)).acknowledged == (1,)
            assert (await two.next(Commit)).seq == 1
            assert [await one.closed(), await two.closed()] == [1001, 1001]
            await closing
            await world.relay.close()

    asyncio.run(scenario())


def test_closing_does_not_wait_for_a_database_that_hangs() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, drain_seconds=0.05)) as world:
            client = await world.live(1)
            world.store.gate.clear()
            world.store.began.clear()
            await client.say(push(1, todo(1, 1, "milk")))
            await world.store.began.wait()
            closing = asyncio.create_task(world.relay.close())
            assert await client.closed() == 1001
            await closing
            assert world.store.documents == {}

    asyncio.run(scenario())


def test_an_error_of_ours_ends_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    class Broken(MemoryStore):
        async def page(self, seq: int, within: bytes, *, rows_max: int, bytes_max: int) -> FeedPage:
            if within:
                raise ZeroDivisionError("ours to repair")
            return await super().page(seq, within, rows_max=rows_max, bytes_max=bytes_max)

    async def scenario() -> None:
        async with running(store=Broken(TODO)) as world:
            good, bad = await world.live(1), await world.connect()
            await bad.greet(hello(2))
            await bad.say(Pull(0, b"broken"))
            assert await bad.error() == "internal"
            await good.say(push(1, todo(1, 1, "milk")))
            assert (await good.next(Commit)).acknowledged == (1,)

    asyncio.run(scenario())


def test_a_relay_listens_for_others_only_when_told_so() -> None:
    async def scenario() -> None:
        store = MemoryStore(TODO)
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
            with pytest.raises(UsageError, match="--insecure"):
                await serve(store, host=host)
        relay = await serve(store, host="0.0.0.0", insecure=True)
        await relay.close()
        async with running(store=store) as world:
            with pytest.raises(UsageError, match="choose another --port"):
                await serve(store, port=world.relay.port)

    asyncio.run(scenario())


def test_a_table_that_cannot_join_is_told_and_the_database_still_answers() -> None:
    """As where the registry is full."""

    async def scenario() -> None:
        async with running() as world:
            service = world.relay.service

            async def full(*, track_new: bool) -> Mapping[str, str]:
                raise TableError("shop", "the realm has its tables already")

            world.store.follow = full  # type: ignore[method-assign]
            await service.follow()
            assert service.troubles == {"shop": "the realm has its tables already"}
            assert service.trouble() is None

    asyncio.run(scenario())
