"""Sync: keeps a database in touch with a relay. Owns the socket, the waiting and trying again.

    async with Sync(db, "ws://127.0.0.1:8800") as sync:
        await sync.caught_up(timeout=10)

The session decides what is said; this module only carries frames between it and an aiohttp
WebSocket. The session works on the engine's thread, so the event loop never waits for SQLite.
"""

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Literal, TypeAlias, get_args

import aiohttp

from reunite.adopt import Choice
from reunite.database import Database
from reunite.errors import CatchUpTimeout, SyncError, UsageError
from reunite_transport.client_session import (
    BarrierReached,
    ClientSession,
    Ended,
    Event,
    GaveUp,
    Live,
    Received,
    TablesChanged,
    Welcomed,
)
from reunite_transport.messages import FRAME_BYTES_MAX, SUBPROTOCOL

# How often other programs' writes are looked for; one PRAGMA each time.
POLL_SECONDS: Final = 0.02
# Waiting before the next connection: doubled each time, and up to half of it left to chance so
# that a restarted relay is not met by everyone at once.
BACK_OFF_SECONDS: Final = (0.1, 15.0)
FENCED_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 10.0
# A relay that does not shake hands on the end is left without.
CLOSE_SECONDS: Final = 2.0
# A relay that has not answered a heartbeat for this long is taken for gone.
HEARTBEAT_SECONDS: Final = 15.0
# Frames that are waiting are handled in one go on the engine's thread.
FRAMES_AT_ONCE: Final = 64

