"""What a person can do with lists and todos: each action is one transaction, so one changeset.

An action takes the open database and what the page sent, which is checked here and nowhere else.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, Protocol, TypeAlias

from models import Base, Todo, TodoList
from sqlalchemy import Executable, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from reunite import Database

NAME_MAX: Final = 80
TEXT_MAX: Final = 500
KEY_MAX: Final = 64

# A JSON object of the page; nothing in it is trusted.
Message: TypeAlias = dict[str, Any]
Action: TypeAlias = Callable[[Database, Message], Awaitable[None]]


class Refused(Exception):
    """What the page asked for cannot be done; the message is for the person."""


# Lists.


async def add_list(db: Database, message: Message) -> None:
    list_id, name = _key(message, "list"), _words(message, "name", NAME_MAX)
    await _run(db, insert(TodoList).values(id=list_id, name=name))


async def rename_list(db: Database, message: Message) -> None:
    list_id, name = _key(message, "list"), _words(message, "name", NAME_MAX)
    await _run(db, update(TodoList).where(TodoList.id == list_id).values(name=name))


async def delete_list(db: Database, message: Message) -> None:
    list_id = _key(message, "list")
    await _run(
        db,
        delete(Todo).where(Todo.list_id == list_id),
        delete(TodoList).where(TodoList.id == list_id),
    )


# Todos.


async def add(db: Database, message: Message) -> None:
    list_id, words = _key(message, "list"), _words(message, "text", TEXT_MAX)
    await _run(db, insert(Todo).values(list_id=list_id, text=words))


async def edit(db: Database, message: Message) -> None:
    todo, words = _key(message, "todo"), _words(message, "text", TEXT_MAX)
    await _run(db, update(Todo).where(Todo.id == todo).values(text=words))


async def check(db: Database, message: Message) -> None:
    todo, done = _key(message, "todo"), message.get("done") is True
    await _run(db, update(Todo).where(Todo.id == todo).values(done=done))


async def vote(db: Database, message: Message) -> None:
    # What is added counts, however many add at once: see Counter.
    todo = _key(message, "todo")
    await _run(db, update(Todo).where(Todo.id == todo).values(votes=Todo.votes + 1))


async def remove(db: Database, message: Message) -> None:
    await _run(db, delete(Todo).where(Todo.id == _key(message, "todo")))


async def remove_all(db: Database, message: Message) -> None:
    await _run(db, delete(Todo).where(Todo.list_id == _key(message, "list")))


# What the relay refused: see the table reunite_rejected.


async def dismiss(db: Database, message: Message) -> None:
    async with db.session() as session, session.begin():
        for line in await _refused(session, message):
            await session.execute(_FORGET, {"id": line["id"]})


async def retry(db: Database, message: Message) -> None:
    """Write again what was refused, a list under a name that is free, and with it its todos."""
    try:
        async with db.session() as session, session.begin():
            for line in await _refused(session, message):
                await _write_again(session, line)
                await session.execute(_FORGET, {"id": line["id"]})
    except IntegrityError as error:
        raise Refused("It still cannot be: what it belongs to is gone.") from error


_FORGET = text("DELETE FROM reunite_rejected WHERE id = :id")
_REFUSED = text(
    'SELECT id, "table", key, kind, "values" FROM reunite_rejected WHERE id = :id'
    " OR \"table\" = 'todo' AND \"values\" ->> 'list_id' ="
    " (SELECT key FROM reunite_rejected WHERE id = :id AND kind = 'insert')"
    ' ORDER BY "table" DESC, id'
)


async def _refused(session: AsyncSession, message: Message) -> list[Any]:
    """The line that the page names, and where that is a list those of its todos behind it."""
    number = message.get("refusal")
    if not isinstance(number, int):
        raise Refused("The page named no refusal.")
    return list((await session.execute(_REFUSED, {"id": number})).mappings())


async def _write_again(session: AsyncSession, line: Any) -> None:
    table = Base.metadata.tables[line["table"]]
    row = table.c.id == line["key"]
    values = {name: _meant(value) for name, value in json.loads(line["values"]).items()}
    if line["table"] == TodoList.__tablename__ and "name" in values:
        others = select(TodoList.name).where(TodoList.id != line["key"])
        values["name"] = free_name(values["name"], set(await session.scalars(others)))
    if line["kind"] == "delete":
        await session.execute(delete(table).where(row))
    elif line["kind"] == "insert":
        await session.execute(insert(table).values(id=line["key"], **values))
    else:
        if "votes" in values:
            values["votes"] = table.c.votes + values["votes"]
        await session.execute(update(table).where(row).values(values))


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or with the first number behind it that makes it another one than those."""
    return next(each for each in _numbered(name) if each not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name} {number}" for number in count(2))


