"""A relay that is told to stop: it finishes what it began, and its clients go on at another."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from reunite import Database
from reunite_transport import Sync
from reunite_transport.messages import SUBPROTOCOL
from reunite_transport.websocket import open_websocket
from tests.e2e.processes import relay_process
from tests.e2e.world import SECONDS_MAX, assert_quiet, fetch, queued, until, until_fetched

ENTRY = "CREATE TABLE entry (id INTEGER PRIMARY KEY, token TEXT)"
INSERT = "INSERT INTO entry (token) VALUES (?)"


def test_a_client_that_pushes_without_pause_goes_on_at_the_next_relay_and_loses_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    written: list[str] = []

    async def write(db: Database, enough: asyncio.Event) -> None:
        while not enough.is_set():
            token = f"token {len(written)}"
            await db.execute(INSERT, (token,))
            written.append(token)

    async def scenario() -> None:
        async with (
            relay_process(postgres_url) as (first, first_url),
            relay_process(postgres_url) as (_, second_url),
            Database(tmp_path / "app.db") as db,
        ):
            await db.execute(ENTRY)
            await db.track("entry")
            # In turns, as a load balancer would.
            urls = cycle([first_url, second_url])
            async with Sync(db, first_url, open_socket=lambda: open_websocket(next(urls))) as sync:
                enough = asyncio.Event()
                writing = asyncio.create_task(write(db, enough))
                try:
                    await until_fetched(postgres_url, "SELECT FROM _reunite_commits WHERE seq > 5")
                    first.send_signal(signal.SIGTERM)
                    assert await first.wait() == 0
                    (last,) = await fetch(postgres_url, "SELECT seq FROM _reunite_head")
                    later = f"SELECT FROM _reunite_commits WHERE seq > {last['seq'] + 5}"
                    await until_fetched(postgres_url, later)
                finally:
                    enough.set()
                    await writing
                await sync.caught_up(SECONDS_MAX)
        rows = await fetch(postgres_url, "SELECT token FROM entry ORDER BY id")
        assert [row["token"] for row in rows] == written
        relays = await fetch(postgres_url, "SELECT DISTINCT relay FROM _reunite_commits")
        assert len(relays) == 2
        await assert_quiet(postgres_url, tmp_path / "app.db")

    asyncio.run(scenario())


async def health(url: str) -> tuple[int, dict[str, Any]]:
    """The status and the words of a relay's /health, asked as a load balancer does: each time over
    a connection of its own."""
    address = url.replace("ws:", "http:").replace("/sync", "/health")
    async with aiohttp.ClientSession() as http, http.get(address) as answer:
        return answer.status, await answer.json()


async def until_draining(url: str) -> dict[str, Any]:
    """What it says once a signal has arrived, which takes a moment."""
    async with asyncio.timeout(SECONDS_MAX):
        while (found := await health(url))[0] == 200:
            pass
    assert found[1]["status"] == "draining"
    return found[1]


@asynccontextmanager
async def head_held(postgres_url: str) -> AsyncIterator[None]:
    """Nothing is committed while the block lasts; returns from it with the lock let go."""
    blocker = await asyncpg.connect(postgres_url)
    try:
        await blocker.execute("BEGIN")
        await blocker.execute("SELECT FROM _reunite_head FOR UPDATE")
        yield
    finally:
        await blocker.close()


async def until_one_waits(postgres_url: str) -> None:
    """Wait until a commit has begun, which waits for the head."""
    await until_fetched(
        postgres_url,
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )


def test_a_relay_finishes_the_batch_under_way_and_says_draining_meanwhile(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with (
            relay_process(postgres_url) as (relay, url),
            Database(tmp_path / "app.db") as db,
            aiohttp.ClientSession() as http,
        ):
            await db.execute(ENTRY)
            await db.track("entry")
            async with Sync(db, url) as sync:
                await sync.caught_up(SECONDS_MAX)
                assert (await health(url))[0] == 200
                async with head_held(postgres_url):
                    await db.execute(INSERT, ("under way",))
                    await until_one_waits(postgres_url)
                    relay.send_signal(signal.SIGTERM)
                    said = await until_draining(url)
                    assert (said["connections"], said["queue"]) == (1, 1)
                    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                        await http.ws_connect(url, protocols=(SUBPROTOCOL,))
                    assert refused.value.status == 503
                assert await relay.wait() == 0
                # The relay said so with its last words: nobody else could.
                await until(lambda: queued(tmp_path / "app.db") == 0, "it is acknowledged")
        rows = await fetch(postgres_url, "SELECT token FROM entry")
        assert [row["token"] for row in rows] == ["under way"]

    asyncio.run(scenario())


def test_a_second_signal_does_not_wait_for_the_batch_under_way(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        log = tmp_path / "log"
        async with (
            relay_process(postgres_url, log=log) as (relay, url),
            Database(tmp_path / "app.db") as db,
        ):
            await db.execute(ENTRY)
            await db.track("entry")
            async with Sync(db, url) as sync:
                await sync.caught_up(SECONDS_MAX)
                async with head_held(postgres_url):
                    await db.execute(INSERT, ("under way",))
                    await until_one_waits(postgres_url)
                    begun = asyncio.get_running_loop().time()
                    relay.send_signal(signal.SIGTERM)
                    await until_draining(url)
                    relay.send_signal(signal.SIGTERM)
                    async with asyncio.timeout(SECONDS_MAX):
                        await relay.wait()
                    assert asyncio.get_running_loop().time() - begun < 5
                assert (log.read_text(), relay.returncode) == ("", 0)
                assert queued(tmp_path / "app.db") == 1

    asyncio.run(scenario())
