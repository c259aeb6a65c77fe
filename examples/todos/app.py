"""A to-do app with its own copy of the data: an aiohttp server on this machine, and a page.

    python app.py --db mine.db --relay ws://127.0.0.1:8800 --port 8081

The page talks to the server through one WebSocket: it sends what a person does, and gets what the
queries say whenever that changes, whoever changed it. Everything works with the relay away.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from actions import ACTIONS, Message, Refused, told
from aiohttp import WSCloseCode, WSMsgType, web
from models import Base

from reunite import Database, ReuniteError
from reunite.cells.text_edit import Replacement
from reunite.text import Editor
from reunite_transport import Sync

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATIC: Final = Path(__file__).parent / "static"
# What a person types at once, or pastes into a note.
MESSAGE_BYTES_MAX: Final = 1 << 18

# No script but ours, and nobody's page around it but one of this machine (see `reunite demo`).
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self' http://127.0.0.1:* http://localhost:*",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

LISTS: Final = """
    SELECT l.id, l.name, count(t.id) AS total, count(t.id) FILTER (WHERE t.done) AS done,
        coalesce(r.state, 'synced') AS state
    FROM todo_list AS l
        LEFT JOIN todo AS t ON t.list_id = l.id
        LEFT JOIN reunite_rows AS r ON r."table" = 'todo_list' AND r.key = l.id
    GROUP BY l.id ORDER BY l.created, l.name
"""
TODOS: Final = """
    SELECT t.id, t.text, t.done, t.votes, substr(t.note, 1, 120) AS note,
        coalesce(r.state, 'synced') AS state
    FROM todo AS t LEFT JOIN reunite_rows AS r ON r."table" = 'todo' AND r.key = t.id
    WHERE t.list_id = ? ORDER BY t.created DESC, t.id
"""
REFUSALS: Final = """
    SELECT id, "table", key, kind, reason, message, "values" FROM reunite_rejected ORDER BY id
