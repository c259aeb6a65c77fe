"""A wakeup: tells coroutines that something moved, without a poll and without losing one."""

import asyncio


class Wakeup:
    """Rung by those who move something, waited for by those who look at it. Of one event loop.

    seen = wakeup.count
    ...  # look, which may take its time
    await wakeup.after(seen)  # returns at once when it was rung meanwhile
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self.count = 0

    def ring(self) -> None:
        """Wake all who wait."""
        self.count += 1
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def listen(self, seen: int) -> "asyncio.Future[None]":
        """A future that is done when it was rung since `count` was `seen`. The caller calls
        `leave` with it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.count != seen:
            future.set_result(None)
        else:
            self._waiting.add(future)
        return future

    def leave(self, future: "asyncio.Future[None]") -> None:
        """Nobody waits for this future any more."""
        self._waiting.discard(future)

    async def after(self, seen: int, seconds_max: float | None = None) -> None:
        """Return when it was rung since `count` was `seen`, or after `seconds_max`."""
        if self.count != seen:
            return
        future = self.listen(seen)
        try:
            await asyncio.wait([future], timeout=seconds_max)
        finally:
            self.leave(future)
