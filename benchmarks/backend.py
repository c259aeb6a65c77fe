"""How soon clients have what a backend wrote: one row at a time, and all rows of a table at once.

    .venv/bin/python -m benchmarks.backend [--rows 100000] [--rounds 3] [--json]

Relays are processes of their own. A client lives in one, too, where its memory is measured. While
many rows are on their way a reader of the client's file looks how many of them it shows, another
client pushes one row at a time, and another backend writes one row at a time.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks.processes import peak_megabytes, relay_process
from reunite import Database
from reunite_transport import Sync
from reunite_transport.relay.embedded import embedded_postgres

TABLE: Final = (
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, count INTEGER NOT NULL,"
    " price REAL, note TEXT, at TEXT)"
)
OTHER: Final = "CREATE TABLE other (id INTEGER PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0)"
INSERT: Final = (
    "INSERT INTO item (id, name, count, price, note, at)"
    " SELECT i, 'item number ' || i, i % 100, i / 8.0, 'a note on ' || i, '2026-01-01 12:00:00'"
    " FROM generate_series(1, {rows}) AS i"
)
UPDATE: Final = "UPDATE item SET count = count + 1, note = 'changed'"
LIVE_EDITS: Final = 100
# At most so much, or so little.
GOALS_MOST: Final = {
    "backend live, one relay ms": 50.0,
    "backend live, two relays, first ms": 50.0,
    "backend live, two relays, second ms": 50.0,
    "relay, peak MB": 500.0,
}
GOALS_LEAST: Final = {"insert, folded rows/s": 15_000.0, "update, folded rows/s": 15_000.0}
SECONDS_MAX: Final = 600.0
# Between two small writes, and between two looks at what waits for them.
PAUSE_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.002


async def live_round(folder: Path, postgres: str) -> dict[str, float]:
    """Milliseconds from a backend's COMMIT of one row to its being in a client's file: with one
    relay, and with two of the same Postgres, of which either folds it, and a client at each."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(relay_process(postgres))
        first = await stack.enter_async_context(Database(folder / "first.db"))
        await first.execute(TABLE)
        await first.track("item")
        await first.execute("INSERT INTO item VALUES (1, 'only', 0, 0.0, '', '')")
        sync = await stack.enter_async_context(Sync(first, one.url))
        await sync.caught_up(timeout=SECONDS_MAX)
        backend = await asyncpg.connect(postgres)
        stack.push_async_callback(backend.close)
        alone = [(await _live_edit(backend, number, first))[0] for number in range(LIVE_EDITS)]

        two = await stack.enter_async_context(relay_process(postgres))
        second = await stack.enter_async_context(Database(folder / "second.db"))
        sync = await stack.enter_async_context(Sync(second, two.url))
        await sync.caught_up(timeout=SECONDS_MAX)
        both = [
            await _live_edit(backend, LIVE_EDITS + number, first, second)
            for number in range(LIVE_EDITS)
        ]
    medians = {
        "backend live, one relay ms": statistics.median(alone),
        "backend live, two relays, first ms": statistics.median(times[0] for times in both),
        "backend live, two relays, second ms": statistics.median(times[1] for times in both),
    }
    return {name: seconds * 1_000 for name, seconds in medians.items()}


async def _live_edit(backend: asyncpg.Connection, number: int, *readers: Database) -> list[float]:
    """Seconds until each of these clients shows what was just committed."""
    await backend.execute("UPDATE item SET count = $1 WHERE id = 1", number + 1)
    start = time.perf_counter()

    async def seen(db: Database) -> float:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                row = await db.fetch_one("SELECT count FROM item WHERE id = 1")
                if row is not None and row[0] == number + 1:
                    return time.perf_counter() - start
                await asyncio.sleep(0.0005)

    times = await asyncio.gather(*map(seen, readers))
    # Not in step with the relays' looks.
    await asyncio.sleep(0.005 + number % 20 / 1_000)
    return times


def run_client(file: str, url: str, end: str) -> float:
    """Keep a file in sync until a file named `end` is there; the most MB that this process had."""

    async def run() -> None:
        async with Database(file) as db, Sync(db, url) as sync:
            await sync.caught_up(timeout=SECONDS_MAX)
            while not os.path.exists(end):  # noqa: ASYNC110, ASYNC240 - it is another process's
                await asyncio.sleep(PAUSE_SECONDS)

    asyncio.run(run())
    # Linux counts kilobytes, macOS bytes.
    unit = 1e-6 if sys.platform == "darwin" else 1.024e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


async def bulk_round(folder: Path, postgres: str, rows: int) -> dict[str, float]:
    """A table is filled by one statement of a backend, and updated by another."""
    loop = asyncio.get_running_loop()
    file, end = folder / "reader.db", folder / "end"
    found: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(relay_process(postgres))
        small = await stack.enter_async_context(Database(folder / "small.db"))
        await small.execute(TABLE)
        await small.execute(OTHER)
        await small.execute("INSERT INTO other (id) VALUES (1), (2)")
        await small.track("item", "other")
        async with Sync(small, relay.url) as sync:
            await sync.caught_up(timeout=SECONDS_MAX)
        backend = await asyncpg.connect(postgres, command_timeout=SECONDS_MAX)
        stack.push_async_callback(backend.close)
        pool = stack.enter_context(
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        )
        client = loop.run_in_executor(pool, run_client, str(file), relay.url, str(end))
        try:
            await _until(lambda: _count(file, "note IS NULL"), 0, "the client")
            await _written(backend, file, "insert", INSERT.format(rows=rows), rows, found)
            committed, stop = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                pushes = group.create_task(_push(small, relay.url, postgres, stop))
                writes = group.create_task(_write(postgres, committed, stop))
                try:
                    await _written(backend, file, "update", UPDATE, rows, found, committed)
                finally:
                    committed.set()
                    stop.set()
        finally:
            end.touch()
        found["client, peak MB"] = await client
        found["relay, peak MB"] = peak_megabytes(relay.pid)
    found["another client's push, the slowest s"] = max(pushes.result())
    found["another backend's write, the slowest ms"] = max(writes.result()) * 1_000
    with closing(sqlite3.connect(file)) as conn:
        (wrong,) = conn.execute(
            "SELECT count(*) FROM item WHERE count <> id % 100 + 1 OR name <> 'item number ' || id"
        ).fetchone()
    assert wrong == 0, f"{wrong} rows differ"
    return found


