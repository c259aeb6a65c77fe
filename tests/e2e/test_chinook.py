"""The Chinook sample goes through the relay into Postgres and into an empty file, whole."""

import asyncio
import shutil
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from reunite.schema import quoted
from tests.e2e.world import (
    assert_quiet,
    contents,
    exact,
    fetch,
    plain,
    postgres_rows,
    read,
    relay_on,
    rows_of,
    sync_once,
    table_names,
    track_and_sync,
)

ROWS = 15_607


def test_chinook_reaches_an_empty_file_and_postgres_whole(
    chinook: Path, tmp_path: Path, postgres_url: str
) -> None:
    original = tmp_path / "original.db"
    empty = tmp_path / "empty.db"
    shutil.copy(chinook, original)
    before = contents(original)

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            await track_and_sync(original, relay.url)
            await sync_once(empty, relay.url)
        assert contents(original) == before
        await assert_quiet(postgres_url, original, empty)
        for table in table_names(original):
            found = await postgres_rows(postgres_url, table)
            assert found == as_postgres(original, table), table

    asyncio.run(scenario())
    assert len(before) == 11
    assert sum(map(len, before.values())) == ROWS
    assert contents(empty) == before
    for table in table_names(original):
        assert declared(empty, table) == declared(original, table)
    with plain(empty) as conn:
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_postgres_has_chinook_in_its_own_types_with_its_foreign_keys(
    chinook: Path, tmp_path: Path, postgres_url: str
) -> None:
    file = tmp_path / "chinook.db"
    shutil.copy(chinook, file)

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            await track_and_sync(file, relay.url)
        columns = {
            (row["table_name"], row["column_name"]): row["type"]
            for row in await fetch(
                postgres_url,
                "SELECT c.table_name, c.column_name, format_type(a.atttypid, a.atttypmod) AS type"
                " FROM information_schema.columns AS c JOIN pg_attribute AS a"
                " ON a.attrelid = quote_ident(c.table_name)::regclass AND a.attname = c.column_name"
                " WHERE c.table_schema = 'public' AND c.table_name NOT LIKE E'\\\\_reunite%'",
            )
        }
        assert columns["Track", "TrackId"] == "bigint"
        assert columns["Track", "Name"] == "text"
        assert columns["Track", "UnitPrice"] == "numeric(10,2)"
        assert columns["Invoice", "InvoiceDate"] == "timestamp without time zone"
        assert set(columns.values()) == {
            "bigint",
            "text",
            "numeric(10,2)",
            "timestamp without time zone",
        }
        keys = await fetch(
            postgres_url,
            "SELECT conrelid::regclass::text AS child, confrelid::regclass::text AS parent,"
            " condeferrable AND convalidated AS sound FROM pg_constraint WHERE contype = 'f'",
        )
        assert all(key["sound"] for key in keys)
        assert {(key["child"], key["parent"]) for key in keys} == {
            (f'"{table}"', f'"{parent[2]}"')
            for table in table_names(file)
            for parent in read(file, f"PRAGMA foreign_key_list({quoted(table)})")
        }

    asyncio.run(scenario())


def declared(file: Path, table: str) -> object:
    """What SQLite says of a table: columns, foreign keys, and what its indexes are over."""
    columns = read(file, f"PRAGMA table_xinfo({quoted(table)})")
    keys = read(file, f"PRAGMA foreign_key_list({quoted(table)})")
    indexes = {
        (
            unique,
            origin,
            tuple(c for (c,) in read(file, "SELECT name FROM pragma_index_info(?)", i)),
        )
        for _, i, unique, origin, _ in read(file, f"PRAGMA index_list({quoted(table)})")
    }
    return columns, sorted(keys), indexes


def as_postgres(file: Path, table: str) -> list[tuple[object, ...]]:
    """The rows of a file as asyncpg would give them."""
    info = sorted(read(file, f"PRAGMA table_info({quoted(table)})"), key=lambda row: row[1])

    def convert(declared_type: str, value: object) -> object:
        if value is not None and declared_type == "DATETIME":
            return datetime.fromisoformat(str(value))
        if value is not None and declared_type.startswith("NUMERIC"):
            return Decimal(str(value)).quantize(Decimal("0.01"))
        return value

    columns = ", ".join(quoted(row[1]) for row in info)
    rows = read(file, f"SELECT {columns} FROM {quoted(table)}")
    converted = [
        tuple(exact(convert(row[2], value)) for row, value in zip(info, values, strict=True))
        for values in rows
    ]
    assert len(rows) == len(rows_of(file, table))
    return sorted(converted, key=repr)
