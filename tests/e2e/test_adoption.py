"""A Postgres that is there already is taken into sync by the command line, and let go again."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from reunite import Database
from reunite_transport import Sync
from tests.e2e.backends import Connection, assert_files_equal_postgres, captured
from tests.e2e.catalogs import catalogs
from tests.e2e.processes import relay_process, reunite
from tests.e2e.world import (
    SECONDS_MAX,
    assert_quiet,
    contents,
    execute,
    fetch,
    one,
    read,
    rejected,
    settle,
    sync_once,
    table_names,
    write,
)

CHINOOK_ROWS = 15_607


def test_a_sample_database_is_tracked_whole_edited_on_both_sides_and_let_go(
    either_url: str, chinook_script: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"

    async def scenario() -> None:
        backend: Connection = await asyncpg.connect(either_url)
        try:
            await backend.execute(chinook_script)
            before = await catalogs(backend)
            assert len(dict_of(before)) == 11
            async with (
                relay_process(either_url, 0, "--track-all") as (_, url),
                Database(first) as mine,
                Database(second) as theirs,
                Sync(mine, url) as here,
                Sync(theirs, url) as there,
            ):
                await settle(here, there)
                assert len(table_names(first)) == 11
                assert sum(map(len, contents(first).values())) == CHINOOK_ROWS
                await assert_files_equal_postgres(either_url, first, second)
                await backend.execute("UPDATE artist SET name = 'AC-DC' WHERE artist_id = 1")
                await backend.execute("DELETE FROM playlist_track WHERE track_id = 1")
                await mine.execute("UPDATE track SET unit_price = 1.29 WHERE track_id = 1")
                async with theirs.transaction() as tx:
                    await tx.execute("INSERT INTO artist VALUES (1000, 'New')")
                    await tx.execute("INSERT INTO album VALUES (1000, 'First', 1000)")
                await settle(here, there)
                assert one(second, "SELECT name FROM artist WHERE artist_id = 1") == "AC-DC"
                assert one(second, "SELECT unit_price FROM track WHERE track_id = 1") == 1.29
                assert read(first, "SELECT * FROM playlist_track WHERE track_id = 1") == []
                assert one(first, "SELECT title FROM album WHERE artist_id = 1000") == "First"
            await assert_files_equal_postgres(either_url, first, second)
            await assert_quiet(either_url, first, second)
            tracked = await catalogs(backend)
            code, said, complained = await reunite("untrack", "--postgres", either_url, "--all")
            assert (code, complained) == (0, "")
            assert "track syncs no more" in said
            after = await catalogs(backend)
        finally:
            await backend.close()
        rows = {name: count for _, name, count in tracked.pop("rows") if name in dict_of(before)}
        assert dict_of(after) == rows
        assert {**after, "rows": ()} == {**before, "rows": ()}
        assert tracked != before, "the catalogs show what a relay makes"

    asyncio.run(scenario())
    prices = asyncio.run(fetched(either_url, "SELECT unit_price FROM track WHERE track_id = 1"))
    assert prices == [(Decimal("1.29"),)]


def dict_of(found: dict[str, list[tuple[object, ...]]]) -> dict[object, object]:
    """How many rows each table has."""
    return {name: count for _, name, count in found["rows"]}


async def fetched(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query to Postgres."""
    return [tuple(row) for row in await fetch(url, sql)]


SHOP = (
    "CREATE TABLE item (id text PRIMARY KEY, name text)",
    "CREATE TABLE stock (id text PRIMARY KEY, amount integer)",
    "CREATE TABLE log (line text)",
    "CREATE VIEW cheap AS SELECT id FROM item",
    "CREATE TABLE old (id integer PRIMARY KEY) PARTITION BY RANGE (id)",
    "INSERT INTO item VALUES ('a', 'apple'), ('b', 'pear'), ('c', 'cherry')",
    "INSERT INTO stock VALUES ('a', 10)",
)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cheap", "table 'cheap': is a view; track the tables that it reads instead"),
        ("log", "table 'log': has no primary key"),
        ("item,nobody", "table 'nobody': there is no such table in the schema"),
    ],
)
def test_a_name_that_cannot_be_tracked_ends_the_relay_with_one_clear_line(
    names: str, said: str, either_url: str
) -> None:
    async def scenario() -> None:
        for statement in SHOP:
            await execute(either_url, statement)
        code, shown, complained = await reunite(
            "relay", "--postgres", either_url, "--port", "0", "--track", names
        )
        assert (code, shown) == (1, "")
        (line,) = complained.splitlines()
        assert line.startswith("reunite: ")
        assert said in line
        # None of the names is tracked then.
        triggers = "SELECT 1 FROM pg_trigger WHERE tgrelid = 'item'::regclass"
        assert await fetch(either_url, triggers) == []

    asyncio.run(scenario())


