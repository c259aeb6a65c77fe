"""Clocks that are wrong, files that were copied, and files that were made apart."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reunite import AdoptionConflict, Database
from reunite.driver import real_clock
from reunite_transport import Sync
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    contents,
    fetch,
    make,
    one,
    queued,
    read,
    rejected,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
    write,
)

NOTE = "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT, size INTEGER)"
NOTES = "INSERT INTO note VALUES (1, 'one', 1), (2, 'two', 2)"
TEN_MINUTES_MS = 600_000


def fast() -> int:
    """A clock that is ten minutes ahead."""
    return real_clock() + TEN_MINUTES_MS


async def two_files(folder: Path, url: str) -> tuple[Path, Path]:
    """Two files that have synced."""
    first, second = make(folder / "first.db", NOTE, NOTES), folder / "second.db"
    await track_and_sync(first, url)
    await sync_once(second, url)
    return first, second


@pytest.mark.parametrize("clock", [fast, lambda: real_clock() - TEN_MINUTES_MS], ids=["+", "-"])
@pytest.mark.parametrize("wrong_is", ["earlier", "later"])
def test_a_wrong_clock_neither_wins_nor_loses_by_it(
    clock: Callable[[], int], wrong_is: str, tmp_path: Path, postgres_url: str
) -> None:
    """Schedule 11: edits are ordered by true time, though one was dated by a wrong clock."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url)
            async with Database(first, clock=clock) as wrong, Database(second) as right:
                order = [(wrong, "wrong"), (right, "right")]
                if wrong_is == "later":
                    order.reverse()
                for db, text in order:
                    await db.execute("UPDATE note SET text = ? WHERE id = 1", (text,))
                    await asyncio.sleep(0.1)  # more than the handshake measures wrong
                for db in (right, wrong, right):
                    await sync_once(db, relay.url)
            assert one(first, "SELECT text FROM note WHERE id = 1") == order[1][1]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_clock_that_jumps_while_connected_goes_on(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 12: the relay refuses stamps of the future; the client measures and stamps anew,
    once and not for ever, and the clock of its file comes back from the future."""
    ahead_ms = 0

    async def scenario() -> None:
        nonlocal ahead_ms
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url)
            async with (
                Database(first, clock=lambda: real_clock() + ahead_ms) as db,
                Sync(db, relay.url) as sync,
            ):
                await sync.caught_up(SECONDS_MAX)
                ahead_ms = TEN_MINUTES_MS
                for number in range(5):
                    await db.execute("UPDATE note SET size = ? WHERE id = 1", (number,))
                    await db.execute("INSERT INTO note (text) VALUES (?)", (f"n {number}",))
                await sync.caught_up(SECONDS_MAX)
                await db.execute("UPDATE note SET text = 'early' WHERE id = 2")
                await sync.caught_up(SECONDS_MAX)
                write(second, "UPDATE note SET text = 'late' WHERE id = 2")
                await sync_once(second, relay.url)
                await sync.caught_up(SECONDS_MAX)
                assert sync.status.last_error is None
                ahead_ms = 0
                await db.execute("UPDATE note SET size = 17 WHERE id = 1")
                await sync.caught_up(SECONDS_MAX)
            await sync_once(second, relay.url)
            assert one(first, "SELECT text FROM note WHERE id = 2") == "late"
            assert one(second, "SELECT size FROM note WHERE id = 1") == 17
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_stale_copy_that_is_tracked_late_beats_no_edit(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 26: two copies of one file join silently, whatever was edited since."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", NOTE, NOTES)
            second = tmp_path / "second.db"
            shutil.copy(first, second)
            await track_and_sync(first, relay.url)
            write(first, "UPDATE note SET text = 'edited' WHERE id = 1")
            write(first, "DELETE FROM note WHERE id = 2")
            write(first, "INSERT INTO note VALUES (3, 'three', 3)")
            await sync_once(first, relay.url)
            before = contents(first)
            await track_and_sync(second, relay.url)
            await sync_once(first, relay.url)
            assert contents(first) == before
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_stale_copy_that_was_edited_before_it_was_tracked_is_told_apart_or_joined(
    tmp_path: Path, postgres_url: str
) -> None:
    """An edit made after tracking is an edit; the rest of the row is not."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", NOTE, NOTES)
            second = tmp_path / "second.db"
            shutil.copy(first, second)
            await track_and_sync(first, relay.url)
            write(first, "UPDATE note SET text = 'edited' WHERE id = 1")
            await sync_once(first, relay.url)
            async with Database(second) as db:
                await db.track_all()
                await db.execute("UPDATE note SET size = 11 WHERE id = 1")
                await sync_once(db, relay.url)
            await sync_once(first, relay.url)
            assert read(first, "SELECT * FROM note WHERE id = 1") == [(1, "edited", 11)]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def different(folder: Path) -> tuple[Path, Path]:
    """Two files with other people's rows under the same keys."""
    first = make(folder / "first.db", NOTE, NOTES)
    second = make(
        folder / "second.db",
        NOTE,
        "INSERT INTO note VALUES (1, 'other', 1), (2, 'two', 2), (3, 'mine', 3)",
    )
    return first, second


