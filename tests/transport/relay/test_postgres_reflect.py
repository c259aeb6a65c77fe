"""Tables that are in Postgres already are described as a file has to create them."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from reunite.ddl import create_statements
from reunite.errors import TableError
from reunite.schema import (
    ForeignKey,
    Index,
    Table,
    from_wire,
    parents_first,
    read_table,
    to_wire,
)
from reunite.types import logical_type
from reunite_transport.relay.postgres_reflect import Reflected, reflect
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.registry import grow
from tests.transport.relay.adopted import connected


def reflected(
    url: str,
    *statements: str,
    names: Sequence[str] | None = None,
    schema: str = "public",
    tracked: Sequence[str] = (),
) -> Reflected:
    """What is found after these statements."""

    async def scenario() -> Reflected:
        async with connected(url, {"TimeZone": "Asia/Kolkata"}) as connection:
            for statement in statements:
                await connection.execute(statement)
            found = await reflect(connection, schema, names, tracked=tracked)
            async with connection.transaction():
                again = await reflect(connection, schema, names, tracked=tracked)
                assert again.tables == found.tables
                assert list(map(str, again.refused)) == list(map(str, found.refused))
            return found

    found = asyncio.run(scenario())
    for table in found.tables:
        assert from_wire(to_wire(table)) == table
        assert [column.id for column in table.columns] == [*range(1, len(table.columns) + 1)]
        assert all(logical_type(column.declared) == column.type for column in table.columns)
    grow([], found.tables)
    return found


def only(found: Reflected) -> Table:
    """The one table that was found."""
    assert found.refused == ()
    (table,) = found.tables
    return table


TYPES = [
    ("smallint", "INTEGER", "integer"),
    ("integer", "INTEGER", "integer"),
    ("bigint", "INTEGER", "integer"),
    ("serial", "INTEGER", "integer"),
    ("boolean", "BOOLEAN", "boolean"),
    ("real", "REAL", "real"),
    ("double precision", "DOUBLE PRECISION", "real"),
    ("numeric", "NUMERIC", "numeric"),
    ("numeric(10,2)", "NUMERIC(10,2)", "numeric(10,2)"),
    ("numeric(7)", "NUMERIC(7,0)", "numeric(7,0)"),
    ("numeric(2,-3)", "NUMERIC", "numeric"),
    ("numeric(3,5)", "NUMERIC", "numeric"),
    ("text", "TEXT", "text"),
    ("varchar", "TEXT", "text"),
    ("varchar(20)", "VARCHAR(20)", "text"),
    ("char(3)", "CHAR(3)", "text"),
    ("char", "CHAR(1)", "text"),
    ("bpchar", "TEXT", "text"),
    ('"char"', "TEXT", "text"),
    ("name", "TEXT", "text"),
    ("bytea", "BLOB", "blob"),
    ("date", "DATE", "date"),
    ("time(3)", "TIME", "time"),
    ("timetz", "TEXT", "text"),
    ("timestamp(0)", "TIMESTAMP", "timestamp"),
    ("timestamptz", "TIMESTAMPTZ", "timestamptz"),
    ("uuid", "UUID", "uuid"),
    ("json", "JSON", "json"),
    ("jsonb", "JSON", "json"),
    ("integer[]", "JSON", "json"),
    ("text[][]", "JSON", "json"),
    ("mood[]", "JSON", "json"),
    ("mood", "TEXT", "text"),
    ("pair", "TEXT", "text"),
    ("interval", "TEXT", "text"),
    ("inet", "TEXT", "text"),
    ("int4range", "TEXT", "text"),
    ("money", "TEXT", "text"),
    ("tsvector", "TEXT", "text"),
    ("bit(3)", "TEXT", "text"),
    ("point", "TEXT", "text"),
    ("oid", "TEXT", "text"),
    ("code", "VARCHAR(4)", "text"),
    ("codes", "VARCHAR(4)", "text"),
    ("price", "NUMERIC(6,2)", "numeric(6,2)"),
    ("numbers", "JSON", "json"),
    ("reunite.counter", "COUNTER", "counter"),
    ("reunite.crdt_text", "CRDT_TEXT", "crdt_text"),
    ("reunite.crdt_set_text", "CRDT_SET_TEXT", "crdt_set"),
    ("reunite.crdt_list_text", "CRDT_LIST_TEXT", "crdt_list"),
    ("reunite.crdt_json_text", "CRDT_JSON_TEXT", "crdt_json"),
    ("reunite.mine", "TEXT", "text"),
    ("likes", "COUNTER", "counter"),
]


def test_each_type_is_declared_as_what_a_file_can_keep_of_it(postgres_url: str) -> None:
    async def domains() -> None:
        await (await open_postgres(postgres_url, schema="elsewhere")).close()

    asyncio.run(domains())
    columns = ", ".join(f"c{place} {kind}" for place, (kind, *_) in enumerate(TYPES))
    found = only(
        reflected(
            postgres_url,
            "CREATE TYPE mood AS ENUM ('sad')",
            "CREATE TYPE pair AS (a integer, b text)",
            "CREATE DOMAIN code AS varchar(4)",
            "CREATE DOMAIN codes AS code",
            "CREATE DOMAIN price AS numeric(6,2)",
            "CREATE DOMAIN numbers AS integer[]",
            "CREATE DOMAIN reunite.mine AS text",
            "CREATE DOMAIN likes AS reunite.counter",
            f"CREATE TABLE t (id bigint PRIMARY KEY, {columns})",
            names=["t"],
        )
    )
    described = [(column.declared, column.type) for column in found.cells]
    assert described == [(declared, logical) for _, declared, logical in TYPES]


DEFAULTS = [
    ("integer", "0", "0"),
    ("integer", "-1", "-1"),
    ("smallint", "'7'", "7"),
    ("integer", "1.7", "2"),  # what Postgres makes of it
    ("integer", "NULL", None),
    ("integer", "1 + 1", None),
    ("integer", "nextval('s')", None),
    ("boolean", "true", "1"),
    ("boolean", "'off'", "0"),
    ("real", "0.1", "0.1"),
    ("double precision", "1e300", "1e+300"),
    ("double precision", "'NaN'", None),
    ("double precision", "'-Infinity'", None),
    ("numeric(10,2)", "0", "0"),
    ("numeric(10,2)", "0.50", "0.5"),
    ("numeric", "0.12345678901234567890123", None),  # no number that SQLite keeps
    ("text", "'it''s'", "'it''s'"),
    ("text", "''", "''"),
    ("text", r"E'a\\b\n'", "'a\\b\n'"),
    ("text", "'::integer'", "'::integer'"),
    ("text", "'a' || 'b'", None),
    ("text", "upper('a')", None),
    ("text", "current_user", None),
    ("varchar(5)", "'a'", "'a'"),
    ("char(5)", "'a'", "'a'"),
    ("mood", "'sad'", "'sad'"),
    ("mood", "'sad'::mood", "'sad'"),
    ("code", "'x'", "'x'"),
    ("filled", "'own'", "'own'"),
    ("filled", None, "'new'"),
    ("bytea", r"'\x00ff'", "X'00FF'"),
    ("date", "'2024-02-29'", "'2024-02-29'"),
    ("date", "CURRENT_DATE", "CURRENT_DATE"),
    ("date", "now()", "CURRENT_DATE"),
    ("time", "'12:00'", "'12:00:00'"),
    ("time", "LOCALTIME", "CURRENT_TIME"),
    ("timestamp", "'2024-02-29 12:00'", "'2024-02-29 12:00:00'"),
    ("timestamp", "now()", "CURRENT_TIMESTAMP"),
    ("timestamp", "CURRENT_TIMESTAMP(3)", "CURRENT_TIMESTAMP"),
    ("timestamp", "(now() AT TIME ZONE 'utc')", "CURRENT_TIMESTAMP"),
    ("timestamp", "timezone('UTC', now())", "CURRENT_TIMESTAMP"),
    ("timestamp", "now()::timestamp", "CURRENT_TIMESTAMP"),
    ("timestamp", "now()::date", None),
    ("timestamp", "now() + interval '1 day'", None),
    ("timestamptz", "'2024-02-29 12:00+02'", "'2024-02-29 10:00:00+00'"),
    ("timestamptz", "clock_timestamp()", "CURRENT_TIMESTAMP"),
    ("text", "now()", None),
    ("uuid", "'00000000-0000-0000-0000-00000000000A'", "'00000000-0000-0000-0000-00000000000a'"),
    ("uuid", "gen_random_uuid()", None),
    ("jsonb", """'{"b":1,"a":[]}'""", """'{"a": [], "b": 1}'"""),
    ("json", """'{"b":1}'""", """'{"b":1}'"""),
    ("integer[]", "'{}'", "'[]'"),
    ("integer[]", "'{1,2}'::integer[]", "'[1,2]'"),
    ("text[]", "ARRAY[]::text[]", None),
    ("interval", "'1 day'", "'1 day'"),
    ("strict", "'2'::text::integer", "2"),
    ("integer", "'x'::text::integer", None),  # which Postgres cannot evaluate
]


def test_defaults_travel_where_they_are_constants_that_sqlite_keeps(postgres_url: str) -> None:
    columns = ", ".join(
        f"c{place} {kind}{'' if default is None else f' DEFAULT {default}'}"
        for place, (kind, default, _) in enumerate(DEFAULTS)
    )
    found = only(
        reflected(
            postgres_url,
            "CREATE SEQUENCE s",
            "CREATE TYPE mood AS ENUM ('sad')",
            "CREATE DOMAIN code AS varchar(4) DEFAULT 'none'",
            "CREATE DOMAIN filled AS text DEFAULT 'new'",
            "CREATE DOMAIN strict AS integer CHECK (VALUE > 1)",
            f"CREATE TABLE t (id bigint PRIMARY KEY, {columns})",
        )
    )
    described = [(*DEFAULTS[place][:2], c.default) for place, c in enumerate(found.cells)]
    assert described == DEFAULTS


def test_what_postgres_alone_may_write_is_left_out_with_what_is_over_it(postgres_url: str) -> None:
    found = only(
        reflected(
            postgres_url,
            "CREATE TABLE t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text NOT NULL,"
            " b text GENERATED ALWAYS AS (a || 'x') STORED UNIQUE,"
            " n integer GENERATED ALWAYS AS IDENTITY, m integer GENERATED BY DEFAULT AS IDENTITY,"
            " s serial, up integer GENERATED ALWAYS AS (NULL::integer) STORED REFERENCES t)",
            "CREATE INDEX over_n ON t (a, n)",
        )
    )
    assert [(c.name, c.declared, c.notnull, c.default, c.key) for c in found.columns] == [
        ("id", "INTEGER", True, None, 1),
        ("a", "TEXT", True, None, 0),
        ("m", "INTEGER", True, None, 0),
        ("s", "INTEGER", True, None, 0),
    ]
    assert (found.indexes, found.foreign_keys) == ((), ())


@pytest.mark.parametrize(
    "key",
    [
        "serial",
        "bigserial",
        "integer GENERATED ALWAYS AS IDENTITY",
        "bigint GENERATED BY DEFAULT AS IDENTITY",
    ],
)
def test_sqlite_hands_out_the_keys_that_a_sequence_hands_out(postgres_url: str, key: str) -> None:
    found = only(reflected(postgres_url, f"CREATE TABLE t (v text, id {key} PRIMARY KEY)"))
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in create_statements(found):
            connection.execute(statement)
        connection.execute("INSERT INTO t (v) VALUES ('a'), ('b')")
        assert connection.execute("SELECT id FROM t").fetchall() == [(1,), (2,)]


def test_keys_indexes_and_foreign_keys_are_described(postgres_url: str) -> None:
    found = reflected(
        postgres_url,
        'CREATE TABLE "Par ent" ("it\'s" integer, "b ""B""" text, code varchar(5) UNIQUE,'
        ' lone text, PRIMARY KEY ("b ""B""", "it\'s"), UNIQUE NULLS NOT DISTINCT (lone))',
        'CREATE TABLE child (id uuid PRIMARY KEY, "camelCase" integer, b text,'
        ' code varchar(5) REFERENCES "Par ent" (code) ON DELETE SET NULL ON UPDATE CASCADE,'
        " up uuid REFERENCES child ON DELETE CASCADE,"
        ' FOREIGN KEY (b, "camelCase") REFERENCES "Par ent" ON DELETE RESTRICT)',
        "CREATE SCHEMA other",
        "CREATE TABLE other.away (id integer PRIMARY KEY)",
        "ALTER TABLE child ADD away integer REFERENCES other.away",
        'ALTER TABLE child ADD lone text REFERENCES "Par ent" (lone)',
        'CREATE INDEX "by Case" ON child ("camelCase" DESC, b) INCLUDE (code)',
        "CREATE INDEX by_expression ON child (lower(b))",
        "CREATE UNIQUE INDEX by_part ON child (b) WHERE b > 'a'",
        "CREATE UNIQUE INDEX by_both ON child (b, code)",
        "CREATE INDEX by_words ON child USING gin (to_tsvector('simple', b))",
        'CREATE INDEX "Child" ON child (code)',
        "CREATE INDEX sqlite_x ON child (up)",
    )
    assert found.refused == ()
    parent, child = found.tables
    assert [column.name for column in parent.key] == ['b "B"', "it's"]
    assert parent.indexes == (Index("Par ent_code_key", ("code",), True),)
    assert parent.foreign_keys == ()
    assert child.foreign_keys == (
        ForeignKey(("code",), "Par ent", ("code",), "SET NULL", "CASCADE"),
        ForeignKey(("up",), "child", ("id",), "CASCADE"),
        ForeignKey(("b", "camelCase"), "Par ent", ('b "B"', "it's"), "RESTRICT"),
    )
    plain, both, renamed, kept = child.indexes
    assert plain == Index("by Case", ("camelCase", "b"))
    assert both == Index("by_both", ("b", "code"), True)
    assert renamed.columns == ("code",)
    assert kept.columns == ("up",)
    assert renamed.name.lower() != "child"
    assert not kept.name.startswith("sqlite_")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        for table in parents_first(found.tables):
            for statement in create_statements(table):
                connection.execute(statement)
            made = read_table(connection, table.name)
            assert made.columns == table.columns
            assert set(made.foreign_keys) == set(table.foreign_keys)
            assert set(made.indexes) == set(table.indexes)
        connection.execute("INSERT INTO \"Par ent\" VALUES (1, 'b', 'c', NULL)")
        connection.execute("INSERT INTO child (id, code, b, camelCase) VALUES ('x', 'c', 'b', 1)")


