"""Sync of a program without an event loop: from its threads, against a real relay."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reunite import BlockingDatabase, UsageError
from reunite_transport import BlockingSync
from tests.e2e.world import SECONDS_MAX, assert_converged, relay_on

ITEM = "CREATE TABLE item (id TEXT PRIMARY KEY, n COUNTER NOT NULL DEFAULT 0)"


@pytest.fixture
def relay_url(postgres_url: str) -> Iterator[str]:
    """The address of a relay that runs in another thread."""
    ready = threading.Event()
    found: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = []

    async def serve() -> None:
        async with relay_on(postgres_url) as relay:
            end = asyncio.Event()
            found.append((asyncio.get_running_loop(), end, relay.url))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(SECONDS_MAX)
    ((loop, end, url),) = found
    yield url
    loop.call_soon_threadsafe(end.set)
    thread.join()


def test_threads_of_two_programs_write_and_all_of_it_is_everywhere(
    tmp_path: Path, postgres_url: str, relay_url: str
) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    with (
        BlockingDatabase(first) as mine,
        BlockingDatabase(second) as theirs,
        BlockingSync(mine, relay_url) as sync_mine,
        BlockingSync(theirs, relay_url) as sync_theirs,
    ):
        mine.execute(ITEM)
        mine.track("item")
        result = mine.execute("INSERT INTO item (id) VALUES ('all')")
        assert mine.synced(result.changeset, SECONDS_MAX)
        sync_theirs.caught_up(SECONDS_MAX)

        def work(number: int) -> bool:
            db, changesets = (mine, theirs)[number % 2], []
            for place in range(5):
                with db.transaction() as tx:
                    tx.execute("UPDATE item SET n = n + 1 WHERE id = 'all'")
                    tx.execute("INSERT INTO item (id) VALUES (?)", (f"{number} {place}",))
                changesets.append(tx.changeset)
            return all(db.synced(each, SECONDS_MAX) for each in changesets)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
        for _ in range(2):
            sync_mine.caught_up(SECONDS_MAX)
            sync_theirs.caught_up(SECONDS_MAX)
        for db in (mine, theirs):
            row = db.fetch_one("SELECT n, (SELECT count(*) FROM item) FROM item WHERE id = 'all'")
            assert row is not None
            assert tuple(row) == (40, 41)
        assert repr(sync_mine) == f"<BlockingSync with {relay_url}: live>"
    asyncio.run(assert_converged(postgres_url, first, second))


def test_the_status_is_followed_by_a_thread_to_its_end(tmp_path: Path, relay_url: str) -> None:
    with BlockingDatabase(tmp_path / "file.db") as db:
        sync = BlockingSync(db, relay_url, connected=False).start()
        with pytest.raises(UsageError, match="before"):
            sync.start()
        said: list[str] = []

        def follow() -> None:
            said.extend(status.state for status in sync.watch_status())

        follower = threading.Thread(target=follow)
        follower.start()
        assert str(sync.status) == "disconnected"
        sync.connect()
        sync.caught_up(SECONDS_MAX)
        assert str(sync.status) == "live"
        sync.disconnect()
        assert str(sync.status) == "disconnected"
        sync.stop()
        follower.join(SECONDS_MAX)
        assert not follower.is_alive()
        assert said[-1] == "disconnected"


def test_a_database_that_is_closed_first_stops_its_sync(tmp_path: Path, relay_url: str) -> None:
    with BlockingDatabase(tmp_path / "file.db") as db, BlockingSync(db, relay_url) as sync:
        sync.caught_up(SECONDS_MAX)
        db.close()
        with pytest.raises(UsageError, match="closed"):
            sync.caught_up(SECONDS_MAX)
    assert sync.status.state == "disconnected"
