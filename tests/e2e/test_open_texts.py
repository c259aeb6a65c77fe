"""Open texts on several replicas of one relay: people who type in one note at once."""

import asyncio
from pathlib import Path

from reunite import Database
from reunite.text import Editor
from reunite_transport import Sync
from tests.e2e.world import SECONDS_MAX, fetch, make, relay_on, settle, track_and_sync

NOTE = "CREATE TABLE note (id TEXT PRIMARY KEY, body CRDT_TEXT NOT NULL DEFAULT '')"
FIRST = "INSERT INTO note VALUES ('n', 'the end')"


async def shows(text: Editor, wanted: str) -> None:
    """Wait until an open text shows this, told by what others did."""
    changed = asyncio.Event()
    end = text.observe(lambda _: changed.set())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while str(text) != wanted:
                await changed.wait()
                changed.clear()
    finally:
        end()


def test_two_who_type_in_one_note_see_each_other(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "one.db", NOTE, FIRST)
            await track_and_sync(first, relay.url)
            async with (
                Database(first) as one,
                Database(tmp_path / "two.db") as two,
                Sync(one, relay.url) as sync_one,
                Sync(two, relay.url) as sync_two,
            ):
                await settle(sync_one, sync_two)
                async with (
                    one.text("note", "n", "body") as left,
                    two.text("note", "n", "body") as right,
                ):
                    left.insert(0, "Once upon a time 🏰 … ")
                    await left.save()
                    await shows(right, "Once upon a time 🏰 … the end")
                    right.insert(len(right), ".")
                    left.delete(17, 2)
                    left.insert(17, "🐉 ")
                    saved = await right.save()
                    assert saved is not None
                    assert await two.synced(saved, SECONDS_MAX)
                    await left.save()
                    await shows(left, "Once upon a time 🐉 … the end.")
                    await shows(right, "Once upon a time 🐉 … the end.")
                await settle(sync_one, sync_two)
                assert await one.verify() == await two.verify() == []
            rows = await fetch(postgres_url, "SELECT body FROM note")
            assert [row["body"] for row in rows] == ["Once upon a time 🐉 … the end."]

    asyncio.run(scenario())


def test_what_was_typed_offline_meets_what_was_typed_elsewhere(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "one.db", NOTE, FIRST)
            await track_and_sync(first, relay.url)
            async with Database(first) as one, Database(tmp_path / "two.db") as two:
                async with Sync(two, relay.url) as sync:
                    await sync.caught_up(timeout=SECONDS_MAX)
                async with one.text("note", "n", "body") as left:
                    for at, letter in enumerate("hello "):
                        left.insert(at, letter)
                await two.execute("UPDATE note SET body = 'this is ' || body")
                async with Sync(one, relay.url) as sync_one, Sync(two, relay.url) as sync_two:
                    await settle(sync_one, sync_two)
                bodies = {
                    str(row["body"])
                    for db in (one, two)
                    for row in await db.fetch_all("SELECT body FROM note")
                }
                # Both were put before the same letter: one word after the other.
                assert bodies <= {"hello this is the end", "this is hello the end"}
                assert len(bodies) == 1

    asyncio.run(scenario())