def test_a_foreign_key_waits_for_its_parent(postgres_url: str) -> None:
    statements = (
        "CREATE TABLE parent (id integer PRIMARY KEY)",
        "CREATE TABLE child (id integer PRIMARY KEY, p integer REFERENCES parent)",
    )
    alone = only(reflected(postgres_url, *statements, names=["child"]))
    assert alone.foreign_keys == ()
    later = only(reflected(postgres_url, names=["child"], tracked=["Parent"]))
    assert later.foreign_keys == (ForeignKey(("p",), "parent", ("id",)),)
    both = reflected(postgres_url, names=["child", "parent", "child"])
    assert [table.name for table in both.tables] == ["child", "parent"]
    assert both.tables[0] == later


def test_a_name_may_differ_in_case_where_one_table_is_meant(postgres_url: str) -> None:
    found = reflected(
        postgres_url,
        'CREATE TABLE "Case" (id integer PRIMARY KEY)',
        'CREATE TABLE "two" (id integer PRIMARY KEY)',
        'CREATE TABLE "Two" (id integer PRIMARY KEY, v text)',
        names=["cASE", "Two"],
    )
    assert [table.name for table in found.tables] == ["Case", "Two"]
    with pytest.raises(TableError, match=r"'TWO': the schema has 'two' and 'Two'; write the name"):
        reflected(postgres_url, names=["TWO"])
    everything = reflected(postgres_url)
    assert [table.name for table in everything.tables] == ["Case"]
    assert [error.table for error in everything.refused] == ["two", "Two"]


