"""Live queries: results that follow the file. Owns who listens, and when a query is run again.

A `Watch` is an async iterator over the results of one query. Nothing is done unless somebody waits
for its next result; while somebody does, the file is looked at after every commit of this process
and every `POLL_SECONDS`, and the queries that read what has changed (see `turns`) are run again,
all on one snapshot. A result that is no other is not told. So a consumer that is slow gets the
latest state and no backlog, and equal queries are run once for all who watch them.

Which tables a query reads SQLite's authorizer tells while it is prepared, through views and CTEs.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import is_
from types import TracebackType
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar
from weakref import WeakSet, WeakValueDictionary

from reunite.changes import Changes
from reunite.changes import read as read_changes
from reunite.connection import Parameters
from reunite.driver import ThreadDriver, real_seconds
from reunite.errors import UsageError
from reunite.schema import ascii_lower
from reunite.turns import Lookout, Turns

T = TypeVar("T")
Rows: TypeAlias = list[sqlite3.Row]

# How often the file is looked at for what other processes wrote, while somebody waits: one PRAGMA.
POLL_SECONDS: Final = 0.025
# A result that a later commit has made stale is dropped and the query run again, for so long: where
# commits never end, what was true a moment ago is told.
STALE_SECONDS_MAX: Final = 0.05
# Statements that stay prepared.
STATEMENTS_KEPT: Final = 512
# Steps of SQLite's machine, a millisecond's worth.
_STEPS_BETWEEN_LOOKS: Final = 20_000
# What a statement that is watched may not do, beside writing, which its connection refuses.
_MAY_NOT_DO: Final = frozenset(
    {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
)
_REFUSED: Final = frozenset({sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY})


class Found(NamedTuple):
    """What a run of a query found: what is told of it, and the rows by which it is compared with
    what was told before; None where it is another each time."""

    told: Any
    compared: Sequence[Sequence[object]] | None


class Query:
    """One query that is watched, with its last outcome."""

    def __init__(
        self, run: "Callable[[Reader], Found | None]", *, needs_fold: bool = False
    ) -> None:
        """`run` returns None where there is nothing to tell. `needs_fold` is for what shows other
        programs' writes only when they are folded."""
        self.run = run
        self.needs_fold = needs_fold
        # Counts outcomes, so that who watches sees whether there is one that it was not told.
        self.version = 0
        self.found: Found | None = None
        self.error: Exception | None = None
        self.reads: frozenset[str] | None = None
        self.is_stale = True


class Reader:
    """The connection that queries are run on: it reads, and tells which tables it read."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self._read: set[str] = set()
        self._tables_by_sql: dict[str, frozenset[str]] = {}
        self._is_watched = False
        self.watch_statements()

    def watch_statements(self) -> None:
        """Let SQLite prepare all statements anew when they are next run, and tell what they read;
        one that stays prepared tells nothing."""
        self.conn.set_authorizer(self._authorize)

    def fetch_all(self, sql: str, parameters: Parameters) -> Rows:
        """The rows of a query. Raises UsageError for a statement that is none."""
        before, self._read = self._read, set()
        self._is_watched = True
        cursor = self.conn.cursor()
        cursor.row_factory = sqlite3.Row
        try:
            rows: Rows = cursor.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            if _code(error) not in _REFUSED:
                raise
            raise UsageError(f"only a query can be watched, and this is none: {sql}") from error
        finally:
            self._is_watched = False
            read, self._read = self._read, before
        if read or sql not in self._tables_by_sql:
            self._tables_by_sql[sql] = frozenset(read)
        self._read |= self._tables_by_sql[sql]
        return rows

    def names_read(self) -> frozenset[str]:
        """The tables and views that were read since this was last asked, in lower case."""
        read, self._read = frozenset(self._read), set()
        return read

    def _authorize(
        self, action: int, name: str | None, _column: str | None, _db: str | None, _by: str | None
    ) -> int:
        if action == sqlite3.SQLITE_READ and name:
            self._read.add(ascii_lower(name))
        if self._is_watched and action in _MAY_NOT_DO:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK


class Board:
    """Runs queries again when what they read has changed. Everything but `__init__` runs on the
    connection's thread."""

    def __init__(self, turns: Turns, *, clock: Callable[[], float] = real_seconds) -> None:
        """`clock` counts seconds."""
        self._turns = turns
        self._clock = clock
        self._reader: Reader | None = None
        self._lookout: Lookout | None = None
        self.unfolded = False
        # Set from the event loop when nobody waits for what is being run.
        self.abandoned = False

    def refresh(
        self, conn: sqlite3.Connection, queries: Collection[Query], wanted: Collection[Query]
    ) -> None:
        """Find out which queries have become stale, and run those of them that are wanted."""
        if self._reader is None or self._lookout is None:
            self._reader, self._lookout = Reader(conn), Lookout(conn, self._turns)
            # SQLite's `interrupt` is lost where it comes before the statement.
            conn.set_progress_handler(lambda: self.abandoned, _STEPS_BETWEEN_LOOKS)
        deadline = self._clock() + STALE_SECONDS_MAX
        outcomes: dict[Query, Found | Exception | None] = {}
        try:
            while self._lookout.has_news() or any(query.is_stale for query in wanted):
                change = self._lookout.look()
                self.unfolded = change.unfolded
                for query in queries:
                    if change.affects(query.reads):
                        query.is_stale = True
                for query in wanted:
                    if query.is_stale:
                        outcomes[query] = _run(self._reader, query)
                conn.execute("COMMIT")
                if self._clock() > deadline:
                    break
        finally:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        for query, outcome in outcomes.items():
            _publish(query, outcome)


