"""Columns of any type of Postgres hold what documents hold, and what it makes different is seen."""

import asyncio
import math

import pytest

from reunite.cells.register import Value
from reunite.schema import Column, Table
from reunite_transport.relay.postgres_catalog import RealColumn, RealType
from reunite_transport.relay.postgres_columns import (
    ColumnSql,
    column_sql,
    read_column_sql,
    value_of,
)
from reunite_transport.relay.postgres_row_sql import Shape, insert_sql, shape_of, update_sql
from reunite_transport.relay.postgres_schema import create_statements
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.store import Busy, Violation
from tests.contracts.pushes import column, table
from tests.transport.relay.adopted import (
    OTHER_SETTINGS,
    Rows,
    adopt,
    as_other,
    as_text,
    connected,
)

# Names that need quotes, to be in the way of whoever forgets them.
TYPES = [
    'CREATE SCHEMA "other {types}"',
    """CREATE TYPE "other {types}"."Mood" AS ENUM ('sad', 'ok', 'it''s "ok"')""",
    'CREATE TYPE "other {types}".pair AS (n integer, said text)',
    'CREATE TYPE "other {types}".cost AS (much numeric(6,2))',
    "CREATE DOMAIN \"other {types}\".code AS varchar(4) CHECK (VALUE <> 'none')",
    "CREATE DOMAIN \"other {types}\".codes AS integer[] NOT NULL DEFAULT '{}'",
    'CREATE DOMAIN "other {types}".short_code AS "other {types}".code',
    'CREATE DOMAIN "other {types}".money AS numeric(6,2)',
]

# A type and a value that it writes just so.
VALUES: list[tuple[str, Value]] = [
    ("smallint", -32768),
    ("integer", 2147483647),
    ("bigint", (1 << 63) - 1),
    ("boolean", 1),
    ("boolean", 0),
    ("real", 0.1),
    ("real", math.inf),
    ("double precision", 0.1),
    ("double precision", 1e300),
    ("numeric(10,2)", 12.5),
    ("numeric(10,2)", 3),
    ("numeric", "0.1234567890123456789012345678901234567890"),
    ("text", "é ' \" \\ { } \n"),
    ("text", ""),
    ("varchar(3)", "abc"),
    ("varchar", "abc"),
    ("char(5)", "ab"),
    ("bpchar", "ab"),
    ("name", "a name"),
    ('"char"', "x"),
    ("bytea", b"\x00\xff'"),
    ("date", "2024-02-29"),
    ("time", "12:00:00.5"),
    ("timetz", "12:00:00+02"),
    ("timestamp", "2024-02-29 12:00:00.000001"),
    ("timestamp", "infinity"),
    ("timestamptz", "2024-02-29 12:00:00.5+00"),
    ("timestamptz", "0044-03-15 00:00:00+00 BC"),
    ("uuid", "0f0e0d0c-0b0a-0908-0706-050403020100"),
    ("json", '{"b":  1, "a": 2, "a": [1, {}]}'),
    ("json", '"\\u0000"'),
    ("jsonb", '{"a": [1, null], "b": "é"}'),
    ("jsonb", 5),
    ("jsonb", "null"),
    ("interval", "1 day 02:00:00"),
    ("inet", "10.1.2.3/8"),
    ("cidr", "10.0.0.0/8"),
    ("macaddr", "08:00:2b:01:02:03"),
    ("int4range", "[1,5)"),
    ("nummultirange", "{[1.0,2.5)}"),
    ("tsvector", "'a':1 'b':2"),
    ("bit(3)", "101"),
    ("varbit", "10"),
    ("point", "(1,2)"),
    ("box", "(2,2),(0,0)"),
    ("oid", "4294967295"),
    ("pg_lsn", "16/B374D848"),
    ('"other {types}"."Mood"', 'it\'s "ok"'),
    ('"other {types}".pair', '(1,"a ""b""")'),
    ('"other {types}".code', "code"),
    ('"other {types}".short_code', "code"),
    ('"other {types}".money', 1.5),
    ('"other {types}".codes', "[1,2]"),
    ("integer[]", "[1,null,-3]"),
    ("integer[]", "[]"),
    ("integer[][]", "[[1,2],[3,4]]"),
    ("bigint[]", "[9223372036854775807]"),
    ("text[]", '["a","b \\"c\\\\","{}",null,""]'),
    ("bytea[]", '["\\\\x00ff"]'),
    ("boolean[]", "[true,false]"),
    ("numeric(5,2)[]", "[1.50]"),
    ("jsonb[]", '[{"a": 1},"x"]'),
    ("timestamptz[]", '["2024-02-29T12:00:00+00:00"]'),
    ('"other {types}"."Mood"[]', '["sad","it\'s \\"ok\\""]'),
    ('"other {types}".pair[]', '[{"n":1,"said":"a"}]'),
    ("reunite.counter", 5),
    ("reunite.crdt_text", "é"),
    ("reunite.crdt_set_text", "[1, 2]"),
    ("reunite.crdt_list_text", '["a"]'),
    ("reunite.crdt_json_text", "5"),
]