REFUSED = [
    ("CREATE VIEW t AS SELECT 1 AS id", "is a view; track the tables"),
    ("CREATE MATERIALIZED VIEW t AS SELECT 1 AS id", "is a materialized view; track the tables"),
    (
        "CREATE TABLE t (id integer PRIMARY KEY) PARTITION BY HASH (id)",
        "is partitioned.*copy it to an ordinary table",
    ),
    (
        "CREATE TABLE p (id integer PRIMARY KEY) PARTITION BY LIST (id);"
        " CREATE TABLE t PARTITION OF p DEFAULT",
        "inherits from another table",
    ),
    (
        "CREATE TABLE t (id integer PRIMARY KEY); CREATE TABLE c () INHERITS (t)",
        "is inherited from.*stands for itself",
    ),
    ("CREATE UNLOGGED TABLE t (id integer PRIMARY KEY)", "UNLOGGED.*SET LOGGED"),
    ("CREATE TABLE t (id integer UNIQUE NOT NULL)", "has no primary key.*add one"),
    ("CREATE TABLE t (id integer PRIMARY KEY DEFERRABLE)", "DEFERRABLE; make one that is not"),
    ("CREATE TABLE t (id real PRIMARY KEY)", "'id' is real: such values change.*use bigint"),
    ("CREATE TABLE t (a text, id numeric(5,2), PRIMARY KEY (a, id))", r"numeric\(5,2\): such"),
    ("CREATE TABLE t (id interval PRIMARY KEY)", "'id' is interval, where one value can be"),
    ("CREATE TABLE t (id jsonb PRIMARY KEY)", "'id' is jsonb, where one value can be"),
    ("CREATE TABLE t (id integer[] PRIMARY KEY)", r"'id' is integer\[\], where one value can be"),
    (
        # Not every server has the extension: a type of its name stands for it.
        "CREATE TYPE citext AS ENUM ('a'); CREATE TABLE t (id citext PRIMARY KEY)",
        "'id' is citext and does not tell all texts apart.*use text with an ordinary collation",
    ),
    (
        "CREATE DOMAIN likes AS reunite.counter; CREATE TABLE t (id likes PRIMARY KEY)",
        "'id' is likes: a row is found by its key, so a key cannot merge",
    ),
    (
        "CREATE TABLE t (a integer, id integer GENERATED ALWAYS AS (a + 1) STORED PRIMARY KEY)",
        "key column 'id' is generated; track a table with a stored key",
    ),
    (
        'CREATE TABLE t (id integer PRIMARY KEY, a text, "A" text)',
        "columns 'a' and 'A' differ in the case of letters only.*rename one",
    ),
    (
        "CREATE TABLE t (id integer PRIMARY KEY, a reunite.crdt_set_text DEFAULT '5')",
        "column 'a' merges as crdt_set.*declare another default",
    ),
    (
        f"CREATE TABLE t ({', '.join(f'c{n} integer' for n in range(17))},"
        f" PRIMARY KEY ({', '.join(f'c{n}' for n in range(17))}))",
        "has over 16 key columns",
    ),
]