def test_all_tables_are_tracked_but_those_that_cannot_be_which_are_named(
    either_url: str, tmp_path: Path
) -> None:
    file, log = tmp_path / "file.db", tmp_path / "log"

    async def scenario() -> None:
        for statement in SHOP:
            await execute(either_url, statement)
        async with relay_process(either_url, 0, "--track-all", log=log) as (_, url):
            await sync_once(file, url)
        assert table_names(file) == ["item", "stock"]

    asyncio.run(scenario())
    log_line, old_line = sorted(log.read_text().splitlines())
    assert "'log': has no primary key" in log_line
    assert "'old': is partitioned" in old_line


def test_relays_that_start_again_or_beside_fold_no_row_twice(
    either_url: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    options = (0, "--track", "item,poll")
    documents = (
        "SELECT d.seq, t.name, d.document FROM _reunite_documents AS d"
        " JOIN _reunite_tables AS t ON t.id = d.tbl ORDER BY t.name, d.key"
    )

    async def scenario() -> None:
        # A relay that was here before has made the domains.
        async with relay_process(either_url):
            pass
        for statement in SHOP:
            await execute(either_url, statement)
        await execute(either_url, "CREATE TABLE poll (id text PRIMARY KEY, votes reunite.counter)")
        await execute(either_url, "INSERT INTO poll VALUES ('p', 5)")
        async with relay_process(either_url, *options) as (_, url):
            await sync_once(first, url)
            known = await fetch(either_url, documents)
            assert len(known) == 4
            async with relay_process(either_url, *options) as (_, beside):
                await sync_once(first, url)
                await sync_once(second, beside)
                assert await fetch(either_url, documents) == known
        async with relay_process(either_url, *options) as (_, again):
            await sync_once(first, again)
            assert await fetch(either_url, documents) == known
            assert await captured(either_url) == 0
            await execute(either_url, "UPDATE poll SET votes = votes + 1")
            for file in (first, second):
                await sync_once(file, again)
                assert read(file, "SELECT votes FROM poll") == [(6,)]
                assert len(read(file, "SELECT id FROM item")) == 3
        await assert_quiet(either_url, first, second)

    asyncio.run(scenario())


def test_a_table_that_was_let_go_and_is_tracked_again_is_another_table(
    either_url: str, tmp_path: Path
) -> None:
    """Files that have the former one are told, leave it as it is, and go on with all others."""
    first, second, third = (tmp_path / f"{name}.db" for name in ("first", "second", "third"))
    rows = "SELECT id, name FROM item ORDER BY id"
    options = (0, "--track", "item,stock")

    async def scenario() -> None:
        for statement in SHOP:
            await execute(either_url, statement)
        async with relay_process(either_url, *options) as (_, url):
            await sync_once(first, url)
            await sync_once(second, url)
        code, said, complained = await reunite("untrack", "--postgres", either_url, "item")
        assert (code, said, complained) == (0, "item syncs no more\n", "")
        await execute(either_url, "UPDATE item SET name = 'changed meanwhile' WHERE id = 'a'")
        await execute(either_url, "DELETE FROM item WHERE id = 'c'")
        # While it is let go, what a file does to it is refused by name, and kept.
        async with relay_process(either_url, 0, "--track", "stock") as (_, url):
            await execute(either_url, "UPDATE stock SET amount = 11")
            write(first, "UPDATE item SET name = 'refused' WHERE id = 'b'")
            await sync_once(first, url)
            assert rejected(first) == [("item", "b", "update", "invalid")]
            assert read(first, rows) == [("a", "apple"), ("b", "pear"), ("c", "cherry")]
            assert read(first, "SELECT amount FROM stock") == [(11,)]
        write(second, "UPDATE item SET name = 'unsent' WHERE id = 'c'")
        async with relay_process(either_url, *options) as (_, url):
            await sync_once(third, url)
            assert read(third, rows) == [("a", "changed meanwhile"), ("b", "pear")]
            await execute(either_url, "UPDATE stock SET amount = 12")
            for file, last in ((first, "cherry"), (second, "unsent")):
                async with Database(file) as db, Sync(db, url) as sync:
                    await sync.caught_up(SECONDS_MAX)
                    assert sync.status.left_alone == ("item",)
                write(file, "UPDATE item SET name = 'nobody is told' WHERE id = 'b'")
                await sync_once(file, url)
                assert read(file, rows) == [("a", "apple"), ("b", "nobody is told"), ("c", last)]
                assert read(file, "SELECT amount FROM stock") == [(12,)]
            ((_, key, kind, reason),) = rejected(second)
            assert (key, kind, reason) == ("c", "update", "expired")
            assert await fetched(either_url, rows) == read(third, rows)
            # Tracked again there, too, both are joined as any two tables with rows.
            async with Database(first) as db:
                await db.track("item")
                await sync_once(db, url, adopt="theirs")
            await sync_once(third, url)
            joined = [("a", "changed meanwhile"), ("b", "pear"), ("c", "cherry")]
            assert read(first, rows) == read(third, rows) == joined
            assert await fetched(either_url, rows) == joined

    asyncio.run(scenario())