"""


class Device:
    """One copy of the data, and its way to the relay."""

    def __init__(self, name: str, db: Database, relay: str) -> None:
        self.name, self.db, self._relay = name, db, relay
        self.sync = Sync(db, relay)
        # Set when another sync has taken the place of the one that was there before.
        self.renewed = asyncio.Event()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> "Device":
        await self._open.enter_async_context(self.sync)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def reload(self) -> None:
        """Fetch everything from the relay anew, also after sync has stopped; unsent work stays."""
        await self._open.aclose()
        await self.db.reload()
        self.sync = await self._open.enter_async_context(Sync(self.db, self._relay))
        self.renewed.set()
        self.renewed = asyncio.Event()


class Page:
    """One open page: it is told what there is, and asks for what its person does."""

    def __init__(self, device: Device, socket: web.WebSocketResponse) -> None:
        self._device, self._db, self._socket = device, device.db, socket
        self._task_by_name: dict[str, asyncio.Task[None]] = {}
        self._note: OpenNote | None = None

    async def serve(self) -> None:
        """Tell and heed the page until it leaves."""
        self._keep_on("status", self._tell_status())
        self._keep_on("lists", self._tell("lists", self._db.watch(LISTS)))
        self._keep_on("refusals", self._tell("refusals", self._refusals()))
        try:
            async for frame in self._socket:
                if frame.type is WSMsgType.TEXT:
                    await self._heed(frame.data)
        finally:
            for name in list(self._task_by_name):
                await self._stop(name)

    async def _heed(self, frame: str) -> None:
        try:
            message = json.loads(frame)
            do = message.pop("do")
        except (ValueError, KeyError, AttributeError, RecursionError):
            return
        try:
            if do in ACTIONS:
                await ACTIONS[do](self._db, message)
            elif do == "show":
                # A page shows one list.
                todos = self._db.watch(TODOS, (str(message.get("list")),))
                await self._stop("todos")
                self._keep_on("todos", self._tell("todos", todos, list=message.get("list")))
            elif do == "open_note":
                await self._stop("note")
                self._keep_on("note", self._tell_note(str(message.get("todo"))))
            elif do == "close_note":
                await self._stop("note")
            elif do == "edit_note" and self._note is not None:
                await self._note.edit(message)
            elif do == "switch":
                sync = self._device.sync
                await (sync.connect() if message.get("online") is True else sync.disconnect())
            elif do == "reload":
                await self._device.reload()
        except (Refused, ReuniteError) as error:
            await self._send("error", str(error))

    # What a page is told, each by a task of its own.

    async def _tell(self, kind: str, results: AsyncIterator[list[Any]], **more: object) -> None:
        async for rows in results:
            await self._send(kind, [dict(row) for row in rows], **more)

    async def _tell_status(self) -> None:
        await self._send("device", self._device.name)
        facts = ("state", "percent", "reason", "retry_in", "queued")
        while True:
            renewed = self._device.renewed
            async for status in self._device.sync.watch_status():
                await self._send("status", {fact: getattr(status, fact) for fact in facts})
            await renewed.wait()

    async def _refusals(self) -> AsyncIterator[list[Any]]:
        async for lines in self._db.watch(REFUSALS):
            yield told(lines)

    async def _tell_note(self, todo: str) -> None:
        async with self._db.text("todo", todo, "note") as text:
            self._note = note = OpenNote(text)
            await self._send("note", {"text": str(text), "version": note.version}, todo=todo)
            try:
                while True:
                    await self._send("note_changed", await note.news.get(), todo=todo)
            finally:
                self._note = None

    async def _send(self, kind: str, value: object, **more: object) -> None:
        await self._socket.send_json({"kind": kind, "value": value, **more})

    def _keep_on(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._task_by_name[name] = asyncio.create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ReuniteError as error:
            await self._send("error", str(error))
        except ConnectionError:
            pass  # the page has left
        except Exception:
            logging.exception("a page cannot be served any more; it connects again")
            await self._socket.close()

    async def _stop(self, name: str) -> None:
        task = self._task_by_name.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


class OpenNote:
    """A note that several persons type in. The page sends one edit at a time, made on a version;
    one that had not seen the latest is dropped, and the page sends it again upon what it is told.
    So places are only ever adjusted in the page, which knows what was meant (see note.js)."""

    def __init__(self, text: Editor) -> None:
        self._text, self.version = text, 0
        self.news: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        text.observe(self._tell)

    async def edit(self, message: Message) -> None:
        """Do what a person typed: `text` in the place of `length` code points from `at`."""
        if message.get("version") != self.version:
            return
        try:
            self._text.replace(message["at"], message["length"], message["text"])
        except (KeyError, TypeError, IndexError) as error:
            raise Refused("The page sent no edit of this note.") from error
        self._tell([])
        await self._text.save()

    def _tell(self, changes: Sequence[Replacement]) -> None:
        self.version += 1
        self.news.put_nowait({"version": self.version, "changes": changes})


class Server:
    """Serves the page of one device, and each page that is open."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sockets: set[web.WebSocketResponse] = set()
        self.app = web.Application(middlewares=[local_only])
        self.app.add_routes([web.get("/", self._index), web.get("/live", self._live)])
        self.app.add_routes([web.static("/static", STATIC)])
        self.app.on_response_prepare.append(add_headers)
        self.app.on_shutdown.append(self._close)

    async def _index(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html")

    async def _live(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=MESSAGE_BYTES_MAX)
        await socket.prepare(request)
        self._sockets.add(socket)
        try:
            await Page(self._device, socket).serve()
        finally:
            self._sockets.discard(socket)
        return socket

    async def _close(self, _: web.Application) -> None:
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)


@web.middleware
async def local_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serve pages of this server only: no other site, also none whose name was made to lead here,
    may read or write the data."""
    host = urlsplit(f"//{request.host}").hostname
    origin = request.headers.get("Origin")
    if host not in ("127.0.0.1", "localhost") or origin not in (None, f"http://{request.host}"):
        raise web.HTTPForbidden(text="This app is for pages of its own on this machine.")
    return await handler(request)


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY_HEADERS)


async def main(options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with Database(options.db) as db:
        await db.create_all(Base.metadata)
        async with Device(options.name or options.db.stem, db, options.relay) as device:
            runner = web.AppRunner(Server(device).app, access_log=None, shutdown_timeout=2)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", options.port).start()
                print(f"{device.name}: http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
                await stopped.wait()
            finally:
                await runner.cleanup()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A to-do app that works offline.")
    parser.add_argument("--db", type=Path, default=Path("todos.db"), help="this device's file")
    parser.add_argument("--relay", default="ws://127.0.0.1:8800", help="the relay's address")
    parser.add_argument("--port", type=int, default=8081, help="where the page is; 0 for any")
    parser.add_argument("--name", help="what the device is called; the file's name if not given")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        asyncio.run(main(parse()))
    except (ReuniteError, OSError) as error:
        sys.exit(f"todos: {error}")