@pytest.mark.parametrize(("statement", "said"), REFUSED)
def test_what_cannot_be_tracked_is_refused_with_what_to_do(
    postgres_url: str, statement: str, said: str
) -> None:
    async def domains() -> None:
        await (await open_postgres(postgres_url, schema="elsewhere")).close()

    asyncio.run(domains())
    with pytest.raises(TableError, match=said) as caught:
        reflected(postgres_url, statement, names=["t"])
    assert caught.value.table == "t"
    rest = reflected(postgres_url, "CREATE TABLE fine (id integer PRIMARY KEY)")
    assert [table.name for table in rest.tables] == ["fine"]
    unasked = " VIEW t " in statement or "PARTITION OF" in statement
    assert [str(error) for error in rest.refused if error.table == "t"] == (
        [] if unasked else [str(caught.value)]
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "there is no such table in the schema; check the name"),
        ("n" * 64, "there is no such table"),
        ("sqlite_t", "is a name of bookkeeping; rename"),
        ("reunite_rows", "is a name of bookkeeping; rename"),
        ("_reunite_tables", "is internal bookkeeping and is never synced"),
    ],
)
def test_a_name_that_no_table_can_have_is_refused(postgres_url: str, name: str, said: str) -> None:
    made = [] if name[0] == "n" else [f"CREATE TABLE {name} (id integer PRIMARY KEY)"]
    with pytest.raises(TableError, match=said):
        reflected(postgres_url, *made, names=[name])


