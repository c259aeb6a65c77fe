"""SQLAlchemy's AsyncSession on a database: its reads go to the reader, its writes to the writer.

A session has no connection of its own. What it reads before it writes is read as `fetch_all` does,
each statement for itself, and waits for nobody. Its first write takes the writer as
`transaction()` does, and from then on all its statements run there, until it commits or rolls
back: so one transaction that writes is one changeset. Whether a statement writes is asked of
SQLite, by the reader's refusal. A savepoint and a SELECT ... FOR UPDATE take the writer, too.

The end of a transaction is a task of its own: whoever is cancelled while waiting for it leaves
nothing half done, and the writer is given to the next only when it is done. A session that is lost
without being closed, or whose database is closed, is rolled back.

SQLAlchemy is synchronous inside and waits by switching greenlets: hence `await_only`.
"""

import asyncio
import re
import sqlite3
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from sqlalchemy import Connection as SqlConnection
from sqlalchemy import NullPool, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.base import SQLiteExecutionContext
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only

from reunite.connection import rollback
from reunite.errors import UsageError
from reunite.sqlalchemy_dialect import ValueDialect

if TYPE_CHECKING:
    from reunite.database import Database
    from reunite.replica import Replica

# What begins with one of these may only read: then SQLite says so.
_MAY_READ: Final = frozenset({"SELECT", "WITH", "VALUES", "EXPLAIN", "PRAGMA"})
# How a transaction begins and ends is the session's matter.
_REFUSED: Final = frozenset({"BEGIN", "COMMIT", "END", "ATTACH", "DETACH", "VACUUM"})
_COMMENTS: Final = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_FIRST_WORD: Final = re.compile(rf"{_COMMENTS}(\w+)", re.DOTALL)
# A pragma that is given something sets it, unless it tells of tables and indexes.
_SETS: Final = re.compile(
    rf"{_COMMENTS}PRAGMA\s+(?:\"?\w+\"?\s*\.\s*)?(?!\w+_(?:x?info|list|check)\b)\w+\s*[=(]",
    re.DOTALL | re.IGNORECASE,
)


class _Outcome(NamedTuple):
    description: Any
    rows: list[Any]
    rowcount: int
    lastrowid: int | None


def session(database: "Database", origin: str | None, options: Mapping[str, Any]) -> AsyncSession:
    """A session on the database, whose changes have this origin; `options` are AsyncSession's."""
    assert database.replica
    engine = _engines.get(database)
    if engine is None:
        known = weakref.ref(database)

        def connect() -> DBAPIConnection:
            found = known()
            assert found is not None, "each session holds its database"
            return cast(DBAPIConnection, Connection(found))

        engine = create_async_engine(
            "sqlite+reunite_session://", poolclass=NullPool, creator=connect
        )
        _engines[database] = engine
    own = {"database": database, "origin": origin, "changeset": None, "maker": _running_task()}
    info = {**options.get("info", {}), **own}
    made = AsyncSession(engine, **{"expire_on_commit": False, **options, "info": info})
    event.listen(made.sync_session, "after_begin", _introduce)
    return made


def _running_task() -> "weakref.ref[asyncio.Task[Any]] | None":
    """The task that makes a session; it may be made by a thread without a loop."""
    with suppress(RuntimeError):
        task = asyncio.current_task()
        return None if task is None else weakref.ref(task)
    return None


def _introduce(session: Session, _: SessionTransaction, connection: SqlConnection) -> None:
    """Let the connection know whose it is."""
    own = connection.connection.dbapi_connection
    assert isinstance(own, Connection)
    own.info = session.info


