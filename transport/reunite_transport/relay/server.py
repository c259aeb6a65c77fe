"""The relay as a server: WebSockets on one side, a store on the other. Owns sockets and tasks.

`serve` starts it, `Relay.close` ends it. Each connection has a reader, which feeds its session and
answers its events one after the other, and a writer, which sends what the session has, each frame
within a time. One flusher commits what all of them push, and one task looks for commits of other
relays. What goes wrong in one connection ends that connection.

Until clients sign in, a relay listens on this machine only, and what a web page could reach it
with is refused: see `_check_origin`.
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web

from reunite.errors import FormatError, TableError, UsageError
from reunite_transport.messages import (
    FRAME_BYTES_GOAL,
    FRAME_BYTES_MAX,
    FRAME_ROWS_MAX,
    SUBPROTOCOL,
    Hello,
    Verdict,
)
from reunite_transport.relay.flusher import DELAY_SECONDS_MAX, DELAY_SECONDS_MIN, Flusher
from reunite_transport.relay.hub import Hub, Member
from reunite_transport.relay.store import HistoryLost, Store, StoreError, Violation
from reunite_transport.relay_session import (
    HELLO_SECONDS_MAX,
    BarrierRequested,
    Closed,
    Described,
    Event,
    Greeted,
    PullRequested,
    PushReady,
    RelaySession,
)

# Clients that see a socket close shake hands on it; others are cut off after this.
CLOSE_SECONDS_MAX: Final = 2.0
# A session that holds less than this of unanswered pushes is never the reason for a full relay.
UNANSWERED_BYTES_FREE: Final = 1 << 20

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a relay allows itself and its clients."""

    connections_max: int = 1_000
    """Each costs some 100 KB while idle."""
    unanswered_bytes_max: int = 1 << 30
    """Pushes of all connections, whole or in parts, that wait for their verdict in memory."""
    hello_seconds: float = HELLO_SECONDS_MAX
    send_seconds: float = 30.0
    """For one frame to leave; a reader slower than this resumes from its cursor."""
    heartbeat_seconds: float = 20.0
    """Below the minute after which most proxies drop an idle connection."""
    poll_seconds: float = 0.25
    """How late a commit of another relay on the same database may be noticed."""
    store_seconds: float = 15.0
    """How long a client's question waits for a database that is away."""
    batch_seconds: float = 60.0
    """How long one commit may take before the relay counts as unhealthy; the largest take
    seconds."""
    drain_seconds: float = 10.0
    """For the batch under way when the relay stops."""


async def serve(
    store: Store,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    create_tables: bool = True,
    insecure: bool = False,
    limits: Limits | None = None,
) -> "Relay":
    """Start a relay for the realm in `store`; it accepts connections when this returns.

    Port 0 takes a free one. `create_tables` lets clients add tables and columns to the realm.
    `insecure` allows a host that others can reach, where nobody has to sign in. The store stays
    the caller's, who closes it after the relay. Raises UsageError for a host or port that cannot
    be had, StoreError when the database does not answer.
    """
    if not insecure and not _is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and clients of this relay neither sign in"
            " nor encrypt; listen on 127.0.0.1 behind a proxy that does both, or pass --insecure"
            " in a network that you trust"
        )
    head, token = await store.head()
    registry = await store.registry()
    hub = Hub(head=head, token=token, registry=registry)
    relay = Relay(store, hub, Flusher(store, hub), create_tables, limits or Limits())
    await relay._start(host, port)
    return relay


