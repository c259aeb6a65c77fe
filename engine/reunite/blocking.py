"""The database for programs without an event loop: the verbs of `Database`, without await.

    db = BlockingDatabase("app.db")
    db.execute("INSERT INTO todo VALUES ('milk', 'Buy milk')")
    db.fetch_all("SELECT * FROM todo")

A `Database` runs in a background thread, and each call waits for it there. Threads may share one:
their writes take turns, and a transaction is its thread's. To sync it, see
`reunite_transport.BlockingSync`.
"""

import asyncio
import os
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from reunite.cells.register import Value
from reunite.changes import Changes
from reunite.connection import Parameters, Result, made
from reunite.database import Database
from reunite.driver import real_clock
from reunite.errors import UsageError
from reunite.loop_thread import LoopThread
from reunite.overwritten import Overwritten
from reunite.row import Row
from reunite.text import Editor, Observer
from reunite.transaction import Transaction
from reunite.verify import Difference

if TYPE_CHECKING:
    from sqlalchemy import Executable, MetaData, Table

    # Of one column it is of a tuple before SQLAlchemy 2.1, and of the column's own type since.
    from sqlalchemy.sql.selectable import TypedReturnsRows

T = TypeVar("T")


class _Undone(Exception):
    """Ends a block of the async API in place of what ended the caller's."""


class BlockingIterator(Generic[T]):
    """The items of an async iterator: `for item in ...` waits for each. It ends with the source,
    with the database, and by `close()`, which any thread may call."""

    def __init__(self, thread: LoopThread, source: AsyncIterator[T]) -> None:
        self._thread, self._source = thread, source
        self._waiting: set[asyncio.Task[object]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"BlockingIterator({self._source!r}{', closed' if self._closed else ''})"

    def __iter__(self) -> "BlockingIterator[T]":
        return self

    def __next__(self) -> T:
        async def step() -> tuple[T] | None:
            task = asyncio.current_task()
            assert task is not None
            self._waiting.add(task)
            try:
                return (await anext(self._source),)
            except (StopAsyncIteration, asyncio.CancelledError):
                return None
            finally:
                self._waiting.discard(task)

        try:
            found = None if self._closed or self._thread.stopped else self._thread.call(step())
        except UsageError:
            # The database was closed before the step had begun.
            if not self._thread.stopped:
                raise
            found = None
        if found is None:
            self._closed = True
            raise StopIteration
        return found[0]

    def __enter__(self) -> "BlockingIterator[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, also for a thread that waits for the next item."""

        async def finish() -> None:
            if waiting := list(self._waiting):
                for task in waiting:
                    task.cancel()
                await asyncio.wait(waiting)
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()

        if not self._closed and not self._thread.stopped:
            self._closed = True
            self._thread.call(finish())


class BlockingTransaction:
    """One transaction, of the thread that began it: see `BlockingDatabase.transaction`."""

    def __init__(self, thread: LoopThread, tx: Transaction) -> None:
        self._thread, self._tx = thread, tx
        self._owner = threading.get_ident()

    def __repr__(self) -> str:
        return repr(self._tx)

    @property
    def changeset(self) -> int | None:
        """See `Transaction.changeset`."""
        return self._tx.changeset

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """See `Transaction.execute`."""
        return self._own().call(self._tx.execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Result:
        """See `Transaction.executemany`."""
        # What a program generates may call the database, and so is made in its own thread.
        return self._own().call(self._tx.executemany(sql, list(parameters)))

    @overload
    def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]: ...
    @overload
    def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> list[T]: ...
    def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., Any] | None = None
    ) -> list[Any]:
        """See `Transaction.fetch_all`."""
        rows = self._own().call(self._tx.fetch_all(sql, parameters))
        return rows if into is None else made(rows, into)

    @overload
    def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None: ...
    @overload
    def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> T | None: ...
    def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., Any] | None = None
    ) -> Any:
        """See `Transaction.fetch_one`."""
        row = self._own().call(self._tx.fetch_one(sql, parameters))
        return row if into is None or row is None else made([row], into)[0]

    def changes(self, *tables: str, after: str | None = None) -> Changes:
        """See `Transaction.changes`."""
        return self._own().call(self._tx.changes(*tables, after=after))

    def _own(self) -> LoopThread:
        if threading.get_ident() != self._owner:
            raise UsageError("a transaction belongs to the thread that began it; begin another")
        return self._thread


