"""What Postgres captures of backends' writes, and what is Postgres's own in folding them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias
from unittest.mock import patch
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from reunite.schema import Table
from reunite_transport.relay import postgres_store, postgres_transaction
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.commit import Outcome, Postponed, Taken, commit_batch
from reunite_transport.relay.postgres_store import PostgresStore, open_postgres
from reunite_transport.relay.postgres_transaction import PostgresTransaction
from reunite_transport.relay.store import RowId
from tests.contracts.backend_contract import documents, folded, pushed, shown, time_there
from tests.contracts.pushes import (
    PERSON,
    A,
    B,
    at,
    changeset,
    column,
    edited,
    entries,
    inserted,
    table,
)
from tests.contracts.store_contract import ALL, LIST, TODO

# asyncpg's own types are generic in its stubs only.
Connection: TypeAlias = Any
Scenario: TypeAlias = Callable[[PostgresStore, Connection], Awaitable[None]]

KINDS = table(
    "kinds",
    column("flag", "boolean"),
    column("big", "integer"),
    column("real", "real"),
    column("exact", "numeric"),
    column("data", "blob"),
    column("day", "date"),
    column("moment", "timestamp"),
    column("instant", "timestamptz"),
    column("name", "uuid"),
    column("doc", "json"),
    column("list", "crdt_list"),
)
# All that the form of a value depends on, as far from ours as it goes.
FOREIGN_SETTINGS = (
    "SET TimeZone = 'Asia/Kathmandu'",
    "SET DateStyle = 'German, DMY'",
    "SET IntervalStyle = 'sql_standard'",
    "SET bytea_output = 'escape'",
    "SET extra_float_digits = 0",
    "SET search_path = pg_catalog",
)

COUNTING = """
    CREATE FUNCTION count_todos() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE list SET title = title || '+' WHERE id = NEW.list_id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER counted AFTER INSERT ON todo FOR EACH ROW EXECUTE FUNCTION count_todos();
    INSERT INTO list VALUES (1, 'home'), (2, 'work');
