"""Measure what live queries and sessions cost beside raw SQLite.

    .venv/bin/python -m benchmarks.live [--watches 1000] [--rounds 20] [--json]

Each figure is a median over the rounds; what is told is compared with the table after the clock has
stopped. A *commit* is one UPDATE by key, and it takes as long whoever watches: that it is told is
measured from before the commit until the last who has to be told has the new rows.
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from reunite import Database, Watch

ROWS = 1_000
SCHEMA = (
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, count INTEGER NOT NULL)",
    "CREATE TABLE other (id INTEGER PRIMARY KEY, name TEXT NOT NULL)",
)
BY_KEY = "SELECT id, name, count FROM item WHERE id = ?"
PAGE = "SELECT id, name, count FROM item ORDER BY id LIMIT 100"
OTHER = "SELECT name FROM other WHERE id = ?"
ALL = "SELECT id, name, count FROM item ORDER BY id"


class Figure(NamedTuple):
    """One line of the report."""

    name: str
    value: float
    unit: str


async def median(rounds: int, work: Callable[[int], Awaitable[float]]) -> float:
    """The median of what `work` measures, in milliseconds."""
    return statistics.median([await work(number) for number in range(rounds)]) * 1000


async def told_by(watches: Sequence[Watch[Any]], commit: Callable[[], Awaitable[object]]) -> float:
    """Seconds from before a commit until each of these has been told."""
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await asyncio.sleep(0.05)
    started = time.perf_counter()
    await commit()
    await asyncio.gather(*waiting)
    return time.perf_counter() - started


async def commits_beside(
    db: Database, watches: Sequence[Watch[Any]], rounds: int
) -> tuple[float, float]:
    """Milliseconds that a commit of `item` takes while these wait, and seconds of the processor
    that it costs in all, in milliseconds."""
    for watch in watches:
        await anext(watch)
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await asyncio.sleep(0.05)
    took = []
    processor = time.process_time()
    for number in range(rounds):
        started = time.perf_counter()
        await db.execute("UPDATE item SET count = ? WHERE id = 1", (-number,))
        took.append(time.perf_counter() - started)
    # One that is told after all, or a commit that tells the sentinel, has seen them all.
    sentinel = db.watch("SELECT count FROM item WHERE id = 1")
    while (await anext(sentinel))[0][0] != 1 - rounds:
        pass
    processor = (time.process_time() - processor) / rounds
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting) if waiting else None
    return statistics.median(took) * 1000, processor * 1000


class Base(DeclarativeBase):
    """Models of the tables."""


class Item(Base):
    """A row of `item`."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    count: Mapped[int]


async def sessions(db: Database, raw: sqlite3.Connection, rounds: int) -> list[Figure]:
    """What a session costs beside raw SQLite and the database's own verbs."""
    # As safe as the others: a commit is synced to the disk when the log is checkpointed.
    raw.execute("PRAGMA synchronous = FULL")

    async def read(number: int) -> float:
        started = time.perf_counter()
        async with db.session() as session:
            item = await session.get(Item, number + 1)
        assert item is not None
        return time.perf_counter() - started

    async def fetch(number: int) -> float:
        started = time.perf_counter()
        await db.fetch_one(BY_KEY, (number + 1,))
        return time.perf_counter() - started

    async def select_raw(number: int) -> float:
        started = time.perf_counter()
        raw.execute(BY_KEY, (number + 1,)).fetchone()
        return time.perf_counter() - started

    async def write(number: int) -> float:
        started = time.perf_counter()
        async with db.session() as session, session.begin():
            session.add(Item(id=10_000 + number, name="new", count=0))
        return time.perf_counter() - started

    async def execute(number: int) -> float:
        started = time.perf_counter()
        await db.execute("INSERT INTO item VALUES (?, 'new', 0)", (20_000 + number,))
        return time.perf_counter() - started

    async def insert_raw(number: int) -> float:
        started = time.perf_counter()
        raw.execute("INSERT INTO item VALUES (?, 'new', 0)", (30_000 + number,))
        return time.perf_counter() - started

    works = {
        "raw SQLite reads a row": select_raw,
        "db.fetch_one reads it": fetch,
        "a session gets it": read,
        "raw SQLite inserts a row (and its trigger)": insert_raw,
        "db.execute inserts one": execute,
        "a session inserts one": write,
    }
    found = [Figure(name, await median(rounds, work), "ms") for name, work in works.items()]
    await db.execute("DELETE FROM item WHERE id >= 10000")
    return found


async def measure(watches: int, rounds: int) -> list[Figure]:
    """All figures."""
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="reunite-bench-") as folder:
        async with Database(Path(folder) / "live.db") as db:
            for statement in SCHEMA:
                await db.execute(statement)
            await db.track("item", "other")
            rows = [(n, f"item number {n}", 0) for n in range(1, ROWS + 1)]
            await db.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)

            raw = sqlite3.connect(db.path, isolation_level=None)
            for name, query in (("100 rows", PAGE), (f"{ROWS} rows", ALL)):

                async def fetch(_: int, query: str = query) -> float:
                    started = time.perf_counter()
                    raw.execute(query).fetchall()
                    return time.perf_counter() - started

                async def snapshot(number: int, query: str = query) -> float:
                    # Another query each time: one that was just watched is told what is known.
                    another = f"{query} -- {number}"
                    started = time.perf_counter()
                    await anext(db.watch(another))
                    return time.perf_counter() - started

                async def told(number: int, query: str = query) -> float:
                    watch = db.watch(query)
                    await anext(watch)
                    return await told_by(
                        [watch],
                        lambda: db.execute(
                            "UPDATE item SET count = ? WHERE id = 1", (number + 1_000_000,)
                        ),
                    )

                found += [
                    Figure(f"raw SQLite reads {name}", await median(rounds, fetch), "ms"),
                    Figure(f"a watch's first {name}", await median(rounds, snapshot), "ms"),
                    Figure(f"{name} told after a commit", await median(rounds, told), "ms"),
                ]

            async def by_another(number: int) -> float:
                watch = db.watch(PAGE)
                await anext(watch)

                async def commit() -> None:
                    raw.execute("UPDATE item SET count = ? WHERE id = 2", (number + 1,))

                return await told_by([watch], commit)

            found.append(
                Figure("told after another's commit", await median(rounds, by_another), "ms")
            )

            found += await sessions(db, raw, rounds)
            await db.execute("UPDATE item SET count = 0")
            kinds: dict[str, Callable[[int], Watch[Any]] | None] = {
                "nobody": None,
                f"{watches} equal": lambda _: db.watch(PAGE),
                f"{watches} by key": lambda n: db.watch(BY_KEY, (n + 1,)),
                f"{watches} of another table": lambda n: db.watch(OTHER, (n,)),
            }
            for name, made in kinds.items():
                some = [made(number) for number in range(watches)] if made else []
                wall, processor = await commits_beside(db, some, rounds)
                found += [
                    Figure(f"a commit, {name} watching", wall, "ms"),
                    Figure("  its processor time in all", processor, "ms"),
                ]
            shown = [tuple(row) for row in await anext(db.watch(ALL))]
            assert shown == raw.execute(ALL).fetchall(), "a watch tells what is there"
            raw.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what live queries and sessions cost.")
    parser.add_argument("--watches", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = asyncio.run(measure(given.watches, given.rounds))
    if given.json:
        print(json.dumps([figure._asdict() for figure in figures]))
        return
    for name, value, unit in figures:
        print(f"{name:<42} {value:>9.3f} {unit}")


if __name__ == "__main__":
    main()
