"""A way to a relay that can be cut, stopped, or made to lose what it carries, one way or both; or
to be late with it, or to say it twice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK_BYTES = 4096
# The first byte of a whole message of bytes.
BINARY = b"\x82"


@dataclass(eq=False)
class Way:
    """One direction of all connections. What arrives while it is not `open` waits; `lossy` swallows
    it; at `cut_after` more bytes all connections are cut, in the middle of a frame as it comes.
    Each chunk is `late_seconds` on its way; the next `repeats` binary frames come twice."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    lossy: bool = False
    cut_after: int | None = None
    late_seconds: float = 0.0
    repeats: int = 0
    carried: int = 0

    def heal(self) -> None:
        """All is well from now on; what waited goes on."""
        self.open.set()
        self.lossy = False
        self.cut_after = None
        self.late_seconds = 0.0
        self.repeats = 0


class Frames:
    """Finds the frames in one direction of a WebSocket, behind the handshake's HTTP (RFC 6455,
    5.2)."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._shaken = False

    def split(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """`data` in pieces, each with the whole frame that it ends; the last may end none."""
        while data:
            had = len(self._begun)
            self._begun += data
            size = self._size()
            if size is None or len(self._begun) < size:
                yield data, b""
                return
            frame = bytes(self._begun[:size])
            self._begun.clear()
            self._shaken = True
            yield data[: size - had], frame
            data = data[size - had :]

    def _size(self) -> int | None:
        """How long what has begun will be; None while too little of it has come to tell."""
        if not self._shaken:
            end = self._begun.find(b"\r\n\r\n")
            return end + 4 if end >= 0 else None
        if len(self._begun) < 2:
            return None
        length, mask = self._begun[1] & 0x7F, 4 if self._begun[1] & 0x80 else 0
        wide = {126: 2, 127: 8}.get(length, 0)
        if len(self._begun) < 2 + wide:
            return None
        if wide:
            length = int.from_bytes(self._begun[2 : 2 + wide], "big")
        return 2 + wide + mask + length


class Proxy:
    """Carries bytes between clients and one relay; made by `proxy_to`."""

    url: str

    def __init__(self, relay_url: str) -> None:
        """`up` leads to the relay, `down` to the clients."""
        self.lead_to(relay_url)
        self.up, self.down = Way(), Way()
        self.heal()
        self.cuts = 0
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def lead_to(self, relay_url: str) -> None:
        """Let new connections lead to another relay."""
        parts = urlsplit(relay_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.relay_host, self.relay_port = parts.hostname, parts.port

    def cut(self) -> None:
        """Break all connections, as when a cable is pulled and both ends notice."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """All is well from now on, both ways."""
        self.up.heal()
        self.down.heal()

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
        frames = Frames()
        while data := await reader.read(CHUNK_BYTES):
            await way.open.wait()
            if way.late_seconds:
                await asyncio.sleep(way.late_seconds)
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
            for piece, frame in frames.split(data):
                writer.write(piece)
                if way.repeats and frame.startswith(BINARY):
                    way.repeats -= 1
                    writer.write(frame)
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
