"""Measure what reunite costs beside raw SQLite and raw Postgres, and check what was measured.

    .venv/bin/python -m benchmarks.run [--rows 10000] [--rounds 5] [--json]

What backends write is measured by `benchmarks.backend` and, beside clients, by `benchmarks.load`,
live queries and sessions by `benchmarks.live`; `make bench` runs all but the load.

Local figures compare the best round of either side, which is what the code costs: what else a
machine does only adds to a time. Figures of sync are medians over the rounds. Results are verified
after the clock has stopped.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgpack

from benchmarks import merging
from reunite import Database
from reunite.cells.register import Value
from reunite.clock import NEVER, stamp
from reunite.document import Document, decode, encode, merge
from reunite_transport import Sync
from reunite_transport.relay.embedded import embedded_postgres
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import serve

TABLE = (
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, count INTEGER NOT NULL,"
    " price REAL, note TEXT, at TEXT)"
)
INSERT = "INSERT INTO item (id, name, count, price, note, at) VALUES (?, ?, ?, ?, ?, ?)"
UPDATE = "UPDATE item SET count = ?, note = ? WHERE id = ?"
SINGLE_ROWS = 300
LIVE_EDITS = 100
# An edit of a column that merges, over one of a register.
GOALS = {"counter": 1.5, "text": 10.0}


class Figure(NamedTuple):
    """One line of the report. `goal` is the issue's, "at most" unless `at_least`."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def rows_of(count: int) -> list[tuple[int, str, int, float, str, str]]:
    """Rows like an app's: an integer key and five columns of mixed types."""
    return [
        (i, f"item number {i}", i % 100, i / 8, f"a note on {i}", "2026-01-01 12:00:00")
        for i in range(1, count + 1)
    ]


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def documents() -> Iterator[Figure]:
    """Bytes and microseconds of one six-column row."""
    row: list[Value] = [12345, "For Those About To Rock", 1, 343719, "Angus Young", 0.99]
    first, second = (stamp(1_790_000_000_000 + i << 16, 1 << 62) for i in (0, 1))
    full = Document(first, first, NEVER, {i + 1 << 3: (first, v) for i, v in enumerate(row)})
    delta = Document(NEVER, second, NEVER, {8: (second, 54321)})
    plain = len(msgpack.packb(row))
    data = encode(full)
    merged = encode(merge(full, delta))
    assert decode(merged).cells[8][1] == 54321
    yield Figure("document: bytes over the row's msgpack", len(data) - plain, "B", 45)
    yield Figure("document: bytes for a further stamp", len(merged) - len(data), "B", 18)
    loops = 20_000

    def work() -> None:
        for _ in range(loops):
            encode(merge(decode(data), delta))

    best = min(timed(work) for _ in range(5)) / loops * 1e6
    yield Figure("document: decode + merge + encode, one row", best, "us", 8)


