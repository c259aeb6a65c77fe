"""Checkers: one module a promise of the design. Each looks at a world from outside.

`during` is asked while faults happen, of whatever is up; `at_end` once all is healed and quiet.
What they yield is what is wrong, in words; nothing yielded is a promise kept.

A world is whatever can be observed so: the simulator's, or processes, files and a Postgres that
were left behind by a run (`tests/e2e/judge.py`).
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, Protocol

from reunite.cells.register import Value
from reunite.errors import SyncError
from reunite.schema import Table
from reunite_simulations import observe
from reunite_simulations.history import History, Key
from reunite_simulations.replaced import Rows
from reunite_simulations.workload import APPEND_TABLE
from reunite_transport.client_session import Event, GaveUp

# A row costs some 30 microseconds to compare.
ROWS_AT_EVERY_LOOK: Final = 300


class ObservedClient(Protocol):
    """One app on one file."""

    @property
    def name(self) -> str:
        """Who wrote a transaction, in the history."""
        ...

    @property
    def up(self) -> bool:
        """Whether `app` can be asked."""
        ...

    @property
    def session(self) -> int:
        """Which session of its user this is: another one after its file went back in time."""
        ...

    @property
    def app(self) -> sqlite3.Connection:
        """A connection to its file."""
        ...

    @property
    def events(self) -> Sequence[Event]:
        """What sync told the app."""
        ...

    @property
    def stopped(self) -> SyncError | None:
        """Why sync stopped for good."""
        ...


class Observed(Protocol):
    """What checkers ask of a world."""

    @property
    def clients(self) -> Sequence[ObservedClient]:
        """Everybody."""
        ...

    @property
    def store(self) -> sqlite3.Connection:
        """The relays' database: the tables, and `_reunite_*` as the store on SQLite has them."""
        ...

    @property
    def history(self) -> History:
        """Who did what."""
        ...

    @property
    def initial(self) -> Mapping[str, Mapping[Key, Sequence[Value]]]:
        """The rows that the world began with, by table and key."""
        ...

    @property
    def rolled_back(self) -> Set[str]:
        """Names of clients whose file went back in time."""
        ...

    @property
    def twins(self) -> Set[str]:
        """Names of clients whose file is a copy, or was copied."""
        ...

    @property
    def rows_written(self) -> int:
        """By all clients together."""
        ...

    @property
    def commits_when_quiet(self) -> int:
        """How many there were after nobody wrote any more."""
        ...

    @property
    def bytes_when_quiet(self) -> int:
        """How many bytes passed after nobody wrote any more."""
        ...

    @property
    def bytes_sent(self) -> int:
        """By all clients and relays, to one another."""
        ...

    def tables(self) -> Sequence[Table]:
        """The schema's tables and the append-only lists."""
        ...


def rejections(world: Observed) -> list[tuple[str, Value, str, str]]:
    """All that clients could not sync, as they keep it: (table, key, reason, values)."""
    return [line for client in world.clients if client.up for line in observe.rejected(client.app)]


def rejected_rows(world: Observed) -> set[tuple[str, str]]:
    """The rows, by table and stored key, of which anything was rejected anywhere, kept or told
    of."""
    told = {
        (table, str(key))
        for client in world.clients
        for event in client.events
        if isinstance(event, GaveUp)
        for table, key in event.rows
    }
    return told | {(table, str(key)) for table, key, _, _ in rejections(world)}


def rejected_elements(world: Observed) -> set[str]:
    """Elements of the append-only lists that were rejected anywhere."""
    return {key for table, key in rejected_rows(world) if table == APPEND_TABLE}


def rows_in_turn(world: Observed, look: int) -> Iterator[tuple[ObservedClient, Rows]]:
    """All rows of clients that are up, by table, key and column: of everybody at each look, but of
    those with many rows now and then, each in its turn."""
    tables = world.tables()
    for place, client in enumerate(world.clients):
        if not client.up or (look + place) % turns(client):
            continue
        yield (
            client,
            {
                table.name: {
                    key: dict(zip((column.name for column in table.cells), cells, strict=True))
                    for key, cells in observe.rows(client.app, table).items()
                }
                for table in (observe.shared(client.app, each) for each in tables)
                if table.columns and table.name != APPEND_TABLE
            },
        )


def turns(client: ObservedClient) -> int:
    """At which looks a client's rows are read, as reading all takes long: each so many."""
    return 1 + observe.count_rows(client.app) // ROWS_AT_EVERY_LOOK


class Checker(Protocol):
    """A promise, and how to see that it was broken."""

    promise: str
    looks: bool
    """Whether there is anything to see before the end."""

    def during(self, world: Observed) -> Iterable[str]:
        """What is wrong just now."""
        ...

    def at_end(self, world: Observed) -> Iterable[str]:
        """What is wrong after all."""
        ...


def all_checkers() -> Sequence[Checker]:
    """One of each, for one world."""
    from reunite_simulations.checkers.atomicity import Atomicity
    from reunite_simulations.checkers.bounds import Bounds
    from reunite_simulations.checkers.causality import Causality
    from reunite_simulations.checkers.constraints import Constraints
    from reunite_simulations.checkers.convergence import Convergence
    from reunite_simulations.checkers.counters import Counters
    from reunite_simulations.checkers.durability import Durability
    from reunite_simulations.checkers.liveness import Liveness
    from reunite_simulations.checkers.once import ExactlyOnce
    from reunite_simulations.checkers.registers import Registers
    from reunite_simulations.checkers.sets import Sets
    from reunite_simulations.checkers.structures import Structures
    from reunite_simulations.checkers.tables import Tables
    from reunite_simulations.checkers.texts import Texts

    return (
        Liveness(),
        Convergence(),
        Durability(),
        Registers(),
        Counters(),
        Sets(),
        Texts(),
        Structures(),
        Atomicity(),
        Causality(),
        ExactlyOnce(),
        Tables(),
        Constraints(),
        Bounds(),
    )
