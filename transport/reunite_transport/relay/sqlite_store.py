"""The relay's store on SQLite: one realm in one file. See `store` for the contract.

It is for small boxes and for the simulator. Everything runs on the event loop's own thread, and
time and chance are given to it, so that the same calls have the same outcome each time.

BEGIN IMMEDIATE is the head's lock, for the tasks of this process as for other processes. SQLite
would wait for it in a way that stops the thread, and with it the task that holds the lock; so it is
told not to wait, and a coroutine that finds the lock taken sleeps and tries again. The file is in
WAL mode, in which nobody who reads waits for who writes.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

from reunite.driver import real_clock
from reunite.errors import FormatError, TableError
from reunite.overwritten import Loss
from reunite.schema import Table
from reunite_transport.messages import Section, Verdict
from reunite_transport.relay.history import compared
from reunite_transport.relay.memory import Memory
from reunite_transport.relay.registry import grow, ordered
from reunite_transport.relay.sqlite_bookkeeping import (
    Head,
    bootstrap,
    connect,
    new_replica_id,
    read_head,
    transaction,
)
from reunite_transport.relay.sqlite_capture import install_triggers, uncaptured
from reunite_transport.relay.sqlite_errors import translated
from reunite_transport.relay.sqlite_registry import create as create_growth
from reunite_transport.relay.sqlite_registry import read_registry
from reunite_transport.relay.sqlite_rows import RowWriter
from reunite_transport.relay.sqlite_transaction import SqliteTransaction
from reunite_transport.relay.store import (
    BACKLOG_MAX,
    Busy,
    FeedPage,
    Greeting,
    Look,
    RowId,
    WentBack,
)

# Another process holds the lock for a commit: milliseconds, of the largest changeset seconds.
RETRY_SECONDS_MIN: Final = 0.001
RETRY_SECONDS_MAX: Final = 0.05
WAIT_SECONDS_MAX: Final = 30.0

_TABLE_BYTES: Final = 4
_COUNTED_ROWS_MAX: Final = 1_000_000
_LAST_TABLE: Final = (1 << 31) - 1
_T = TypeVar("_T")


async def open_sqlite(
    path: Path | str,
    *,
    clock: Callable[[], int] = real_clock,
    chance: Callable[[int], bytes] = secrets.token_bytes,
    durable: bool = True,
) -> "SqliteStore":
    """Open the realm in a file, making it where there is none.

    `clock` gives milliseconds since 1970 UTC, `chance` so many random bytes. Without `durable`
    SQLite does not wait for the disk, and a loss of power may take the last commits.

    Raises StoreError when the file cannot be opened, is of something else than a relay, or was
    written by a newer reunite.
    """
    with translated(), ExitStack() as stack:
        connection = stack.enter_context(closing(connect(path, durable=durable)))
        realm = await _patiently(lambda: bootstrap(connection, path, chance))
        await _patiently(lambda: _capture(connection))
        reader = stack.enter_context(closing(connect(path, durable=durable, reading=True)))
        stack.pop_all()
    return SqliteStore(connection, reader, realm, chance, clock)


class _Unfinished(Exception):
    """A commit's block ended without `finish`: nothing of it is kept."""


