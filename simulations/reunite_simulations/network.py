"""The network: connections between clients and relays whose bytes are late, lost, doubled or cut.

A connection is a stream, as TCP gives one: packets that are lost come again later, those that
overtake each other are put in order, so all that they cost is time. What a stream can do to those
who use it is done here: it is slow in either direction, narrow, silent in one direction or in both
for a while (`Partition`), reset at any byte of time, or left open on one side while the other is
gone (half open), until heartbeats notice. Two faults go further, as a broken proxy would: a frame
towards a relay comes twice (`replay`), and a connection that its client has left delivers late.
Within a stream a copy can only come right behind what it is a copy of; what is sent again much
later, after other frames, is what a left connection still had under way, and what the client sends
anew over the next one.

Every connection has its own chance, made from the world's seed, so that what happens on one is
nothing to the others. All time comes from the world's loop.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

# What may be under way in one direction before a sender waits, as a socket's buffers would hold.
BUFFER_BYTES: Final = 1 << 20
# A side that has heard nothing from the other for this long takes it for gone.
HEARTBEAT_SECONDS: Final = 15.0
# Packets that are lost come again after this, and again, as TCP sends them.
RESEND_SECONDS: Final = 0.3
RESENDS_MAX: Final = 6
CONNECT_SECONDS: Final = 10.0

Direction = Literal["up", "down"]


@dataclass
class Weather:
    """How the network is just now, for everybody. Chances are of a packet, times in seconds."""

    delay: float = 0.005
    jitter: float = 0.005
    loss: float = 0.0
    replay: float = 0.0
    bytes_per_second: float = 10e6

    @classmethod
    def worst(cls, some: Iterable["Weather"]) -> "Weather":
        """What several together are, none of which is better for the others."""
        all_ = [cls(), *some]
        return cls(
            delay=max(each.delay for each in all_),
            jitter=max(each.jitter for each in all_),
            loss=max(each.loss for each in all_),
            replay=max(each.replay for each in all_),
            bytes_per_second=min(each.bytes_per_second for each in all_),
        )


@dataclass
class Counts:
    """What happened on the network, for the report."""

    connections: int = 0
    bytes: int = 0
    lost: int = 0
    # Frames and bytes by sender, receiver and tenth of a second.
    traffic: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)


class Network:
    """Who can reach whom, and every connection there is."""

    def __init__(self, seed: int, note: Callable[..., None]) -> None:
        """`note` takes an event's kind and its facts, for the trace."""
        self.seed = seed
        self.note = note
        self.weather = Weather()
        self.counts = Counts()
        self._weathers: list[Weather] = []
        # One-way: (from, to) pairs over which nothing passes, and how many cuts of it last.
        self._silent: Counter[tuple[str, str]] = Counter()
        # Nodes that read slowly, with the seconds that each frame takes them, by what slows them.
        self._slow: dict[str, list[float]] = {}
        self.connections: dict[str, Connection] = {}
        self._accept: dict[str, Callable[[Socket], object]] = {}
        self._attempts: Counter[str] = Counter()

    def listen(self, relay: str, accept: Callable[["Socket"], object]) -> None:
        """Let a relay take connections; `accept` gets the relay's end of each."""
        self._accept[relay] = accept

    def stop_listening(self, relay: str) -> None:
        """Refuse connections to a relay from now on."""
        self._accept.pop(relay, None)

    def passes(self, source: str, target: str) -> bool:
        """Whether anything gets from one node to another."""
        return not self._silent[source, target]

    def cut(self, one: str, other: str, *, back: bool = True) -> None:
        """Part two nodes; with `back` in both directions."""
        self.note("cut", one, other, back)
        self._silent.update(_links(one, other, back))

    def mend(self, one: str, other: str, *, back: bool = True) -> None:
        """Undo one such cut; what others cut stays so."""
        self.note("mend", one, other)
        self._silent.subtract(_links(one, other, back))
        for source, target in _links(one, other, True):
            if not self.passes(source, target):
                self.note("cut", source, target, False)

    def begin(self, weather: Weather) -> None:
        """Let this weather be, beside others that last."""
        self._weathers.append(weather)
        self.weather = Weather.worst(self._weathers)

    def end(self, weather: Weather) -> None:
        """Let this weather pass."""
        self._weathers = [each for each in self._weathers if each is not weather]
        self.weather = Weather.worst(self._weathers)

    def slow_down(self, node: str, seconds: float) -> None:
        """Let a node take so long for each frame that it reads."""
        self._slow.setdefault(node, []).append(seconds)

    def speed_up(self, node: str, seconds: float) -> None:
        """Undo one such slowness."""
        self._slow[node].remove(seconds)

    def slowness(self, node: str) -> float:
        """The seconds that a frame takes a node to read."""
        return max(self._slow.get(node, ()), default=0.0)

    def heal(self) -> None:
        """A good network from now on."""
        self._silent.clear()
        self._slow.clear()
        self._weathers.clear()
        self.weather = Weather()

    @asynccontextmanager
    async def connect(self, client: str, relay: str) -> AsyncIterator["Socket"]:
        """A client's end of a new connection. Raises ConnectionError or TimeoutError."""
        self._attempts[client] += 1
        name = f"{client}#{self._attempts[client]}"
        chance = random.Random(f"{self.seed} {name}")
        await asyncio.sleep(self.delay(chance))
        if not (self.passes(client, relay) and self.passes(relay, client)):
            await asyncio.sleep(CONNECT_SECONDS)
            raise TimeoutError(f"{relay} does not answer")
        accept = self._accept.get(relay)
        if accept is None:
            raise ConnectionRefusedError(f"{relay} is not there")
        self.counts.connections += 1
        connection = Connection(self, name, chance, client, relay)
        self.connections[name] = connection
        self.note("connect", client, relay, name)
        accept(connection.relay_end)
        try:
            yield connection.client_end
        finally:
            connection.client_end.leave()

    def reset(self, node: str) -> None:
        """A process is gone: its machine tells the other sides, if word gets through."""
        for connection in list(self.connections.values()):
            for end in (connection.client_end, connection.relay_end):
                if end.name == node:
                    end.vanish()

    def hold(self, node: str, seconds: float) -> None:
        """Let what a node sends over the connections that it has arrive no sooner than this."""
        until = asyncio.get_running_loop().time() + seconds
        for connection in self.connections.values():
            for end in (connection.client_end, connection.relay_end):
                if end.name == node:
                    end.held_until = until

    def delay(self, chance: random.Random) -> float:
        """How long a packet takes just now, with those that are sent again."""
        weather = self.weather
        delay = weather.delay + chance.expovariate(1.0) * weather.jitter
        resend = RESEND_SECONDS
        for _ in range(RESENDS_MAX):
            if chance.random() >= weather.loss:
                break
            self.counts.lost += 1
            delay += resend
            resend *= 2
        return delay


