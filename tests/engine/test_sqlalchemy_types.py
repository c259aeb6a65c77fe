"""Columns that merge, declared and used by an app with SQLAlchemy."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.mutable import MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateTable

from reunite.sqlalchemy_types import (
    COUNTER,
    CRDT_JSON_TEXT,
    CRDT_LIST_TEXT,
    CRDT_SET_TEXT,
    CRDT_TEXT,
)
from reunite.types import MERGING, logical_type

TYPES = (COUNTER, CRDT_TEXT, CRDT_SET_TEXT, CRDT_LIST_TEXT, CRDT_JSON_TEXT)


class Base(DeclarativeBase):
    pass


class Post(Base):
    __tablename__ = "post"

    id: Mapped[int] = mapped_column(primary_key=True)
    likes: Mapped[int] = mapped_column(COUNTER, server_default="0")
    body: Mapped[str | None] = mapped_column(CRDT_TEXT)
    tags: Mapped[Any] = mapped_column(CRDT_SET_TEXT, nullable=True)
    steps: Mapped[Any] = mapped_column(MutableList.as_mutable(CRDT_LIST_TEXT()), nullable=True)
    meta: Mapped[Any] = mapped_column(CRDT_JSON_TEXT, nullable=True)


@pytest.fixture
def session() -> Iterator[Session]:
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


def stored(session: Session) -> list[Any]:
    columns = "likes, body, tags, steps, meta"
    return [tuple(row) for row in session.execute(sa.text(f"SELECT {columns} FROM post"))]


def test_sqlite_declares_what_reunite_reads(session: Session) -> None:
    declared = session.scalars(sa.text("SELECT type FROM pragma_table_info('post') WHERE NOT pk"))
    found = list(declared)
    assert found == [made.__name__ for made in TYPES]
    assert {logical_type(name) for name in found} == MERGING


def test_postgres_has_domains() -> None:
    for dialect in (postgresql.dialect(), asyncpg_dialect()):  # type: ignore[no-untyped-call]
        ddl = str(CreateTable(Post.__table__).compile(dialect=dialect))  # type: ignore[arg-type]
        for made in TYPES:
            assert f" reunite.{made.__name__.lower()}" in ddl


def test_values_go_in_and_come_back(session: Session) -> None:
    given = {"a": [1, None, "é"], "b": {}}
    session.add(Post(id=1, likes=3, body="é", tags={"b", "a"}, steps=[3, "é", None], meta=given))
    session.add(Post(id=2, tags=[2, 1]))
    session.commit()
    post = session.get_one(Post, 1)
    assert (post.likes, post.body, post.tags) == (3, "é", ["a", "b"])
    assert (post.steps, post.meta) == ([3, "é", None], given)
    assert session.get_one(Post, 2).tags == [1, 2]
    assert stored(session) == [
        (3, "é", '["a","b"]', '[3,"é",null]', '{"a":[1,null,"é"],"b":{}}'),
        (0, None, "[2,1]", None, None),
    ]


@pytest.mark.parametrize(
    ("given", "back"),
    [
        (frozenset({10, 9, -1.5}), [-1.5, 9, 10]),
        ({"b", None, 2, False, ("t",)}, [None, False, 2, "b", ["t"]]),
        (set(), []),
        ([{"b": 1}, {"a": 1}, [2], [1, 5], True], [True, [1, 5], [2], {"a": 1}, {"b": 1}]),
    ],
)
def test_a_set_comes_back_in_order(session: Session, given: object, back: object) -> None:
    session.add(Post(id=1, tags=given))
    session.commit()
    assert session.get_one(Post, 1).tags == back


def test_a_list_that_is_watched_is_saved_when_it_changes(session: Session) -> None:
    session.add(Post(id=1, steps=["a"]))
    session.commit()
    post = session.get_one(Post, 1)
    post.steps.append("b")
    session.commit()
    assert session.scalars(sa.select(Post.steps)).one() == ["a", "b"]


def test_columns_are_asked_and_computed_with(session: Session) -> None:
    session.add(Post(id=1, tags={"x"}, meta={"a": {"b": 7}}))
    session.commit()
    session.execute(sa.update(Post).values(likes=Post.likes + 5))
    found = sa.select(Post.likes, Post.meta["a"], Post.meta[("a", "b")].as_integer()).where(
        Post.tags == ["x"], Post.likes > 4
    )
    assert session.execute(found).one() == (5, {"b": 7}, 7)


def test_what_json_has_no_word_for_is_refused(session: Session) -> None:
    session.add(Post(id=1, meta=[float("nan")]))
    with pytest.raises(StatementError, match="JSON"):
        session.flush()


def test_postgress_drivers_get_and_give_json() -> None:
    dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]
    tags = CRDT_SET_TEXT().dialect_impl(dialect)
    bind = tags.bind_processor(dialect)
    result = tags.result_processor(dialect, None)
    assert bind is not None
    assert result is not None
    assert bind({"b", "a"}) == '["a", "b"]'
    # SQL's NULL, not JSON's.
    assert bind(None) is None
    # The driver's own codec has read the column.
    assert result(["b", "a"]) == ["a", "b"]
    assert result(None) is None


def test_reunite_itself_does_not_load_sqlalchemy() -> None:
    asked = "import sys, reunite; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
