"""The async API: SQL in transactions of its own, one at a time, whole or not at all."""

import asyncio
import gc
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from reunite import Database, FileError, TableError, UsageError
from reunite.clock import time_of
from reunite.document import decode
from tests.engine.peer import START_MS, Clock, connect

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT UNIQUE, list_id REFERENCES list)"


@pytest.fixture
def use(tmp_path: Path) -> Callable[[Callable[[Database], Awaitable[None]]], None]:
    """Runs a coroutine with an open database that tracks a table."""

    def run(work: Callable[[Database], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with Database(tmp_path / "app.db", clock=Clock()) as db:
                await db.execute("CREATE TABLE list (id INTEGER PRIMARY KEY)")
                await db.execute(TODO)
                await db.track("todo")
                await work(db)
                assert await db.verify() == []

        asyncio.run(whole())

    return run


Use = Callable[[Callable[[Database], Awaitable[None]]], None]


async def titles(db: Database) -> list[str]:
    return [row["title"] for row in await db.fetch_all("SELECT title FROM todo ORDER BY id")]


def test_a_statement_is_a_transaction_and_a_changeset(use: Use) -> None:
    async def work(db: Database) -> None:
        result = await db.execute("INSERT INTO todo (title) VALUES (?)", ("milk",))
        assert (result.rowcount, result.lastrowid, result.rows) == (1, 1, [])
        await db.execute("INSERT INTO todo (title) VALUES (:title)", {"title": "oats"})
        assert await titles(db) == ["milk", "oats"]
        assert await db.on_engine(db.replica.queued) == 2

    use(work)


def test_many_rows_at_once_are_one_changeset(use: Use) -> None:
    async def work(db: Database) -> None:
        rows = [("a",), ("b",)]
        result = await db.executemany("INSERT INTO todo (title) VALUES (?)", rows)
        assert result.rowcount == 2
        assert await db.on_engine(db.replica.queued) == 1

    use(work)


def test_returning_brings_rows_back_from_either_call(use: Use) -> None:
    async def work(db: Database) -> None:
        insert = "INSERT INTO todo (title) VALUES (?) RETURNING id, title"
        (row,) = (await db.execute(insert, ("milk",))).rows
        assert tuple(row) == (1, "milk")
        found = await db.fetch_one(insert, ("oats",))
        assert found is not None
        assert tuple(found) == (2, "oats")
        assert await db.on_engine(db.replica.queued) == 2

    use(work)


def test_a_statement_that_fails_leaves_nothing_behind(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO todo VALUES (1, 'milk', NULL)")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            await db.executemany("INSERT INTO todo (title) VALUES (?)", [("new",), ("milk",)])
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            await db.execute("INSERT INTO todo VALUES (2, 'x', 99)")
        with pytest.raises(sqlite3.OperationalError, match="syntax"):
            await db.execute("INSERT todo")
        assert await titles(db) == ["milk"]
        assert await db.on_engine(db.replica.queued) == 1

    use(work)


def test_a_transaction_is_one_changeset_with_one_time(use: Use, tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO todo (title) VALUES ('a')")
            await tx.executemany("INSERT INTO todo (title) VALUES (?)", [("b",)])
            assert len(await tx.fetch_all("SELECT id FROM todo")) == 2
        assert await titles(db) == ["a", "b"]
        assert await db.on_engine(db.replica.queued) == 1
        conn = connect(tmp_path / "app.db")
        documents = [decode(row[0]) for row in conn.execute("SELECT visible FROM _reunite_rows")]
        conn.close()
        assert {time_of(document.edited) for document in documents} == {START_MS << 16}

    use(work)


def test_a_transaction_that_raises_is_rolled_back(use: Use) -> None:
    async def work(db: Database) -> None:
        async def fails() -> None:
            async with db.transaction() as tx:
                await tx.execute("INSERT INTO todo (title) VALUES ('a')")
                raise KeyError

        with pytest.raises(KeyError):
            await fails()
        await db.execute("INSERT INTO todo (title) VALUES ('b')")
        assert await titles(db) == ["b"]

    use(work)


@pytest.mark.parametrize("steps", range(8))
def test_a_transaction_whose_task_is_cancelled_is_rolled_back(use: Use, steps: int) -> None:
    async def work(db: Database) -> None:
        async def doomed() -> None:
            async with db.transaction() as tx:
                await tx.execute("INSERT INTO todo (title) VALUES ('doomed')")
                await asyncio.Event().wait()

        task = asyncio.create_task(doomed())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await db.execute("INSERT INTO todo (title) VALUES ('next')")
        assert await titles(db) == ["next"]

    use(work)


def test_cancelling_a_write_leaves_it_whole_or_undone(use: Use) -> None:
    async def work(db: Database) -> None:
        for number in range(20):
            task = asyncio.create_task(
                db.executemany(
                    "INSERT INTO todo (title) VALUES (?)", [(f"{number}a",), (f"{number}b",)]
                )
            )
            for _ in range(number % 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await db.execute("INSERT INTO todo (title) VALUES ('last')")
        found = await titles(db)
        assert found[-1] == "last"
        assert len(found) % 2 == 1

    use(work)


def test_a_write_goes_before_what_the_engine_has_not_begun(use: Use) -> None:
    async def work(db: Database) -> None:
        order: list[str] = []

        async def write() -> None:
            await db.execute("INSERT INTO todo (title) VALUES ('a')")
            order.append("write")

        other = connect(db.path)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(write())
        await asyncio.sleep(0)
        working = asyncio.create_task(db.on_engine(order.append, "engine"))
        await asyncio.sleep(0)
        other.execute("ROLLBACK")
        other.close()
        await asyncio.gather(writing, working)
        assert order == ["write", "engine"]

    use(work)


def test_writers_take_turns(use: Use) -> None:
    async def work(db: Database) -> None:
        async def add(name: str) -> None:
            async with db.transaction() as tx:
                before = len(await tx.fetch_all("SELECT id FROM todo"))
                await tx.execute("INSERT INTO todo VALUES (?, ?, NULL)", (before + 1, name))

        await asyncio.gather(*(add(str(number)) for number in range(10)))
        assert sorted(await titles(db)) == sorted(map(str, range(10)))

    use(work)


def test_the_database_inside_its_own_transaction_says_what_to_use(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.transaction() as tx:
            for call in (
                db.execute("SELECT 1"),
                db.executemany("SELECT ?", [(1,)]),
                db.fetch_all("SELECT 1"),
                db.fetch_one("SELECT 1"),
                db.track("list"),
            ):
                with pytest.raises(UsageError, match=r"tx\.execute"):
                    await call
            with pytest.raises(UsageError, match=r"tx\.execute"):
                async with db.transaction():
                    pass
            await tx.execute("INSERT INTO todo (title) VALUES ('a')")
        assert await titles(db) == ["a"]

    use(work)


def test_a_transaction_that_has_ended_says_so(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.transaction() as tx:
            pass
        with pytest.raises(UsageError, match="ended"):
            await tx.execute("SELECT 1")

    use(work)


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_ending_a_transaction_by_sql_is_refused_and_harms_nothing(use: Use, end: str) -> None:
    async def work(db: Database) -> None:
        async def ends() -> None:
            async with db.transaction() as tx:
                await tx.execute("INSERT INTO todo (title) VALUES ('a')")
                await tx.execute(end)

        with pytest.raises(UsageError, match="COMMIT"):
            await ends()
        await db.execute("INSERT INTO todo (title) VALUES ('b')")
        assert (await titles(db))[-1] == "b"

    use(work)


def test_savepoints_work_inside_a_transaction(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.transaction() as tx:
            await tx.execute("SAVEPOINT s")
            await tx.execute("INSERT INTO todo (title) VALUES ('gone')")
            await tx.execute("ROLLBACK TO s")
            await tx.execute("INSERT INTO todo (title) VALUES ('kept')")
        assert await titles(db) == ["kept"]

    use(work)


@pytest.mark.parametrize(
    "sql", ["VACUUM", "vacuum;", "\n PRAGMA\tuser_version = 7", "-- x\nVACUUM"]
)
def test_statements_that_sqlite_refuses_in_a_transaction_run_alone(use: Use, sql: str) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO todo (title) VALUES ('a')")
        await db.execute(sql)
        assert await titles(db) == ["a"]

    use(work)


def test_what_another_program_wrote_is_read_at_once_and_never_lost(
    use: Use, tmp_path: Path
) -> None:
    async def work(db: Database) -> None:
        other = connect(tmp_path / "app.db")
        other.execute("INSERT INTO todo (title) VALUES ('theirs')")
        other.close()
        assert await titles(db) == ["theirs"]
        await db.execute("UPDATE todo SET title = 'ours'")
        assert await db.on_engine(db.replica.queued) == 2

    use(work)


def test_a_migration_through_the_api_is_taken_in(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("ALTER TABLE todo ADD COLUMN note TEXT")
        await db.execute("INSERT INTO todo (title, note) VALUES ('a', 'b')")
        await db.execute("CREATE UNIQUE INDEX u ON todo (note)")
        await db.execute("INSERT OR REPLACE INTO todo (title, note) VALUES ('c', 'b')")
        assert await titles(db) == ["c"]

    use(work)


def test_tracking_is_all_or_nothing_and_says_what_is_new(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("CREATE TABLE keyless (x)")
        with pytest.raises(TableError, match="keyless"):
            await db.track_all()
        assert await db.track("list", "todo") == ["list"]
        await db.execute("DROP TABLE keyless")
        assert await db.track_all() == []

    use(work)


def test_listeners_hear_of_commits_until_they_leave(use: Use) -> None:
    async def work(db: Database) -> None:
        heard: list[int] = []
        leave = db.on_change(lambda: heard.append(1))
        await db.execute("INSERT INTO todo (title) VALUES ('a')")
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO todo (title) VALUES ('b')")
        assert len(heard) == 2
        leave()
        await db.execute("INSERT INTO todo (title) VALUES ('c')")
        assert len(heard) == 2

    use(work)


def test_what_could_not_be_synced_can_be_read(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("CREATE TABLE t (k TEXT PRIMARY KEY)")
        await db.track("t")
        await db.execute("INSERT INTO t VALUES (NULL)")
        (line,) = await db.rejected()
        assert (line["table"], line["reason"]) == ("t", "local")

    use(work)


def test_two_databases_on_one_file_both_write(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "app.db"
        async with Database(path) as a, Database(path) as b:
            await a.execute(TODO.replace("REFERENCES list", "INT"))
            await a.track("todo")
            await asyncio.gather(
                *(
                    db.execute("INSERT INTO todo (title) VALUES (?)", (f"{name}{number}",))
                    for number in range(10)
                    for name, db in (("a", a), ("b", b))
                )
            )
            assert len(await titles(a)) == len(await titles(b)) == 20
            assert await a.on_engine(a.replica.queued) == 20
            assert await b.verify() == []

    asyncio.run(run())


def test_closing_while_work_is_under_way_finishes_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with Database(tmp_path / "app.db") as db:
            await db.execute(TODO.replace("REFERENCES list", "INT"))
            task = asyncio.create_task(db.execute("INSERT INTO todo (title) VALUES ('a')"))
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)
        async with Database(tmp_path / "app.db") as again:
            assert await titles(again) in ([], ["a"])

    asyncio.run(run())


def test_a_write_that_was_cancelled_is_finished_while_the_database_closes(tmp_path: Path) -> None:
    async def work() -> None:
        unheard: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        db = Database(tmp_path / "app.db")
        await db.open()
        await db.execute("CREATE TABLE list (id INTEGER PRIMARY KEY)")
        await db.track("list")
        stranger = connect(tmp_path / "app.db")
        stranger.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(db.execute("INSERT INTO list VALUES (1)"))
        await asyncio.sleep(0)
        task.cancel()
        closing = asyncio.create_task(db.close())
        await asyncio.sleep(0)
        stranger.execute("ROLLBACK")
        await closing
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        assert unheard == []
        assert stranger.execute("SELECT id FROM list").fetchall() == [(1,)]
        stranger.close()

    asyncio.run(work())


def test_what_waits_for_a_write_when_the_database_is_closed_is_told_so(tmp_path: Path) -> None:
    async def work() -> None:
        db = Database(tmp_path / "app.db")
        await db.open()
        await db.execute("CREATE TABLE list (id INTEGER PRIMARY KEY)")
        await db.track("list")
        stranger = connect(tmp_path / "app.db")
        stranger.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(db.execute("INSERT INTO list VALUES (1)"))
        await asyncio.sleep(0)
        asking = asyncio.create_task(db.changes())
        await asyncio.sleep(0)
        closing = asyncio.create_task(db.close())
        await asyncio.sleep(0)
        stranger.execute("ROLLBACK")
        with pytest.raises(UsageError, match="closed while this waited"):
            await asking
        await closing
        await writing
        stranger.close()

    asyncio.run(work())


def test_a_database_is_opened_and_closed_by_one_at_a_time(tmp_path: Path) -> None:
    async def work() -> None:
        async with asyncio.timeout(10):
            db = Database(tmp_path / "app.db")
            await db.open()
            await asyncio.gather(db.close(), db.close())
            await db.open()
            closing = asyncio.create_task(db.close())
            await asyncio.sleep(0)
            await db.open()
            await closing
            assert await db.execute("CREATE TABLE list (id INTEGER PRIMARY KEY)")
            await db.close()

    asyncio.run(work())


def test_a_file_error_is_one_of_ours(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(FileError):
            await Database(tmp_path / "none" / "app.db").open()

    asyncio.run(run())


def test_a_statement_of_sqlalchemy_is_told_where_it_belongs(use: Use) -> None:
    async def work(db: Database) -> None:
        statement: Any = select(1)
        for run in (db.execute, db.fetch_all):
            with pytest.raises(UsageError, match=r"db\.session\(\)"):
                await run(statement)
        with pytest.raises(UsageError, match=r"db\.session\(\)"):
            await db.executemany(statement, [()])

    use(work)
