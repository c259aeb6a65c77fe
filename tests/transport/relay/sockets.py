"""A relay on a free port over a store in memory, and clients with real sockets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from reunite_transport.codec import decode, encode
from reunite_transport.messages import (
    FRAME_BYTES_MAX,
    SUBPROTOCOL,
    ClientMessage,
    Error,
    Hello,
    Page,
    Pull,
    RelayMessage,
    Verdict,
    Welcome,
)
from reunite_transport.relay.server import Relay, serve
from reunite_transport.relay.service import Limits
from tests.transport.relay.clients import SECONDS_MAX, TODO, Kind, hello
from tests.transport.relay.memory_store import MemoryStore

QUICK = Limits(poll_seconds=0.01, store_seconds=0.5, drain_seconds=0.5)


@dataclass
class Socket:
    """A client's end of a WebSocket."""

    socket: aiohttp.ClientWebSocketResponse

    async def say(self, *messages: ClientMessage) -> None:
        for message in messages:
            await self.socket.send_bytes(encode(message))

    async def next(self, kind: type[Kind]) -> Kind:
        """The next message of this kind; an Error that is not asked for fails the test."""
        while True:
            message = await self.message()
            if isinstance(message, kind):
                return message
            assert not isinstance(message, Error), message

    async def message(self) -> RelayMessage:
        data = await self.socket.receive_bytes(timeout=SECONDS_MAX)
        message = decode(data, "client")
        assert message is not None
        return message

    async def error(self) -> str:
        """The code of the Error that comes next."""
        message = await self.message()
        assert isinstance(message, Error), message
        return message.code

    async def closed(self) -> int | None:
        """The code with which the relay closed, after all that it still sent."""
        while True:
            message = await self.socket.receive(timeout=SECONDS_MAX)
            if message.type is not aiohttp.WSMsgType.BINARY:
                return self.socket.close_code

    async def greet(self, hello: Hello) -> Welcome:
        await self.say(hello)
        return await self.next(Welcome)

    async def pull(self) -> list[Page]:
        """All pages from the start, until live."""
        await self.say(Pull(0, b""))
        pages = [await self.next(Page)]
        while not pages[-1].complete:
            await self.say(Pull(pages[-1].seq, pages[-1].within))
            pages.append(await self.next(Page))
        return pages


@dataclass
class World:
    """A relay, its store, and a way to connect."""

    store: MemoryStore
    relay: Relay
    http: aiohttp.ClientSession
    sockets: list[Socket] = field(default_factory=list)

    async def connect(
        self,
        path: str = "/sync",
        *,
        protocols: Sequence[str] = (SUBPROTOCOL,),
        headers: dict[str, str] | None = None,
    ) -> Socket:
        url = self.relay.url.removesuffix("/sync") + path
        connected = Socket(
            await self.http.ws_connect(
                url, protocols=protocols, headers=headers, max_msg_size=FRAME_BYTES_MAX + 1
            )
        )
        self.sockets.append(connected)
        return connected

    async def live(self, replica: int) -> Socket:
        socket = await self.connect()
        welcome = await socket.greet(hello(replica))
        assert welcome.verdict is Verdict.CONTINUE
        await socket.pull()
        return socket


@asynccontextmanager
async def running(
    *, limits: Limits = QUICK, store: MemoryStore | None = None, create_tables: bool = True
) -> AsyncIterator[World]:
    store = store or MemoryStore(TODO)
    relay = await serve(store, limits=limits, create_tables=create_tables)
    try:
        async with asyncio.timeout(SECONDS_MAX), aiohttp.ClientSession() as http:
            world = World(store, relay, http)
            yield world
            for socket in world.sockets:
                await socket.socket.close()
    finally:
        await relay.close()


def http_url(world: World, path: str) -> str:
    return f"http://{world.relay.host}:{world.relay.port}{path}"


async def health(world: World) -> int:
    """The status with which the relay says how it is."""
    async with world.http.get(http_url(world, "/health")) as answer:
        await answer.json()
        return answer.status
