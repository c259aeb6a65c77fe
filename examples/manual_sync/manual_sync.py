"""Sync by hand: a file and an HTTP API of your own, both ways, without a relay.

python api.py 8000
python manual_sync.py todo.db http://127.0.0.1:8000
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable

import aiohttp

from reunite import Database

TODO = "CREATE TABLE IF NOT EXISTS todo (id TEXT PRIMARY KEY, title TEXT, done INTEGER DEFAULT 0)"
# Not tracked: how far this file has sent and fetched is its own business.
PLACE = "CREATE TABLE IF NOT EXISTS place (name TEXT PRIMARY KEY, value TEXT)"
KEEP = "INSERT OR REPLACE INTO place VALUES (?, ?)"
WRITE = """INSERT INTO todo (id, title, done) VALUES (:id, :title, :done)
           ON CONFLICT (id) DO UPDATE SET title = excluded.title, done = excluded.done"""


async def place(db: Database, name: str) -> str | None:
    row = await db.fetch_one("SELECT value FROM place WHERE name = ?", (name,))
    return row["value"] if row else None


async def send(db: Database, http: aiohttp.ClientSession) -> None:
    async for changes in db.watch_changes("todo", after=await place(db, "sent")):
        for change in changes:
            if change.origin == "here" and change.row:
                edit = {column: change.row[column] for column in change.columns}
                await http.patch(f"/todos/{change.key!s}", json=edit)
            elif change.origin == "here":
                await http.delete(f"/todos/{change.key!s}")
        # Only now: what was sent and not noted is sent again, to the same effect.
        await db.execute(KEEP, ("sent", changes.token))


async def fetch(db: Database, http: aiohttp.ClientSession) -> None:
    sent = await place(db, "sent")
    async with http.get("/todos", params={"since": await place(db, "fetched") or ""}) as answer:
        news = await answer.json()
    async with db.transaction(origin="api") as tx:
        # What was edited here since may be newer than what came: it stays, and comes once more.
        edited = await tx.changes("todo", after=sent)
        mine = {change.key for change in edited if change.origin == "here"}
        rows = [row for row in news["rows"] if row["id"] not in mine]
        gone = [(key,) for key in news["gone"] if key not in mine]
        await tx.executemany(WRITE, rows)
        await tx.executemany("DELETE FROM todo WHERE id = ?", gone)
        if (rows, len(gone)) == (news["rows"], len(news["gone"])):
            await tx.execute(KEEP, ("fetched", news["now"]))


async def again(work: Callable[[], Awaitable[None]], pause: float) -> None:
    """Each by itself: a TaskGroup that is cancelled while one of its tasks fails goes on."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # The API is away.
            await work()
        await asyncio.sleep(pause)


async def sync(path: str, url: str, pause: float = 5.0) -> None:
    async with Database(path) as db, aiohttp.ClientSession(url, raise_for_status=True) as http:
        await db.execute(TODO)
        await db.execute(PLACE)
        await db.track("todo")
        async with asyncio.TaskGroup() as both:
            both.create_task(again(lambda: send(db, http), pause))
            both.create_task(again(lambda: fetch(db, http), pause))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(sync(sys.argv[1], sys.argv[2]))
