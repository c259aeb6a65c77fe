"""The example of sync by hand, against its API: both ways, through failures and restarts."""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from examples.manual_sync.api import Todos, app
from examples.manual_sync.manual_sync import KEEP, PLACE, TODO, fetch, sync
from reunite import Database
from tests.e2e.world import until

PAUSE = 0.02


@asynccontextmanager
async def api(todos: Todos, port: int = 0) -> AsyncIterator[str]:
    """The API over HTTP, at this URL."""
    runner = web.AppRunner(app(todos), shutdown_timeout=0)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", port))
    await web.SockSite(runner, listening).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        await runner.cleanup()


def in_file(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as conn:
        rows = conn.execute("SELECT id, title, done FROM todo ORDER BY id").fetchall()
    conn.close()
    return rows


async def write(path: Path, *statements: str) -> None:
    """Write as any SQLite tool does, and not in the event loop: a transaction that the example has
    begun waits for that."""

    def run_all() -> None:
        conn = sqlite3.connect(path, isolation_level=None, timeout=10)
        for statement in statements:
            conn.execute(statement)
        conn.close()

    await asyncio.to_thread(run_all)


def at_api(todos: Todos) -> list[tuple[Any, ...]]:
    rows = [todo for _, todo in todos.by_id.values() if todo]
    return sorted((row["id"], row["title"], row["done"]) for row in rows)


def run(path: Path, work: Callable[[Todos, str], Awaitable[None]]) -> None:
    async def whole() -> None:
        todos = Todos()
        todos.write("api", {"title": "from the API"})
        async with api(todos) as url:
            await work(todos, url)

    asyncio.run(asyncio.wait_for(whole(), 60))


@asynccontextmanager
async def syncing(path: Path, url: str) -> AsyncIterator[None]:
    """While the example runs."""
    running = asyncio.create_task(sync(str(path), url, PAUSE))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled(), "it ended by itself"


def test_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "todo.db"

    async def work(todos: Todos, url: str) -> None:
        async with syncing(path, url):
            await until(lambda: _has(path, "api"), "the first fetch")
            await write(path, "INSERT INTO todo VALUES ('here', 'from here', 0)")
            await until(lambda: len(at_api(todos)) == 2, "it is sent")
            todos.write("here", {"done": 1})
            await write(path, "UPDATE todo SET title = 'renamed here' WHERE id = 'here'")
            expected = [("api", "from the API", 0), ("here", "renamed here", 1)]
            await until(lambda: at_api(todos) == in_file(path) == expected, "both edits")
            await write(path, "DELETE FROM todo WHERE id = 'api'")
            todos.write("here", None)
            await until(lambda: at_api(todos) == in_file(path) == [], "both deletes")

    run(path, work)


def test_what_was_fetched_is_not_sent_back(tmp_path: Path) -> None:
    path = tmp_path / "todo.db"

    async def work(todos: Todos, url: str) -> None:
        async with syncing(path, url):
            await until(lambda: _has(path, "api"), "the first fetch")
            before = todos.now
            await write(path, "INSERT INTO todo VALUES ('here', 'from here', 0)")
            await until(lambda: len(at_api(todos)) == 2, "it is sent")
        assert todos.now == before + 1

    run(path, work)


def test_what_stood_back_behind_an_edit_here_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "todo.db"

    async def work(todos: Todos, url: str) -> None:
        todos.write("api", {"done": 1})
        async with Database(path) as db, aiohttp.ClientSession(url) as http:
            await db.execute(TODO)
            await db.execute(PLACE)
            await db.track("todo")
            await db.execute("INSERT INTO todo VALUES ('api', 'from here', 0)")
            todos.write("api", {"title": "from here"})
            await fetch(db, http)
            assert in_file(path) == [("api", "from here", 0)], "sent, and not yet noted"
            await db.execute(KEEP, ("sent", (await db.changes("todo")).token))
            await fetch(db, http)
            assert in_file(path) == [("api", "from here", 1)]

    run(path, work)


def test_it_goes_on_after_a_restart_and_while_the_api_is_away(tmp_path: Path) -> None:
    path = tmp_path / "todo.db"

    async def work(todos: Todos, url: str) -> None:
        async with syncing(path, url):
            await until(lambda: _has(path, "api"), "the first fetch")
        await write(path, "INSERT INTO todo VALUES ('offline', 'while it did not run', 0)")
        todos.write("later", {"title": "while it did not run"})
        with socket.create_server(("127.0.0.1", 0)) as unanswered:
            nowhere = f"http://127.0.0.1:{unanswered.getsockname()[1]}"
        async with syncing(path, nowhere):
            for _ in range(3):
                await asyncio.sleep(PAUSE)
        async with syncing(path, url):
            await until(lambda: len(at_api(todos)) == 3 and at_api(todos) == in_file(path), "all")

    run(path, work)


def _has(path: Path, key: str) -> bool:
    try:
        return key in [row[0] for row in in_file(path)]
    except sqlite3.OperationalError:
        return False