def raw_file(path: Path) -> sqlite3.Connection:
    """A plain SQLite file in WAL with the table, as an app would have it without us."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'item'").fetchone():
        conn.execute(TABLE)
    return conn


def write_plain(conn: sqlite3.Connection, count: int) -> tuple[float, float, float]:
    """Seconds for: all rows inserted at once, all updated at once, some one row a transaction."""
    rows = rows_of(count)

    def inserts() -> None:
        conn.execute("BEGIN")
        conn.executemany(INSERT, rows)
        conn.execute("COMMIT")

    def updates() -> None:
        conn.execute("BEGIN")
        conn.executemany(UPDATE, [(row[2] + 1, "changed", row[0]) for row in rows])
        conn.execute("COMMIT")

    def singles() -> None:
        for index in range(SINGLE_ROWS):
            conn.execute(INSERT, (count + 1 + index, "single", 1, 0.5, "note", "at"))

    return timed(inserts), timed(updates), timed(singles)


async def local_round(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Seconds of one round of writes: raw, captured only, and through the engine."""
    raw = raw_file(folder / "raw.db")
    plain = write_plain(raw, count)
    expected = raw.execute("SELECT * FROM item ORDER BY id").fetchall()
    raw.close()

    async with Database(folder / "captured.db") as db:
        await db.execute(TABLE)
        await db.track("item")
    conn = raw_file(folder / "captured.db")
    captured = write_plain(conn, count)
    assert conn.execute("SELECT * FROM item ORDER BY id").fetchall() == expected
    conn.close()

    rows = rows_of(count)
    async with Database(folder / "folded.db") as db:
        await db.execute(TABLE)
        await db.track("item")
        start = time.perf_counter()
        await db.executemany(INSERT, rows)
        middle = time.perf_counter()
        await db.executemany(UPDATE, [(row[2] + 1, "changed", row[0]) for row in rows])
        after = time.perf_counter()
        for index in range(SINGLE_ROWS):
            await db.execute(INSERT, (count + 1 + index, "single", 1, 0.5, "note", "at"))
        folded = (middle - start, after - middle, time.perf_counter() - after)
        assert await db.verify() == []
        assert [tuple(r) for r in await db.fetch_all("SELECT * FROM item ORDER BY id")] == expected
    names = ("insert", "update", "single")
    sides = {"raw": plain, "capture": captured, "fold": folded}
    return {side: dict(zip(names, seconds, strict=True)) for side, seconds in sides.items()}


def ratios(rounds: list[dict[str, dict[str, float]]]) -> Iterator[tuple[str, float]]:
    """The best of capture and of fold over the best of raw, for each kind of write."""
    for side in ("capture", "fold"):
        for name in rounds[0][side]:
            yield (
                f"{side} {name}",
                min(r[side][name] for r in rounds) / min(r["raw"][name] for r in rounds),
            )


async def new_database(postgres: str, name: str) -> str:
    """The DSN of an empty database of this name."""
    conn = await asyncpg.connect(postgres)
    await conn.execute(f'CREATE DATABASE "{name}"')
    await conn.close()
    return postgres.replace("/postgres?", f"/{name}?")


async def sync_round(folder: Path, postgres: str, count: int) -> dict[str, float]:
    """One round of sync: a file into Postgres, into a new file, and live edits."""
    url = await new_database(postgres, f"bench_{folder.name}")
    conn = await asyncpg.connect(url)
    await conn.execute(
        "CREATE TABLE raw_item (id bigint PRIMARY KEY, name text NOT NULL, count bigint NOT NULL,"
        " price double precision, note text, at text)"
    )
    rows = rows_of(count)
    start = time.perf_counter()
    for at in range(0, count, 1_000):
        await conn.execute(
            "INSERT INTO raw_item SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[],"
            " $4::float8[], $5::text[], $6::text[])",
            *map(list, zip(*rows[at : at + 1_000], strict=True)),
        )
    raw_postgres = time.perf_counter() - start

    store = await open_postgres(url)
    relay = await serve(store)
    try:
        async with Database(folder / "a.db") as a:
            await a.execute(TABLE)
            await a.track("item")
            await a.executemany(INSERT, rows)
            start = time.perf_counter()
            async with Sync(a, relay.url) as sync_a:
                await sync_a.caught_up(timeout=300)
                push = time.perf_counter() - start
                assert await conn.fetchval("SELECT count(*) FROM item") == count
                async with Database(folder / "b.db") as b:
                    start = time.perf_counter()
                    async with Sync(b, relay.url) as sync_b:
                        await sync_b.caught_up(timeout=300)
                        load = time.perf_counter() - start
                        assert await b.verify() == []
                        latencies = [await live_edit(a, b, i) for i in range(LIVE_EDITS)]
                updates = [(row[2] + 1, "changed", row[0]) for row in rows]
                await sync_a.caught_up(timeout=300)
                start = time.perf_counter()
                await a.executemany(UPDATE, updates)
                await sync_a.caught_up(timeout=300)
                push_updates = time.perf_counter() - start
                changed = "SELECT count(*) FROM item WHERE note = 'changed'"
                assert await conn.fetchval(changed) == count
                raw = raw_file(folder / "raw_load.db")
                raw_load, _, _ = write_plain(raw, count)
                raw.close()
    finally:
        await relay.close()
        await store.close()
        await conn.close()
    return {
        "push rows/s": count / push,
        "push / raw Postgres": push / raw_postgres,
        "push updates rows/s": count / push_updates,
        "load rows/s": count / load,
        "load / raw SQLite": load / raw_load,
        "live ms": statistics.median(latencies) * 1000,
    }


