"""Live queries: results that follow the file. Owns who listens, and when the file is looked at.

A `Watch` follows the results of one query. Nothing is done unless somebody waits for its next
result; while somebody does, the file is looked at after every commit of this process
and every `POLL_SECONDS`, and the queries that read what has changed are run again (see `board`). A
result that is no other is not told. So a consumer that is slow gets the latest state and no
backlog, and equal queries are run once for all who watch them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Final, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary, ref

from reunite.board import Board, Found, Query, Reader, is_interrupted
from reunite.changes import Changes, since
from reunite.driver import Ending, ThreadDriver
from reunite.turns import Turns
from reunite.watch import Watch

T = TypeVar("T")

# How often the file is looked at for what other processes wrote, while somebody waits: one PRAGMA.
POLL_SECONDS: Final = 0.025


class _Waiting(NamedTuple):
    """One who waits: the number of the outcome that it was told, and of the last look before it
    came."""

    seen: int
    came: int


class LiveQueries:
    """Who listens to which query of one open file."""

    def __init__(
        self, driver: ThreadDriver, turns: Turns, *, fold: Callable[[], Awaitable[bool]]
    ) -> None:
        """`driver` is not open: it is opened for the first who listens. `fold` lets the log of
        changes be kept, with what other programs wrote; False when it has to be tried again."""
        self._driver = driver
        self._fold = fold
        self._board = Board(turns)
        self._by_key: WeakValueDictionary[Hashable, Query] = WeakValueDictionary()
        self._queries: set[ref[Query]] = set()
        self._waiting: dict[Query, dict[asyncio.Future[None], _Waiting]] = {}
        # How often the file was looked at.
        self._looks = 0
        # Those of the queries for which somebody began to wait since the last look.
        self._fresh: set[Query] = set()
        self._running: Collection[Query] = ()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._folding: asyncio.Task[None] | None = None
        self._is_open = False
        self._is_logged = False
        self.closed = False

    def add(self, query: Query, key: Hashable = None) -> Query:
        """The query to watch: one that is watched under the same key already, or this one. It is
        forgotten when nobody has it any more."""
        if key is not None:
            query = self._by_key.setdefault(key, query)
        self._queries.add(ref(query, self._queries.discard))
        return query

    def listen(self, query: Query, seen: int) -> "asyncio.Future[None]":
        """A future that is done when the query has another outcome than the one with this number,
        or the database is closed. The caller calls `leave` with it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.closed:
            waiter.set_result(None)
            return waiter
        self._waiting.setdefault(query, {})[waiter] = _Waiting(seen, self._looks)
        self._fresh.add(query)
        self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="reunite live queries")
        return waiter

    def leave(self, query: Query, waiter: "asyncio.Future[None]") -> None:
        """Nobody waits for this future any more."""
        waiting = self._waiting.get(query, {})
        waiting.pop(waiter, None)
        if not waiting and self._waiting.pop(query, None) is not None and query in self._running:
            self._board.abandoned = not self._is_waited_for(self._running)

    def wake(self) -> None:
        """The file may have changed."""
        self._woken.set()

    async def close(self) -> None:
        """End all who listen."""
        self._end()
        tasks = [task for task in (self._task, self._folding) if task is not None]
        if tasks:
            await asyncio.wait(tasks)
        await self._driver.close()

    def _end(self) -> None:
        self.closed = True
        self._board.abandoned = True
        self._woken.set()
        for waiter in chain.from_iterable(self._waiting.values()):
            if not waiter.done():
                waiter.set_result(None)

    async def _follow(self) -> None:
        """Look at the file, and tell who waits, for as long as somebody does."""
        while self._waiting and not self.closed:
            self._woken.clear()
            self._looks += 1
            # The log of changes has to be kept before it can be read.
            wanted = [q for q in self._waiting if self._is_logged or not q.needs_fold]
            fresh = self._fresh.intersection(wanted)
            self._fresh = self._fresh.intersection(self._waiting).difference(wanted)
            try:
                ran = await self._refresh(wanted, fresh)
            except Ending:
                self._end()
                return
            except Exception as error:
                if is_interrupted(error):
                    self._fresh.update(query for query in wanted if query in self._waiting)
                else:
                    self._tell(wanted, self._looks, error)
            else:
                self._tell(fresh.union(ran), self._looks)
            self._fold_if_needed()
            del wanted, fresh
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._woken.wait()

    async def _refresh(self, wanted: Collection[Query], fresh: set[Query]) -> Collection[Query]:
        if not self._is_open:
            await self._driver.open()
            self._is_open = True
        self._running = wanted
        self._board.abandoned = self.closed or not self._is_waited_for(wanted)
        try:
            conn = self._driver.conn
            return await self._driver.run(
                self._board.refresh, conn, list(self._queries), wanted, fresh
            )
        finally:
            self._running = ()

    def _is_waited_for(self, queries: Collection[Query]) -> bool:
        return not queries or any(query in self._waiting for query in queries)

    def _fold_if_needed(self) -> None:
        """Have other programs' writes folded beside, for who is told only of what is: the engine
        may be busy, and those who need it not do not wait for it."""
        due = self._board.unfolded or not self._is_logged
        if due and self._folding is None and any(query.needs_fold for query in self._waiting):
            self._folding = asyncio.create_task(self._fold_beside())

    async def _fold_beside(self) -> None:
        try:
            if await self._fold() and not self._is_logged:
                self._is_logged = True
                self._woken.set()
        except Ending:
            self._end()
        except Exception as error:
            needing = [query for query in self._waiting if query.needs_fold]
            self._tell(needing, self._looks + 1, error)
        finally:
            self._folding = None

    def _tell(self, queries: Iterable[Query], look: int, problem: Exception | None = None) -> None:
        """Tell those who waited before this look of its outcomes. Who came later may have written
        meanwhile: the next look is theirs."""
        for query in queries:
            for waiter, (seen, came) in list(self._waiting.get(query, {}).items()):
                if came >= look or (problem is None and query.version == seen):
                    continue
                if not waiter.done():
                    if problem is None:
                        waiter.set_result(None)
                    else:
                        waiter.set_exception(problem)
                # It waits no more, though its coroutine has yet to go on.
                self.leave(query, waiter)


