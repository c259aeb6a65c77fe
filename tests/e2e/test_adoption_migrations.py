"""Migrations of any tool while relays run: what is followed, and what is told."""

import asyncio
import logging
from pathlib import Path

import pytest

from tests.e2e.backends import health, shared, until_told
from tests.e2e.world import SECONDS_MAX, read, settle, until

SHOP = (
    "CREATE TABLE item (id text PRIMARY KEY, name text, price integer)",
    "CREATE TABLE stock (id text PRIMARY KEY, amount integer)",
    "INSERT INTO item VALUES ('a', 'apple', 1), ('b', 'pear', 2)",
    "INSERT INTO stock VALUES ('a', 10)",
)


def test_columns_that_are_added_reach_every_client_with_what_rows_have_of_them(
    either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with shared(either_url, tmp_path, *SHOP) as here:
            away = here.clients[2]
            async with away.away():
                await away.execute("UPDATE item SET name = 'away' WHERE id = 'b'")
                await here.backend.execute(
                    "ALTER TABLE item ADD COLUMN note text,"
                    " ADD COLUMN stars integer NOT NULL DEFAULT 3,"
                    " ADD COLUMN at timestamptz DEFAULT now(),"
                    " ADD COLUMN tags text[] DEFAULT '{x,y}'"
                )
                await here.backend.execute("UPDATE item SET note = 'noted' WHERE id = 'a'")
                await here.settle()
            await here.until_all_have("item", "tags")
            await here.settle()
            rows = "SELECT id, name, note, stars, at IS NULL, tags FROM item ORDER BY id"
            assert here.everywhere(rows) == [
                ("a", "apple", "noted", 3, 0, '["x", "y"]'),
                ("b", "away", None, 3, 0, '["x", "y"]'),
            ]
            await here.clients[0].execute("UPDATE item SET stars = 5, note = 'c' WHERE id = 'b'")
            await here.backend.execute("INSERT INTO item (id, stars) VALUES ('c', 1)")
            await here.settle()
            assert here.everywhere("SELECT id, note, stars FROM item ORDER BY id") == [
                ("a", "noted", 3),
                ("b", "c", 5),
                ("c", None, 1),
            ]

    asyncio.run(scenario())


def test_what_a_migration_writes_to_the_columns_that_it_adds_is_not_lost(
    either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with shared(either_url, tmp_path, *SHOP) as here:
            async with here.backend.transaction():
                await here.backend.execute(
                    "ALTER TABLE item ADD COLUMN plain integer,"
                    " ADD COLUMN filled integer DEFAULT 7,"
                    " ADD COLUMN wanted integer NOT NULL DEFAULT 8"
                )
                await here.backend.execute(
                    "UPDATE item SET plain = 97, filled = 98, wanted = 99 WHERE id = 'a'"
                )
                await here.backend.execute("INSERT INTO item (id, plain) VALUES ('n', 5)")
                await here.backend.execute("UPDATE stock SET amount = 11")
            await here.until_all_have("item", "wanted")
            await here.settle()
            assert here.everywhere("SELECT id, plain, filled, wanted FROM item ORDER BY id") == [
                ("a", 97, 98, 99),
                ("b", None, 7, 8),
                ("n", 5, 7, 8),
            ]
            assert here.everywhere("SELECT amount FROM stock") == [(11,)]

    asyncio.run(scenario())


def test_a_table_that_is_made_while_relays_run_joins_with_its_rows_and_its_foreign_key(
    either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with shared(either_url, tmp_path, *SHOP) as here:
            async with here.backend.transaction():
                await here.backend.execute(
                    'CREATE TABLE "orderLine" (id integer PRIMARY KEY, item text REFERENCES item)'
                )
                await here.backend.execute("INSERT INTO \"orderLine\" VALUES (1, 'a')")
            await here.until_all_have("orderLine")
            await here.clients[1].execute("INSERT INTO \"orderLine\" VALUES (2, 'b')")
            await here.backend.execute("INSERT INTO \"orderLine\" VALUES (3, 'b')")
            await here.settle()
            lines = 'SELECT id, item FROM "orderLine" ORDER BY id'
            assert here.everywhere(lines) == [(1, "a"), (2, "b"), (3, "b")]
            keys = 'SELECT "table", "from" FROM pragma_foreign_key_list(\'orderLine\')'
            assert here.everywhere(keys) == [("item", "item")]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("migration", "back", "said"),
    [
        (
            "ALTER TABLE item DROP COLUMN price",
            "ALTER TABLE item ADD COLUMN price integer",
            "column 'price' is not there any more",
        ),
        (
            "ALTER TABLE item RENAME COLUMN price TO cost",
            "ALTER TABLE item RENAME COLUMN cost TO price",
            "column 'price' is not there any more",
        ),
        (
            "ALTER TABLE item ALTER COLUMN price TYPE timestamptz USING to_timestamp(price)",
            "ALTER TABLE item ALTER COLUMN price TYPE integer USING extract(epoch FROM price)",
            "column 'price' is now of the type timestamp with time zone",
        ),
        (
            "ALTER TABLE item RENAME TO ware",
            "ALTER TABLE ware RENAME TO item",
            "is not in the database any more",
        ),
    ],
    ids=["dropped", "renamed", "retyped", "table renamed"],
)
def test_a_migration_that_is_not_followed_is_told_and_other_tables_go_on(
    migration: str, back: str, said: str, either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with shared(either_url, tmp_path, *SHOP, track_new=False) as here:
            await here.backend.execute(migration)
            for relay in here.relays:
                assert said in await until_told(relay, "item")
                assert (await health(relay))["status"] == "ok"
            one, two, three = here.clients
            await one.execute("UPDATE item SET name = 'waits' WHERE id = 'b'")
            # The other tables sync, in both directions.
            await here.backend.execute("INSERT INTO stock VALUES ('b', 20)")
            await two.execute("UPDATE stock SET amount = 9 WHERE id = 'a'")
            await settle(two.sync, three.sync)
            for client in (two, three):
                found = read(client.file, "SELECT id, amount FROM stock ORDER BY id")
                assert found == [("a", 9), ("b", 20)]
            # What is done about it is noticed, and what waited arrives.
            await here.backend.execute(back)
            for relay in here.relays:
                await until_told(relay, None)
            await here.settle()
            await one.execute("UPDATE item SET price = 4 WHERE id = 'a'")
            await here.backend.execute("UPDATE item SET price = 5 WHERE id = 'b'")
            await here.settle()
            assert here.everywhere("SELECT id, name, price FROM item ORDER BY id") == [
                ("a", "apple", 4),
                ("b", "waits", 5),
            ]

    asyncio.run(scenario())


HARMS = (
    "DROP TRIGGER _reunite_capture ON item",
    "DROP TRIGGER _reunite_emptied ON item",
    "ALTER TABLE item DISABLE TRIGGER USER",
)


def test_triggers_that_are_taken_away_are_put_back_and_it_is_said(
    either_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    in_order = (
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass AND tgenabled = 'O'"
        " AND tgname LIKE E'\\\\_reunite\\\\_%'"
    )

    async def scenario() -> None:
        async with shared(either_url, tmp_path, *SHOP) as here:
            assert await here.in_postgres(in_order) == [(2,)]
            for price, harm in enumerate(HARMS, 11):
                caplog.clear()
                await here.backend.execute(harm)
                async with asyncio.timeout(SECONDS_MAX):
                    while await here.in_postgres(in_order) != [(2,)]:  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.01)
                await until(lambda: "'item' was without our triggers" in caplog.text, "it is said")
                await here.backend.execute("UPDATE item SET price = $1 WHERE id = 'a'", price)
                await here.settle()
                assert here.everywhere("SELECT price FROM item WHERE id = 'a'") == [(price,)]
            await here.backend.execute("TRUNCATE item")
            await here.settle()
            assert here.everywhere("SELECT id FROM item") == []

    asyncio.run(scenario())


def test_a_relay_that_starts_after_a_table_is_gone_says_so_and_serves_the_others(
    either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with shared(either_url, tmp_path, *SHOP, track_new=False) as here:
            await here.stop_relays()
            await here.backend.execute("CREATE SCHEMA attic; ALTER TABLE item SET SCHEMA attic")
            await here.start_relays()
            for relay in here.relays:
                assert "is not in the database any more" in await until_told(relay, "item")
            await here.backend.execute("UPDATE stock SET amount = 12")
            await here.settle()
            assert here.everywhere("SELECT amount FROM stock") == [(12,)]
            await here.backend.execute("ALTER TABLE attic.item SET SCHEMA public")
            for relay in here.relays:
                await until_told(relay, None)
            await here.clients[0].execute("UPDATE item SET price = 3 WHERE id = 'a'")
            await here.settle()

    asyncio.run(scenario())
