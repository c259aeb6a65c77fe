"""Values of Postgres's own types, written by a backend and by clients, are equal on both sides."""

import asyncio
import json
from pathlib import Path

import pytest

from reunite.schema import quoted
from tests.e2e.backends import Client, Shared, shared, until_rejected
from tests.e2e.world import contents, read, rejected

ODD = '🙂👍🏽 it\'s "quoted" \\ back\nline\ttab\r\n%s {1} \ue000'
# Type, values as literals of Postgres, and what a file shows of them.
TYPES: list[tuple[str, list[str], list[object]]] = [
    (
        "timestamp",
        ["'2024-02-29 12:34:56.789012'", "'0001-01-01 00:00:00'", "'9999-12-31 23:59:59'"],
        ["2024-02-29 12:34:56.789012", "0001-01-01 00:00:00", "9999-12-31 23:59:59"],
    ),
    (
        "timestamptz",
        ["'2024-02-29 12:00:00+02'", "'1969-12-31 23:59:59.5-11:30'"],
        ["2024-02-29 10:00:00+00", "1970-01-01 11:29:59.5+00"],
    ),
    ("date", ["'2024-02-29'", "'0001-01-01'"], ["2024-02-29", "0001-01-01"]),
    ("time", ["'23:59:59.123456'", "'00:00'"], ["23:59:59.123456", "00:00:00"]),
    ("boolean", ["true", "false"], [1, 0]),
    (
        "uuid",
        ["'123E4567-E89B-12D3-A456-426614174000'"],
        ["123e4567-e89b-12d3-a456-426614174000"],
    ),
    ("smallint", ["-32768", "32767"], [-32768, 32767]),
    ("integer", ["-2147483648", "2147483647"], [-(2**31), 2**31 - 1]),
    ("bigint", ["-9223372036854775808", "9223372036854775807"], [-(2**63), 2**63 - 1]),
    (
        "double precision",
        ["0.1", "-1e308", "5e-324", "9007199254740993", "'Infinity'", "'-Infinity'"],
        [0.1, -1e308, 5e-324, 2.0**53, float("inf"), float("-inf")],
    ),
    ("real", ["0.5", "1e30", "16777216"], [0.5, 1e30, 16777216.0]),
    ("numeric(12,2)", ["12.5", "-0.01", "1234567890.12"], [12.5, -0.01, 1234567890.12]),
    (
        "numeric(30,10)",
        ["12345.0123456789", "1.5", "42"],
        [12345.0123456789, 1.5, 42],
    ),
    ("numeric", ["0.1", "1e20", "-17", "1e-7"], [0.1, 1e20, -17, 1e-7]),
    ("mood", ["'happy'", "'so so'"], ["happy", "so so"]),
    ("bytea", [r"'\x00ff10'", "''"], [b"\x00\xff\x10", b""]),
    ("varchar(5)", ["'five5'", "''"], ["five5", ""]),
    ("text", ["''", "' '", "'it''s'"], ["", " ", "it's"]),
    ("interval", ["'1 day 02:03:04'"], ["1 day 02:03:04"]),
    ("inet", ["'192.168.0.1/24'"], ["192.168.0.1/24"]),
]
# Of these a file shows some text of the same JSON.
JSON_TYPES = [
    ("json", ["'null'", '\'{"b": [1, 2.50, null], "a": "ü"}\'', "'\"text\"'", "'17'", "'[]'"]),
    ("jsonb", ["'null'", '\'{"b": [1, 2.50, null], "a": "ü"}\'', "'\"null\"'", "'true'"]),
    ("integer[]", ["'{1,NULL,3}'", "'{}'", "'{{1,2},{3,4}}'"]),
    ("text[]", ["ARRAY['a', 'it''s', '\"q\"', NULL, 'NULL', E'\\n']"]),
    ("boolean[]", ["'{t,f}'"]),
    ("mood[]", ["'{happy,\"so so\"}'"]),
]
VALUES = [(kind, values) for kind, values, _ in TYPES] + JSON_TYPES
PLACES = max(len(values) for _, values in VALUES)


def column(kind: str) -> str:
    """The column of a type."""
    return quoted(f"of {kind}")


def row(place: int) -> str:
    """The values of one row for the backend: those types that have none so many have NULL."""
    listed = [values[place] if place < len(values) else "NULL" for _, values in VALUES]
    return f"({place}, 1, {', '.join(listed)})"