def _run(reader: Reader, query: Query) -> Found | Exception | None:
    query.reads = None
    reader.names_read()
    try:
        found = query.run(reader)
    except Exception as error:
        if is_interrupted(error):
            raise
        query.is_stale = False
        return error
    query.is_stale = False
    if not query.needs_fold:
        # What follows the log of changes looks there itself.
        query.reads = reader.names_read()
    return found


def is_interrupted(error: Exception) -> bool:
    """True for a statement that was ended because nobody waits for it."""
    return _code(error) == sqlite3.SQLITE_INTERRUPT


def _code(error: Exception) -> int | None:
    """SQLite's code of an error, where it is SQLite's."""
    # SQLAlchemy wraps the database's errors.
    code: int | None = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    return code


def _publish(query: Query, outcome: Found | Exception | None) -> None:
    """Take over an outcome, unless it is the one that everybody was told."""
    if outcome is None:
        return
    if isinstance(outcome, Exception):
        before = query.error
        if type(before) is type(outcome) and str(before) == str(outcome):
            return
        query.error = outcome
    else:
        known = query.found if query.error is None else None
        if known is not None and _is_same(known.compared, outcome.compared):
            return
        query.found, query.error = outcome, None
    query.version += 1


def _is_same(
    before: Sequence[Sequence[object]] | None, after: Sequence[Sequence[object]] | None
) -> bool:
    """Whether these are the same rows, also by their types: 1 and 1.0 are two values."""
    if before is None or after is None or before != after:
        return False
    return all(map(is_, *(map(type, chain.from_iterable(rows)) for rows in (before, after))))


# How the rows of a statement are found.
Run: TypeAlias = "Callable[[Reader, str, Parameters], Found]"


def rows_of(reader: Reader, sql: str, parameters: Parameters) -> Found:
    """All rows."""
    rows = reader.fetch_all(sql, parameters)
    return Found(rows, rows)


def first_of(reader: Reader, sql: str, parameters: Parameters) -> Found:
    """The first row, or none."""
    rows = reader.fetch_all(sql, parameters)[:1]
    return Found(rows, rows)


def keyed(sql: str, parameters: Parameters) -> tuple[Parameters, tuple[Hashable, ...] | None]:
    """The parameters as they are now, and a key that is the same for equal queries; None for values
    that cannot be compared."""
    bound: Parameters
    values: tuple[object, ...]
    if isinstance(parameters, Mapping):
        bound = dict(parameters)
        values = tuple(sorted(parameters.items()))
    else:
        bound = values = tuple(parameters)
    try:
        hash(values)
    except TypeError:
        return bound, None
    # 1, 1.0 and True are equal, and not the same to SQLite.
    return bound, (sql, values, tuple(map(repr, values)))