class BlockingEditor:
    """An open text, as given by `BlockingDatabase.text()`: see `Editor`."""

    def __init__(self, thread: LoopThread, editor: Editor) -> None:
        self._thread, self._editor = thread, editor

    def __str__(self) -> str:
        return self._do(lambda: str(self._editor))

    def __len__(self) -> int:
        return self._do(lambda: len(self._editor))

    def __repr__(self) -> str:
        return self._do(lambda: repr(self._editor))

    def insert(self, at: int, text: str) -> None:
        """See `Editor.insert`."""
        self._do(lambda: self._editor.insert(at, text))

    def delete(self, at: int, length: int) -> None:
        """See `Editor.delete`."""
        self._do(lambda: self._editor.delete(at, length))

    def replace(self, at: int, length: int, text: str) -> None:
        """See `Editor.replace`."""
        self._do(lambda: self._editor.replace(at, length, text))

    def observe(self, observer: Observer) -> Callable[[], None]:
        """See `Editor.observe`. It is called in the database's thread, and must not call it."""
        end = self._do(lambda: self._editor.observe(observer))
        return lambda: self._do(end)

    def save(self) -> int | None:
        """See `Editor.save`."""
        return self._thread.call(self._editor.save())

    def refresh(self) -> None:
        """See `Editor.refresh`."""
        self._thread.call(self._editor.refresh())

    def _do(self, work: Callable[[], T]) -> T:
        async def there() -> T:
            return work()

        return self._thread.call(there())


