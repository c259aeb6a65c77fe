"""A relay process without its sockets: the store, who is connected, and the tasks that serve all.

One flusher commits what all connections push, and one task looks for what backends wrote and what
other relays committed on the same database. Whoever owns the sockets (`server`, or a simulation)
hands each to `attend`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from reunite.errors import TableError
from reunite_transport.messages import FRAME_ROWS_MAX
from reunite_transport.relay.commit import commit_batch
from reunite_transport.relay.connection import CLOSE_SECONDS_MAX, Connection, Socket
from reunite_transport.relay.flusher import (
    DELAY_SECONDS_MAX,
    DELAY_SECONDS_MIN,
    Flusher,
    random_token,
)
from reunite_transport.relay.hub import Hub
from reunite_transport.relay.logs import told
from reunite_transport.relay.store import Busy, Look, Store, StoreError, Violation, WentBack
from reunite_transport.relay.tally import UNCOUNTED, Tally
from reunite_transport.relay_session import HELLO_SECONDS_MAX

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
    poll_seconds: float = 0.02
    """How late what a backend wrote, or another relay on the same database, may be noticed."""
    store_seconds: float = 15.0
    """How long a client's question waits for a database that is away."""
    batch_seconds: float = 600.0
    """How long one commit may take before the relay counts as unhealthy; the largest take seconds,
    but for what backends wrote while none ran: a million rows take minutes."""
    page_rows_max: int = FRAME_ROWS_MAX
    """Of the feed; more pages cost more round trips, larger ones more at once."""
    migration_seconds: float = 1.0
    """How late a migration of the app's tables may be noticed."""
    drain_seconds: float = 10.0
    """For the batch under way when the relay stops."""


async def open_service(
    store: Store,
    *,
    create_tables: bool = True,
    refill: bool = True,
    history: bool = True,
    limits: Limits | None = None,
    new_token: Callable[[], bytes] = random_token,
    metrics: Tally = UNCOUNTED,
    track_new: bool = False,
) -> "Service":
    """Begin to serve the realm in `store`, which stays the caller's, who closes it after the
    service. `create_tables` lets clients add tables and columns to the realm; `refill` takes
    what clients offer again when the database was restored from a backup; with `history` values
    that merges overwrite are kept, and told to clients; `new_token` makes the name of a commit,
    TOKEN_BYTES bytes of chance; `metrics` counts what is done; with `track_new` tables that others
    make in the database join the realm. Raises StoreError when the database does not answer."""
    head, _ = await store.head()
    hub = Hub(head=head, registry=await store.registry())
    commit = partial(commit_batch, refill=refill, history=history)
    flusher = Flusher(store, hub, new_token=new_token, commit=commit, metrics=metrics)
    service = Service(
        store,
        hub,
        flusher,
        create_tables=create_tables,
        history=history,
        limits=limits or Limits(),
        metrics=metrics,
        track_new=track_new,
    )
    service.start()
    return service


