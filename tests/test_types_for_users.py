"""What a type checker tells a user of the API. mypy and pyright check this file with all others: a
type that is another than it says here fails `make check`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, assert_type

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from reunite import BlockingDatabase, Change, Changes, Database, Result, Row, Watch
from reunite.sqlalchemy_types import Counter, CrdtText
from reunite_transport import Sync, SyncStatus


class Base(DeclarativeBase):
    pass


class Todo(Base):
    __tablename__ = "todo"
    id: Mapped[str] = mapped_column(primary_key=True)
    votes: Mapped[int] = mapped_column(Counter, server_default="0")
    note: Mapped[str] = mapped_column(CrdtText, default="")


@dataclass
class Line:
    id: str
    votes: int


class Votes(NamedTuple):
    votes: int


LINES = "SELECT id, votes FROM todo"


async def of_a_database(db: Database) -> None:
    assert_type(await db.execute("INSERT INTO todo (id, note) VALUES ('a', '')"), Result)
    assert_type(await db.fetch_all(LINES), list[Row])
    assert_type(await db.fetch_all(LINES, into=Line), list[Line])
    assert_type(await db.fetch_one(LINES), Row | None)
    assert_type(await db.fetch_one("SELECT votes FROM todo", into=Votes), Votes | None)
    assert_type(db.watch(LINES), Watch[list[Row]])
    assert_type(db.watch(LINES, into=Line), Watch[list[Line]])
    assert_type(db.watch_one(LINES, into=Line), Watch[Line | None])
    assert_type(db.watch(select(Todo)), Watch[list[Todo]])
    assert_type(db.watch(select(Todo.votes)), Watch[list[int]])
    assert_type(db.watch_one(select(Todo)), Watch[Todo | None])
    assert_type(db.watch_rejected(), Watch[Row])
    assert_type(Sync(db, "ws://127.0.0.1:8800").watch_status(), Watch[SyncStatus])
    async for todos in db.watch(select(Todo)):
        assert_type(todos[0].note, str)
        break
    assert_type(await db.changes(), Changes)
    for change in await db.changes():
        assert_type(change, Change)
    async with db.transaction(origin="elsewhere") as tx:
        assert_type(await tx.fetch_all(LINES, into=Line), list[Line])
        assert_type(await tx.fetch_one(LINES), Row | None)
    assert_type(tx.changeset, int | None)
    async with db.text("todo", "a", "note") as text:
        assert_type(await text.save(), int | None)
    for lost in await db.history("todo", "a"):
        assert_type(await db.restore(lost), int | None)
    assert_type(db.session(), AsyncSession)


def of_a_program_without_a_loop(db: BlockingDatabase) -> None:
    assert_type(db.fetch_all(LINES, into=Line), list[Line])
    assert_type(db.fetch_one(LINES), Row | None)
    for todos in db.watch(select(Todo)):
        assert_type(todos, list[Todo])
        break
    with db.text("todo", "a", "note") as text:
        assert_type(text.save(), int | None)
    for lost in db.history("todo", "a"):
        assert_type(db.restore(lost), int | None)
    assert_type(next(db.watch(LINES)), list[Row])
    assert_type(next(db.watch_one(LINES, into=Line)), Line | None)


def test_what_the_types_say_is_so(tmp_path: Path) -> None:
    async def whole(work: Callable[[Database], Awaitable[Any]]) -> None:
        async with Database(tmp_path / "app.db") as db:
            await db.create_all(Base.metadata)
            await work(db)

    asyncio.run(whole(of_a_database))
    with BlockingDatabase(tmp_path / "app.db") as db:
        of_a_program_without_a_loop(db)
