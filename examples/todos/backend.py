"""A backend of the to-do app: a small REST service on the relay's Postgres, with the same models.

    python backend.py --postgres "postgresql://postgres@/postgres?host=..."
    curl http://127.0.0.1:8090/
    curl -X POST http://127.0.0.1:8090/ -d '{"text": "Call the customer"}'

It knows nothing of sync: it writes with SQL of its own, and the devices have it at once.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from aiohttp import web
from models import SAMPLE, Todo, TodoList
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

SESSIONS: Final = web.AppKey("sessions", async_sessionmaker[AsyncSession])
TEXT_MAX: Final = 500


async def list_todos(request: web.Request) -> web.Response:
    """All todos, the newest first."""
    newest_first = (
        select(Todo, TodoList.name)
        .join(TodoList, TodoList.id == Todo.list_id)
        .order_by(Todo.created.desc())
    )
    async with request.app[SESSIONS]() as session:
        found = [
            {"list": name, "text": todo.text, "done": todo.done, "votes": todo.votes}
            for todo, name in await session.execute(newest_first)
        ]
    return web.json_response(found)


async def add_todo(request: web.Request) -> web.Response:
    """Add a todo: {"text": ..., "list": the key of a list, the first one if not given}."""
    try:
        wanted = await request.json()
        text, list_id = wanted["text"].strip(), wanted.get("list", SAMPLE)
    except (ValueError, TypeError, KeyError, AttributeError):
        text, list_id = "", SAMPLE
    if not text or len(text) > TEXT_MAX:
        raise web.HTTPBadRequest(text=f'send {{"text": ...}} of 1 to {TEXT_MAX} characters\n')
    todo = Todo(list_id=list_id, text=f"Via backend: {text}")
    try:
        async with request.app[SESSIONS].begin() as session:
            session.add(todo)
    except IntegrityError:
        raise web.HTTPNotFound(text="there is no such list\n") from None
    return web.json_response({"id": todo.id}, status=201)


@web.middleware
async def told_when_empty(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say what to do where no device has brought the tables yet."""
    try:
        return await handler(request)
    except ProgrammingError:
        raise web.HTTPServiceUnavailable(text="no tables yet: start app.py first\n") from None


async def main(options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    url = options.postgres.replace("postgresql:", "postgresql+asyncpg:", 1)
    engine = create_async_engine(url)
    app = web.Application(middlewares=[told_when_empty])
    app[SESSIONS] = async_sessionmaker(engine, expire_on_commit=False)
    app.add_routes([web.get("/", list_todos), web.post("/", add_todo)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", options.port).start()
        print(f"backend: http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
        await engine.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A REST service on the relay's Postgres.")
    parser.add_argument("--postgres", required=True, help="the URL that `reunite relay` prints")
    parser.add_argument("--port", type=int, default=8090, help="where to listen; 0 for any")
    try:
        asyncio.run(main(parser.parse_args()))
    except OSError as error:
        sys.exit(f"backend: {error}")
