"""How sessions of SQLAlchemy end: whole or not at all, and never with their turn kept."""

import asyncio
import gc
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError, SAWarning

from reunite import Database, UsageError, changeset, connection
from reunite.replica import Replica
from tests.engine.todo_models import SECONDS_MAX, Base, List, Todo, Use, queued, run, titles


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Runs a coroutine with an open database that has the tables."""
    return lambda work: run(tmp_path / "app.db", work)


@pytest.mark.parametrize("end", ["rollback", "close", "exception", "in its block"])
def test_what_was_not_committed_is_gone(use: Use, end: str) -> None:
    async def work(db: Database) -> None:
        session = db.session()
        if end == "exception":

            async def fail() -> None:
                async with session, session.begin():
                    session.add(Todo(title="milk"))
                    await session.flush()
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fail()
        elif end == "in its block":
            async with session:
                session.add(Todo(title="milk"))
                await session.flush()
        else:
            session.add(Todo(title="milk"))
            await session.flush()
            await (session.rollback() if end == "rollback" else session.close())
        assert not db._lock.locked()
        assert (await titles(db), await queued(db)) == ([], 0)

    use(work)


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_a_task_that_is_cancelled_anywhere_leaves_nothing_held_or_halved(
    use: Use, steps: int
) -> None:
    async def work(db: Database) -> None:
        async def write() -> None:
            async with db.session() as session:
                await session.execute(sa.select(Todo))
                session.add(List(id=1, todos=[Todo(title="milk")]))
                await session.flush()
                await session.execute(sa.insert(Todo), [{"title": str(n)} for n in range(9)])
                await session.commit()

        task = asyncio.create_task(write())
        for _ in range(steps):
            # Each time whatever thread is at work may be further.
            await asyncio.to_thread(int)
        task.cancel()
        await asyncio.wait([task])
        await db.execute("INSERT INTO todo (title) VALUES ('after')")
        assert len(await titles(db)) in (1, 11)
        assert await queued(db) == (1 if len(await titles(db)) == 1 else 2)

    use(work)


def test_a_commit_whose_task_is_cancelled_is_whole(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(db: Database) -> None:
        async def write() -> None:
            async with db.session() as session:
                session.add(Todo(title="milk"))
                await session.flush()
                writing.set_result(None)
                await session.commit()

        heard: list[int] = []
        db.on_change(lambda: heard.append(1))
        writing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(write())
        await writing
        committing = asyncio.Event()
        loop = asyncio.get_running_loop()
        commit = db._commit

        def slow(conn: sqlite3.Connection, own: Replica) -> None:
            loop.call_soon_threadsafe(committing.set)
            commit(conn, own)

        monkeypatch.setattr(db, "_commit", slow)
        await committing.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        # Waits for its turn, and so for the end of the commit.
        async with db.transaction():
            pass
        assert await titles(db) == ["milk"]
        assert len(heard) == 2
        assert await queued(db) == 1

    use(work)


def test_who_gives_up_a_commit_waits_for_its_end_and_is_not_refused(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(db: Database) -> None:
        go_on = threading.Event()
        commit = db._commit

        def slow(conn: sqlite3.Connection, own: Replica) -> int | None:
            go_on.wait()
            return commit(conn, own)

        session = db.session()
        session.add(Todo(title="milk"))
        await session.flush()
        monkeypatch.setattr(db, "_commit", slow)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await session.commit()
        monkeypatch.undo()
        asyncio.get_running_loop().call_soon(go_on.set)
        await db.execute("INSERT INTO todo (title) VALUES ('oats')")
        assert await titles(db) == ["milk", "oats"]
        await session.close()

    use(work)


def test_a_task_that_is_cancelled_while_it_waits_for_its_turn_takes_none(use: Use) -> None:
    async def work(db: Database) -> None:
        async def write() -> None:
            async with db.session() as session:
                session.add(Todo(title="never"))
                await session.commit()

        async with db.transaction() as tx:
            task = asyncio.create_task(write())
            for _ in range(20):
                await asyncio.to_thread(int)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await tx.execute("INSERT INTO todo (title) VALUES ('milk')")
        assert await titles(db) == ["milk"]

    use(work)


def test_a_transaction_that_the_fold_refuses_is_rolled_back(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(db: Database) -> None:
        monkeypatch.setattr(changeset, "CHANGESET_ROWS_MAX", 5)
        async with db.session() as session:
            session.add_all(Todo(title=str(n)) for n in range(6))
            with pytest.raises(UsageError):
                await session.commit()
            assert not db._lock.locked()
            await session.rollback()
            session.add(Todo(title="few"))
            await session.commit()
        assert await titles(db) == ["few"]
        assert await queued(db) == 1

    use(work)


def test_a_transaction_that_sqlite_ends_is_not_gone_on_with(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON list WHEN NEW.id = 13"
            " BEGIN SELECT RAISE(ROLLBACK, 'unlucky'); END"
        )
        async with db.session() as session:
            session.add(Todo(title="milk"))
            await session.flush()
            with pytest.raises(IntegrityError, match="unlucky"):
                await session.execute(sa.text("INSERT INTO list VALUES (13)"))
            with pytest.raises(UsageError, match="roll the session back"):
                await session.execute(sa.text("INSERT INTO list VALUES (14)"))
            with pytest.raises(UsageError):
                await session.commit()
            await session.rollback()
        assert (await titles(db), await queued(db)) == ([], 0)
        assert await db.fetch_all("SELECT id FROM list") == []

    use(work)


def test_a_session_that_was_lost_is_rolled_back(use: Use) -> None:
    async def work(db: Database) -> None:
        async def lose() -> None:
            session = db.session()
            session.add(Todo(title="milk"))
            await session.flush()

        async def lose_and_collect() -> None:
            await asyncio.create_task(lose())
            gc.collect()

        with pytest.warns(SAWarning, match="garbage collector"):
            await lose_and_collect()
        await db.execute("INSERT INTO todo (title) VALUES ('oats')")
        assert await titles(db) == ["oats"]

    use(work)


@pytest.mark.parametrize("timed", [False, True])
def test_a_write_inside_a_session_that_wrote_in_a_task_of_its_own_is_refused(
    use: Use, timed: bool
) -> None:
    async def work(db: Database) -> None:
        write = "INSERT INTO todo (title) VALUES ('other')"
        async with asyncio.timeout(SECONDS_MAX), db.session() as session:
            adding = session.execute(sa.insert(Todo).values(title="milk"))
            # Before Python 3.12 `wait_for` makes such a task, too.
            await (asyncio.wait_for(adding, SECONDS_MAX) if timed else asyncio.create_task(adding))
            with pytest.raises(UsageError, match="inside a transaction"):
                await db.execute(write)
            # Another task is not inside, though it was begun here: it waits.
            other = asyncio.create_task(db.execute(write))
            await asyncio.sleep(0)
            assert not other.done()
            await session.commit()
            await other
        assert await titles(db) == ["milk", "other"]

    use(work)


def test_who_hands_a_session_to_another_task_may_wait_for_it(use: Use) -> None:
    async def work(db: Database) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            session = db.session()
            has_written, may_end = asyncio.Event(), asyncio.Event()

            async def write() -> None:
                async with session:
                    await session.execute(sa.insert(Todo).values(title="milk"))
                    has_written.set()
                    await may_end.wait()
                    await session.commit()

            writing = asyncio.create_task(write())
            await has_written.wait()
            asyncio.get_running_loop().call_later(0.01, may_end.set)
            await db.execute("INSERT INTO todo (title) VALUES ('oats')")
            await writing
        assert await titles(db) == ["milk", "oats"]

    use(work)


@pytest.mark.parametrize("held_by", ["a session", "a transaction"])
def test_writes_that_wait_when_the_database_is_closed_end_at_once(
    tmp_path: Path, held_by: str
) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            db = Database(tmp_path / "app.db")
            await db.open()
            await db.create_all(Base.metadata)
            has_written, may_end = asyncio.Event(), asyncio.Event()

            async def hold_a_session() -> None:
                async with db.session() as session:
                    await session.execute(sa.text("INSERT INTO list VALUES (1)"))
                    has_written.set()
                    await may_end.wait()

            async def hold_a_transaction() -> None:
                async with db.transaction() as tx:
                    await tx.execute("INSERT INTO list VALUES (1)")
                    has_written.set()
                    await may_end.wait()

            hold = hold_a_session if held_by == "a session" else hold_a_transaction
            holding = asyncio.create_task(hold())
            await has_written.wait()
            write = "INSERT INTO list VALUES (2)"
            waiting = [asyncio.create_task(db.execute(write)) for _ in range(20)]
            await asyncio.sleep(0)
            await db.close()
            # Also where it is open again before they have gone on, and the turn is another's.
            await db.open()
            async with db.transaction() as tx:
                for refused in await asyncio.gather(*waiting, return_exceptions=True):
                    assert isinstance(refused, UsageError)
                    assert "not open" in str(refused)
                may_end.set()
                await asyncio.wait([holding])
                assert db._lock.locked()
                await tx.execute("INSERT INTO list VALUES (3)")
            assert [tuple(row) for row in await db.fetch_all("SELECT id FROM list")] == [(3,)]
            await db.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_opened_anew", [False, True])
def test_a_transaction_that_the_database_is_closed_under_is_rolled_back_and_says_so(
    tmp_path: Path, is_opened_anew: bool
) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            db = Database(tmp_path / "app.db")
            await db.open()
            await db.create_all(Base.metadata)

            async def fail() -> None:
                async with db.transaction():
                    await db.close()
                    raise ZeroDivisionError

            async def write(*, more: bool) -> None:
                async with db.transaction() as tx:
                    await tx.execute("INSERT INTO list VALUES (1)")
                    await db.close()
                    if is_opened_anew:
                        await db.open()
                    if more:
                        await tx.execute("INSERT INTO list VALUES (2)")

            for more in (True, False):
                with pytest.raises(UsageError, match="closed under this transaction"):
                    await write(more=more)
                if not is_opened_anew:
                    await db.open()
            with pytest.raises(ZeroDivisionError):
                await fail()
            async with db:
                assert await db.fetch_all("SELECT id FROM list") == []

    asyncio.run(scenario())


def test_a_database_that_is_closed_under_a_session_takes_its_writes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            db = Database(tmp_path / "app.db")
            await db.open()
            await db.create_all(Base.metadata)
            session, reading = db.session(), db.session()
            session.add(Todo(title="milk"))
            await session.flush()
            await db.close()
            with pytest.raises(UsageError):
                await session.execute(sa.text("INSERT INTO list VALUES (1)"))
            with pytest.raises(UsageError):
                await reading.execute(sa.select(Todo))
            # It is opened anew while the session still thinks that it writes.
            await db.open()
            await db.execute("INSERT INTO todo (title) VALUES ('oats')")
            with pytest.raises(UsageError, match="was closed"):
                await session.commit()
            await session.close()
            await reading.close()
            async with db.session() as other:
                assert (await other.scalars(sa.select(Todo.title))).all() == ["oats"]
            assert await db.verify() == []
            await db.close()
            with pytest.raises(UsageError, match="not open"):
                db.session()

    asyncio.run(scenario())


def test_a_session_that_waits_for_the_file_when_it_is_closed_is_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            db = Database(tmp_path / "app.db")
            await db.open()
            await db.create_all(Base.metadata)
            async with db.session() as session:
                await session.execute(sa.text("INSERT INTO list VALUES (1)"))
            stranger = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
            stranger.execute("BEGIN IMMEDIATE")
            session = db.session()
            writing = asyncio.create_task(session.execute(sa.text("INSERT INTO list VALUES (2)")))
            await asyncio.sleep(0)
            assert db._lock.locked()
            closing = asyncio.create_task(db.close())
            await asyncio.sleep(0)
            stranger.execute("ROLLBACK")
            stranger.close()
            with pytest.raises(UsageError, match="closed under this session"):
                await writing
            await closing
            await session.close()

    asyncio.run(scenario())


def test_a_session_whose_turn_finds_the_file_taken_gives_it_up(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_MS", 20)

    async def work(db: Database) -> None:
        other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with db.session() as session:
            write = sa.insert(Todo).values(title="milk")
            with pytest.raises(OperationalError, match="locked"):
                await session.execute(write)
            assert not db._lock.locked()
            other.execute("ROLLBACK")
            other.close()
            await session.execute(write)
            await session.commit()
        assert (await titles(db), await queued(db)) == (["milk"], 1)

    use(work)