class SqliteStore:
    """A realm on SQLite; made by `open_sqlite`. To be used in the thread that opened it."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        realm: bytes,
        chance: Callable[[int], bytes],
        clock: Callable[[], int],
    ) -> None:
        self.realm = realm
        self.replica = new_replica_id(chance)
        self._chance = chance
        self._connection = connection
        # Of its own, as the other one would read what is not committed yet.
        self._reader = reader
        self._clock = clock
        self._turn = asyncio.Lock()
        self._memory = Memory(RowWriter(()))

    async def registry(self) -> tuple[Table, ...]:
        """All tables, numbered, parents before children; read again only when it has grown."""
        memory = self._memory
        await self._reading(memory, lambda head: _refresh(memory, self._reader, head))
        return memory.writer.tables

    async def describe(self, tables: Sequence[Table], *, create: bool) -> tuple[Table, ...]:
        """Register and create what is new; see the contract. Kept cells of a column that was
        unknown so far are not written to the table until their rows are edited."""
        memory = self._memory
        growth = grow(
            await self._reading(memory, lambda _head: read_registry(self._reader)), tables
        )
        if not growth.registered:
            return await self.registry()
        if not create:
            raise TableError(
                growth.registered[0].table.name,
                "is not in the realm, or lacks columns there, and this relay creates none",
            )
        async with self._locked(memory) as head:
            known = read_registry(self._connection)
            growth = grow(known, tables)
            create_growth(self._connection, growth)
            self._connection.execute("UPDATE _reunite_head SET registry = registry + 1")
        by_id = {entry.table.id: entry for entry in (*known, *growth.registered)}
        memory.read(head.registry + 1, RowWriter(ordered(list(by_id.values()))))
        return memory.writer.tables

    async def follow(self, *, track_new: bool) -> Mapping[str, str]:
        """Nothing: tables of a relay's file are only altered by relays."""
        return {}

    async def greet(
        self, replica: int, acknowledged: int, nonces: Sequence[bytes], seq: int, token: bytes
    ) -> Greeting:
        """Raise the replica's term and compare histories; see the contract."""
        memory, connection = self._memory, self._connection
        async with self._locked(memory) as head:
            now_ms = self._clock()
            known_commit = connection.execute(
                "SELECT 1 FROM _reunite_commits WHERE seq >= ? AND token = ?", (seq, token)
            ).fetchone()
            term, last = connection.execute(
                "SELECT term, last FROM _reunite_replicas WHERE replica = ?", (replica,)
            ).fetchone() or (0, 0)
            if (seq > 0 and not known_commit) or acknowledged > last:
                return Greeting(0, Verdict.LOST, (), head.seq, now_ms, 0)
            accepted = connection.execute(
                "SELECT number, nonce, seq FROM _reunite_changesets"
                " WHERE replica = ? AND number > ? ORDER BY number",
                (replica, acknowledged),
            ).fetchall()
            verdict, known = compared(acknowledged, last, nonces, accepted)
            # A copy of a file must not fence off the file that it was copied from.
            term = max(term + (verdict is not Verdict.FORK), 1)
            connection.execute(
                "INSERT INTO _reunite_replicas (replica, term, last, seen_at) VALUES (?, ?, 0, ?)"
                " ON CONFLICT (replica) DO UPDATE SET term = excluded.term, seen_at ="
                " excluded.seen_at",
                (replica, term, now_ms),
            )
        rows = await self._reading(memory, lambda _head: _count_rows(self._reader, seq))
        return Greeting(term, verdict, known, head.seq, now_ms, rows)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[SqliteTransaction]:
        """Start a commit. Raises Busy when another process holds the lock for too long."""
        memory = self._memory
        with suppress(_Unfinished):
            async with self._locked(memory) as head:
                _refresh(memory, self._connection, head)
                self._connection.execute("UPDATE _reunite_relay SET writes = 1")
                commit = SqliteTransaction(
                    self._connection,
                    memory.writer,
                    relay=self.replica,
                    seq=head.seq + 1,
                    now_ms=self._clock(),
                )
                yield commit
                if commit.token is None:
                    raise _Unfinished
                self._connection.execute("UPDATE _reunite_relay SET writes = 0")
            memory.saw(commit.seq, commit.token)

    async def page(self, seq: int, within: bytes, *, rows_max: int, bytes_max: int) -> FeedPage:
        """The next rows of the feed. Raises FormatError for a `within` that is not of a page."""
        table, key = _LAST_TABLE, b""
        if within:
            if len(within) <= _TABLE_BYTES:
                raise FormatError("not a place in the feed")
            table, key = int.from_bytes(within[:_TABLE_BYTES], "big"), within[_TABLE_BYTES:]
            if table > _LAST_TABLE:
                raise FormatError("not a place in the feed")
        return await self._reading(
            self._memory,
            lambda head: _read_page(self._reader, head, (seq, table, key), rows_max, bytes_max),
        )

    async def losses(self, row: RowId) -> tuple[Loss, ...]:
        """What commits overwrote of a row, the newest first."""
        found = await self._reading(
            self._memory,
            lambda _head: self._reader.execute(
                "SELECT document, replaced_by FROM _reunite_history WHERE tbl = ? AND key = ?"
                " ORDER BY place DESC",
                (row.table, row.key),
            ).fetchall(),
        )
        return tuple(Loss(*line) for line in found)

    def forget(self) -> None:
        """Remember nothing of the history so far; see the contract."""
        self._memory = Memory(RowWriter(()))
        # What was written under the old id may be gone, and be offered back by clients.
        self.replica = new_replica_id(self._chance)

    async def head(self) -> tuple[int, bytes]:
        """The last commit's (seq, token)."""
        head = await self._reading(self._memory, lambda head: head)
        return head.seq, head.token

    async def look(self) -> Look:
        """The last commit, and what waits to be folded."""
        head, waiting, first = await self._reading(
            self._memory,
            lambda head: (
                head,
                *self._reader.execute(
                    "SELECT (SELECT count(*) FROM (SELECT 1 FROM _reunite_captured LIMIT ?)),"
                    " (SELECT at FROM _reunite_captured ORDER BY id LIMIT 1)",
                    (BACKLOG_MAX,),
                ).fetchone(),
            ),
        )
        lag_ms = 0 if first is None else max(0, self._clock() - first)
        return Look(head.seq, head.token, waiting, lag_ms / 1_000)

    async def close(self) -> None:
        """Let go of the file; a commit under way is rolled back."""
        self.crash()

    def crash(self) -> None:
        """Let go of the file at once, as a process that dies does: what is not committed is gone,
        and whoever was at it gets a StoreError."""
        self._connection.close()
        self._reader.close()

    async def _reading(self, memory: Memory[RowWriter], question: Callable[[Head], _T]) -> _T:
        """The answer to a question to the reading connection, from one snapshot with this head."""

        def ask() -> _T:
            with transaction(self._reader, "DEFERRED"):
                return question(_head_in(memory, self._reader))

        return await _patiently(ask)

    @asynccontextmanager
    async def _locked(self, memory: Memory[RowWriter]) -> AsyncIterator[Head]:
        """A transaction that holds the head; it commits when the block ends. Tasks of this store
        take turns in the order in which they came; others are waited for."""
        # A commit does not wait for anything, so between two of them others get the thread.
        await asyncio.sleep(0)
        async with self._turn:
            with translated(), ExitStack() as stack:
                await _patiently(lambda: stack.enter_context(transaction(self._connection)))
                yield _head_in(memory, self._connection)


