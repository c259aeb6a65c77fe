"""Trials: what a pushed edit may make Yjs do is done first where it can be ended.

Yjs's time grows as the square of what a liar sends, and nothing interrupts it: 150 KB of blocks at
one place took 17 s, and the whole relay with it. So the few edits that might (see `Yjs.is_heavy`)
are applied by a process beside the relay, within a limit of processor time and memory, before they
are applied here. An honest edit of that size takes a fraction of a second.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from reunite.errors import FormatError
from reunite_transport.relay.store import StoreError

# For systems that limit no processor time, and for what is none, such as a machine that swaps.
SECONDS_MAX: Final = 60.0
_PROGRAM: Final = Path(__file__).with_name("trial_process.py")


class Trials:
    """The trials of one commit, a context. A process starts when there is something to try."""

    def __init__(self) -> None:
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def hold(self, cells: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Try to apply edits: the name of a root, a document, and what is applied to it, each.

        Raises FormatError when one takes Yjs too much, StoreError when nothing can be tried."""
        for root, before, delta in cells:
            if self._process is None:
                self._process = await _started()
            if not await _passes(self._process, (root.encode(), before, delta)):
                await self._end()
                raise FormatError(
                    "an edit takes Yjs too long, or too much memory; make it in smaller ones"
                )

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            # Closes its pipes, too.
            await process.communicate()


async def _started() -> Process:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_PROGRAM), stdin=PIPE, stdout=PIPE
        )
    except OSError as error:
        raise StoreError(f"no process can be started to try a large edit in: {error}") from error
    assert process.stdout is not None
    if not await process.stdout.read(1):
        raise StoreError(
            f"the process that tries large edits ends with {await process.wait()}; see stderr"
        )
    return process


async def _passes(process: Process, parts: Iterable[bytes]) -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
        async with asyncio.timeout(SECONDS_MAX):
            for part in parts:
                process.stdin.write(len(part).to_bytes(4, "big") + part)
            await process.stdin.drain()
            return bool(await process.stdout.read(1))
    return False
