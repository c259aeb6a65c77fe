"""The board of watched queries: finds out which of them have become stale, and runs them again.

Everything here runs on the thread of the connection that watches, which only reads. All that is run
in one go sees one snapshot. Which tables a query reads SQLite's authorizer tells while it is
prepared, through views and CTEs.
"""

import sqlite3
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import ref

from reunite.connection import Parameters
from reunite.driver import real_seconds
from reunite.errors import UsageError
from reunite.row import Row
from reunite.schema import ascii_lower
from reunite.turns import Lookout, Turns

Rows: TypeAlias = list[Row]

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
# The name of what is no table; any commit can change it.
_PRAGMA: Final = ""


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
        cursor.row_factory = Row
        try:
            rows: Rows = cursor.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            if _code(error) not in _REFUSED:
                raise
            raise UsageError(f"only a query can be watched, and this is none: {sql}") from error
        finally:
            self._is_watched = False
            read, self._read = self._read, before
            if read:
                # Also of a run that failed or was ended: the statement stays prepared, and its next
                # run tells nothing.
                self._tables_by_sql[sql] = frozenset(read)
        self._read |= self._tables_by_sql.get(sql, frozenset())
        if len(self._tables_by_sql) > STATEMENTS_KEPT:
            self._tables_by_sql.clear()
            self.watch_statements()
        return rows

    def select(self, run: Callable[[sqlite3.Connection], list[Any]], only: int | None) -> "Found":
        """What somebody else finds on this connection, with the rows of all that it ran; `only`
        that many of the things found."""
        # It keeps its own statements prepared.
        self.watch_statements()
        rows: list[tuple[Any, ...]] = []

        def note(_: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
            rows.append(row)
            return row

        self.conn.row_factory = note
        self._is_watched = True
        try:
            found = run(self.conn)[:only]
        except Exception as error:
            if _code(error) not in _REFUSED:
                raise
            raise UsageError(f"only a query can be watched, and this is none: {error}") from error
        finally:
            self._is_watched = False
            self.conn.row_factory = None
        return Found(found, rows)

    def names_read(self) -> frozenset[str] | None:
        """The tables and views that were read since this was last asked, in lower case; None when
        it was more than these."""
        read, self._read = frozenset(self._read), set()
        return None if _PRAGMA in read else read

    def _authorize(
        self, action: int, name: str | None, _column: str | None, _db: str | None, _by: str | None
    ) -> int:
        if action == sqlite3.SQLITE_READ and name:
            self._read.add(ascii_lower(name))
        elif action == sqlite3.SQLITE_PRAGMA:
            self._read.add(_PRAGMA)
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
        self,
        conn: sqlite3.Connection,
        queries: Iterable["ref[Query]"],
        wanted: Collection[Query],
        fresh: Collection[Query],
    ) -> Collection[Query]:
        """Find out which queries have become stale, and run those of them that are wanted. `fresh`
        are those of the wanted that were not before. Returns those that were run."""
        if self._reader is None or self._lookout is None:
            self._reader, self._lookout = Reader(conn), Lookout(conn, self._turns)
            # SQLite's `interrupt` is lost where it comes before the statement.
            conn.set_progress_handler(lambda: self.abandoned, _STEPS_BETWEEN_LOOKS)
        deadline = self._clock() + STALE_SECONDS_MAX
        outcomes: dict[Query, Found | Exception | None] = {}
        try:
            while self._lookout.has_news() or any(query.is_stale for query in fresh):
                change = self._lookout.look()
                self.unfolded = change.unfolded
                for query in filter(None, (known() for known in queries)):
                    if change.affects(query.reads):
                        query.is_stale = True
                for query in wanted:
                    if query.is_stale:
                        outcomes[query] = _run(self._reader, query)
                conn.execute("COMMIT")
                if self._clock() > deadline:
                    break
        except BaseException:
            # What was found is told to nobody.
            for query in outcomes:
                query.is_stale = True
            raise
        finally:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
        for query, outcome in outcomes.items():
            _publish(query, outcome)
        return outcomes.keys()


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
