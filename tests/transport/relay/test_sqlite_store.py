"""The SQLite store keeps the contract, and what is SQLite's own."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import asyncpg
import pytest

from reunite.bookkeeping import prepare
from reunite.cells.register import Value
from reunite.document import EMPTY, Document, encode
from reunite.schema import Table
from reunite_transport.relay import sqlite_store
from reunite_transport.relay.admission import Changeset, Refused
from reunite_transport.relay.commit import Outcome, Taken, commit_batch
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.sqlite_store import SqliteStore, open_sqlite
from reunite_transport.relay.store import Busy, RowChange, Store, StoreError
from tests.contracts.backend_contract import BackendContract
from tests.contracts.history_contract import HistoryContract
from tests.contracts.pushes import (
    PERSON,
    A,
    B,
    at,
    changeset,
    deleted,
    edited,
    entries,
    inserted,
    row,
)
from tests.contracts.restore_contract import Outside, RestoreContract
from tests.contracts.store_contract import ALL, LIST, TODO, Opener, StoreContract, write

NOW = 1_700_000_000_000


@asynccontextmanager
async def opened(path: Path, chance: Random | None = None) -> AsyncIterator[SqliteStore]:
    if chance is None:
        store = await open_sqlite(path)
    else:
        store = await open_sqlite(path, clock=lambda: NOW, chance=chance.randbytes)
    try:
        yield store
    finally:
        await store.close()


def sql(path: Path, statement: str) -> list[tuple[Value, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def run(path: Path, scenario: Callable[[SqliteStore], Awaitable[None]], *tables: Table) -> None:
    async def all_of_it() -> None:
        async with opened(path) as store:
            await store.describe(tables, create=True)
            await scenario(store)

    asyncio.run(all_of_it())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


class TestSqliteStore(StoreContract, RestoreContract, HistoryContract, BackendContract):
    @pytest.fixture
    def opener(self, path: Path) -> Opener:
        return lambda: opened(path)

    @pytest.fixture
    def outside(self, path: Path) -> Outside:
        @asynccontextmanager
        async def transaction() -> AsyncIterator[Callable[[str], Awaitable[object]]]:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:

                async def execute(statement: str) -> object:
                    return connection.execute(statement).fetchall()

                connection.execute("BEGIN IMMEDIATE")
                yield execute
                connection.execute("COMMIT")

        return transaction


# Opening.


def test_stores_that_open_one_new_file_at_once_share_a_realm(path: Path) -> None:
    async def scenario() -> None:
        stores = await asyncio.gather(*(open_sqlite(path) for _ in range(4)))
        assert len({store.realm for store in stores}) == 1
        assert len({store.replica for store in stores}) == 4
        for store in stores:
            await store.close()

    asyncio.run(scenario())


def test_the_same_calls_with_the_same_clock_and_chance_make_the_same_file(tmp_path: Path) -> None:
    async def scenario(path: Path) -> None:
        async with opened(path, Random(1)) as store:
            await store.describe([PERSON], create=True)
            await store.greet(A, 0, (), 0, b"")
            await write(store, {row(1): ("insert", {2: "a@x"})})

    dumps = []
    for name in ("one.db", "two.db"):
        asyncio.run(scenario(tmp_path / name))
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            dumps.append(list(connection.iterdump()))
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize("given", [bytes(8), b"\xff" * 8])
def test_a_replica_id_is_63_bits_and_never_0(path: Path, given: bytes) -> None:
    async def scenario() -> None:
        store = await open_sqlite(path, chance=lambda count: (given * 2)[:count])
        assert 0 < store.replica < 1 << 63
        await store.close()

    asyncio.run(scenario())


def test_a_newer_format_is_refused_with_what_to_do(path: Path) -> None:
    async def no_more() -> None:
        with pytest.raises(StoreError, match="upgrade the relay"):
            await open_sqlite(path)

    async def nothing(store: SqliteStore) -> None:
        pass

    run(path, nothing)
    sql(path, "UPDATE _reunite_meta SET format = 2")
    asyncio.run(no_more())


def app(path: Path) -> None:
    sql(path, "CREATE TABLE person (id INTEGER PRIMARY KEY)")


def client(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        prepare(connection, lambda: 7)
        connection.commit()


def text(path: Path) -> None:
    path.write_text("Dear diary, " * 99)


@pytest.mark.parametrize("make", [app, client, text])
def test_a_file_that_is_no_relays_is_refused_and_left_as_it_is(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    before = path.read_bytes()

    async def scenario() -> None:
        with pytest.raises(StoreError, match=r"file of its own|one of its own"):
            await open_sqlite(path)

    asyncio.run(scenario())
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(StoreError, match="check the folder"):
            await open_sqlite(tmp_path / "absent" / "relay.db")

    asyncio.run(scenario())


# Several stores on one file, in one thread.


def test_two_stores_in_one_thread_take_turns(path: Path) -> None:
    async def scenario() -> None:
        async with opened(path) as first, opened(path) as second:
            await first.describe([PERSON], create=True)
            inside, go_on = asyncio.Event(), asyncio.Event()

            async def slowly() -> None:
                async with first.begin() as transaction:
                    inside.set()
                    await go_on.wait()
                    await transaction.finish(b"first...", {}, [])

            slow = asyncio.create_task(slowly())
            await inside.wait()
            quick = asyncio.create_task(write(second, {row(1): ("insert", {2: "a@x"})}))
            greeting = asyncio.create_task(second.greet(A, 0, (), 0, b""))
            for _ in range(10):
                await asyncio.sleep(0.001)
                assert await second.head() == (0, b"")
            assert not quick.done()
            go_on.set()
            await asyncio.gather(slow, quick, greeting)
            assert await first.head() == (2, b"token...")
            # What another has created is there for the next commit.
            assert len(await second.registry()) == 1

    asyncio.run(scenario())


def test_commits_of_two_stores_have_one_order(path: Path) -> None:
    async def scenario() -> None:
        async with opened(path) as first, opened(path) as second:
            await first.describe([PERSON], create=True)
            commits = (
                write(store, {row(key): ("insert", {2: str(key)})})
                for key, store in enumerate([first, second] * 10)
            )
            await asyncio.gather(*commits)
            assert await first.head() == (20, b"token...")
            page = await second.page(0, b"", rows_max=100, bytes_max=ALL)
            assert sum(len(section.keys) for section in page.sections) == 20

    asyncio.run(scenario())


def test_a_lock_that_is_never_released_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "WAIT_SECONDS_MAX", 0.05)

    async def scenario(store: SqliteStore) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Busy, match="another process"):
                await write(store, {row(1): ("insert", {2: "a@x"})})
            assert len(await store.registry()) == 1
            other.execute("ROLLBACK")
        await write(store, {row(1): ("insert", {2: "a@x"})})

    run(path, scenario, PERSON)


# Crashes, and a full disk.


@pytest.mark.parametrize("finished", [False, True])
def test_a_crash_in_the_middle_of_a_commit_leaves_nothing(path: Path, finished: bool) -> None:
    async def scenario() -> None:
        async with opened(path) as store, opened(path) as other:
            await store.describe([PERSON], create=True)
            inside, go_on = asyncio.Event(), asyncio.Event()

            async def commit() -> None:
                new = inserted(at(NOW, A), {2: "a@x"})
                async with store.begin() as transaction:
                    await transaction.write_rows([RowChange(row(1), EMPTY, new)])
                    if finished:
                        await transaction.finish(b"token...", {row(1): encode(new)}, [])
                    inside.set()
                    await go_on.wait()
                    await transaction.standings([A])

            doomed = asyncio.create_task(commit())
            await inside.wait()
            store.crash()
            # The lock is free at once, and the row was never there.
            await write(other, {row(1): ("insert", {2: "b@x"})})
            assert await other.head() == (1, b"token...")
            go_on.set()
            with pytest.raises(StoreError, match="closed"):
                await doomed
            with pytest.raises(StoreError, match="closed"):
                await store.head()
        assert sql(path, "SELECT email FROM person") == [("b@x",)]

    asyncio.run(scenario())


@pytest.mark.parametrize("rows", [1, 500])
def test_a_full_disk_is_a_store_error_and_nothing_is_lost(path: Path, rows: int) -> None:
    async def scenario(store: SqliteStore) -> None:
        await store.greet(A, 0, (), 0, b"")
        first = changeset(A, 1, entries((1, inserted(at(NOW, A), {2: "a@x"}))))
        await commit_batch(store, [first], b"first...")
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        new = inserted(at(NOW, A), {3: 100_000 // rows * "x"})
        second = changeset(A, 2, entries(*((key, new) for key in range(2, 2 + rows))))
        for _ in range(2):
            with pytest.raises(StoreError, match="make room"):
                await commit_batch(store, [second], b"second..")
            assert await store.head() == (1, b"first...")
            assert sql(path, "SELECT id, email FROM person") == [(1, "a@x")]
        store._connection.execute("PRAGMA max_page_count = 1000000")
        assert (await commit_batch(store, [second], b"second..")).verdicts == (Taken(),)

    run(path, scenario, PERSON)


def test_a_trigger_that_rolls_back_everything_does_not_let_the_rest_through(path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        sql(
            path,
            "CREATE TRIGGER strict BEFORE INSERT ON person WHEN NEW.name = 'bad'"
            " BEGIN SELECT RAISE(ROLLBACK, 'no such name'); END",
        )
        await store.greet(A, 0, (), 0, b"")
        good, bad = (inserted(at(NOW, A), {3: name}) for name in ("good", "bad"))
        batch = [changeset(A, 1, entries((1, good))), changeset(A, 2, entries((2, bad)))]
        with pytest.raises(StoreError, match="no such name"):
            await commit_batch(store, batch, b"token...")
        assert sql(path, "SELECT * FROM person") == []
        assert await store.head() == (0, b"")

    run(path, scenario, PERSON)


# The same commits on both stores.


def random_document(chance: Random, table_id: int, made: bytes) -> Document:
    """A row of one of the three tables, an edit of one of its cells, or its end."""
    values_by_table: dict[int, dict[int, Value]] = {
        1: {2: chance.choice("ab")},
        2: {2: chance.choice([None, 1, 2, 3]), 3: chance.choice("ab")},
        3: {2: chance.choice([None, "a@x", "b@x", "c@x"]), 4: chance.randint(1, 9)},
    }
    values = values_by_table[table_id]
    one = chance.choice(list(values))
    # An edit or the end of a row that is not there is refused, and what follows it ignored.
    kinds = [inserted(made, values), edited(made, {one: values[one]}), deleted(made)]
    return chance.choices(kinds, weights=[12, 2, 1])[0]


def random_batch(chance: Random, last: dict[int, int], step: int) -> list[Changeset]:
    """What two clients push at once: rows that collide on keys, unique values and parents."""
    batch = []
    for replica in (A, B):
        for number in range(last[replica] + 1, last[replica] + chance.randint(2, 4)):
            made = at(NOW + chance.randint(0, 3 * step), replica, number)
            sections = []
            for table_id in (1, 2, 3):
                keys = chance.sample(range(1, 7), chance.randint(0, 2))
                rows = [(key, random_document(chance, table_id, made)) for key in keys]
                sections.append(entries(*rows, table_id=table_id))
            batch.append(changeset(replica, number, *sections))
    chance.shuffle(batch)
    return sorted(batch, key=lambda pushed: pushed.number)


@pytest.mark.parametrize("seed", range(5))
def test_both_stores_take_and_refuse_the_same(path: Path, postgres_url: str, seed: int) -> None:
    chance = Random(seed)
    seen: set[str] = set()

    def outline(outcome: Outcome) -> tuple[object, ...]:
        """All of an outcome but the words of a refusal."""
        verdicts = [
            (v.reason, v.rows) if isinstance(v, Refused) else type(v) for v in outcome.verdicts
        ]
        seen.update(verdict[0] for verdict in verdicts if isinstance(verdict, tuple))
        return outcome.seq, verdicts, outcome.rows

    async def tables(store: Store) -> None:
        await store.describe([LIST, TODO, PERSON], create=True)
        for replica in (A, B):
            await store.greet(replica, 0, (), 0, b"")

    async def scenario() -> None:
        postgres = await open_postgres(postgres_url)
        connection = await asyncpg.connect(postgres_url)
        async with opened(path) as store:
            for each in (store, postgres):
                await tables(each)
            last = {A: 0, B: 0}
            for step in range(40):
                batch = random_batch(chance, last, step)
                outcome = await commit_batch(store, batch, b"token...")
                other = await commit_batch(postgres, batch, b"token...")
                assert outline(outcome) == outline(other)
                for pushed, verdict in zip(batch, outcome.verdicts, strict=True):
                    if verdict == Taken():
                        last[pushed.replica] = pushed.number
            pages = [
                await each.page(3, b"", rows_max=7, bytes_max=ALL) for each in (store, postgres)
            ]
            assert pages[0] == pages[1]
            for name in ("list", "todo", "person"):
                query = f"SELECT * FROM {name} ORDER BY id"
                assert sql(path, query) == list(map(tuple, await connection.fetch(query)))
        assert sql(path, "PRAGMA foreign_key_check") == []
        await connection.close()
        await postgres.close()

    asyncio.run(scenario())
    assert seen >= {"constraint", "need-whole"}
