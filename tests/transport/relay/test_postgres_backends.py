"""What backends may do beside a relay on Postgres that a plain app does not: triggers that write
rows of their own statement or keep rows as they are, JSON that no parser of ours takes, migrations
while captured rows wait, settings of the database. No fold fails, and tables equal documents."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import pytest

from reunite.schema import quoted
from reunite_transport.relay import postgres_capture
from reunite_transport.relay.admission import Refused
from reunite_transport.relay.commit import commit_batch
from reunite_transport.relay.postgres_store import PostgresStore, open_postgres
from reunite_transport.relay.store import Busy
from tests.contracts.backend_contract import folded, pushed, shown, time_there
from tests.contracts.pushes import A, B, at, changeset, deleted, edited, entries, inserted

# asyncpg's own types are generic in its stubs only.
Connection: TypeAlias = Any
Scenario: TypeAlias = Callable[[PostgresStore, Connection], Awaitable[None]]

TWO = """
CREATE TABLE todo (id integer PRIMARY KEY, title text, note text);
CREATE TABLE list (id integer PRIMARY KEY, title text);
INSERT INTO todo VALUES (1, 'milk', 'fresh');
"""
COUNTED = "CREATE TABLE item (id integer PRIMARY KEY, title text, place integer);"


def run(url: str, made: str, scenario: Scenario) -> None:
    async def opened() -> None:
        async with taken_in(url, made) as (store, backend):
            await scenario(store, backend)

    asyncio.run(opened())


@asynccontextmanager
async def taken_in(url: str, made: str) -> AsyncIterator[tuple[PostgresStore, Connection]]:
    """A realm of tables that were there, with what they held folded."""
    backend = await asyncpg.connect(url)
    try:
        await backend.execute(made)
        store = await open_postgres(url)
        try:
            await store.track(None)
            await store.follow(track_new=False)
            await folded(store)
            for replica in (A, B):
                await store.greet(replica, 0, (), 0, b"")
            yield store, backend
        finally:
            await store.close()
    finally:
        await backend.close()


async def assert_equal(store: PostgresStore, backend: Connection, name: str) -> None:
    """The table holds what its documents show."""
    (table,) = [each for each in await store.registry() if each.name == name]
    documents = {key: row for key, row in (await shown(store, table.id)).items() if row}
    columns = ", ".join(quoted(column.name) for column in table.columns)
    rows = await backend.fetch(f"SELECT {columns} FROM {quoted(name)}")
    assert documents == {
        tuple(row[column.name] for column in table.key): {
            column.name: row[column.name] for column in table.cells
        }
        for row in rows
    }


@pytest.mark.parametrize("name", ["Bump", "zz"])
def test_what_a_trigger_writes_to_a_row_comes_after_what_it_was_called_for(
    postgres_url: str, name: str
) -> None:
    made = f"""{COUNTED}
    CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF pg_trigger_depth() = 1 THEN
            UPDATE item SET place = place + 1, title = title || '!' WHERE id = NEW.id;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER "{name}" AFTER INSERT OR UPDATE ON item
        FOR EACH ROW EXECUTE FUNCTION bump();
    INSERT INTO item VALUES (1, 'milk', 1);
    """

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        for statement in (
            "UPDATE item SET title = 'bread', place = 5",
            "INSERT INTO item VALUES (2, 'rye', 7)",
            "UPDATE item SET id = 3 WHERE id = 2",
        ):
            await backend.execute(statement)
            await folded(store)
            await assert_equal(store, backend, "item")

    run(postgres_url, made, scenario)


@pytest.mark.parametrize("name", ["Drop", "zz"])
def test_a_row_that_a_trigger_deletes_as_it_comes_never_was(postgres_url: str, name: str) -> None:
    made = f"""{COUNTED}
    CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        DELETE FROM item WHERE id = NEW.id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER "{name}" AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION take();
    """

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO item VALUES (1, 'milk', 1)")
        await folded(store)
        await assert_equal(store, backend, "item")

    run(postgres_url, made, scenario)


def test_what_a_trigger_writes_to_other_rows_of_its_statement_comes_after_it(
    postgres_url: str,
) -> None:
    made = f"""{COUNTED}
    CREATE FUNCTION push_on() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF pg_trigger_depth() = 1 THEN
            UPDATE item SET place = place + 1 WHERE id = NEW.id + 1;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER push_on AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION push_on();
    INSERT INTO item VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3);
    """

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("UPDATE item SET place = place * 100")
        await folded(store)
        await assert_equal(store, backend, "item")
        assert await backend.fetchval("SELECT place FROM item WHERE id = 3") == 301

    run(postgres_url, made, scenario)


def test_a_row_that_a_trigger_keeps_from_being_deleted_is_alive(postgres_url: str) -> None:
    made = f"""{TWO}
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE TRIGGER keep BEFORE DELETE ON todo FOR EACH ROW EXECUTE FUNCTION keep();
    """

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        now = await time_there(store)
        outcome = await pushed(store, changeset(A, 1, entries((1, deleted(at(now, A))))))
        await assert_equal(store, backend, "todo")
        (stated,) = outcome.rows
        assert stated.author is None  # so its author is told
        assert (await shown(store))[1,] == {"title": "milk", "note": "fresh"}

    run(postgres_url, made, scenario)


def test_a_row_that_a_trigger_marks_as_deleted_instead_is_alive_and_marked(
    postgres_url: str,
) -> None:
    made = f"""{TWO}
    CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE todo SET note = 'gone' WHERE id = OLD.id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER mark BEFORE DELETE ON todo FOR EACH ROW EXECUTE FUNCTION mark();
    """

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        now = await time_there(store)
        await pushed(store, changeset(A, 1, entries((1, deleted(at(now, A))))))
        await assert_equal(store, backend, "todo")
        assert (await shown(store))[1,] == {"title": "milk", "note": "gone"}

    run(postgres_url, made, scenario)


def test_a_row_that_a_trigger_does_not_let_in_is_refused_and_not_waited_for(
    postgres_url: str,
) -> None:
    made = f"""{TWO}
    CREATE FUNCTION sift() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.title = 'no' THEN RETURN NULL; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER sift BEFORE INSERT OR UPDATE ON todo FOR EACH ROW EXECUTE FUNCTION sift();
    """

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        now = await time_there(store)
        update = changeset(A, 1, entries((1, edited(at(now, A), {2: "no"}))))
        insert = changeset(B, 1, entries((7, inserted(at(now, B), {2: "no", 3: "x"}))))
        outcome = await commit_batch(store, [update, insert], b"token001")
        for verdict in outcome.verdicts:
            assert isinstance(verdict, Refused)
            assert verdict.reason == "constraint"
            assert "trigger" in verdict.message
        await assert_equal(store, backend, "todo")

    run(postgres_url, made, scenario)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (r'{"a": "\u0000"}', r'{"a": "\u0000"}'),
        (r'{"a": "\ud800é"}', r'{"a": "\ud800\u00e9"}'),
        ("1e9999999", "1e9999999"),
        ("[" * 900 + "]" * 900, "[" * 900 + "]" * 900),
        ('{"a": ' * 2000 + '"]}"' + "}" * 2000, '{"a": ' * 2000 + '"]}"' + "}" * 2000),
    ],
    ids=["nul", "half a character", "exponent", "deep array", "deep object"],
)
def test_json_that_no_parser_of_ours_takes_is_kept_and_stops_nothing(
    postgres_url: str, text: str, kept: str
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO doc VALUES (1, $1, 'x'), (2, 'null', 'y')", text)
        await folded(store)
        await backend.execute("UPDATE doc SET note = 'seen'")
        await folded(store)
        assert await shown(store) == {
            (1,): {"body": kept, "note": "seen", "pair": None},
            (2,): {"body": "null", "note": "seen", "pair": None},
        }
        # Of a composite, whose text is captured, and of JSON's null beside such an escape.
        await backend.execute("UPDATE doc SET pair = ROW (1, 'a,\"b')")
        await backend.execute("UPDATE doc SET body = 'null' WHERE id = 1")
        await folded(store)
        assert (await shown(store))[1,] == {
            "body": "null",
            "note": "seen",
            "pair": '(1,"a,""b")',
        }

    made = """CREATE TYPE pair AS (n integer, t text);
    CREATE TABLE doc (id integer PRIMARY KEY, body json, note text, pair pair);"""
    run(postgres_url, made, scenario)


@pytest.mark.parametrize(
    "migration",
    [
        "ALTER TABLE todo DROP COLUMN note",
        "ALTER TABLE todo RENAME COLUMN note TO remark",
        "ALTER TABLE todo DROP COLUMN twice",
        "ALTER TABLE todo ALTER COLUMN title TYPE integer USING 5",
        "DROP TABLE todo",
    ],
)
def test_what_was_captured_before_a_migration_holds_up_nothing(
    postgres_url: str, migration: str
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("UPDATE todo SET title = 'bread'")
        await backend.execute(migration)
        await backend.execute("INSERT INTO list VALUES (1, 'home')")
        await store.follow(track_new=False)
        await folded(store)
        await assert_equal(store, backend, "list")
        assert (await store.look()).waiting == 0
        assert (await shown(store))[1,] == {"title": "bread", "note": "fresh"}

    made = f"{TWO} ALTER TABLE todo ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED;"
    run(postgres_url, made, scenario)


def test_a_column_that_is_not_noticed_yet_is_waited_for(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        async with backend.transaction():
            await backend.execute("UPDATE todo SET title = 'bread'")
            await backend.execute("ALTER TABLE todo ADD COLUMN n integer DEFAULT 3")
            await backend.execute("UPDATE todo SET n = 4")
        with pytest.raises(Busy):
            await folded(store)
        await store.follow(track_new=False)
        await folded(store)
        await assert_equal(store, backend, "todo")

    run(postgres_url, TWO, scenario)


def test_a_new_column_that_a_long_transaction_keeps_from_being_noticed_holds_up_nothing(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_capture, "_IS_NEW", "SELECT $1::bigint < 0")

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("ALTER TABLE todo ADD COLUMN n integer DEFAULT 3")
        long = await asyncpg.connect(postgres_url)
        try:
            await long.execute("BEGIN; INSERT INTO todo VALUES (2, 'rye', 'new', 8)")
            await backend.execute("UPDATE todo SET n = NULL, title = 'bread'")
            await backend.execute("INSERT INTO list VALUES (1, 'home')")
            with pytest.raises(Busy):
                await store.follow(track_new=False)
            await folded(store)
            await assert_equal(store, backend, "list")
            await long.execute("COMMIT")
        finally:
            await long.close()
        await store.follow(track_new=False)
        await folded(store)
        await assert_equal(store, backend, "todo")

    run(postgres_url, TWO, scenario)


def test_a_default_that_is_younger_than_its_column_is_not_that_of_older_rows(
    postgres_url: str,
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("ALTER TABLE todo ADD COLUMN n integer")
        await backend.execute("ALTER TABLE todo ALTER COLUMN n SET DEFAULT 3")
        await store.follow(track_new=False)
        await folded(store)
        await assert_equal(store, backend, "todo")

    run(postgres_url, TWO, scenario)


def test_a_new_column_is_noticed_beside_readers_and_what_was_written_to_it_counts_once(
    postgres_url: str,
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("ALTER TABLE todo ADD COLUMN n reunite.counter DEFAULT 0")
        await backend.execute("UPDATE todo SET n = n + 2")
        async with backend.transaction():
            await backend.execute("SELECT FROM todo")
            await store.follow(track_new=False)
        await folded(store)
        await assert_equal(store, backend, "todo")
        assert (await shown(store))[1,] == {"title": "milk", "note": "fresh", "n": 2}

    run(postgres_url, TWO, scenario)


def test_a_table_with_a_column_of_the_name_that_a_statement_of_ours_has_is_taken_in(
    postgres_url: str,
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await assert_equal(store, backend, "odd")
        await backend.execute("UPDATE odd SET said = 'x', before = NULL, place = 2")
        await folded(store)
        await assert_equal(store, backend, "odd")

    made = """CREATE TABLE odd (id integer PRIMARY KEY, "_reunite_row" text, before json, said text,
        place integer, escaped text, column_name text);
    INSERT INTO odd VALUES (1, 'a', '"x"', 'b', 1, 'c', 'd');"""
    run(postgres_url, made, scenario)


def test_a_relay_opens_under_odd_settings_of_the_database(postgres_url: str) -> None:
    async def opened() -> None:
        name = urlsplit(postgres_url).path.removeprefix("/")
        backend = await asyncpg.connect(postgres_url)
        try:
            for setting in (
                "default_transaction_read_only = on",
                "default_transaction_isolation = 'serializable'",
                "search_path = 'pg_catalog'",
                "statement_timeout = '5s'",
            ):
                await backend.execute(f"ALTER DATABASE {name} SET {setting}")
            stores = await asyncio.gather(open_postgres(postgres_url), open_postgres(postgres_url))
            await backend.execute(TWO)
            await stores[0].track(None)
            await folded(stores[0])
            await assert_equal(stores[1], backend, "todo")
            for store in stores:
                await store.close()
        finally:
            await backend.close()

    asyncio.run(opened())
