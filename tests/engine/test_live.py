"""Live queries: what `watch` promises, each promise of drift's streams among it."""

import asyncio
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reunite import Database, UsageError
from tests.engine.live import TITLES, Quiet, Use, add, first, run, runs, until, values
from tests.engine.loopback import Relay
from tests.engine.peer import Peer, connect


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Runs a coroutine with an open database that tracks `list` and `todo`."""
    return partial(run, tmp_path / "app.db")


async def fail_halfway(db: Database) -> None:
    """A transaction that ends with an error."""
    async with db.transaction() as tx:
        await tx.execute("INSERT INTO todo (id, title) VALUES ('x', 'x')")
        await tx.execute("no SQL")


# What it follows.


def test_a_snapshot_comes_at_once_and_then_each_change(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        assert await values(watch) == []
        await add(db, "a")
        assert await values(watch) == ["a"]
        await db.execute("UPDATE todo SET title = 'b'")
        assert await values(watch) == ["b"]
        await db.execute("DELETE FROM todo")
        assert await values(watch) == []

    use(work)


@pytest.mark.parametrize(
    ("query", "change", "before", "after"),
    [
        (
            "SELECT t.title FROM todo AS t JOIN list AS l ON l.id = t.list WHERE l.name = 'shop'",
            "UPDATE list SET name = 'none'",
            ["a"],
            [],
        ),
        ("SELECT title FROM open", "UPDATE todo SET done = 1", ["a"], []),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2)"
            " SELECT i FROM n, todo",
            "DELETE FROM todo",
            [1, 2],
            [],
        ),
        ("SELECT count(*) FROM TODO", "DELETE FROM todo", [1], [0]),
        ("SELECT (SELECT max(name) FROM list) FROM todo", "DELETE FROM list", ["shop"], [None]),
        ("SELECT title FROM draft", "INSERT INTO draft VALUES ('d', 'D')", [], ["D"]),
        (
            "SELECT state FROM reunite_rows WHERE \"table\" = 'todo'",
            "DELETE FROM todo WHERE id = 'a'",
            ["pending"],
            ["pending"] * 2,
        ),
        ("SELECT upper(title) FROM todo, json_each('[1]')", "DELETE FROM todo", ["A"], []),
    ],
    ids=["join", "view", "cte", "other case", "subquery", "untracked", "rows' state", "function"],
)
def test_any_query_is_followed_without_naming_tables(
    use: Use, query: str, change: str, before: list[Any], after: list[Any]
) -> None:
    async def work(db: Database) -> None:
        await add(db, "a")
        watch = db.watch(query)
        assert await values(watch) == before
        if "reunite_rows" in query:
            await add(db, "b")
        else:
            await db.execute(change)
        assert (await values(watch))[-len(after) or None :] == after

    use(work)


def test_what_an_apps_trigger_writes_is_followed(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        assert await values(watch) == []
        await db.execute("INSERT INTO list VALUES ('m', 'more')")
        assert await values(watch) == ["first"]

    use(work)


def test_one_row_is_followed(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch_one("SELECT title FROM todo WHERE id = :id", {"id": "a"})
        assert await anext(watch) is None
        await add(db, "a")
        row = await anext(watch)
        assert row is not None
        assert row["title"] == "a"

    use(work)


def test_one_row_says_nothing_of_the_others(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch_one(TITLES)
        await add(db, "a")
        assert await first(watch) == ["a"]
        waiting = asyncio.ensure_future(first(watch))
        await add(db, "b")
        counted = db.watch("SELECT count(*) FROM todo")
        assert await values(counted) == [2]
        assert not waiting.done()
        await db.execute("DELETE FROM todo WHERE id = 'a'")
        assert await waiting == ["b"]

    use(work)


def test_rows_become_objects(use: Use) -> None:
    @dataclass
    class Todo:
        id: str
        title: str

    async def work(db: Database) -> None:
        await add(db, "a")
        query = "SELECT id, title FROM todo"
        assert await anext(db.watch(query, into=Todo)) == [Todo("a", "a")]
        assert await anext(db.watch_one(query, into=Todo)) == Todo("a", "a")
        assert await db.fetch_all(query, into=Todo) == [Todo("a", "a")]
        assert await db.fetch_one(query, into=Todo) == Todo("a", "a")
        assert await db.fetch_one(f"{query} WHERE id = ?", ("x",), into=Todo) is None
        async with db.transaction() as tx:
            assert await tx.fetch_all(query, into=Todo) == [Todo("a", "a")]
            assert await tx.fetch_one(query, into=Todo) == Todo("a", "a")

    use(work)


# When it says nothing.


def test_a_commit_that_changes_nothing_is_not_told(use: Use) -> None:
    async def work(db: Database) -> None:
        await add(db, "a")
        watch = db.watch(TITLES)
        assert await values(watch) == ["a"]
        quiet = Quiet(db, watch)
        await db.execute("UPDATE todo SET title = title")
        await db.execute("UPDATE todo SET done = 1")
        await quiet.check()
        await add(db, "b")
        assert await quiet.next == ["a", "b"]

    use(work)


def test_another_storage_class_is_another_value(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO draft VALUES ('d', 'x')")
        watch = db.watch("SELECT CASE title WHEN 'x' THEN 1 ELSE 1.0 END FROM draft")
        assert str(await values(watch)) == "[1]"
        await db.execute("UPDATE draft SET title = 'y'")
        assert str(await values(watch)) == "[1.0]"

    use(work)


def test_equal_queries_of_other_types_are_other_queries(use: Use) -> None:
    async def work(db: Database) -> None:
        kinds = [
            await values(db.watch("SELECT typeof(?)", (value,))) for value in (1, 1.0, "1", b"1")
        ]
        assert kinds == [["integer"], ["real"], ["text"], ["blob"]]

    use(work)


def test_nothing_is_told_inside_a_transaction_nor_of_one_that_is_rolled_back(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        assert await values(watch) == []
        quiet = Quiet(db, watch)
        with pytest.raises(sqlite3.OperationalError):
            await fail_halfway(db)
        await quiet.check()
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO todo (id, title) VALUES ('a', 'a')")
            await tx.execute("SAVEPOINT inner")
            await tx.execute("INSERT INTO todo (id, title) VALUES ('b', 'b')")
            await tx.execute("RELEASE inner")
            draft = db.watch("SELECT title FROM draft")
            assert await values(draft) == []
            assert not quiet.next.done()
        assert await quiet.next == ["a", "b"]

    use(work)


def test_who_is_slow_gets_the_latest_and_no_backlog(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        assert await values(watch) == []
        await add(db, *"abcdef")
        assert await values(watch) == list("abcdef")
        quiet = Quiet(db, watch)
        await quiet.check()
        quiet.next.cancel()

    use(work)


def test_who_comes_back_is_told_only_what_is_new(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        assert await values(watch) == []
        await add(db, "a")
        await db.execute("DELETE FROM todo")
        quiet = Quiet(db, watch)
        await quiet.check()
        await add(db, "b")
        assert await quiet.next == ["b"]

    use(work)


# What it costs.


def test_equal_queries_are_run_once(use: Use) -> None:
    async def work(db: Database) -> None:
        watches = [db.watch("SELECT title FROM todo WHERE list = ?", ["l"]) for _ in range(50)]
        assert await values(watches[0]) == []
        found = runs(db)
        rest = [await values(watch) for watch in watches[1:]]
        assert rest == [[]] * 49
        assert found == [], "they are told what the first was told"
        waiting = [asyncio.ensure_future(values(watch)) for watch in watches]
        await asyncio.sleep(0)
        await add(db, "a")
        assert await asyncio.gather(*waiting) == [["a"]] * 50
        assert len(found) == 1

    use(work)


def test_a_list_is_everybodys_own(use: Use) -> None:
    async def work(db: Database) -> None:
        await add(db, "a")
        one, two = db.watch(TITLES), db.watch(TITLES)
        (await anext(one)).clear()
        assert await values(two) == ["a"]

    use(work)


def test_queries_that_read_other_tables_are_not_run(use: Use) -> None:
    async def work(db: Database) -> None:
        lists, todos = db.watch("SELECT name FROM list"), db.watch(TITLES)
        await anext(lists)
        await anext(todos)
        waiting = asyncio.ensure_future(anext(lists))
        found = runs(db)
        await add(db, "a")
        assert await values(todos) == ["a"]
        assert found == [TITLES]
        waiting.cancel()

    use(work)


def test_nothing_is_done_while_nobody_waits(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        await anext(watch)
        live = db._live
        await until(lambda: live._task is not None and live._task.done())
        found = runs(db)
        await add(db, "a")
        assert live._task is not None
        assert live._task.done()
        assert found == []
        assert await values(watch) == ["a"]
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        assert len(live._waiting) == 1
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not live._waiting
        del watch, waiting
        # It is forgotten with the last who has it.
        await until(lambda: not list(live._queries))

    use(work)


# Whose writes.


def test_another_connections_writes_are_told(use: Use) -> None:
    async def work(db: Database) -> None:
        other = connect(db.path)
        watch, draft = db.watch(TITLES), db.watch("SELECT title FROM draft")
        assert await values(watch) == await values(draft) == []
        other.execute("INSERT INTO todo (id, title) VALUES ('a', 'by a tool')")
        assert await values(watch) == ["by a tool"]
        other.execute("INSERT INTO draft VALUES ('d', 'untracked')")
        assert await values(draft) == ["untracked"]
        other.execute("CREATE VIEW later AS SELECT title FROM draft")
        later = db.watch("SELECT * FROM later")
        assert await values(later) == ["untracked"]
        other.execute("DROP VIEW later")
        other.execute("CREATE VIEW later AS SELECT title FROM todo")
        assert await values(later) == ["by a tool"]
        other.close()

    use(work)


def test_a_tracked_table_that_another_program_makes_anew_is_followed(use: Use) -> None:
    async def work(db: Database) -> None:
        other = connect(db.path)
        watch = db.watch(TITLES)
        assert await values(watch) == []
        # With the table its triggers are gone, and nobody writes here who would put them back.
        other.executescript(
            "DROP TABLE todo; CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT);"
            "INSERT INTO todo VALUES ('a', 'first')"
        )
        assert await values(watch) == ["first"]
        other.execute("UPDATE todo SET title = 'second'")
        assert await values(watch) == ["second"]
        other.executescript("DROP TABLE todo")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await anext(watch)
        # Let go by a fold that does not touch the schema.
        await db.execute("UPDATE list SET name = 'other'")
        other.execute("CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT)")
        assert await values(watch) == []
        await db.execute("UPDATE list SET name = 'another'")
        other.execute("INSERT INTO todo VALUES ('a', 'third')")
        assert await values(watch) == ["third"]
        other.close()

    use(work)


def test_changes_of_a_table_that_another_program_makes_anew_are_told(use: Use) -> None:
    async def work(db: Database) -> None:
        other = connect(db.path)
        await add(db, "a")
        watch = db.watch_changes("todo")
        await anext(watch)
        other.executescript(
            "BEGIN; DROP TABLE todo; CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT);"
            "INSERT INTO todo VALUES ('a', 'again'); COMMIT"
        )
        ((kind, key),) = [(change.kind, change.key) for change in await anext(watch)]
        assert (kind, key) == ("updated", "a")
        other.close()

    use(work)


@pytest.mark.parametrize(
    "query", ["PRAGMA user_version", "SELECT user_version FROM pragma_user_version"]
)
def test_a_pragma_is_followed(use: Use, query: str) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(query)
        assert await values(watch) == [0]
        await db.execute("PRAGMA user_version = 7")
        assert await values(watch) == [7]

    use(work)


def test_another_process_with_an_engine_is_noticed(use: Use) -> None:
    program = """
