"""Drivers: where the synchronous functions run. Owns the engine's thread, real time and chance.

`ThreadDriver` gives one SQLite connection a thread of its own; `run` waits for a function there
without blocking the event loop. A function that has begun is always finished: cancelling the task
that waits for it cannot leave a transaction open.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from reunite.clock import RELAYS_FROM
from reunite.errors import UsageError
from reunite.state import Chance

T = TypeVar("T")


def real_chance() -> Chance:
    """Randomness of the operating system."""
    return Chance(
        replica=lambda: secrets.randbelow(RELAYS_FROM - 1) + 1,
        nonce=lambda: secrets.token_bytes(8),
    )


def real_clock() -> int:
    """This machine's clock, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def real_seconds() -> float:
    """Seconds that never go back, since some moment."""
    return time.monotonic()


class Ending(UsageError):
    """The program is ending, and Python's threads take no more work."""


class ThreadDriver:
    """One connection, one thread."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], name: str) -> None:
        self._connect = connect
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._conn: sqlite3.Connection | None = None

    @property
    def conn(self) -> sqlite3.Connection:
        """The connection; to be used by functions inside `run` only."""
        assert self._conn is not None, "the driver is not open"
        return self._conn

    async def open(self) -> None:
        """Start the thread and connect there."""
        thread = self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)

        def connect() -> None:
            self._conn = self._connect()

        try:
            await self.run(connect)
        except BaseException:
            thread.shutdown(wait=False)
            self._thread = None
            raise

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function on the thread, after those before it, and return what it returns."""
        assert self._thread is not None, "the driver is not open"
        loop = asyncio.get_running_loop()
        try:
            under_way = loop.run_in_executor(self._thread, function, *args)
        except RuntimeError as error:
            raise Ending("the program is ending: close the database before") from error
        return await asyncio.shield(under_way)

    async def close(self, last: Callable[[sqlite3.Connection], None] | None = None) -> None:
        """Finish what was begun, run `last`, and disconnect. A driver that is not open is left."""
        thread = self._thread
        if thread is None:
            return

        def disconnect() -> None:
            if self._conn is not None:
                try:
                    if last is not None:
                        last(self._conn)
                finally:
                    self._conn.close()
                    self._conn = None

        try:
            await self.run(disconnect)
        finally:
            thread.shutdown(wait=False)
            self._thread = None