def _capture(connection: sqlite3.Connection) -> None:
    """Make sure that what other programs write to the realm's tables is captured."""
    with transaction(connection):
        tables = ordered(read_registry(connection))
        install_triggers(connection, uncaptured(connection, tables))


async def _patiently(attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, tried again while somebody else holds the lock that it needs. Raises
    Busy after a while, and what SQLite's other errors mean."""
    waited, delay = 0.0, RETRY_SECONDS_MIN
    while True:
        try:
            with translated():
                return attempt()
        except Busy:
            if waited >= WAIT_SECONDS_MAX:
                raise
        await asyncio.sleep(delay)
        waited += delay
        delay = min(2 * delay, RETRY_SECONDS_MAX)


def _head_in(memory: Memory[RowWriter], connection: sqlite3.Connection) -> Head:
    """The head, as the open transaction sees it, in the history that is remembered."""
    head = read_head(connection)
    if head.seq < memory.seq or head.registry < memory.registry:
        raise WentBack
    if memory.seq:
        found = connection.execute(
            "SELECT 1 FROM _reunite_commits WHERE seq = ? AND token = ?", (memory.seq, memory.token)
        ).fetchone()
        if found is None:
            raise WentBack
    memory.saw(head.seq, head.token)
    return head


def _refresh(memory: Memory[RowWriter], connection: sqlite3.Connection, head: Head) -> None:
    if head.registry != memory.registry:
        memory.read(head.registry, RowWriter(ordered(read_registry(connection))))


def _count_rows(reader: sqlite3.Connection, seq: int) -> int:
    """How many rows lie after a commit, as far as a progress bar needs to know: only a first load
    is long."""
    (rows,) = reader.execute(
        "SELECT count(*) FROM (SELECT 1 FROM _reunite_documents WHERE seq > ? LIMIT ?)",
        (seq, _COUNTED_ROWS_MAX),
    ).fetchone()
    return int(rows)


def _read_page(
    reader: sqlite3.Connection,
    head: Head,
    after: tuple[int, int, bytes],
    rows_max: int,
    bytes_max: int,
) -> FeedPage:
    rows: list[tuple[int, int, bytes, bytes]] = []
    size = 0
    complete = True
    # One row more than wanted tells whether there is more.
    with closing(
        reader.execute(
            "SELECT seq, tbl, key, document FROM _reunite_documents"
            " WHERE (seq, tbl, key) > (?, ?, ?) ORDER BY seq, tbl, key LIMIT ?",
            (*after, rows_max + 1),
        )
    ) as found:
        for row in found:
            size += len(row[2]) + len(row[3])
            # The first row always comes, whatever its size.
            if rows and (len(rows) >= rows_max or size > bytes_max):
                complete = False
                break
            rows.append(row)
    sections = tuple(
        Section(table, tuple(row[2] for row in run), tuple(row[3] for row in run))
        for table, run in ((t, list(some)) for t, some in groupby(rows, lambda row: row[1]))
    )
    if complete:
        return FeedPage(sections, head.seq, b"", True, head.token)
    end_seq, end_table, end_key, _ = rows[-1]
    mark = end_table.to_bytes(_TABLE_BYTES, "big") + end_key
    return FeedPage(sections, end_seq, mark, False, head.token)
