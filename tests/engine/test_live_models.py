"""Live queries of SQLAlchemy and SQLModel: what they give, and when; and without an event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from sqlalchemy import ForeignKey, MetaData, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    relationship,
    selectinload,
)
from sqlmodel import Field, SQLModel

from reunite import BlockingDatabase, Database
from reunite.sqlalchemy_types import CrdtSet
from tests.engine.live import runs


class Base(DeclarativeBase):
    pass


class Shop(Base):
    __tablename__ = "shop"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    items: Mapped[list["Item"]] = relationship(order_by="Item.id")


class Item(Base):
    __tablename__ = "item"
    id: Mapped[str] = mapped_column(primary_key=True)
    shop_id: Mapped[str] = mapped_column(ForeignKey("shop.id"))
    what: Mapped[str]
    tags: Mapped[set[str]] = mapped_column(CrdtSet, default=set)


class Noted(SQLModel):
    metadata = MetaData()


class Note(Noted, table=True):
    id: str = Field(primary_key=True)
    words: str


Use: TypeAlias = Callable[[Callable[[Database], Awaitable[None]]], None]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Runs a coroutine with a database that has a shop with an item."""

    def run(work: Callable[[Database], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with Database(tmp_path / "app.db") as db, asyncio.timeout(60):
                await db.create_all(Base.metadata)
                await db.create_all(Noted.metadata)
                async with db.session() as session, session.begin():
                    session.add(Shop(id="s", name="bakery"))
                    session.add(Item(id="i", shop_id="s", what="bread", tags={"b", "a"}))
                await work(db)

        asyncio.run(whole())

    return run


def test_a_select_of_a_model_gives_its_objects(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(select(Item).where(Item.what != "tea").order_by(Item.id))
        (item,) = await anext(watch)
        assert (item.what, item.tags) == ("bread", {"a", "b"})
        async with db.session() as session, session.begin():
            session.add(Item(id="j", shop_id="s", what="cake"))
        assert [item.what for item in await anext(watch)] == ["bread", "cake"]
        await db.execute("UPDATE item SET what = 'roll' WHERE id = 'i'")
        assert [item.what for item in await anext(watch)] == ["roll", "cake"]

    use(work)


def test_what_a_select_loads_besides_is_followed_too(use: Use) -> None:
    async def work(db: Database) -> None:
        other = db.watch(select(Item.what))
        assert [row for row in await anext(other)] == ["bread"]
        watch = db.watch(select(Shop).options(selectinload(Shop.items)))
        (shop,) = await anext(watch)
        assert [item.what for item in shop.items] == ["bread"]
        # Its statements stay prepared, and tell no more by themselves what they read.
        again = db.watch(select(Shop).options(selectinload(Shop.items)))
        await anext(again)
        await db.execute("INSERT INTO item VALUES ('j', 's', 'cake', '[]')")
        for each in (watch, again):
            (shop,) = await anext(each)
            assert [item.what for item in shop.items] == ["bread", "cake"]

    use(work)


def test_objects_are_the_listeners_own_and_can_be_edited(use: Use) -> None:
    async def work(db: Database) -> None:
        one, two = db.watch(select(Item)), db.watch(select(Item))
        (mine,), (theirs,) = await anext(one), await anext(two)
        assert mine is not theirs
        async with db.session() as session, session.begin():
            session.add(mine)
            mine.what = "roll"
            mine.tags.add("c")
        assert theirs.what == "bread"
        (seen,) = await anext(two)
        assert (seen.what, seen.tags) == ("roll", {"a", "b", "c"})

    use(work)


def test_an_unchanged_result_is_not_told(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(select(Item.what))
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        found = runs(db)
        await db.execute("UPDATE item SET tags = '[]'")
        counted = db.watch("SELECT tags FROM item")
        assert [row[0] for row in await anext(counted)] == ["[]"]
        assert any("item.what" in sql for sql in found), "it was run"
        assert not waiting.done()
        await db.execute("UPDATE item SET what = 'roll'")
        assert await waiting == ["roll"]

    use(work)


def test_several_columns_give_rows_and_the_first_is_given_alone(use: Use) -> None:
    async def work(db: Database) -> None:
        ((what, count),) = await anext(
            db.watch(select(Item.what, func.count()).group_by(Item.what))
        )
        assert (what, count) == ("bread", 1)
        first = db.watch_one(select(Item).where(Item.id == "x"))
        assert await anext(first) is None
        await db.execute("INSERT INTO item VALUES ('x', 's', 'cake', '[]')")
        item = await anext(first)
        assert item is not None
        assert item.what == "cake"
        raw = db.watch(text("SELECT what FROM item WHERE id = :id").bindparams(id="x"))
        assert [row.what for row in await anext(raw)] == ["cake"]

    use(work)


def test_errors_reach_the_stream_of_a_select(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(select(Item))
        await anext(watch)
        await db.execute("ALTER TABLE item RENAME COLUMN what TO which")
        with pytest.raises(OperationalError, match="no such column"):
            await anext(watch)
        await db.execute("ALTER TABLE item RENAME COLUMN which TO what")
        assert len(await anext(watch)) == 1

    use(work)


def test_models_of_sqlmodel_are_followed(use: Use) -> None:
    async def work(db: Database) -> None:
        watch = db.watch(select(Note))
        assert await anext(watch) == []
        async with db.session() as session, session.begin():
            session.add(Note(id="n", words="hello"))
        assert await anext(watch) == [Note(id="n", words="hello")]

    use(work)


def test_programs_without_a_loop_follow_too(tmp_path: Path) -> None:
    with BlockingDatabase(tmp_path / "app.db") as db:
        assert db.create_all(Base.metadata) == ["shop", "item"]
        db.execute("INSERT INTO shop VALUES ('s', 'bakery')")
        shops = db.watch(select(Shop))
        assert [shop.name for shop in next(shops)] == ["bakery"]
        rows = db.watch("SELECT name FROM shop WHERE id = ?", ("s",))
        changes = db.watch_changes()
        assert [row["name"] for row in next(rows)] == ["bakery"]
        token = next(changes).token
        with db.transaction(origin="town") as tx:
            tx.execute("UPDATE shop SET name = 'mill'")
            assert len(tx.changes(after=token)) == 0
        assert [row["name"] for row in next(rows)] == ["mill"]
        assert [shop.name for shop in next(shops)] == ["mill"]
        assert [change.origin for change in next(changes)] == ["town"]
        assert [change.key for change in db.changes(after=token)] == ["s"]
        one: dict[str, str] | None = next(db.watch_one("SELECT name FROM shop", into=dict))
        assert one == db.fetch_one("SELECT name FROM shop", into=dict) == {"name": "mill"}
        rows.close()
        assert list(rows) == []
    assert list(shops) == []
