"""The nodes of a mix: relays, clients behind proxies and a Postgres, each a process of its own."""

import asyncio
import sqlite3
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reunite_simulations import observe
from reunite_transport.relay.embedded import EmbeddedPostgres
from tests.e2e.journal import count_returned, is_quiet
from tests.e2e.processes import kill, mixed_client_process, relay_process
from tests.e2e.proxy import Proxy
from tests.e2e.world import SECONDS_MAX, fetch

# A healed world comes to rest in a second or two; reached only by one that does not.
REST_SECONDS_MAX: Final = 60.0
# Transactions of each client in a run: of so many some append to lists.
WRITES_MIN: Final = 30
# Rows that answer each other do so at once.
QUIET_SECONDS: Final = 1.5
# Nobody listens on port 0.
NOWHERE: Final = "ws://127.0.0.1:0/sync"


@dataclass
class RelayNode:
    """One relay, whichever process it is. Whoever holds `turn` may end it.

    Each life has a port of its own. While there is none, `proxies` lead nowhere: its last port may
    be somebody else's by now.
    """

    name: str
    postgres_url: str
    log: Path
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    proxies: set[Proxy] = field(default_factory=set)
    _url: str = NOWHERE
    _life: AsyncExitStack = field(default_factory=AsyncExitStack)
    _process: Process | None = None

    @property
    def process(self) -> Process:
        """The process of now, or the last one."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    async def start(self) -> None:
        """Start it; returns when it listens."""
        self._process, url = await self._life.enter_async_context(
            relay_process(self.postgres_url, log=self.log)
        )
        self._move(url)

    def lead_here(self, proxy: Proxy) -> None:
        """Let new connections of a proxy come here, and wherever this relay will be."""
        self.proxies.add(proxy)
        proxy.lead_to(self._url)

    async def kill(self) -> None:
        """SIGKILL, whatever it does."""
        self._move(NOWHERE)
        await self._life.aclose()

    async def stop(self) -> None:
        """End it in order, as when a new version is rolled out."""
        self._move(NOWHERE)
        self.process.terminate()
        async with asyncio.timeout(SECONDS_MAX):
            await self.process.wait()
        await self._life.aclose()

    def _move(self, url: str) -> None:
        self._url = url
        for proxy in self.proxies:
            proxy.lead_to(url)


@dataclass
class ClientNode:
    """One app on one file behind a proxy of its own. Whoever holds `turn` may end it."""

    name: str
    folder: Path
    proxy: Proxy
    seed: int
    place: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    journals: list[Path] = field(default_factory=list)
    _process: Process | None = None

    @property
    def file(self) -> Path:
        """The app's database."""
        return self.folder / f"{self.name}.db"

    @property
    def process(self) -> Process:
        """The process of now, or the last one."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    async def start(self) -> None:
        """Start it; it takes a second until it writes."""
        life = len(self.journals)
        self.journals.append(self.folder / f"{self.name}-{life}.journal")
        self._process = await mixed_client_process(
            self.file, self.proxy.url, self.journals[-1], self.seed, self.place, life
        )

    async def kill(self) -> None:
        """SIGKILL, whatever it does."""
        await kill(self.process)

    def let_rest(self) -> None:
        """Let it write no more."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def stop(self) -> None:
        """End it in order."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(SECONDS_MAX):
            await self.process.wait()


@dataclass
class Server:
    """The Postgres of a run, which keeps what it has committed. Whoever holds `turn` may end it."""

    data: Path
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    url: str = ""
    _uses: list[EmbeddedPostgres] = field(default_factory=list)

    async def start(self) -> None:
        """Start it, again where it has ended."""
        use = EmbeddedPostgres(self.data)
        self._uses.append(use)
        self.url = await asyncio.to_thread(use.start)

    async def stop(self) -> None:
        """Stop it for good."""
        for use in self._uses:
            await asyncio.to_thread(use.stop)


@dataclass
class Mix:
    """A run while it runs."""

    server: Server
    relays: Sequence[RelayNode]
    clients: Sequence[ClientNode]
    # What happened: seconds since the beginning, and words.
    happenings: list[tuple[float, str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def note(self, said: str) -> None:
        """Note what happens."""
        self.happenings.append((time.monotonic() - self._began, said))

    def look_for_the_dead(self) -> None:
        """A process that ended though nobody ended it is a fault of ours."""
        nodes: list[RelayNode | ClientNode] = [*self.relays, *self.clients]
        for node in nodes:
            if node.process.returncode is not None and not node.turn.locked():
                said = f"{node.name} ended by itself: exit code {node.process.returncode}"
                self.note(said)
                self.violations.append(f"no crash of the code itself: {said}")

    def heal(self) -> None:
        """All is well from now on."""
        self.note("healed")
        for client in self.clients:
            client.proxy.heal()

    async def stop_writing(self) -> None:
        """Let nobody write any more, when everybody has written something: apps that start on a
        busy machine may not have come to it yet."""
        latest = time.monotonic() + REST_SECONDS_MAX
        while hesitant := [client.name for client in self.clients if not _has_written(client)]:
            if time.monotonic() > latest:
                self.violations.append(f"liveness: {hesitant} hardly wrote")
                break
            await asyncio.sleep(0.1)
        for client in self.clients:
            client.let_rest()
        self.note("nobody writes")

    async def come_to_rest(self) -> int:
        """Wait until nothing is left to do; returns how many commits there were after that."""
        latest = time.monotonic() + REST_SECONDS_MAX
        head = await self._head()
        while time.monotonic() < latest:
            if all(is_quiet(c.journals[-1]) and rests(c.file, head) for c in self.clients):
                break
            await asyncio.sleep(0.1)
            head = await self._head()
        self.note("at rest" if time.monotonic() < latest else "not at rest")
        await asyncio.sleep(QUIET_SECONDS)
        return await self._head() - head

    async def _head(self) -> int:
        ((head,),) = await fetch(self.server.url, "SELECT seq FROM _reunite_head")
        assert isinstance(head, int)
        return head


def _has_written(client: ClientNode) -> bool:
    return count_returned(client.journals) >= WRITES_MIN


def rests(file: Path, head: int) -> bool:
    """Whether a client has all that the relay has, and nothing that it has not."""
    with closing(sqlite3.connect(file, timeout=SECONDS_MAX)) as conn:
        if not observe.has_table(conn, "_reunite_meta"):
            return False
        standing = observe.standing(conn)
    left = standing.queued or standing.waiting or standing.blocked
    return standing.loaded and not left and standing.seq == head
