"""What tests of live queries share: a file with an app's tables, and ways to look at watches."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from reunite import Database, Watch
from tests.engine.peer import Clock

SCHEMA = (
    "CREATE TABLE list (id TEXT PRIMARY KEY, name TEXT)",
    "CREATE TABLE todo (id TEXT PRIMARY KEY, list TEXT, title TEXT, done INTEGER DEFAULT 0)",
    "CREATE TABLE draft (id TEXT PRIMARY KEY, title TEXT)",
    "CREATE TABLE audit (what TEXT)",
    "CREATE TRIGGER log_it AFTER INSERT ON list BEGIN"
    " INSERT INTO todo (id, list, title) VALUES ('of ' || NEW.id, NEW.id, 'first'); END",
    "CREATE VIEW open AS SELECT id, title FROM todo WHERE NOT done",
    "INSERT INTO list VALUES ('l', 'shop')",
    "DELETE FROM todo",
)
TITLES = "SELECT title FROM todo ORDER BY id"
Use = Callable[[Callable[[Database], Awaitable[None]]], None]


def run(path: Path, work: Callable[[Database], Awaitable[None]]) -> None:
    """Run a coroutine with an open database that tracks `list` and `todo`."""

    async def whole() -> None:
        async with Database(path, clock=Clock()) as db:
            for statement in SCHEMA:
                await db.execute(statement)
            await db.track("list", "todo")
            async with asyncio.timeout(60):
                await work(db)

    asyncio.run(whole())


async def add(db: Database, *titles: str) -> None:
    """Add a todo for each title, in a transaction of its own."""
    for title in titles:
        await db.execute("INSERT INTO todo (id, list, title) VALUES (?, 'l', ?)", (title, title))


async def first(watch: Watch[Any]) -> list[Any]:
    """The values of the next row; none where there is no row."""
    return list(await anext(watch) or ())


async def values(watch: Watch[Any]) -> list[Any]:
    """The next rows, of one column."""
    return [row[0] for row in await anext(watch)]


class Quiet:
    """Shows that a watch says nothing: it was looked after, and still waits."""

    def __init__(self, db: Database, watch: Watch[Any]) -> None:
        self._db = db
        self._count = 0
        self._sentinel = db.watch("SELECT count(*) FROM list")
        self.next = asyncio.ensure_future(values(watch))

    async def check(self) -> None:
        """Write what another watch tells; this one was looked at in the same moment."""
        await anext(self._sentinel)
        self._count += 1
        await self._db.execute("DELETE FROM list WHERE id = 'sentinel'")
        await self._db.execute(
            "UPDATE list SET name = ? WHERE id = 'l'", (f"sentinel {self._count}",)
        )
        named = self._db.watch("SELECT name FROM list WHERE id = 'l'")
        assert await values(named) == [f"sentinel {self._count}"]
        assert not self.next.done()


def runs(db: Database) -> list[str]:
    """The queries that are run from now on."""
    found: list[str] = []

    def note(sql: str) -> None:
        if sql.startswith("SELECT") and "_reunite" not in sql:
            found.append(sql)

    db._live._driver.conn.set_trace_callback(note)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop go on until it is so."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)