def test_two_different_files_never_become_a_chimera(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 27: sync stops, says where they differ, and has changed nothing."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = different(tmp_path)
            await track_and_sync(first, relay.url)
            before = contents(second)
            for _ in range(2):
                with pytest.raises(AdoptionConflict) as caught:
                    await track_and_sync(second, relay.url)
                assert caught.value.counts == {"note": 1}
                assert contents(second) == before
            rows = await fetch(postgres_url, "SELECT * FROM note ORDER BY id")
            assert list(map(tuple, rows)) == [(1, "one", 1), (2, "two", 2)]

    asyncio.run(scenario())


@pytest.mark.parametrize("stopped_first", [False, True])
def test_adopting_theirs_keeps_ours_aside(
    stopped_first: bool, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = different(tmp_path)
            await track_and_sync(first, relay.url)
            async with Database(second) as db:
                await db.track_all()
                if stopped_first:
                    with pytest.raises(AdoptionConflict):
                        await sync_once(db, relay.url)
                await sync_once(db, relay.url, adopt="theirs")
            await sync_once(first, relay.url)
            assert read(second, "SELECT text FROM note ORDER BY id") == [
                ("one",),
                ("two",),
                ("mine",),
            ]
            assert rejected(second) == [("note", 1, "adopted", "adoption")]
            assert '"other"' in one(second, 'SELECT "values" FROM reunite_rejected')
            await assert_converged(postgres_url, first, second, rejections=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("stopped_first", [False, True])
def test_adopting_ours_pushes_it_as_edits_made_now(
    stopped_first: bool, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = different(tmp_path)
            await track_and_sync(first, relay.url)
            async with Database(second) as db:
                await db.track_all()
                if stopped_first:
                    with pytest.raises(AdoptionConflict):
                        await sync_once(db, relay.url)
                await sync_once(db, relay.url, adopt="ours")
            await sync_once(first, relay.url)
            assert read(first, "SELECT text FROM note ORDER BY id") == [
                ("other",),
                ("two",),
                ("mine",),
            ]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def replica_of(file: Path) -> int:
    replica: int = one(file, "SELECT value FROM _reunite_meta WHERE name = 'replica'")
    return replica


async def write_rows(file: Path, text: str, count: int) -> None:
    """So many changesets, not sent."""
    async with Database(file) as db:
        for number in range(count):
            await db.execute("INSERT INTO note (id, text) VALUES (abs(random()), ?)", (text,))
            await db.execute("UPDATE note SET size = ? WHERE id = 1", (number,))


def test_a_copy_whose_numbers_are_taken_forks(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 46: both copies went on from one number; nothing is taken for acknowledged that
    the other one wrote."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", NOTE, NOTES)
            await track_and_sync(first, relay.url)
            copy = tmp_path / "copy.db"
            shutil.copy(first, copy)
            await write_rows(first, "of the first", 5)
            await write_rows(copy, "of the copy", 12)
            for file in (first, copy, first):
                await sync_once(file, relay.url)
            assert replica_of(first) != replica_of(copy)
            counts = read(first, "SELECT text, count(*) FROM note WHERE id > 2 GROUP BY 1")
            assert counts == [("of the copy", 12), ("of the first", 5)]
            await assert_converged(postgres_url, first, copy)

    asyncio.run(scenario())


@pytest.mark.parametrize("second_in", ["copy", "both at once"])
def test_what_both_copies_had_unsent_arrives_once(
    second_in: str, tmp_path: Path, postgres_url: str
) -> None:
    """Schedule 47: the relay knows every accepted pair."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", NOTE, NOTES)
            await track_and_sync(first, relay.url)
            await write_rows(first, "before the copy", 3)
            copy = tmp_path / "copy.db"
            shutil.copy(first, copy)
            assert queued(copy) == 6
            await write_rows(first, "of the first", 2)
            await write_rows(copy, "of the copy", 4)
            if second_in == "copy":
                for file in (first, copy, first):
                    await sync_once(file, relay.url)
            else:
                async with (
                    Database(first) as one_db,
                    Database(copy) as other_db,
                    Sync(one_db, relay.url) as here,
                    Sync(other_db, relay.url) as there,
                ):
                    await settle(here, there)
            assert replica_of(first) != replica_of(copy)
            counts = read(copy, "SELECT text, count(*) FROM note WHERE id > 2 GROUP BY 1")
            assert counts == [("before the copy", 3), ("of the copy", 4), ("of the first", 2)]
            await assert_converged(postgres_url, first, copy)

    asyncio.run(scenario())


def test_copies_that_write_while_both_are_online_both_get_through(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            files = [tmp_path / f"{name}.db" for name in ("first", "copy", "third")]
            make(files[0], NOTE, NOTES)
            await track_and_sync(files[0], relay.url)
            for file in files[1:]:
                shutil.copy(files[0], file)
            async with (
                Database(files[0]) as a,
                Database(files[1]) as b,
                Database(files[2]) as c,
                Sync(a, relay.url) as sync_a,
                Sync(b, relay.url) as sync_b,
                Sync(c, relay.url) as sync_c,
            ):
                for number in range(15):
                    for db in (a, b, c):
                        insert = "INSERT INTO note (id, text) VALUES (abs(random()), ?)"
                        await db.execute(insert, (f"{db.path.stem} {number}",))
                        await db.execute("UPDATE note SET size = ? WHERE id = 1", (number,))
                    await asyncio.sleep(0.03)
                await settle(sync_a, sync_b, sync_c)
            assert len({replica_of(file) for file in files}) == 3
            assert one(files[0], "SELECT count(DISTINCT text) FROM note") == 2 + 45
            assert one(files[0], "SELECT count(*) FROM note") == 2 + 45
            await assert_converged(postgres_url, *files)

    asyncio.run(scenario())