class Results(Generic[T]):
    """The outcomes of one query, for a `Watch`; an error of the query is one of them."""

    def __init__(
        self, live: LiveQueries, query: Query, make: Callable[[Found], Sequence[T]]
    ) -> None:
        """`make` makes what is told, in order; it may be nothing."""
        self._live = live
        self._query = query
        self._make = make
        self._seen = 0

    def listen(self) -> "asyncio.Future[None]":
        """See `Source`."""
        return self._live.listen(self._query, self._seen)

    def leave(self, waiter: "asyncio.Future[None]") -> None:
        """See `Source`."""
        self._live.leave(self._query, waiter)

    def take(self) -> Sequence[T] | None:
        """See `Source`."""
        if self._live.closed:
            return None
        query, self._seen = self._query, self._query.version
        if query.error is not None:
            raise query.error.with_traceback(None)
        assert query.found is not None, "an outcome is found or an error"
        return self._make(query.found)


def watch_results(
    live: LiveQueries, query: Query, make: Callable[[Found], T], *, shown: str
) -> Watch[T]:
    """The results of a query, each told as `make` makes it."""
    return Watch(Results(live, query, lambda found: (make(found),)), shown=shown)


class _Follower:
    """One who follows changes: everything up to `after` was told it."""

    def __init__(self, tables: Sequence[str], after: str | None) -> None:
        self._tables = tables
        self._after = after

    def read(self, reader: Reader) -> Found | None:
        changes = since(reader.conn, self._tables, self._after)
        is_news = changes or self._after is None
        return Found(changes, None) if is_news else None

    def told(self, found: Found) -> Changes:
        changes: Changes = found.told
        self._after = changes.token
        return changes


def watch_changes(live: LiveQueries, tables: Sequence[str], after: str | None) -> Watch[Changes]:
    """The changes of these tables, or of all, after a token."""
    follower = _Follower(tables, after)
    query = live.add(Query(follower.read, needs_fold=True))
    return watch_results(
        live, query, follower.told, shown=f"changes of {', '.join(tables) or 'all'}"
    )
