"""SQLAlchemy sessions on a database: one that writes is one changeset."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from reunite import Database, UsageError
from tests.engine.todo_models import List, Todo, Use, queued, run, titles


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Runs a coroutine with an open database that has the tables."""
    return lambda work: run(tmp_path / "app.db", work)


def test_a_transaction_of_a_session_is_one_changeset(use: Use) -> None:
    async def work(db: Database) -> None:
        heard: list[int] = []
        db.on_change(lambda: heard.append(1))
        async with db.session() as session, session.begin():
            session.add(List(id=1, todos=[Todo(title="milk"), Todo(title="oats")]))
            await session.flush()
            session.add(Todo(title="salt"))
        assert (await queued(db), len(heard)) == (1, 1)
        assert await titles(db) == ["milk", "oats", "salt"]

    use(work)


def test_a_changeset_is_folded_before_the_commit(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            session.add(Todo(title="milk"))
            await session.commit()
            # Nothing is left for a later fold to find.
            assert (await db.fetch_all("SELECT count(*) FROM _reunite_log"))[0][0] == 0

    use(work)


def test_what_others_wrote_before_is_another_changeset(use: Use, tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        other = sqlite3.connect(tmp_path / "app.db")
        with other:
            other.execute("INSERT INTO todo (title) VALUES ('theirs')")
        other.close()
        async with db.session() as session, session.begin():
            session.add(Todo(title="ours"))
        assert await queued(db) == 2

    use(work)


def test_a_session_can_commit_again_and_its_objects_stay_usable(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            todo = Todo(title="milk")
            session.add(todo)
            await session.commit()
            todo.title = "oats"
            await session.commit()
        assert todo.title == "oats"
        assert await queued(db) == 2
        async with db.session(expire_on_commit=True) as session:
            todo = await session.get_one(Todo, 1)
            await session.commit()
            assert sa.inspect(todo).expired

    use(work)


def test_reading_takes_no_turn_and_waits_for_nobody(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO todo (title) VALUES ('milk')")
        reads: list[sa.Executable] = [
            sa.select(Todo),
            sa.text("/* a */ SELECT * FROM todo"),
            sa.text("WITH t AS (SELECT 1) SELECT * FROM t"),
        ]
        async with db.transaction() as tx:
            await tx.execute("UPDATE todo SET title = 'oats'")

            async def read() -> None:
                async with db.session() as session:
                    for statement in reads:
                        assert len((await session.execute(statement)).all()) == 1
                    todo = await session.get_one(Todo, 1)
                    assert todo.title == "milk"
                    names = await (await session.connection()).run_sync(
                        lambda connection: sa.inspect(connection).get_table_names()
                    )
                    assert "todo" in names
                    await session.commit()

            await asyncio.create_task(read())

    use(work)


def test_a_session_sees_what_it_wrote_and_others_do_not(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            session.add(Todo(title="milk"))
            assert (await session.scalars(sa.select(Todo.title))).all() == ["milk"]

            async def elsewhere() -> list[str]:
                return await titles(db)

            assert await asyncio.create_task(elsewhere()) == []
            await session.commit()
        assert await titles(db) == ["milk"]

    use(work)


def test_two_sessions_that_write_wait_for_one_another(use: Use) -> None:
    async def work(db: Database) -> None:
        async def add(title: str) -> None:
            async with db.session() as session, session.begin():
                session.add(Todo(title=title))
                await session.flush()
                await asyncio.sleep(0)
                session.add(Todo(title=f"{title}2"))

        await asyncio.gather(*(add(str(number)) for number in range(10)), db.execute("SELECT 1"))
        assert await queued(db) == 10
        assert len(await titles(db)) == 20

    use(work)


def test_a_savepoint_can_be_taken_back_alone(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session, session.begin():
            session.add(Todo(title="milk"))
            with pytest.raises(IntegrityError):
                async with session.begin_nested():
                    session.add(Todo(title="milk"))
            async with session.begin_nested():
                session.add(Todo(title="oats"))
            nested = await session.begin_nested()
            session.add(Todo(title="salt"))
            await session.flush()
            await nested.rollback()
        assert await titles(db) == ["milk", "oats"]
        assert await queued(db) == 1

    use(work)


def test_statements_of_every_kind_are_in_the_transaction(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            await session.execute(sa.text("INSERT INTO todo (title) VALUES (:t)"), {"t": "a"})
            many = sa.insert(Todo).returning(Todo.id)
            found = await session.scalars(many, [{"title": "b"}, {"title": "c"}])
            assert found.all() == [2, 3]
            await session.execute(
                sa.text("WITH n AS (SELECT 'd') INSERT INTO todo (title) SELECT * FROM n")
            )
            changed = sa.update(Todo).where(Todo.id > 2).values(title=Todo.title + "!")
            assert (await session.scalars(changed.returning(Todo.title))).all() == ["c!", "d!"]
            await session.execute(sa.delete(Todo).where(Todo.id == 1))
            stream = await session.stream(sa.select(Todo.id))
            assert [row.id async for row in stream] == [2, 3, 4]
            assert (await queued(db)) == 0
            await session.commit()
        assert await titles(db) == ["b", "c!", "d!"]
        assert await queued(db) == 1

    use(work)


def test_a_first_statement_that_writes_and_returns_rows_is_a_write(use: Use) -> None:
    async def work(db: Database) -> None:
        sql = "WITH n AS (SELECT 'milk' AS t) INSERT INTO todo (title) SELECT t FROM n RETURNING id"
        async with db.session() as session:
            assert (await session.execute(sa.text(sql))).scalar_one() == 1
            assert db._lock.locked()
            await session.commit()
        assert await queued(db) == 1

    use(work)


def test_rows_of_a_stream_can_be_written_while_it_is_read(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session, session.begin():
            session.add_all(Todo(title=str(n)) for n in range(100))
        async with db.session() as session:
            async for todo in await session.stream_scalars(sa.select(Todo)):
                todo.title = f"{todo.title}!"
                await session.flush()
            await session.commit()
        assert all(title.endswith("!") for title in await titles(db))

    use(work)


def test_for_update_makes_what_was_read_stay_so(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO todo (title) VALUES ('')")

        async def add() -> None:
            async with db.session() as session, session.begin():
                todo = (await session.scalars(sa.select(Todo).with_for_update())).one()
                await asyncio.sleep(0)
                todo.title = f"{todo.title}x"

        await asyncio.gather(*(add() for _ in range(5)))
        assert await titles(db) == ["xxxxx"]

    use(work)


def test_what_a_constraint_refuses_raises_and_leaves_the_session_usable(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            session.add_all([Todo(title="milk"), Todo(title="milk")])
            with pytest.raises(IntegrityError):
                await session.commit()
            assert not db._lock.locked()
            await session.rollback()
            # Foreign keys hold, here one that is looked at when the transaction is committed.
            session.add(Todo(title="oats", list_id=17))
            with pytest.raises(IntegrityError):
                await session.commit()
            await session.rollback()
            session.add(Todo(title="salt"))
            await session.commit()
        assert await titles(db) == ["salt"]

    use(work)


def test_a_session_inside_a_transaction_of_the_task_is_refused(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            async with db.transaction() as tx:
                with pytest.raises(UsageError, match=r"tx\.execute"):
                    await session.execute(sa.select(List))
                session.add(Todo(title="milk"))
                with pytest.raises(UsageError, match=r"tx\.execute"):
                    await session.flush()
                await tx.execute("INSERT INTO todo (title) VALUES ('oats')")
            await session.rollback()
            assert (await session.scalars(sa.select(Todo.title))).all() == ["oats"]

    use(work)


def test_a_transaction_or_session_inside_a_session_that_has_written_is_refused(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session, session.begin():
            # It has not written yet.
            await session.execute(sa.select(List))
            await db.execute("INSERT INTO list VALUES (7)")
            session.add(Todo(title="milk"))
            await session.flush()
            with pytest.raises(UsageError, match="the session"):
                await db.execute("INSERT INTO list VALUES (8)")
            with pytest.raises(UsageError, match="the session"):
                await db.fetch_all("SELECT 1")
            with pytest.raises(UsageError, match="the session"):
                async with db.transaction():
                    pass
            async with db.session() as other:
                other.add(List(id=9))
                with pytest.raises(UsageError, match="the session"):
                    await other.flush()
                await other.rollback()
        assert await titles(db) == ["milk"]

    use(work)


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT",
        "/* - */ end",
        "ROLLBACK",
        "-- a comment\nBEGIN IMMEDIATE",
        "VACUUM",
        "PRAGMA query_only = 0",
        "PRAGMA main.query_only(0)",
    ],
)
def test_sql_that_would_end_a_transaction_or_change_a_connection_is_refused(
    use: Use, sql: str
) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            for written in (False, True):
                if written:
                    session.add(Todo(title="milk"))
                    await session.flush()
                with pytest.raises(UsageError, match="no statement for a session"):
                    await session.execute(sa.text(sql))
            await session.commit()
        assert await titles(db) == ["milk"]

    use(work)


def test_there_is_one_isolation_level(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            with pytest.raises(ArgumentError):
                await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})

    use(work)


def test_relationships_are_loaded_when_asked_for(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session, session.begin():
            session.add(List(id=1, todos=[Todo(title="milk")]))
        async with db.session() as session:
            found = await session.scalars(sa.select(List).options(selectinload(List.todos)))
            assert [todo.title for todo in found.one().todos] == ["milk"]

    use(work)


def test_operators_that_sqlite_lacks_are_there(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.session() as session:
            session.add(Todo(title="milk"))
            matching = sa.select(Todo.title).where(Todo.title.regexp_match("^m.l"))
            assert (await session.scalars(matching)).all() == ["milk"]
            await session.commit()
            assert (await session.scalars(matching)).all() == ["milk"]

    use(work)


def test_a_session_is_sqlalchemys_own(use: Use) -> None:
    async def work(db: Database) -> None:
        session = db.session(info={"mine": 1}, autoflush=False)
        assert type(session) is AsyncSession
        assert session.info["mine"] == 1
        async with session:
            with pytest.raises(InvalidRequestError):
                await session.refresh(Todo())

    use(work)


def test_a_session_tells_its_changeset_and_the_origin_of_its_changes(use: Use) -> None:
    async def work(db: Database) -> None:
        token = (await db.changes()).token
        async with db.session(origin="crm") as session, session.begin():
            session.add(Todo(id=7, title="from the CRM"))
        ((last,),) = await db.fetch_all("SELECT max(id) FROM _reunite_changesets")
        assert session.info["changeset"] == last
        assert [(c.key, c.origin) for c in await db.changes(after=token)] == [(7, "crm")]
        with pytest.raises(UsageError, match="origin"):
            db.session(origin="here")

    use(work)