class Connection(AdaptedConnection):
    """What SQLAlchemy takes for a driver's connection."""

    def __init__(self, database: "Database") -> None:
        self._connection = self  # type: ignore[assignment]  # there is no other behind it
        self._database = database
        self._replica = database.replica
        self._loop = asyncio.get_running_loop()
        # The turn at writing, while this connection has it.
        self._turn: AbstractAsyncContextManager[None] | None = None
        self._add_functions: Callable[[Any], None] = lambda _: None
        # The session's: its origin, its maker, and where the changeset is told.
        self.info: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<a session's connection to {self._database!r}>"

    def equip(self, add_functions: Callable[[Any], None]) -> None:
        """Give the reader SQLAlchemy's own functions of SQL, and the writer when it is used."""
        self._add_functions = add_functions
        if self._replica not in _readers:
            _readers.add(self._replica)
            add_functions(self)

    def create_function(self, name: str, arguments: int, function: Any, **options: bool) -> None:
        """A function for the reader."""
        self._check_open()
        reader = self._database._reader
        assert reader is not None
        await_only(reader.create_function(name, arguments, function, **options))

    def cursor(self, server_side: bool = False) -> "Cursor":
        """A cursor; all have their rows in memory."""
        return Cursor(self)

    def commit(self) -> None:
        """Commit what was written, as one changeset."""
        self._end_and_wait(commit=True)

    def rollback(self) -> None:
        """Take back what was written."""
        self._end_and_wait(commit=False)

    def close(self) -> None:
        """As `rollback`."""
        self._end_and_wait(commit=False)

    def terminate(self) -> None:
        """As `rollback`, without waiting and from any thread: a session that was lost is collected
        where it may be."""
        if self._turn is not None:
            # A loop that is closed has taken its database's connections with it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: self._end(commit=False))

    async def execute(self, sql: str, parameters: Any = (), *, many: bool = False) -> _Outcome:
        """Run a statement where it belongs."""
        found = _FIRST_WORD.match(sql)
        word = found[1].upper() if found else ""
        ends = word in _REFUSED or (word == "ROLLBACK" and " TO " not in sql.upper())
        if ends or _SETS.match(sql):
            raise UsageError(
                f"{word} is no statement for a session: use its commit() and rollback(), and"
                " db.execute(...) for what runs outside of transactions"
            )
        if self._turn is None and word in _MAY_READ and not many:
            try:
                return await self._read(sql, parameters)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_READONLY:
                    raise
        await self.begin_write()
        # It may have been closed since this has gone on.
        self._check_open()
        writer = self._database._writer
        return await writer.run(_run_inside, writer.conn, sql, parameters, many)

    async def begin_write(self) -> None:
        """Take the turn at writing and begin, if that was not done. Raises UsageError where this
        task has the turn already, by other means."""
        self._check_open()
        if self._turn is not None:
            return
        database = self._database
        turn = database._writing(self.info.get("maker"))
        await turn.__aenter__()
        self._turn = turn
        try:
            if self._replica not in _writers:
                await database._writer.run(self._add_functions, database._writer.conn)
                _writers.add(self._replica)
                self._check_open()
            await database._before_engine(
                database._begin, database._writer.conn, self._replica, self.info.get("origin")
            )
        except BaseException:
            # A task that is cancelled while its BEGIN runs has begun all the same.
            await asyncio.shield(self._end(commit=False))
            raise

    async def _read(self, sql: str, parameters: Any) -> _Outcome:
        self._check_open()
        self._database.refuse_inside()
        reader = self._database._reader
        assert reader is not None
        async with reader.execute(sql, parameters) as cursor:
            cursor.row_factory = None
            rows = list(await cursor.fetchall())
            return _Outcome(cursor.description, rows, cursor.rowcount, cursor.lastrowid)

    def _check_open(self) -> None:
        if not self._is_open():
            raise UsageError("the database was closed under this session; begin another session")

    def _is_open(self) -> bool:
        return self._database._replica is self._replica

    def _end_and_wait(self, *, commit: bool) -> None:
        if self._turn is not None:
            await_only(asyncio.shield(self._end(commit=commit)))

    def _end(self, *, commit: bool) -> "asyncio.Task[None]":
        """End the transaction, and then the turn, in a task that nobody's cancellation reaches."""
        turn, self._turn = self._turn, None
        assert turn is not None
        if self._is_open():
            # Whoever had it may be cancelled now, and may wait for the next turn.
            self._database._holder = None
        task = self._loop.create_task(self._ended(turn, commit=commit))
        # The loop itself would not keep it alive.
        _endings.add(task)
        task.add_done_callback(_endings.discard)
        return task

    async def _ended(self, turn: AbstractAsyncContextManager[None], *, commit: bool) -> None:
        database, writer = self._database, self._database._writer
        try:
            if commit:
                self._check_open()
                changeset = await writer.run(database._commit, writer.conn, self._replica)
                self.info["changeset"] = changeset
        finally:
            try:
                # A database that was closed has closed the writer's connection: nothing is kept.
                if self._is_open():
                    await writer.run(rollback, writer.conn)
            finally:
                await turn.__aexit__(None, None, None)
        if commit and self._is_open():
            await database._committed()