"""


class Beside:
    """A connection beside which a backend makes a statement, once: before it reads documents."""

    def __init__(self, connection: Any, backend: Connection, statement: str) -> None:
        self._connection = connection
        self._backend = backend
        self._statement: str | None = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, query: str, *arguments: object) -> Any:
        if self._statement is not None and "SELECT d.tbl, d.key, d.document" in query:
            statement, self._statement = self._statement, None
            await self._backend.execute(statement)
        return await self._connection.fetch(query, *arguments)


def run(url: str, scenario: Scenario, *tables: Table) -> None:
    async def opened() -> None:
        async with realm(url, *tables) as (store, backend):
            await scenario(store, backend)

    asyncio.run(opened())


@asynccontextmanager
async def realm(url: str, *tables: Table) -> AsyncIterator[tuple[PostgresStore, Connection]]:
    store = await open_postgres(url)
    backend = await asyncpg.connect(url)
    try:
        await store.describe(tables or [PERSON], create=True)
        for replica in (A, B):
            await store.greet(replica, 0, (), 0, b"")
        yield store, backend
    finally:
        await backend.close()
        await store.close()


def test_values_are_captured_alike_under_every_setting_of_a_backend(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        for setting in FOREIGN_SETTINGS:
            await backend.execute(setting)
        await backend.execute(
            """INSERT INTO public.kinds VALUES (
                1, true, 9223372036854775807, 0.1::float8 + 0.2, 12345678901234567.890,
                '\\x00ff27', '0044-03-15 BC', '2024-02-29 12:00:00.25', '2024-02-29 12:00:00.25Z',
                'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{"a": 1.10, "b": "T+00:00"}', '[1, "x"]'
            )"""
        )
        await folded(store)
        assert (await shown(store))[1,] == {
            "flag": 1,
            "big": 9223372036854775807,
            "real": 0.30000000000000004,
            "exact": "12345678901234567.890",
            "data": b"\x00\xff'",
            "day": "0044-03-15 BC",
            "moment": "2024-02-29 12:00:00.25",
            "instant": "2024-02-29 12:00:00.25+00",
            "name": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "doc": '{"a": 1.10, "b": "T+00:00"}',
            "list": '[1,"x"]',
        }

    run(postgres_url, scenario, KINDS)


def test_the_null_of_json_is_told_from_the_one_of_sql(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO kinds (id, doc) VALUES (1, 'null'), (2, NULL)")
        await folded(store)
        docs = {key: cells["doc"] for key, cells in (await shown(store)).items() if cells}
        assert docs == {(1,): "null", (2,): None}
        await backend.execute("UPDATE kinds SET doc = CASE id WHEN 2 THEN 'null'::jsonb END")
        await folded(store)
        docs = {key: cells["doc"] for key, cells in (await shown(store)).items() if cells}
        assert docs == {(1,): None, (2,): "null"}

    run(postgres_url, scenario, KINDS)


def test_what_truncate_empties_is_deleted_and_what_follows_is_there(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO list VALUES (1, 'a'), (2, 'b')")
        await backend.execute("INSERT INTO todo VALUES (1, 1, 'milk')")
        await folded(store)
        async with backend.transaction():
            await backend.execute("UPDATE list SET title = 'c' WHERE id = 2")
            await backend.execute("TRUNCATE list CASCADE")
            await backend.execute("INSERT INTO list VALUES (2, 'd')")
        outcome = await folded(store)
        assert outcome.seq == 2
        assert await shown(store) == {(1,): None, (2,): {"title": "d"}}
        assert await shown(store, 2) == {(1,): None}

    run(postgres_url, scenario, LIST, TODO)


def test_a_row_that_is_deleted_and_inserted_again_in_one_transaction_was_changed(
    postgres_url: str,
) -> None:
    """So that a backend which writes all rows anew does not undo what others did to them."""

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 7)")
        await folded(store)
        offline = edited(at(await time_there(store), A), {3: "Amy"})
        async with backend.transaction():
            await backend.execute("DELETE FROM person")
            await backend.execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 8)")
        await pushed(store, changeset(A, 1, entries((1, offline))))
        assert (await shown(store))[1,] == {"email": "a@x", "name": "Amy", "age": 8}

    run(postgres_url, scenario)


def test_cascades_of_a_backends_delete_are_part_of_it(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO list VALUES (1, 'a')")
        await backend.execute("INSERT INTO todo VALUES (1, 1, 'milk')")
        await folded(store)
        await backend.execute("DELETE FROM list")
        outcome = await folded(store)
        assert outcome.folded == 2
        assert await shown(store, 2) == {(1,): None}

    run(postgres_url, scenario, LIST, TODO)


def test_copy_and_savepoints_are_captured_as_they_end(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        async with backend.transaction():
            await backend.copy_records_to_table(
                "person", records=[(1, "a@x", "Ann", 7), (2, "b@x", "Bea", 8)]
            )
            await backend.execute("SAVEPOINT s; UPDATE person SET age = 0; ROLLBACK TO s")
            await backend.execute("SAVEPOINT s; UPDATE person SET age = 9 WHERE id = 2")
        await folded(store)
        ages = {key: cells["age"] for key, cells in (await shown(store)).items() if cells}
        assert ages == {(1,): 7, (2,): 9}

    run(postgres_url, scenario)


def test_a_role_with_rights_on_the_table_alone_is_captured(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        role = f"r{uuid4().hex}"
        await backend.execute(f"CREATE ROLE {role} LOGIN")
        try:
            await backend.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON person TO {role}")
            parts = urlsplit(postgres_url)
            host = parts.netloc.rpartition("@")[2]
            other = await asyncpg.connect(parts._replace(netloc=f"{role}@{host}").geturl())
            try:
                await other.execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 7)")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await other.execute("SELECT * FROM _reunite_captured")
            finally:
                await other.close()
            await folded(store)
            assert (await shown(store))[1,] == {"email": "a@x", "name": "Ann", "age": 7}
        finally:
            await backend.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    run(postgres_url, scenario)


def test_what_a_trigger_of_the_app_does_because_of_a_push_is_an_edit_of_the_same_commit(
    postgres_url: str,
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute(COUNTING)
        await folded(store)
        now = await time_there(store)
        new = inserted(at(now, A), {2: 1, 3: "milk"})
        outcome = await pushed(store, changeset(A, 1, entries((1, new), table_id=2)))
        assert await shown(store) == {(1,): {"title": "home+"}, (2,): {"title": "work"}}
        assert {(r.row.table, r.author) for r in outcome.rows} == {(1, None), (2, A)}
        assert (await store.look()).waiting == 0

    run(postgres_url, scenario, LIST, TODO)


@pytest.mark.parametrize("same", [True, False])
def test_a_trigger_changes_a_row_beside_a_backend(postgres_url: str, same: bool) -> None:
    """What a backend wrote to it since others' writes were read has to be folded before."""

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute(COUNTING)
        await folded(store)
        now = await time_there(store)
        new = inserted(at(now, A), {2: 1, 3: "milk"})
        mine = changeset(A, 1, entries((1, new), table_id=2))

        row = 1 if same else 2
        # When what was captured has been read.
        meanwhile = f"UPDATE list SET title = 'b' WHERE id = {row}"
        store._connection = Beside(store._connection, backend, meanwhile)  # type: ignore[assignment]
        outcome = await folded_with(store, mine)
        assert outcome.verdicts == ((Postponed() if same else Taken()),)
        if same:
            assert (await folded_with(store, mine)).verdicts == (Taken(),)
        await folded(store)
        titles = {key: cells["title"] for key, cells in (await shown(store)).items() if cells}
        assert titles == {(1,): "b+" if same else "home+", (2,): "work" if same else "b"}
        assert dict(await backend.fetch("SELECT id, title FROM list")) == {
            key: title for (key,), title in titles.items()
        }

    run(postgres_url, scenario, LIST, TODO)