class Service:
    """A relay process, but for its sockets; made by `open_service`."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        flusher: Flusher,
        *,
        create_tables: bool,
        history: bool,
        limits: Limits,
        metrics: Tally = UNCOUNTED,
        track_new: bool = False,
    ) -> None:
        """Put the parts together; `start` starts them."""
        self.store = store
        self.hub = hub
        self.flusher = flusher
        self.create_tables = create_tables
        self.history = history
        self.limits = limits
        self.metrics = metrics
        self.track_new = track_new
        self.troubles: Mapping[str, str] = {}
        """What migrations did to tables that cannot be followed, by table."""
        self.answers = True
        """False while the database does not answer."""
        self.captured_rows = 0
        """How much of what backends wrote waits to become part of a commit, up to BACKLOG_MAX."""
        self.captured_lag_seconds = 0.0
        """How long the oldest of them has waited."""
        # In the order in which they came: a set's order would be another in each run.
        self.connections: dict[Connection, None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._attended = 0

    def start(self) -> None:
        """Start the tasks that serve all."""
        self._tasks = [
            asyncio.create_task(self.flusher.run(), name="relay flusher"),
            asyncio.create_task(self._watch(), name="relay watch"),
        ]

    async def close(self) -> None:
        """Finish the batch under way and say goodbye to everybody.

        What was pushed and not committed is pushed again at the next relay.
        """
        self.flusher.stop()
        flushing, watching = self._tasks
        watching.cancel()
        try:
            await asyncio.wait([flushing], timeout=self.limits.drain_seconds)
        finally:
            # Also for who is in a hurry: the store is not closed before its commit has ended.
            flushing.cancel()
            await asyncio.wait(self._tasks)
        for connection in list(self.connections):
            connection.stop()
        handlers = [connection.ended.wait() for connection in self.connections]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX + 1):
                await asyncio.gather(*handlers)

    def abandon(self) -> None:
        """Stop at once, as a process that is killed: finish nothing, tell nobody."""
        for task in self._tasks:
            task.cancel()

    async def attend(self, socket: Socket) -> None:
        """Serve one connection to its end."""
        self._attended += 1
        connection = Connection(self, socket, self._attended)
        self.connections[connection] = None
        try:
            await connection.run()
        finally:
            self.connections.pop(connection)
            connection.ended.set()

    def trouble(self) -> str | None:
        """What a load balancer should know; None while the database answers and commits."""
        if not self.answers:
            return "the database does not answer"
        if self.flusher.unfoldable:
            return "what backends wrote cannot be merged; the log says why"
        since = self.flusher.in_flight_since
        now = asyncio.get_running_loop().time()
        if since is not None and now - since > self.limits.batch_seconds:
            return "a commit does not end"
        return None

    async def ask(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the store on behalf of one client, again and again for a while if it is away. What
        is done with the answer before anything is awaited is done in the history that it is of."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.limits.store_seconds
        delay = DELAY_SECONDS_MIN
        while True:
            try:
                return await self._answer(question)
            except Violation:
                raise
            except StoreError:
                if loop.time() + delay > until:
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, DELAY_SECONDS_MAX)

    async def look(self) -> Look:
        """Ask the store for its head, tell the hub, and have folded what backends wrote."""
        look = await self._answer(self.store.look)
        if self.hub.observe(look.seq, look.token, in_flight=self.flusher.in_flight):
            self.hub.grow(await self._answer(self.store.registry))
        if look.waiting:
            self.flusher.fold_soon(look.waiting)
        self.captured_rows, self.captured_lag_seconds = look.waiting, look.lag_seconds
        return look

    async def follow(self) -> None:
        """Notice what migrations did to the app's tables, and tell everybody of new ones."""
        try:
            troubles = await self._answer(lambda: self.store.follow(track_new=self.track_new))
        except Busy:
            return  # a migration is under way
        except TableError as error:
            # As where the registry is full: the realm goes on as it is.
            troubles = {**self.troubles, error.table: error.reason}
        for table in troubles:
            if troubles[table] != self.troubles.get(table):
                _log.error("table %r %s", table, troubles[table])
        self.troubles = troubles
        self.hub.grow(await self._answer(self.store.registry))

    async def reach(self) -> int:
        """The head's number, once it holds all that backends had written before this was asked."""
        look = await self.look()
        if look.waiting:
            await self.flusher.fold()
            look = await self.look()
        return look.seq

    async def _answer(self, question: Callable[[], Awaitable[_T]]) -> _T:
        """The store's answer, of the history that its database has now. When this is how somebody
        notices that it went back, all that is known and under way here is of a lost history and
        ends; clients say Hello again, and are told what to do. What others asked meanwhile they
        ask again. A database that goes back twice in one question is not whole: WentBack."""
        went_back = False
        while True:
            history = self.hub.history
            try:
                answer = await question()
            except WentBack:
                if self.hub.history == history:
                    _log.warning("the database went back, as when it is restored: all sessions end")
                    self.store.forget()
                    self.flusher.forget_all()
                    self.hub.go_back()
                if went_back:
                    raise
                went_back = True
            else:
                if self.hub.history == history:
                    return answer

    @property
    def is_full(self) -> bool:
        """True while pushes that wait for their verdict take all the memory they may."""
        waiting = sum(connection.session.unanswered_bytes for connection in self.connections)
        return waiting > self.limits.unanswered_bytes_max

    async def _watch(self) -> None:
        """Notice what backends wrote, commits of other relays, migrations, and whether the database
        answers."""
        loop = asyncio.get_running_loop()
        follow_at = loop.time()
        while True:
            await asyncio.sleep(self.limits.poll_seconds)
            try:
                async with asyncio.timeout(self.limits.store_seconds):
                    await self.look()
                    if loop.time() >= follow_at:
                        follow_at = loop.time() + self.limits.migration_seconds
                        await self.follow()
            except Exception as error:
                if self.answers:
                    _log.warning("the database does not answer: %s", told(error))
                self.answers = False
            else:
                if not self.answers:
                    _log.info("the database answers again")
                self.answers = True
