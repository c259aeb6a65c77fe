"""The Postgres store keeps the contract, and what is Postgres's own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from reunite.cells.register import Value
from reunite.document import EMPTY, encode, merge
from reunite.errors import TableError
from reunite.schema import Column, ForeignKey, Table, quoted
from reunite_transport.relay.postgres_store import PostgresStore, open_postgres
from reunite_transport.relay.store import Busy, RowChange, RowId, StoreError, Violation
from tests.contracts.backend_contract import BackendContract
from tests.contracts.history_contract import HistoryContract
from tests.contracts.pushes import PERSON, A, at, column, deleted, edited, inserted, row, table
from tests.contracts.restore_contract import Outside, RestoreContract
from tests.contracts.store_contract import Opener, StoreContract, write


@asynccontextmanager
async def opened(url: str, schema: str = "public") -> AsyncIterator[PostgresStore]:
    store = await open_postgres(url, schema=schema)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def backend(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


class TestPostgresStore(StoreContract, RestoreContract, HistoryContract, BackendContract):
    @pytest.fixture
    def opener(self, postgres_url: str) -> Opener:
        return lambda: opened(postgres_url)

    @pytest.fixture
    def outside(self, postgres_url: str) -> Outside:
        @asynccontextmanager
        async def transaction() -> AsyncIterator[Callable[[str], Awaitable[object]]]:
            async with backend(postgres_url) as connection, connection.transaction():
                yield connection.fetch

        return transaction


def test_two_relays_that_open_one_empty_database_at_once_share_a_realm(postgres_url: str) -> None:
    async def scenario() -> None:
        stores = await asyncio.gather(*(open_postgres(postgres_url, schema="r") for _ in range(4)))
        assert len({store.realm for store in stores}) == 1
        assert len({store.replica for store in stores}) == 4
        for store in stores:
            await store.close()

    asyncio.run(scenario())


def test_a_newer_format_is_refused_with_what_to_do(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url), backend(postgres_url) as connection:
            await connection.execute("UPDATE _reunite_meta SET format = 2")
        with pytest.raises(StoreError, match="upgrade the relay"):
            await open_postgres(postgres_url)

    asyncio.run(scenario())


def test_a_database_that_is_not_there_is_a_store_error(postgres_url: str) -> None:
    async def scenario() -> None:
        with pytest.raises(StoreError):
            await open_postgres(postgres_url.replace("/test_", "/absent_"))

    asyncio.run(scenario())


def test_realms_of_two_schemas_are_apart_and_leave_public_alone(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url, "a") as a, opened(postgres_url, 'b "%s" ü') as b:
            assert a.realm != b.realm
            for store in (a, b):
                await store.describe([PERSON], create=True)
                await write(store, {row(1): ("insert", {2: "a@x"})})
            async with backend(postgres_url) as connection:
                for schema in ("a", 'b "%s" ü'):
                    name = f"{quoted(schema)}.person"
                    assert await connection.fetchval(f"SELECT email FROM {name}") == "a@x"
                public = await connection.fetchval(
                    "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
                )
                assert public == 0

    asyncio.run(scenario())


def test_names_with_anything_in_them_work(postgres_url: str) -> None:
    name = "T%a \"b.c:d'e $1 Ü"
    odd = Table(
        name,
        (
            Column("%s", 1, "TEXT", "text", True, None, 1),
            Column('$1 "x"', 2, "INTEGER", "integer", True, None, 2),
            Column("Mixed Case", 3, "TEXT", "text", False, "'it''s 100% :ok \\'", 0),
            Column("ß" * 31, 4, "INTEGER", "integer"),
        ),
        foreign_keys=(ForeignKey(("mixed case", "ß" * 31), name, ("%s", '$1 "x"'), "SET NULL"),),
    )

    async def scenario() -> None:
        async with opened(postgres_url) as store:
            (known,) = await store.describe([odd], create=True)
            first, second = row(("a", 1)), row(("b", 2))
            await write(store, {first: ("insert", {3: None}), second: ("insert", {3: "a", 4: 1})})
            async with backend(postgres_url) as connection:
                found = await connection.fetch(
                    f'SELECT "Mixed Case" AS m FROM {quoted(known.name)} ORDER BY "%s"'
                )
                assert [r["m"] for r in found] == [None, "a"]

    asyncio.run(scenario())


def test_an_unregistered_table_of_the_same_name_is_left_alone_and_named(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await connection.execute('CREATE TABLE "Person" (x int)')
            with pytest.raises(TableError, match="Person"):
                await store.describe([table("other", column("x")), PERSON], create=True)
            assert await store.registry() == ()
            assert await connection.fetchval("SELECT to_regclass('other')") is None

    asyncio.run(scenario())


def test_what_postgres_cannot_hold_is_a_table_error(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            with pytest.raises(TableError, match="ctid"):
                await store.describe([table("t", column("ctid"))], create=True)

    asyncio.run(scenario())


def test_another_relay_sees_new_tables_at_its_next_commit(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            await first.describe([PERSON], create=True)
            await write(second, {row(1): ("insert", {2: "a@x"})})
            assert len(await second.registry()) == 1
            assert await first.head() == (1, b"token...")

    asyncio.run(scenario())


def test_commits_of_two_relays_have_one_order(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as first, opened(postgres_url) as second:
            await first.describe([PERSON], create=True)
            stores = [first, second] * 10
            await asyncio.gather(
                *(
                    write(store, {row(key): ("insert", {2: str(key)})})
                    for key, store in enumerate(stores)
                )
            )
            assert await first.head() == (20, b"token...")
            page = await second.page(0, b"", rows_max=100, bytes_max=1 << 20)
            assert sum(len(section.keys) for section in page.sections) == 20

    asyncio.run(scenario())


def test_a_row_that_a_backend_holds_is_busy_and_not_overwritten(postgres_url: str) -> None:
    """Schedule 33, as far as locks close it."""

    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON], create=True)
            now = await write(store, {row(1): ("insert", {2: "a@x"})})
            before = inserted(at(now, A), {2: "a@x"})
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("UPDATE person SET name = 'theirs'")
            with pytest.raises(Busy, match="person"):
                await write(store, {row(1): ("update", {3: "ours"})}, before=before)
            await transaction.commit()
            assert await connection.fetchval("SELECT name FROM person") == "theirs"

    asyncio.run(scenario())


def test_a_backends_open_insert_of_the_same_key_is_busy_for_a_moment_only(
    postgres_url: str,
) -> None:
    """Schedule 37."""

    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON], create=True)
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("INSERT INTO person (id) VALUES (1)")
            loop = asyncio.get_running_loop()
            begun = loop.time()
            with pytest.raises(Busy):
                await write(store, {row(1): ("insert", {2: "a@x"})})
            assert loop.time() - begun < 5
            await transaction.rollback()
            await write(store, {row(1): ("insert", {2: "a@x"})})

    asyncio.run(scenario())


def test_an_open_insert_of_an_equal_unique_value_is_busy(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON], create=True)
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("INSERT INTO person (id, email) VALUES (9, 'a@x')")
            with pytest.raises(Busy):
                await write(store, {row(1): ("insert", {2: "a@x"})})
            await transaction.rollback()

    asyncio.run(scenario())


def test_a_child_that_a_backend_is_inserting_keeps_its_parent(postgres_url: str) -> None:
    child = table(
        "child",
        column("person", "integer"),
        foreign_keys=[ForeignKey(("person",), "person", ("id",), "CASCADE")],
    )

    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON, child], create=True)
            now = await write(store, {row(1): ("insert", {2: "a@x"})})
            before = inserted(at(now, A), {2: "a@x"})
            gone = RowChange(row(1), before, merge(before, deleted(at(now + 1, A))))
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("INSERT INTO child VALUES (1, 1)")
            with pytest.raises(Busy):
                async with store.begin() as commit:
                    await commit.write_rows([gone])
            await transaction.commit()
            with pytest.raises(Violation):
                async with store.begin() as commit:
                    await commit.write_rows([gone])
            assert await connection.fetchval("SELECT count(*) FROM child") == 1

    asyncio.run(scenario())


MIXED = table(
    "mixed",
    column("price", "numeric(10,2)"),
    column("done", "boolean"),
    column("at", "timestamp", "CURRENT_TIMESTAMP"),
    column("zoned", "timestamptz"),
    column("uuid", "uuid"),
    column("json", "json"),
    column("blob", "blob"),
    column("real", "real"),
    column("day", "date"),
    column("clock", "time"),
    column("text", "text", "'x'"),
    column("any", "any"),
)


@pytest.mark.parametrize(
    ("column_id", "given", "made"),
    [
        pytest.param(2, 1.005, 1.01, id="rounded"),
        pytest.param(2, "1.10", None, id="numeric text"),
        pytest.param(2, 12345678, None, id="integer in numeric"),
        pytest.param(3, 1, None, id="boolean"),
        pytest.param(4, "2024-02-29 12:00:00.5", None, id="timestamp"),
        pytest.param(5, "2024-02-29 12:00:00+02:00", None, id="other zone, same time"),
        pytest.param(6, "6F9619FF-8B86-D011-B42D-00CF4FC964FF", None, id="upper case uuid"),
        pytest.param(7, '{"b": 1,  "a": 2}', None, id="rewritten json"),
        pytest.param(8, b"\x00\xff\\", None, id="bytes"),
        pytest.param(9, 1e300, None, id="real"),
        pytest.param(9, float("inf"), None, id="infinity"),
        pytest.param(10, "2024-02-29", None, id="date"),
        pytest.param(11, "23:59:59.123456", None, id="time"),
        pytest.param(12, "\\x00 %s 'ü😀", None, id="text"),
        pytest.param(12, b"\x00\xff", None, id="bytes in text"),
        pytest.param(13, 2**63 - 1, None, id="integer in any"),
    ],
)
def test_a_value_that_postgres_made_another_comes_back(
    postgres_url: str, column_id: int, given: Value, made: Value
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([MIXED], create=True)
            async with store.begin() as transaction:
                new = inserted(at(transaction.now_ms, A), {column_id: given})
                change = RowChange(row(1), EMPTY, new)
                expected = {} if made is None else {row(1): {column_id: made}}
                assert await transaction.write_rows([change]) == expected
                empty = inserted(at(transaction.now_ms, A), {column_id: None})
                await transaction.write_rows([RowChange(row(2), EMPTY, empty)])
                later = merge(empty, edited(at(transaction.now_ms + 1, A), {column_id: given}))
                expected = {} if made is None else {row(2): {column_id: made}}
                found = await transaction.write_rows([RowChange(row(2), empty, later)])
                assert found == expected

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("column_id", "given"),
    [
        pytest.param(2, "much", id="text in numeric"),
        pytest.param(2, 123456789, id="too large"),
        pytest.param(3, 2, id="2 in boolean"),
        pytest.param(4, "yesterday noon", id="no timestamp"),
        pytest.param(7, "{", id="no json"),
        pytest.param(8, "text", id="text in blob"),
        pytest.param(12, "a\0b", id="NUL"),
    ],
)
def test_a_value_that_does_not_fit_is_a_violation_that_names_its_column(
    postgres_url: str, column_id: int, given: Value
) -> None:
    name = MIXED.columns[column_id - 1].name

    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([MIXED], create=True)
            with pytest.raises(Violation, match="mixed") as caught:
                await write(store, {row(1): ("insert", {column_id: given})})
            if given != 123456789:
                assert repr(name) in str(caught.value)

    asyncio.run(scenario())


def test_what_triggers_make_of_a_row_comes_back_and_their_errors_are_violations(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON], create=True)
            await connection.execute(
                """
                CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF NEW.name = 'bad' THEN RAISE 'no such name' USING ERRCODE = 'UE001'; END IF;
                    NEW.email = lower(NEW.email);
                    NEW.age = coalesce(NEW.age, 0) + 1;
                    RETURN NEW;
                END $$;
                CREATE TRIGGER tidy BEFORE INSERT OR UPDATE ON person
                    FOR EACH ROW EXECUTE FUNCTION tidy();
                """
            )
            async with store.begin() as transaction:
                now = transaction.now_ms
                new = inserted(at(now, A), {2: "A@X", 4: 1})
                found = await transaction.write_rows([RowChange(row(1), EMPTY, new)])
                assert found == {row(1): {2: "a@x", 4: 2}}
                known = merge(new, edited(at(now + 1, A), {2: "a@x", 4: 2}))
                renamed = merge(known, edited(at(now + 2, A), {3: "Ann"}))
                # The update wrote the name only; the trigger counted all the same.
                found = await transaction.write_rows([RowChange(row(1), known, renamed)])
                assert found == {row(1): {4: 3}}
                bad = merge(renamed, edited(at(now + 3, A), {3: "bad"}))
                with pytest.raises(Violation, match="no such name"):
                    async with transaction.savepoint():
                        await transaction.write_rows([RowChange(row(1), renamed, bad)])

    asyncio.run(scenario())


def test_two_spellings_of_one_uuid_key_are_not_two_rows(postgres_url: str) -> None:
    spelt = Table("spelt", (Column("id", 1, "UUID", "uuid", True, None, 1), column("x")))

    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([spelt], create=True)
            await write(store, {row("6f9619ff-8b86-d011-b42d-00cf4fc964ff"): ("insert", {})})
            with pytest.raises(Violation, match="key"):
                await write(store, {row("6F9619FF-8B86-D011-B42D-00CF4FC964FF"): ("insert", {})})

    asyncio.run(scenario())


def keyed(declared: str, kind: str, *, strict: bool = False) -> Table:
    return Table("keyed", (Column("id", 1, declared, kind, True, None, 1),), strict=strict)


@pytest.mark.parametrize(
    ("described", "good", "bad"),
    [
        pytest.param(keyed("", "text"), "1", 1, id="untyped text"),
        pytest.param(keyed("", "any"), "1", 1, id="any"),
        pytest.param(keyed("", "text"), "\\x31", b"1", id="untyped text and bytes"),
        pytest.param(keyed("", "integer"), 1, "1", id="untyped integer"),
        pytest.param(keyed("", "blob"), b"1", "1", id="untyped blob"),
        pytest.param(keyed("", "blob"), b"1", "\\x31", id="blob and its text"),
        pytest.param(keyed("TEXT", "text"), "1", 1, id="text"),
        pytest.param(keyed("INTEGER", "integer"), 1, "01", id="integer"),
        pytest.param(keyed("BOOLEAN", "boolean"), 1, "true", id="boolean"),
        pytest.param(keyed("DATE", "date"), "2024-01-01", 20240101, id="date"),
        pytest.param(keyed("STRING", "text"), 1, "1", id="text that is numbers in SQLite"),
        pytest.param(keyed("STRING", "text"), "x", b"x", id="a blob in such a column"),
        pytest.param(keyed("STRING", "text"), "01x", "01", id="a number written in another way"),
        pytest.param(keyed("ANY", "text", strict=True), "1", 1, id="strict any"),
    ],
)
def test_a_key_of_another_class_is_not_the_row_that_postgres_would_take_it_for(
    postgres_url: str, described: Table, good: Value, bad: Value
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([described], create=True)
            await write(store, {row(good): ("insert", {})})
            with pytest.raises(Violation, match=r"'keyed'.*'id'"):
                await write(store, {row(bad): ("insert", {})})

    asyncio.run(scenario())


def test_integers_and_text_mix_in_a_key_where_sqlite_tells_them_apart_by_what_they_write(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([keyed("STRING", "text")], create=True)
            await write(store, {row(key): ("insert", {}) for key in (1, -7, "x", "1x", "")})
            found = await connection.fetch("SELECT id FROM keyed")
            assert {record["id"] for record in found} == {"1", "-7", "x", "1x", ""}

    asyncio.run(scenario())


def test_json_too_deep_for_any_parser_is_a_violation(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([MIXED], create=True)
            with pytest.raises(Violation, match="'json'"):
                await write(store, {row(1): ("insert", {7: 100_000 * "["})})

    asyncio.run(scenario())


def test_a_table_of_keys_only_syncs(postgres_url: str) -> None:
    pair = Table(
        "pair",
        (
            Column("b", 1, "BLOB", "blob", True, None, 2),
            Column("a", 2, "TEXT", "text", True, None, 1),
        ),
    )

    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([pair], create=True)
            now = await write(store, {row(("x", b"\x01")): ("insert", {})})
            assert await connection.fetchval("SELECT b FROM pair WHERE a = 'x'") == b"\x01"
            alive = inserted(at(now, A), {})
            async with store.begin() as transaction:
                gone = merge(alive, deleted(at(now + 1, A)))
                await transaction.write_rows([RowChange(row(("x", b"\x01")), alive, gone)])
                await transaction.finish(b"token...", {row(("x", b"\x01")): encode(gone)}, [])
            assert await connection.fetchval("SELECT count(*) FROM pair") == 0

    asyncio.run(scenario())


def test_a_missing_cell_is_the_columns_default(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([MIXED], create=True)
            await write(store, {row(1): ("insert", {})})
            assert await connection.fetchval("SELECT text FROM mixed") == "x"
            # A backend that names no columns gets the same, and the moving ones too.
            await connection.execute("INSERT INTO mixed (id) VALUES (2)")
            found = await connection.fetchrow("SELECT text, at FROM mixed WHERE id = 2")
            assert found is not None
            assert found["text"] == "x"
            assert found["at"] is not None

    asyncio.run(scenario())


def test_a_parent_that_is_described_later_brings_the_foreign_key(postgres_url: str) -> None:
    child = table(
        "child",
        column("person", "integer"),
        foreign_keys=[ForeignKey(("person",), "Person", ("ID",))],
    )

    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([child], create=True)
            await write(store, {row(1): ("insert", {2: 5})})
            await store.describe([PERSON], create=True)
            await write(store, {row(5, 2): ("insert", {2: "a@x"})})
            await write(store, {row(2): ("insert", {2: 5})})
            with pytest.raises(Violation, match="child"):
                await write(store, {row(3): ("insert", {2: 6})})

    asyncio.run(scenario())


def test_cycles_and_references_to_unique_columns_hold(postgres_url: str) -> None:
    one = table(
        "one", column("two", "integer"), foreign_keys=[ForeignKey(("two",), "two", ("id",))]
    )
    two = table(
        "two",
        column("one", "integer"),
        column("email"),
        foreign_keys=[
            ForeignKey(("one",), "one", ("id",), "CASCADE"),
            ForeignKey(("email",), "person", ("email",)),
        ],
    )

    async def scenario() -> None:
        async with opened(postgres_url) as store:
            ids = {t.name: t.id for t in await store.describe([one, two, PERSON], create=True)}
            rows: dict[RowId, tuple[str, dict[int, Value]]] = {
                row(1, ids["one"]): ("insert", {2: 1}),
                row(1, ids["two"]): ("insert", {2: 1, 3: "a@x"}),
                row(1, ids["person"]): ("insert", {2: "a@x"}),
            }
            now = await write(store, rows)
            with pytest.raises(Violation):
                await write(store, {row(2, ids["two"]): ("insert", {3: "nobody@x"})})
            async with store.begin() as transaction:
                changes = []
                for name, (_, values) in rows.items():
                    alive = inserted(at(now, A), values)
                    changes.append(RowChange(name, alive, merge(alive, deleted(at(now + 1, A)))))
                await transaction.write_rows(changes)

    asyncio.run(scenario())


def test_a_dropped_columns_id_is_never_given_again(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON], create=True)
            await connection.execute("UPDATE _reunite_tables SET columns_used = 9")
            grown = replace(PERSON, columns=(*PERSON.columns, column("new")))
            (known,) = await store.describe([grown], create=True)
            assert known.columns[-1].id == 10

    asyncio.run(scenario())