class LiveQueries:
    """Who listens to which query of one open file."""

    def __init__(
        self, driver: ThreadDriver, turns: Turns, *, fold: Callable[[], Awaitable[object]]
    ) -> None:
        """`driver` is not open: it is opened for the first who listens. `fold` lets the log of
        changes be kept, with what other programs wrote."""
        self._driver = driver
        self._fold = fold
        self._board = Board(turns)
        self._by_key: WeakValueDictionary[Hashable, Query] = WeakValueDictionary()
        self._queries: WeakSet[Query] = WeakSet()
        self._waiting: dict[asyncio.Future[None], tuple[Query, int]] = {}
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._running: set[Query] = set()
        self._is_open = False
        self._is_logged = False
        self.closed = False

    def add(self, query: Query, key: Hashable = None) -> Query:
        """The query to watch: one that is watched under the same key already, or this one. It is
        forgotten when nobody has it any more."""
        if key is not None:
            query = self._by_key.setdefault(key, query)
        self._queries.add(query)
        return query

    def listen(self, query: Query, seen: int) -> "asyncio.Future[None]":
        """A future that is done when the query has another outcome than the one with this number,
        or the database is closed. The caller calls `leave` with it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.closed:
            waiter.set_result(None)
            return waiter
        self._waiting[waiter] = (query, seen)
        self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="reunite live queries")
        return waiter

    def leave(self, waiter: "asyncio.Future[None]") -> None:
        """Nobody waits for this future any more."""
        self._waiting.pop(waiter, None)
        if self._running.isdisjoint(query for query, _ in self._waiting.values()):
            self._board.abandoned = True

    def wake(self) -> None:
        """The file may have changed."""
        self._woken.set()

    async def close(self) -> None:
        """End all who listen."""
        self.closed = True
        self._board.abandoned = True
        self._woken.set()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._driver.close()

    async def _follow(self) -> None:
        """Look at the file, and tell who waits, for as long as somebody does."""
        while self._waiting and not self.closed:
            self._woken.clear()
            wanted = {query for query, _ in self._waiting.values()}
            problem = None
            try:
                await self._refresh(wanted)
            except Exception as error:
                problem = None if is_interrupted(error) else error
            self._tell(wanted, problem)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._woken.wait()

    async def _refresh(self, wanted: set[Query]) -> None:
        if not self._is_open:
            await self._driver.open()
            self._is_open = True
        if any(query.needs_fold for query in wanted) and (
            self._board.unfolded or not self._is_logged
        ):
            await self._fold()
            self._is_logged = True
        self._running, self._board.abandoned = wanted, False
        try:
            conn = self._driver.conn
            await self._driver.run(self._board.refresh, conn, list(self._queries), wanted)
        finally:
            self._running = set()

    def _tell(self, wanted: Collection[Query], problem: Exception | None) -> None:
        told = [
            waiter
            for waiter, (query, seen) in self._waiting.items()
            if query in wanted and (problem is not None or query.version != seen)
        ]
        for waiter in told:
            del self._waiting[waiter]
            if waiter.done():
                continue
            if problem is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(problem)


class Watch(Generic[T]):
    """The results of a query, the present one first: an async iterator.

    An error of the query is raised by one `anext` and does not end it: the next one waits for the
    next commit. It ends with `aclose`, when nothing refers to it any more, and when the database
    is closed.
    """

    def __init__(
        self, live: LiveQueries, query: Query, make: Callable[[Found], T], *, shown: str
    ) -> None:
        """`make` makes what is told; `shown` names the query to who looks at it."""
        self._live = live
        self._query = query
        self._make = make
        self._shown = shown
        self._seen = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"Watch({self._shown!r}{', closed' if self._closed else ''})"

    def __aiter__(self) -> "Watch[T]":
        return self

    async def __anext__(self) -> T:
        await self._next()
        if self._closed or self._live.closed:
            raise StopAsyncIteration
        query, self._seen = self._query, self._query.version
        if query.error is not None:
            raise query.error.with_traceback(None)
        assert query.found is not None, "an outcome is found or an error"
        return self._make(query.found)

    async def __aenter__(self) -> "Watch[T]":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it, also for who waits for its next result."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _next(self) -> None:
        if self._closed:
            return
        waiter = self._live.listen(self._query, self._seen)
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            self._live.leave(waiter)


class _Follower:
    """One who follows changes: everything up to `after` was told it."""

    def __init__(self, tables: Sequence[str], after: str | None) -> None:
        self._tables = tables
        self._after = after

    def read(self, reader: Reader) -> Found | None:
        changes = read_changes(reader.conn, self._tables, self._after)
        return None if changes is None else Found(changes, None)

    def told(self, found: Found) -> Changes:
        changes: Changes = found.told
        self._after = changes.token
        return changes


def watch_changes(live: LiveQueries, tables: Sequence[str], after: str | None) -> Watch[Changes]:
    """The changes of these tables, or of all, after a token."""
    follower = _Follower(tables, after)
    query = live.add(Query(follower.read, needs_fold=True))
    return Watch(live, query, follower.told, shown=f"changes of {', '.join(tables) or 'all'}")
