"""What breaks a constraint of Postgres is refused, reverted, kept and told; work goes on."""

import asyncio
from pathlib import Path

import pytest

from reunite import Database
from reunite_transport import Sync
from reunite_transport.client_session import Event, GaveUp
from tests.e2e.world import (
    SECONDS_MAX,
    assert_converged,
    assert_quiet,
    contents,
    execute,
    fetch,
    make,
    one,
    plain,
    read,
    rejected,
    relay_on,
    sync_once,
    track_and_sync,
    write,
)

PERSON = "CREATE TABLE person (id INTEGER PRIMARY KEY, email TEXT UNIQUE, x INTEGER, note TEXT)"
PEOPLE = "INSERT INTO person (id, email, x) VALUES (1, 'one', 0), (2, 'two', 0), (3, 'three', 0)"


async def two_files(folder: Path, url: str, *statements: str) -> tuple[Path, Path]:
    """Two files that have synced."""
    first, second = make(folder / "first.db", *statements), folder / "second.db"
    await track_and_sync(first, url)
    await sync_once(second, url)
    return first, second


def test_a_unique_value_whose_holder_goes_in_the_same_changeset_clashes_with_nobody(
    tmp_path: Path, postgres_url: str
) -> None:
    """Schedule 6: also where the row that comes in holds what a pending one needs."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE)
            async with Database(first) as mine, Database(second) as theirs:
                await theirs.execute("UPDATE person SET email = 'same' WHERE id = 2")
                await asyncio.sleep(0.01)  # another millisecond
                async with mine.transaction() as tx:
                    await tx.execute("UPDATE person SET email = 'same' WHERE id = 3")
                    await tx.execute("DELETE FROM person WHERE id = 2")
                for db in (theirs, mine):
                    await sync_once(db, relay.url)
                await mine.execute("UPDATE person SET email = 'two' WHERE id = 1")
                for db in (mine, theirs):
                    await sync_once(db, relay.url)
            emails = read(second, "SELECT id, email FROM person ORDER BY id")
            assert emails == [(1, "two"), (3, "same")]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_unique_clash_rejects_the_later_changeset_whole(
    tmp_path: Path, postgres_url: str
) -> None:
    """Schedules 1 and 6: the loser's file shows what was accepted, also where that has the earlier
    stamp; later work goes on."""
    events: list[Event] = []

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE)
            async with Database(first) as mine, Database(second) as theirs:
                async with theirs.transaction() as tx:
                    await tx.execute("UPDATE person SET x = 9 WHERE id = 1")
                    await tx.execute("UPDATE person SET email = 'same' WHERE id = 2")
                await asyncio.sleep(0.01)  # another millisecond
                async with mine.transaction() as tx:
                    await tx.execute("UPDATE person SET x = 1 WHERE id = 1")
                    await tx.execute("UPDATE person SET email = 'same' WHERE id = 3")
                    await tx.execute("INSERT INTO person (id, email) VALUES (4, 'four')")
                await mine.execute("UPDATE person SET note = 'later' WHERE id = 1")
                await sync_once(theirs, relay.url)
                async with Sync(mine, relay.url, on_event=events.append) as sync:
                    await sync.caught_up(SECONDS_MAX)
                    assert sync.status.state == "live"
                    await mine.execute("UPDATE person SET note = 'latest' WHERE id = 3")
                    await sync.caught_up(SECONDS_MAX)
                assert await mine.verify() == []
                lines = await mine.rejected()
                await sync_once(theirs, relay.url)
            assert read(first, "SELECT * FROM person") == [
                (1, "one", 9, "later"),
                (2, "same", 0, None),
                (3, "three", 0, "latest"),
            ]
            assert rejected(first) == [
                ("person", 1, "update", "constraint"),
                ("person", 3, "update", "constraint"),
                ("person", 4, "insert", "constraint"),
            ]
            assert [line["values"] for line in lines][:2] == ['{"x": 1}', '{"email": "same"}']
            assert "person" in lines[0]["message"]
            (told,) = [event for event in events if isinstance(event, GaveUp)]
            assert told.reason == "constraint"
            assert told.rows == (("person", 1), ("person", 3), ("person", 4))
            await assert_converged(postgres_url, first, second, rejections=3)

    asyncio.run(scenario())


def test_what_builds_on_a_rejected_row_is_rejected_too(tmp_path: Path, postgres_url: str) -> None:
    """Schedule 2: changesets already on their way must not make a row that nobody wrote."""
    child = (
        "CREATE TABLE child (id INTEGER PRIMARY KEY, person INTEGER REFERENCES person (id), t TEXT)"
    )

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE, child)
            write(second, "UPDATE person SET email = 'same' WHERE id = 2")
            async with Database(first) as mine:
                await mine.execute("INSERT INTO person (id, email) VALUES (9, 'same')")
                await mine.execute("UPDATE person SET x = 5 WHERE id = 9")
                await mine.execute("INSERT INTO child VALUES (1, 9, 'orphan')")
                await mine.execute("INSERT INTO child VALUES (2, 1, 'fine')")
                await sync_once(second, relay.url)
                await sync_once(mine, relay.url)
            await sync_once(second, relay.url)
            assert [line[:2] for line in rejected(first)] == [
                ("person", 9),
                ("person", 9),
                ("child", 1),
            ]
            assert read(first, "SELECT id FROM child") == [(2,)]
            await assert_converged(postgres_url, first, second, rejections=3)

    asyncio.run(scenario())


def test_two_unique_values_may_be_swapped(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE)
            async with Database(first) as mine, mine.transaction() as tx:
                await tx.execute("UPDATE person SET email = NULL WHERE id = 1")
                await tx.execute("UPDATE person SET email = 'one' WHERE id = 2")
                await tx.execute("UPDATE person SET email = 'two' WHERE id = 1")
            await sync_once(first, relay.url)
            await sync_once(second, relay.url)
            emails = read(second, "SELECT email FROM person ORDER BY id")
            assert emails == [("two",), ("one",), ("three",)]
            await assert_converged(postgres_url, first, second)

    asyncio.run(scenario())


def test_a_first_load_that_collides_with_a_new_row_goes_through(
    tmp_path: Path, postgres_url: str
) -> None:
    """A file that never synced has written a row whose unique value the realm has elsewhere."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", PERSON, PEOPLE)
            await track_and_sync(first, relay.url)
            second = make(tmp_path / "second.db", PERSON)
            async with Database(second) as db:
                await db.track_all()
                await db.execute("INSERT INTO person (id, email) VALUES (7, 'two')")
                await db.execute("INSERT INTO person (id, email) VALUES (8, 'eight')")
                await sync_once(db, relay.url)
            await sync_once(first, relay.url)
            assert rejected(second) == [("person", 7, "insert", "constraint")]
            await assert_converged(postgres_url, first, second, rejections=1)

    asyncio.run(scenario())


