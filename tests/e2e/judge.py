"""What a mix of processes and faults has left behind, judged by the simulator's checkers."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Final

import asyncpg

from reunite.cells.register import Value
from reunite.errors import SyncError
from reunite.schema import Table, quoted, read_table, table_names
from reunite_simulations import observe
from reunite_simulations.checkers import all_checkers
from reunite_simulations.history import History, Key
from reunite_simulations.seeds import own_schema
from reunite_simulations.workload import APPEND_SQL
from reunite_transport.client_session import Event
from tests.e2e.journal import read_journals

# What checkers read of the relay's own tables.
RELAY_COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "_reunite_head": ("seq",),
    "_reunite_tables": ("id", "name"),
    "_reunite_documents": ("tbl", "key", "document"),
    "_reunite_changesets": ("replica", "number", "nonce"),
}


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a run: the file it began with, each client's file and its journals, a copy of
    Postgres; commits in the time after all had come to rest, and bytes over the proxies."""

    first: Path
    files: Mapping[str, Path]
    journals: Mapping[str, Sequence[Path]]
    store: Path
    commits_when_quiet: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class ClosedClient:
    """A client whose process has ended, by its file."""

    name: str
    app: sqlite3.Connection
    events: Sequence[Event]
    stopped: SyncError | None
    up: bool = True
    session: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What checkers ask of a world. No file went back in time, and the machine has one clock."""

    clients: Sequence[ClosedClient]
    store: sqlite3.Connection
    history: History
    initial: Mapping[str, Mapping[Key, Sequence[Value]]]
    schema: Sequence[Table]
    rows_written: int
    commits_when_quiet: int
    bytes_sent: int
    bytes_when_quiet: int = 0
    rolled_back: Set[str] = frozenset()
    twins: Set[str] = frozenset()

    def tables(self) -> Sequence[Table]:
        """The schema's tables and the append-only lists."""
        return self.schema


@dataclass(slots=True)
class Judgement:
    """What the checkers say."""

    violations: list[str] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    transactions: Counter[str] = field(default_factory=Counter)
    rejections: int = 0
    reads: int = 0
    commits: int = 0


def make_first(file: Path) -> None:
    """The file that a run begins with: the simulator's own schema, its rows, the lists."""
    with closing(sqlite3.connect(file)) as conn:
        conn.executescript(own_schema())
        conn.execute(APPEND_SQL)
        conn.execute("PRAGMA journal_mode = WAL")


async def copy_store(postgres_url: str, target: Path) -> None:
    """Copy what a relay keeps in Postgres into an SQLite file, in the types of clients' files."""
    make_first(target)
    connection = await asyncpg.connect(postgres_url)
    try:
        with closing(sqlite3.connect(target)) as conn:
            # An app's triggers are its own: what the relay has is to be copied as it is.
            for (trigger,) in conn.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall():
                conn.execute(f"DROP TRIGGER {quoted(trigger)}")
            columns_by_table: dict[str, Sequence[str]] = {**RELAY_COLUMNS}
            for table in _tables(conn):
                conn.execute(f"DELETE FROM {quoted(table.name)}")
                columns_by_table[table.name] = [column.name for column in table.columns]
            for name, columns in columns_by_table.items():
                names = ", ".join(map(quoted, columns))
                if name in RELAY_COLUMNS:
                    conn.execute(f"CREATE TABLE {name} ({names})")
                rows = await connection.fetch(f"SELECT {names} FROM {quoted(name)}")
                conn.executemany(
                    f"INSERT INTO {quoted(name)} ({names}) VALUES"
                    f" ({', '.join('?' * len(columns))})",
                    (map_values(row.values()) for row in rows),
                )
            conn.commit()
    finally:
        await connection.close()


def map_values(values: Iterable[object]) -> list[Value]:
    """asyncpg's values as SQLite's, but for the column's affinity."""
    return [_stored(value) for value in values]


def _stored(value: object) -> Value:
    match value:
        case bool():
            return int(value)
        case None | int() | float() | str() | bytes():
            return value
        case datetime():
            return value.isoformat(sep=" ")
        case date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
    raise AssertionError(f"{value!r} is of no type of the schema")


def judge(remains: Remains) -> Judgement:
    """Ask every checker."""
    with ExitStack() as stack:
        evidence = _gathered(remains, stack)
        found = Judgement(
            transactions=Counter(made.outcome for made in evidence.history.transactions),
            rejections=sum(len(client.events) for client in evidence.clients),
            reads=len(evidence.history.reads),
            commits=evidence.store.execute("SELECT seq FROM _reunite_head").fetchone()[0],
        )
        for checker in all_checkers():
            for look in (checker.during, checker.at_end):
                found.checks[checker.promise] += 1
                found.violations += [f"{checker.promise}: {said}" for said in look(evidence)]
    return found


def _gathered(remains: Remains, stack: ExitStack) -> Evidence:
    def opened(path: Path) -> sqlite3.Connection:
        conn = sqlite3.connect(path, isolation_level=None)
        return stack.enter_context(closing(conn))

    history = History()
    clients = []
    for name, file in remains.files.items():
        account = read_journals(name, remains.journals[name])
        history.transactions += account.transactions
        history.reads += account.reads
        clients.append(ClosedClient(name, opened(file), account.events, account.stopped))
    history.transactions.sort(key=lambda made: made.at)
    history.reads.sort(key=lambda read: read.at)
    first = opened(remains.first)
    schema = _tables(first)
    return Evidence(
        clients=clients,
        store=opened(remains.store),
        history=history,
        initial={table.name: observe.rows(first, table) for table in schema},
        schema=schema,
        rows_written=sum(len(made.writes) + len(made.appended) for made in history.transactions),
        commits_when_quiet=remains.commits_when_quiet,
        bytes_sent=remains.bytes_sent,
    )


def _tables(conn: sqlite3.Connection) -> list[Table]:
    return [read_table(conn, name) for name in table_names(conn)]
