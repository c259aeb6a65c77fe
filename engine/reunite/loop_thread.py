"""An event loop in a thread of its own, for programs without one. Owns how others wait for it.

A call is a coroutine that runs there while its caller waits. Ctrl-C in the caller cancels it.
"""

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from reunite.errors import UsageError

T = TypeVar("T")


class LoopThread:
    """A loop that runs until `stop`. Any thread may call; all of it is of one process."""

    def __init__(self, name: str, last: Callable[[], Awaitable[None]]) -> None:
        """`last` is what runs there at the end, when all else has been cancelled."""
        self._last = last
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopped = False
        # A daemon, as are the threads that it starts: the end of a program waits for none of them.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked off: threads do not follow."""
        return os.getpid() == self._pid

    @property
    def stopped(self) -> bool:
        """True from the beginning of `stop`, and when the program ends: then no other thread runs,
        and whoever waited for one would wait for ever."""
        return self._stopped or sys.is_finalizing()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return what it returns. Raises UsageError where it cannot
        run: after `stop`, in a forked process, from a callback that runs there."""
        ended: concurrent.futures.Future[T] = concurrent.futures.Future()
        task: asyncio.Task[T] | None = None

        def begin() -> None:
            nonlocal task
            task = self._loop.create_task(work)
            task.add_done_callback(lambda task: _settle(task, ended))

        def cancel() -> None:
            if task is not None:
                task.cancel()
            elif not ended.done():
                work.close()
                ended.set_exception(UsageError("this call was interrupted before it began"))

        try:
            self._check()
        except UsageError:
            work.close()
            raise
        # An interrupt may come between any two steps.
        try:
            with self._lock:
                if self.stopped:
                    work.close()
                    said = "the database is closed; open another BlockingDatabase"
                    ended.set_exception(UsageError(said))
                else:
                    self._loop.call_soon_threadsafe(begin)
            return ended.result()
        except BaseException:
            if not ended.done():
                # The caller was interrupted, and goes on only when nothing is under way any more.
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(cancel)
                    concurrent.futures.wait([ended])
            raise

    def stop(self, *, wait: bool = True) -> None:
        """Cancel what is under way, run `last` and end the thread. Once; later calls only wait."""
        if not self.is_ours:
            return
        if wait:
            self._check()
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        if wait:
            self._thread.join()

    def _check(self) -> None:
        if not self.is_ours:
            raise UsageError(
                "this database was opened before the process was forked; open another"
                " BlockingDatabase in the new process"
            )
        if threading.current_thread() is self._thread:
            raise UsageError(
                "this is a callback, in the thread that the database itself runs in: hand the work"
                " to another thread"
            )

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            # What was called last has been scheduled, and becomes a task that can be cancelled.
            self._loop.run_until_complete(asyncio.sleep(0))
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(_awaited(self._last))
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()


async def _awaited(last: Callable[[], Awaitable[None]]) -> None:
    await last()


def _settle(task: "asyncio.Task[T]", ended: "concurrent.futures.Future[T]") -> None:
    if task.cancelled():
        ended.set_exception(UsageError("the database was closed while this call was under way"))
    elif (error := task.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(task.result())
