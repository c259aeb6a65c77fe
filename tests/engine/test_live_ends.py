"""Live queries that fail, end, become stale or are ended."""

import asyncio
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
from sqlalchemy import text

from reunite import Database, UsageError
from reunite.board import STATEMENTS_KEPT, Board, Found, Query, Reader
from reunite.turns import Turns
from tests.engine.live import TITLES, Use, add, run, until, values
from tests.engine.peer import Peer, connect

FOREVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Runs a coroutine with an open database that tracks `list` and `todo`."""
    return partial(run, tmp_path / "app.db")


# Errors and ends.


def test_an_error_reaches_the_stream_and_the_stream_lives(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch("SELECT * FROM later")
        with pytest.raises(sqlite3.OperationalError, match="no such table: later"):
            await anext(watch)
        waiting = asyncio.ensure_future(values(watch))
        await add(db, "a")
        await db.execute("CREATE TABLE later (x)")
        assert await waiting == []
        await db.execute("INSERT INTO later VALUES (1)")
        assert await values(watch) == [1]
        await db.execute("DROP TABLE later")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await anext(watch)

    use(work)


@pytest.mark.parametrize(
    ("query", "parameters", "error"),
    [
        ("DELETE FROM todo", (), UsageError),
        ("INSERT INTO todo (id) VALUES ('x') RETURNING id", (), UsageError),
        ("CREATE TABLE x (y)", (), UsageError),
        ("SELECT ?", (), sqlite3.ProgrammingError),
        ("SELECT ?", (object(),), sqlite3.Error),
        ("COMMIT", (), UsageError),
        ("ATTACH 'other.db' AS other", (), UsageError),
        ("no SQL", (), sqlite3.OperationalError),
    ],
)
def test_what_is_no_query_says_so(
    use: Use, query: str, parameters: tuple[Any, ...], error: type[Exception]
) -> None:
    async def work(db: Database) -> None:
        with pytest.raises(error):
            await anext(db.watch(query, parameters))
        assert await values(db.watch("SELECT count(*) FROM todo")) == [0]

    use(work)


def test_closing_the_database_ends_who_waits_and_who_does_not(tmp_path: Path) -> None:
    async def work() -> None:
        db = Database(tmp_path / "app.db")
        await db.open()
        await db.execute("CREATE TABLE todo (id TEXT PRIMARY KEY)")
        waits, paused, new = (db.watch("SELECT id FROM todo") for _ in range(3))
        await anext(waits)
        await anext(paused)
        waiting = asyncio.ensure_future(anext(waits))
        await asyncio.sleep(0)
        await db.close()
        for ended in (waiting, anext(paused), anext(new)):
            with pytest.raises(StopAsyncIteration):
                await ended
        with pytest.raises(UsageError, match="not open"):
            db.watch("SELECT 1")
        async with db:
            assert await values(db.watch("SELECT 1")) == [1]

    asyncio.run(work())


def test_closing_does_not_wait_for_a_long_query(tmp_path: Path) -> None:
    async def work() -> None:
        async with Database(tmp_path / "app.db") as db:
            waiting = asyncio.ensure_future(anext(db.watch(FOREVER)))
            await until(lambda: bool(db._live._running))
        with pytest.raises(StopAsyncIteration):
            await waiting

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_long_query_that_nobody_waits_for_is_ended(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(FOREVER)
        waiting = asyncio.ensure_future(anext(watch))
        await until(lambda: bool(db._live._running))
        waiting.cancel()
        assert await values(db.watch("SELECT 1")) == [1]

    use(work)


def test_a_watch_that_is_closed_ends(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.watch(TITLES) as watch:
            assert "SELECT title" in repr(watch)
            await anext(watch)
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
        for ended in (waiting, anext(watch)):
            with pytest.raises(StopAsyncIteration):
                await ended
        assert "closed" in repr(watch)
        async for rows in db.watch(TITLES):
            assert rows == []
            break

    use(work)


REJECT = (
    'INSERT INTO reunite_rejected (at_ms, "table", key, kind, reason, message, "values")'
    " VALUES (0, 'todo', ?, 'insert', 'constraint', 'why', '{}')"
)


def test_who_gives_up_waiting_for_a_rejection_is_told_it_the_next_time(use: Use) -> None:
    async def work(db: Database) -> None:
        lines = db.watch_rejected()
        assert repr(lines) == "Watch('rejected')"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(lines), 0.05)
        await db.executemany(REJECT, [("a",), ("b",)])
        told = [await anext(lines)]
        waiting = asyncio.ensure_future(anext(lines))
        waiting.cancel()
        await asyncio.wait([waiting])
        told.append(await anext(lines))
        assert [line["key"] for line in told] == ["a", "b"]
        waiting = asyncio.ensure_future(anext(lines))
        await db.execute(REJECT, ("c",))
        await until(lambda: lines._waiter is not None and lines._waiter.done())
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert (await anext(lines))["key"] == "c"
        async with lines:
            waiting = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await waiting

    use(work)


def test_an_error_does_not_end_the_stream_of_rejections(use: Use) -> None:
    async def work(db: Database) -> None:
        lines = db.watch_rejected()
        await db.execute("ALTER TABLE reunite_rejected RENAME TO away")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await anext(lines)
        await db.execute("ALTER TABLE away RENAME TO reunite_rejected")
        await db.execute(REJECT, ("a",))
        async with asyncio.timeout(5):
            assert (await anext(lines))["key"] == "a"

    use(work)


# A result that has become stale.


def test_a_result_that_a_commit_has_made_stale_is_dropped(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "app.db", 1, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    peer.track("t")
    reader = connect(peer.path)
    ran = []

    def run(on: Reader) -> Found:
        rows = on.fetch_all("SELECT id FROM t", ())
        ran.append([row[0] for row in rows])
        if len(ran) < 3:
            # Somebody commits while the result is on its way.
            peer.commit(f"INSERT INTO t VALUES ({len(ran)})")
        return Found(rows, rows)

    query = Query(run)
    board = Board(peer.replica.turns, clock=lambda: 0.0)
    board.refresh(reader, [ref(query)], [query], [query])
    assert ran == [[], [1], [1, 2]]
    assert query.version == 1
    assert query.found is not None
    assert [row[0] for row in query.found.told] == [1, 2]
    reader.close()
    peer.close()


def test_where_commits_never_end_what_was_true_is_told(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "app.db", 1, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    reader = connect(peer.path)

    def run(on: Reader) -> Found:
        rows = on.fetch_all("SELECT id FROM t", ())
        peer.write("INSERT INTO t VALUES (NULL)")
        return Found(rows, rows)

    query = Query(run)
    ticks = iter(range(1000))
    board = Board(Turns(), clock=lambda: next(ticks) / 100)
    board.refresh(reader, [ref(query)], [query], [query])
    assert query.version == 1
    reader.close()
    peer.close()


def test_what_was_found_when_a_run_was_ended_is_found_again(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "app.db", 1, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    reader = connect(peer.path)
    board = Board(Turns())

    def run(on: Reader) -> Found:
        rows = on.fetch_all("SELECT id FROM t", ())
        return Found(rows, rows)

    def run_long(on: Reader) -> Found:
        board.abandoned = True
        rows = on.fetch_all(FOREVER, ())
        return Found(rows, rows)

    first, long = Query(run), Query(run_long)
    both = [first, long]
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        board.refresh(reader, map(ref, both), both, both)
    assert first.version == 0
    board.abandoned = False
    board.refresh(reader, [ref(first)], [first], [first])
    assert first.version == 1
    reader.close()
    peer.close()


def test_changes_inside_a_transaction_are_the_transactions(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO todo (id) VALUES ('a')")
            with pytest.raises(UsageError, match="transaction"):
                await db.changes()
            with pytest.raises(UsageError, match="transaction"):
                db.watch_changes()
            assert [change.key for change in await tx.changes()] == ["l"]

    use(work)


def test_who_waits_already_is_not_joined(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch_changes()
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="waits"):
            await anext(watch)
        await add(db, "a")
        assert [change.key for change in await waiting] == ["a"]

    use(work)


def test_watches_go_on_while_another_program_holds_the_file(use: Use) -> None:
    async def work(db: Database) -> None:
        other = connect(db.path)
        changes, rows = db.watch_changes("todo"), db.watch(TITLES)
        await anext(changes)
        assert await values(rows) == []
        told = asyncio.ensure_future(anext(changes))
        other.execute("INSERT INTO todo (id, title) VALUES ('a', 'by a tool')")
        other.execute("BEGIN IMMEDIATE")
        assert await values(rows) == ["by a tool"]
        folds = 0
        follow = db.replica.follow_changes

        def counted(*, wait: bool = True) -> bool:
            nonlocal folds
            folds += 1
            return follow(wait=wait)

        db.replica.follow_changes = counted  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            for number in range(3):
                await values(db.watch("SELECT ?", (number,)))
        assert folds <= 4, "it is not tried without a pause"
        other.execute("COMMIT")
        assert [change.key for change in await told] == ["a"]
        other.close()

    use(work)


def test_a_statement_of_sqlalchemy_that_is_no_query_is_refused(use: Use) -> None:
    async def work(db: Database) -> None:
        rows = db.watch(TITLES)
        assert await values(rows) == []
        for statement in ("COMMIT", "INSERT INTO todo (id) VALUES ('x')"):
            with pytest.raises(UsageError, match="only a query"):
                await anext(db.watch(text(statement)))
        await add(db, "a")
        assert await values(rows) == ["a"]

    use(work)


def test_what_is_remembered_of_turns_and_statements_has_an_end(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(TITLES)
        await anext(watch)
        for number in range(1100):
            await anext(db.watch(f"SELECT {number} FROM list"))
        reader = db._live._board._reader
        assert reader is not None
        assert len(reader._tables_by_sql) <= STATEMENTS_KEPT
        await add(db, "a")
        assert await values(watch) == ["a"]

    use(work)
    turns = Turns()
    for turn in range(0, 40_000, 2):
        turns.note(turn, frozenset())
    assert len(turns._tables_by_turn) == 4096


def test_what_a_query_reads_is_known_also_when_its_first_run_was_ended(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "app.db", 1, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    reader = connect(peer.path)
    on = Reader(reader)
    reader.set_progress_handler(lambda: True, 1)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        on.fetch_all("SELECT id FROM t", ())
    reader.set_progress_handler(None, 0)
    on.names_read()
    on.fetch_all("SELECT id FROM t", ())
    assert on.names_read() == frozenset({"t"})
    reader.close()
    peer.close()