# In another session's zone, moments in arrays and before Christ stay as they are, and so do bytes
# in arrays.
TEXT_ONLY: list[tuple[str, Value]] = [
    ("timestamptz", "0044-03-15 00:00:00+00 BC"),
    ("timestamptz[]", '["2024-02-29T12:00:00+00:00"]'),
    ("bytea[]", '["\\\\x00ff"]'),
]


async def _domains(url: str) -> None:
    await (await open_postgres(url, schema="elsewhere")).close()


def test_every_type_gives_back_what_a_document_held(postgres_url: str) -> None:
    async def scenario() -> None:
        await _domains(postgres_url)
        async with (
            connected(postgres_url) as connection,
            connected(postgres_url, OTHER_SETTINGS) as backend,
        ):
            for statement in TYPES:
                await connection.execute(statement)
            for place, (kind, _) in enumerate(VALUES):
                await connection.execute(
                    f'CREATE TABLE public."t{place} {{}}"'
                    f' ("Id" bigint PRIMARY KEY, "it\'s a ""{{v}}""" {kind})'
                )
            names = [f"t{place} {{}}" for place in range(len(VALUES))]
            adopted = await adopt(connection, *names)
            rows = Rows(connection, adopted)
            cell = 'it\'s a "{v}"'
            for name, (kind, value) in zip(names, VALUES, strict=True):
                null = "[]" if "codes" in kind else None  # its domain is NOT NULL
                assert await rows.insert(name, 1, {cell: value}) == {}, kind
                assert await rows.insert(name, 2, {cell: null}) == {}, kind
                expected = [{"Id": 1, cell: value}, {"Id": 2, cell: null}]
                assert await as_text(connection, adopted, name) == expected, kind
                if (kind, value) not in TEXT_ONLY:
                    assert await as_other(backend, adopted, name) == expected, kind
                await rows.update(name, 2, {cell: value})
                await rows.update(name, 1, {cell: null})
                expected = [{"Id": 1, cell: null}, {"Id": 2, cell: value}]
                assert await as_text(connection, adopted, name) == expected, kind
                classes = [type(found[cell]) for found in await as_text(connection, adopted, name)]
                assert classes == [type(null), type(value)], kind

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "given", "made"),
    [
        ("char(5)", "ab ", "ab"),
        ("varchar(3)", "abc  ", "abc"),
        ("name", "n" * 70, "n" * 63),
        ('"char"', "abc", "a"),
        ("real", 0.123456789, 0.12345679),
        ("numeric(5,2)", "1.239", 1.24),
        ('"other {types}".money', "1.239", 1.24),
        ("timestamp(0)", "2024-02-29 12:00:00.7", "2024-02-29 12:00:01"),
        ("interval(0)", "00:00:01.7", "00:00:02"),
        ("numeric(5,2)[]", "[1.239]", "[1.24]"),
        ('"other {types}".cost', "(1.239)", "(1.24)"),
        ("integer[]", '"{1,2}"', "[1,2]"),
        ("integer[]", "null", None),
        ('"other {types}".money[]', "[1.239]", "[1.24]"),
    ],
)
def test_what_a_column_makes_of_a_value_comes_back(
    postgres_url: str, kind: str, given: Value, made: Value
) -> None:
    async def scenario() -> None:
        async with connected(postgres_url) as connection:
            for statement in TYPES:
                await connection.execute(statement)
            await connection.execute(f"CREATE TABLE public.t (id bigint PRIMARY KEY, v {kind})")
            adopted = await adopt(connection, "t")
            rows = Rows(connection, adopted)
            assert await rows.insert("t", 1, {"v": given}) == {"v": made}
            await rows.insert("t", 2, {"v": None})
            assert await rows.update("t", 2, {"v": given}) == {"v": made}
            found = await as_text(connection, adopted, "t")
            assert found == [{"id": 1, "v": made}, {"id": 2, "v": made}]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("smallint", 32768),
        ("varchar(3)", "abcd"),
        ("char(3)", "abcd"),
        ("bit(3)", "1111"),
        ("bit(3)", "11"),
        ("real", 1e300),
        ("inet", "somewhere"),
        ("json", "{"),
        ('"other {types}"."Mood"', "Sad"),
        ('"other {types}".code', "codes"),
        ('"other {types}".short_code', "codes"),
        ('"other {types}".code', "none"),
        ('"other {types}".codes', None),
        ("integer[]", "5"),
        ("integer[]", '{"a":1}'),
        ("integer[]", "[1"),
        ("integer[]", '["x"]'),
        ("integer[]", "[[1,2],[3]]"),
        ("varchar(3)[]", '["abcd"]'),
        ('"other {types}"."Mood"[]', '["Sad"]'),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_never_cut(
    postgres_url: str, kind: str, given: Value
) -> None:
    async def scenario() -> None:
        async with connected(postgres_url) as connection:
            for statement in TYPES:
                await connection.execute(statement)
            await connection.execute(f"CREATE TABLE public.t (id bigint PRIMARY KEY, v {kind})")
            rows = Rows(connection, await adopt(connection, "t"))
            with pytest.raises(Violation, match="'t'"):
                await rows.insert("t", 1, {"v": given})
            assert await connection.fetchval("SELECT count(*) FROM public.t") == 0

    asyncio.run(scenario())