def test_of_a_thousand_rows_by_another_program_only_the_bad_one_is_rejected(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE)
            await execute(postgres_url, "ALTER TABLE person ADD CHECK (x <> 617)")
            with plain(first) as conn:
                rows = [(number, f"p{number}", number) for number in range(10, 1_010)]
                conn.executemany("INSERT INTO person (id, email, x) VALUES (?, ?, ?)", rows)
                conn.execute("UPDATE person SET note = 'seen'")
            await sync_once(first, relay.url)
            await sync_once(second, relay.url)
            assert rejected(first) == [("person", 617, "insert", "constraint")]
            assert one(second, "SELECT count(*) FROM person WHERE note = 'seen'") == 1_002
            await assert_converged(postgres_url, first, second, rejections=1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("constraint", "statement"),
    [
        ("ADD CHECK (x < 100)", "UPDATE person SET x = 100 WHERE id = 1"),
        ("ADD CHECK (x < 100)", "INSERT INTO person (id, x) VALUES (9, 100)"),
        ("ALTER email SET NOT NULL", "UPDATE person SET email = NULL WHERE id = 1"),
        ("ADD FOREIGN KEY (x) REFERENCES person", "UPDATE person SET x = 77 WHERE id = 1"),
        ("ADD UNIQUE (note)", "INSERT INTO person (id, note) VALUES (8, 'n'), (9, 'n')"),
        ("ALTER x SET DEFAULT 0", "UPDATE person SET x = 'many' WHERE id = 1"),
        ("ALTER x SET DEFAULT 0", "UPDATE person SET note = 'a' || char(0) WHERE id = 1"),
    ],
)
@pytest.mark.parametrize("loose", [False, True], ids=["by the app", "by another program"])
def test_what_postgres_refuses_is_reverted(
    constraint: str, statement: str, loose: bool, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE)
            await execute(postgres_url, "INSERT INTO person (id, email) VALUES (0, '')")
            await execute(postgres_url, f"ALTER TABLE person {constraint}")
            await sync_once(first, relay.url)
            before = contents(first)
            async with Database(first) as mine:
                if loose:
                    write(first, statement)
                else:
                    await mine.execute(statement)
                await mine.execute("UPDATE person SET note = 'after' WHERE id = 3")
                await sync_once(mine, relay.url)
                reasons = {row["reason"] for row in await mine.rejected()}
            assert reasons == {"constraint"}
            await sync_once(second, relay.url)
            write(first, "UPDATE person SET note = NULL WHERE id = 3")
            write(first, "DELETE FROM person WHERE id IN (8, 9)")
            await sync_once(first, relay.url)
            assert contents(first) == before
            async with Database(first) as mine:
                assert await mine.verify() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE", "SET NULL"])
