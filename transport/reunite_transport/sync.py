"""Sync: keeps a database in touch with a relay. Owns the socket, the waiting and trying again.

    async with Sync(db, "ws://127.0.0.1:8800") as sync:
        await sync.caught_up(timeout=10)
        async for status in sync.watch_status():
            print(status)  # live, 2 queued

The session decides what is said; this module only carries frames between it and an aiohttp
WebSocket. The session works on the engine's thread, so the event loop never waits for SQLite.
"""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, TypeAlias, TypeVar, get_args

from reunite.adopt import Choice
from reunite.database import HistorySource
from reunite.errors import CatchUpTimeout, SyncError, UsageError
from reunite.greeting import FENCED, RELOAD
from reunite.overwritten import Loss
from reunite.replica import Replica
from reunite.watch import Watch
from reunite_transport.client_session import (
    BarrierReached,
    ClientSession,
    Ended,
    Event,
    GaveUp,
    HistoryTold,
    Live,
    Received,
    TablesChanged,
    Welcomed,
)
from reunite_transport.status import Progress, Statuses, SyncStatus
from reunite_transport.trouble import file_trouble
from reunite_transport.wakeup import Wakeup
from reunite_transport.websocket import open_websocket

# How often other programs' writes are looked for; one PRAGMA each time.
POLL_SECONDS: Final = 0.02
# Waiting before the next connection: doubled each time, and up to half of it left to chance so
# that a restarted relay is not met by everyone at once.
BACK_OFF_SECONDS: Final = (0.1, 15.0)
FENCED_SECONDS: Final = 5.0
# How long a question about the past waits for a relay: a user looks at the answer.
HISTORY_SECONDS_MAX: Final = 5.0
# What is under way when a program disconnects may be finished for so long.
LEAVE_SECONDS: Final = 2.0
# Frames that are waiting are handled in one go on the engine's thread; a local write waits for as
# many.
FRAMES_AT_ONCE: Final = 8

_NO_RETRY: Final[Mapping[str, object]] = {"retry_in": None, "retry_at_ms": None}

T = TypeVar("T")


class Socket(Protocol):
    """What sync needs of a connection to a relay; a lost one raises ConnectionError."""

    async def receive(self) -> bytes | None:
        """The next frame; None at the end."""
        ...

    async def send(self, frame: bytes) -> None:
        """Write one frame; returns when there is room for the next."""
        ...


class SyncedDatabase(Protocol):
    """What sync needs of a `Database`: see there."""

    @property
    def path(self) -> Path: ...
    @property
    def replica(self) -> Replica: ...
    @property
    def clock(self) -> Callable[[], int]: ...
    def refuse_inside(self) -> None: ...
    async def on_engine(self, function: Callable[..., T], *args: object) -> T: ...
    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]: ...
    def add_history_source(self, source: HistorySource) -> Callable[[], None]: ...


OpenSocket: TypeAlias = Callable[[], AbstractAsyncContextManager[Socket]]


