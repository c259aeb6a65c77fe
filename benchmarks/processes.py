"""Relays as processes of their own, and what such a process has used at most."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

START_SECONDS_MAX: Final = 30.0
# So that a relay's connections are told from all others.
RELAY_NAME: Final = "relay"


class RelayProcess(NamedTuple):
    """A relay that listens."""

    url: str
    pid: int


@asynccontextmanager
async def relay_process(postgres: str) -> AsyncIterator[RelayProcess]:
    """Run `reunite relay` on a Postgres for as long as the block lasts."""
    named = f"{postgres}{'&' if '?' in postgres else '?'}application_name={RELAY_NAME}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "reunite_transport", "relay"),
        *("--postgres", named, "--port", "0", "--json", "--create-tables"),
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS_MAX):
            line = await process.stdout.readline()
        yield RelayProcess(json.loads(line)["url"], process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has had resident so far, in MB of 1,000,000 bytes. NaN where
    the kernel does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1.024e-3
