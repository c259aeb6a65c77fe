"""The nodes of a simulated world: clients on SQLite files, and relays on one store's file.

A client is the production code of an app: `Replica` over two connections to a file, `Sync` over a
simulated socket, both in line and in virtual time. A relay is `Service` over `SqliteStore`. Files
are real; their durability is the simulation's own: SQLite is told not to wait for the disk, and a
crash keeps a copy of the files as they were at one statement, perhaps with the end of the WAL torn
off. What the process would have done after that instant reaches nobody. A relay that dies at a
statement can do no further one.
"""

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from reunite.changeset import fold_own, fold_strangers
from reunite.database import HistorySource
from reunite.errors import ReuniteError, SyncError
from reunite.replica import Replica
from reunite.state import Chance
from reunite_simulations import observe
from reunite_simulations.chance import EventChance
from reunite_simulations.network import Socket
from reunite_simulations.second import SecondDatabase
from reunite_transport.client_session import Event
from reunite_transport.relay.service import Limits, Service, open_service
from reunite_transport.relay.sqlite_store import SqliteStore, open_sqlite
from reunite_transport.sync import Sync

if TYPE_CHECKING:
    from reunite_simulations.world import World

T = TypeVar("T")

# When a world begins, in milliseconds since 1970 UTC.
EPOCH_MS: Final = 1_800_000_000_000
# How often a client looks for writes of other programs; in production 50 times a second.
POLL_SECONDS: Final = 0.5
LIMITS: Final = Limits(poll_seconds=0.5, store_seconds=5.0, drain_seconds=2.0)


class Crashed(BaseException):
    """The process is dead from this statement on; not an error that code could handle."""


@dataclass
class Clock:
    """A machine's clock: the true time, an offset and a drift."""

    now: Callable[[], float]
    offset_ms: float = 0.0
    drift: float = 0.0

    def __call__(self) -> int:
        """Milliseconds since 1970, as this machine believes."""
        true_ms = self.now() * 1000
        return EPOCH_MS + int(true_ms * (1 + self.drift) + self.offset_ms)

    def julian_day(self, _moment: str) -> float:
        """What SQLite's `julianday('now')` says on this machine."""
        return 2440587.5 + self() / 86_400_000