async def live_edit(a: Database, b: Database, number: int) -> float:
    """Seconds from a write on one client to its being readable on another."""
    seen = asyncio.Event()
    stop = b.on_change(seen.set)
    start = time.perf_counter()
    await a.execute("UPDATE item SET note = ? WHERE id = 1", (f"live {number}",))
    async with asyncio.timeout(30):
        while True:
            row = await b.fetch_one("SELECT note FROM item WHERE id = 1")
            if row is not None and row[0] == f"live {number}":
                break
            await asyncio.sleep(0.0005)
    stop()
    return time.perf_counter() - start


def merging_figures(
    local: list[dict[str, float]], pushed: list[dict[str, float]]
) -> Iterator[Figure]:
    """What edits of columns that merge cost beside those of a register in the same table."""
    for name in local[0]:
        kind, _, how = name.partition(" ")
        best = min(seconds[name] for seconds in local)
        if kind == "register":
            yield Figure(f"edit of a register, {how}", best * 1e6, "us")
        else:
            ratio = best / min(seconds[f"register {how}"] for seconds in local)
            yield Figure(f"edit of a {kind}, {how}, over a register", ratio, "x", GOALS.get(kind))
    for kind in pushed[0]:
        rate = statistics.median(rates[kind] for rates in pushed)
        yield Figure(f"push edits of a {kind}", rate, "rows/s")


async def measure(count: int, rounds: int) -> list[Figure]:
    """All figures."""
    figures = list(documents())
    local: list[dict[str, dict[str, float]]] = []
    synced: list[dict[str, float]] = []
    edited: list[dict[str, float]] = []
    pushed: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="reunite-bench-") as name:
        async with embedded_postgres(Path(name) / "postgres") as postgres:
            for number in range(rounds):
                folder = Path(name) / f"round{number}"
                os.mkdir(folder)
                local.append(await local_round(folder, count))
                synced.append(await sync_round(folder, postgres, count))
                edited.append(await merging.local_round(folder, count // 5, number))
                url = await new_database(postgres, f"merging_{folder.name}")
                pushed.append(await merging.push_round(folder, url, count // 5))
    goals = {
        "capture insert": 2.5,
        "capture update": 3.5,
        "capture single": 2.0,
        "fold insert": 10.0,
    }
    for key, ratio in ratios(local):
        figures.append(Figure(f"{key}, over raw SQLite", ratio, "x", goals.get(key)))
    at_least = {"push rows/s": 5_000.0, "load rows/s": 10_000.0}
    for key in synced[0]:
        value = statistics.median(r[key] for r in synced)
        unit = key.rsplit(" ", 1)[-1] if "/" not in key or "rows/s" in key else "x"
        goal = at_least.get(key, 20.0 if key == "live ms" else None)
        figures.append(Figure(key, value, unit, goal, key in at_least))
    figures += merging_figures(edited, pushed)
    return figures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000, help="rows a round (default 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.rows, options.rounds))
    if options.json:
        print(
            json.dumps(
                {f.name: {"value": f.value, "unit": f.unit, "goal": f.goal} for f in figures}
            )
        )
        return
    for figure in figures:
        goal = ""
        if figure.goal is not None:
            bound = "at least" if figure.at_least else "at most"
            goal = f"   goal: {bound} {figure.goal:g}" + ("" if figure.met else "   NOT MET")
        print(f"{figure.name:<45} {figure.value:>10.2f} {figure.unit:<7}{goal}")


if __name__ == "__main__":
    main()
