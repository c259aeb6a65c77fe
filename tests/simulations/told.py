"""A world whose history a test tells: what checkers and reports ask of one, made by hand."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reunite.cells.register import Value
from reunite.errors import SyncError
from reunite.schema import Table, read_table
from reunite_simulations.checkers import ObservedClient
from reunite_simulations.history import History, Key, Outcome, Read, Transaction, Verb, Write
from reunite_simulations.workload import APPEND_SQL
from reunite_transport.client_session import Event

ROW: dict[str, Value] = {"title": "t0", "note": "n0"}
TABLE_SQL = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, note TEXT)"

POST: dict[str, Value] = {
    "votes": 5,
    "body": "one two three",
    "tags": '["home"]',
    "steps": '["buy",{"id":1,"done":false}]',
    "meta": '{"box":{"a":"1"},"items":[1],"k":"v"}',
}
POST_SQL = (
    "CREATE TABLE post (id INTEGER PRIMARY KEY, votes COUNTER DEFAULT 0, body CRDT_TEXT,"
    " tags CRDT_SET_TEXT, steps CRDT_LIST_TEXT, meta CRDT_JSON_TEXT)"
)


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
    table: str = "todo"
    row: Mapping[str, Value] = field(default_factory=lambda: ROW)
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
        return [read_table(self.store, self.table)]

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
            Write(
                Verb.UPDATE if cells else Verb.DELETE,
                self.table,
                (1,),
                cells,
                {**self.row, **before},
            )
        ]
        return made

    def inserted(self, client: str, cells: Mapping[str, Value]) -> Transaction:
        """A client's insertion of the row, which it does not know."""
        made = self.begun(client, float(len(self.history.transactions) + 1))
        made.writes = [Write(Verb.INSERT, self.table, (1,), cells, {})]
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


def told_post(**final: Value) -> Told:
    """A world with a row whose columns merge, and the lists; in the end it has these values."""
    store = sqlite3.connect(":memory:")
    store.execute(POST_SQL)
    store.execute(APPEND_SQL)
    values = tuple((POST | final).values())
    store.execute("INSERT INTO post VALUES (1, ?, ?, ?, ?, ?)", values)
    return Told(store, "post", POST, initial={"post": {(1,): tuple(POST.values())}})