@pytest.mark.parametrize("first_in", ["child", "delete"])
def test_a_child_and_the_delete_of_its_parent_leave_no_orphan(
    action: str, first_in: str, tmp_path: Path, postgres_url: str
) -> None:
    child = (
        "CREATE TABLE child (id INTEGER PRIMARY KEY, person INTEGER REFERENCES person (id)"
        f" ON DELETE {action})"
    )

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = await two_files(tmp_path, relay.url, PERSON, PEOPLE, child)
            async with Database(first) as mine, Database(second) as theirs:
                await mine.execute("INSERT INTO child VALUES (1, 1)")
                await theirs.execute("DELETE FROM person WHERE id = 1")
                order = (mine, theirs) if first_in == "child" else (theirs, mine)
                for db in (*order, *order):
                    await sync_once(db, relay.url)
            orphans = "SELECT * FROM child WHERE person NOT IN (SELECT id FROM person)"
            assert read(first, orphans) == []
            given_up = len(rejected(first)) + len(rejected(second))
            await assert_converged(postgres_url, first, second, rejections=given_up)

    asyncio.run(scenario())


def test_an_adopted_row_that_is_rejected_stays_in_its_table(
    tmp_path: Path, postgres_url: str
) -> None:
    """Schedule 10: a file that worked yesterday works today; the row syncs once it fits."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = make(tmp_path / "first.db", PERSON, PEOPLE), tmp_path / "second.db"
            write(first, "UPDATE person SET note = 'a' || char(0) || 'b' WHERE id = 2")
            before = contents(first)
            await track_and_sync(first, relay.url)
            await sync_once(second, relay.url)
            assert contents(first) == before
            assert read(second, "SELECT id FROM person") == [(1,), (3,)]
            assert rejected(first) == [("person", 2, "adopted", "constraint")]
            assert one(first, "SELECT state FROM reunite_rows WHERE key = 2") == "rejected"
            await assert_quiet(postgres_url, first, second, rejections=1)
            write(first, "UPDATE person SET x = 5 WHERE id = 2")
            await sync_once(first, relay.url)
            assert one(first, "SELECT length(note) FROM person WHERE id = 2") == 1
            write(first, "UPDATE person SET note = 'fits' WHERE id = 2")
            await sync_once(first, relay.url)
            await sync_once(second, relay.url)
            await assert_converged(postgres_url, first, second, rejections=2)

    asyncio.run(scenario())


def test_a_row_without_a_key_of_its_own_stays_local(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            thing = "CREATE TABLE thing (name TEXT PRIMARY KEY, v INTEGER)"
            first, second = await two_files(tmp_path, relay.url, thing)
            write(first, "INSERT INTO thing VALUES (NULL, 1), ('good', 2), ('bad' || char(0), 3)")
            await sync_once(first, relay.url)
            await sync_once(second, relay.url)
            assert read(second, "SELECT name FROM thing") == [("good",)]
            assert one(first, "SELECT count(*) FROM thing") == 3
            assert {line[3] for line in rejected(first)} == {"local"}
            rows = await fetch(postgres_url, "SELECT name FROM thing")
            assert [row["name"] for row in rows] == ["good"]

    asyncio.run(scenario())
