"""Models of SQLAlchemy, and a database that has their tables."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from reunite import Database
from tests.engine.peer import Clock

# Reached only by a test that fails.
SECONDS_MAX = 20

Work = Callable[[Database], Awaitable[None]]
Use = Callable[[Work], None]


class Base(DeclarativeBase):
    pass


class List(Base):
    __tablename__ = "list"

    id: Mapped[int] = mapped_column(primary_key=True)
    todos: Mapped[list["Todo"]] = relationship(order_by="Todo.id")


class Todo(Base):
    __tablename__ = "todo"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(unique=True)
    list_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("list.id", deferrable=True, initially="DEFERRED")
    )


def run(file: Path, work: Work) -> None:
    """Run a coroutine with an open database that has the tables; afterwards nothing is held, and
    the tables equal their documents."""

    async def whole() -> None:
        async with asyncio.timeout(SECONDS_MAX), Database(file, clock=Clock()) as db:
            assert await db.create_all(Base.metadata) == ["list", "todo"]
            await work(db)
            await db.execute("INSERT INTO list VALUES (1000000)")
            assert await db.verify() == []

    asyncio.run(whole())


async def titles(db: Database) -> list[str]:
    return [row["title"] for row in await db.fetch_all("SELECT title FROM todo ORDER BY id")]


async def queued(db: Database) -> int:
    return await db.on_engine(db.replica.queued)