class Sync:
    """Sync between a database and a relay, for as long as it is open."""

    def __init__(
        self,
        db: SyncedDatabase,
        url: str,
        *,
        adopt: Choice | None = None,
        on_event: Callable[[Event], None] | None = None,
        connected: bool = True,
        open_socket: OpenSocket | None = None,
        spread: Callable[[float, float], float] = random.uniform,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`adopt` settles rows that differ between this file and the realm when both brought them:
        `theirs` or `ours`. `on_event` is called with the session's events, rejections among them.
        With `connected` False it waits for `connect()`.

        For simulations: `open_socket` opens another socket than a WebSocket to `url`, `spread` is
        where the waits' chance comes from, `poll_seconds` how often other programs' writes are
        looked for.
        """
        if open_socket is None and not url.startswith(("ws://", "wss://")):
            raise UsageError(f"{url!r} is not a relay's address; it begins with ws:// or wss://")
        if adopt is not None and adopt not in get_args(Choice):
            raise UsageError(f"adopt is {adopt!r}; it is 'theirs', 'ours' or None")
        self._db = db
        self._url = url
        self._open = open_socket or (lambda: open_websocket(url))
        self._spread = spread
        self._poll_seconds = poll_seconds
        self._choice: Choice | None = adopt
        self._on_event = on_event
        # What the program wants, whether or not there is a relay to be reached.
        self._wanted = connected
        self._status = SyncStatus("connecting" if connected else "disconnected")
        # Rung when the status changed; and when anything that `caught_up` looks at did.
        self._status_wakeup = Wakeup()
        self._wakeup = Wakeup()
        self._wake = asyncio.Event()
        # Ends a pause between two tries.
        self._hurry = asyncio.Event()
        # Bounds the connection under way, so that it can be left.
        self._scope: asyncio.Timeout | None = None
        self._session: ClientSession | None = None
        self._reached: dict[int, int] = {}
        self._recalls: dict[int, asyncio.Future[Sequence[Loss]]] = {}
        self._task: asyncio.Task[None] | None = None
        # Why sync stopped for good; a person has to act.
        self._fatal: SyncError | None = None
        # Whether the last connection got as far as live.
        self._live_since: float | None = None

    def __repr__(self) -> str:
        return f"<Sync with {self._url}: {self._status}>"

    @property
    def status(self) -> SyncStatus:
        """How sync stands now."""
        return self._status

    def watch_status(self) -> Watch[SyncStatus]:
        """How sync stands now, and then whenever that has changed: `async for status in ...`.

        Who is slow gets the latest only, never a backlog, and never the same twice; `working` is
        left out. Any number may listen. Ends when sync does, after the last status. See `Watch`.
        """

        def ended() -> bool:
            return self._task is not None and self._task.done()

        statuses = Statuses(lambda: self._status, self._status_wakeup, ended)
        return Watch(statuses, shown=f"status of the sync with {self._url}")

    async def disconnect(self) -> None:
        """End the connection and stay offline until `connect()`. Local work goes on and queues.

        Returns when the socket is closed, which takes 2 seconds and a closing handshake at most.
        Nothing happens when there is no connection to end.
        """
        self._running()
        self._wanted = False
        self._hurry.set()
        self._wake.set()
        if self._scope is not None and not self._scope.expired():
            # A session finishes what it is at; what only waits for a relay is cut short.
            grace = 0.0 if self._session is None else LEAVE_SECONDS
            self._scope.reschedule(asyncio.get_running_loop().time() + grace)
        while not self._wanted and self._status.state not in ("disconnected", "stopped"):
            await self._status_wakeup.after(self._status_wakeup.count)

    async def connect(self) -> None:
        """Connect after `disconnect()`, or try again at once instead of at the next try's time.

        Returns without waiting for the relay: see `caught_up` and `watch_status`. Raises the
        SyncError that stopped sync.
        """
        self._running()
        self._wanted = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(None)
        if self._session is None:
            self._hurry.set()
            self._wake.set()
        # Who waits in `disconnect` has been overruled.
        self._status_wakeup.ring()

    async def __aenter__(self) -> "Sync":
        self._task = asyncio.create_task(self._run(), name=f"reunite sync {self._url}")
        self._task.add_done_callback(lambda _: self._ring())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leaving = asyncio.current_task()
        assert self._task is not None
        assert leaving is not None
        cancellations = leaving.cancelling()
        self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            # Of who leaves, too: then it is not ours to end.
            if leaving.cancelling() > cancellations:
                raise
        if self._status.state != "stopped":
            self._set(state="disconnected")

    async def caught_up(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until all local work up to now is acknowledged and all remote work is here.

        Raises CatchUpTimeout after `timeout` seconds, the SyncError that stopped sync, and
        UsageError inside a transaction: it is not over, and nothing of it is sent.
        """
        self._db.refuse_inside()
        try:
            async with asyncio.timeout(timeout):
                await self._catch_up()
        except TimeoutError:
            status = self._status
            why = status.last_error or f"still {status.state}"
            waits = f"; changesets that wait in the file: {status.queued}" if status.queued else ""
            then = "Sync goes on while it is open"
            if status.state == "disconnected":
                then = "Nothing is sent before sync.connect()"
            raise CatchUpTimeout(
                f"not caught up after {timeout:g} s: {why}{waits}. {then}"
            ) from None

    async def ended(self) -> None:
        """Wait until sync stops for good, and raise the SyncError that says why."""
        if self._task is None:
            raise UsageError("sync is not running; use it as `async with Sync(db, url)`")
        await asyncio.shield(self._task)
        if self._fatal is not None:
            raise self._fatal

    def _running(self) -> None:
        """Raise why sync is not running, if it is not."""
        if self._task is None:
            raise UsageError("sync is not running; use it as `async with Sync(db, url)`")
        if self._task.done():
            if self._fatal is not None:
                raise self._fatal
            if not self._task.cancelled():
                self._task.result()
            raise UsageError("sync has ended")

    async def _catch_up(self) -> None:
        mark = await self._db.on_engine(self._db.replica.outbox_mark)
        # A session would tell, and there may be none.
        self._set(queued=await self._db.on_engine(self._db.replica.queued))
        asked: tuple[ClientSession, int] | None = None
        while True:
            seen = self._wakeup.count
            self._running()
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
            await self._wakeup.after(seen)

    async def _history(self, table: int, key: bytes) -> Sequence[Loss]:
        """What the relay knows of a row's past; nothing where there is none to ask. Raises
        SyncError when it does not answer."""
        session = self._session
        if session is None or not session.keeps_history:
            return ()
        number = await self._db.on_engine(session.recall, table, key)
        if session is not self._session:
            raise SyncError("the connection to the relay was lost", "offline")
        answer: asyncio.Future[Sequence[Loss]] = asyncio.get_running_loop().create_future()
        self._recalls[number] = answer
        self._wake.set()
        try:
            async with asyncio.timeout(HISTORY_SECONDS_MAX):
                return await answer
        except TimeoutError:
            raise SyncError(
                f"the relay did not say within {HISTORY_SECONDS_MAX:g} s what was overwritten",
                "offline",
            ) from None
        finally:
            self._recalls.pop(number, None)

    async def _run(self) -> None:
        stop_listening = self._db.on_change(self._wake.set)
        stop_telling = self._db.add_history_source(self._history)
        wait, wait_max = BACK_OFF_SECONDS
        try:
            while True:
                self._hurry.clear()
                if not self._wanted:
                    self._set(state="disconnected", last_error=None, progress=None, **_NO_RETRY)
                    await self._idle()
                    wait = BACK_OFF_SECONDS[0]
                    continue
                self._set(state="connecting", **_NO_RETRY)
                self._live_since = None
                try:
                    await self._connect_once()
                except SyncError as error:
                    if error.code == RELOAD:
                        # Wanted by the app, and nothing is wrong.
                        continue
                    self._set(last_error=error)
                except (OSError, TimeoutError) as error:
                    why = f"no connection to {self._url}: {str(error) or 'no answer'}"
                    self._set(last_error=SyncError(why, "offline"))
                except sqlite3.Error as error:
                    # Busy, full or damaged: nothing is lost by trying again, and somebody may help.
                    self._set(last_error=SyncError(file_trouble(self._db.path, error), "file"))
                except Exception as error:
                    self._fatal = SyncError(f"sync ended by its own fault: {error!r}", "internal")
                    self._set(state="stopped", last_error=self._fatal)
                    raise
                if self._fatal is not None:
                    self._set(state="stopped", last_error=self._fatal)
                    return
                if not self._wanted:
                    continue
                # One that ends as soon as it is live would end so again.
                now = asyncio.get_running_loop().time()
                if self._live_since is not None and now - self._live_since > wait:
                    wait = BACK_OFF_SECONDS[0]
                last = self._status.last_error
                if last is not None and last.code == FENCED:
                    # Another sync of this file took over; taking turns with it would help nobody.
                    wait = max(wait, FENCED_SECONDS)
                pause = wait * self._spread(0.5, 1.0)
                at_ms = self._db.clock() + round(pause * 1000)
                self._set(state="offline", progress=None, retry_in=pause, retry_at_ms=at_ms)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._idle()
                        # Somebody is there and waits.
                        wait = BACK_OFF_SECONDS[0] / 2
                wait = min(wait * 2, wait_max)
        finally:
            self._session = None
            stop_listening()
            stop_telling()
            if self._status.state != "stopped":
                self._set(state="disconnected", progress=None, **_NO_RETRY)

    async def _idle(self) -> None:
        """Count what is queued until somebody wants another connection, or none."""
        while not self._hurry.is_set():
            self._wake.clear()
            with suppress(sqlite3.Error):
                queued = await self._db.on_engine(self._db.replica.queued)
                if queued != self._status.queued:
                    self._set(queued=queued)
            if not self._hurry.is_set():
                await self._wake.wait()

    async def _connect_once(self) -> None:
        """One connection, unless it is left first."""
        scope = self._scope = asyncio.timeout(None)
        try:
            async with scope:
                await self._connect()
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scope = None

    async def _connect(self) -> None:
        """One connection from beginning to end."""
        async with self._open() as socket:
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
                self._lose_recalls()
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)

    def _lose_recalls(self) -> None:
        """Tell who waits for an answer that the connection is gone."""
        for answer in self._recalls.values():
            if not answer.done():
                answer.set_exception(SyncError("the connection to the relay was lost", "offline"))
        self._recalls.clear()

    async def _read(self, socket: Socket, frames: "asyncio.Queue[bytes]") -> None:
        try:
            while (frame := await socket.receive()) is not None:
                await frames.put(frame)
                self._wake.set()
        finally:
            self._wake.set()

    async def _pump(
        self,
        session: ClientSession,
        socket: Socket,
        frames: "asyncio.Queue[bytes]",
        reader: "asyncio.Task[None]",
    ) -> None:
        while True:
            received: list[bytes] = []
            while not frames.empty() and len(received) < FRAMES_AT_ONCE:
                received.append(frames.get_nowait())
            if received:
                self._set(working=True)
            try:
                outgoing, events, queued = await self._db.on_engine(
                    _work, session, received, self._db.clock()
                )
            finally:
                if received:
                    self._set(working=False)
            for event in events:
                self._note(event)
            if queued != self._status.queued:
                self._set(queued=queued)
            for frame in outgoing:
                await socket.send(frame)
            self._wakeup.ring()
            ended = next((event for event in events if isinstance(event, Ended)), None)
            if ended is not None:
                if ended.fatal:
                    self._fatal = ended.error
                raise ended.error
            if not self._wanted:
                return
            if frames.empty():
                if reader.done():
                    return
                try:
                    async with asyncio.timeout(self._poll_seconds):
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
            if self._live_since is None:
                self._live_since = asyncio.get_running_loop().time()
            self._set(state="live", progress=None)
        elif isinstance(event, TablesChanged):
            self._set(left_alone=event.left_alone)
        elif isinstance(event, BarrierReached):
            self._reached[event.id] = event.seq
        elif isinstance(event, HistoryTold):
            answer = self._recalls.get(event.id)
            if answer is not None and not answer.done():
                answer.set_result(event.losses)
        elif isinstance(event, GaveUp):
            self._set(last_error=SyncError(event.message, event.reason))
        if self._on_event is not None:
            self._on_event(event)

    def _set(self, **changes: object) -> None:
        before = self._status
        self._status = replace(before, **changes)  # type: ignore[arg-type]
        if self._status != before:
            self._status_wakeup.ring()
        self._wakeup.ring()

    def _ring(self) -> None:
        self._status_wakeup.ring()
        self._wakeup.ring()


def _work(
    session: ClientSession, received: list[bytes], now_ms: int
) -> tuple[list[bytes], list[Event], int]:
    """On the engine's thread: let the session take in frames and local writes."""
    session.receive(received, now_ms)
    session.tick(now_ms)
    return session.data_to_send(), session.events(), session.queued()