@dataclass
class Client:
    """One app on one file. `path` changes with each life, as a crash leaves a copy."""

    world: "World"
    name: str
    path: Path
    clock: Clock
    chance: Random
    relay: str
    # Makes the values of its writes its own.
    place: int
    born: float = 0.0
    # Settings of a life.
    lives: int = 0
    # Another one after the file went back in time: what its users saw before means nothing then.
    session: int = 0
    # The file goes back in time, or is a copy, with the next start.
    goes_back: bool = False
    # The names of its files that were lost, and which of them a backup brought back.
    lost_files: list[str] = field(default_factory=list)
    back_again: Sequence[str] = ()
    crash_after: int | None = None
    # The share of the WAL that a crash at a statement takes with it.
    crash_cut: float = 0.0
    # How many want the disk to be nearly full.
    tight: int = 0
    # When its outbox was last seen empty: what it wrote before is the relay's, or was refused.
    settled_at: float = 0.0
    # What this client was told of rejections, and why sync stopped for good.
    events: list[Event] = field(default_factory=list)
    stopped: SyncError | None = None
    _app: sqlite3.Connection | None = None
    _engine: sqlite3.Connection | None = None
    _replica: Replica | None = None
    _task: asyncio.Task[None] | None = None
    _own_sync: Sync | None = None
    # Further syncs of the file, with their connections to it.
    _seconds: dict[asyncio.Task[None], sqlite3.Connection | None] = field(default_factory=dict)
    _listeners: list[Callable[[], None]] = field(default_factory=list)
    # The files as a crash left them.
    _torn: Path | None = None

    # What `Sync` needs of a database.

    @property
    def replica(self) -> Replica:
        """The sync state of the file."""
        assert self._replica is not None, f"{self.name} is down"
        return self._replica

    def refuse_inside(self) -> None:
        """A world's transactions wait for nothing."""

    async def on_engine(self, function: Callable[..., T], *args: object) -> T:
        """Run a verb in line."""
        return self.alive(function, *args)

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after local commits."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def add_history_source(self, source: HistorySource) -> Callable[[], None]:
        """No app of a world looks at what was overwritten."""
        return lambda: None

    # Life and death.

    @property
    def apart(self) -> bool:
        """What it does in one transaction to a row is one edit."""
        return False

    @property
    def up(self) -> bool:
        """True while the process runs."""
        return self._replica is not None

    @property
    def app(self) -> sqlite3.Connection:
        """The app's own connection."""
        assert self._app is not None, f"{self.name} is down"
        return self._app

    @property
    def loading(self) -> bool:
        """True while the first load goes on."""
        return not observe.standing(self.app).loaded

    def start(self) -> None:
        """Open the file and begin to sync."""
        self.lives += 1
        self.crash_cut, self.tight = 0.0, 0
        self._torn = None
        self._app = self._connect(foreign_keys=True)
        self._engine = self._connect(foreign_keys=False)
        self._app.create_function("julianday", 1, self.clock.julian_day)
        replica = Replica(self._engine, chance=_sources(self.chance), clock=self.clock)
        replica.prepare()
        self._replica = replica
        self._listeners = []
        opened = self._sync(self, lambda: self.relay, self.chance)
        self._task = asyncio.create_task(opened, name=f"{self.name} sync")

    @property
    def is_live(self) -> bool:
        """True while its sync is, the only one that is not of a fault."""
        return self.up and self._own_sync is not None and self._own_sync.status.state == "live"

    @asynccontextmanager
    async def second_sync(self, relay: str, chance: EventChance) -> AsyncIterator[None]:
        """A second sync of the file meanwhile, for as long as this life lasts: through the same
        `Replica`, or through one with a connection of its own, as another process has it."""
        conn, replica = None, self.replica
        if chance.random() < 0.5:
            conn = self._connect(foreign_keys=False)
            replica = Replica(conn, chance=_sources(chance), clock=self.clock)
        db = SecondDatabase(self, replica, chance)
        opened = self._sync(db, lambda: relay, chance)
        task = asyncio.create_task(opened, name=f"{self.name} {chance.event}")
        self._seconds[task] = conn
        try:
            yield
            if task.done() and not task.cancelled():
                # Raises what it ended by, if that was a fault of its own.
                task.result()
        finally:
            task.cancel()
            # Not there any more when the process has ended, which closes all.
            conn = self._seconds.pop(task, None)
            if conn is not None:
                conn.close()

    def alive(self, function: Callable[..., T], *args: object) -> T:
        """Run a function of this process. Raises Crashed when the process died in it."""
        if self._replica is None:
            raise Crashed(self.name)
        try:
            result = function(*args)
        except BaseException:
            if self._torn is not None:
                raise Crashed(self.name) from None
            raise
        if self._torn is not None:
            raise Crashed(self.name)
        return result

    def write(self, work: Callable[[sqlite3.Connection], T], *, own: bool) -> T:
        """One transaction of the app: `own` through the engine's API, as one changeset, else as
        any program writes. Raises Crashed, and what SQLite raises, and then nothing is written."""
        result: T = self.alive(self._write, work, own)
        if own:
            for listener in list(self._listeners):
                listener()
        return result

    @contextmanager
    def overheard(self) -> Iterator[list[str]]:
        """The SQL that the app runs meanwhile, with its values."""
        said: list[str] = []

        def note(statement: str) -> None:
            said.append(statement)
            self._count(statement)

        self.app.set_trace_callback(note)
        try:
            yield said
        finally:
            self.app.set_trace_callback(self._count if self.crash_after is not None else None)

    def track(self, tables: Sequence[str]) -> None:
        """Take tables into sync."""
        self.alive(self.replica.track, tables)

    def kill(self, *, cut: float = 0.0) -> None:
        """End the process now, as kill -9 does; with `cut` as a loss of power does that takes this
        share off the end of the WAL."""
        if self._torn is None:
            self._torn = self._tear(cut)
        else:
            cut = self.crash_cut
        torn = self._torn
        self._end()
        if cut:
            self.world.note("power", self.name)
            self.world.history.doubt(self.name, 0.0)
            self.world.rolled_back.add(self.name)
        self.session += cut > 0
        self.goes_back |= cut > 0
        self._move_to(torn)

    def restore(self, backup: Path) -> None:
        """Replace the file by a backup, with the process ended."""
        self._end()
        self.world.note("backup", self.name)
        self.session += 1
        self.goes_back = True
        self._move_to(backup)

    def lose(self, number: int) -> None:
        """The machine is gone with its file; its user begins anew with an empty one."""
        self._end()
        self.world.note("lost", self.name)
        self.session += 1
        self._move_to(self.path.with_name(f"{self.name}-new{number}.db"))

    def heal(self) -> None:
        """All is well from now on: the process lives, and the disk has room."""
        # First, as what makes room are statements, too.
        if self._torn is None:
            self.crash_after = None
        self.limit_pages(None)

    def stranger(self) -> sqlite3.Connection:
        """Another program's connection to the file."""
        return self._connect(foreign_keys=True)

    def crash_at(self, statements: int, *, cut: float = 0.0) -> None:
        """Let the process die at one of its next statements; with `cut` by a loss of power."""
        # What is torn already has its own share.
        if self._torn is None:
            self.crash_after, self.crash_cut = statements, cut
        for conn in self._connections():
            conn.set_trace_callback(self._count)

    def _move_to(self, path: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.path = path

    def stop(self) -> None:
        """End the process in order: what is in the file stays."""
        self._end()

    def copy_to(self, path: Path) -> None:
        """A copy of the file, as a user would make one of a program that is not writing."""
        copy_files(self.path, path)

    def limit_pages(self, room: int | None) -> None:
        """Leave the disk with room for so many more pages; None for plenty."""
        for conn in self._connections():
            _limit_pages(conn, room)

    def _write(self, work: Callable[[sqlite3.Connection], T], own: bool) -> T:
        conn = self.app
        if not own:
            conn.execute("BEGIN IMMEDIATE")
            try:
                result = work(conn)
                conn.execute("COMMIT")
            except BaseException:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
            return result
        state = self.replica.begin(conn)
        try:
            fold_strangers(state)
            result = work(conn)
            state.now_ms = self.clock()
            fold_own(state)
            self.replica.commit(state)
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
        return result

    def _connect(self, *, foreign_keys: bool) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        conn.execute("PRAGMA synchronous = OFF")
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")
        if foreign_keys:
            conn.execute("PRAGMA wal_autocheckpoint = 0")
        return conn

    async def _sync(
        self, db: "Client | SecondDatabase", relay: Callable[[], str], chance: Random
    ) -> None:
        def note(event: Event) -> None:
            self.events.append(event)
            self.world.heard(self, event)

        sync = Sync(
            db,
            f"sim://{relay()}",
            on_event=note,
            open_socket=lambda: self.world.network.connect(self.name, relay()),
            spread=chance.uniform,
            poll_seconds=POLL_SECONDS,
        )
        if db is self:
            self._own_sync = sync
        try:
            async with sync:
                await sync.ended()
        except Crashed:
            self.world.died(self)
        except ReuniteError as error:
            self.stopped = error if isinstance(error, SyncError) else SyncError(str(error), "other")
            self.world.note("stopped", self.name, self.stopped.code)

    def _count(self, _statement: str) -> None:
        if self.crash_after is not None and self._torn is None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self._torn = self._tear(self.crash_cut)

    def _tear(self, cut: float = 0.0) -> Path:
        torn = self.path.with_name(f"{self.name}-{self.lives}.db")
        copy_files(self.path, torn)
        wal = Path(f"{torn}-wal")
        if cut and wal.exists():
            size, least = wal.stat().st_size, _moved_bytes(self.path)
            with wal.open("r+b") as file:
                file.truncate(max(int(size * (1 - cut)), min(least, size)))
        return torn

    def _end(self) -> None:
        self._replica = None
        self.crash_after = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for task in self._seconds:
            task.cancel()
        self.world.network.reset(self.name)
        for conn in self._connections():
            conn.set_trace_callback(None)
            conn.close()
        self._app = self._engine = None
        self._seconds = {}

    def _connections(self) -> list[sqlite3.Connection]:
        """All that this process has to the file."""
        some = (self._app, self._engine, *self._seconds.values())
        return [conn for conn in some if conn is not None]


@dataclass
class RelayNode:
    """One relay process on the shared store."""

    world: "World"
    name: str
    path: Path
    chance: Random
    page_rows_max: int
    service: Service | None = None
    # How many want the disk to be nearly full.
    tight: int = 0
    _store: SqliteStore | None = None
    # What kills it at a statement.
    _task: asyncio.Task[None] | None = None
    _tasks: dict[asyncio.Task[None], None] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """True while the process runs."""
        return self.service is not None

    async def start(self) -> None:
        """Open the store and listen."""
        self._store = await open_sqlite(
            self.path,
            clock=self.world.true_ms,
            chance=self._source,
            durable=False,
        )
        self.service = await open_service(
            self._store,
            limits=replace(LIMITS, page_rows_max=self.page_rows_max),
            new_token=lambda: self.chance.randbytes(8),
        )
        self.tight = 0
        self.world.network.listen(self.name, self._accept)

    async def stop(self) -> None:
        """Stop in order, as a new version is rolled out."""
        self.world.note("rolled", self.name)
        service, self.service = self.service, None
        self.world.network.stop_listening(self.name)
        if service is not None:
            await service.close()
        if self._store is not None:
            await self._store.close()
        self._store = None

    async def kill(self) -> None:
        """End the process at once; what its transaction held is gone."""
        self.world.note("died", self.name)
        service, self.service = self.service, None
        self.world.network.stop_listening(self.name)
        store, self._store = self._store, None
        if store is not None:
            conn = store._connection
            conn.set_trace_callback(None)
            conn.set_authorizer(None)
            # Closed with a statement that somebody still holds, it would keep its lock.
            conn.rollback()
            store.crash()
        if service is not None:
            service.abandon()
        self.world.network.reset(self.name)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)

    def reach_store(self, reaches: bool) -> None:
        """Let the database be away for this process, or there again."""
        if self._store is not None:
            for connection in (self._store._connection, self._store._reader):
                # SQLite interrupts every statement while this returns true.
                connection.set_progress_handler(None if reaches else lambda: True, 1)

    def crash_at(self, statements: int) -> asyncio.Event:
        """Let the process die at one of the next statements of its commits, unless it is healed
        before. What it would do after that one, before anybody else has a turn, fails. The event
        tells when."""
        assert self._store is not None
        store, died, left = self._store, asyncio.Event(), statements

        def count(_statement: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                for conn in (store._connection, store._reader):
                    # Also statements that SQLite has prepared before are asked for again.
                    conn.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
                self._task = asyncio.create_task(self.kill(), name=f"{self.name} dies")
                died.set()

        store._connection.set_trace_callback(count)
        return died

    async def heal(self) -> None:
        """All is well from now on: no statement kills the process any more, one that is dying is
        dead, and the disk has room."""
        # First, as what makes room are statements, too.
        if self._store is not None:
            self._store._connection.set_trace_callback(None)
        if self._task is not None:
            await self._task
        self.limit_pages(None)

    def limit_pages(self, room: int | None) -> None:
        """Leave the disk with room for so many more pages; None for plenty."""
        if self._store is not None:
            # It may have died this very moment.
            with suppress(sqlite3.Error):
                _limit_pages(self._store._connection, room)

    def _accept(self, socket: Socket) -> None:
        assert self.service is not None
        task = asyncio.create_task(self.service.attend(socket), name=f"{self.name} connection")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def _source(self, count: int) -> bytes:
        return self.chance.randbytes(count)


def _sources(chance: Random) -> Chance:
    return Chance(
        replica=lambda: chance.getrandbits(62) + 1,
        nonce=lambda: chance.randbytes(8),
    )


def _limit_pages(conn: sqlite3.Connection, room: int | None) -> None:
    used = conn.execute("PRAGMA page_count").fetchone()[0]
    conn.execute(f"PRAGMA max_page_count = {used + room if room is not None else 2**30}")


def _moved_bytes(path: Path) -> int:
    """How much of an open database's WAL is in its file already. SQLite waits until that part is on
    the disk before it moves it, so no loss of power takes it.

    Source: "WAL-mode File Format", 2.1: nBackfill is at 96 in the index, the page size at 8 in the
    WAL."""
    try:
        with Path(f"{path}-shm").open("rb") as index, Path(f"{path}-wal").open("rb") as wal:
            moved = int.from_bytes(index.read(100)[96:], sys.byteorder)
            page_bytes = int.from_bytes(wal.read(12)[8:], "big")
    except FileNotFoundError:
        return 0
    return 32 + moved * (24 + page_bytes) if moved else 0


def copy_files(source: Path, target: Path) -> None:
    """Copy a database's file and WAL as they are, open or not."""
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            Path(f"{target}{suffix}").unlink()
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")
    with suppress(FileNotFoundError):
        Path(f"{target}-shm").unlink()