def _links(one: str, other: str, back: bool) -> list[tuple[str, str]]:
    return [(one, other), (other, one)] if back else [(one, other)]


class Connection:
    """One stream in two directions."""

    def __init__(
        self, network: Network, name: str, chance: random.Random, client: str, relay: str
    ) -> None:
        self.network = network
        self.name = name
        self.chance = chance
        self.client_end = Socket(self, client, relay)
        self.relay_end = Socket(self, relay, client)

    def other(self, end: "Socket") -> "Socket":
        """The end that an end talks to."""
        return self.relay_end if end is self.client_end else self.client_end

    def forget(self) -> None:
        """Both ends are done."""
        if self.client_end.gone and self.relay_end.gone:
            self.network.connections.pop(self.name, None)


class Socket:
    """One end of a connection, as `connection.Socket` and `sync.Socket` want it."""

    def __init__(self, connection: Connection, name: str, peer: str) -> None:
        self.name = name
        self.peer = peer
        self.gone = False
        self._connection = connection
        self._network = connection.network
        self._received: deque[bytes] = deque()
        self._ended = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._under_way = 0
        self._stream: deque[tuple[float, bytes | None]] = deque()
        # When the last byte that was sent arrives, and when it has left: the stream is in order.
        self._arrival = 0.0
        self._left = 0.0
        # Nothing arrives before.
        self.held_until = 0.0
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        self._beat = loop.call_later(HEARTBEAT_SECONDS / 3, self._heartbeat)

    async def receive(self) -> bytes | None:
        """The next frame; None at the end."""
        slow = self._network.slowness(self.name)
        if slow:
            await asyncio.sleep(slow)
        while not self._received:
            if self._ended or self.gone:
                return None
            self._wake.clear()
            await self._wake.wait()
        frame = self._received.popleft()
        sender = self._connection.other(self)
        sender._under_way -= len(frame)
        if sender._under_way < BUFFER_BYTES:
            sender._room.set()
        return frame

    async def send(self, frame: bytes) -> None:
        """Write a frame, once there is room. Raises ConnectionError when the connection ended."""
        if self._ended or self.gone:
            raise ConnectionResetError("the connection has ended")
        while self._under_way >= BUFFER_BYTES:
            self._room.clear()
            await self._room.wait()
            if self._ended or self.gone:
                raise ConnectionResetError("the connection has ended")
        network = self._network
        counts = network.counts
        counts.bytes += len(frame)
        link = (self.name, self.peer, int(asyncio.get_running_loop().time() * 10))
        frames, size = counts.traffic.get(link, (0, 0))
        counts.traffic[link] = (frames + 1, size + len(frame))
        self._transmit(frame)
        up = self is self._connection.client_end
        replay = network.weather.replay
        if up and replay and self._connection.chance.random() < replay:
            network.note("replay", self.name, self.peer, len(frame))
            self._transmit(frame)

    async def close(self, *, stopped: bool = False) -> None:
        """End the connection in order: what was sent still arrives."""
        self.leave()

    def cut_off(self) -> None:
        """End it at once."""
        self.leave()

    def leave(self) -> None:
        """This side is done; the other hears of it if word gets through."""
        if not self.gone:
            self._let_go()
            self._transmit(None)

    def vanish(self) -> None:
        """This side's process died."""
        self.leave()

    def _let_go(self) -> None:
        self.gone = True
        self._beat.cancel()
        self._wake.set()
        self._room.set()
        self._connection.forget()

    def _transmit(self, frame: bytes | None) -> None:
        """Have a frame, or the stream's end, arrive; None is the end."""
        now = asyncio.get_running_loop().time()
        network = self._network
        size = len(frame) if frame is not None else 40
        if frame is not None:
            self._under_way += size
        self._left = max(self._left, now) + size / network.weather.bytes_per_second
        self._arrival = max(self._arrival, self._left + network.delay(self._connection.chance))
        self._stream.append((self._arrival, frame))
        if len(self._stream) == 1:
            self._arrive_at(self._arrival)

    def _arrive_at(self, when: float) -> None:
        asyncio.get_running_loop().call_at(when, self._arrive)

    def _arrive(self) -> None:
        """The stream's first frame is there, or is sent again in a while."""
        now = asyncio.get_running_loop().time()
        target = self._connection.other(self)
        if target.gone:
            self._stream.clear()
            return
        if now < self.held_until:
            self._arrive_at(self.held_until)
            return
        if not self._network.passes(self.name, self.peer):
            self._arrive_at(now + RESEND_SECONDS)
            return
        _, frame = self._stream.popleft()
        target._heard = now
        if frame is None:
            target._ended = True
            target._room.set()
        else:
            target._received.append(frame)
        target._wake.set()
        if self._stream:
            self._arrive_at(max(now, self._stream[0][0]))

    def _heartbeat(self) -> None:
        """Both sides show that they live, and take one that does not for gone."""
        if self.gone:
            return
        loop = asyncio.get_running_loop()
        other = self._connection.other(self)
        if not other.gone and self._network.passes(other.name, self.name):
            self._heard = loop.time()
        if loop.time() - self._heard > HEARTBEAT_SECONDS:
            self._network.note("gave up", self.name, self.peer)
            self._ended = True
            self._wake.set()
            self._room.set()
            return
        self._beat = loop.call_later(HEARTBEAT_SECONDS / 3, self._heartbeat)
