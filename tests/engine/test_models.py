"""Models of SQLAlchemy and SQLModel as the tables of a file."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import Field, SQLModel, select

from reunite import Database, TableError
from reunite.orm import run_select
from reunite.sqlalchemy_types import Counter, CrdtSet
from tests.engine.peer import Clock

Use = Callable[[Callable[[Database], Awaitable[None]]], None]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Runs a coroutine with an open database."""

    def run(work: Callable[[Database], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with asyncio.timeout(20), Database(tmp_path / "app.db", clock=Clock()) as db:
                await work(db)
                assert await db.verify() == []

        asyncio.run(whole())

    return run


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention={"uq": "uq_%(table_name)s_%(column_0_name)s"})


class Parent(Base):
    __tablename__ = "Parent of all"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    at: Mapped[datetime | None] = mapped_column("at time", sa.DateTime(timezone=True))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(12, 3))
    name: Mapped[str | None] = mapped_column(unique=True)


class Child(Base):
    __tablename__ = "child"
    __table_args__ = (sa.Index("by_number", "number"),)

    parent_id: Mapped[UUID] = mapped_column(sa.ForeignKey(Parent.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Draft(Base):
    __tablename__ = "draft"
    __table_args__ = {"info": {"local_only": True}}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(asdecimal=False))


async def names(db: Database, kind: str) -> list[str]:
    sql = (
        "SELECT name FROM sqlite_master WHERE type = ? AND name NOT GLOB '_reunite*'"
        " AND name NOT GLOB 'reunite*' AND name NOT GLOB 'sqlite*' ORDER BY name"
    )
    return [row[0] for row in await db.fetch_all(sql, (kind,))]


async def tracked(db: Database) -> list[str]:
    found = await db.on_engine(db.replica.tables)
    return sorted(each.table.name for each in found if each.tracked)


def test_all_tables_are_made_and_those_that_are_not_local_tracked(use: Use) -> None:
    async def work(db: Database) -> None:
        assert await db.create_all(Base.metadata) == ["Parent of all", "child"]
        assert await names(db, "table") == ["Parent of all", "child", "draft"]
        assert await names(db, "index") == ["by_number"]
        assert await tracked(db) == ["Parent of all", "child"]
        version = (await db.fetch_all("PRAGMA schema_version"))[0][0]
        assert await db.create_all(Base.metadata) == []
        assert (await db.fetch_all("PRAGMA schema_version"))[0][0] == version

    use(work)


def test_some_tables_can_be_made_alone(use: Use) -> None:
    async def work(db: Database) -> None:
        table = Base.metadata.tables["Parent of all"]
        assert await db.create_all(Base.metadata, tables=[table]) == ["Parent of all"]
        assert await names(db, "table") == ["Parent of all"]

    use(work)


def test_tables_with_rows_are_taken_in_with_them(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute(
            "CREATE TABLE child (parent_id UUID, number INT, PRIMARY KEY (parent_id, number))"
        )
        await db.execute("INSERT INTO child VALUES (?, 1)", (str(uuid4()),))
        assert await db.create_all(Base.metadata) == ["Parent of all", "child"]
        async with db.session() as session:
            assert (await session.scalars(sa.select(Child.number))).all() == [1]

    use(work)


def test_a_table_that_cannot_be_tracked_is_named_and_nothing_is_made(use: Use) -> None:
    metadata = sa.MetaData()
    sa.Table("fine", metadata, sa.Column("id", sa.Integer, primary_key=True))
    pairs = sa.Table("pairs", metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.Integer))

    async def work(db: Database) -> None:
        with pytest.raises(TableError, match=r"'pairs'.*primary key.*local_only") as caught:
            await db.create_all(metadata)
        assert caught.value.table == "pairs"
        assert await names(db, "table") == []
        pairs.info["local_only"] = True
        assert await db.create_all(metadata) == ["fine"]
        assert await names(db, "table") == ["fine", "pairs"]

    use(work)


class Lap(sa.TypeDecorator[timedelta]):
    """An app's own type of what SQLAlchemy keeps as an interval."""

    impl = sa.Interval
    cache_ok = True


@pytest.mark.parametrize("kind", [sa.Interval, Lap])
def test_an_interval_is_refused_where_postgres_would_have_another(
    use: Use, kind: type[sa.Interval | Lap]
) -> None:
    async def work(db: Database) -> None:
        metadata = sa.MetaData()
        key = sa.Column("id", sa.Integer, primary_key=True)
        laps = sa.Table("laps", metadata, key, sa.Column("time", kind))
        with pytest.raises(TableError, match=r"'laps'.*'time'.*Interval\(native=False\)"):
            await db.create_all(metadata)
        assert await names(db, "table") == []
        laps.info["local_only"] = True
        await db.create_all(metadata)
        assert await names(db, "table") == ["laps"]

    use(work)


def test_a_table_of_a_schema_is_refused(use: Use) -> None:
    metadata = sa.MetaData(schema="app")
    sa.Table("t", metadata, sa.Column("id", sa.Integer, primary_key=True))

    async def work(db: Database) -> None:
        with pytest.raises(TableError, match="schema 'app'"):
            await db.create_all(metadata)

    use(work)


def test_uuids_that_sqlalchemys_own_sqlite_wrote_are_not_overlooked(
    use: Use, tmp_path: Path
) -> None:
    async def work(db: Database) -> None:
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
        Base.metadata.create_all(engine)
        engine.dispose()
        with pytest.raises(TableError, match=r"native_uuid=False"):
            await db.create_all(Base.metadata)
        metadata = sa.MetaData()
        key = sa.Column("id", sa.Uuid(native_uuid=False), primary_key=True)
        sa.Table("Parent of all", metadata, key)
        assert await db.create_all(metadata) == ["Parent of all"]

    use(work)


def test_values_are_stored_as_postgres_writes_them(use: Use) -> None:
    key = UUID("123e4567-e89b-12d3-a456-426614174000")
    moment = datetime(2026, 3, 1, 12, 0, 0, 500_000, timezone(timedelta(hours=2)))

    async def work(db: Database) -> None:
        await db.create_all(Base.metadata)
        async with db.session() as session, session.begin():
            session.add(Parent(id=key, at=moment, price=Decimal("12.50")))
            session.add(Parent(at=datetime(2026, 3, 1, tzinfo=UTC), price=Decimal(2)))
            session.add(Parent(price=Decimal("123456789012345678.125")))
            session.add(Draft(price=Decimal("0.5")))
        stored = [
            tuple(row)[1:]
            for row in await db.fetch_all('SELECT id, "at time", price FROM "Parent of all"')
        ]
        assert stored == [
            ("2026-03-01 10:00:00.5+00", 12.5),
            ("2026-03-01 00:00:00+00", 2),
            (None, 123456789012345680.0),
        ]
        async with db.session() as session:
            one = await session.get_one(Parent, key)
            assert (one.id, one.at) == (key, moment)
            assert str(one.price) == "12.500"
            wanted = sa.select(Parent).where(
                Parent.at == moment, Parent.price == Decimal("12.5"), Parent.id.in_([key])
            )
            assert (await session.scalars(wanted)).one() is one
            literal = sa.select(Parent.id).where(
                Parent.at == sa.literal(moment, literal_execute=True),
                Parent.id == sa.literal(key, literal_execute=True),
            )
            assert (await session.scalars(literal)).one() == key
            assert (await session.scalars(sa.select(Draft.price))).one() == 0.5

    use(work)


def test_a_moment_without_a_zone_is_refused_by_a_column_with_one(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.create_all(Base.metadata)
        async with db.session() as session:
            session.add(Parent(at=datetime(2026, 1, 1)))
            with pytest.raises(StatementError, match="time zone"):
                await session.flush()

    use(work)


class Hero(SQLModel, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = Field(index=True)
    fans: int = Field(default=0, sa_type=Counter)
    powers: set[str] = Field(default_factory=set, sa_type=CrdtSet)


def test_sqlmodels_are_tables_and_rows(use: Use) -> None:
    async def work(db: Database) -> None:
        made = await db.create_all(SQLModel.metadata)
        assert made == ["hero"]
        async with db.session() as session, session.begin():
            session.add(Hero(name="Ada", powers={"logic"}))
            session.add(Hero(name="Bob"))
        statement = select(Hero).where(Hero.name == "Ada")
        async with db.session() as session:
            ada = (await session.scalars(statement)).one()
            ada.powers.add("engines")
            ada.fans += 2
            await session.commit()
        assert await db.on_engine(db.replica.queued) == 2
        (found,) = await db.on_engine(lambda: run_select(db._engine.conn, statement))
        assert isinstance(found, Hero)
        assert (found.fans, found.powers) == (2, {"logic", "engines"})
        assert found.model_dump()["name"] == "Ada"

    use(work)


def test_a_program_without_models_never_loads_sqlalchemy(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from reunite import Database\n"
        "async def main():\n"
        "    async with Database(sys.argv[1]) as db:\n"
        "        await db.execute('CREATE TABLE t (id INTEGER PRIMARY KEY)')\n"
        "        await db.track('t')\n"
        "        await db.execute('INSERT INTO t VALUES (1)')\n"
        "asyncio.run(main())\n"
        "sys.exit('sqlalchemy' in sys.modules)"
    )
    asked: list[Any] = [sys.executable, "-c", program, tmp_path / "app.db"]
    assert subprocess.run(asked, check=False).returncode == 0
