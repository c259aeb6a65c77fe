"""`reunite demo --web`: three devices of the to-do app side by side, with a relay between them.

Owns a page that frames the three apps, and a relay with its Postgres in a temporary folder. Each
device is a process of `examples/todos/app.py` as its users run it; this module only starts them and
speaks to them as their pages do. Nothing is left behind.
"""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from reunite.errors import UsageError
from reunite_transport.demo import POSTGRES_SETTINGS
from reunite_transport.relay.postgres_query import fetch_rows
from reunite_transport.relay.run import RunningRelay, running_relay

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

DEVICES: Final = ("Laptop", "Tablet", "Phone")
PAGE: Final = Path(__file__).parent / "demo_page"
# In a wheel the app is inside of the package (see pyproject.toml), in a checkout where users copy
# it from.
APP_FOLDERS: Final = (
    Path(__file__).parent / "todos",
    Path(__file__).parents[2] / "examples" / "todos",
)
START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 5.0
# How often the relay is asked for its last commit.
LOOK_SECONDS: Final = 0.25
# So that a person can read each step of what is played.
STEP_SECONDS: Final = 1.6

FIRST_TODOS: Final = ("Pack the tent", "Water the plants", "Ask Ada for the spare key")
CONTENT_SECURITY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
    " frame-src http://127.0.0.1:* http://localhost:*; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)

COUNTS: Final = "SELECT (SELECT count(*) FROM todo_list), (SELECT count(*) FROM todo)"
INSERT: Final = """
    INSERT INTO todo (id, list_id, text, created, edited)
    SELECT gen_random_uuid()::text, id, 'Via backend: call the customer', moment, moment
    FROM todo_list,
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"') AS moment
    ORDER BY todo_list.created LIMIT 1
    RETURNING id
"""


def app_folder() -> Path:
    """Where the to-do app is. Raises UsageError for an installation without it."""
    for folder in APP_FOLDERS:
        if (folder / "app.py").is_file():
            return folder
    raise UsageError("this installation has no to-do app; `pip install reunite` brings one")


class Device:
    """One of the three: its process, and a connection to it like that of its page."""

    def __init__(self, name: str, url: str, on_change: Callable[[], None]) -> None:
        self.name, self.url = name, url
        self.heard: dict[str, Any] = {}
        self._on_change = on_change
        self._news = asyncio.Event()
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def follow(self, http: aiohttp.ClientSession) -> None:
        """Keep what the device tells, until it ends."""
        async with http.ws_connect(f"{self.url}live") as self._socket:
            async for frame in self._socket:
                told = json.loads(frame.data)
                self._hear(told["kind"], told["value"])
        self._hear("status", {"state": "stopped", "queued": 0})

    def _hear(self, kind: str, value: object) -> None:
        self.heard[kind] = value
        self._news.set()
        self._news = asyncio.Event()
        if kind == "status":
            self._on_change()

    async def do(self, what: str, **facts: object) -> None:
        """Do what a person does in the page."""
        await self.until(lambda _: self._socket is not None)
        assert self._socket is not None
        await self._socket.send_json({"do": what, **facts})

    async def until(self, condition: Callable[[dict[str, Any]], object]) -> None:
        """Wait until what the device has told is so."""
        async with asyncio.timeout(START_SECONDS_MAX):
            while not condition(self.heard):
                await self._news.wait()

    async def has(self, *texts: str) -> None:
        """Wait until the list that this connection shows has todos with these texts."""
        await self.until(lambda _: all(self.todo(text) for text in texts))

    def todo(self, text: str) -> str | None:
        """The key of the newest todo with this text, in the list that this connection shows."""
        todos = self.heard.get("todos", ())
        return next((todo["id"] for todo in todos if todo["text"] == text), None)


