"""What an app does in one transaction. Owns how a workload becomes a transaction of the history.

Whatever the workload writes, the transaction reads the append-only lists and now and then adds to
them: what it reads and adds there is what the consistency checkers know of it.
"""

import random
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Final, Protocol, TypeAlias, TypeVar

from reunite.cells.register import Value, same
from reunite.errors import ReuniteError
from reunite.schema import Table, ascii_lower
from reunite_simulations import observe
from reunite_simulations.chance import EventChance
from reunite_simulations.contents import merges
from reunite_simulations.history import History, Key, Outcome, Transaction, Verb, Write
from reunite_simulations.workload import APPEND_TABLE, Mix, RandomWrites

# A transaction of the user's own: SQL on the connection, all choices from the generator, neither
# BEGIN nor COMMIT. An sqlite3.Error that it lets out rolls all back, and nobody minds.
OwnTransaction: TypeAlias = Callable[[sqlite3.Connection, random.Random], object]
Workload: TypeAlias = Mix | OwnTransaction | Sequence[OwnTransaction | tuple[OwnTransaction, float]]

# So many values are one transaction's own, and one client's.
VALUES_OF_TRANSACTION: Final = 100_000
VALUES_OF_CLIENT: Final = 1_000_000_000
# So much of a statement is remembered, and so many of a transaction of a mix: some are very large.
STATEMENT_CHARS_MAX: Final = 1_000
STATEMENTS_MAX: Final = 30
# A transaction that writes to the lists writes other rows in so many of all cases.
BOTH: Final = 0.3
_WRITING: Final = ("insert", "update", "delete", "replace", "with")


T = TypeVar("T")


class Writer(Protocol):
    """Who writes: a client's app, or a backend."""

    @property
    def name(self) -> str:
        """As the history knows it."""
        ...

    @property
    def session(self) -> int:
        """Which session of its user this is."""
        ...

    @property
    def place(self) -> int:
        """Makes the values of its writes its own."""
        ...

    @property
    def app(self) -> sqlite3.Connection:
        """The connection that it writes on."""
        ...

    @property
    def apart(self) -> bool:
        """Whether each statement is an edit by itself."""
        ...

    @property
    def loading(self) -> bool:
        """Whether not all rows are there yet."""
        ...

    def overheard(self) -> AbstractContextManager[list[str]]:
        """The SQL that is run meanwhile."""
        ...

    def write(self, work: Callable[[sqlite3.Connection], T], *, own: bool) -> T:
        """One transaction."""
        ...


def transact(
    client: Writer,
    chance: EventChance,
    workload: Workload,
    tables: Sequence[Table],
    history: History,
    at: float,
) -> Transaction:
    """Run a writer's next transaction and note it. Raises Crashed when the process dies in it."""
    mix = workload if isinstance(workload, Mix) else Mix()
    values = client.place * VALUES_OF_CLIENT + chance.number * VALUES_OF_TRANSACTION
    writes = RandomWrites(
        tables, chance, mix, values, at_first=client.place == 1, apart=client.apart
    )
    made = history.begin(
        chance.event,
        client.name,
        client.session,
        at,
        own=chance.random() >= mix.strangers,
    )
    made.apart, made.loading = client.apart, client.loading
    appends = chance.random() < mix.appends
    # A mix notes what it writes, but not what triggers write elsewhere.
    compares = not isinstance(workload, Mix) or _triggers_write_elsewhere(client.app)

    def work(conn: sqlite3.Connection) -> None:
        made.read = history.keep(observe.elements(conn, APPEND_TABLE))
        before = {table.name: observe.rows(conn, table) for table in tables if compares}
        with client.overheard() as statements:
            try:
                if appends:
                    made.appended = writes.append(conn)
                if not isinstance(workload, Mix):
                    _drawn(workload, chance)(conn, chance)
                elif not appends or chance.random() < BOTH:
                    made.writes = writes.some(conn)
            finally:
                # What runs in a trigger is told as the statement that set it off, once more.
                made.statements = [
                    each[:STATEMENT_CHARS_MAX]
                    for each, _ in groupby(statements)
                    if each[:10].lower().startswith(_WRITING)
                ]
                if made.writes:
                    made.statements = made.statements[:STATEMENTS_MAX]
        if compares:
            made.writes = [
                write
                for table in tables
                for write in _written(table, before[table.name], observe.rows(conn, table))
            ]
        if not made.appended and _merges(tables, made.writes):
            # So that it can be seen in the end whether what was counted and typed was taken.
            made.appended = writes.append(conn)
        if not made.own and not all(observe.is_captured(conn, each.table) for each in made.writes):
            made.mistimed = True

    try:
        client.write(work, own=made.own)
    except (sqlite3.Error, ReuniteError) as error:
        made.outcome, made.refusal = Outcome.REFUSED, type(error).__name__
    else:
        made.outcome = Outcome.RETURNED
    return made


def _merges(tables: Sequence[Table], writes: Sequence[Write]) -> bool:
    """Whether any of these wrote a column that merges."""
    merging = {
        (table.name, column.name) for table in tables for column in table.cells if merges(column)
    }
    return any((write.table, column) in merging for write in writes for column in write.cells)


def _triggers_write_elsewhere(conn: sqlite3.Connection) -> bool:
    triggers = conn.execute(
        "SELECT tbl_name, sql FROM sqlite_master"
        " WHERE type = 'trigger' AND name NOT GLOB '_reunite_*'"
    )
    return any(
        ascii_lower(written.strip("\"'`[]")) != ascii_lower(table)
        for table, sql in triggers
        for written in _WRITTEN_TABLE.findall(sql.partition("BEGIN")[2])
    )


_WRITTEN_TABLE: Final = re.compile(
    r"\b(?:INTO|FROM|UPDATE(?:\s+OR\s+\w+)?)\s+(\"[^\"]+\"|`[^`]+`|\[[^\]]+\]|\w+)",
    re.IGNORECASE,
)


def _written(
    table: Table,
    before: Mapping[Key, Sequence[Value]],
    after: Mapping[Key, Sequence[Value]],
) -> Iterator[Write]:
    """What became of a table's rows."""
    names = [column.name for column in table.cells]
    for key in dict.fromkeys((*before, *after)):
        had, has = before.get(key), after.get(key)
        was = {} if had is None else dict(zip(names, had, strict=True))
        if has is None:
            yield Write(Verb.DELETE, table.name, key, {}, was)
        elif had is None:
            yield Write(Verb.INSERT, table.name, key, dict(zip(names, has, strict=True)), {})
        elif not all(map(same, had, has)):
            cells = dict(zip(names, has, strict=True))
            yield Write(Verb.UPDATE, table.name, key, cells, was)


def _drawn(
    workload: OwnTransaction | Sequence[OwnTransaction | tuple[OwnTransaction, float]],
    chance: random.Random,
) -> OwnTransaction:
    if callable(workload):
        return workload
    weighted = [each if isinstance(each, tuple) else (each, 1.0) for each in workload]
    (found,) = chance.choices([own for own, _ in weighted], [weight for _, weight in weighted])
    return found
