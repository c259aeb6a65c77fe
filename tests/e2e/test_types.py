"""Values of every class, in columns of every declared type, through Postgres to a new file."""

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest

from reunite import Database
from reunite.schema import quoted
from tests.e2e.world import (
    assert_converged,
    assert_quiet,
    contents,
    exact,
    fetch,
    make,
    plain,
    postgres_rows,
    read,
    relay_on,
    sync_once,
    table_names,
    track_and_sync,
    write,
)

INT64 = (-(2**63), -(2**63) + 1, -1, 0, 1, 2**53 + 1, 2**63 - 2, 2**63 - 1)
FLOATS = (0.0, -0.0, 1.0, 0.1, -1e308, 1e308, 5e-324, math.inf, -math.inf, 2.0**53)
TEXTS = (
    "",
    " ",
    "it's",
    '"',
    "\\",
    "\n\t\r",
    "%s %(a)s",
    "ß",
    "🙂👍🏽",
    "\ue000\ufffd",
    "{1}",
    "NULL",
)
BLOBS = (b"", b"\x00", bytes(range(256)), b"\\x00")


def test_every_class_of_value_comes_through_exactly(tmp_path: Path, postgres_url: str) -> None:
    rows = [
        *((None, number, None, None) for number in INT64),
        *((None, None, number, None) for number in FLOATS),
        *((text, None, None, None) for text in TEXTS),
        *((None, None, None, data) for data in BLOBS),
        (None, None, None, None),
    ]

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one = make(
                tmp_path / "one.db",
                "CREATE TABLE value (id INTEGER PRIMARY KEY, t TEXT, i INTEGER, r REAL, b BLOB)",
            )
            with plain(one) as conn:
                insert = "INSERT INTO value (t, i, r, b) VALUES (?, ?, ?, ?)"
                conn.executemany(insert, rows)
            # Adopted rows, and the same values as edits made by the app and by another program.
            two, three = tmp_path / "two.db", tmp_path / "three.db"
            await track_and_sync(one, relay.url)
            async with Database(one) as db:
                await db.executemany(insert, rows)
                await sync_once(db, relay.url)
            with plain(one) as conn:
                conn.executemany(insert, rows)
            await sync_once(one, relay.url)
            await sync_once(two, relay.url)
            await assert_converged(postgres_url, one, two)
            # And as updates of rows that held something else.
            write(two, "UPDATE value SET t = 'x', i = 17, r = 1.5, b = x'17'")
            await sync_once(two, relay.url)
            await sync_once(one, relay.url)
            with plain(two) as conn:
                conn.executemany(
                    "UPDATE value SET t = ?, i = ?, r = ?, b = ? WHERE id = ?",
                    [(*values, number) for number, values in enumerate(rows, 1)],
                )
            for file in (two, one, three):
                await sync_once(file, relay.url)
            await assert_converged(postgres_url, one, two, three)
            held = {exact(cell) for row in read(three, "SELECT * FROM value") for cell in row}
            # SQLite itself keeps no sign of a zero in a REAL column.
            assert held >= {exact(cell) for row in rows for cell in row} - {exact(-0.0)}

    asyncio.run(scenario())


def test_a_column_without_a_type_keeps_every_class(tmp_path: Path, postgres_url: str) -> None:
    values = (*INT64, *FLOATS, *TEXTS, *BLOBS, None)

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one = make(tmp_path / "one.db", "CREATE TABLE value (id INTEGER PRIMARY KEY, v)")
            with plain(one) as conn:
                conn.executemany("INSERT INTO value (v) VALUES (?)", ((v,) for v in values))
            await track_and_sync(one, relay.url)
            two = tmp_path / "two.db"
            await sync_once(two, relay.url)
            with plain(two) as conn:
                conn.executemany("INSERT INTO value (v) VALUES (?)", ((v,) for v in values))
            await sync_once(two, relay.url)
            await sync_once(one, relay.url)
            await assert_converged(postgres_url, one, two, tables=())
            held = [exact(v) for (v,) in read(one, "SELECT v FROM value ORDER BY id")]
            assert held == 2 * list(map(exact, values))

    asyncio.run(scenario())