async def _written(
    backend: asyncpg.Connection,
    file: Path,
    name: str,
    sql: str,
    rows: int,
    found: dict[str, float],
    has_committed: asyncio.Event | None = None,
) -> None:
    """Run a backend's statement, and note how long all took until it is in the documents, and in
    the client's file as one."""
    start = time.perf_counter()
    await backend.execute(sql)
    committed = time.perf_counter()
    if has_committed is not None:
        has_committed.set()
    found[f"{name}, the statement itself s"] = committed - start

    async def folded() -> None:
        left = "SELECT EXISTS (SELECT FROM _reunite_captured WHERE tbl = (SELECT id"
        left += " FROM _reunite_tables WHERE name = 'item'))"
        while await backend.fetchval(left):  # noqa: ASYNC110 - a table has no event
            await asyncio.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - committed
        found[f"{name}, folded rows/s"] = rows / seconds

    shown = "true" if name == "insert" else "note = 'changed'"
    seen = set[int | None]()
    folding = asyncio.create_task(folded())
    await _until(lambda: _count(file, shown), rows, name, seen)
    found[f"{name}, in the client's file after s"] = time.perf_counter() - committed
    await folding
    assert name == "insert" or seen <= {0, rows}, f"a reader saw a part: {seen}"


async def _until(
    look: Callable[[], int | None], wanted: int, what: str, seen: set[int | None] | None = None
) -> None:
    """Look until there are so many, and note what was seen meanwhile."""
    end = time.monotonic() + SECONDS_MAX
    while (count := await asyncio.to_thread(look)) != wanted:
        if seen is not None:
            seen.add(count)
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: {count} and not {wanted}")
        await asyncio.sleep(PAUSE_SECONDS)


def _count(file: Path, condition: str) -> int | None:
    """How many rows of the file's table are so; None while it is not there."""
    if not file.exists():
        return None
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as conn:
        try:
            (count,) = conn.execute(f"SELECT count(*) FROM item WHERE {condition}").fetchone()
        except sqlite3.OperationalError:
            return None
        return int(count)


async def _push(db: Database, url: str, postgres: str, stop: asyncio.Event) -> list[float]:
    """Write a row again and again; seconds until each is in Postgres."""
    seconds = []
    connection = await asyncpg.connect(postgres)
    try:
        async with Sync(db, url):
            number = 0
            while not stop.is_set():
                number += 1
                start = time.perf_counter()
                await db.execute("UPDATE other SET n = ? WHERE id = 1", (number,))
                sql = "SELECT n FROM other WHERE id = 1"
                while await connection.fetchval(sql) != number:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(LOOK_SECONDS)
                seconds.append(time.perf_counter() - start)
                await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await connection.close()
    return seconds


async def _write(postgres: str, committed: asyncio.Event, stop: asyncio.Event) -> list[float]:
    """Write a row of another table and one of the same again and again, once the large statement
    is committed; seconds of each."""
    seconds = [0.0]
    await committed.wait()
    connection = await asyncpg.connect(postgres)
    try:
        while not stop.is_set():
            for sql in (
                "UPDATE other SET n = n + 1 WHERE id = 2",
                "UPDATE item SET at = at WHERE id = 7",
            ):
                start = time.perf_counter()
                await connection.execute(sql)
                seconds.append(time.perf_counter() - start)
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await connection.close()
    return seconds


async def measure(rows: int, rounds: int) -> dict[str, list[float]]:
    """All figures by name, one of each round."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="reunite-backend-") as name:
            for number, measured in enumerate((live_round, bulk_round)):
                folder = Path(name) / str(number)
                os.mkdir(folder)
                async with embedded_postgres(folder / "postgres") as postgres:
                    if measured is live_round:
                        figures = await live_round(folder, postgres)
                    else:
                        figures = await bulk_round(folder, postgres, rows)
                for figure, value in figures.items():
                    found.setdefault(figure, []).append(value)
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000, help="of the table (default 100000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rows, options.rounds))
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'':<45} {'median':>10} {'least':>10} {'most':>10}")
    for name, values in found.items():
        middle = statistics.median(values)
        goal = ""
        if name in GOALS_MOST:
            goal = f"   goal: at most {GOALS_MOST[name]:g}"
            goal += "" if middle <= GOALS_MOST[name] else "   NOT MET"
        elif name in GOALS_LEAST:
            goal = f"   goal: at least {GOALS_LEAST[name]:g}"
            goal += "" if middle >= GOALS_LEAST[name] else "   NOT MET"
        print(f"{name:<45} {middle:>10.2f} {min(values):>10.2f} {max(values):>10.2f}{goal}")


if __name__ == "__main__":
    main()
