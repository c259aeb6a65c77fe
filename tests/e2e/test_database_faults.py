"""Postgres that is killed and comes back: clients and relay recover without anybody's help."""

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from reunite import Database
from reunite_transport import Sync
from reunite_transport.relay.embedded import EmbeddedPostgres
from tests.e2e.processes import crash_postgres, has_ended
from tests.e2e.world import (
    assert_converged,
    make,
    one,
    relay_on,
    settle,
    sync_once,
    until,
)

ENTRY = "CREATE TABLE entry (id INTEGER PRIMARY KEY, token TEXT NOT NULL)"
CRASHES = 3


def test_postgres_may_be_killed_and_restarted_under_load(tmp_path: Path) -> None:
    chance = random.Random(8)
    data = tmp_path / "postgres"

    async def write(db: Database, returned: list[str], stop: asyncio.Event) -> None:
        while not stop.is_set():
            token = f"{db.path.stem} {len(returned)}"
            await db.execute("INSERT INTO entry VALUES (abs(random()), ?)", (token,))
            returned.append(token)
            await asyncio.sleep(chance.random() / 100)

    async def scenario(url: str) -> None:
        files = [make(tmp_path / f"{name}.db", ENTRY) for name in ("one", "two")]
        returned: list[str] = []
        stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(relay_on(url))
            syncs, writers = [], []
            for file in files:
                db = await stack.enter_async_context(Database(file))
                await db.track_all()
                syncs.append(await stack.enter_async_context(Sync(db, relay.url)))
                writers.append(asyncio.create_task(write(db, returned, stop)))
            await settle(*syncs)
            for _ in range(CRASHES):
                await asyncio.sleep(chance.random() / 2)  # any moment
                number = crash_postgres(data)
                await until(partial(has_ended, number), "the end of Postgres")
                await asyncio.sleep(chance.random() / 2)
                again = EmbeddedPostgres(data)
                await asyncio.to_thread(again.start)
                stack.callback(again.stop)
            stop.set()
            await asyncio.gather(*writers)
            await settle(*syncs)
            assert [sync.status.state for sync in syncs] == ["live", "live"]
            fresh = tmp_path / "fresh.db"
            await sync_once(fresh, relay.url)
            assert one(fresh, "SELECT count(DISTINCT token) FROM entry") == len(returned)
            assert one(fresh, "SELECT count(*) FROM entry") == len(returned) > 50
            await assert_converged(url, *files, fresh)

    # Not the server that the suite shares, and one that keeps what it has committed.
    postgres = EmbeddedPostgres(data)
    url = postgres.start()
    try:
        asyncio.run(scenario(url))
    finally:
        postgres.stop()