DECLARED: Sequence[tuple[str, str, object, object]] = (
    ("DECIMAL(10,2)", "numeric(10,2)", 12.34, Decimal("12.34")),
    ("NUMERIC(20,4)", "numeric(20,4)", "12345678901.5678", Decimal("12345678901.5678")),
    ("DECIMAL", "numeric", 5, Decimal(5)),
    ("DATE", "date", "2024-02-29", date(2024, 2, 29)),
    ("TIME", "time without time zone", "23:59:59.123456", time(23, 59, 59, 123456)),
    (
        "DATETIME",
        "timestamp without time zone",
        "2024-02-29 12:34:56.789",
        datetime(2024, 2, 29, 12, 34, 56, 789000),
    ),
    ("TIMESTAMP", "timestamp without time zone", "2024-02-29 00:00:00", datetime(2024, 2, 29)),
    (
        "TIMESTAMPTZ",
        "timestamp with time zone",
        "2024-02-29 12:00:00+02:00",
        datetime(2024, 2, 29, 10, tzinfo=UTC),
    ),
    (
        "UUID",
        "uuid",
        "123e4567-e89b-12d3-a456-426614174000",
        UUID("123e4567-e89b-12d3-a456-426614174000"),
    ),
    ("BOOLEAN", "boolean", 1, True),
    ("BOOL", "boolean", 0, False),
    ("JSON", "jsonb", '{"b": [1, null], "a": "ü"}', '{"a": "ü", "b": [1, null]}'),
    ("VARCHAR(3)", "text", "longer than three", "longer than three"),
    ("DOUBLE PRECISION", "double precision", 0.1, 0.1),
    ("UNSIGNED BIG INT", "bigint", 2**63 - 1, 2**63 - 1),
    ("BLOB", "bytea", b"\x00\xff", b"\x00\xff"),
    ("", "text", "untyped", "untyped"),
)


