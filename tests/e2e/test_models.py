"""The same SQLAlchemy models over files and over the relay's Postgres, whichever had them first."""

import asyncio
import enum
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from reunite import Database
from reunite.sqlalchemy_types import Counter, CrdtJSON, CrdtList, CrdtSet, CrdtText
from tests.e2e.world import assert_quiet, contents, relay_on, sync_once


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "owner"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(sa.String(40), unique=True)


class Thing(Base):
    __tablename__ = "thing"
    __table_args__ = (sa.CheckConstraint("size >= 0"), sa.Index("thing_size", "size"))

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("owner.id"))
    owner: Mapped[Owner | None] = relationship(lazy="joined")
    size: Mapped[int | None]
    big: Mapped[int | None] = mapped_column(sa.BigInteger)
    weight: Mapped[float | None]
    title: Mapped[str | None]
    note: Mapped[str | None] = mapped_column(sa.Text)
    done: Mapped[bool | None]
    made: Mapped[datetime | None]
    seen: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    entered: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )
    day: Mapped[date | None]
    clock: Mapped[time | None]
    lasts: Mapped[timedelta | None] = mapped_column(sa.Interval(native=False))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    color: Mapped[Color | None] = mapped_column(sa.Enum(Color, native_enum=False))
    facts: Mapped[Any | None] = mapped_column(sa.JSON)
    data: Mapped[bytes | None]
    likes: Mapped[int] = mapped_column(Counter, default=0, server_default="0")
    body: Mapped[str | None] = mapped_column(CrdtText)
    tags: Mapped[set[str] | None] = mapped_column(CrdtSet)
    steps: Mapped[list[Any] | None] = mapped_column(CrdtList)
    extra: Mapped[dict[str, Any] | None] = mapped_column(CrdtJSON)


NAMES = [column.key for column in sa.inspect(Thing).column_attrs]
EMPTY = {"id", "owner_id", "entered", "likes"}


def things(count: int) -> list[Thing]:
    """Rows of every type, and one of NULLs."""
    moment = datetime(2026, 3, 29, 2, 30, 1, 500_000)
    return [
        Thing(),
        *(
            Thing(
                owner=Owner(name=f"of {uuid4()}"),
                size=n,
                big=2**62 + n,
                weight=0.1 + n,
                title="é\n'",
                note="",
                done=bool(n % 2),
                made=moment + timedelta(seconds=n / 2),
                seen=moment.replace(tzinfo=timezone(timedelta(hours=n))),
                day=date(2024, 2, 29),
                clock=time(23, 59, 59, n),
                lasts=timedelta(days=-400 * n, hours=30, microseconds=n),
                price=Decimal("1234.50") + n,
                color=Color.BLUE,
                facts={"a": [1, None, "é"]},
                data=b"\x00\xff",
                likes=n,
                body="some words",
                tags={"a", "b"},
                steps=[n, "b"],
                extra={"k": {"n": n}},
            )
            for n in range(count)
        ),
    ]


def values(found: Sequence[Thing]) -> dict[UUID, dict[str, Any]]:
    """What mapped objects hold, by key."""
    return {
        thing.id: {name: getattr(thing, name) for name in NAMES}
        | {"owner": thing.owner and thing.owner.name}
        for thing in found
    }


async def read_file(file: Path) -> dict[UUID, dict[str, Any]]:
    async with Database(file) as db, db.session() as session:
        return values((await session.scalars(sa.select(Thing))).all())


async def change(session: AsyncSession) -> None:
    """What an app does with its models, found by values of types that differ between databases."""
    moment = datetime(2026, 3, 29, 1, 30, 1, 500_000, tzinfo=UTC)
    wanted = sa.select(Thing).where(
        Thing.seen == moment, Thing.price == Decimal("1235.50"), Thing.color == Color.BLUE
    )
    thing = (await session.scalars(wanted)).one()
    again = await session.get_one(Thing, thing.id)
    assert again is thing
    assert thing.tags is not None
    assert thing.steps is not None
    thing.tags.add("more")
    thing.steps.append("more")
    thing.seen = moment + timedelta(seconds=1.25)
    thing.made = datetime(2026, 1, 1)
    thing.price = Decimal("1235.5") + 1
    thing.likes = Thing.likes + 5
    await session.commit()


