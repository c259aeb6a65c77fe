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