def test_the_realms_own_tables_are_not_among_all_tables(postgres_url: str) -> None:
    async def realm() -> None:
        await (await open_postgres(postgres_url)).close()

    asyncio.run(realm())
    assert reflected(postgres_url) == Reflected((), ())


def test_a_role_describes_what_it_may_write_and_says_what_it_may_not(postgres_url: str) -> None:
    async def scenario() -> Reflected:
        async with connected(postgres_url) as connection:
            await connection.execute(
                "CREATE SCHEMA app; CREATE TYPE app.e AS ENUM ('a');"
                "CREATE TABLE app.open (id integer PRIMARY KEY, e app.e DEFAULT 'a');"
                "CREATE TABLE app.closed (id integer PRIMARY KEY);"
                "CREATE TABLE app.hidden (id integer PRIMARY KEY);"
                "ALTER TABLE app.hidden ENABLE ROW LEVEL SECURITY"
            )
            async with connection.transaction():
                await connection.execute(
                    "CREATE ROLE reader_of_tables;"
                    "GRANT USAGE ON SCHEMA app TO reader_of_tables;"
                    "GRANT ALL ON app.open, app.hidden TO reader_of_tables;"
                    "GRANT SELECT ON app.closed TO reader_of_tables;"
                    "SET LOCAL ROLE reader_of_tables"
                )
                found = await reflect(connection, "app")
                await connection.execute(
                    "RESET ROLE; DROP OWNED BY reader_of_tables; DROP ROLE reader_of_tables"
                )
            return found

    found = asyncio.run(scenario())
    (table,) = found.tables
    assert (table.name, table.columns[1].default) == ("open", "'a'")
    closed, hidden = map(str, found.refused)
    assert "'closed'" in closed
    assert "GRANT INSERT, UPDATE, DELETE, TRIGGER ON app.closed TO reader_of_tables" in closed
    assert "'hidden'" in hidden
    assert "BYPASSRLS" in hidden


