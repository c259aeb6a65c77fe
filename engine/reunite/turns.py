"""Turns: which tables of a file have changed since somebody last looked, whoever changed them.

Every commit of an engine that touches rows of tracked tables is a *turn*: it raises a counter in
the file, and this process remembers which tables each of its own turns touched. SQLite's
`data_version` tells that somebody committed. Then the turns that this process made account for the
tables that they touched; a turn that it does not know was another process's, and anything may have
changed; and what programs without an engine wrote to tracked tables stands in the log. Of tables
that are not tracked nobody takes notes, so they count as changed at every commit; and so does
everything from a change of the schema to the fold that sees whose triggers it took.
"""

import sqlite3
from collections.abc import Set
from typing import Final, NamedTuple

from reunite.bookkeeping import schema_seen, turn_of
from reunite.capture import last_captured
from reunite.schema import ascii_lower

# Turns that a process remembers of itself: so many can go by between two looks, which are a
# twentieth of a second apart, before it takes them for a stranger's.
_TURNS_KEPT: Final = 4096
# A log that is longer than this is not read to find out which tables it names.
_LOG_READ_MAX: Final = 10_000


class Turns:
    """What this process's own turns touched: table names, folded to lower case. Written under
    SQLite's write lock, by one thread at a time."""

    def __init__(self) -> None:
        self._tables_by_turn: dict[int, frozenset[str]] = {}

    def note(self, turn: int, tables: frozenset[str]) -> None:
        """A turn is about to be committed."""
        self._tables_by_turn[turn] = tables
        if len(self._tables_by_turn) > _TURNS_KEPT:
            del self._tables_by_turn[next(iter(self._tables_by_turn))]

    def forget(self, turn: int) -> None:
        """It was not committed; the next may have its number."""
        self._tables_by_turn.pop(turn, None)

    def touched(self, after: int, until: int) -> frozenset[str] | None:
        """The tables that these turns touched; None when some are not this process's own."""
        if not 0 <= until - after <= _TURNS_KEPT:
            return None
        known = [self._tables_by_turn.get(turn) for turn in range(after + 1, until + 1)]
        if None in known:
            return None
        return frozenset().union(*(tables for tables in known if tables is not None))


class Change(NamedTuple):
    """What has changed between two looks. `touched` is None when anything may have; `unnoted` are
    the tables of which no notes are taken; `unfolded` when programs without an engine wrote, or
    changed the schema."""

    touched: frozenset[str] | None
    unnoted: frozenset[str]
    unfolded: bool

    def affects(self, names: Set[str] | None) -> bool:
        """Whether a query that reads these tables and views may have another result; None reads
        anything."""
        if names is None or self.touched is None:
            return True
        return not (names.isdisjoint(self.touched) and names.isdisjoint(self.unnoted))


class Lookout:
    """Looks at a file over a connection of its own, which never writes."""

    def __init__(self, conn: sqlite3.Connection, turns: Turns) -> None:
        self._conn = conn
        self._turns = turns
        self._version = -1
        self._schema = -1
        self._turn = -1
        self._unnoted: frozenset[str] = frozenset()

    def has_news(self) -> bool:
        """True when anybody has committed since the last look. Outside of a transaction."""
        return self._data_version() != self._version

    def look(self) -> Change:
        """What has changed since the last look. Begins a read transaction, in which the caller
        reads what has changed and which it ends."""
        # Before the snapshot is taken, so that a commit in between is noticed once more.
        version = self._data_version()
        self._conn.execute("BEGIN")
        schema: int = self._conn.execute("PRAGMA schema_version").fetchone()[0]
        turn = turn_of(self._conn)
        # A table that another program made anew has no triggers until the next fold sees to it.
        is_seen = schema == schema_seen(self._conn)
        is_same = is_seen and schema == self._schema
        touched = self._turns.touched(self._turn, turn) if is_same else None
        if touched is None:
            # Any other process's turn may have begun or ended to track a table.
            self._unnoted = _names(
                self._conn,
                "SELECT name FROM sqlite_master WHERE type = 'table' EXCEPT"
                " SELECT name FROM _reunite_tables WHERE state = 'tracked'",
            )
        captured = last_captured(self._conn)
        if captured > _LOG_READ_MAX:
            touched = None
        elif captured and touched is not None:
            touched |= _names(
                self._conn,
                "SELECT DISTINCT t.name FROM _reunite_log AS l"
                " JOIN _reunite_tables AS t ON t.id = l.tbl",
            )
        self._version, self._turn = version, turn
        # The fold can let a table go, and the schema stay as it is.
        self._schema = schema if is_seen else -1
        return Change(touched, self._unnoted, bool(captured) or not is_seen)

    def _data_version(self) -> int:
        found: int = self._conn.execute("PRAGMA data_version").fetchone()[0]
        return found


def _names(conn: sqlite3.Connection, sql: str) -> frozenset[str]:
    return frozenset(ascii_lower(name) for (name,) in conn.execute(sql))
