"""Loading everything once more from a real relay: under a sync that runs, by another process."""

import asyncio
from dataclasses import replace
from pathlib import Path

from reunite import Database
from reunite_transport import Sync
from reunite_transport.client_session import Event, Welcomed
from tests.e2e.processes import reunite
from tests.e2e.world import (
    QUICK,
    SECONDS_MAX,
    assert_converged,
    fetch,
    make,
    one,
    plain,
    read,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
    write,
)

ITEM = "CREATE TABLE item (id INTEGER PRIMARY KEY, n COUNTER NOT NULL DEFAULT 0, body CRDT_TEXT)"
ROWS = 40


def fill(file: Path) -> Path:
    """A file with rows, and a table that is no one else's business."""
    make(file, ITEM, "CREATE TABLE draft (id INTEGER PRIMARY KEY)", "INSERT INTO draft VALUES (1)")
    with plain(file) as conn:
        conn.executemany(
            "INSERT INTO item VALUES (?, ?, 'hello world')", [(key, key) for key in range(ROWS)]
        )
    return file


def test_a_running_sync_loads_again_and_offline_edits_count_once(
    tmp_path: Path, postgres_url: str
) -> None:
    events: list[Event] = []

    async def scenario() -> None:
        first, second = fill(tmp_path / "first.db"), tmp_path / "second.db"
        small = replace(QUICK, page_rows_max=7)
        async with relay_on(postgres_url, limits=small) as relay:
            async with Database(first) as db:
                await db.keep_local("draft")
                assert await db.track_all() == ["item"]
                await sync_once(db, relay.url)
            await sync_once(second, relay.url)
            async with (
                Database(first) as mine,
                Database(second) as theirs,
                Sync(mine, relay.url, on_event=events.append) as here,
                Sync(theirs, relay.url) as there,
            ):
                await settle(here, there)
                await here.disconnect()
                await mine.execute("UPDATE item SET n = n + 10, body = 'hello new world'")
                await mine.execute("DELETE FROM item WHERE id = 3")
                await theirs.execute("UPDATE item SET n = n + 100, body = 'hello world again'")
                await theirs.execute("DELETE FROM item WHERE id = 4")
                await there.caught_up(SECONDS_MAX)
                await mine.reload()
                await here.connect()
                await settle(here, there)
                # Now one that is live is told to.
                greeted = sum(isinstance(event, Welcomed) for event in events)
                await mine.reload()
                await settle(here, there)
                welcomes = [event for event in events if isinstance(event, Welcomed)]
                assert len(welcomes) == greeted + 1
                assert welcomes[-1].rows >= ROWS - 2
                assert here.status.last_error is None
            assert read(first, "SELECT id FROM draft") == [(1,)]
            assert one(first, "SELECT n FROM item WHERE id = 1") == 111
            assert one(first, "SELECT body FROM item WHERE id = 1") == "hello new world again"
            # Row 3 was changed after it was deleted, so it lives; 4 was deleted after all.
            assert one(first, "SELECT count(*) FROM item") == ROWS - 1
            make(second, "CREATE TABLE IF NOT EXISTS draft (id INTEGER PRIMARY KEY)")
            write(second, "INSERT INTO draft VALUES (1)")
        await assert_converged(postgres_url, first, second, tables=["item"])

    asyncio.run(scenario())


def test_the_command_tells_a_sync_of_another_process_to_load_again(
    tmp_path: Path, postgres_url: str
) -> None:
    events: list[Event] = []

    async def scenario() -> None:
        file = fill(tmp_path / "file.db")
        async with relay_on(postgres_url) as relay:
            await track_and_sync(file, relay.url)
            async with Database(file) as db, Sync(db, relay.url, on_event=events.append) as sync:
                await sync.caught_up(SECONDS_MAX)
                before = len(events)
                code, said, complained = await reunite("reload", str(file))
                assert (code, complained) == (0, "")
                assert "loads everything again; 0 changesets pending" in said
                await sync.caught_up(SECONDS_MAX)
                assert any(isinstance(event, Welcomed) for event in events[before:])
        assert len(await fetch(postgres_url, "SELECT id FROM item")) == ROWS

    asyncio.run(scenario())


def test_the_command_line_keeps_tables_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = fill(tmp_path / "file.db")
        code, said, _ = await reunite("track", str(file), "--all", "--except", "draft")
        assert (code, said.splitlines()[-1]) == (0, f"tracking item: {ROWS} rows")
        make(file, "CREATE TABLE later (id INTEGER PRIMARY KEY)")
        code, said, _ = await reunite("track", str(file), "--all")
        assert "draft" not in said
        code, said, _ = await reunite("status", str(file))
        assert "local only 'draft' (tables that are kept in this file)" in said
        assert "untracked" not in said
        code, _, complained = await reunite("track", str(file), "item", "--except", "draft")
        assert (code, complained) == (2, "reunite: --except goes with --all\n")
        code, _, complained = await reunite("reload", str(tmp_path / "none.db"))
        assert code == 1
        assert "does not exist" in complained

    asyncio.run(scenario())
