"""What a core transaction works on: the connection, the replica's facts, the tables and shapes.

Loading tables costs more than a small transaction, so they are kept between transactions and
loaded again only when the catalog's counter has moved.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reunite.bookkeeping import Meta, Tracked, load_meta, load_tables, save_meta
from reunite.cells.kinds import Author
from reunite.cells.register import Value
from reunite.errors import UsageError
from reunite.keys import key_problem
from reunite.schema import ascii_lower
from reunite.shape import Shape, shapes_of


@dataclass(slots=True)
class Chance:
    """Where randomness comes from: a new replica id (63 bits, not 0) and a nonce (8 bytes)."""

    replica: Callable[[], int]
    nonce: Callable[[], bytes]


@dataclass(slots=True)
class State:
    """One core transaction's view of the replica."""

    conn: sqlite3.Connection
    meta: Meta
    tables: dict[int, Tracked]
    shapes: dict[int, Shape]
    chance: Chance
    # This opening of the file, by a number that stands in what Yjs writes. What was written under a
    # number can be refused or lost and then be written otherwise, which Yjs would take for the
    # same: so each opening has its own, and goes on under another after a refusal.
    session: int
    now_ms: int
    # The tables that this transaction has written rows of, by id.
    written: set[int] = field(default_factory=set)
    # Whose doing the writes are, where the app says; see `changes`.
    origin: str | None = None

    @property
    def author(self) -> Author:
        """Who edits here."""
        return Author(self.meta.replica, self.session)

    def renew_session(self) -> None:
        """Go on under a new number, here and in all others that have the file open."""
        self.session = self.chance.replica()
        self.meta.refusals += 1
        self.save("refusals")

    def save(self, *names: str) -> None:
        """Write the named facts of `meta`."""
        save_meta(self.conn, self.meta, *names)

    def tables_changed(self) -> None:
        """Load the tables again after `_reunite_tables` was written, here and everywhere."""
        self.meta.catalog += 1
        self.save("catalog")
        self.tables = load_tables(self.conn)
        self.shapes = shapes_of(self.conn, self.tables)

    def named_row(
        self, table: str, key: Value | Sequence[Value]
    ) -> tuple[Tracked, tuple[Value, ...]]:
        """A row as the app names it: the tracked table, and its key's values. Raises UsageError."""
        folded = ascii_lower(table)
        for tracked in self.tables.values():
            if ascii_lower(tracked.table.name) == folded and tracked.tracked:
                break
        else:
            raise UsageError(f"table {table!r} is not tracked; call db.track({table!r}) first")
        parts: tuple[Value, ...]
        parts = (key,) if key is None or isinstance(key, int | float | str | bytes) else tuple(key)
        if len(parts) != len(tracked.table.key):
            raise UsageError(f"a key of {table!r} has {len(tracked.table.key)} parts")
        problem = key_problem(parts)
        if problem is not None:
            raise UsageError(f"no row of {table!r} has the key {key!r}: {problem}")
        return tracked, parts

    def by_registry(self) -> dict[int, Tracked]:
        """The tables by the relay's id."""
        return {t.registry: t for t in self.tables.values() if t.registry is not None}


class StateCache:
    """The tables as last loaded by this process, for all threads that take SQLite's lock."""

    def __init__(self) -> None:
        # One attribute, so that no thread sees a version with another version's tables.
        self._kept: tuple[tuple[int, int], dict[int, Tracked], dict[int, Shape]] | None = None
        # The number of this opening, and the refusals that it knows of.
        self._session: tuple[int, int] | None = None

    def load(self, conn: sqlite3.Connection, chance: Chance, now_ms: int) -> State:
        """The state as this transaction sees it."""
        meta = load_meta(conn)
        kept = self._kept
        if self._session is None or self._session[1] != meta.refusals:
            self._session = (chance.replica(), meta.refusals)
        session = self._session[0]
        if kept is None or kept[0] != (meta.replica, meta.catalog):
            tables = load_tables(conn)
            return State(conn, meta, tables, shapes_of(conn, tables), chance, session, now_ms)
        return State(conn, meta, kept[1], kept[2], chance, session, now_ms)

    def keep(self, state: State) -> None:
        """Take over the tables of a state whose transaction has committed."""
        self._kept = ((state.meta.replica, state.meta.catalog), state.tables, state.shapes)
        self._session = (state.session, state.meta.refusals)
