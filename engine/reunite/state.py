"""What a core transaction works on: the connection, the replica's facts, the tables and shapes.

Loading tables costs more than a small transaction, so they are kept between transactions and
loaded again only when the catalog's counter has moved.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from reunite.bookkeeping import Meta, Tracked, load_meta, load_tables, save_meta
from reunite.fold import Shape, shapes_of


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
    now_ms: int

    def save(self, *names: str) -> None:
        """Write the named facts of `meta`."""
        save_meta(self.conn, self.meta, *names)

    def tables_changed(self) -> None:
        """Load the tables again after `_reunite_tables` was written, here and everywhere."""
        self.meta.catalog += 1
        self.save("catalog")
        self.tables = load_tables(self.conn)
        self.shapes = shapes_of(self.conn, self.tables)

    def by_registry(self) -> dict[int, Tracked]:
        """The tables by the relay's id."""
        return {t.registry: t for t in self.tables.values() if t.registry is not None}


class StateCache:
    """The tables as last loaded by this process, for all threads that take SQLite's lock."""

    def __init__(self) -> None:
        # One attribute, so that no thread sees a version with another version's tables.
        self._kept: tuple[tuple[int, int], dict[int, Tracked], dict[int, Shape]] | None = None

    def load(self, conn: sqlite3.Connection, chance: Chance, now_ms: int) -> State:
        """The state as this transaction sees it."""
        meta = load_meta(conn)
        kept = self._kept
        if kept is None or kept[0] != (meta.replica, meta.catalog):
            tables = load_tables(conn)
            return State(conn, meta, tables, shapes_of(conn, tables), chance, now_ms)
        return State(conn, meta, kept[1], kept[2], chance, now_ms)

    def keep(self, state: State) -> None:
        """Take over the tables of a state whose transaction has committed."""
        self._kept = ((state.meta.replica, state.meta.catalog), state.tables, state.shapes)
