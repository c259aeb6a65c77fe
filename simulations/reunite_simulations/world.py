"""A world: clients, relays, a network, faults, and everything that happens in one seed.

Two phases, as in TigerBeetle's simulator. First everybody writes while faults happen, and the
checkers look on: safety. Then all heals, nobody writes, and everything has to come to rest in
bounded virtual time with equal contents: liveness. What happens is decided by one seed; the trace's
hash tells whether two runs were the same.
"""

import asyncio
import hashlib
import itertools
import random
import sqlite3
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from reunite.cells.register import Value
from reunite.schema import Table, read_table
from reunite_simulations import conflicts, faults, observe
from reunite_simulations.backends import Backend
from reunite_simulations.chance import EventChance
from reunite_simulations.checkers import Checker, all_checkers
from reunite_simulations.history import (
    History,
    Outcome,
    Read,
    Strike,
    Transaction,
)
from reunite_simulations.network import Network
from reunite_simulations.nodes import EPOCH_MS, Client, Clock, Crashed, RelayNode, copy_files
from reunite_simulations.origin import need_tables, tables_of
from reunite_simulations.outcome import Happening, Report, Settings, Violation
from reunite_simulations.transactions import transact
from reunite_simulations.workload import APPEND_SQL, APPEND_TABLE, Mix
from reunite_transport.client_session import Acknowledged, Event, GaveUp, Live, Received, Refilling

# How often the checkers look on, and how long a world at rest is watched.
LOOK_SECONDS: Final = 10.0
QUIET_SECONDS: Final = 30.0
# How many rows a relay's page holds, by seed: few, so that pages cut through what was committed.
PAGE_ROWS_MAX: Final = (2, 7, 5_000)
# How many backends there are, by seed.
BACKENDS: Final = (0, 0, 1, 2)
# A load of a large database is cut into this many pages at most, or it would take most of the time.
PAGES_MAX: Final = 200
# Measured worse than this, a clock dates edits that nobody can order; see `CLOSE_SECONDS`.
MEASURED_MS_MAX: Final = 1_200
# How far a machine's clock is off all the time, at most, and how many of them are. What a relay's
# answer tells of a clock corrects it, so no promise is less for it.
CLOCKS_MS: Final = ((0.0, 3), (300.0, 8), (5e3, 4), (600e3, 3), (365 * 86_400e3, 2))
# A relay keeps what it is told; the report keeps this many events.
EVENTS_MAX: Final = 500_000
# Not of the design: what broke is the code itself, and the message says where.
NO_CRASH: Final = "no crash of the code itself"
FRAMES_TOLD: Final = 3