class Relay:
    """A running relay; made by `serve`."""

    host: str
    port: int

    def __init__(
        self, store: Store, hub: Hub, flusher: Flusher, create_tables: bool, limits: Limits
    ) -> None:
        """Put the parts together; `serve` starts them."""
        self.store = store
        self.hub = hub
        self.flusher = flusher
        self.create_tables = create_tables
        self.limits = limits
        self.connections: set[_Connection] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._healthy = True
        self._closing = False

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}/sync"

    async def close(self) -> None:
        """Stop: accept nobody, finish the batch under way, say goodbye, let go of the sockets.

        What was pushed and not committed is pushed again at the next relay. Harmless when
        repeated.
        """
        if self._closing:
            return
        self._closing = True
        await self._site.stop()
        self.flusher.stop()
        flushing, watching = self._tasks
        watching.cancel()
        await asyncio.wait([flushing], timeout=self.limits.drain_seconds)
        flushing.cancel()
        await asyncio.wait(self._tasks)
        for connection in list(self.connections):
            connection.stop()
        handlers = [connection.ended.wait() for connection in self.connections]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX + 1):
                await asyncio.gather(*handlers)
        await self._runner.cleanup()

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the store on behalf of one client, again and again for a while if it is away."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.limits.store_seconds
        delay = DELAY_SECONDS_MIN
        while True:
            try:
                return await question()
            except (HistoryLost, Violation):
                raise
            except StoreError:
                if loop.time() + delay > until:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, DELAY_SECONDS_MAX)

    async def look(self) -> int:
        """Ask the store for its head and tell the hub; returns the seq."""
        since = self.hub.head
        seq, token = await self.store.head()
        in_flight = self.flusher.in_flight
        if self.hub.observe(seq, token, since=since, in_flight=in_flight):
            self.hub.grow(await self.store.registry())
        return seq

    @property
    def is_full(self) -> bool:
        """True while pushes that wait for their verdict take all the memory they may."""
        waiting = sum(connection.session.unanswered_bytes for connection in self.connections)
        return waiting > self.limits.unanswered_bytes_max

    async def _start(self, host: str, port: int) -> None:
        app = web.Application()
        app.router.add_get("/", self._connect)
        app.router.add_get("/sync", self._connect)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS_MAX)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port)
        try:
            await self._site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
            ) from error
        self.host = host
        self.port = self._runner.addresses[0][1]
        self._local_only = _is_loopback(host)
        self._tasks = [
            asyncio.create_task(self.flusher.run(), name="relay flusher"),
            asyncio.create_task(self._watch(), name="relay watch"),
        ]

    async def _watch(self) -> None:
        """Notice commits of other relays, and whether the database answers."""
        while True:
            await asyncio.sleep(self.limits.poll_seconds)
            try:
                async with asyncio.timeout(self.limits.store_seconds):
                    await self.look()
            except Exception as error:
                if self._healthy:
                    said = str(error) or "no answer in time"
                    _log.warning("the database does not answer: %s", said)
                self._healthy = False
            else:
                self._healthy = True

    async def _health(self, request: web.Request) -> web.Response:
        """For load balancers: 200 while the database answers and commits, else 503."""
        status = "ok" if self._healthy else "the database does not answer"
        since = self.flusher.in_flight_since
        now = asyncio.get_running_loop().time()
        if since is not None and now - since > self.limits.batch_seconds:
            status = "a commit does not end"
        return web.json_response(
            {"status": status, "head": self.hub.head, "connections": len(self.connections)},
            status=200 if status == "ok" else 503,
        )

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        """Turn a request into a connection and serve it to its end."""
        self._check_origin(request)
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if SUBPROTOCOL not in [each.strip() for each in offered.split(",")]:
            raise web.HTTPBadRequest(
                text=f"this is a relay: connect a WebSocket with the subprotocol {SUBPROTOCOL}\n"
            )
        if self._closing or len(self.connections) >= self.limits.connections_max:
            raise web.HTTPServiceUnavailable(
                text="this relay takes no more connections\n", headers={"Retry-After": "5"}
            )
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            max_msg_size=FRAME_BYTES_MAX + 1,
            heartbeat=self.limits.heartbeat_seconds,
            # Frames are packed already, within bounds that the WebSocket's own packing lacks.
            compress=False,
            timeout=CLOSE_SECONDS_MAX,
        )
        connection = _Connection(self, request, socket)
        self.connections.add(connection)
        try:
            try:
                await socket.prepare(request)
            except ConnectionError:
                return web.Response()  # to nobody: the client went away meanwhile
            await connection.run()
        finally:
            self.connections.discard(connection)
            connection.ended.set()
        return socket

    def _check_origin(self, request: web.Request) -> None:
        """Refuse what a page of another site could send. Browsers name the page's origin and
        apply no other rule to WebSockets; programs send no Origin. A relay for this machine also
        refuses names of other machines, which a page may have made to point here."""
        origin = request.headers.get("Origin")
        if origin is None:
            return
        here = urlsplit(f"//{request.host}").hostname or ""
        if urlsplit(origin).netloc != request.host or (self._local_only and not _is_loopback(here)):
            raise web.HTTPForbidden(text="pages of other sites may not connect to this relay\n")


