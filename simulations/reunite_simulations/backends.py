"""Backends: programs that write the relays' database with SQL of their own.

They know nothing of sync: each transaction is one of an ordinary connection, on the same tables as
the relays write. It may not wait, so one that finds a relay at work is refused, as any that breaks
a constraint is.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from reunite.schema import Table
from reunite_simulations import observe

if TYPE_CHECKING:
    from reunite_simulations.world import World

# Their values come after those of all clients and copies of clients.
FIRST_PLACE: Final = 200

T = TypeVar("T")


class Backend:
    """One backend; what `transactions.transact` needs of a writer."""

    # A backend has no file that could go back, so all it writes is of one session.
    session = 0
    apart = True
    loading = False

    def __init__(self, world: "World", name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.place = FIRST_PLACE + number
        self._conn: sqlite3.Connection | None = None

    @property
    def app(self) -> sqlite3.Connection:
        """The connection of the transaction under way."""
        assert self._conn is not None, "a backend connects for each transaction"
        return self._conn

    @contextmanager
    def connected(self) -> Iterator[None]:
        """A connection for one transaction."""
        path = self.world.folder / "relay.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as conn:
            conn.execute("PRAGMA synchronous = OFF")
            conn.execute("PRAGMA foreign_keys = ON")
            conn.create_function("julianday", 1, self._julian_day)
            self._conn = conn
            try:
                yield
            finally:
                self._conn = None

    def tables(self, tables: Sequence[Table]) -> Sequence[Table]:
        """Those of these tables that the relays' database has, with the columns that it has."""
        return [
            observe.shared(self.app, table)
            for table in tables
            if observe.has_table(self.app, table.name)
        ]

    @contextmanager
    def overheard(self) -> Iterator[list[str]]:
        """The SQL that is run meanwhile, with its values."""
        said: list[str] = []
        self.app.set_trace_callback(said.append)
        try:
            yield said
        finally:
            self.app.set_trace_callback(None)

    def write(self, work: Callable[[sqlite3.Connection], T], *, own: bool) -> T:
        """One transaction. Raises what SQLite raises, and then nothing is written."""
        conn = self.app
        conn.execute("BEGIN IMMEDIATE")
        try:
            result = work(conn)
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
        return result

    def _julian_day(self, _moment: str) -> float:
        return 2440587.5 + self.world.true_ms() / 86_400_000