class World:
    """One seed's world; `live` runs it."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        on_look: Callable[["World"], None] = lambda _: None,
    ) -> None:
        """`folder` is empty and takes the files; `on_look` is called at every look."""
        self.on_look = on_look
        self.settings = settings
        self.folder = folder
        self.network = Network(settings.seed, self.note)
        self.history = History()
        self.clients: list[Client] = []
        self.relays: list[RelayNode] = []
        self.backends: list[Backend] = []
        self.initial: dict[str, dict[tuple[Value, ...], tuple[Value, ...]]] = {}
        # Clients whose file went back in time, and those that a copy was made of.
        self.rolled_back: set[str] = set()
        self.twins: set[str] = set()
        self.rows_written = 0
        self.commits_when_quiet = 0
        self.bytes_when_quiet = 0
        self.faults: dict[str, int] = {}
        self.checks: dict[str, int] = {}
        self.violations: list[Violation] = []
        self.happenings: list[Happening] = []
        self._hash = hashlib.sha256()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checkers: Sequence[Checker] = [
            checker
            for checker in all_checkers()
            if not settings.promises or checker.promise in settings.promises
        ]
        self._tables: Sequence[Table] = []
        self._left_out: Mapping[str, str] = {}
        # As last read, with the version of the file's schema.
        self._own_tables: dict[Path, tuple[int, Sequence[Table]]] = {}
        self._healed = False
        self._store: sqlite3.Connection | None = None

    # Time, chance, the trace.

    def now(self) -> float:
        """Virtual seconds since the world began."""
        return asyncio.get_running_loop().time()

    @property
    def simulated_hours(self) -> float:
        """How long all replicas together have lived."""
        return sum(self.now() - client.born for client in self.clients) / 3600

    def true_ms(self) -> int:
        """The true time, in milliseconds since 1970."""
        return EPOCH_MS + int(self.now() * 1000)

    def note(self, kind: str, *facts: object) -> None:
        """Note an event in the trace."""
        at = self.now()
        self._hash.update(repr((round(at, 6), kind, facts)).encode())
        if len(self.happenings) < EVENTS_MAX:
            self.happenings.append(Happening(at, kind, facts))

    def chance(self, name: str) -> random.Random:
        """The chance of a node, or of a choice that is made once."""
        return random.Random(f"{self.settings.seed} {name}")

    def happens(self, event: str) -> bool:
        """Whether an event of this world is not left out."""
        return self.settings.only is None or event in self.settings.only

    def note_fault(self, chance: EventChance) -> None:
        """Note that a fault does harm from now on."""
        name, _, _ = chance.event.partition(":")
        self.faults[name] = self.faults.get(name, 0) + 1
        self.history.strikes.append(Strike(chance.event, name, self.now(), chance.picked))
        self.note("fault", name)

    # What checkers ask.

    @property
    def store(self) -> sqlite3.Connection:
        """A connection of an observer to the relays' database."""
        if self._store is None:
            self._store = sqlite3.connect(self.folder / "relay.db", isolation_level=None)
            self._store.execute("PRAGMA query_only = 1")
        return self._store

    def tables(self) -> Sequence[Table]:
        """The schema's tables and the append-only lists, with the columns that apps have added."""
        return [self._grown(table) for table in self._tables]

    def own_tables(self, client: Client) -> Sequence[Table]:
        """The schema's tables as one client has them."""
        (version,) = client.app.execute("PRAGMA schema_version").fetchone()
        known = self._own_tables.get(client.path)
        if known is None or known[0] != version:
            names = [table.name for table in self._tables if table.name != APPEND_TABLE]
            known = version, [read_table(client.app, name) for name in names]
            self._own_tables[client.path] = known
        return known[1]

    def has_table(self, client: Client, table: str) -> bool:
        """Whether a client has a table yet."""
        return observe.has_table(client.app, table)

    @property
    def bytes_sent(self) -> int:
        """By all clients and relays, to one another."""
        return self.network.counts.bytes

    # What nodes say.

    def heard(self, client: Client, event: Event) -> None:
        """A client's session says what happened."""
        if isinstance(event, GaveUp):
            self.note("rejected", client.name, event.reason, event.message, event.rows)
        elif isinstance(event, Live):
            self.note("live", client.name)
            error_ms = client.clock() - self.true_ms() - client.replica.offset_ms()
            if abs(error_ms) > MEASURED_MS_MAX:
                # Answers were so slow that a wrong clock could not be known better.
                self.history.mistime(client.name, client.settled_at)
                self.note("mistimed", client.name, error_ms)
        elif isinstance(event, Received) and event.rows:
            self.note("received", client.name, event.rows, event.applied)
        elif isinstance(event, Acknowledged):
            self.note("acknowledged", client.name, event.count)
        elif isinstance(event, Refilling):
            self.history.refills.setdefault(client.name, []).append(self.now())
            self.note("refilling", client.name, event.rows)

    def died(self, client: Client) -> None:
        """A client's process has died; it is started again after a while."""
        self.note("died", client.name)
        self._spawn(self._revive(client))

    async def _revive(self, client: Client) -> None:
        if client.up:
            client.kill()
        if not self._healed:
            chance = self.chance(f"{client.name} life {client.lives}")
            await asyncio.sleep(chance.uniform(0.1, 20))
        if not client.up:
            self._start(client)

    def _start(self, client: Client) -> None:
        """Start an app: it opens its file, and tracks the tables that it has."""
        client.start()
        self.note("started", client.name)
        if client.goes_back:
            client.goes_back = False
            if observe.standing(client.app).queued:
                for name in (client.name, *client.back_again):
                    self.history.repeat(name)
        if self.has_table(client, APPEND_TABLE):
            try:
                client.track([table.name for table in self._tables])
            except (Crashed, sqlite3.Error):
                self.died(client)

    async def start_relay(self, relay: RelayNode) -> None:
        """Start a relay, if nobody has."""
        if not relay.up:
            await relay.start()
            self.note("started", relay.name)

    async def restore_store(self, backup: Path, taken: float) -> None:
        """Let the relays' database go back to a backup that was taken then, with all relays
        stopped."""
        while up := [relay for relay in self.relays if relay.up]:
            for relay in up:
                await relay.kill()
        if self._store is not None:
            self._store.close()
            self._store = None
        copy_files(backup, self.folder / "relay.db")
        self._restored(backup, taken)

    def restore_store_under_relays(self, backup: Path, taken: float) -> None:
        """The same while relays run: to them it is a write like any other's."""
        with (
            closing(sqlite3.connect(backup)) as source,
            closing(sqlite3.connect(self.folder / "relay.db")) as target,
        ):
            source.backup(target)
        self._restored(backup, taken)

    def _restored(self, backup: Path, taken: float) -> None:
        self.history.restores.append(self.now())
        # What was captured in the backup, and folded since, is folded once more.
        (first_ms,) = self.store.execute("SELECT min(at) FROM _reunite_captured").fetchone()
        for backend in self.backends:
            # Nobody else has it, unless it was folded and read.
            self.history.doubt(backend.name, taken)
            if first_ms is not None:
                self.history.fold_again(backend.name, (first_ms - EPOCH_MS) / 1000)
        self.note("restored", backup.name)

    def add_copy(self, client: Client, chance: EventChance) -> None:
        """Use a copy of a client's file as a client of its own."""
        copy = self._client(
            f"{client.name}-copy{chance.number}", self.settings.replicas + chance.number
        )
        copy_files(client.path, copy.path)
        copy.clock = Clock(self.now, client.clock.offset_ms, client.clock.drift)
        copy.goes_back = True
        if client.name in self.history.wrong_clocks:
            self.history.wrong_clocks.add(copy.name)
        self.clients.append(copy)
        self.rolled_back.add(copy.name)
        self.twins |= {client.name, copy.name}
        self.note("copied", client.name, copy.name)
        self._start(copy)
        self._spawn(self._writes(copy))

    # A world's life.

    async def live(self) -> Report:
        """From the first file to the last check."""
        self._prepare()
        for relay in self.relays:
            await self.start_relay(relay)
        for client in self.clients:
            self._start(client)
            self._spawn(self._writes(client))
        if isinstance(self.settings.workload, Mix):
            for backend in self.backends:
                self._spawn(self._backend_writes(backend, self.settings.workload))
        self._spawn(self._look_on())
        striking = [
            asyncio.create_task(faults.strike(self, name), name=f"fault {name}")
            for name in self._drawn_faults()
        ]
        seconds = self.settings.minutes * 60
        while self.now() < seconds and not self.violations:
            await asyncio.sleep(min(1.0, max(seconds - self.now(), 0.001)))
            for task in striking:
                if task.done():
                    task.result()
        for task in striking:
            task.cancel()
        await asyncio.gather(*striking, return_exceptions=True)
        hours = self.simulated_hours
        if not self.violations:
            await self._heal()
            await self._come_to_rest()
            self._check(at_end=True)
        self.note("contents", _digest(observe.stated(self.store)))
        became = conflicts.found(self)
        self._end()
        return Report(
            settings=self.settings,
            seed=self.settings.seed,
            trace_hash=self._hash.hexdigest(),
            simulated_hours=hours,
            transactions=len(self.history.transactions),
            rows_written=self.rows_written,
            faults=self.faults,
            checks=self.checks,
            violations=self.violations,
            happenings=self.happenings,
            traffic=self.network.counts.traffic,
            conflicts=became,
            left_out=self._left_out,
            history=self.history,
        )

    def _grown(self, table: Table) -> Table:
        known = {column.name for column in table.columns}
        found = read_table(self.store, table.name).columns
        added = tuple(column for column in found if column.name not in known)
        return replace(table, columns=table.columns + added)

    def _prepare(self) -> None:
        settings = self.settings
        first = self.folder / "first.db"
        if settings.database is not None:
            copy_files(settings.database, first)
        conn = sqlite3.connect(first, isolation_level=None)
        if settings.schema:
            conn.executescript(settings.schema)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(APPEND_SQL)
        self._tables, self._left_out = tables_of(conn)
        need_tables(self._tables, self._left_out, str(settings.database or "the schema"))
        self.initial = {table.name: observe.rows(conn, table) for table in self._tables}
        conn.close()
        rows = sum(map(len, self.initial.values()))
        rows_max = max(self.chance("pages").choice(PAGE_ROWS_MAX), rows // PAGES_MAX)
        for number in range(settings.relays):
            name = f"relay{number + 1}"
            path = self.folder / "relay.db"
            self.relays.append(RelayNode(self, name, path, self.chance(name), rows_max))
        count = settings.backends
        if count is None:
            count = self.chance("backends").choice(BACKENDS)
        for number in range(1, count + 1):
            self.backends.append(Backend(self, f"backend{number}", number))
        for number in range(1, settings.replicas + 1):
            client = self._client(f"client{number}", number)
            # Some begin with a copy of the database as it was, others with nothing.
            if number == 1 or client.chance.random() < 0.4:
                copy_files(first, client.path)
            self.clients.append(client)

    def _client(self, name: str, place: int) -> Client:
        chance = self.chance(name)
        lots = self.chance(f"{name} clock")
        (offset,) = lots.choices(*zip(*CLOCKS_MS, strict=True))
        return Client(
            self,
            name,
            self.folder / f"{name}.db",
            Clock(self.now, lots.uniform(-offset, offset)),
            chance,
            chance.choice(self.relays).name,
            place,
            self.now(),
        )

    def _drawn_faults(self) -> list[str]:
        names = [name for name in self.settings.faults if name in faults.FAULTS]
        if not self.settings.swarm:
            return names
        likely = self.chance("faults").uniform(0.2, 0.9)
        return [name for name in names if self.chance(name).random() < likely]

    async def _writes(self, client: Client) -> None:
        """A client's app, until the world heals."""
        pace = self.chance(f"{client.name} pace").uniform(0.3, 2.0)
        rate = self.settings.writes_per_minute / 60 * pace
        for number in itertools.count(1):
            chance = EventChance(self.settings.seed, client.name, number)
            await asyncio.sleep(chance.expovariate(rate))
            if self._healed:
                return
            if not self.happens(chance.event):
                continue
            if client.up and self.has_table(client, APPEND_TABLE):
                self._transact(client, chance)

    def _transact(self, client: Client, chance: EventChance) -> None:
        tables = self.own_tables(client)
        try:
            made = transact(
                client, chance, self.settings.workload, tables, self.history, self.now()
            )
        except Crashed:
            self.died(client)
            return
        self._note_transaction(made)

    def _note_transaction(self, made: Transaction) -> None:
        if made.outcome is Outcome.REFUSED:
            self.note("refused", made.client, made.refusal)
        else:
            self.rows_written += made.rows_written
            self.note("wrote", made.client, made.own, made.rows_written, list(made.appended))

    async def _backend_writes(self, backend: Backend, mix: Mix) -> None:
        """A backend's transactions, until the world heals."""
        # SQLite fires no trigger for a row that gives way to another by OR REPLACE.
        mix = replace(mix, strangers=0.0, replace=0.0)
        rate = self.settings.writes_per_minute / 60 * self.chance(backend.name).uniform(0.3, 2.0)
        for number in itertools.count(1):
            chance = EventChance(self.settings.seed, backend.name, number)
            await asyncio.sleep(chance.expovariate(rate))
            if self._healed:
                return
            if not self.happens(chance.event) or not observe.has_table(self.store, APPEND_TABLE):
                continue
            with backend.connected():
                # With the columns that apps have added, or a row that is moved would take along
                # what nobody knows of.
                tables = backend.tables(
                    [
                        self._grown(table)
                        for table in self._tables
                        if table.name != APPEND_TABLE and observe.has_table(self.store, table.name)
                    ]
                )
                if tables:
                    self._note_transaction(
                        transact(backend, chance, mix, tables, self.history, self.now())
                    )

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._look()
            self._check()
            self.on_look(self)

    def _look(self) -> None:
        up = [client for client in self.clients if client.up]
        contents = {observe.fingerprint(client.app) for client in up}
        queued = sum(observe.standing(client.app).queued for client in up)
        self.note("look", len(contents), queued)
        for client in self.clients:
            if not (client.up and self.has_table(client, APPEND_TABLE)):
                continue
            standing = observe.standing(client.app)
            if not standing.queued:
                client.settled_at = self.now()
            if standing.loaded:
                seen = self.history.keep(observe.elements(client.app, APPEND_TABLE))
                self.history.reads.append(Read(client.name, client.session, self.now(), seen))

    def _check(self, *, at_end: bool = False) -> None:
        for checker in self._checkers:
            if self.violations:
                return
            if at_end or checker.looks:
                self.checks[checker.promise] = self.checks.get(checker.promise, 0) + 1
            for message in checker.at_end(self) if at_end else checker.during(self):
                self.violations.append(Violation(checker.promise, self.now(), message))
                self.note("violation", checker.promise, message)

    async def _heal(self) -> None:
        self._healed = True
        self.note("healed")
        self.network.heal()
        for relay in self.relays:
            await relay.heal()
            await self.start_relay(relay)
        for client in self.clients:
            if client.up:
                client.heal()
            else:
                self._start(client)

    async def _come_to_rest(self) -> None:
        until = self.now() + self.settings.rest_seconds
        while self.now() < until:
            await asyncio.sleep(2.0)
            if all(self._rests(client) for client in self.clients):
                break
        (head,) = self.store.execute("SELECT seq FROM _reunite_head").fetchone()
        before = self.bytes_sent
        await asyncio.sleep(QUIET_SECONDS)
        self.bytes_when_quiet = self.bytes_sent - before
        (later,) = self.store.execute("SELECT seq FROM _reunite_head").fetchone()
        self.commits_when_quiet = later - head
        self._look()

    def _rests(self, client: Client) -> bool:
        # One that waits to connect again has something to say yet.
        if not client.is_live:
            return False
        standing = observe.standing(client.app)
        head, unfolded = self.store.execute(
            "SELECT seq, EXISTS (SELECT 1 FROM _reunite_captured) FROM _reunite_head"
        ).fetchone()
        return not unfolded and standing.loaded and not standing.queued and standing.seq == head

    def _end(self) -> None:
        for client in self.clients:
            if client.up:
                client.stop()
        for task in self._tasks:
            task.cancel()
        if self._store is not None:
            self._store.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES_TOLD:]
        places = [f"{Path(each.filename).name}:{each.lineno} in {each.name}" for each in frames]
        said = f"{error!r} at {', '.join(places)}"
        self.violations.append(Violation(NO_CRASH, self.now(), said))
        self.note("violation", NO_CRASH, said)


def _digest(documents: observe.Documents) -> str:
    return hashlib.sha256(repr(sorted(documents.items())).encode()).hexdigest()
