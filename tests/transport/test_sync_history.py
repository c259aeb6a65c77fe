"""Asking a relay about the past: its answer, its silence, and the loss of the connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from reunite import Database
from reunite.cells.register import Register, Value
from reunite.clock import NEVER, stamp
from reunite.document import Document, cell_key
from reunite.document import encode as encode_document
from reunite.keys import pack_key
from reunite.overwritten import Loss
from reunite_transport import Sync, sync
from reunite_transport.codec import decode, encode
from reunite_transport.messages import (
    HISTORY,
    Describe,
    Hello,
    Page,
    Pull,
    Recall,
    Recalled,
    Registry,
    RelayMessage,
    Verdict,
    Welcome,
)

TOKEN = b"token 88"
WELCOME = Welcome(1, (), bytes(16), 0, 0, Verdict.CONTINUE, (), 1, 0, ())


class Played:
    """The socket of a relay with an empty realm. What it says to a Recall, `recalled` gives; None
    ends the connection, nothing is silence."""

    def __init__(self, recalled: Callable[[Recall], list[RelayMessage | None]]) -> None:
        self.capabilities: tuple[str, ...] = (HISTORY,)
        self.asked: list[Recall] = []
        self._recalled = recalled
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def receive(self) -> bytes | None:
        return await self._frames.get()

    async def send(self, frame: bytes) -> None:
        match decode(frame, "relay"):
            case Hello(sent_ms=now_ms):
                welcome = replace(WELCOME, now_ms=now_ms, sent_ms=now_ms)
                self._say(replace(welcome, capabilities=self.capabilities))
            case Describe(tables):
                self._say(
                    Registry(tuple(replace(t, id=place) for place, t in enumerate(tables, 1)))
                )
            case Pull():
                self._say(Page((), 1, b"", True, TOKEN))
            case Recall() as recall:
                self.asked.append(recall)
                for message in self._recalled(recall):
                    self._say(message)

    def _say(self, message: RelayMessage | None) -> None:
        self._frames.put_nowait(None if message is None else encode(message))


def loss(value: str) -> Loss:
    made = stamp(5 << 16, 7)
    cells: dict[int, Register] = {cell_key(2): (made, value)}
    return Loss(encode_document(Document(NEVER, NEVER, NEVER, cells)), stamp(6 << 16, 8))


def told(folder: Path, played: Played) -> list[Value]:
    """The overwritten values of a row that the file knows of, and what this relay says."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Played]:
        yield played

    async def scenario() -> list[Value]:
        async with Database(folder / "app.db") as db:
            await db.execute("CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT)")
            await db.track("todo")
            await db.execute("INSERT INTO todo VALUES ('a', 'first')")
            await db.execute("UPDATE todo SET title = 'second'")
            async with Sync(db, "ws://relay", open_socket=connect) as syncing:
                while syncing.status.state != "live":  # noqa: ASYNC110 - it has no event of its own
                    await asyncio.sleep(0.001)
                return [each.value for each in await db.history("todo", "a")]

    return asyncio.run(scenario())


def test_what_the_relay_knows_comes_with_what_the_file_knows(tmp_path: Path) -> None:
    played = Played(lambda recall: [Recalled(recall.id, (loss("long ago"),))])
    assert told(tmp_path, played) == ["first", "long ago"]
    assert played.asked == [Recall(1, 1, pack_key(("a",)))]


def test_an_answer_to_another_question_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "HISTORY_SECONDS_MAX", 0.1)
    played = Played(lambda recall: [Recalled(recall.id + 1, (loss("long ago"),))])
    assert told(tmp_path, played) == ["first"]


def test_a_relay_that_is_silent_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "HISTORY_SECONDS_MAX", 0.1)
    played = Played(lambda _: [])
    assert told(tmp_path, played) == ["first"]
    assert len(played.asked) == 1


def test_a_connection_that_is_lost_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "HISTORY_SECONDS_MAX", 1e9)
    assert told(tmp_path, Played(lambda _: [None])) == ["first"]


def test_a_relay_that_keeps_no_history_is_not_asked(tmp_path: Path) -> None:
    played = Played(lambda _: [])
    played.capabilities = ()
    assert told(tmp_path, played) == ["first"]
    assert played.asked == []