def test_a_changeset_with_a_row_that_a_backend_is_at_waits_and_no_other(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 7), (2, 'b@x', NULL, 1)")
        await folded(store)
        now = await time_there(store)
        mine = changeset(A, 1, entries((1, edited(at(now, A), {3: "Amy"}))))
        other = changeset(B, 1, entries((2, edited(at(now, B), {3: "Bob"}))))
        async with backend.transaction():
            await backend.execute("UPDATE person SET age = 8 WHERE id = 1")
            outcome = await folded_with(store, mine, other)
            assert outcome.verdicts == (Postponed(), Taken())
        await pushed(store, mine)
        assert (await shown(store))[1,] == {"email": "a@x", "name": "Amy", "age": 8}
        assert await backend.fetchrow("SELECT name, age FROM person WHERE id = 1") == ("Amy", 8)

    run(postgres_url, scenario)


def test_a_row_that_is_waited_for_is_had_when_the_backend_ends(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 7)")
        await folded(store)
        now = await time_there(store)
        mine = changeset(A, 1, entries((1, edited(at(now, A), {3: "Amy"}))))
        transaction = backend.transaction()
        await transaction.start()
        await backend.execute("UPDATE person SET age = 8")
        # It is not had while the backend does not end, and nothing else waits long for that.
        assert (await folded_with(store, mine, patiently=True)).verdicts == (Postponed(),)
        # However busy this machine is.
        monkeypatch.setattr(postgres_transaction, "_PATIENCE_MS", 20_000)
        monkeypatch.setattr(postgres_store, "LOCK_WAIT_MS", 20_000)
        trying = asyncio.create_task(folded_with(store, mine, patiently=True))
        watcher = await asyncpg.connect(_dsn(store))
        try:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
            pid = backend.get_server_pid()
            for _ in range(1_000):
                if await watcher.fetchval(blocked, pid):
                    break
            await transaction.commit()
        finally:
            await watcher.close()
        assert (await trying).verdicts == (Taken(),)
        assert (await shown(store))[1,] == {"email": "a@x", "name": "Amy", "age": 8}

    run(postgres_url, scenario)


