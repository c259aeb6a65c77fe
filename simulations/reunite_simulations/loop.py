"""Virtual time: an asyncio event loop whose clock jumps to whatever is due next.

Nothing sleeps: a simulated hour lasts as long as the work in it. Everything runs in one thread, in
an order that depends on nothing but the work, so a run can be repeated. A wait that nothing could
end is an error (`Deadlock`), not a hang.
"""

import asyncio
import selectors
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Everybody waits and nothing is due."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        # Ctrl-C was pressed, and nobody may have noticed.
        self.interrupted = False
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Seconds since the loop began, in virtual time."""
        return self._virtual_now

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._virtual_now += seconds


class _Jumping(selectors.SelectSelector):
    """Never waits for a file: time passes instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.interrupted:
            raise KeyboardInterrupt
        if timeout is None:
            raise Deadlock("everybody waits and nothing is due")
        if timeout > 0:
            self._loop.jump(timeout)
        return []


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a virtual time of its own."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        with _heeding_ctrl_c(loop):
            return loop.run_until_complete(work)
    finally:
        loop.interrupted = False
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def _heeding_ctrl_c(loop: VirtualLoop) -> Iterator[None]:
    """What Ctrl-C raises is lost where SQLite calls back into Python, as it does at each statement.
    Then it is raised again when the loop comes round."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def heed(number: int, frame: FrameType | None) -> None:
        loop.interrupted = True
        before(number, frame)

    signal.signal(signal.SIGINT, heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
