"""Watch: what an app iterates over to follow something. Owns the iterator, not what is followed.

A source tells when there may be something new, and gives it when it is asked. It is asked only by
who has waited, so an `anext` that is cancelled has taken nothing.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from reunite.errors import UsageError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """What a `Watch` follows; each has its own."""

    def listen(self) -> "asyncio.Future[None]":
        """A future that is done when there may be something to take. `leave` is called with it."""
        ...

    def leave(self, waiter: "asyncio.Future[None]") -> None:
        """Nobody waits for this future any more."""
        ...

    def take(self) -> Sequence[T_co] | None:
        """What is new, which may be nothing; None at the end. It may raise, which ends nothing."""
        ...


class Watch(Generic[T]):
    """What is now, and then what comes: an async iterator.

    An `anext` that is cancelled, as by a timeout, loses nothing: the next one goes on. An error of
    what is followed, such as a query, is raised by one `anext` and does not end it either: the next
    one waits for the next change. It ends with `aclose`, when nothing refers to it any more, and
    with what is followed: when the database is closed, or the sync has ended.
    """

    def __init__(self, source: Source[T], *, shown: str) -> None:
        """`shown` names what is followed to who looks at it."""
        self._source = source
        self._shown = shown
        # Taken, and not told yet.
        self._ready: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Watch({self._shown!r}{', closed' if self._closed else ''})"

    def __aiter__(self) -> "Watch[T]":
        return self

    async def __anext__(self) -> T:
        while not self._ready:
            await self._wait()
            found = None if self._closed else self._source.take()
            if found is None:
                self._closed = True
                raise StopAsyncIteration
            self._ready.extend(found)
        return self._ready.popleft()

    async def __aenter__(self) -> "Watch[T]":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it, also for who waits for what comes next."""
        self._closed = True
        self._ready.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._closed:
            return
        if self._waiter is not None:
            raise UsageError("somebody waits for this watch's next result already; use another")
        self._waiter = waiter = self._source.listen()
        try:
            await waiter
        finally:
            self._waiter = None
            self._source.leave(waiter)
