"""Clients and relays that are killed in the middle of their work lose and double nothing.

REUNITE_KILLS sets how often each is killed.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

from reunite import Database
from reunite_transport import Sync
from tests.e2e.processes import client_process, free_port, kill, relay_process
from tests.e2e.world import (
    assert_converged,
    fetch,
    make,
    one,
    read,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
)
from tests.e2e.writing_client import INSERT

KILLS = int(os.environ.get("REUNITE_KILLS", "5"))
ENTRY = "CREATE TABLE entry (id INTEGER PRIMARY KEY, token TEXT NOT NULL)"


def assert_once(file: Path, returned: Iterable[str], unreturned_max: int) -> None:
    """Everything that returned is there once; at most so many rows came without having returned."""
    counts = Counter(token for (token,) in read(file, "SELECT token FROM entry"))
    expected = set(returned)
    assert not expected - counts.keys(), "lost"
    assert set(counts.values()) <= {1}, "doubled"
    assert len(counts.keys() - expected) <= unreturned_max
    # A transaction is there whole or not at all.
    parts = Counter(token.rsplit("-", 1)[0] for token in counts if token.count("-") == 2)
    assert set(parts.values()) <= {3}, "torn"


def test_a_client_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(25)

    async def scenario() -> None:
        returned: list[str] = []
        after_acknowledgement = 0
        async with relay_on(postgres_url) as relay:
            file = make(tmp_path / "client.db", ENTRY)
            await track_and_sync(file, relay.url)
            for number in range(KILLS):
                before = one(file, "SELECT value FROM _reunite_meta WHERE name = 'acknowledged'")
                client = await client_process(file, relay.url, f"k{number}")
                assert client.stdout is not None
                # The first line says that Python has started; then any moment.
                returned += (await client.stdout.readline()).decode().split()
                moment = time.monotonic() + chance.random()
                while time.monotonic() < moment:
                    returned += (await client.stdout.readline()).decode().split()
                await kill(client)
                returned += (await client.stdout.read()).decode().split()
                acknowledged = one(
                    file, "SELECT value FROM _reunite_meta WHERE name = 'acknowledged'"
                )
                after_acknowledgement += acknowledged > before
            await sync_once(file, relay.url)
            fresh = tmp_path / "fresh.db"
            await sync_once(fresh, relay.url)
        print(
            f"{KILLS} kills of a client, {after_acknowledgement} after the run's first"
            f" acknowledgement; {len(returned)} rows returned"
        )
        assert len(returned) > KILLS
        assert_once(fresh, returned, unreturned_max=3 * KILLS)
        await assert_converged(postgres_url, file, fresh)

    asyncio.run(scenario())


def test_a_relay_that_is_killed_loses_and_doubles_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(26)
    port = free_port()

    async def write(db: Database, prefix: str, returned: list[str], stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            await db.execute(INSERT, (f"{prefix}-{number}",))
            returned.append(f"{prefix}-{number}")
            number += 1
            await asyncio.sleep(chance.random() / 200)  # three hundred writes a second in all

    async def head() -> int:
        rows = await fetch(postgres_url, "SELECT seq FROM _reunite_head")
        seq: int = rows[0]["seq"]
        return seq

    async def scenario() -> None:
        returned: list[str] = []
        after_acknowledgement = 0
        files = [make(tmp_path / f"{name}.db", ENTRY) for name in ("one", "two", "three")]
        stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{port}/sync"
            syncs, writers = [], []
            for file in files:
                db = await stack.enter_async_context(Database(file))
                await db.track_all()
                syncs.append(await stack.enter_async_context(Sync(db, url)))
                writers.append(asyncio.create_task(write(db, file.stem, returned, stop)))
            for _ in range(KILLS):
                async with relay_process(postgres_url, port) as (relay, _):
                    before = await head()
                    await asyncio.sleep(0.1 + chance.random())  # any moment
                    await kill(relay)
                    after_acknowledgement += await head() > before
            stop.set()
            await asyncio.gather(*writers)
            async with relay_process(postgres_url, port):
                await settle(*syncs)
                fresh = tmp_path / "fresh.db"
                await sync_once(fresh, url)
        print(
            f"{KILLS} kills of a relay, {after_acknowledgement} after its first commit;"
            f" {len(returned)} rows returned"
        )
        assert_once(fresh, returned, unreturned_max=0)
        await assert_converged(postgres_url, *files, fresh)

    asyncio.run(scenario())