class Cursor:
    """What SQLAlchemy takes for a driver's cursor."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: deque[Any] = deque()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    def execute(self, sql: str, parameters: Any = ()) -> None:
        """Run a statement and take its rows."""
        self._take(await_only(self._connection.execute(sql, parameters)))

    def executemany(self, sql: str, parameters: Any) -> None:
        """Run a statement once for each set of parameters."""
        self._take(await_only(self._connection.execute(sql, list(parameters), many=True)))

    def fetchone(self) -> Any:
        """The next row, or None."""
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows."""
        count = min(self.arraysize if size is None else size, len(self._rows))
        return [self._rows.popleft() for _ in range(count)]

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def close(self) -> None:
        """Forget the rows."""
        self._rows.clear()

    async def _async_soft_close(self) -> None:
        """Nothing is open: SQLAlchemy asks before it reads the rows."""

    def _take(self, outcome: _Outcome) -> None:
        self.description, rows, self.rowcount, self.lastrowid = outcome
        self._rows = deque(rows)


class _Context(SQLiteExecutionContext):
    def create_server_side_cursor(self) -> Any:
        return self._dbapi_connection.cursor()

    def pre_exec(self) -> None:
        """Let a SELECT ... FOR UPDATE be the first statement of its transaction."""
        super().pre_exec()  # type: ignore[no-untyped-call]
        statement = getattr(self.compiled, "statement", None)
        if getattr(statement, "_for_update_arg", None) is not None:
            connection = self._dbapi_connection.dbapi_connection
            assert isinstance(connection, Connection)
            await_only(connection.begin_write())


class Dialect(ValueDialect):
    """SQLite by way of a database of reunite."""

    supports_statement_cache = True
    driver = "reunite_session"
    is_async = True
    has_terminate = True
    supports_server_side_cursors = True
    execution_ctx_cls = _Context

    def on_connect(self) -> Callable[[DBAPIConnection], None]:
        """The functions that SQLAlchemy's operators need."""
        add_functions = super().on_connect()

        def connect(dbapi_connection: DBAPIConnection) -> None:
            assert isinstance(dbapi_connection, Connection)
            dbapi_connection.equip(add_functions)

        return connect

    def get_driver_connection(self, connection: Any) -> Any:
        """There is no other behind it."""
        return connection

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Give up what was not committed."""
        dbapi_connection.terminate()


registry.register("sqlite.reunite_session", __name__, "Dialect")

_engines: "weakref.WeakKeyDictionary[Database, AsyncEngine]" = weakref.WeakKeyDictionary()
# Whose connections have the functions.
_readers: "weakref.WeakSet[Replica]" = weakref.WeakSet()
_writers: "weakref.WeakSet[Replica]" = weakref.WeakSet()
_endings: set["asyncio.Task[None]"] = set()


def _run_inside(conn: sqlite3.Connection, sql: str, parameters: Any, many: bool) -> _Outcome:
    """Run a statement in the transaction that was begun. SQL of the app's can end that: then what
    follows would be committed at once."""
    if not conn.in_transaction:
        raise UsageError("SQLite has rolled this transaction back; roll the session back, too")
    cursor = conn.cursor()
    (cursor.executemany if many else cursor.execute)(sql, parameters)
    rows = cursor.fetchall()
    return _Outcome(cursor.description, rows, cursor.rowcount, cursor.lastrowid)
