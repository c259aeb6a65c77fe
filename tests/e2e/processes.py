"""Relays and clients as processes of their own, to be killed at any moment."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from tests.e2e.world import SECONDS_MAX

REPOSITORY = Path(__file__).resolve().parents[2]
REUNITE = str(Path(sys.executable).with_name("reunite"))


def free_port() -> int:
    """A port that nobody listens on, for a relay that is to come back under one address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def relay_process(
    postgres_url: str,
    port: int = 0,
    *options: str,
    log: Path | None = None,
) -> AsyncIterator[tuple[Process, str]]:
    """`reunite relay` on a Postgres: the process and its address. Killed at the end. What it says
    goes to the end of `log`, or where ours goes. Without `options` it creates tables."""
    with ExitStack() as stack:
        process = await asyncio.create_subprocess_exec(
            REUNITE,
            *("relay", "--postgres", postgres_url, "--port", str(port)),
            *("--json", *(options or ("--create-tables",))),
            stdout=PIPE,
            stderr=stack.enter_context(log.open("ab")) if log is not None else None,
            cwd=REPOSITORY,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            line = await process.stdout.readline()
        yield process, json.loads(line)["url"]
    finally:
        await kill(process)


async def reunite(*arguments: str) -> tuple[int, str, str]:
    """Run the command to its end: its exit code, and what it said to stdout and to stderr."""
    process = await asyncio.create_subprocess_exec(
        REUNITE, *arguments, stdout=PIPE, stderr=PIPE, cwd=REPOSITORY
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            said, complained = await process.communicate()
    finally:
        await kill(process)
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()


async def client_process(file: Path, url: str, prefix: str) -> Process:
    """A client that writes rows without pause and prints each that was written."""
    return await _client("writing_client", str(file), url, prefix)


async def mixed_client_process(*arguments: object) -> Process:
    """A client with a journal, see `mixed_client`: it writes until its stdin ends."""
    return await _client("mixed_client", *map(str, arguments))


async def _client(module: str, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.e2e.{module}", *arguments),
        stdin=PIPE,
        stdout=PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


async def kill(process: Process) -> None:
    """SIGKILL, and wait for the end."""
    if process.returncode is None:
        process.kill()
    await process.wait()


def crash_postgres(data: Path, number: signal.Signals = signal.SIGQUIT) -> int:
    """End the Postgres in a folder at once, as `pg_ctl stop -m immediate` does; with SIGKILL its
    processes are left to notice by themselves. Returns its process id."""
    postmaster = int((data / "cluster" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, number)
    return postmaster


def has_ended(number: int) -> bool:
    """True when a process is gone, or is a zombie that nobody collects."""
    try:
        os.kill(number, 0)
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return state == "Z"