def test_what_a_trigger_changes_is_seen_in_types_that_have_no_equality(postgres_url: str) -> None:
    changes: dict[str, tuple[str, Value, str, Value]] = {
        "j": ("json", '{"a":1}', "'[2]'", "[2]"),
        "p": ("point", "(1,2)", "'(3,4)'", "(3,4)"),
        "b": ("box", "(2,2),(0,0)", "'(4,1),(0,0)'", "(4,1),(0,0)"),
        "c": ("char(4)", "a", "'b'", "b"),
        "a": ("integer[]", "[1]", "'{1,2}'", "[1,2]"),
        "x": ("json[]", "[1]", "'{2}'", "[2]"),
        "n": ("integer", 1, "2", 2),
        "r": ("real", 0.5, "0.1", 0.1),
    }

    async def scenario() -> None:
        async with connected(postgres_url) as connection:
            columns = ", ".join(f"{name} {kind}" for name, (kind, *_) in changes.items())
            sets = " ".join(f"NEW.{name} := {sql};" for name, (_, _, sql, _) in changes.items())
            await connection.execute(
                f"CREATE TABLE public.t (id integer PRIMARY KEY, w integer, {columns});"
                " CREATE FUNCTION public.change() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN IF NEW.w = 1 THEN {sets} END IF; RETURN NEW; END $$;"
                " CREATE TRIGGER change BEFORE INSERT OR UPDATE ON public.t"
                " FOR EACH ROW EXECUTE FUNCTION public.change()"
            )
            rows = Rows(connection, await adopt(connection, "t"))
            given = {name: value for name, (_, value, _, _) in changes.items()}
            made = {name: value for name, (*_, value) in changes.items()}
            assert await rows.insert("t", 1, {"w": 0, **given}) == {}
            assert await rows.update("t", 1, {"w": 1}) == made
            assert await rows.insert("t", 2, {"w": 1, **given}) == made

    asyncio.run(scenario())