def test_another_schema_is_another_set_of_tables(postgres_url: str) -> None:
    statements = (
        'CREATE SCHEMA "a ""schema"""',
        'CREATE TABLE "a ""schema""".t (id integer PRIMARY KEY, there text)',
        "CREATE TABLE t (id text PRIMARY KEY)",
    )
    there = only(reflected(postgres_url, *statements, schema='a "schema"'))
    assert [column.name for column in there.columns] == ["id", "there"]
    assert only(reflected(postgres_url)).columns[0].type == "text"


def test_a_sample_database_is_described_whole_and_fits_a_file(
    postgres_url: str, chinook_script: str, tmp_path: Path
) -> None:
    found = reflected(postgres_url, chinook_script)
    assert found.refused == ()
    tables = {table.name: table for table in found.tables}
    with closing(sqlite3.connect(tmp_path / "file", isolation_level=None)) as file:
        file.execute("PRAGMA foreign_keys = ON")
        for table in parents_first(found.tables):
            for statement in create_statements(table):
                file.execute(statement)
        filled = asyncio.run(_copied(postgres_url, file, tables))
        assert len(filled) == len(tables)
        assert all(filled.values())
        assert file.execute("PRAGMA foreign_key_check").fetchall() == []
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert tables["playlist_track"].key == tables["playlist_track"].columns
    assert ForeignKey(("reports_to",), "employee", ("employee_id",)) in (
        tables["employee"].foreign_keys
    )
    declared = {c.name: (c.declared, c.notnull) for c in tables["track"].columns}
    assert declared["unit_price"] == ("NUMERIC(10,2)", True)
    assert declared["composer"] == ("VARCHAR(220)", False)


async def _copied(url: str, file: sqlite3.Connection, tables: dict[str, Table]) -> dict[str, int]:
    """Every row of Postgres as text into the file's tables; how many each got."""
    counts = {}
    connection = await asyncpg.connect(url)
    try:
        file.execute("BEGIN")
        file.execute("PRAGMA defer_foreign_keys = ON")
        for name, table in tables.items():
            columns = [column.name for column in table.columns]
            read = ", ".join(f'"{column}"::text' for column in columns)
            rows = await connection.fetch(f'SELECT {read} FROM "{name}"')
            marks = ", ".join("?" for _ in columns)
            file.executemany(f'INSERT INTO "{name}" VALUES ({marks})', [tuple(r) for r in rows])
            counts[name] = len(rows)
        file.execute("COMMIT")
    finally:
        await connection.close()
    return counts