import asyncio, sys
from reunite import Database
async def main():
    async with Database(sys.argv[1]) as db:
        await db.execute("INSERT INTO todo (id, title) VALUES ('p', 'by a process')")
asyncio.run(main())
"""

    async def work(db: Database) -> None:
        watch, changes = db.watch(TITLES), db.watch_changes()
        assert await values(watch) == []
        await anext(changes)
        waiting = asyncio.ensure_future(values(watch))
        told = asyncio.ensure_future(anext(changes))
        await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, str(db.path)], check=True
        )
        assert await waiting == ["by a process"]
        assert [(change.key, change.origin) for change in await told] == [("p", "here")]

    use(work)


def test_merges_and_backend_writes_are_told(use: Use, tmp_path: Path, relay: Relay) -> None:
    async def work(db: Database) -> None:
        peer = Peer(tmp_path / "peer.db", 7)
        watch = db.watch(TITLES)
        await db.on_engine(relay.sync, db)
        await asyncio.to_thread(lambda: None)
        relay.sync(peer)
        assert await values(watch) == []
        peer.commit("INSERT INTO todo (id, title) VALUES ('r', 'by a replica')")
        relay.sync(peer)
        await db.on_engine(relay.sync, db)
        assert await values(watch) == ["by a replica"]
        relay.edit("todo", ("r",), 10, title="by a backend")
        await db.on_engine(relay.sync, db)
        assert await values(watch) == ["by a backend"]
        peer.close()

    use(work)


# Changes of all tables, and their tokens.


def test_changes_are_followed_from_a_token_on(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch_changes("todo")
        token = (await anext(watch)).token
        await add(db, "a")
        (change,) = await anext(watch)
        assert (change.kind, change.key, change.origin) == ("inserted", "a", "here")
        async with db.transaction(origin="shop") as tx:
            await tx.execute("INSERT INTO todo (id) VALUES ('fetched')")
            await tx.execute("UPDATE todo SET done = 1 WHERE id = 'a'")
        again = await anext(db.watch_changes(after=token))
        assert {(c.key, c.kind, c.origin) for c in again} == {
            ("a", "inserted", "here"),
            ("a", "updated", "shop"),
            ("fetched", "inserted", "shop"),
        }
        assert {(c.key, c.origin) for c in await anext(watch)} == {
            ("a", "shop"),
            ("fetched", "shop"),
        }
        waiting = asyncio.ensure_future(anext(watch))
        await db.execute("UPDATE list SET name = 'other'")
        assert await anext(db.watch_changes("list", after=again.token))
        assert not waiting.done()
        waiting.cancel()

    use(work)


def test_an_origin_is_kept_from_the_first_time_on(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.transaction(origin="shop") as tx:
            await tx.execute("INSERT INTO todo (id) VALUES ('fetched')")
        origins = {change.key: change.origin for change in await anext(db.watch_changes())}
        assert origins == {"l": "here", "fetched": "shop"}
        with pytest.raises(UsageError, match="origin"):
            async with db.transaction(origin="here"):
                pass

    use(work)


def test_the_first_who_follows_changes_waits_for_a_transaction_and_nobody_else_does(
    use: Use,
) -> None:
    async def work(db: Database) -> None:
        changes, rows = db.watch_changes("todo"), db.watch(TITLES)
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO todo (id, title) VALUES ('a', 'A')")
            told = asyncio.ensure_future(anext(changes))
            async with asyncio.timeout(5):
                assert await values(rows) == []
            assert not told.done()
        assert [change.key for change in await told] == ["a"]

    use(work)


def test_changes_that_are_asked_for_are_those_of_one_moment(use: Use) -> None:
    async def work(db: Database) -> None:
        token = (await db.changes()).token
        async with db.transaction() as tx:
            await tx.execute("UPDATE list SET name = 'before'")
            await tx.execute("INSERT INTO todo (id, title) VALUES ('a', 'before')")
        commits: list[str] = []

        def commit(sql: str) -> None:
            if sql.startswith("SELECT") and 'FROM "todo"' in sql and not commits:
                other = connect(db.path)
                other.execute("BEGIN")
                other.execute("UPDATE list SET name = 'after'")
                other.execute("UPDATE todo SET title = 'after'")
                other.execute("COMMIT")
                other.close()
                commits.append(sql)

        db._engine.conn.set_trace_callback(commit)
        found = {change.table: change.row for change in await db.changes(after=token)}
        db._engine.conn.set_trace_callback(None)
        assert len(commits) == 1
        assert found["list"] == {"id": "l", "name": "before"}
        assert found["todo"] == {"id": "a", "list": None, "title": "before", "done": 0}

    use(work)
