"""An app as a process of its own, to be killed and stopped at any moment; its journal says what it
did.

    python -m tests.e2e.mixed_client FILE URL JOURNAL SEED PLACE LIFE

It writes the simulator's workload, now by the engine's API and now as another program would, and
reads in between, one after the other: one session. At the end of its stdin it writes no more, and
reads and syncs until SIGTERM. PLACE and LIFE make its values its own.
"""

import asyncio
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from unittest.mock import patch

from reunite import Database, Transaction
from reunite.errors import ReuniteError, SyncError
from reunite.schema import read_table, table_names
from reunite_simulations import observe
from reunite_simulations.history import Outcome
from reunite_simulations.history import Transaction as Noted
from reunite_simulations.seeds import own_schema
from reunite_simulations.workload import APPEND_TABLE, Mix, RandomWrites
from reunite_transport import Sync, sync, websocket
from tests.e2e.journal import Journal

T = TypeVar("T")

# Between two steps of an app, in the mean.
STEP_SECONDS: Final = 0.08
READS: Final = 0.4
# One life of one client writes no more values than this, and lives no more often than a thousand
# times; five bytes hold them all.
VALUES_OF_LIFE: Final = 10_000_000
# Nobody ends a client whose test was killed: then it ends by itself.
QUIET_SECONDS_MAX: Final = 300.0


class Rows(list[tuple[Any, ...]]):
    """The rows of a statement, as a cursor gives them."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All of them."""
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first one: nobody asks for the second in this way."""
        return self[0] if self else None


class Borrowed:
    """What a workload uses of a connection, by a transaction of the engine's API. To be used in
    another thread than the loop's."""

    def __init__(self, tx: Transaction, loop: asyncio.AbstractEventLoop) -> None:
        self._tx = tx
        self._loop = loop

    def execute(self, sql: str, parameters: Any = ()) -> Rows:
        """Run a statement."""
        running = asyncio.run_coroutine_threadsafe(self._tx.execute(sql, parameters), self._loop)
        return Rows(tuple(row) for row in running.result().rows)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> None:
        """Run a statement for each set of parameters."""
        running = self._tx.executemany(sql, parameters)
        asyncio.run_coroutine_threadsafe(running, self._loop).result()


class App:
    """One life of the app."""

    def __init__(self, db: Database, journal: Journal, seed: str, first_value: int) -> None:
        """`seed` decides all that the app does by chance."""
        self._db = db
        self._journal = journal
        self._chance = random.Random(seed)
        self._life = seed
        self._mix = Mix()
        with closing(sqlite3.connect(":memory:")) as conn:
            conn.executescript(own_schema())
            tables = [read_table(conn, name) for name in table_names(conn)]
        self._workload = RandomWrites(tables, self._chance, self._mix, first_value)
        self._steps = 0

    async def live(self, quiet: asyncio.Event, end: asyncio.Event) -> None:
        """Write and read until `quiet`, read until `end`."""
        while not quiet.is_set():
            await self._pause()
            await self._step(writes=not quiet.is_set())
        self._journal.quiet()
        async with asyncio.timeout(QUIET_SECONDS_MAX):
            while not end.is_set():
                await self._pause()
                await self._step(writes=False)

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.expovariate(1 / STEP_SECONDS))

    async def _step(self, *, writes: bool) -> None:
        if not await asyncio.to_thread(self._on_file, _has_lists):
            return
        if not writes or self._chance.random() < READS:
            seen = await asyncio.to_thread(self._on_file, _seen)
            if seen is not None:
                self._journal.read(seen)
            return
        self._steps += 1
        own = self._chance.random() >= self._mix.strangers
        noted = Noted(f"{self._life} {self._steps}", "", 0, 0.0, own)
        try:
            await (self._own(noted) if own else asyncio.to_thread(self._as_stranger, noted))
        except (sqlite3.Error, ReuniteError):
            self._journal.ended(noted.event, Outcome.REFUSED)
        else:
            self._journal.ended(noted.event, Outcome.RETURNED)

    async def _own(self, noted: Noted) -> None:
        async with self._db.transaction() as tx:
            borrowed = Borrowed(tx, asyncio.get_running_loop())
            await asyncio.to_thread(self._work, cast(sqlite3.Connection, borrowed), noted)

    def _as_stranger(self, noted: Noted) -> None:
        """Write as a program that knows nothing of sync."""

        def write(conn: sqlite3.Connection) -> None:
            conn.execute("PRAGMA foreign_keys = 1")
            conn.execute("BEGIN IMMEDIATE")
            self._work(conn, noted)
            conn.execute("COMMIT")

        self._on_file(write)

    def _work(self, conn: sqlite3.Connection, noted: Noted) -> None:
        """A transaction's statements; when they are done it is in the journal."""
        since = time.monotonic()
        appends = self._chance.random() < self._mix.appends
        noted.read = observe.elements(conn, APPEND_TABLE)
        if appends:
            noted.appended = self._workload.append(conn)
        if not appends or self._chance.random() < 0.3:
            noted.writes = self._workload.some(conn)
        noted.at = time.monotonic()
        self._journal.begun(noted, since)

    def _on_file(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """By a connection of another program. What it leaves uncommitted is rolled back."""
        with closing(sqlite3.connect(self._db.path, isolation_level=None, timeout=10)) as conn:
            return function(conn)


def _has_lists(conn: sqlite3.Connection) -> bool:
    return observe.has_table(conn, APPEND_TABLE)


def _seen(conn: sqlite3.Connection) -> frozenset[str] | None:
    """The append-only lists; None during a first load, which shows rows as they come."""
    return observe.elements(conn, APPEND_TABLE) if observe.standing(conn).loaded else None


async def _watch(running: Sync, journal: Journal) -> None:
    try:
        await running.ended()
    except SyncError as error:
        journal.stopped(error)


async def _ended(stdin: asyncio.StreamReader, quiet: asyncio.Event) -> None:
    await stdin.read()
    quiet.set()


async def main(file: str, url: str, journal_file: str, seed: str, place: str, life: str) -> None:
    """One life."""
    loop = asyncio.get_running_loop()
    quiet, end = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    journal = Journal(Path(journal_file))
    first_value = (int(place) * 1_000 + int(life)) * VALUES_OF_LIFE
    async with Database(file) as db:
        await db.track_all()
        app = App(db, journal, f"{seed} client{place}:{life}", first_value)
        async with Sync(db, url, on_event=journal.heard) as running, asyncio.TaskGroup() as group:
            beside = [
                group.create_task(_watch(running, journal)),
                group.create_task(_ended(stdin, quiet)),
            ]
            await app.live(quiet, end)
            for task in beside:
                task.cancel()


if __name__ == "__main__":
    # As little waiting as in the other tests, so that a fault costs little time.
    with (
        patch.multiple(sync, BACK_OFF_SECONDS=(0.05, 0.5), FENCED_SECONDS=0.5),
        patch.multiple(websocket, HEARTBEAT_SECONDS=1.0, CONNECT_SECONDS=2.0),
    ):
        asyncio.run(main(*sys.argv[1:]))
