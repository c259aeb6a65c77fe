"""How a sync is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from reunite import Database
from reunite_transport import Sync


class Silent:
    """The socket of a relay that says nothing."""

    async def receive(self) -> bytes | None:
        await asyncio.Event().wait()
        return None

    async def send(self, frame: bytes) -> None:
        """Nobody hears it."""


def test_who_is_cancelled_while_leaving_a_sync_is_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        connected, closing = asyncio.Event(), asyncio.Event()

        @asynccontextmanager
        async def connect() -> AsyncIterator[Silent]:
            connected.set()
            try:
                yield Silent()
            finally:
                closing.set()
                # As a closing handshake may take long.
                await asyncio.Event().wait()

        async def use(db: Database) -> None:
            async with Sync(db, "ws://relay", open_socket=connect):
                await connected.wait()

        async with asyncio.timeout(10), Database(tmp_path / "app.db") as db:
            using = asyncio.create_task(use(db))
            await closing.wait()
            using.cancel()
            with pytest.raises(asyncio.CancelledError):
                await using

    asyncio.run(work())
