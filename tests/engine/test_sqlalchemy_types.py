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
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateTable

from reunite.sqlalchemy_types import (
    MERGING_TYPES,
    Counter,
    CrdtJSON,
    CrdtList,
    CrdtSet,
    CrdtText,
    include_name,
)
from reunite.types import MERGING, logical_type


class Base(DeclarativeBase):
    pass


class Post(Base):
    __tablename__ = "post"

    id: Mapped[int] = mapped_column(primary_key=True)
    likes: Mapped[int] = mapped_column(Counter, server_default="0")
    body: Mapped[str | None] = mapped_column(CrdtText)
    tags: Mapped[Any] = mapped_column(CrdtSet, nullable=True)
    steps: Mapped[Any] = mapped_column(CrdtList, nullable=True)
    meta: Mapped[Any] = mapped_column(CrdtJSON, nullable=True)


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
    assert found == [made.declared for made in MERGING_TYPES]
    assert {logical_type(name) for name in found} == MERGING


def test_postgres_has_domains() -> None:
    for dialect in (postgresql.dialect(), asyncpg_dialect()):  # type: ignore[no-untyped-call]
        ddl = str(CreateTable(Post.__table__).compile(dialect=dialect))  # type: ignore[arg-type]
        for made in MERGING_TYPES:
            assert f" reunite.{made.declared.lower()}" in ddl


def test_values_go_in_and_come_back(session: Session) -> None:
    given = {"a": [1, None, "é"], "b": {}}
    session.add(Post(id=1, likes=3, body="é", tags={"b", "a"}, steps=[3, "é", None], meta=given))
    session.add(Post(id=2, tags=[2, 1]))
    session.commit()
    post = session.get_one(Post, 1)
    assert (post.likes, post.body, post.tags) == (3, "é", {"a", "b"})
    assert (post.steps, post.meta) == ([3, "é", None], given)
    assert session.get_one(Post, 2).tags == {1, 2}
    assert stored(session) == [
        (3, "é", '["a","b"]', '[3,"é",null]', '{"a":[1,null,"é"],"b":{}}'),
        (0, None, "[1,2]", None, None),
    ]


@pytest.mark.parametrize(
    ("given", "back"),
    [
        (frozenset({10, 9, -1.5}), {-1.5, 9, 10}),
        ({"b", None, 2, False, ("t",)}, {None, False, 2, "b", ("t",)}),
        (set(), set()),
        (["b", "a", "b"], {"a", "b"}),
        # Python has no such sets.
        ([True, 0, 1], [True, 0, 1]),
        ([{"b": 1}, {"a": 1}, [2], [1, 5], True], [True, [1, 5], [2], {"a": 1}, {"b": 1}]),
    ],
)
def test_a_set_comes_back_as_one_where_python_has_it(
    session: Session, given: object, back: object
) -> None:
    session.add(Post(id=1, tags=given))
    session.commit()
    assert session.get_one(Post, 1).tags == back


def test_what_is_changed_in_place_is_saved(session: Session) -> None:
    session.add(Post(id=1, tags=["a"], steps=["a"], meta={"n": 1}))
    session.commit()
    post = session.get_one(Post, 1)
    post.tags.add("b")
    post.steps.append("b")
    post.meta["m"] = 2
    session.commit()
    post.steps.insert(0, "c")
    session.flush()
    post.steps.remove("a")
    session.commit()
    found = sa.select(Post.tags, Post.steps, Post.meta)
    assert session.execute(found).one() == ({"a", "b"}, ["c", "b"], {"n": 1, "m": 2})


def test_a_subclass_saves_what_is_changed_in_place() -> None:
    class Shape(Base):
        __tablename__ = "shape"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        tags: Mapped[Any] = mapped_column(CrdtSet)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "shape"}  # noqa: RUF012

    class Circle(Shape):
        __mapper_args__ = {"polymorphic_identity": "circle"}  # noqa: RUF012

    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Circle(id=1, tags={"a"}))
        session.commit()
        circle = session.get_one(Circle, 1)
        circle.tags.add("b")
        session.commit()
        assert session.scalars(sa.select(Circle.tags)).one() == {"a", "b"}
    engine.dispose()


@pytest.mark.parametrize("value", ["text", 5, True, 1.5])
def test_json_that_is_no_object_can_be_loaded_and_replaced(session: Session, value: object) -> None:
    session.add(Post(id=1, meta=value))
    session.commit()
    post = session.get_one(Post, 1)
    assert post.meta == value
    post.meta = [value]
    post.meta.append(None)
    session.commit()
    assert session.get_one(Post, 1).meta == [value, None]


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
    tags = CrdtSet().dialect_impl(dialect)
    bind = tags.bind_processor(dialect)
    result = tags.result_processor(dialect, None)
    assert bind is not None
    assert result is not None
    assert bind({"b", "a"}) == '["a", "b"]'
    # SQL's NULL, not JSON's.
    assert bind(None) is None
    # The driver's own codec has read the column.
    assert result(["b", "a"]) == {"a", "b"}
    assert result(None) is None


def test_reunite_itself_does_not_load_sqlalchemy() -> None:
    asked = "import sys, reunite; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_alembic_is_told_which_tables_are_reunites_own() -> None:
    assert include_name("todo", "table", {"schema_name": None})
    assert include_name("by_title", "index", {"table_name": "todo"})
    assert include_name(None, "schema", {})
    for name in ("_reunite_rows", "reunite_rows", "reunite_rejected"):
        assert not include_name(name, "table", {"schema_name": None})
        assert not include_name("some", "index", {"table_name": name})