SCHEMA = (
    "CREATE TYPE mood AS ENUM ('happy', 'so so')",
    "CREATE TABLE value (id integer, copy integer, "
    + ", ".join(f"{column(kind)} {kind}" for kind, _ in VALUES)
    + ", PRIMARY KEY (id, copy))",
    f"INSERT INTO value VALUES {row(0)}",
)
COLUMNS = ", ".join(column(kind) for kind, _ in VALUES)


def test_values_of_every_type_are_equal_whoever_writes_them(
    tmp_path: Path, postgres_url: str
) -> None:
    """A client that copies what it sees of a backend's row makes a row that is equal in Postgres;
    so does one that writes it over other values. At the end all is compared exactly."""

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *SCHEMA) as here:
            one, two, _ = here.clients
            for place in range(1, PLACES):
                await here.backend.execute(f"INSERT INTO value VALUES {row(place)}")
            await here.backend.execute("INSERT INTO value (id, copy) VALUES (99, 1)")
            await here.settle()
            for kind, _, shown in TYPES:
                found = here.everywhere(f"SELECT {column(kind)} FROM value ORDER BY id")
                expected = [*shown, *[None] * (PLACES + 1 - len(shown))]
                values = [value for (value,) in found]
                assert values == expected, kind
                assert list(map(type, values)) == list(map(type, expected)), kind
            assert json_shown(here) == [
                (99, None, None),
                (0, None, None),
                (1, {"a": "ü", "b": [1, 2.5, None]}, [1, 2.5, None]),
            ]
            await one.execute(f"INSERT INTO value SELECT id, 2, {COLUMNS} FROM value")
            await two.execute("INSERT INTO value (id, copy) SELECT id, 3 FROM value WHERE copy = 1")
            await here.settle()
            await two.execute(
                f"UPDATE value AS v SET ({COLUMNS}) ="
                f" (SELECT {COLUMNS} FROM value WHERE id = v.id AND copy = 1) WHERE copy = 3"
            )
            await here.settle()
            compared = " AND ".join(
                f"a.{column(kind)}::text IS NOT DISTINCT FROM b.{column(kind)}::text"
                for kind, _ in VALUES
            )
            same = await here.in_postgres(
                "SELECT count(*) FROM value AS a JOIN value AS b USING (id)"
                f" WHERE a.copy = 1 AND b.copy > 1 AND {compared}"
            )
            assert same == [(2 * (PLACES + 1),)]

    asyncio.run(scenario())


def json_shown(here: Shared) -> list[tuple[object, ...]]:
    """The null of SQL, that of JSON, and an object, as files have them in columns of JSON."""
    found: list[tuple[object, ...]] = []
    for place, text, binary in here.everywhere(
        'SELECT id, "of json", "of jsonb" FROM value WHERE id IN (0, 1, 99)'
        " ORDER BY id = 99 DESC, id"
    ):
        assert (text is None) == (binary is None) == (place == 99)
        parsed = [None if shown is None else json.loads(shown) for shown in (text, binary)]
        found.append((place, parsed[0], parsed[1]["b"] if parsed[1] else parsed[1]))
    return found


def test_texts_of_any_characters_go_both_ways(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        schema = "CREATE TABLE note (id text PRIMARY KEY, body text)"
        async with shared(postgres_url, tmp_path, schema) as here:
            await here.backend.execute("INSERT INTO note VALUES ($1, $1)", ODD)
            await here.clients[1].execute("INSERT INTO note VALUES (?, ?)", f"2{ODD}", ODD * 2)
            await here.settle()
            await here.backend.execute("UPDATE note SET body = body || $1 WHERE id <> $1", ODD)
            await here.settle()
            assert here.everywhere("SELECT id, body FROM note ORDER BY length(id)") == [
                (ODD, ODD),
                (f"2{ODD}", ODD * 3),
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("varchar(5)", "six666"),
        ("mood", "angry"),
        ("smallint", 32768),
        ("integer", 2**31),
        ("numeric(4,2)", 1000),
        ("uuid", "none"),
        ("date", "2024-02-30"),
        ("timestamptz", "yesterdayish"),
        ("jsonb", "{"),
        ("integer[]", '["a"]'),
        ("inet", "300.1.1.1"),
    ],
)
def test_a_value_that_postgres_cannot_hold_is_rejected_for_the_client_and_told(
    kind: str, value: object, tmp_path: Path, postgres_url: str
) -> None:
    schema = (
        "CREATE TYPE mood AS ENUM ('happy', 'so so')",
        f"CREATE TABLE thing (id integer PRIMARY KEY, v {kind}, n integer)",
        "INSERT INTO thing VALUES (1, NULL, 1), (2, NULL, 2)",
    )

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            one, two, _ = here.clients
            before = contents(two.file)
            await one.execute("UPDATE thing SET v = ? WHERE id = 1", value)
            table, key, change, reason = await until_rejected(one)
            assert (table, key, change) == ("thing", 1, "update")
            assert reason == "constraint"
            # It is taken back there, has come to nobody, and what follows goes on.
            await here.settle()
            assert contents(one.file) == contents(two.file) == before
            assert rejected(two.file) == []
            await one.execute("UPDATE thing SET n = 7 WHERE id = 1")
            await here.settle()
            assert here.everywhere("SELECT n, v FROM thing WHERE id = 1") == [(7, None)]
            here.rejections = 1

    asyncio.run(scenario())


