"""Relays and clients as processes of their own, to be killed at any moment."""

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.world import SECONDS_MAX

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that nobody listens on, for a relay that is to come back under one address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def relay_process(postgres_url: str, port: int = 0) -> AsyncIterator[tuple[Process, str]]:
    """`reunite relay` on a Postgres: the process and its address. Killed at the end."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("reunite")),
        *("relay", "--postgres", postgres_url, "--port", str(port), "--json", "--create-tables"),
        stdout=PIPE,
        cwd=REPOSITORY,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            line = await process.stdout.readline()
        yield process, json.loads(line)["url"]
    finally:
        await kill(process)


async def client_process(file: Path, url: str, prefix: str) -> Process:
    """A client that writes rows without pause and prints each that was written."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.e2e.writing_client", str(file), url, prefix),
        stdout=PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


async def kill(process: Process) -> None:
    """SIGKILL, and wait for the end."""
    if process.returncode is None:
        process.kill()
    await process.wait()
