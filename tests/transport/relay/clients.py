"""What the relay's tests push, and sessions as a client sees them. No sockets."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeVar

from reunite.clock import NEVER, stamp
from reunite.document import Document, cell_key, encode
from reunite.keys import pack_key
from reunite.schema import Column, Table
from reunite_transport import codec
from reunite_transport.messages import (
    ClientMessage,
    Entries,
    EntryKind,
    Hello,
    Pull,
    Push,
    RelayMessage,
    Verdict,
)
from reunite_transport.relay.hub import Hub, Member
from reunite_transport.relay.store import FeedPage, Greeting
from reunite_transport.relay_session import PushReady, RelaySession
from tests.transport.relay.memory_store import START_MS

# For what happens at once, on a machine that is busy with other tests.
SECONDS_MAX: Final = 20.0
TITLE = 2
TODO = Table(
    "todo",
    (
        Column("id", 1, "INTEGER", "integer", key=1),
        Column("title", TITLE, "TEXT", "text"),
        Column("note", 3, "TEXT", "text"),
    ),
    id=1,
)

Kind = TypeVar("Kind")


def todo(
    replica: int, key: int, title: str, *, at: int = 0, column: int = TITLE
) -> tuple[bytes, bytes]:
    """A row as it travels: its key, and a document that this replica wrote."""
    made = stamp(START_MS + at << 16, replica)
    return pack_key((key,)), encode(Document(made, made, NEVER, {cell_key(column): (made, title)}))


def entries(*rows: tuple[bytes, bytes], table: int = 1) -> Entries:
    """Whole rows, as a push holds them."""
    keys, documents = zip(*rows, strict=True)
    return Entries(table, keys, documents, (EntryKind.WHOLE,) * len(rows))


def nonce(number: int) -> bytes:
    """The nonce that these tests give a changeset."""
    return b"nonce" + number.to_bytes(3, "big")


def push(number: int, *rows: tuple[bytes, bytes], table: int = 1) -> Push:
    """A changeset in one part."""
    return Push(number, nonce(number), False, True, (entries(*rows, table=table),))


def ready(number: int, *rows: tuple[bytes, bytes]) -> PushReady:
    """A changeset as a session hands it on."""
    size = sum(len(key) + len(document) for key, document in rows)
    return PushReady(number, nonce(number), False, (entries(*rows),), len(rows), size)


def hello(replica: int, *, acknowledged: int = 0, pending: int = 0, seq: int = 0) -> Hello:
    """A Hello of a replica that has `pending` changesets after `acknowledged`."""
    nonces = tuple(nonce(acknowledged + place) for place in range(1, pending + 1))
    return Hello(1, (), None, replica, acknowledged, nonces, seq, b"", 0)


@dataclass(eq=False)
class Client:
    """A greeted session of a hub, and all that it was sent."""

    hub: Hub
    replica: int
    term: int = 1
    session: RelaySession = field(default_factory=lambda: RelaySession(0.0))
    woken: int = 0
    _heard: deque[RelayMessage] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        """Say Hello and join."""
        self.say(hello(self.replica))
        greeting = Greeting(self.term, Verdict.CONTINUE, (), self.hub.head, START_MS, 0)
        self.session.welcome(greeting, realm=bytes(16), registry=())
        self.member = Member(self.session, self.replica, self.term, self._wake)
        self.hub.join(self.member)
        self.hear()

    def live(self, seq: int | None = None) -> "Client":
        """Pull, and get an empty last page at `seq`, else at the hub's head."""
        self.say(Pull(0, b""))
        self.session.page(FeedPage((), self.hub.head if seq is None else seq, b"", True, b""))
        self.hub.catch_up(self.member)
        return self

    def say(self, message: ClientMessage) -> None:
        """Send a message, and forget the events."""
        self.session.receive(codec.encode(message))
        self.session.events()

    def frames(self) -> list[bytes]:
        """What was sent since the last look."""
        return self.session.data_to_send()

    def hear(self) -> list[RelayMessage]:
        """The same, read."""
        found = [codec.decode(frame, "client") for frame in self.frames()]
        return [message for message in found if message is not None]

    async def next(self, kind: type[Kind]) -> Kind:
        """The next message of this kind, waiting for it; those before it are skipped."""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                while self._heard:
                    message = self._heard.popleft()
                    if isinstance(message, kind):
                        return message
                self._arrived.clear()
                self._heard.extend(self.hear())
                if not self._heard:
                    await self._arrived.wait()

    def _wake(self) -> None:
        self.woken += 1
        self._arrived.set()