def test_keys_of_several_types_find_their_rows(postgres_url: str) -> None:
    keys: list[tuple[Value, ...]] = [
        (1, "sad", "ab", "10.0.0.1", 0, b"\x00"),
        (1, "sad", "a", "10.0.0.1", 0, b"\x00"),
        (1, 'it\'s "ok"', "ab", "10.0.0.0/8", 1, b""),
    ]

    async def scenario() -> None:
        async with connected(postgres_url) as connection:
            for statement in TYPES:
                await connection.execute(statement)
            await connection.execute(
                'CREATE TABLE public."Keyed" (v text, a smallint, c char(4),'
                ' b "other {types}"."Mood", "D d" inet, e boolean, f bytea,'
                ' PRIMARY KEY (a, b, c, "D d", e, f))'
            )
            adopted = await adopt(connection, "Keyed")
            rows = Rows(connection, adopted)
            for key in keys:
                assert await rows.insert("Keyed", key, {"v": repr(key)}) == {}
            await rows.update("Keyed", keys[0], {"v": "changed"})
            await rows.delete("Keyed", keys[1])
            described = adopted.tables["Keyed"]
            found = {
                tuple(one[column.name] for column in described.key): one["v"]
                for one in await as_text(connection, adopted, "Keyed")
            }
            assert found == {keys[0]: "changed", keys[2]: repr(keys[2])}
            with pytest.raises(Violation, match="not written as Postgres writes it"):
                await rows.insert("Keyed", (2, "sad", "ab ", "10.0.0.1", 0, b""), {"v": None})
            with pytest.raises(Violation, match="not written as Postgres writes it"):
                await rows.insert("Keyed", (2, "sad", "ab", "10.0.0.1/32", 0, b""), {"v": None})
            with pytest.raises(Busy, match="already there"):
                await Rows(connection, adopted).insert("Keyed", keys[0], {"v": None})

    asyncio.run(scenario())


def test_an_identity_that_is_always_generated_takes_a_files_key(postgres_url: str) -> None:
    async def scenario() -> None:
        async with connected(postgres_url) as connection:
            await connection.execute(
                "CREATE TABLE public.t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                " v text, twice text GENERATED ALWAYS AS (v || v) STORED,"
                " n bigint GENERATED ALWAYS AS IDENTITY)"
            )
            adopted = await adopt(connection, "t")
            rows = Rows(connection, adopted)
            assert await rows.insert("t", 70, {"v": "a"}) == {}
            assert await rows.update("t", 70, {"v": "b"}) == {}
            assert await as_text(connection, adopted, "t") == [{"id": 70, "v": "b"}]
            found = await connection.fetchrow("SELECT twice, n FROM public.t")
            assert found is not None
            assert tuple(found) == ("bb", 1)
            await rows.delete("t", 70)
            assert await as_text(connection, adopted, "t") == []

    asyncio.run(scenario())


def test_a_parent_found_by_an_enum_keeps_its_children(postgres_url: str) -> None:
    async def scenario() -> None:
        async with connected(postgres_url) as connection:
            await connection.execute(
                "CREATE TYPE public.e AS ENUM ('a', 'b');"
                "CREATE TABLE public.parent (id public.e PRIMARY KEY);"
                "CREATE TABLE public.child (id char(3) PRIMARY KEY,"
                " p public.e REFERENCES public.parent ON DELETE CASCADE)"
            )
            rows = Rows(connection, await adopt(connection, "parent", "child"))
            await rows.insert("parent", "a", {})
            await rows.insert("parent", "b", {})
            await rows.insert("child", "x", {"p": "a"})
            await rows.delete("parent", "b")
            with pytest.raises(Violation, match="rows still refer to a deleted row of 'parent'"):
                await rows.delete("parent", "a")

    asyncio.run(scenario())


LOGICAL = (
    "integer boolean real numeric numeric(5,2) text any blob date time timestamp timestamptz uuid"
    " json counter crdt_text crdt_set crdt_list crdt_json"
).split()
EVERY = table("every", *(column(f"c{n}", kind) for n, kind in enumerate(LOGICAL)))