class BlockingDatabase:
    """An SQLite file that takes part in sync, open from the beginning until `close()`.

    Ctrl-C while a call waits cancels it: it has then not begun, or is whole, or rolled back. Where
    an event loop runs already it works, and that loop stands still meanwhile. A forked process
    opens its own.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Callable[[], int] = real_clock
    ) -> None:
        """Opens the file, creating it when it is not there. Raises FileError. `clock` returns
        milliseconds since 1970 UTC."""
        self._db = Database(path, clock=clock)
        self._inside = threading.local()
        self._thread = LoopThread("reunite-blocking", self._db.close)
        try:
            self._thread.call(self._db.open())
        except BaseException:
            self._thread.stop()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._thread.stopped else "open"
        return f"BlockingDatabase({str(self._db.path)!r}, {state})"

    def __enter__(self) -> "BlockingDatabase":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        thread: LoopThread | None = getattr(self, "_thread", None)
        if thread is not None and not thread.stopped and thread.is_ours:
            # Whichever thread lets it go must not wait. First, as a warning can be an error.
            thread.stop(wait=False)
            said = f"unclosed database {self._db.path}"
            warnings.warn(said, ResourceWarning, stacklevel=2, source=self)

    def close(self) -> None:
        """Close the file. Calls of other threads end with UsageError, iterators end, and a sync
        stops; what was not sent stays in the file. A second time nothing happens."""
        if not self._thread.stopped:
            self._refuse_inside()
        self._thread.stop()

    @property
    def closed(self) -> bool:
        """True when it was closed."""
        return self._thread.stopped

    def run(self, work: Callable[[Database], Awaitable[T]]) -> T:
        """Run what has no verb here: `work` gets the `Database`, to use its `session()` for
        instance."""

        async def there() -> T:
            return await work(self._db)

        return self._outside().call(there())

    def iterate(self, source: Callable[[Database], AsyncIterator[T]]) -> BlockingIterator[T]:
        """Iterate over what has no verb here: `source` gets the `Database` and returns an async
        iterator, such as an async generator."""
        return BlockingIterator(self._thread, source(self._db))

    # SQL.

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """See `Database.execute`."""
        return self._outside().call(self._db.execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Result:
        """See `Database.executemany`."""
        rows = list(parameters)
        return self._outside().call(self._db.executemany(sql, rows))

    @overload
    def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]: ...
    @overload
    def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> list[T]: ...
    def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., Any] | None = None
    ) -> list[Any]:
        """See `Database.fetch_all`."""
        rows = self._outside().call(self._db.fetch_all(sql, parameters))
        return rows if into is None else made(rows, into)

    @overload
    def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None: ...
    @overload
    def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> T | None: ...
    def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., Any] | None = None
    ) -> Any:
        """See `Database.fetch_one`."""
        row = self._outside().call(self._db.fetch_one(sql, parameters))
        return row if into is None or row is None else made([row], into)[0]

    @contextmanager
    def transaction(self, *, origin: str | None = None) -> Iterator[BlockingTransaction]:
        """A transaction: see `Database.transaction`. Other threads' writes wait for its end; it is
        rolled back when the block raises."""
        self._refuse_inside()
        with self._entered(self._db.transaction(origin=origin)) as tx:
            self._inside.transaction = True
            try:
                yield BlockingTransaction(self._thread, tx)
            finally:
                self._inside.transaction = False

    @contextmanager
    def text(
        self, table: str, key: Value | Sequence[Value], column: str
    ) -> Iterator[BlockingEditor]:
        """Open a text for editing: see `Database.text`."""
        self._refuse_inside()
        with self._entered(self._db.text(table, key, column)) as editor:
            yield BlockingEditor(self._thread, editor)

    # What follows the file.

    @overload
    def watch(self, query: str, parameters: Parameters = ()) -> BlockingIterator[list[Row]]: ...
    @overload
    def watch(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> BlockingIterator[list[T]]: ...
    @overload
    def watch(self, query: "TypedReturnsRows[tuple[T]]") -> BlockingIterator[list[T]]: ...
    @overload
    def watch(self, query: "TypedReturnsRows[T]") -> BlockingIterator[list[T]]: ...
    @overload
    def watch(self, query: "Executable") -> BlockingIterator[list[Any]]: ...
    def watch(self, query: Any, *given: Any, **named: Any) -> BlockingIterator[list[Any]]:
        """See `Database.watch`: `for rows in db.watch(...)` waits for each change."""
        return self.iterate(lambda db: db.watch(query, *given, **named))

    @overload
    def watch_one(
        self, query: str, parameters: Parameters = ()
    ) -> BlockingIterator[Row | None]: ...
    @overload
    def watch_one(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> BlockingIterator[T | None]: ...
    @overload
    def watch_one(self, query: "TypedReturnsRows[tuple[T]]") -> BlockingIterator[T | None]: ...
    @overload
    def watch_one(self, query: "TypedReturnsRows[T]") -> BlockingIterator[T | None]: ...
    @overload
    def watch_one(self, query: "Executable") -> BlockingIterator[Any]: ...
    def watch_one(self, query: Any, *given: Any, **named: Any) -> BlockingIterator[Any]:
        """See `Database.watch_one`."""
        return self.iterate(lambda db: db.watch_one(query, *given, **named))

    def watch_changes(self, *tables: str, after: str | None = None) -> BlockingIterator[Changes]:
        """See `Database.watch_changes`."""
        return self.iterate(lambda db: db.watch_changes(*tables, after=after))

    def changes(self, *tables: str, after: str | None = None) -> Changes:
        """See `Database.changes`."""
        return self._outside().call(self._db.changes(*tables, after=after))

    # Sync.

    def create_all(
        self, metadata: "MetaData", *, tables: "Sequence[Table] | None" = None
    ) -> list[str]:
        """See `Database.create_all`."""
        return self._outside().call(self._db.create_all(metadata, tables=tables))

    def track(self, *tables: str) -> list[str]:
        """See `Database.track`."""
        return self._outside().call(self._db.track(*tables))

    def track_all(self) -> list[str]:
        """See `Database.track_all`."""
        return self._outside().call(self._db.track_all())

    def keep_local(self, *tables: str) -> None:
        """See `Database.keep_local`."""
        self._outside().call(self._db.keep_local(*tables))

    def reload(self) -> None:
        """See `Database.reload`."""
        self._outside().call(self._db.reload())

    def verify(self) -> list[Difference]:
        """See `Database.verify`."""
        return self._outside().call(self._db.verify())

    def rejected(self) -> list[Row]:
        """See `Database.rejected`."""
        return self._outside().call(self._db.rejected())

    def watch_rejected(self) -> BlockingIterator[Row]:
        """See `Database.watch_rejected`."""
        return self.iterate(lambda db: db.watch_rejected())

    def synced(self, changeset: int | None, timeout: float | None = None) -> bool:
        """See `Database.synced`."""
        return self._outside().call(self._db.synced(changeset, timeout))

    def history(self, table: str, key: Value | Sequence[Value]) -> list[Overwritten]:
        """See `Database.history`."""
        return self._outside().call(self._db.history(table, key))

    def restore(self, overwritten: Overwritten) -> int | None:
        """See `Database.restore`."""
        return self._outside().call(self._db.restore(overwritten))

    @contextmanager
    def _entered(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """An async context manager as a blocking one: left by what has entered it, however the
        caller was interrupted."""
        entered = False

        async def enter() -> T:
            nonlocal entered
            found = await manager.__aenter__()
            entered = True
            return found

        async def undo() -> None:
            await manager.__aexit__(_Undone, _Undone(), None)

        async def leave() -> None:
            nonlocal entered
            entered = False
            await manager.__aexit__(None, None, None)

        try:
            yield self._thread.call(enter())
            self._thread.call(leave())
        except BaseException:
            if entered and not self._thread.stopped:
                self._thread.call(undo())
            raise

    def _outside(self) -> LoopThread:
        self._refuse_inside()
        return self._thread

    def _refuse_inside(self) -> None:
        if getattr(self._inside, "transaction", False):
            raise UsageError("inside `with db.transaction() as tx` use tx.execute and tx.fetch_all")