State: TypeAlias = Literal["offline", "connecting", "loading", "live", "stopped"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A first load: rows that have arrived, and about how many there are."""

    rows: int
    total: int


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """How sync stands. `queued` counts changesets that the relay has not resolved; `retry_in` is
    the wait before the next connection, in seconds, while offline."""

    state: State = "connecting"
    queued: int = 0
    last_error: SyncError | None = None
    progress: Progress | None = None
    retry_in: float | None = None
    left_alone: tuple[str, ...] = ()


class Sync:
    """Sync between a database and a relay, for as long as it is open."""

    def __init__(
        self,
        db: Database,
        url: str,
        *,
        adopt: Choice | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """`adopt` settles rows that differ between this file and the realm when both brought them:
        `theirs` or `ours`. `on_event` is called with the session's events, rejections among them.
        """
        if not url.startswith(("ws://", "wss://")):
            raise UsageError(f"{url!r} is not a relay's address; it begins with ws:// or wss://")
        if adopt is not None and adopt not in get_args(Choice):
            raise UsageError(f"adopt is {adopt!r}; it is 'theirs', 'ours' or None")
        self._db = db
        self._url = url
        self._choice: Choice | None = adopt
        self._on_event = on_event
        self._status = SyncStatus()
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._session: ClientSession | None = None
        self._reached: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None
        # Why sync stopped for good; a person has to act.
        self._fatal: SyncError | None = None
        # Whether the last connection got as far as live.
        self._was_live = False

    def __repr__(self) -> str:
        return f"Sync({self._url!r}, {self._status.state}, {self._status.queued} queued)"

    @property
    def status(self) -> SyncStatus:
        """How sync stands now."""
        return self._status

    async def __aenter__(self) -> "Sync":
        self._task = asyncio.create_task(self._run(), name=f"reunite sync {self._url}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def caught_up(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until all local work up to now is acknowledged and all remote work is here.

        Raises CatchUpTimeout after `timeout` seconds, or the SyncError that stopped sync.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._catch_up()
        except TimeoutError:
            status = self._status
            why = f"; last error: {status.last_error}" if status.last_error else ""
            raise CatchUpTimeout(
                f"not caught up after {timeout} s: {status.state}, {status.queued} changesets"
                f" queued{why}. Sync goes on in the background"
            ) from None

    async def _catch_up(self) -> None:
        mark = await self._db.on_engine(self._db.replica.outbox_mark)
        asked: tuple[ClientSession, int] | None = None
        while True:
            self._changed.clear()
            if self._task is None:
                raise UsageError("sync is not running; use it as `async with Sync(db, url)`")
            if self._task.done():
                if self._fatal is not None:
                    raise self._fatal
                self._task.result()
                raise UsageError("sync has ended")
            session = self._session
            if session is not None and session.live:
                if asked is None or asked[0] is not session:
                    asked = (session, await self._db.on_engine(session.barrier))
                    self._wake.set()
                seq = self._reached.get(asked[1])
                if seq is not None and await self._db.on_engine(
                    self._db.replica.has_reached, seq, mark
                ):
                    return
            await self._changed.wait()

    async def _run(self) -> None:
        stop_listening = self._db.on_change(self._wake.set)
        wait, wait_max = BACK_OFF_SECONDS
        try:
            while True:
                self._set(state="connecting", retry_in=None)
                self._was_live = False
                try:
                    await self._connect()
                except SyncError as error:
                    self._set(last_error=error)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    self._set(
                        last_error=SyncError(
                            f"no connection to {self._url}: {error or type(error).__name__}",
                            "offline",
                        )
                    )
                except sqlite3.Error as error:
                    # Busy, full or damaged: nothing is lost by trying again, and somebody may help.
                    self._set(last_error=SyncError(f"the database file: {error}", "file"))
                except Exception as error:
                    self._fatal = SyncError(f"sync ended by its own fault: {error!r}", "internal")
                    self._set(state="stopped", last_error=self._fatal)
                    raise
                if self._fatal is not None:
                    self._set(state="stopped", last_error=self._fatal)
                    return
                if self._was_live:
                    wait = BACK_OFF_SECONDS[0]
                last = self._status.last_error
                if last is not None and last.code == "fenced":
                    # Another sync of this file took over; taking turns with it would help nobody.
                    wait = max(wait, FENCED_SECONDS)
                pause = wait * random.uniform(0.5, 1.0)
                self._set(state="offline", retry_in=pause)
                await asyncio.sleep(pause)
                wait = min(wait * 2, wait_max)
        finally:
            self._session = None
            stop_listening()
            if self._status.state != "stopped":
                self._set(state="offline", retry_in=None)
            self._changed.set()

    async def _connect(self) -> None:
        """One connection from beginning to end."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            async with asyncio.timeout(CONNECT_SECONDS):
                socket = await http.ws_connect(
                    self._url,
                    protocols=(SUBPROTOCOL,),
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),  # pyright: ignore
                    max_msg_size=FRAME_BYTES_MAX + (1 << 16),
                    heartbeat=HEARTBEAT_SECONDS,
                    compress=0,
                )
            try:
                await self._talk(socket)
            finally:
                await socket.close()

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        if socket.protocol != SUBPROTOCOL:
            raise SyncError(f"{self._url} is not a reunite relay of protocol 1", "version")
        session = await self._db.on_engine(
            lambda: ClientSession(self._db.replica, self._db.clock(), choice=self._choice)
        )
        self._session = session
        # Barriers are numbered by session.
        self._reached.clear()
        frames: asyncio.Queue[bytes] = asyncio.Queue(FRAMES_AT_ONCE)
        reader = asyncio.create_task(self._read(socket, frames))
        try:
            await self._pump(session, socket, frames, reader)
        finally:
            self._session = None
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self, socket: aiohttp.ClientWebSocketResponse, frames: "asyncio.Queue[bytes]"
    ) -> None:
        try:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    await frames.put(message.data)
                    self._wake.set()
                else:
                    break
        finally:
            self._wake.set()

    async def _pump(
        self,
        session: ClientSession,
        socket: aiohttp.ClientWebSocketResponse,
        frames: "asyncio.Queue[bytes]",
        reader: "asyncio.Task[None]",
    ) -> None:
        while True:
            received: list[bytes] = []
            while not frames.empty() and len(received) < FRAMES_AT_ONCE:
                received.append(frames.get_nowait())
            outgoing, events, queued = await self._db.on_engine(
                _work, session, received, self._db.clock()
            )
            for event in events:
                self._note(event)
            if queued != self._status.queued:
                self._set(queued=queued)
            for frame in outgoing:
                await socket.send_bytes(frame)
            self._changed.set()
            ended = next((event for event in events if isinstance(event, Ended)), None)
            if ended is not None:
                if ended.fatal:
                    self._fatal = ended.error
                raise ended.error
            if frames.empty():
                if reader.done():
                    return
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            self._wake.clear()

    def _note(self, event: Event) -> None:
        status = self._status
        if isinstance(event, Welcomed):
            progress = Progress(0, event.rows)
            self._set(state="loading", progress=progress, last_error=None)
        elif isinstance(event, Received) and status.progress and status.state == "loading":
            rows = status.progress.rows + event.rows
            self._set(progress=Progress(rows, max(rows, status.progress.total)))
        elif isinstance(event, Live):
            self._was_live = True
            self._set(state="live", progress=None)
        elif isinstance(event, TablesChanged):
            self._set(left_alone=event.left_alone)
        elif isinstance(event, BarrierReached):
            self._reached[event.id] = event.seq
        elif isinstance(event, GaveUp):
            self._set(last_error=SyncError(event.message, event.reason))
        if self._on_event is not None:
            self._on_event(event)

    def _set(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        self._changed.set()


def _work(
    session: ClientSession, received: list[bytes], now_ms: int
) -> tuple[list[bytes], list[Event], int]:
    """On the engine's thread: let the session take in frames and local writes."""
    for frame in received:
        session.receive(frame, now_ms)
    session.tick(now_ms)
    return session.data_to_send(), session.events(), session.queued()