def test_a_table_that_a_relay_made_has_no_special_column(postgres_url: str) -> None:
    async def scenario() -> None:
        await _domains(postgres_url)
        made = EVERY.renumbered({c.name: n for n, c in enumerate(EVERY.columns, 1)})
        async with connected(postgres_url) as connection:
            for statement in create_statements("public", made):
                await connection.execute(statement)
            assert (await read_column_sql(connection, "public", [made]))[0] == {}
            await connection.execute("ALTER TABLE public.every ALTER c0 TYPE real")
            assert (await read_column_sql(connection, "public", [made]))[0] == {
                made.id: {"c0": ColumnSql("DOUBLE PRECISION", "real")}
            }

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["citext", "varchar"])
def test_a_text_that_folds_letters_is_compared_letter_by_letter(name: str) -> None:
    # Neither is in every build of Postgres: citext is an extension, such collations need ICU.
    real = RealColumn(
        "t",
        "v",
        RealType(
            name=name,
            qualified=f"public.{name}",
            said=name,
            modifier=-1,
            builtin=name == "varchar",
            array=False,
            enum=False,
            composite=False,
            merging=None,
            folds=True,
        ),
        notnull=False,
        generated=False,
        identity="",
        default=None,
    )
    sql = column_sql(Column("v", 2, "TEXT", "text"), real)
    assert sql is not None
    assert sql.value("raw.t1") == "CAST(raw.t1 AS pg_catalog.text)"
    assert sql.differs("t.v", "given.v1", "given.t1") == (
        't.v::text COLLATE "C" IS DISTINCT FROM given.v1::text'
    )


def _statements(shape: Shape) -> tuple[str, str]:
    return insert_sql(shape), update_sql(shape, [0], [0, 1])


def test_a_special_column_changes_no_other_columns_sql() -> None:
    pair = Table(
        "pair",
        (
            Column("id", 1, "INTEGER", "integer", True, None, 1),
            Column("a", 2, "INTEGER", "integer"),
            Column("b", 3, "TEXT", "text"),
        ),
    )
    plain = _statements(shape_of("public", pair))
    assert _statements(shape_of("public", pair, {})) == plain
    special = {"b": ColumnSql("public.e", "text")}
    for before, after in zip(plain, _statements(shape_of("public", pair, special)), strict=True):
        undone = after.replace("CAST(raw.t2 AS public.e)", "CAST(raw.t2 AS TEXT)")
        assert undone != after
        for alias in "wt":
            undone = undone.replace(
                f'{alias}."b"::text COLLATE "C" IS DISTINCT FROM given.v2::text',
                f'{alias}."b" IS DISTINCT FROM given.v2',
            )
        assert undone == before


@pytest.mark.parametrize(
    ("text", "logical", "value"),
    [
        (None, "timestamptz", None),
        ("2024-02-29T12:00:00+00:00", "timestamptz", "2024-02-29 12:00:00+00"),
        ("2024-02-29 12:00:00.5+05:30", "timestamptz", "2024-02-29 06:30:00.5+00"),
        ("2024-02-29 00:00:00+05", "timestamptz", "2024-02-28 19:00:00+00"),
        ("0001-01-01T00:00:00+05:30", "timestamptz", "0001-01-01T00:00:00+05:30"),
        ("infinity", "timestamptz", "infinity"),
        ("2024-02-29T12:00:00", "timestamp", "2024-02-29 12:00:00"),
        ("1.50", "numeric(10,2)", 1.5),
        ("2.00", "numeric(10,2)", 2),
        ("-0.10", "numeric", -0.1),
        ("NaN", "numeric", "NaN"),
        ("9223372036854775808", "numeric", "9223372036854775808"),
        ("9007199254740993.5", "numeric", "9007199254740993.5"),
        ("5", "json", 5),
        ('"5"', "json", '"5"'),
        ("[1, 2]", "json", "[1, 2]"),
        ("true", "json", "true"),
        ("true", "boolean", 1),
        ("f", "boolean", 0),
        ("NaN", "real", None),
        ("\\x00ff", "blob", b"\x00\xff"),
        ("7", "counter", 7),
        ("7", "crdt_json", "7"),
        ("ab ", "text", "ab "),
    ],
)
def test_a_text_of_postgres_is_what_a_document_holds(
    text: str | None, logical: str, value: Value
) -> None:
    read = value_of(text, Column("c", 1, "", logical))
    assert (read, type(read)) == (value, type(value))


def test_a_text_that_was_padded_is_read_without_it() -> None:
    padded = Column("c", 1, "CHAR(5)", "text")
    assert value_of(" ab  ", padded, ColumnSql("pg_catalog.text", "text", padded=True)) == " ab"


def test_a_bytea_that_is_not_in_hex_is_no_value() -> None:
    with pytest.raises(ValueError, match="SET bytea_output"):
        value_of("abc", Column("c", 1, "BLOB", "blob"))