class Demo:
    """The relay, the devices, and everybody who looks at them."""

    def __init__(self, relay: RunningRelay) -> None:
        self._relay = relay
        self.devices: list[Device] = []
        self._counts = (0, 0)
        self._commits = 0
        self._caption = ""
        self._changed = asyncio.Event()
        self._playing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self) -> None:
        """Have everybody who looks be told."""
        self._changed.set()
        self._changed = asyncio.Event()

    def state(self) -> dict[str, object]:
        """What the page shows around the devices."""
        lists, todos = self._counts
        names = ("state", "queued")
        devices = [
            {"name": device.name, "url": device.url}
            | {name: device.heard.get("status", {}).get(name) for name in names}
            for device in self.devices
        ]
        relay = {"commits": self._commits, "lists": lists, "todos": todos}
        told = {"caption": self._caption, "playing": self._playing}
        return {"devices": devices, "relay": relay, **told}

    async def look(self, http: aiohttp.ClientSession) -> None:
        """Follow the relay's last commit, and what Postgres holds after it."""
        parts = urlsplit(self._relay.url)
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"http://{parts.netloc}/health") as answer:
                    head = (await answer.json(content_type=None))["head"]
                if head != self._commits:
                    self._commits = head
                    ((lists, todos),) = await fetch_rows(self._relay.postgres, COUNTS)
                    self._counts = (int(str(lists)), int(str(todos)))
                    self.changed()
            await asyncio.sleep(LOOK_SECONDS)

    async def tell(self, socket: web.WebSocketResponse) -> None:
        """Tell one page of the state whenever it has changed."""
        told: dict[str, object] | None = None
        while True:
            changed = self._changed
            if (state := self.state()) != told:
                told = state
                await socket.send_json(state)
            await changed.wait()

    def heed(self, wish: str) -> None:
        """Do what the page's buttons say."""
        if wish == "backend":
            self._begin(self._insert())
        elif wish == "drift" and not self._playing:
            self._begin(self._drift())

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _insert(self) -> None:
        await fetch_rows(self._relay.postgres, INSERT)

    async def fill(self) -> None:
        """Give the first list something to do."""
        for text in FIRST_TODOS:
            await self.devices[0].do("add", list="sample", text=text)

    async def _drift(self) -> None:
        """Play a conflict: two devices offline, all three edit the same todos, and meet again."""
        self._playing = True
        try:
            await self._play(*self.devices)
        except TimeoutError:
            await self._say("Somebody took away what this was about. Try again.")
        finally:
            self._playing = False
            self.changed()

    async def _play(self, laptop: Device, tablet: Device, phone: Device) -> None:
        milk, ferry = "Buy milk", "Book the ferry"
        for device in self.devices:
            await device.do("switch", online=True)
        await tablet.until(lambda heard: heard.get("lists"))
        shown = tablet.heard["lists"][0]["id"]
        for device in self.devices:
            await device.do("show", list=shown)
        for text in (ferry, milk):
            await tablet.do("add", list=shown, text=text)
        for device in self.devices:
            await device.has(milk, ferry)
        milk_key, ferry_key = tablet.todo(milk), tablet.todo(ferry)
        await self._say("Two new todos are on all three devices.")
        await self._say("Laptop and Phone lose their network.")
        for device in (laptop, phone):
            await device.do("switch", online=False)
            await device.until(lambda heard: heard["status"]["state"] == "disconnected")
        await self._say("Laptop edits the text …", pause=0.4)
        await laptop.do("edit", todo=milk_key, text="Buy oat milk, two litres")
        await self._say("… and Phone ticks the same todo.", pause=0.4)
        await phone.do("check", todo=milk_key, done=True)
        await self._say("All three vote for the ferry.", pause=0.4)
        for device in self.devices:
            await device.do("vote", todo=ferry_key)
        await self._say("Phone adds one more, in its own file.", pause=0.4)
        await phone.do("add", list=shown, text="Ask about the tide")
        await asyncio.sleep(STEP_SECONDS)
        await self._say("The network is back.", pause=0.4)
        for device in (laptop, phone):
            await device.do("switch", online=True)
        for device in self.devices:
            await device.until(
                lambda heard: any(
                    todo["id"] == ferry_key and todo["votes"] >= len(DEVICES)
                    for todo in heard["todos"]
                )
            )
        await self._say("Merged: the new text and the tick, three votes, and all that was added.")

    async def _say(self, caption: str, pause: float = STEP_SECONDS) -> None:
        if self._caption:
            await asyncio.sleep(STEP_SECONDS - min(pause, STEP_SECONDS))
        self._caption = caption
        self.changed()
        await asyncio.sleep(pause)


@asynccontextmanager
async def running_demo(port: int) -> AsyncIterator[str]:
    """Run the demo for as long as the block lasts; its page is at the address that is given.
    Raises UsageError, and OSError for a port that is taken."""
    folder = app_folder()
    async with AsyncExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="reunite-demo-")))
        relay = await stack.enter_async_context(
            running_relay(data=data / "postgres", port=0, settings=POSTGRES_SETTINGS)
        )
        demo = Demo(relay)
        processes = [
            await stack.enter_async_context(_process(folder, name, data, relay.url))
            for name in DEVICES
        ]
        urls = [await _address(process) for process in processes]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        demo.devices = [
            Device(name, url, demo.changed) for name, url in zip(DEVICES, urls, strict=True)
        ]
        following = [device.follow(http) for device in demo.devices]
        await stack.enter_async_context(_beside(*following, demo.look(http)))
        await demo.fill()
        yield await stack.enter_async_context(_page(demo, port))


@asynccontextmanager
async def _process(folder: Path, name: str, data: Path, relay: str) -> AsyncIterator[Process]:
    """A device in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(folder / "app.py"), "--name", name, "--relay", relay),
        *("--db", str(data / f"{name.lower()}.db"), "--port", "0"),
        stdin=DEVNULL,
        stdout=PIPE,
        # Ctrl-C is ours: it ends them in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _address(process: Process) -> str:
    """Where a device's page is, as it says once it listens."""
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS_MAX):
        line = (await process.stdout.readline()).decode()
    if not line:
        raise UsageError("a device did not start; why, it said above")
    return line.partition(": ")[2].strip()


@asynccontextmanager
async def _beside(*works: Any) -> AsyncIterator[None]:
    """Run tasks beside the block."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _page(demo: Demo, port: int) -> AsyncIterator[str]:
    """The page that shows the three."""
    sockets: set[web.WebSocketResponse] = set()

    @web.middleware
    async def local_only(request: web.Request, handler: _Handler) -> web.StreamResponse:
        # Of no other site, also not of one whose name was made to lead here.
        host = urlsplit(f"//{request.host}").hostname
        origin = request.headers.get("Origin")
        if host not in ("127.0.0.1", "localhost") or origin not in (None, f"http://{request.host}"):
            raise web.HTTPForbidden
        return await handler(request)

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "index.html")

    async def connect(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=1 << 12)
        await socket.prepare(request)
        sockets.add(socket)
        async with _beside(demo.tell(socket)):
            async for frame in socket:
                demo.heed(str(frame.data))
        sockets.discard(socket)
        return socket

    app = web.Application(middlewares=[local_only])
    app.add_routes([web.get("/", index), web.get("/live", connect), web.static("/static", PAGE)])
    app.on_response_prepare.append(add_headers)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS_MAX)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await _close_all(sockets)
        await runner.cleanup()


async def _close_all(sockets: Iterable[web.WebSocketResponse]) -> None:
    for socket in list(sockets):
        await socket.close()
