"""What the app and its backend have: lists, and todos in them. SQLite and Postgres alike.

Keys are random texts, so that two devices that are offline never choose the same one. Times are
UTC as text, which sorts in the order of time. A list's name is UNIQUE, which no device can promise
while it is offline: the relay's Postgres decides, and the later of two is refused.
"""

from datetime import UTC, datetime
from uuid import uuid4

from sqlalchemy import Connection, ForeignKey, Text, event, false, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from reunite.sqlalchemy_types import Counter, CrdtText

# The list that every device has from the start, under one key, so that it is one list.
SAMPLE = "sample"
SAMPLE_NAME = "First list"


def new_key() -> str:
    """A key that nobody else has."""
    return uuid4().hex


def now() -> str:
    """The present moment as the columns `created` and `edited` hold it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Base(DeclarativeBase):
    """The tables of the app."""


class TodoList(Base):
    """A list of todos."""

    __tablename__ = "todo_list"

    id: Mapped[str] = mapped_column(Text, primary_key=True, default=new_key)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created: Mapped[str] = mapped_column(Text, default=now)


class Todo(Base):
    """Something to do. Votes and notes merge inside: nobody's are lost."""

    __tablename__ = "todo"

    id: Mapped[str] = mapped_column(Text, primary_key=True, default=new_key)
    list_id: Mapped[str] = mapped_column(ForeignKey(TodoList.id), index=True)
    text: Mapped[str] = mapped_column(Text)
    done: Mapped[bool] = mapped_column(default=False, server_default=false())
    votes: Mapped[int] = mapped_column(Counter, default=0, server_default="0")
    note: Mapped[str] = mapped_column(CrdtText, default="", server_default="")
    created: Mapped[str] = mapped_column(Text, default=now)
    edited: Mapped[str] = mapped_column(Text, default=now, onupdate=now)


# What is in a table when it is taken into sync is what every device begins with: it is one row, and
# what anybody did to it since stays. A row that the app inserts later would count as an edit.
@event.listens_for(TodoList.__table__, "after_create")
def _begin_with_a_list(_: object, connection: Connection, **_options: object) -> None:
    first = {"id": SAMPLE, "name": SAMPLE_NAME, "created": "2026-01-01T00:00:00.000+00:00"}
    connection.execute(insert(TodoList).values(first))
