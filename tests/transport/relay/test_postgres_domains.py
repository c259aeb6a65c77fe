"""Columns that merge are of domains, which every relay of a database shares."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from reunite.cells.register import Value
from reunite.document import EMPTY
from reunite.errors import TableError
from reunite.schema import Table
from reunite_transport.relay.postgres_store import PostgresStore, open_postgres
from reunite_transport.relay.store import RowChange
from tests.contracts.pushes import PERSON, A, at, column, inserted, row, table

POST = table(
    "post",
    column("likes", "counter", "0", notnull=True),
    column("body", "crdt_text", "''"),
    column("tags", "crdt_set", "'[]'"),
    column("steps", "crdt_list"),
    column("meta", "crdt_json", "'{}'"),
)
DOMAINS = {
    ("counter", "bigint"),
    ("crdt_json_text", "jsonb"),
    ("crdt_list_text", "jsonb"),
    ("crdt_set_text", "jsonb"),
    ("crdt_text", "text"),
}


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


async def execute(url: str, *statements: str) -> None:
    async with backend(url) as connection:
        for statement in statements:
            await connection.execute(statement)


async def domains(url: str) -> set[tuple[str, str]]:
    async with backend(url) as connection:
        rows = await connection.fetch(
            "SELECT domain_name, data_type FROM information_schema.domains"
            " WHERE domain_schema = 'reunite'"
        )
    return {(row["domain_name"], row["data_type"]) for row in rows}


async def columns(url: str, schema: str = "public") -> dict[str, str]:
    async with backend(url) as connection:
        rows = await connection.fetch(
            "SELECT column_name, domain_schema || '.' || domain_name AS domain"
            " FROM information_schema.columns"
            " WHERE table_schema = $1 AND table_name = 'post' AND column_name <> 'id'",
            schema,
        )
    return {row["column_name"]: row["domain"] for row in rows}


@pytest.fixture
def limited_url(postgres_url: str) -> Iterator[str]:
    """The database, for a role that owns a schema `app` of it and may create nothing else."""
    role = f"relay_{uuid4().hex}"
    parts = urlsplit(postgres_url)
    database = parts.path.removeprefix("/")
    asyncio.run(
        execute(
            postgres_url,
            f"CREATE ROLE {role} LOGIN",
            f"REVOKE CREATE ON DATABASE {database} FROM PUBLIC",
            f"CREATE SCHEMA app AUTHORIZATION {role}",
        )
    )
    host = parts.netloc.rpartition("@")[2]
    try:
        yield parts._replace(netloc=f"{role}@{host}").geturl()
    finally:
        asyncio.run(execute(postgres_url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}"))


@pytest.mark.parametrize("schema", ["public", 'a "realm"', "reunite"])
def test_a_merging_column_is_of_its_domain_and_works_as_its_base_type(
    postgres_url: str, schema: str
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url, schema) as store:
            assert await domains(postgres_url) == DOMAINS
            assert await store.describe([POST], create=True) == await store.registry()
            async with store.begin() as transaction:
                now = at(transaction.now_ms, A)
                given: dict[int, Value] = {2: 5, 3: "é", 4: "[1, 2]", 5: None, 6: '{"a": 1}'}
                first = RowChange(row(1), EMPTY, inserted(now, given))
                second = RowChange(row(2), EMPTY, inserted(now, {}))
                assert await transaction.write_rows([first, second]) == {}
                await transaction.finish(b"token", {}, [])
        assert await columns(postgres_url, schema) == {
            "likes": "reunite.counter",
            "body": "reunite.crdt_text",
            "tags": "reunite.crdt_set_text",
            "steps": "reunite.crdt_list_text",
            "meta": "reunite.crdt_json_text",
        }
        quoted = '"' + schema.replace('"', '""') + '"'
        async with backend(postgres_url) as connection:
            await connection.execute(f"INSERT INTO {quoted}.post (id) VALUES (3)")
            await connection.execute(f"UPDATE {quoted}.post SET likes = likes + $1", 1)
            found = await connection.fetch(f"SELECT * FROM {quoted}.post ORDER BY id")
        assert [tuple(one) for one in found] == [
            (1, 6, "é", "[1, 2]", None, '{"a": 1}'),
            (2, 1, "", "[]", None, "{}"),
            (3, 1, "", "[]", None, "{}"),
        ]

    asyncio.run(scenario())


def test_a_merging_column_is_added_to_a_table_that_has_rows(postgres_url: str) -> None:
    async def scenario() -> None:
        bare = Table("post", POST.columns[:1])
        async with opened(postgres_url) as store:
            await store.describe([bare], create=True)
            await execute(postgres_url, "INSERT INTO post VALUES (1)")
            (grown,) = await store.describe([POST], create=True)
        assert [c.type for c in grown.cells] == [c.type for c in POST.cells]
        async with backend(postgres_url) as connection:
            found = await connection.fetchrow("SELECT * FROM post")
        assert found is not None
        assert tuple(found) == (1, 0, "", "[]", None, "{}")

    asyncio.run(scenario())


def test_realms_that_are_opened_at_once_make_the_domains_once(postgres_url: str) -> None:
    async def scenario() -> None:
        stores = await asyncio.gather(
            *(open_postgres(postgres_url, schema=f"r{n}") for n in "1122")
        )
        described = await asyncio.gather(*(s.describe([POST], create=True) for s in stores))
        assert all(tables[0].name == "post" for tables in described)
        for store in stores:
            await store.close()
        assert await domains(postgres_url) == DOMAINS

    asyncio.run(scenario())


def test_a_role_that_may_not_make_the_domains_says_who_has_to_when_a_column_needs_them(
    postgres_url: str, limited_url: str
) -> None:
    async def scenario() -> None:
        async with opened(limited_url, "app") as store:
            assert await domains(postgres_url) == set()
            await store.describe([PERSON], create=True)
            with pytest.raises(TableError, match=r"'post'.*'likes' merges as counter") as caught:
                await store.describe([POST], create=True)
            said = str(caught.value).partition("run there: ")[2]
            assert said.startswith("CREATE SCHEMA reunite; GRANT USAGE ON SCHEMA reunite TO PUBLIC")
            assert "CREATE DOMAIN reunite.crdt_set_text AS jsonb;" in said
            await execute(postgres_url, said)
            assert await domains(postgres_url) == DOMAINS
            await store.describe([POST], create=True)
        assert (await columns(postgres_url, "app"))["meta"] == "reunite.crdt_json_text"

    asyncio.run(scenario())


def test_domains_that_a_role_may_not_use_are_said_as_such(
    postgres_url: str, limited_url: str
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url):
            pass
        await execute(postgres_url, "REVOKE USAGE ON SCHEMA reunite FROM PUBLIC")
        async with opened(limited_url, "app") as store:
            with pytest.raises(TableError, match="GRANT USAGE ON SCHEMA reunite TO") as caught:
                await store.describe([POST], create=True)
            assert "CREATE" not in str(caught.value)
            await execute(postgres_url, str(caught.value).partition("run there: ")[2])
            await store.describe([POST], create=True)

    asyncio.run(scenario())


def test_another_type_of_a_domains_name_is_in_the_way_of_that_column_only(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        await execute(
            postgres_url, "CREATE SCHEMA reunite", "CREATE TABLE reunite.crdt_text (id integer)"
        )
        async with opened(postgres_url) as store:
            assert await domains(postgres_url) == DOMAINS - {("crdt_text", "text")}
            await store.describe([table("counted", column("n", "counter"))], create=True)
            with pytest.raises(TableError, match=r"reunite\.crdt_text .*rename that"):
                await store.describe([POST], create=True)

    asyncio.run(scenario())


def test_a_table_of_a_domains_name_is_refused_in_their_schema_only(postgres_url: str) -> None:
    named = table("counter", column("n", "counter"))

    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([named], create=True)
        async with opened(postgres_url, "reunite") as store:
            with pytest.raises(TableError, match="counter"):
                await store.describe([named], create=True)

    asyncio.run(scenario())
