"""A file with an app and a sync engine on it, each over a plain connection, and a clock to set."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from reunite.bookkeeping import Row, load_rows
from reunite.cells.register import Value
from reunite.changeset import fold_own, fold_strangers
from reunite.document import EMPTY, Document, cell_key, decode
from reunite.keys import stored_key
from reunite.outbox import pending
from reunite.payload import Entry
from reunite.replica import Replica
from reunite.state import Chance
from reunite.verify import Difference, verify

START_MS = 1_700_000_000_000


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    ms: int = START_MS

    def __call__(self) -> int:
        return self.ms

    def julian_day(self, _moment: str) -> float:
        """What SQLite's own `julianday('now')` says by this clock."""
        return 2440587.5 + self.ms / 86_400_000


def chance(first_replica: int) -> Chance:
    """Replica ids counted from the given one, and nonces counted from one."""
    replicas, nonces = count(first_replica), count(1)
    return Chance(
        replica=lambda: next(replicas),
        nonce=lambda: first_replica.to_bytes(4, "big") + next(nonces).to_bytes(4, "big"),
    )


def connect(path: Path, clock: Callable[[str], float] | None = None) -> sqlite3.Connection:
    """A plain connection that does not wait for the disk; with a clock, triggers go by it."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA synchronous = OFF")
    if clock is not None:
        conn.execute("PRAGMA foreign_keys = ON")
        conn.create_function("julianday", 1, clock)
    return conn


class Peer:
    """`app` is the connection of some program that knows nothing of sync."""

    def __init__(self, path: Path, number: int, *statements: str) -> None:
        self.path = path
        self.clock = Clock()
        self.app = connect(path, self.clock.julian_day)
        self.app.execute("PRAGMA journal_mode = WAL")
        self.engine = connect(path)
        self.replica = Replica(self.engine, chance=chance(number << 16), clock=self.clock)
        self.replica.prepare()
        self.write(*statements)

    def close(self) -> None:
        """Close both connections."""
        self.app.close()
        self.engine.close()

    def write(self, *statements: str, at: int | None = None) -> None:
        """Run each statement as another program would, at this many ms after the start."""
        if at is not None:
            self.clock.ms = START_MS + at
        for statement in statements:
            self.app.execute(statement)

    @contextmanager
    def transaction(self, *, at: int | None = None) -> Iterator[sqlite3.Connection]:
        """One transaction of our own API: what strangers left, then this, as one changeset."""
        if at is not None:
            self.clock.ms = START_MS + at
        state = self.replica.begin(self.app)
        try:
            fold_strangers(state)
            yield self.app
            fold_own(state)
            self.replica.commit(state)
        except BaseException:
            self.app.execute("ROLLBACK")
            raise

    def commit(self, *statements: str, at: int | None = None) -> None:
        """Run the statements in one transaction of our own API."""
        with self.transaction(at=at) as conn:
            for statement in statements:
                conn.execute(statement)

    def track(self, *names: str) -> list[str]:
        """Take tables into sync."""
        return self.replica.track(names)

    def fold(self) -> list[Entry]:
        """Fold what strangers wrote; the entries that this made."""
        before = {changeset.id for changeset in pending(self.engine)}
        with self.replica.transaction() as state:
            fold_strangers(state)
        return [
            entry
            for changeset in pending(self.engine)
            if changeset.id not in before
            for entry in changeset.entries()
        ]

    def edits(self) -> list[dict[str, Value]]:
        """The columns that each entry of a fold sets; the key of a delete under its own name."""
        return [self.named(entry) for entry in self.fold()]

    def named(self, entry: Entry) -> dict[str, Value]:
        """An entry's cells by column name."""
        tracked = {t.id: t for t in self.replica.tables()}[entry.row.table]
        names = {cell_key(column.id): column.name for column in tracked.table.columns}
        return {names[key]: cell[1] for key, cell in decode(entry.document).cells.items()}

    def rows(self, query: str) -> list[tuple[Value, ...]]:
        """What the app reads."""
        return self.app.execute(query).fetchall()

    def line(self, table: str, *key: Value) -> Row:
        """Our own line of a row."""
        number = next(t.id for t in self.replica.tables() if t.table.name == table)
        stored = stored_key(key)
        return load_rows(self.engine, number, [stored]).get(stored, Row())

    def document(self, table: str, *key: Value) -> Document:
        """The visible document of a row."""
        data = self.line(table, *key).document
        return decode(data) if data else EMPTY

    def values(self, table: str, *key: Value) -> dict[str, Value]:
        """The cells of a row's visible document by column name."""
        tracked = next(t for t in self.replica.tables() if t.table.name == table)
        cells = self.document(table, *key).cells
        return {
            column.name: cells[cell_key(column.id)][1]
            for column in tracked.table.cells
            if cell_key(column.id) in cells
        }

    def states(self, table: str) -> dict[Value, str]:
        """The states that the app reads in `reunite_rows`."""
        return dict(
            self.app.execute('SELECT key, state FROM reunite_rows WHERE "table" = ?', (table,))
        )

    def rejected(self) -> Sequence[tuple[Value, ...]]:
        """What the app reads in `reunite_rejected`."""
        return self.app.execute(
            'SELECT "table", key, kind, reason, "values" FROM reunite_rejected ORDER BY id'
        ).fetchall()

    def differences(self) -> list[Difference]:
        """Where tables and documents disagree."""
        return verify(self.engine)