def test_declared_types_become_postgres_types_with_equal_values(
    tmp_path: Path, postgres_url: str
) -> None:
    columns = ", ".join(f"c{n} {declared}" for n, (declared, *_) in enumerate(DECLARED))
    given = [value for _, _, value, _ in DECLARED]

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one = make(tmp_path / "one.db", f"CREATE TABLE t (id INTEGER PRIMARY KEY, {columns})")
            insert = f"INSERT INTO t VALUES (?{', ?' * len(given)})"
            write(one, insert, 1, *given)
            await track_and_sync(one, relay.url)
            async with Database(one) as db:
                await db.execute(insert, (2, *given))
                await db.execute("INSERT INTO t (id) VALUES (3)")
                await sync_once(db, relay.url)
            before = contents(one)
            two = tmp_path / "two.db"
            await sync_once(two, relay.url)
            assert contents(one) == before, "what Postgres holds came back as another value"
            assert contents(two) == before
            types = await fetch(
                postgres_url,
                "SELECT format_type(atttypid, atttypmod) AS type FROM pg_attribute"
                " WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum",
            )
            assert [row["type"] for row in types] == ["bigint", *(kind for _, kind, *_ in DECLARED)]
            held = await fetch(postgres_url, "SELECT * FROM t ORDER BY id")
            for row in held[:2]:
                assert list(row)[1:] == [value for *_, value in DECLARED]
            assert list(held[2])[1:] == [None] * len(DECLARED)
            await assert_quiet(postgres_url, one, two)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("DATETIME", "yesterday"),
        ("DATE", "2024-02-30"),
        ("BOOLEAN", 2),
        ("BOOLEAN", "yes"),
        ("INTEGER", "twelve"),
        ("INTEGER", 1.5),
        ("REAL", "much"),
        ("UUID", "not one"),
        ("JSON", "{"),
        ("DECIMAL(4,1)", 12345.678),
        ("NUMERIC", "n/a"),
        ("BLOB", "text"),
        ("TEXT", b"\x00blob"),
    ],
)
def test_a_column_whose_values_belie_its_type_is_text(
    declared: str, value: object, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one = make(
                tmp_path / "one.db", f"CREATE TABLE t (id INTEGER PRIMARY KEY, c {declared})"
            )
            write(one, "INSERT INTO t VALUES (1, ?)", value)
            before = contents(one)
            await track_and_sync(one, relay.url)
            two = tmp_path / "two.db"
            await sync_once(two, relay.url)
            assert contents(one) == contents(two) == before
            await assert_quiet(postgres_url, one, two)

    asyncio.run(scenario())


NAMES = (
    "select",
    "Mixed Case",
    "it's",
    'quo"ted',
    "per%cent %s $1",
    "semi;colon--",
    "tab\tand\nline",
    "ünïcode 🙂",
    "[brackets]`tick`",
    "user",
    "123",
)


def test_odd_names_of_tables_and_columns_come_through(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one = tmp_path / "one.db"
            for name in NAMES:
                columns = ", ".join(f"{quoted(column)} TEXT" for column in NAMES)
                table, index, over = map(quoted, (name, f"by {name}", NAMES[2]))
                make(
                    one,
                    f'CREATE TABLE {table} ("a key" TEXT PRIMARY KEY, {columns}, UNIQUE ({table}))',
                    f"CREATE INDEX {index} ON {table} ({over})",
                )
                marks = ", ?" * len(NAMES)
                write(one, f"INSERT INTO {quoted(name)} VALUES (?{marks})", name, *NAMES)
            await track_and_sync(one, relay.url)
            two = tmp_path / "two.db"
            await sync_once(two, relay.url)
            assert set(table_names(two)) == set(NAMES)
            for name in NAMES:
                write(two, f"UPDATE {quoted(name)} SET {quoted(name)} = ?", f"{name} changed")
                write(two, f'INSERT INTO {quoted(name)} ("a key") VALUES (?)', f"'{name}\"%")
            await sync_once(two, relay.url)
            await sync_once(one, relay.url)
            await assert_converged(postgres_url, one, two)

    asyncio.run(scenario())


KINDS = (
    "CREATE TABLE pair (a INTEGER, b TEXT, c BLOB, v TEXT, PRIMARY KEY (c, a, b))",
    "CREATE TABLE bare (a INTEGER, b INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID",
    "CREATE TABLE tight (k TEXT PRIMARY KEY, i INT, r REAL, t TEXT, b BLOB, n INTEGER) STRICT",
    "CREATE TABLE both (k BLOB PRIMARY KEY NOT NULL, v ANY) STRICT, WITHOUT ROWID",
    "CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT)",
    "CREATE TABLE defaults (id INTEGER PRIMARY KEY, a INTEGER NOT NULL DEFAULT 7,"
    " b TEXT DEFAULT 'it''s', c REAL DEFAULT -1.5, d BLOB DEFAULT x'00ff', e TEXT DEFAULT NULL,"
    " f BOOLEAN DEFAULT TRUE, g TEXT DEFAULT CURRENT_TIMESTAMP, h INTEGER DEFAULT (-3),"
    ' i TEXT DEFAULT "double")',
    "CREATE TABLE parent (id INTEGER PRIMARY KEY, code TEXT UNIQUE)",
    "CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES parent"
    " ON DELETE CASCADE, code TEXT REFERENCES parent (code) ON UPDATE CASCADE ON DELETE SET NULL)",
    "CREATE TABLE tree (id TEXT PRIMARY KEY, above TEXT REFERENCES tree (id))",
)
WRITES: Sequence[tuple[str, tuple[object, ...]]] = (
    ("INSERT INTO pair VALUES (?, ?, ?, ?)", (-1, "x,'y'", b"\x00,", "v")),
    ("INSERT INTO pair VALUES (?, ?, ?, ?)", (2**63 - 1, "", b"", "empty")),
    ("INSERT INTO pair VALUES (?, ?, ?, ?)", (0, "'", b"'", None)),
    ("INSERT INTO bare VALUES (?, ?)", (1, -(2**63))),
    ("INSERT INTO tight VALUES (?, ?, ?, ?, ?, ?)", ("k", 1, 2.0, "three", b"4", None)),
    ("INSERT INTO both VALUES (?, ?)", (b"\xff", "any")),
    ("INSERT INTO counted (v) VALUES (?)", ("first",)),
    ("INSERT INTO defaults (id) VALUES (?)", (1,)),
    ("INSERT INTO defaults VALUES (?, 0, '', 0.0, x'', 'e', 0, 'g', 0, '')", (2,)),
    ("INSERT INTO parent VALUES (?, ?)", (1, "one")),
    ("INSERT INTO parent VALUES (?, ?)", (2, None)),
    ("INSERT INTO child VALUES (?, ?, ?)", (1, 1, "one")),
    ("INSERT INTO child VALUES (?, ?, ?)", (2, None, None)),
    ("INSERT INTO tree VALUES (?, ?)", ("root", "root")),
    ("INSERT INTO tree VALUES (?, ?)", ("leaf", "root")),
)


@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "written later"])
def test_tables_of_every_kind_come_through(
    adopted: bool, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            one, two = make(tmp_path / "one.db", *KINDS), tmp_path / "two.db"
            async with Database(one) as db:
                if not adopted:
                    await db.track_all()
                    await sync_once(db, relay.url)
                for sql, parameters in WRITES:
                    await db.execute(sql, parameters)
                await db.track_all()
                await sync_once(db, relay.url)
            await sync_once(two, relay.url)
            for table in table_names(one):
                schema = f"PRAGMA table_xinfo({quoted(table)})"
                assert [row[1:4] + row[5:] for row in read(two, schema)] == [
                    row[1:4] + row[5:] for row in read(one, schema)
                ]
                kind = "SELECT wr, strict FROM pragma_table_list WHERE name = ?"
                assert read(two, kind, table) == read(one, kind, table)
            assert contents(two) == contents(one)
            known = [name for name in table_names(one) if name != "defaults"]
            for table in known:
                assert await postgres_rows(postgres_url, table) == contents(one)[table]
            # The new file has the constraints and defaults, too, and goes on counting.
            write(two, "INSERT INTO counted (v) VALUES ('second')")
            write(two, "INSERT INTO defaults (id) VALUES (3)")
            await sync_once(two, relay.url)
            await sync_once(one, relay.url)
            await assert_converged(postgres_url, one, two, tables=known)
            same = "SELECT a, b, c, d, e, f, h, i FROM defaults WHERE id = ?"
            assert read(one, same, 3) == read(one, same, 1)

    asyncio.run(scenario())
