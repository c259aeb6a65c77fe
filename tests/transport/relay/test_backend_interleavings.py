"""Two backend transactions beside the flusher, each of their statements between any two of its.

The real flusher commits a client's changeset on a Postgres connection that waits before every
statement. Before the i-th one backend makes its first statement, before the next its second, and so
on; another begins before the j-th. A statement that has to wait for the relay's locks, or for the
other backend's, waits while the relay goes on. When all have ended, nothing may be lost, doubled or
split: tables, documents and what a connected reader was told are equal, counters are exact, and no
commit showed a part of a transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import pytest

from reunite.cells.register import Value
from reunite.columns import columns_of
from reunite.document import Document, decode, encode
from reunite.keys import pack_key, unpack_key
from reunite.schema import ForeignKey, Table
from reunite_transport.messages import Commit, Entries, EntryKind, Rejected, Resume
from reunite_transport.relay.flusher import Flusher
from reunite_transport.relay.hub import Hub
from reunite_transport.relay.postgres_store import PostgresStore, open_postgres
from reunite_transport.relay_session import PushReady
from tests.contracts.pushes import at, column, deleted, edited, inserted, table
from tests.transport.relay.clients import SECONDS_MAX, Client

AUTHOR, READER = 11, 12
# More than an attempt of the flusher takes statements; what is left is made after it.
STEPS: Final = 15
ITEM = table(
    "item",
    column("n", "integer"),
    column("x"),
    column("y"),
    column("note"),
)
PART = table(
    "part",
    column("item_id", "integer"),
    column("note"),
    foreign_keys=[ForeignKey(("item_id",), "item", ("id",), "CASCADE")],
)
N, X, Y, NOTE = 2, 3, 4, 5
Row = tuple[int, int]


@dataclass(frozen=True)
class Scenario:
    """What is there, what the client pushes at a time, and what two backends do. `{3}` and `ids[3]`
    stand for the key 3 of this interleaving, which has keys of its own."""

    name: str
    there: Sequence[str]
    push: Callable[[int, Sequence[int]], dict[Row, Document]]
    x: Sequence[str]
    y: Sequence[str]
    # Rows of which a backend changes this column in all or none.
    together: Sequence[tuple[int, Sequence[Row]]] = ()
    # What `item` holds at the end: (id, n), where the order of things does not matter.
    numbers: dict[int, int] | None = None


def update(key: int, sets: str) -> str:
    return f"UPDATE item SET {sets} WHERE id = {{{key}}}"


def edits(*keys: int) -> Callable[[int, Sequence[int]], dict[Row, Document]]:
    return lambda now, ids: {
        (1, ids[key]): edited(at(now, AUTHOR), {NOTE: "client"}) for key in keys
    }


THERE = ["INSERT INTO item VALUES ({1}, 0), ({2}, 0), ({3}, 0)"]
SCENARIOS = [
    Scenario(
        "updates of the same rows",
        THERE,
        edits(1, 2, 3),
        [update(1, "n = n + 10, x = 'x'"), update(2, "n = n + 10, x = 'x'")],
        [update(2, "n = n + 100, y = 'y'"), update(3, "n = n + 100, y = 'y'")],
        [(X, [(1, 1), (1, 2)]), (Y, [(1, 2), (1, 3)])],
        {1: 10, 2: 110, 3: 100},
    ),
    Scenario(
        "inserts of the same key, and a delete",
        THERE,
        lambda now, ids: {
            (1, ids[4]): inserted(at(now, AUTHOR), {N: 0, X: None, Y: None, NOTE: "client"}),
            (1, ids[1]): deleted(at(now, AUTHOR)),
            (1, ids[2]): edited(at(now, AUTHOR), {NOTE: "client"}),
        },
        ["INSERT INTO item VALUES ({4}, 7, 'x')", update(1, "x = 'x'")],
        ["DELETE FROM item WHERE id = {2}", update(3, "y = 'y'")],
    ),
    Scenario(
        "a delete that cascades, and a new child",
        [*THERE, "INSERT INTO part VALUES ({1}, {1}), ({2}, {2})"],
        lambda now, ids: {
            (2, ids[1]): edited(at(now, AUTHOR), {3: "client"}),
            (2, ids[5]): inserted(at(now, AUTHOR), {2: ids[2], 3: "client"}),
        },
        ["DELETE FROM item WHERE id = {1}", update(3, "x = 'x'")],
        ["INSERT INTO part VALUES ({6}, {2}, 'y')", "UPDATE part SET note = 'y' WHERE id = {2}"],
    ),
    Scenario(
        "a table that is emptied and filled again",
        THERE,
        edits(1, 2),
        ["TRUNCATE part, item", "INSERT INTO item VALUES ({1}, 1, 'x'), ({7}, 1, 'x')"],
        ["INSERT INTO part VALUES ({8}, NULL, 'y')", "UPDATE part SET note = 'z' WHERE id = {8}"],
        [(X, [(1, 1), (1, 7)])],
    ),
    Scenario(
        "another key, and one that is swapped",
        THERE,
        edits(1, 2),
        [update(1, "id = {9}, x = 'x'"), "INSERT INTO item VALUES ({1}, 5, 'x')"],
        [update(3, "y = 'y'"), update(2, "y = 'y', n = 3")],
        [(Y, [(1, 3), (1, 2)])],
    ),
]


@pytest.mark.parametrize("start", range(1, STEPS))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_no_interleaving_loses_doubles_or_splits_a_write(
    postgres_url: str, scenario: Scenario, start: int
) -> None:
    """With the other backend's first statement before every third step, so 350 interleavings."""

    async def all_of_it() -> None:
        async with AsyncExitStack() as stack:
            world = await opened(postgres_url, stack)
            for number, other in enumerate(range(1 + start % 3, STEPS, 3)):
                await world.interleave(scenario, 10 * number, start, other)

    asyncio.run(all_of_it())


