"""A backend writes the Postgres tables with plain SQL, while files sync with two relays on them."""

import asyncio
from pathlib import Path

import pytest

from reunite.driver import real_clock
from tests.e2e.backends import Client, captured, shared
from tests.e2e.world import SECONDS_MAX, read, until

TODO = (
    "CREATE TABLE list (id text PRIMARY KEY, name text NOT NULL)",
    "CREATE TABLE todo (id text PRIMARY KEY, listid text REFERENCES list (id), title text,"
    " done boolean NOT NULL DEFAULT false, rank integer)",
    "INSERT INTO list VALUES ('l', 'home')",
    "INSERT INTO todo (id, listid, title, rank) VALUES ('a', 'l', 'one', 1), ('b', 'l', 'two', 2)",
)
MANY = "INSERT INTO todo (id, title) SELECT n::text, 'row' FROM generate_series(1, 500) AS n"
HOUR_MS = 3_600_000


def test_what_is_there_before_is_tracked_and_what_a_backend_writes_reaches_every_client(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            assert here.everywhere("SELECT id, title, done, rank FROM todo ORDER BY id") == [
                ("a", "one", 0, 1),
                ("b", "two", 0, 2),
            ]
            await here.backend.execute("INSERT INTO todo VALUES ('c', 'l', 'three', true, 3)")
            await here.backend.execute("UPDATE todo SET title = 'uno', done = true WHERE id = 'a'")
            await here.settle()
            assert here.everywhere("SELECT id, title, done, rank FROM todo ORDER BY id") == [
                ("a", "uno", 1, 1),
                ("b", "two", 0, 2),
                ("c", "three", 1, 3),
            ]

    asyncio.run(scenario())


def test_what_a_client_writes_is_in_postgres_and_at_the_other_clients(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            one, two, three = here.clients
            await one.execute("INSERT INTO todo (id, listid, title) VALUES ('c', 'l', 'of one')")
            await two.execute("UPDATE todo SET title = 'of two' WHERE id = 'a'")
            await three.execute("UPDATE todo SET done = 1 WHERE id = 'b'")
            await here.settle()
            expected = [("a", "of two", False), ("b", "two", True), ("c", "of one", False)]
            assert here.everywhere("SELECT id, title, done FROM todo ORDER BY id") == expected
            found = await here.in_postgres("SELECT id, title, done FROM todo ORDER BY id")
            assert found == expected

    asyncio.run(scenario())


def test_a_backend_is_not_told_its_own_writes_and_no_write_comes_twice(
    tmp_path: Path, postgres_url: str
) -> None:
    """Row versions of Postgres stand still once all have what was written."""

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            await here.backend.execute("UPDATE todo SET rank = rank + 10")
            await here.settle()
            versions = "SELECT id, xmin::text, ctid::text FROM todo ORDER BY id"
            before = await here.in_postgres(versions)
            heads = "SELECT seq FROM _reunite_head"
            head = await here.in_postgres(heads)
            received = [client.rows_received() for client in here.clients]
            await here.settle()
            assert await here.in_postgres(versions) == before
            assert await here.in_postgres(heads) == head
            assert [client.rows_received() for client in here.clients] == received
            assert await captured(postgres_url) == 0

    asyncio.run(scenario())


def test_rows_of_a_composite_key_go_both_ways(tmp_path: Path, postgres_url: str) -> None:
    schema = (
        "CREATE TABLE seat (room integer, place text, at date, guest text,"
        " PRIMARY KEY (at, room, place))",
        "INSERT INTO seat VALUES (1, 'a', '2024-02-29', 'ann'), (1, 'b', '2024-02-29', 'bob')",
    )

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            one, two, _ = here.clients
            await here.backend.execute("UPDATE seat SET guest = 'eve' WHERE place = 'a'")
            await here.backend.execute("INSERT INTO seat VALUES (2, 'a', '2024-03-01', 'cid')")
            await one.execute(
                "UPDATE seat SET guest = 'dan' WHERE (room, place, at) = (1, 'b', '2024-02-29')"
            )
            await two.execute("INSERT INTO seat VALUES (2, 'b', '2024-03-01', 'fay')")
            await here.settle()
            # A backend may give a row another key: it is another row then.
            await here.backend.execute("UPDATE seat SET room = 9 WHERE guest = 'cid'")
            await here.settle()
            assert here.everywhere("SELECT at, room, place, guest FROM seat ORDER BY guest") == [
                ("2024-03-01", 9, "a", "cid"),
                ("2024-02-29", 1, "b", "dan"),
                ("2024-02-29", 1, "a", "eve"),
                ("2024-03-01", 2, "b", "fay"),
            ]

    asyncio.run(scenario())


def test_deletes_go_both_ways(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            await here.backend.execute("DELETE FROM todo WHERE id = 'a'")
            await here.clients[1].execute("DELETE FROM todo WHERE id = 'b'")
            await here.settle()
            assert here.everywhere("SELECT id FROM todo") == []
            assert await here.in_postgres("SELECT id FROM todo") == []
            # What is inserted again under the key has nothing of the row that was there.
            await here.backend.execute("INSERT INTO todo (id, rank) VALUES ('b', 5)")
            await here.settle()
            rows = here.everywhere("SELECT id, listid, title, done, rank FROM todo")
            assert rows == [("b", None, None, 0, 5)]

    asyncio.run(scenario())


def test_a_truncated_table_is_empty_everywhere_and_fills_again(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            async with here.backend.transaction():
                await here.backend.execute("INSERT INTO todo (id, title) VALUES ('x', 'in vain')")
                await here.backend.execute("TRUNCATE todo, list")
                await here.backend.execute("INSERT INTO todo (id, title) VALUES ('a', 'anew')")
            await here.settle()
            assert here.everywhere("SELECT id, title, rank FROM todo") == [("a", "anew", None)]
            assert here.everywhere("SELECT id FROM list") == []
            await here.clients[2].execute("INSERT INTO list VALUES ('m', 'work')")
            await here.settle()
            assert await here.in_postgres("SELECT id, name FROM list") == [("m", "work")]

    asyncio.run(scenario())


def test_upserts_and_rows_by_copy_are_writes_like_others(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            upsert = (
                "INSERT INTO todo (id, title, rank) VALUES ('a', 'upserted', 7), ('n', 'new', 8)"
                " ON CONFLICT (id) DO UPDATE SET title = excluded.title"
            )
            await here.backend.execute(upsert)
            await here.backend.execute(
                "INSERT INTO todo (id, title) VALUES ('b', 'ignored') ON CONFLICT DO NOTHING"
            )
            await here.backend.copy_records_to_table(
                "todo",
                records=[("y", "copied", 1), ("z", "copied", 2)],
                columns=["id", "title", "rank"],
            )
            await here.settle()
            assert here.everywhere("SELECT id, title, rank FROM todo ORDER BY id") == [
                ("a", "upserted", 1),
                ("b", "two", 2),
                ("n", "new", 8),
                ("y", "copied", 1),
                ("z", "copied", 2),
            ]

    asyncio.run(scenario())


def test_a_reference_that_a_backend_sets_to_null_is_null_at_every_client(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            await here.backend.execute("UPDATE todo SET listid = NULL WHERE id = 'a'")
            await here.settle()
            orphans = "SELECT id FROM todo WHERE listid IS NULL"
            assert here.everywhere(orphans) == [("a",)]
            # As `ON DELETE SET NULL` by hand: the parent goes in the same transaction.
            async with here.backend.transaction():
                await here.backend.execute("UPDATE todo SET listid = NULL WHERE listid = 'l'")
                await here.backend.execute("DELETE FROM list WHERE id = 'l'")
            await here.settle()
            assert here.everywhere(f"{orphans} ORDER BY id") == [("a",), ("b",)]
            assert here.everywhere("SELECT id FROM list") == []

    asyncio.run(scenario())


def test_a_client_that_was_away_gets_what_it_has_missed_and_no_more(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO, MANY) as here:
            away = here.clients[0]
            assert away.rows_received() == 503
            async with away.away():
                await here.backend.execute("UPDATE todo SET title = 'missed' WHERE id = '17'")
                await here.backend.execute("DELETE FROM todo WHERE id = '18'")
                await here.clients[1].execute("INSERT INTO todo (id, title) VALUES ('n', 'missed')")
                await here.settle()
            await here.settle()
            assert away.rows_received() == 503 + 3
            assert here.everywhere("SELECT id FROM todo WHERE title = 'missed' ORDER BY id") == [
                ("17",),
                ("n",),
            ]

    asyncio.run(scenario())


def test_what_was_written_while_no_relay_ran_comes_when_one_runs_again(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO, MANY) as here:
            await here.stop_relays()
            await here.backend.execute("UPDATE todo SET title = 'by the backend' WHERE id = 'a'")
            await here.backend.execute("DELETE FROM todo WHERE id = 'b'")
            await here.clients[0].execute("UPDATE todo SET rank = 11 WHERE id = 'a'")
            await here.clients[1].execute("INSERT INTO todo (id, title) VALUES ('c', 'offline')")
            await here.backend.execute("INSERT INTO todo (id, title) VALUES ('d', 'late')")
            received = [client.rows_received() for client in here.clients]
            await here.start_relays()
            await here.settle()
            assert here.everywhere(
                "SELECT id, title, rank FROM todo WHERE title <> 'row' ORDER BY id"
            ) == [
                ("a", "by the backend", 11),
                ("c", "offline", None),
                ("d", "late", None),
            ]
            for client, before in zip(here.clients, received, strict=True):
                assert client.rows_received() - before < 20, "nothing is loaded anew"

    asyncio.run(scenario())


@pytest.mark.parametrize("off_ms", [-24 * HOUR_MS, 24 * HOUR_MS], ids=["a day slow", "a day fast"])
def test_a_client_whose_clock_is_wrong_does_not_lose_its_edit_nor_win_for_ever(
    off_ms: int, tmp_path: Path, postgres_url: str
) -> None:
    ago_ms = 0

    async def scenario() -> None:
        nonlocal ago_ms

        def clock() -> int:
            return real_clock() + off_ms - ago_ms

        async with shared(postgres_url, tmp_path, *TODO, clock=clock) as here:
            wrong = here.clients[0]
            for turn in range(2):
                await here.backend.execute("UPDATE todo SET title = $1 WHERE id = 'a'", f"b{turn}")
                await here.settle()
                async with wrong.away():
                    await wrong.execute("UPDATE todo SET title = ? WHERE id = 'a'", f"c{turn}")
                await here.settle()
                assert here.everywhere("SELECT title FROM todo WHERE id = 'a'") == [(f"c{turn}",)]
            await here.backend.execute("UPDATE todo SET title = 'last' WHERE id = 'a'")
            await here.settle()
            assert here.everywhere("SELECT title FROM todo WHERE id = 'a'") == [("last",)]
            # By time where neither saw the other: the client's edit is the earlier one.
            async with wrong.away():
                ago_ms = 10_000  # more than the correction can be off
                await wrong.execute("UPDATE todo SET title = 'earlier' WHERE id = 'a'")
                ago_ms = 0
                await here.backend.execute("UPDATE todo SET title = 'later' WHERE id = 'a'")
                await here.settle()
            await here.settle()
            assert here.everywhere("SELECT title FROM todo WHERE id = 'a'") == [("later",)]

    asyncio.run(scenario())


@pytest.mark.parametrize("client_first", [True, False], ids=["client first", "backend first"])
def test_edits_of_other_columns_made_apart_both_stay(
    client_first: bool, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            away = here.clients[1]
            async with away.away():
                if client_first:
                    await away.execute("UPDATE todo SET title = 'of the client' WHERE id = 'a'")
                    await asyncio.sleep(0.01)  # another millisecond
                await here.backend.execute("UPDATE todo SET rank = 99, done = true WHERE id = 'a'")
                await here.settle()
                if not client_first:
                    await asyncio.sleep(0.01)  # another millisecond
                    await away.execute("UPDATE todo SET title = 'of the client' WHERE id = 'a'")
            await here.settle()
            rows = here.everywhere("SELECT title, rank, done FROM todo WHERE id = 'a'")
            assert rows == [("of the client", 99, 1)]

    asyncio.run(scenario())


@pytest.mark.parametrize("later", ["backend", "client"])
def test_an_edit_that_meets_an_open_transaction_waits_and_both_are_kept(
    later: str, tmp_path: Path, postgres_url: str
) -> None:
    """Of a column that both wrote the later value stays, as always."""
    client_edit = "UPDATE todo SET title = 'of the client', done = 1 WHERE id = 'a'"
    backend_edit = "UPDATE todo SET title = 'of the backend', rank = 77 WHERE id = 'a'"

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            client, other, _ = here.clients
            transaction = here.backend.transaction()
            if later == "backend":
                async with client.away():
                    await client.execute(client_edit)
                    await asyncio.sleep(0.01)  # another millisecond
                    await transaction.start()
                    await here.backend.execute(backend_edit)
            else:
                await transaction.start()
                await here.backend.execute(backend_edit)
                await asyncio.sleep(0.01)  # another millisecond
                await client.execute(client_edit)
            # Others go on meanwhile, and the edit has not come to them.
            await other.execute("UPDATE todo SET rank = 5 WHERE id = 'b'")
            await other.sync.caught_up(SECONDS_MAX)
            await until(lambda: client.sync.status.state == "live", "the client is connected")
            await until(lambda: _rank(client, "b") == 5, "others' work arrives")
            await until(lambda: client.sync.status.queued == 1, "its edit waits")
            assert read(other.file, "SELECT title, done FROM todo WHERE id = 'a'") == [("one", 0)]
            await transaction.commit()
            await here.settle()
            rows = here.everywhere("SELECT title, done, rank FROM todo WHERE id = 'a'")
            assert rows == [(f"of the {later}", 1, 77)]

    asyncio.run(scenario())


def test_an_open_transaction_that_rolls_back_has_held_up_an_edit_and_changed_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            transaction = here.backend.transaction()
            await transaction.start()
            await here.backend.execute("DELETE FROM todo WHERE id = 'a'")
            await here.clients[0].execute("UPDATE todo SET title = 'mine' WHERE id = 'a'")
            await here.clients[1].sync.caught_up(SECONDS_MAX)
            await transaction.rollback()
            await here.settle()
            rows = here.everywhere("SELECT title, rank FROM todo WHERE id = 'a'")
            assert rows == [("mine", 1)]

    asyncio.run(scenario())


def test_an_edit_of_a_client_that_did_not_see_a_backends_delete_brings_the_row_back_whole(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            away = here.clients[0]
            async with away.away():
                await here.backend.execute("DELETE FROM todo WHERE id = 'a'")
                await here.settle()
                assert read(here.clients[1].file, "SELECT id FROM todo") == [("b",)]
                await away.execute("UPDATE todo SET done = 1 WHERE id = 'a'")
            await here.settle()
            whole = "SELECT id, listid, title, done, rank FROM todo WHERE id = 'a'"
            assert here.everywhere(whole) == [("a", "l", "one", 1, 1)]
            assert await here.in_postgres(whole) == [("a", "l", "one", True, 1)]

    asyncio.run(scenario())


def test_an_edit_of_a_backend_that_did_not_see_a_clients_delete_brings_the_row_back_whole(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            away = here.clients[0]
            async with away.away():
                await away.execute("DELETE FROM todo WHERE id = 'a'")
                await asyncio.sleep(0.01)  # another millisecond
                await here.backend.execute("UPDATE todo SET done = true WHERE id = 'a'")
            await here.settle()
            whole = "SELECT id, listid, title, done, rank FROM todo WHERE id = 'a'"
            assert here.everywhere(whole) == [("a", "l", "one", 1, 1)]
            assert await here.in_postgres(whole) == [("a", "l", "one", True, 1)]

    asyncio.run(scenario())


def test_names_in_any_case_with_spaces_and_quotes_go_both_ways(
    tmp_path: Path, postgres_url: str
) -> None:
    schema = (
        'CREATE TABLE "orderItem" ("orderId" integer, "itemNo" integer, "unitPrice" numeric(8,2),'
        ' PRIMARY KEY ("orderId", "itemNo"))',
        'CREATE TABLE "My ""odd"" table" ("the id" text PRIMARY KEY, "it\'s" text, "Select" json)',
        'INSERT INTO "orderItem" VALUES (1, 1, 9.95)',
    )

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            await here.backend.execute('INSERT INTO "orderItem" VALUES (1, 2, 0.5)')
            await here.backend.execute(
                """INSERT INTO "My ""odd"" table" VALUES ('k', 'v', '{"camelCase": "a b"}')"""
            )
            await here.settle()
            await here.clients[1].execute(
                'UPDATE "orderItem" SET "unitPrice" = 1.25 WHERE "itemNo" = 1'
            )
            await here.clients[2].execute("""UPDATE "My ""odd"" table" SET "it's" = 'w'""")
            await here.settle()
            items = 'SELECT "itemNo", "unitPrice" FROM "orderItem" ORDER BY 1'
            assert here.everywhere(items) == [(1, 1.25), (2, 0.5)]
            assert here.everywhere('SELECT "it\'s" FROM "My ""odd"" table"') == [("w",)]

    asyncio.run(scenario())


def test_a_transaction_over_three_tables_is_seen_whole_or_not_at_all(
    tmp_path: Path, postgres_url: str
) -> None:
    tables = ("one", "two", "three")
    schema = [f"CREATE TABLE {name} (id integer PRIMARY KEY, round integer)" for name in tables]
    counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in tables)
    rounds = ", ".join(f"(SELECT coalesce(max(round), 0) FROM {name})" for name in tables)
    last = 12

    async def watch(client: Client) -> set[tuple[int, ...]]:
        """All states that a reader of the file sees until the last round is there."""
        seen: set[tuple[int, ...]] = set()
        async with asyncio.timeout(SECONDS_MAX):
            while not any(state[-1] == last for state in seen):
                (state,) = await asyncio.to_thread(read, client.file, f"SELECT {counts}, {rounds}")
                seen.add(state)
        return seen

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            watching = [asyncio.create_task(watch(client)) for client in here.clients]
            for number in range(1, last + 1):
                async with here.backend.transaction():
                    for table in tables:
                        await here.backend.execute(f"INSERT INTO {table} VALUES ({number}, 0)")
                        await here.backend.execute(f"UPDATE {table} SET round = {number}")
            for seen in await asyncio.gather(*watching):
                assert len(seen) > 1
                for state in seen:
                    assert state == (state[0],) * 6, "a part of a transaction was seen"

    asyncio.run(scenario())


def test_a_counter_has_what_backends_and_clients_added(tmp_path: Path, postgres_url: str) -> None:
    """The domain is the relay's; the table is the backend's, made while relays run."""
    schema = (
        "CREATE TABLE poll (id text PRIMARY KEY, votes reunite.counter NOT NULL DEFAULT 0)",
        "INSERT INTO poll VALUES ('p', 5)",
    )
    add = "UPDATE poll SET votes = votes + 1 WHERE id = 'p'"

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path) as here:
            for statement in schema:
                await here.backend.execute(statement)
            await here.until_all_have("poll")
            await here.settle()
            assert here.everywhere("SELECT votes FROM poll") == [(5,)]
            for _ in range(3):
                await here.backend.execute(add)
                for client in here.clients:
                    await client.execute(add)
            await here.settle()
            assert here.everywhere("SELECT votes FROM poll") == [(5 + 12,)]
            one, two, _ = here.clients
            async with one.away(), two.away():
                await one.execute(add)
                await two.execute("UPDATE poll SET votes = votes - 10")
                await here.backend.execute("UPDATE poll SET votes = 100")  # 83 more than it saw
                await here.settle()
            await here.settle()
            assert await here.in_postgres("SELECT votes FROM poll") == [(100 + 1 - 10,)]

    asyncio.run(scenario())


def _rank(client: Client, row: str) -> object:
    return read(client.file, "SELECT rank FROM todo WHERE id = ?", row)[0][0]