def _meant(value: Any) -> Any:
    """What a line has of a column: its value, or what was done to one that merges."""
    if isinstance(value, dict):
        return value["add"] if "add" in value else value["after"]
    return value


class Line(Protocol):
    """A line of reunite_rejected."""

    def __getitem__(self, name: str, /) -> Any: ...


def told(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """What was refused, in words, for the lines of reunite_rejected; the todos of a refused list
    go without saying."""
    new_lists = {line["key"]: line["id"] for line in lines if line["kind"] == "insert"}
    values_by_id = {line["id"]: json.loads(line["values"]) for line in lines}
    within = Counter(
        new_lists[values["list_id"]]
        for values in values_by_id.values()
        if values.get("list_id") in new_lists
    )
    return [
        {
            "id": line["id"],
            "what": _what(line, values_by_id[line["id"]], within[line["id"]]),
            "why": _why(line["message"]),
            "said": line["message"],
            "again": _again(line),
        }
        for line in lines
        if values_by_id[line["id"]].get("list_id") not in new_lists
    ]


def _what(line: Line, values: Mapping[str, Any], todos: int) -> str:
    noun = "list" if line["table"] == TodoList.__tablename__ else "todo"
    named = values.get("name") or values.get("text")
    quoted = f" “{named}”" if named else ""
    behind = f" with {todos} todo{'s' if todos > 1 else ''}" if todos else ""
    deed = {"insert": "New", "delete": "Deleted"}.get(line["kind"], "Changed")
    return f"{deed} {noun}{quoted}{behind}"


def _again(line: Line) -> str | None:
    """What to call another try; None where it would end as this one did."""
    if line["reason"] in ("local", "declared"):
        return None
    return "Keep under another name" if _is_taken(line["message"]) else "Try again"


def _is_taken(message: str) -> bool:
    return "unique constraint" in message


def _why(message: str) -> str:
    if _is_taken(message):
        return "another list has this name already"
    if "foreign key" in message:
        return "it belongs to what another device deleted, or still uses"
    return message


# Statements and what comes of them.


async def _run(db: Database, *statements: Executable) -> None:
    """Statements in one transaction: sent, merged and refused as one."""
    try:
        async with db.session() as session, session.begin():
            for statement in statements:
                await session.execute(statement)
    except IntegrityError as error:
        if "UNIQUE" in str(error):
            raise Refused("There is a list of this name already.") from error
        raise Refused("This list is gone: somebody deleted it.") from error


def _words(message: Message, field: str, length_max: int) -> str:
    found = message.get(field)
    trimmed = found.strip() if isinstance(found, str) else ""
    if not trimmed:
        raise Refused("Write something first.")
    if len(trimmed) > length_max:
        raise Refused(f"That is too long: {length_max} characters is the most.")
    return trimmed


def _key(message: Message, field: str) -> str:
    found = message.get(field)
    if not isinstance(found, str) or not 0 < len(found) <= KEY_MAX:
        raise Refused(f"The page named no {field}.")
    return found


_ACTIONS = [add_list, rename_list, delete_list, add, edit, check, vote, remove, remove_all]
_ACTIONS += [dismiss, retry]
# By the names that the page calls them.
ACTIONS: Final[dict[str, Action]] = {action.__name__: action for action in _ACTIONS}