def test_of_several_changesets_only_the_first_is_waited_for(postgres_url: str) -> None:
    """Else a backend that waits for its row would wait for all the others, one after another."""

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute(
            "INSERT INTO person SELECT i, i::text, 'Ann', 7 FROM generate_series(1, 9) AS i"
        )
        await folded(store)
        now = await time_there(store)
        mine = [
            changeset(author, 1, entries((author, edited(at(now, author), {3: "Amy"}))))
            for author in range(1, 10)
        ]
        for replica in range(1, 10):
            await store.greet(replica, 0, (), 0, b"")
        holds: list[tuple[int, bool]] = []
        hold = PostgresTransaction.hold

        async def noted(
            self: PostgresTransaction, rows: Sequence[RowId], *, patiently: bool = False
        ) -> Collection[RowId]:
            holds.append((len(rows), patiently))
            return await hold(self, rows, patiently=patiently)

        with patch.object(PostgresTransaction, "hold", noted):
            async with backend.transaction():
                await backend.execute("UPDATE person SET age = 8 WHERE id <> 5")
                outcome = await folded_with(store, *mine, patiently=True)
        assert outcome.verdicts == (*[Postponed()] * 4, Taken(), *[Postponed()] * 4)
        assert holds == [(1, True), (8, False)]

    run(postgres_url, scenario)


def test_what_a_backend_writes_while_others_are_folded_is_folded_before_a_merge(
    postgres_url: str,
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 7)")
        await folded(store)
        now = await time_there(store)
        mine = changeset(A, 1, entries((1, edited(at(now, A), {3: "Amy"}))))
        hold = PostgresTransaction.hold

        async def late(
            self: PostgresTransaction, rows: Sequence[RowId], *, patiently: bool = False
        ) -> Collection[RowId]:
            await backend.execute("UPDATE person SET age = 8, name = 'Ada'")
            return await hold(self, rows, patiently=patiently)

        with patch.object(PostgresTransaction, "hold", late):
            outcome = await folded_with(store, mine)
        assert (outcome.verdicts, outcome.folded) == ((Taken(),), 1)
        assert (await shown(store))[1,] == {"email": "a@x", "name": "Ada", "age": 8}
        assert await backend.fetchrow("SELECT name, age FROM person") == ("Ada", 8)

    run(postgres_url, scenario)


