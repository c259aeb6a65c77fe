"""A world whose history a test tells: what checkers and reports ask of one, made by hand."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reunite.cells.register import Value
from reunite.errors import SyncError
from reunite.schema import Table, read_table
from reunite_simulations.checkers import ObservedClient
from reunite_simulations.history import History, Key, Outcome, Read, Transaction, Verb, Write
from reunite_transport.client_session import Event

ROW: dict[str, Value] = {"title": "t0", "note": "n0"}
TABLE_SQL = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, note TEXT)"


@dataclass
class ToldClient:
    """An app on a file."""

    name: str
    app: sqlite3.Connection
    events: Sequence[Event] = ()
    stopped: SyncError | None = None
    up: bool = True
    session: int = 0


@dataclass
class Told:
    """A world of one row, whose history a test tells."""

    store: sqlite3.Connection
    history: History = field(default_factory=History)
    clients: Sequence[ObservedClient] = ()
    initial: Mapping[str, Mapping[Key, Sequence[Value]]] = field(
        default_factory=lambda: {"todo": {(1,): tuple(ROW.values())}}
    )
    rolled_back: frozenset[str] = frozenset()
    twins: frozenset[str] = frozenset()
    rows_written: int = 0
    commits_when_quiet: int = 0
    bytes_when_quiet: int = 0
    bytes_sent: int = 0

    def tables(self) -> Sequence[Table]:
        return [read_table(self.store, "todo")]

    def begun(self, client: str, at: float) -> Transaction:
        """A client's transaction, which returned."""
        made = self.history.begin(f"{client}:{at:g}", client, 0, at, own=True)
        made.outcome = Outcome.RETURNED
        return made

    def wrote(
        self,
        client: str,
        cells: Mapping[str, Value],
        before: Mapping[str, Value],
        at: float | None = None,
    ) -> Transaction:
        """A client's update of the row, or its deletion when there are no cells."""
        made = self.begun(client, float(len(self.history.transactions) + 1) if at is None else at)
        made.writes = [
            Write(Verb.UPDATE if cells else Verb.DELETE, "todo", (1,), cells, {**ROW, **before})
        ]
        return made

    def appended(self, client: str, at: float, *elements: str, seen: Sequence[str] = ()) -> None:
        """A client's addition to the lists, and what it saw there."""
        made = self.begun(client, at)
        made.appended, made.read = elements, frozenset(seen)

    def read(self, client: str, at: float, *seen: str) -> None:
        """What a client has in the lists."""
        self.history.reads.append(Read(client, 0, at, frozenset(seen)))


def told(**final: Value) -> Told:
    """A world whose row has these values in the end; none when it was deleted."""
    store = sqlite3.connect(":memory:")
    store.execute(TABLE_SQL)
    if final:
        store.execute("INSERT INTO todo VALUES (1, ?, ?)", tuple((ROW | final).values()))
    return Told(store)