def test_defaults_fill_what_is_left_out_on_either_side(tmp_path: Path, postgres_url: str) -> None:
    schema = (
        "CREATE TYPE mood AS ENUM ('happy', 'so so')",
        "CREATE TABLE filled (id text PRIMARY KEY, t text DEFAULT 'it''s', n integer DEFAULT 7,"
        " b boolean NOT NULL DEFAULT true, m mood DEFAULT 'so so', price numeric(6,2) DEFAULT 1.5,"
        " a integer[] DEFAULT '{1,2}', j jsonb DEFAULT '{}', at timestamptz DEFAULT now(),"
        " u uuid DEFAULT gen_random_uuid())",
    )

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            await here.backend.execute("INSERT INTO filled (id) VALUES ('backend')")
            await here.clients[0].execute("INSERT INTO filled (id) VALUES ('client')")
            await here.settle()
            assert (
                here.everywhere("SELECT t, n, b, m, price FROM filled")
                == [("it's", 7, 1, "so so", 1.5)] * 2
            )
            told = here.everywhere("SELECT at IS NULL, u IS NULL FROM filled WHERE id = 'backend'")
            assert told == [(0, 0)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "key",
    ["bigint GENERATED BY DEFAULT AS IDENTITY", "serial", "bigint GENERATED ALWAYS AS IDENTITY"],
)
def test_keys_of_a_sequence_are_handed_out_on_either_side(
    key: str, tmp_path: Path, postgres_url: str
) -> None:
    schema = (
        f"CREATE TABLE numbered (id {key} PRIMARY KEY, of text)",
        "INSERT INTO numbered (of) VALUES ('before')",
    )

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            await here.backend.execute("INSERT INTO numbered (of) VALUES ('backend')")
            await here.settle()
            await number(here.clients[1], "client")
            await here.settle()
            # The sequence does not know of the client's key, and a key is a row: they meet in one.
            assert here.everywhere("SELECT id, of FROM numbered ORDER BY id") == [
                (1, "before"),
                (2, "backend"),
                (3, "client"),
            ]

    asyncio.run(scenario())


async def number(client: Client, name: str) -> None:
    """Insert a row that SQLite numbers."""
    await client.execute("INSERT INTO numbered (of) VALUES (?)", name)
    assert read(client.file, "SELECT count(*) FROM numbered WHERE of = ?", name) == [(1,)]


def test_digits_that_no_file_keeps_stay_in_postgres_while_others_edit_the_row(
    tmp_path: Path, postgres_url: str
) -> None:
    """SQLite has 15 digits in a NUMERIC column, Postgres has them all until a file edits that."""
    schema = (
        "CREATE TABLE account (id integer PRIMARY KEY, balance numeric(30,10), owner text)",
        "INSERT INTO account VALUES (1, 12345678901234567890.0123456789, 'ann')",
    )
    balance = "SELECT balance::text, owner FROM account"

    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *schema) as here:
            await here.clients[0].execute("UPDATE account SET owner = 'bob'")
            await here.settle()
            assert await here.in_postgres(balance) == [("12345678901234567890.0123456789", "bob")]
            await here.backend.execute("UPDATE account SET balance = balance + 1")
            await here.clients[1].execute("UPDATE account SET owner = 'eve'")
            await here.settle()
            assert await here.in_postgres(balance) == [("12345678901234567891.0123456789", "eve")]
            await here.clients[1].execute("UPDATE account SET balance = 0.25")
            await here.settle()
            assert await here.in_postgres(balance) == [("0.2500000000", "eve")]

    asyncio.run(scenario())