class Stepped:
    """A connection that waits before every statement."""

    def __init__(self, connection: Any, before: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._before = before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in ("execute", "fetch", "fetchrow", "fetchval", "copy_records_to_table"):
            return found

        async def stepped(*arguments: Any, **named: Any) -> Any:
            await self._before()
            return await found(*arguments, **named)

        return stepped


class Backend:
    """A transaction whose statements are made one at each turn, from a first one on."""

    def __init__(self, connection: Any, statements: Sequence[str], first: int, looks: Any) -> None:
        self._connection = connection
        self._statements = ["BEGIN", *statements, "COMMIT"]
        self._first = first
        self._looks = looks
        self._made = 0
        self._task: asyncio.Task[Any] | None = None

    async def turn(self, step: int) -> None:
        """Make the next statement, if it is time; return when it is done, or waits for a lock."""
        due = step >= self._first and self._made < len(self._statements)
        if not due or not (self._task is None or self._task.done()):
            return
        if self._made == 0:
            await self._next()
        await self._next()

    async def finish(self) -> None:
        """Make what is left."""
        while self._made < len(self._statements):
            await self._next()
        assert self._task is not None
        await self._task

    async def _next(self) -> None:
        if self._task is not None:
            await self._task
        statement = self._statements[self._made]
        self._made += 1
        task = self._task = asyncio.create_task(self._connection.execute(statement))
        pid = self._connection.get_server_pid()
        while not task.done():
            await asyncio.wait({task}, timeout=0.002)
            if not task.done() and await self._looks.fetchval(
                "SELECT cardinality(pg_blocking_pids($1)) > 0", pid
            ):
                return
        task.result()


@dataclass
class World:
    """A realm, its flusher at work, an author and a reader, and two backends' connections, with
    one each to look at what it waits for."""

    store: PostgresStore
    hub: Hub
    flusher: Flusher
    author: Client
    reader: Client
    backends: Sequence[Any]
    looks: Sequence[Any]
    seen: dict[Row, Document]
    number: int = 0
    step: int = 0
    acting: Sequence[Backend] = ()

    async def before(self) -> None:
        """A step of the flusher: the backends' turn."""
        self.step += 1
        for backend in self.acting:
            await backend.turn(self.step)

    async def interleave(self, scenario: Scenario, offset: int, first: int, other: int) -> None:
        """Play a scenario in one order, and check what came of it."""
        ids = range(offset, offset + 10)
        await self.sql(*(statement.format(*ids) for statement in scenario.there))
        await self.flusher.fold()
        self.hear(scenario, offset)
        plans = ((scenario.x, first), (scenario.y, other))
        self.acting = [
            Backend(connection, [each.format(*ids) for each in statements], start, looks)
            for connection, looks, (statements, start) in zip(
                self.backends, self.looks, plans, strict=True
            )
        ]
        self.step, self.number = 0, self.number + 1
        now = await self.looks[0].fetchval("SELECT (extract(epoch FROM now()) * 1000)::bigint")
        self.flusher.push(self.author.member, pushed(self.number, scenario.push(now, ids)))
        answer = await answered(self.author, self.number)
        await asyncio.gather(*(backend.finish() for backend in self.acting))
        self.acting = ()
        while (await self.store.look()).waiting:
            await self.flusher.fold()
        self.hear(scenario, offset)
        if isinstance(answer, Rejected):
            assert answer.reason == "constraint", answer
            self.author.say(Resume(self.number))
            self.number -= 1
        await self.check(scenario, offset, taken=isinstance(answer, Commit))

    def hear(self, scenario: Scenario, offset: int) -> None:
        """Take in what the reader was told, commit by commit."""
        for message in self.reader.hear():
            assert isinstance(message, Commit), message
            for section in message.sections:
                for key, data in zip(section.keys, section.documents, strict=True):
                    (number,) = unpack_key(key)
                    assert isinstance(number, int)
                    self.seen[section.table, number] = decode(data)
            for column_id, rows in scenario.together:
                held = {
                    shown(self.seen.get((t, offset + key)), column_id) in ("x", "y")
                    for t, key in rows
                }
                assert len(held) == 1, f"a part of a transaction in commit {message.seq}"

    async def check(self, scenario: Scenario, offset: int, *, taken: bool) -> None:
        """Tables, documents and the reader are equal, and numbers exact."""
        tables = {each.id: each for each in await self.store.registry()}
        stored = await self.looks[0].fetch("SELECT tbl, key, document FROM _reunite_documents")
        documents = {(r["tbl"], unpack_key(r["key"])[0]): decode(r["document"]) for r in stored}
        assert {row: encode(d) for row, d in documents.items()} == {
            row: encode(d) for row, d in self.seen.items()
        }
        for each in tables.values():
            in_table = {
                row[0]: tuple(row[1:])
                for row in await self.looks[0].fetch(f'SELECT * FROM "{each.name}"')
            }
            in_documents = {
                key: values(each, document)
                for (t, key), document in documents.items()
                if t == each.id and document.alive
            }
            assert in_documents == in_table
        if scenario.numbers is not None:
            assert taken
            for key, number in scenario.numbers.items():
                found = documents[1, offset + key]
                assert shown(found, N) == number
                assert shown(found, NOTE) == "client"

    async def sql(self, *statements: str) -> None:
        """One transaction."""
        async with self.backends[0].transaction():
            for statement in statements:
                await self.backends[0].execute(statement)


async def opened(url: str, stack: AsyncExitStack) -> World:
    """A world whose flusher is at work until the stack unwinds."""
    store = await open_postgres(url)
    stack.push_async_callback(store.close)
    tables = await store.describe([ITEM, PART], create=True)
    hub = Hub(head=0, registry=tables)
    flusher = Flusher(store, hub, delay_seconds_min=0.001, delay_seconds_max=0.004)
    clients: list[Client] = []
    for replica in (AUTHOR, READER):
        greeting = await store.greet(replica, 0, (), 0, b"")
        client = Client(hub, replica, term=greeting.term).live()
        client.hear()
        clients.append(client)
    connections = []
    for _ in range(4):
        connections.append(await asyncpg.connect(url))
        stack.push_async_callback(connections[-1].close)
    author, reader = clients
    world = World(store, hub, flusher, author, reader, connections[:2], connections[2:], {})
    store._connection = Stepped(store._connection, world.before)  # type: ignore[assignment]
    running = asyncio.create_task(flusher.run())

    async def stop() -> None:
        flusher.stop()
        async with asyncio.timeout(SECONDS_MAX):
            await running

    stack.push_async_callback(stop)
    return world


async def answered(client: Client, number: int) -> Commit | Rejected:
    """What became of a changeset."""
    while True:
        message = await client.next(object)
        if isinstance(message, Commit) and number in message.acknowledged:
            return message
        if isinstance(message, Rejected):
            return message


def pushed(number: int, rows: dict[Row, Document]) -> PushReady:
    sections = tuple(
        Entries(
            table_id,
            tuple(pack_key((key,)) for t, key in rows if t == table_id),
            tuple(encode(document) for (t, _), document in rows.items() if t == table_id),
            tuple(
                EntryKind.WHOLE if document.born else EntryKind.PARTIAL
                for (t, _), document in rows.items()
                if t == table_id
            ),
            (),
        )
        for table_id in sorted({t for t, _ in rows})
    )
    return PushReady(number, number.to_bytes(8, "big"), False, sections, len(rows), 1_000)


def values(table: Table, document: Document) -> tuple[Value, ...]:
    return tuple(columns_of(table.cells).values(document))


def shown(document: Document | None, column_id: int) -> Value:
    if document is None or not document.alive:
        return None
    cell = document.cells.get(column_id << 3)
    return cell[1] if cell is not None else None
