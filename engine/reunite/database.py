"""The database as an app sees it: ordinary SQL on an ordinary SQLite file, tracked tables synced.

Three connections to the file. The *writer* runs the app's transactions, foreign keys on, one at a
time. The *reader* serves `fetch_*` outside of transactions from WAL's snapshots, so it never waits.
The *engine's* folds, merges and is the only one that checkpoints; foreign keys are off on it,
because what it writes was checked by the relay.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast, overload
from weakref import ref

import aiosqlite

from reunite import board, changes, history, resolved, text
from reunite.cells.register import Value
from reunite.changes import Changes
from reunite.changeset import fold_own, fold_strangers
from reunite.connection import (
    Parameters,
    Result,
    check_text,
    checkpoint,
    connect,
    execute,
    executemany,
    made,
    rollback,
    runs_alone,
)
from reunite.driver import ThreadDriver, real_chance, real_clock
from reunite.errors import FileError, SyncError, UsageError
from reunite.live import LiveQueries
from reunite.overwritten import Loss, Overwritten
from reunite.replica import Replica
from reunite.row import Row
from reunite.transaction import Transaction
from reunite.verify import Difference, verify
from reunite.watching import Watchable

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table
    from sqlalchemy.ext.asyncio import AsyncSession

T = TypeVar("T")
# Asks a relay for a row's losses, by its table's id there and its packed key. Raises SyncError.
HistorySource: TypeAlias = Callable[[int, bytes], Awaitable[Sequence[Loss]]]

# The engine checkpoints when other connections have left this much in the WAL.
WAL_BYTES_GOAL = 4 << 20


class _Holder(NamedTuple):
    """Who has the turn at writing: a task, and of a session's turn also the one that made the
    session."""

    task: "asyncio.Task[Any] | None"
    maker: "ref[asyncio.Task[Any]] | None"

    def is_here(self) -> bool:
        """Whether the running task is inside. A session can have taken the turn in a task made for
        one call, as `asyncio.wait_for` makes them before Python 3.12: then it is its maker's."""
        here = asyncio.current_task()
        if here is None or self.task is None:
            return False
        if self.task.done() and self.maker is not None:
            return here is self.maker()
        return here is self.task


