"""A way to a relay that can be cut, stopped, or made to lose what it carries, one way or both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK_BYTES = 4096


@dataclass(eq=False)
class Way:
    """One direction of all connections. What arrives while it is not `open` waits; `lossy` swallows
    it; at `cut_after` more bytes all connections are cut, in the middle of a frame as it comes."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    lossy: bool = False
    cut_after: int | None = None
    carried: int = 0


class Proxy:
    """Carries bytes between clients and one relay; made by `proxy_to`."""

    url: str

    def __init__(self, relay_url: str) -> None:
        """`up` leads to the relay, `down` to the clients."""
        parts = urlsplit(relay_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.relay_host, self.relay_port = parts.hostname, parts.port
        self.up, self.down = Way(), Way()
        self.up.open.set()
        self.down.open.set()
        self.cuts = 0
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Break all connections, as when a cable is pulled and both ends notice."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            theirs, ours = await asyncio.open_connection(self.relay_host, self.relay_port)
            self._writers.add(ours)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, ours, self.up))
                    both.create_task(self._pump(theirs, writer, self.down))
            finally:
                self._writers.discard(ours)
                ours.transport.abort()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await way.open.wait()
            if way.lossy:
                continue
            if way.cut_after is not None and len(data) >= way.cut_after:
                data, way.cut_after = data[: way.cut_after], None
                writer.write(data)
                with contextlib.suppress(OSError):
                    await writer.drain()
                self.cut()
                raise ConnectionAbortedError
            if way.cut_after is not None:
                way.cut_after -= len(data)
            way.carried += len(data)
            writer.write(data)
            await writer.drain()
        # One end has gone: the other hears of it as of a cut.
        raise ConnectionAbortedError

    async def close(self) -> None:
        """Cut, and wait until nothing is carried any more."""
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxy_to(relay_url: str) -> AsyncIterator[Proxy]:
    """A proxy on a free loopback port."""
    proxy = Proxy(relay_url)
    server = await asyncio.start_server(proxy.carry, "127.0.0.1", 0)
    proxy.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/sync"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