def test_models_of_a_file_read_and_write_the_tables_that_it_makes_in_postgres(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        one, two = tmp_path / "one.db", tmp_path / "two.db"
        engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with relay_on(postgres_url) as relay:
            async with Database(one) as db:
                assert await db.create_all(Base.metadata) == ["owner", "thing"]
                async with db.session() as session, session.begin():
                    session.add_all(things(4))
                await sync_once(db, relay.url)
            expected = await read_file(one)
            assert len(expected) == 5
            assert any(row["seen"].tzinfo is UTC for row in expected.values() if row["seen"])
            async with AsyncSession(engine, expire_on_commit=False) as session:
                assert values((await session.scalars(sa.select(Thing))).all()) == expected
                await change(session)
                session.add_all(things(1))
                await session.commit()
                expected = values((await session.scalars(sa.select(Thing))).all())
            await engine.dispose()
            # Another file has the models before it meets the relay, or none at all.
            async with Database(two) as db:
                await db.create_all(Base.metadata)
                await sync_once(db, relay.url)
                async with db.session() as session:
                    found = (await session.scalars(sa.select(Thing).where(Thing.size == 1))).one()
                    assert found.likes == 6
                    found.likes = Thing.likes + 1
                    await session.commit()
                await sync_once(db, relay.url)
                assert await db.create_all(Base.metadata) == []
            await sync_once(one, relay.url)
            expected[found.id]["likes"] = 7
            assert await read_file(one) == await read_file(two) == expected
            assert contents(one) == contents(two)
            await assert_quiet(postgres_url, one, two)

    asyncio.run(scenario())


def test_models_make_the_tables_of_postgres_and_a_relay_takes_them_in(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        one, two = tmp_path / "one.db", tmp_path / "two.db"
        engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine, expire_on_commit=False) as session:
            session.add_all(things(4))
            await session.commit()
            expected = values((await session.scalars(sa.select(Thing))).all())
        async with relay_on(postgres_url, track_all=True) as relay:
            async with Database(one) as db:
                await sync_once(db, relay.url)
                assert await db.create_all(Base.metadata) == []
            assert await read_file(one) == expected
            async with Database(two) as db:
                assert await db.create_all(Base.metadata) == ["owner", "thing"]
                await sync_once(db, relay.url)
                async with db.session() as session:
                    await change(session)
                async with db.session() as session, session.begin():
                    session.add_all(things(2))
                await sync_once(db, relay.url)
            await sync_once(one, relay.url)
            expected = await read_file(two)
            assert len(expected) == 8
            assert await read_file(one) == expected
            async with AsyncSession(engine) as session:
                assert values((await session.scalars(sa.select(Thing))).all()) == expected
            await assert_quiet(postgres_url, one, two)
        await engine.dispose()

    asyncio.run(scenario())


class Later(DeclarativeBase):
    pass


class Paint(Later):
    """Types that a file cannot make in Postgres, and Postgres can make for a file."""

    __tablename__ = "paint"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    color: Mapped[Color]
    names: Mapped[list[str]] = mapped_column(sa.ARRAY(sa.String).with_variant(sa.JSON(), "sqlite"))


def test_enums_and_arrays_of_postgres_are_those_of_files(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.begin() as connection:
            await connection.run_sync(Later.metadata.create_all)
        wanted = sa.select(Paint.color, Paint.names).order_by(Paint.names)
        async with (
            relay_on(postgres_url, track_all=True) as relay,
            Database(tmp_path / "one.db") as db,
        ):
            await db.create_all(Later.metadata)
            async with db.session() as session, session.begin():
                session.add(Paint(color=Color.RED, names=["a"]))
            await sync_once(db, relay.url)
            async with AsyncSession(engine) as session, session.begin():
                session.add(Paint(color=Color.BLUE, names=["é", "b"]))
                assert len((await session.execute(wanted)).all()) == 2
            await sync_once(db, relay.url)
            async with db.session() as session:
                found = await session.execute(wanted)
                assert found.all() == [(Color.RED, ["a"]), (Color.BLUE, ["é", "b"])]
        await engine.dispose()
        await assert_quiet(postgres_url, tmp_path / "one.db")

    asyncio.run(scenario())
