"""SQLAlchemy's statements on a connection that is lent to it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from reunite.orm import compiled, lent, run_select


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Base(DeclarativeBase):
    pass


class List(Base):
    __tablename__ = "list"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    todos: Mapped[list["Todo"]] = relationship(order_by="Todo.title", back_populates="list")


class Todo(Base):
    __tablename__ = "todo"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    at: Mapped[datetime | None]
    mood: Mapped[Mood | None]
    list_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("list.id"))
    list: Mapped[List | None] = relationship(back_populates="todos")


KEY = UUID("123e4567-e89b-12d3-a456-426614174000")
AT = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        with lent(conn) as engine:
            Base.metadata.create_all(engine)
        conn.execute("INSERT INTO list VALUES (?, 'home')", (str(KEY),))
        conn.executemany(
            "INSERT INTO todo VALUES (?, ?, ?, ?, ?)",
            [
                (1, "milk", "2026-01-02 03:04:05.000000", "GOOD", str(KEY)),
                (2, "oats", None, None, str(KEY)),
                (3, "salt", None, "BAD", None),
            ],
        )
        yield conn


def test_a_select_of_a_class_gives_detached_objects(conn: sqlite3.Connection) -> None:
    (todo,) = run_select(conn, sa.select(Todo).where(Todo.at == AT, Todo.mood == Mood.GOOD))
    assert (todo.title, todo.at, todo.mood, todo.list_id) == ("milk", AT, Mood.GOOD, KEY)
    assert sa.inspect(todo).detached
    with pytest.raises(DetachedInstanceError):
        _ = todo.list


def test_a_select_of_columns_gives_values_or_rows(conn: sqlite3.Connection) -> None:
    assert run_select(conn, sa.select(Todo.at).order_by(Todo.id)) == [AT, None, None]
    (row, *_) = run_select(conn, sa.select(Todo.title, Todo.mood).order_by(Todo.id))
    assert (row.title, row.mood) == ("milk", Mood.GOOD)
    (pair,) = run_select(conn, sa.select(List, Todo).join(Todo.list).where(Todo.id == 2))
    assert (pair.List.name, pair.Todo.title) == ("home", "oats")


@pytest.mark.parametrize("option", [selectinload, joinedload])
def test_relationships_that_are_asked_for_are_loaded(conn: sqlite3.Connection, option: Any) -> None:
    (found,) = run_select(conn, sa.select(List).options(option(List.todos)))
    assert [todo.title for todo in found.todos] == ["milk", "oats"]


def test_rows_that_a_join_repeats_are_repeated(conn: sqlite3.Connection) -> None:
    assert [found.name for found in run_select(conn, sa.select(List).join(List.todos))] == [
        "home"
    ] * 2


def test_statements_of_all_kinds_are_run(conn: sqlite3.Connection) -> None:
    other = aliased(Todo)
    recent = sa.select(Todo.title).where(Todo.id > 1).cte("recent")
    union = sa.union(sa.select(Todo.id), sa.select(other.id + 10)).order_by("id")
    by_text = sa.select(Todo).from_statement(sa.text("SELECT * FROM todo WHERE id = :id"))
    assert run_select(conn, sa.select(recent.c.title).order_by("title")) == ["oats", "salt"]
    assert run_select(conn, union) == [1, 2, 3, 11, 12, 13]
    assert [todo.title for todo in run_select(conn, by_text, {"id": 3})] == ["salt"]
    plain = sa.text("SELECT count(*) AS n FROM todo WHERE title <> :t").bindparams(t="milk")
    assert [row.n for row in run_select(conn, plain)] == [2]
    matching = sa.select(Todo.title).where(Todo.title.regexp_match("^m"))
    assert run_select(conn, matching) == ["milk"]


def test_an_error_of_the_statement_is_told(conn: sqlite3.Connection) -> None:
    with pytest.raises(ArgumentError):
        run_select(conn, sa.select(Todo).options(joinedload(List.todos)))
    with pytest.raises(OperationalError, match="no such table"):
        run_select(conn, sa.text("SELECT * FROM nowhere"))


def test_the_connections_transaction_is_left_as_it_is(conn: sqlite3.Connection) -> None:
    run_select(conn, sa.select(Todo))
    assert not conn.in_transaction
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO todo (id, title) VALUES (4, 'soap')")
    assert len(run_select(conn, sa.select(Todo))) == 4
    assert conn.in_transaction
    conn.execute("ROLLBACK")
    assert len(run_select(conn, sa.select(Todo))) == 3


def test_an_authorizer_sees_every_table_that_is_read_each_time(conn: sqlite3.Connection) -> None:
    statement = sa.select(List).options(selectinload(List.todos))
    for _ in range(3):
        seen: set[str | None] = set()

        def note(action: int, table: str | None, *_: object, seen: set[str | None] = seen) -> int:
            if action == sqlite3.SQLITE_READ:
                seen.add(table)
            return sqlite3.SQLITE_OK

        conn.set_authorizer(note)
        run_select(conn, statement)
        conn.set_authorizer(None)
        assert seen == {"list", "todo"}


def test_a_statement_is_compiled_to_what_sqlite_takes(conn: sqlite3.Connection) -> None:
    statements: list[sa.Executable] = [
        sa.select(Todo.id).where(Todo.at == AT, Todo.mood == Mood.GOOD, Todo.list_id == KEY),
        sa.select(Todo.id)
        .where(Todo.list_id.in_([KEY, uuid4()]), Todo.mood.in_([Mood.GOOD]))
        .order_by(Todo.id)
        .limit(1),
        sa.select(sa.literal(1)).where(sa.exists().where(Todo.id == 3)),
        sa.text("SELECT id FROM todo WHERE title = :t").bindparams(t="milk"),
        sa.union(sa.select(Todo.id).where(Todo.id == 1), sa.select(Todo.id).where(Todo.id < 2)),
    ]
    for statement in statements:
        query = compiled(statement)
        assert conn.execute(query.sql, query.parameters).fetchall() == [(1,)]
    assert compiled(statements[0]).parameters == ("2026-01-02 03:04:05.000000", "GOOD", str(KEY))


def test_equal_statements_are_equal_queries_and_others_are_not() -> None:
    def queries() -> list[Any]:
        return [
            compiled(each)
            for each in (
                sa.select(Todo),
                sa.select(Todo.__table__),
                sa.select(Todo).options(selectinload(Todo.list)),
                sa.select(Todo).where(Todo.title == "a"),
                sa.select(Todo).where(Todo.title == "b"),
                sa.select(Todo).where(Todo.id.in_([1])),
                sa.select(Todo).where(Todo.id.in_([1, 2])),
                sa.select(Todo).limit(1),
                sa.select(Todo).limit(2),
            )
        ]

    first = queries()
    assert first == queries()
    assert len(set(first) | set(queries())) == len(first)
