"""A client's connection: pumps frames between a socket and a session, and answers the session.

A reader takes in frames one after the other and answers what they ask; a writer sends what the
session has, each frame within a time. What goes wrong in one connection ends that connection. The
socket is whatever keeps `Socket`: a WebSocket (see `server`), or a simulated one.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from reunite.errors import FormatError, ProtocolError, TableError
from reunite.schema import Table
from reunite_transport.messages import FRAME_BYTES_GOAL, Hello, Verdict
from reunite_transport.relay.hub import Member
from reunite_transport.relay.logs import told, trace
from reunite_transport.relay.store import Greeting, RowId, StoreError, Violation
from reunite_transport.relay_session import (
    BarrierRequested,
    Closed,
    Described,
    Event,
    Greeted,
    PullRequested,
    PushReady,
    RecallRequested,
    RelaySession,
)

if TYPE_CHECKING:
    from reunite_transport.relay.service import Service

# Clients that see a socket close shake hands on it; others are cut off after this.
CLOSE_SECONDS_MAX: Final = 2.0
# A session that holds less than this of unanswered pushes is never the reason for a full relay.
UNANSWERED_BYTES_FREE: Final = 1 << 20

_log = logging.getLogger(__name__)


class Socket(Protocol):
    """What a connection needs of a socket; a lost one raises ConnectionError."""

    async def receive(self) -> bytes | None:
        """The next frame, None at the end. Raises ProtocolError for what is no frame."""
        ...

    async def send(self, frame: bytes) -> None:
        """Write one frame; returns when the other side has room for it."""
        ...

    async def close(self, *, stopped: bool) -> None:
        """Shake hands on the end; `stopped` when it is the relay's and not the connection's."""
        ...

    def cut_off(self) -> None:
        """End it at once, without a word."""
        ...


class Connection:
    """One client's socket: pumps frames between it and the session, and answers the session."""

    def __init__(self, relay: "Service", socket: Socket, number: int) -> None:
        """`number` tells it from the others in the log."""
        self.ended = asyncio.Event()
        self.session = RelaySession(
            asyncio.get_running_loop().time(),
            hello_seconds=relay.limits.hello_seconds,
            history=relay.history,
        )
        self._relay = relay
        self._socket = socket
        # What the log says of it.
        self._facts: dict[str, object] = {"connection": number, "replica": None}
        self._member: Member | None = None
        self._to_send = asyncio.Event()
        self._stopped = False

    async def run(self) -> None:
        """Serve the connection to its end."""
        _log.info("connection %(connection)d opened", self._facts, extra=self._facts)
        try:
            await self._serve()
        finally:
            _log.info("connection %(connection)d closed", self._facts, extra=self._facts)

    async def _serve(self) -> None:
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
        self._stopped = True
        self.session.close("stopped", "the relay stops")
        self._to_send.set()

    def _tick(self) -> None:
        self.session.tick(asyncio.get_running_loop().time())
        self._to_send.set()

    async def _read(self) -> None:
        """Take in frames, until the client or the session ends the connection."""
        session = self.session
        try:
            while (frame := await self._socket.receive()) is not None:
                await self._receive(frame)
                self._to_send.set()
                if session.closed:
                    return
        except ProtocolError as error:
            session.error(error.code, str(error))
        except Exception as error:
            _log.error("a connection failed\n%s", trace(error), extra=self._facts)
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
                        await self._socket.send(frame)
                if not frames:
                    if self.session.closed:
                        return
                    await self._to_send.wait()
        except (TimeoutError, ConnectionError):
            self._socket.cut_off()  # too slow, or gone: either way it connects again
        except Exception as error:
            _log.error("a connection's writer failed\n%s", trace(error), extra=self._facts)
            self._socket.cut_off()

    async def _say_goodbye(self) -> None:
        """Shake hands on the end of the connection, with whoever still does."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._socket.close(stopped=self._stopped)
        except (TimeoutError, ConnectionError):
            self._socket.cut_off()

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
                    seq = await self._relay.ask(self._relay.reach)
                    self.session.reached(barrier_id, seq)
                case RecallRequested(recall_id, table, key):
                    row = RowId(table, key)
                    losses = await self._relay.ask(lambda: self._relay.store.losses(row))
                    self.session.recalled(recall_id, losses)
                case Closed() | PushReady() | PullRequested():
                    pass  # the connection is over; `_write` and `run` see to the rest
        except TableError as error:
            self.session.error("unknown-table", str(error))
        except FormatError as error:
            self.session.error("malformed", str(error))
        except StoreError as error:
            _log.warning("a client's question failed: %s", told(error), extra=self._facts)
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

        async def compared() -> tuple[Greeting, tuple[Table, ...]]:
            greeting = await store.greet(
                hello.replica, hello.acknowledged, hello.nonces, hello.seq, hello.token
            )
            return greeting, await store.registry()

        # What backends wrote while no relay ran comes first: it is part of what the head says.
        await relay.ask(relay.reach)
        # One question, as nothing may come between the answer and the hub's knowing of the session.
        greeting, registry = await relay.ask(compared)
        if greeting.verdict is Verdict.LOST:
            _log.warning(
                "replica %016x knows commit %s, which is not here: the database was restored",
                *(hello.replica, hello.seq),
                extra=self._facts,
            )
        relay.hub.grow(registry)
        self.session.welcome(greeting, realm=store.realm, registry=relay.hub.registry)
        if self.session.closed:
            return
        if greeting.verdict is not Verdict.CONTINUE:
            # A new Hello follows, under another id; the file that this one was copied from goes on.
            return
        member = Member(self.session, hello.replica, greeting.term, self._to_send.set)
        if relay.hub.join(member):
            self._member = member
            self._facts["replica"] = f"{hello.replica:016x}"
            _log.info(
                "connection %(connection)d is of replica %(replica)s",
                self._facts,
                extra=self._facts,
            )

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
                event.seq,
                event.within,
                rows_max=relay.limits.page_rows_max,
                bytes_max=FRAME_BYTES_GOAL,
            )
        )
        known = {table.id for table in relay.hub.registry}
        if not known.issuperset(section.table for section in page.sections):
            relay.hub.grow(await relay.ask(relay.store.registry))
        self.session.page(page)
        relay.metrics.sent_page(sum(len(section.keys) for section in page.sections))
        relay.hub.catch_up(member)

    def _leave(self) -> None:
        if self._member is not None:
            self._relay.hub.leave(self._member)
            self._relay.flusher.forget(self._member)
            self._member = None
