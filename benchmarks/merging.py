"""What an edit of a column that merges costs beside one of a register in the same table."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg

from reunite import Database
from reunite.cells.register import Value
from reunite_transport import Sync
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import serve

SINGLES: Final = 300

TABLE: Final = (
    "CREATE TABLE card (id INTEGER PRIMARY KEY, score INTEGER NOT NULL,"
    " likes COUNTER NOT NULL DEFAULT 0, body CRDT_TEXT NOT NULL, tags CRDT_SET_TEXT NOT NULL,"
    " meta CRDT_JSON_TEXT NOT NULL)"
)
INSERT: Final = "INSERT INTO card (id, score, likes, body, tags, meta) VALUES (?, ?, ?, ?, ?, ?)"
COLUMNS: Final = {
    "register": "score",
    "counter": "likes",
    "text": "body",
    "set": "tags",
    "json": "meta",
}
_TEXT: Final = (
    "Nothing is lost when two people write at once: what each of them did is merged,",
    "and both see the same text in the end, whoever was away and for how long that was;"
    " a word is typed in the middle.",
)


def value(kind: str, key: int, edits: int) -> Value:
    """What a row holds in the column of this kind after so many edits: each types a word, adds an
    element, or sets one number."""
    match kind:
        case "text":
            return " ".join((f"{key}:", _TEXT[0], *["again"] * edits, _TEXT[1]))
        case "set":
            elements = sorted(["a", "b", "c", *(f"d{number}" for number in range(edits))])
            return json.dumps(elements, separators=(",", ":"))
        case "json":
            found = {"author": {"id": key, "name": "Oda"}, "tags": ["a", "b"], "views": edits}
            return json.dumps(found, separators=(",", ":"))
        case _:
            return key + edits


def row(key: int, edits: int) -> tuple[Value, ...]:
    """A whole row after so many edits of each column."""
    return key, *(value(kind, key, edits) for kind in COLUMNS)


def update(kind: str) -> str:
    """The statement of an edit, with what comes of it and the key; a counter is counted up."""
    column = COLUMNS[kind]
    new = f"{column} + 1 + 0 * ?" if kind == "counter" else "?"
    return f"UPDATE card SET {column} = {new} WHERE id = ?"


async def local_round(folder: Path, count: int, number: int) -> dict[str, float]:
    """Seconds of one round of edits: of all rows in a transaction, and of some in one each."""
    kinds = list(COLUMNS)
    # Rows grow with each kind, so each comes first in some round.
    kinds = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]
    seconds: dict[str, float] = {}
    async with Database(folder / "merging.db") as db:
        await _fill(db, count)
        for kind in kinds:
            sql = update(kind)
            all_of_them = [(value(kind, key, 1), key) for key in range(1, count + 1)]
            start = time.perf_counter()
            await db.executemany(sql, all_of_them)
            seconds[f"{kind} bulk"] = (time.perf_counter() - start) / count
            some = [(value(kind, key, 2), key) for key in range(1, SINGLES + 1)]
            start = time.perf_counter()
            for parameters in some:
                await db.execute(sql, parameters)
            seconds[f"{kind} single"] = (time.perf_counter() - start) / SINGLES
        assert await db.verify() == []
        await _check(db, [row(key, 2 if key <= SINGLES else 1) for key in range(1, count + 1)])
    return seconds


async def push_round(folder: Path, url: str, count: int) -> dict[str, float]:
    """Rows a second from a transaction that edits all rows to its being in Postgres, by kind."""
    store = await open_postgres(url)
    relay = await serve(store)
    conn = await asyncpg.connect(url)
    rates: dict[str, float] = {}
    try:
        async with Database(folder / "pushed.db") as db:
            await _fill(db, count)
            async with Sync(db, relay.url) as sync:
                await sync.caught_up(timeout=300)
                for kind in COLUMNS:
                    all_of_them = [(value(kind, key, 1), key) for key in range(1, count + 1)]
                    start = time.perf_counter()
                    await db.executemany(update(kind), all_of_them)
                    await sync.caught_up(timeout=300)
                    rates[kind] = count / (time.perf_counter() - start)
            assert await db.verify() == []
        found = await conn.fetch(
            "SELECT id, score, likes, body, tags::text, meta::text FROM card ORDER BY id"
        )
        # Postgres writes JSON in a form of its own.
        assert [_meaning(tuple(each)) for each in found] == [
            _meaning(row(key, 1)) for key in range(1, count + 1)
        ]
    finally:
        await relay.close()
        await store.close()
        await conn.close()
    return rates


def _meaning(found: tuple[Any, ...]) -> tuple[object, ...]:
    *plain, tags, meta = found
    return *plain, json.loads(tags), json.loads(meta)


async def _fill(db: Database, count: int) -> None:
    await db.execute(TABLE)
    await db.track("card")
    await db.executemany(INSERT, [row(key, 0) for key in range(1, count + 1)])


async def _check(db: Database, expected: Sequence[tuple[Value, ...]]) -> None:
    names = ", ".join(COLUMNS.values())
    found = await db.fetch_all(f"SELECT id, {names} FROM card ORDER BY id")
    assert [tuple(found_row) for found_row in found] == expected