def test_an_insert_of_a_key_that_a_backend_is_inserting_waits(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        now = await time_there(store)
        mine = changeset(A, 1, entries((1, inserted(at(now, A), {2: "a@x", 3: "Amy", 4: None}))))
        async with backend.transaction():
            await backend.execute("INSERT INTO person VALUES (1, 'b@x', NULL, 8)")
            assert (await folded_with(store, mine)).verdicts == (Postponed(),)
        outcome = await folded_with(store, mine)
        assert outcome.verdicts == (Taken(),)
        found = await backend.fetchrow("SELECT * FROM person")
        cells = (await shown(store))[1,]
        assert cells is not None
        assert tuple(found) == (1, *cells.values())

    run(postgres_url, scenario)


@pytest.mark.parametrize(
    "key",
    [
        "integer GENERATED BY DEFAULT AS IDENTITY",
        "bigserial",
        "integer GENERATED ALWAYS AS IDENTITY",
    ],
)
def test_a_backends_next_key_is_past_those_that_files_gave(postgres_url: str, key: str) -> None:
    insert = """INSERT INTO "a b" (x) VALUES ('k') RETURNING id"""

    async def scenario() -> None:
        backend = await asyncpg.connect(postgres_url)
        await backend.execute(f'CREATE TABLE "a b" (id {key} PRIMARY KEY, x text)')
        store = await open_postgres(postgres_url)
        try:
            assert await store.track(["a b"]) == ()
            await store.greet(A, 0, (), 0, b"")
            assert await backend.fetchval(insert) == 1
            await folded(store)
            now = await time_there(store)
            rows = [(number, inserted(at(now, A), {2: "a"})) for number in (2, 3, 4)]
            await pushed(store, changeset(A, 1, entries(*rows)))
            assert await backend.fetchval(insert) == 5
            # It does not run after a key that is far away, nor back.
            rows = [(number, inserted(at(now, A), {2: "a"})) for number in (9_000_000, -7, 6)]
            await pushed(store, changeset(A, 2, entries(*rows)))
            assert await backend.fetchval(insert) == 7
        finally:
            await backend.close()
            await store.close()

    asyncio.run(scenario())


def test_a_realm_without_triggers_gets_them_when_it_is_opened(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with realm(postgres_url) as (store, backend):
            await backend.execute("DROP TRIGGER _reunite_capture ON person")
            await backend.execute("ALTER TABLE person DISABLE TRIGGER _reunite_emptied")
            await backend.execute("INSERT INTO person (id) VALUES (1)")
            assert (await folded(store)).folded == 0
        async with realm(postgres_url) as (store, backend):
            assert "person" in caplog.text
            await backend.execute("INSERT INTO person (id) VALUES (2)")
            await folded(store)
            assert set(await documents(store)) == {(2,)}
            await backend.execute("TRUNCATE person")
            assert (await folded(store)).folded == 1

    asyncio.run(scenario())


def test_keys_are_those_that_a_client_would_give(postgres_url: str) -> None:
    composite = Table(
        "odd name",
        (
            replace(column("a b", "uuid"), key=1),
            replace(column('q"', "text"), key=2, declared="STRING"),
            replace(column("C", "blob"), key=3),
            column("value"),
        ),
    )

    async def scenario(store: PostgresStore, backend: Connection) -> None:
        uid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
        await backend.execute(
            f"""INSERT INTO "odd name"
            VALUES ('{uid}', '12', '\\x00', 'x'), ('{uid}', 'é', '', 'y')"""
        )
        await folded(store)
        # A STRING column of SQLite keeps a number where a text looks like one.
        assert set(await documents(store)) == {(uid, 12, b"\0"), (uid, "é", b"")}
        await backend.execute('UPDATE "odd name" SET value = NULL')
        await backend.execute('DELETE FROM "odd name" WHERE value IS NULL AND "q""" = \'12\'')
        await folded(store)
        assert await shown(store) == {(uid, 12, b"\0"): None, (uid, "é", b""): {"value": None}}

    run(postgres_url, scenario, composite)


def test_a_row_that_no_client_could_hold_is_said_and_keeps_nobody_waiting(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        await backend.execute("INSERT INTO person VALUES (1, repeat('x', 17000000), 'Secret', 1)")
        await backend.execute("INSERT INTO person VALUES (2, 'b@x', 'Bea', 2)")
        await folded(store)
        assert set(await documents(store)) == {(2,)}
        assert "person" in caplog.text
        assert "Secret" not in caplog.text

    run(postgres_url, scenario, table("person", column("email"), column("name"), column("n")))


def test_deferred_constraints_and_reordered_writes_of_one_transaction(postgres_url: str) -> None:
    async def scenario(store: PostgresStore, backend: Connection) -> None:
        async with backend.transaction():
            await backend.execute("SET CONSTRAINTS ALL DEFERRED")
            await backend.execute("INSERT INTO todo VALUES (1, 1, 'milk')")
            await backend.execute("INSERT INTO list VALUES (1, 'home')")
        await backend.execute("BEGIN; SET CONSTRAINTS ALL DEFERRED")
        await backend.execute("INSERT INTO todo VALUES (2, 7, 'bread')")
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await backend.execute("COMMIT")
        outcome = await folded(store)
        assert outcome.folded == 2
        page = await store.page(0, b"", rows_max=10, bytes_max=ALL)
        assert sum(len(section.keys) for section in page.sections) == 2

    run(postgres_url, scenario, LIST, TODO)


async def folded_with(store: PostgresStore, *batch: Changeset, patiently: bool = False) -> Outcome:
    seq = (await store.head())[0] + 1
    return await commit_batch(store, batch, b"token%03d" % seq, patiently=patiently)


def _dsn(store: PostgresStore) -> str:
    return store._url