class Database(Watchable):
    """An SQLite file that takes part in sync. Open it with `async with Database(path) as db`."""

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Callable[[], int] = real_clock
    ) -> None:
        """`clock` returns milliseconds since 1970 UTC; it dates the edits."""
        self.path = Path(path)
        self.clock = clock
        self._chance = real_chance()
        self._engine = ThreadDriver(
            lambda: connect(self.path, foreign_keys=False), "reunite-engine"
        )
        self._writer = ThreadDriver(lambda: connect(self.path, foreign_keys=True), "reunite-writer")
        self._reader: aiosqlite.Connection | None = None
        self._replica: Replica | None = None
        # The file is opened and closed by one at a time.
        self._opening = asyncio.Lock()
        # The turn at writing; another one whenever the database was closed.
        self._lock = asyncio.Lock()
        # Set while no write of this process waits for the file.
        self._no_write_waits = asyncio.Event()
        self._no_write_waits.set()
        self._holder: _Holder | None = None
        self._listeners: list[Callable[[], None]] = []
        self._history_sources: list[HistorySource] = []

    def __repr__(self) -> str:
        return f"Database({str(self.path)!r}, {'closed' if self._replica is None else 'open'})"

    async def __aenter__(self) -> "Database":
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the file, creating it when it is not there. Raises FileError."""
        async with self._opening:
            await self._open()

    async def _open(self) -> None:
        if self._replica is not None:
            raise UsageError("this database is open already")
        if str(self.path) in ("", ":memory:"):
            raise FileError("sync needs a database file; a database in memory has nothing to keep")
        await self._engine.open()
        try:
            self._replica = await self._engine.run(self._prepare)
            self._live = LiveQueries(
                ThreadDriver(
                    lambda: connect(
                        self.path,
                        foreign_keys=True,
                        query_only=True,
                        statements_kept=board.STATEMENTS_KEPT,
                    ),
                    "reunite-watch",
                ),
                self._replica.turns,
                fold=self._follow_changes,
            )
            await self._writer.open()
            self._reader = await aiosqlite.Connection(
                lambda: connect(self.path, foreign_keys=True, query_only=True), iter_chunk_size=256
            )
            self._reader.row_factory = Row
        except BaseException:
            await self._close()
            raise

    async def close(self) -> None:
        """Close the file. Changes that were not sent stay in it; a transaction that is open is
        rolled back, and what waits for its end raises UsageError."""
        async with self._opening:
            await self._close()

    async def _close(self) -> None:
        if self._replica is not None:
            await self._live.close()
        self._replica = None
        lock, self._lock, self._holder = self._lock, asyncio.Lock(), None
        if lock.locked():
            # Who has the turn may keep it for long, or for ever.
            lock.release()
        if self._reader is not None:
            await self._reader.close()
            self._reader = None
        await self._writer.close()
        await self._engine.close(checkpoint)

    @property
    def replica(self) -> Replica:
        """The sync state of the file; its verbs run on the engine's thread (`on_engine`)."""
        if self._replica is None:
            raise UsageError("the database is not open; use `async with Database(path) as db`")
        return self._replica

    @property
    def live(self) -> LiveQueries:
        """Who watches this file."""
        assert self.replica
        return self._live

    async def on_engine(self, function: Callable[..., T], *args: object) -> T:
        """Run one of the replica's verbs on the engine's thread."""
        replica = self.replica
        # SQLite has no queue: whoever takes the file again at once, as sync does with much to take
        # in, would keep writes waiting for seconds.
        await self._no_write_waits.wait()
        if self._replica is not replica:
            raise UsageError(
                "the database is not open: it was closed while this waited for a write"
            )
        try:
            return await self._engine.run(function, *args)
        finally:
            self._live.wake()

    # SQL.

    async def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """Run one statement in a transaction of its own: one changeset."""
        check_text(sql)
        if runs_alone(sql):
            async with self._writing():
                return await self._writer.run(execute, self._writer.conn, sql, parameters)
        result, changeset = await self._write(lambda conn: execute(conn, sql, parameters))
        return result._replace(changeset=changeset)

    async def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Result:
        """Run one statement for each set of parameters in one transaction: one changeset.
        `rowcount` is the rows changed."""
        rows = list(parameters)
        result, changeset = await self._write(lambda conn: executemany(conn, sql, rows))
        return result._replace(changeset=changeset)

    @overload
    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]: ...
    @overload
    async def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> list[T]: ...
    async def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T] | None = None
    ) -> list[Row] | list[T]:
        """The rows of a query, each made `into` an object where that is given: it is called with
        the columns by name. A statement that writes (RETURNING) runs as `execute` does."""
        rows = await self._fetch_all(sql, parameters)
        return rows if into is None else made(rows, into)

    async def _fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        assert self.replica
        self.refuse_inside()
        check_text(sql)
        assert self._reader is not None
        try:
            return cast(list[Row], await self._reader.execute_fetchall(sql, parameters))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_READONLY:
                raise
        return (await self.execute(sql, parameters)).rows

    @overload
    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None: ...
    @overload
    async def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> T | None: ...
    async def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T] | None = None
    ) -> Row | T | None:
        """The first row of a query, or None; made `into` an object as by `fetch_all`."""
        rows = await self._fetch_all(sql, parameters)
        if not rows:
            return None
        return rows[0] if into is None else made(rows[:1], into)[0]

    @asynccontextmanager
    async def transaction(self, *, origin: str | None = None) -> AsyncIterator[Transaction]:
        """A transaction; what it changes is one changeset, sent, merged and refused as one.

        Rolled back when the block raises or its task is cancelled. `origin` says where the changes
        come from, such as the name of a backend that they were fetched from: `watch_changes` tells
        it, and it stays in this file. Without it they come from `here`.
        """
        if origin is not None:
            changes.check_origin(origin)
        async with self._writing():
            conn, replica = self._writer.conn, self.replica

            def check_open() -> None:
                if self._replica is not replica:
                    raise UsageError(
                        "the database was closed under this transaction, which is rolled back"
                    )

            tx, changeset = Transaction(self._writer, check_open), None
            try:
                await self._before_engine(self._begin, conn, replica, origin)
                yield tx
                check_open()
                changeset = await self._writer.run(self._commit, conn, replica)
            except BaseException:
                # A task that is cancelled while its BEGIN runs has begun all the same.
                if self._replica is replica:
                    await self._writer.run(rollback, conn)
                raise
            finally:
                tx.end(changeset)
        await self._committed()

    def session(self, *, origin: str | None = None, **options: Any) -> "AsyncSession":
        """An AsyncSession of SQLAlchemy on this file; a transaction of it that writes is one
        changeset, which is in `session.info["changeset"]` when it is committed. `origin` is as for
        `transaction`, `options` are AsyncSession's; objects do not expire on commit by default."""
        from reunite import sessions

        if origin is not None:
            changes.check_origin(origin)
        return sessions.session(self, origin, options)

    async def create_all(
        self, metadata: "MetaData", *, tables: "Sequence[Table] | None" = None
    ) -> list[str]:
        """Make the tables of SQLAlchemy models that are missing, and track all of them but those
        with `info={"local_only": True}`. Returns those that were not tracked before. Raises
        TableError, and makes and tracks none, when one cannot be."""
        from reunite import models

        tracked, _ = await self._write(
            lambda conn: models.create(conn, self._state, metadata, tables)
        )
        return tracked

    @asynccontextmanager
    async def text(
        self, table: str, key: Value | Sequence[Value], column: str
    ) -> AsyncIterator[text.Editor]:
        """Open a CRDT_TEXT column of one row for editing; `key` is its primary key, a tuple where
        that has several columns. What is edited is saved at the end of the block, not when it
        raises. Raises UsageError for what is no such text."""
        self.refuse_inside()
        replica = self.replica

        def load() -> tuple[text.TextCell, bytes]:
            with replica.transaction() as state:
                fold_strangers(state)
                cell = text.find(state, table, key, column)
                return cell, text.read(state, cell)

        cell, data = await self.on_engine(load)
        seen = -1

        async def has_changed() -> bool:
            nonlocal seen
            assert self._reader is not None
            before = seen
            ((version,),) = await self._reader.execute_fetchall("PRAGMA data_version")
            seen = int(version)
            return seen != before

        async def save(delta: bytes) -> int | None:
            changeset, _ = await self._write(lambda _: text.write(self._state, cell, delta))
            return changeset

        async def reload() -> bytes:
            return (await self.on_engine(load))[1]

        editor = text.Editor(
            data,
            save=save,
            load=reload,
            new_session=self._chance.replica,
            has_changed=has_changed,
        )
        following = asyncio.create_task(editor.follow())
        try:
            yield editor
            await editor.save()
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def changes(self, *tables: str, after: str | None = None) -> Changes:
        """What `watch_changes` would tell next; no changes where there is nothing new."""
        self.refuse_inside()
        replica = self.replica

        def since() -> Changes:
            replica.follow_changes()
            # One snapshot, or a transaction that is committed meanwhile would be told by half.
            with replica.reading() as state:
                return changes.since(state.conn, tables, after)

        return await self.on_engine(since)

    async def _follow_changes(self) -> bool:
        """As `on_engine`, but that who watches is not woken: it is who asks."""
        await self._no_write_waits.wait()
        return await self._engine.run(lambda: self.replica.follow_changes(wait=False))

    # Sync.

    async def track(self, *tables: str) -> list[str]:
        """Take tables into sync, with the rows they have; they are not changed. Returns those that
        were not tracked before. Raises TableError, and tracks none, when one cannot be."""
        async with self._writing():
            tracked = await self.on_engine(self.replica.track, tables)
        self._notify()
        return tracked

    async def track_all(self) -> list[str]:
        """Take all tables of the file into sync, but for those that `keep_local` named."""
        return await self.track(*await self.on_engine(self.replica.untracked))

    async def keep_local(self, *tables: str) -> None:
        """Let tables stay in this file: `track_all` leaves them out, now and later. `track`, by
        name, takes one in all the same. Raises TableError for one that is not there, or tracked."""
        async with self._writing():
            await self.on_engine(self.replica.keep_local, tables)

    async def reload(self) -> None:
        """Have the next session of a sync, or that of the one that runs, load everything once more.

        The tables show what they have until all has arrived. Then rows that the relay no longer has
        are gone, and what was not sent is joined with the rest and goes, once. What was written
        past the triggers counts as an edit made now. `reunite_rejected`, tables that are not
        tracked, and the app's triggers stay as they are.
        """
        async with self._writing():
            await self.on_engine(self.replica.reload)
        self._notify()

    async def verify(self) -> list[Difference]:
        """Compare every tracked row with its document; no difference is an empty list."""
        return await self.on_engine(verify, self._engine.conn)

    async def rejected(self) -> list[Row]:
        """What could not be synced, oldest first; see the table `reunite_rejected`."""
        return await self.fetch_all(resolved.REJECTED)

    async def history(self, table: str, key: Value | Sequence[Value]) -> list[Overwritten]:
        """The values of one row that merges overwrote, the newest first; `key` is its primary key,
        a tuple where that has several columns. It may be deleted.

        While a relay is connected it is asked, too; when it does not answer, as when offline, this
        is what the file itself saw. Of each row the newest edits are kept. Raises UsageError for
        what can be no row of a tracked table.
        """
        replica = self.replica
        self.refuse_inside()

        def known() -> history.RowHistory:
            with replica.transaction() as state:
                fold_strangers(state)
                return history.of_row(state, table, key)

        row = await self.on_engine(known)
        told: list[Loss] = []
        if row.at_relay is not None:
            for ask in list(self._history_sources):
                with suppress(SyncError):
                    told += await ask(*row.at_relay)
        return row.listed(told)

    async def restore(self, overwritten: Overwritten) -> int | None:
        """Write a value back that was overwritten, as an edit made now; returns its changeset, for
        `synced`, or None where the column has that value. Raises UsageError when its row was
        deleted, or its column or table is gone."""
        _, changeset = await self._write(lambda _: history.restore(self._state, overwritten))
        return changeset

    def add_history_source(self, source: HistorySource) -> Callable[[], None]:
        """Let `history` ask a relay, too; returns a function that ends it."""
        self._history_sources.append(source)
        return lambda: self._history_sources.remove(source)

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after local commits; returns a function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def refuse_inside(self) -> None:
        """Raise UsageError where the running task is inside a transaction of its own, for what
        would wait for its end."""
        if self._holder is not None and self._holder.is_here():
            raise UsageError(
                "this task is inside a transaction: in `async with db.transaction() as tx` use"
                " tx.execute and tx.fetch_all, and in a session that has written the session"
            )

    def _prepare(self) -> Replica:
        conn = self._engine.conn
        replica = Replica(conn, chance=self._chance, clock=self.clock)
        replica.prepare()
        return replica

    @asynccontextmanager
    async def _writing(self, maker: "ref[asyncio.Task[Any]] | None" = None) -> AsyncIterator[None]:
        assert self.replica
        self.refuse_inside()
        lock = self._lock
        await lock.acquire()
        if lock is not self._lock:
            # So the next one who waited is told, too.
            lock.release()
            raise UsageError("the database is not open: it was closed while this write waited")
        holder = self._holder = _Holder(asyncio.current_task(), maker)
        try:
            yield
        finally:
            # Where it was closed the turn is over, and a session may end when it is open anew.
            if lock is self._lock:
                if self._holder is holder:
                    self._holder = None
                lock.release()

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> tuple[T, int | None]:
        # Taken now: a write whose task is cancelled goes on while the database is being closed.
        replica = self.replica

        def whole() -> tuple[T, int | None]:
            conn = self._writer.conn
            self._begin(conn, replica)
            try:
                result = work(conn)
                changeset = self._commit(conn, replica)
            except BaseException:
                rollback(conn)
                raise
            return result, changeset

        async with self._writing():
            result = await self._before_engine(whole)
        await self._committed()
        return result

    async def _before_engine(self, function: Callable[..., T], *args: object) -> T:
        """Run what takes the file for a write, ahead of what the engine has not begun."""
        self._no_write_waits.clear()
        try:
            return await self._writer.run(function, *args)
        finally:
            self._no_write_waits.set()

    def _begin(self, conn: sqlite3.Connection, replica: Replica, origin: str | None = None) -> None:
        self._state = replica.begin(conn)
        try:
            fold_strangers(self._state)
            if origin is not None:
                changes.begin(self._state)
                self._state.origin = origin
        except BaseException:
            rollback(conn)
            raise

    def _commit(self, conn: sqlite3.Connection, replica: Replica) -> int | None:
        if not conn.in_transaction:
            raise UsageError("the transaction was ended by its own SQL; leave COMMIT to reunite")
        self._state.now_ms = self.clock()
        changeset = fold_own(self._state)
        replica.commit(self._state)
        return changeset

    async def _committed(self) -> None:
        self._notify()
        try:
            left = os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return
        if left > WAL_BYTES_GOAL and self._replica is not None:
            await self._engine.run(checkpoint, self._engine.conn)

    def _notify(self) -> None:
        self._live.wake()
        for listener in list(self._listeners):
            listener()