class _Connection:
    """One client's socket: pumps frames between it and the session, and answers the session."""

    def __init__(self, relay: Relay, request: web.Request, socket: web.WebSocketResponse) -> None:
        self.ended = asyncio.Event()
        self.session = RelaySession(
            asyncio.get_running_loop().time(), hello_seconds=relay.limits.hello_seconds
        )
        self._relay = relay
        self._request = request
        self._socket = socket
        self._member: Member | None = None
        self._to_send = asyncio.Event()
        self._close_code = WSCloseCode.POLICY_VIOLATION

    async def run(self) -> None:
        """Serve the connection to its end."""
        loop = asyncio.get_running_loop()
        # A timer may be early by the clock's grain, and this one runs once.
        hello_timer = loop.call_later(self._relay.limits.hello_seconds + 0.01, self._tick)
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hello_timer.cancel()
            # Before the goodbye, as only one task at a time may read a WebSocket.
            reader.cancel()
            self._leave()
            self.session.close()
            self._to_send.set()
            try:
                await asyncio.wait((reader, writer))
            except asyncio.CancelledError:
                # What the store is asked it finishes, unless it is told twice.
                reader.cancel()
                raise
        await self._say_goodbye()

    def stop(self) -> None:
        """End the connection because the relay stops: send what is due, then close."""
        self._close_code = WSCloseCode.GOING_AWAY
        self.session.close("stopped", "the relay stops")
        self._to_send.set()

    def _tick(self) -> None:
        self.session.tick(asyncio.get_running_loop().time())
        self._to_send.set()

    async def _read(self) -> None:
        """Take in frames, until the client or the session ends the connection."""
        session = self.session
        try:
            async for message in self._socket:
                if message.type is WSMsgType.ERROR:
                    return  # the socket closed itself, with the code that says why
                if message.type is WSMsgType.BINARY:
                    await self._receive(message.data)
                else:
                    session.error("malformed", "frames are binary")
                self._to_send.set()
                if session.closed:
                    return
        except Exception:
            _log.exception("a connection failed")
            session.error("internal", "the relay failed; connect again")

    async def _receive(self, frame: bytes) -> None:
        session = self.session
        session.receive(frame)
        if session.unanswered_bytes > UNANSWERED_BYTES_FREE and self._relay.is_full:
            session.error("overloaded", "the relay is full of pushes; try again later")
        for event in session.events():
            await self._answer(event)

    async def _write(self) -> None:
        """Send what the session has, until it is closed and all is sent."""
        try:
            while True:
                self._to_send.clear()
                frames = self.session.data_to_send()
                for frame in frames:
                    async with asyncio.timeout(self._relay.limits.send_seconds):
                        await self._socket.send_bytes(frame)
                if not frames:
                    if self.session.closed:
                        return
                    await self._to_send.wait()
        except (TimeoutError, ConnectionError):
            self._cut_off()  # too slow, or gone: either way it connects again
        except Exception:
            _log.exception("a connection's writer failed")
            self._cut_off()

    async def _say_goodbye(self) -> None:
        """Shake hands on the end of the WebSocket, with whoever still does."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._socket.close(code=self._close_code)
        except (TimeoutError, ConnectionError):
            self._cut_off()

    def _cut_off(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _answer(self, event: Event) -> None:
        """Do what one event asks for. Only one question is under way for a connection."""
        try:
            match event:
                case Greeted(hello):
                    await self._greet(hello)
                case Described():
                    await self._describe(event)
                case PushReady() if self._member is not None:
                    self._relay.flusher.push(self._member, event)
                    await self._relay.flusher.wait_for_room(self._member)
                case PullRequested() if self._member is not None:
                    await self._page(self._member, event)
                case BarrierRequested(barrier_id):
                    seq = await self._relay.ask(self._relay.look)
                    self.session.reached(barrier_id, seq)
                case Closed() | PushReady() | PullRequested():
                    pass  # the connection is over; `_write` and `run` see to the rest
        except TableError as error:
            self.session.error("unknown-table", str(error))
        except FormatError as error:
            self.session.error("malformed", str(error))
        except StoreError as error:
            _log.warning("a client's question failed: %s", error)
            self.session.error("internal", "the relay's database does not answer; connect again")

    async def _greet(self, hello: Hello) -> None:
        self._leave()
        relay, store = self._relay, self._relay.store
        if hello.realm not in (None, store.realm):
            self.session.error(
                "realm",
                "this file was synced with another realm; sync it there, or start from a new file",
            )
            return
        try:
            greeting = await relay.ask(
                lambda: store.greet(
                    hello.replica, hello.acknowledged, hello.nonces, hello.seq, hello.token
                )
            )
        except HistoryLost as error:
            self.session.error(
                "restored",
                f"{error}. The relay was restored from a backup, or this file is older than what"
                " it keeps: sync again from a new file, and compare before you delete the old one",
            )
            return
        relay.hub.grow(await relay.ask(store.registry))
        self.session.welcome(greeting, realm=store.realm, registry=relay.hub.registry)
        if self.session.closed:
            return
        if greeting.verdict is Verdict.FORK:
            # A new Hello follows, under another id; the file that this one was copied from goes on.
            return
        member = Member(self.session, hello.replica, greeting.term, self._to_send.set)
        if relay.hub.join(member):
            self._member = member

    async def _describe(self, event: Described) -> None:
        relay = self._relay
        try:
            registry = await relay.ask(
                lambda: relay.store.describe(event.tables, create=relay.create_tables)
            )
        except Violation as error:
            self.session.error("schema", str(error))
            return
        relay.hub.grow(registry, besides=self._member)
        self.session.registry(relay.hub.registry)

    async def _page(self, member: Member, event: PullRequested) -> None:
        relay = self._relay
        page = await relay.ask(
            lambda: relay.store.page(
                event.seq, event.within, rows_max=FRAME_ROWS_MAX, bytes_max=FRAME_BYTES_GOAL
            )
        )
        known = {table.id for table in relay.hub.registry}
        if not known.issuperset(section.table for section in page.sections):
            relay.hub.grow(await relay.ask(relay.store.registry))
        self.session.page(page)
        relay.hub.catch_up(member)

    def _leave(self) -> None:
        if self._member is not None:
            self._relay.hub.leave(self._member)
            self._relay.flusher.forget(self._member)
            self._member = None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
