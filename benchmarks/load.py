"""Backends and clients write the same rows at once, and at the end all hold the same.

    .venv/bin/python -m benchmarks.load [--seconds 60] [--backends 8] [--clients 8] [--rows 1000]
        [--relays 1] [--backend-rate 50] [--client-rate 20] [--json]

Each transaction updates one to four rows, in the order of their keys: it adds to a counter, sets
registers, and now and then types a word into a text. Backends are plain connections to Postgres,
clients write to files of their own, relays, backends and clients are different processes. Clients
get what processor time the others leave, as they would be on other machines. When
all have stopped and have caught up, Postgres, the documents and all files are compared, and each
counter with the sum of what was added by transactions that returned.

A connection beside them looks every few milliseconds which backends wait for a lock of a relay,
also where they wait for a backend that waits for one. At the end the backends write once more
without relays and clients, with our triggers and without, to compare how long statements take.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg

from benchmarks.processes import RELAY_NAME, RelayProcess, relay_process
from reunite import Database
from reunite.columns import columns_of
from reunite.document import decode
from reunite.keys import unpack_key
from reunite.schema import from_wire
from reunite_transport import Sync
from reunite_transport.relay.embedded import embedded_postgres

TABLE: Final = (
    "CREATE TABLE item (id INTEGER PRIMARY KEY, hits COUNTER NOT NULL DEFAULT 0,"
    " status TEXT NOT NULL, price REAL, body CRDT_TEXT NOT NULL DEFAULT '')"
)
INSERT: Final = "INSERT INTO item (id, hits, status, price, body) VALUES (?, 0, 'new', ?, 'Text')"
COLUMNS: Final = "id, hits, status, price, body"
ROWS_OF_TRANSACTION: Final = 4
# Of so many updates one types a word, too.
TYPED_EVERY: Final = 10
BACKEND_NAME: Final = "backend"
SAMPLE_SECONDS: Final = 0.004
# What clients may take of a processor that others want, too.
CLIENT_NICE: Final = 10
# Reached only by what does not come to rest.
SETTLE_SECONDS_MAX: Final = 300.0
# Of the time of the load, the backends alone.
ALONE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Load:
    """How much is written, and for how long. A rate is of each, in transactions a second; 0 is as
    fast as it goes."""

    seconds: float = 60.0
    backends: int = 8
    clients: int = 8
    rows: int = 1_000
    relays: int = 1
    backend_rate: float = 50.0
    client_rate: float = 20.0


@dataclass(slots=True)
class Written:
    """What writers did: what was added to each counter, milliseconds of statements and of commits,
    why transactions failed, and how long who had written took to catch up."""

    added: Counter[int] = field(default_factory=Counter)
    transactions: int = 0
    statement_ms: list[float] = field(default_factory=list)
    commit_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    settle_seconds: float = 0.0

    def include(self, other: "Written") -> None:
        """Add what another did."""
        self.added.update(other.added)
        self.transactions += other.transactions
        self.statement_ms += other.statement_ms
        self.commit_ms += other.commit_ms
        self.failures.update(other.failures)
        self.settle_seconds = max(self.settle_seconds, other.settle_seconds)


class Edit(NamedTuple):
    """One row's part of a transaction; an empty word types nothing."""

    id: int
    add: int
    status: str
    price: float
    word: str


def transaction_of(chance: random.Random, rows: int) -> list[Edit]:
    """A transaction, in the order of keys, so that backends do not lock each other out."""
    ids = sorted(chance.sample(range(1, rows + 1), chance.randint(1, ROWS_OF_TRANSACTION)))
    return [
        Edit(
            id=number,
            add=chance.randint(-3, 9),
            status=chance.choice(("open", "paid", "sent", "lost")),
            price=chance.randrange(10_000) / 4,
            word="" if chance.randrange(TYPED_EVERY) else f" word{chance.randrange(100)}",
        )
        for number in ids
    ]


async def write_for(
    seconds: float, rate: float, chance: random.Random, write: Callable[[], Awaitable[None]]
) -> None:
    """Write for a while, at most so often a second, at moments of chance."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    due = loop.time()
    while loop.time() < end:
        await write()
        if rate:
            due = max(due + chance.expovariate(rate), loop.time() - 1.0)
            await asyncio.sleep(max(0.0, min(due, end) - loop.time()))


# Backends, in a process of their own.


def run_backends(postgres: str, load: Load, seconds: float, seed: str) -> Written:
    """Write to Postgres as backends do, for so long."""

    async def all_of_them() -> Written:
        total = Written()
        writing = (_backend(postgres, load, seconds, f"{seed} {n}") for n in range(load.backends))
        for written in await asyncio.gather(*writing):
            total.include(written)
        return total

    return asyncio.run(all_of_them())


async def _backend(postgres: str, load: Load, seconds: float, seed: str) -> Written:
    connection = await asyncpg.connect(
        postgres, server_settings={"application_name": BACKEND_NAME}, timeout=30
    )
    chance, written = random.Random(seed), Written()

    async def write() -> None:
        edits = transaction_of(chance, load.rows)
        try:
            await connection.execute("BEGIN")
            for edit in edits:
                typed = ", body = body || $5" if edit.word else ""
                start = time.perf_counter()
                await connection.execute(
                    f"UPDATE item SET hits = hits + $2, status = $3, price = $4{typed}"
                    " WHERE id = $1",
                    *(edit if edit.word else edit[:-1]),
                )
                written.statement_ms.append((time.perf_counter() - start) * 1_000)
            start = time.perf_counter()
            await connection.execute("COMMIT")
            written.commit_ms.append((time.perf_counter() - start) * 1_000)
        except asyncpg.PostgresError as error:
            written.failures[type(error).__name__] += 1
            await connection.execute("ROLLBACK")
            return
        _note(written, edits)

    try:
        await write_for(seconds, load.backend_rate, chance, write)
    finally:
        await connection.close()
    return written


def _note(written: Written, edits: Iterable[Edit]) -> None:
    for edit in edits:
        written.added[edit.id] += edit.add
    written.transactions += 1


# Clients, some in each process.


def run_clients(files: Mapping[str, str], load: Load, seconds: float, seed: str) -> Written:
    """Write to these files, each in sync with the relay of its address, for so long; then catch up
    with what is at the relay by then."""

    # Theirs are other machines than the relay's.
    os.nice(max(0, CLIENT_NICE - os.nice(0)))

    async def all_of_them() -> Written:
        total = Written()
        writing = (_client(name, url, load, seconds, seed) for name, url in files.items())
        for written in await asyncio.gather(*writing):
            total.include(written)
        return total

    return asyncio.run(all_of_them())


async def _client(file: str, url: str, load: Load, seconds: float, seed: str) -> Written:
    chance, written = random.Random(f"{seed} {file}"), Written()
    async with Database(file) as db, Sync(db, url) as sync:

        async def write() -> None:
            edits = transaction_of(chance, load.rows)
            async with db.transaction() as tx:
                for edit in edits:
                    start = time.perf_counter()
                    await tx.execute(
                        "UPDATE item SET hits = hits + ?, status = ?, price = ?,"
                        " body = body || ? WHERE id = ?",
                        (edit.add, edit.status, edit.price, edit.word, edit.id),
                    )
                    written.statement_ms.append((time.perf_counter() - start) * 1_000)
                start = time.perf_counter()
            written.commit_ms.append((time.perf_counter() - start) * 1_000)
            _note(written, edits)

        if seconds:
            await sync.caught_up(timeout=SETTLE_SECONDS_MAX)
            await write_for(seconds, load.client_rate, chance, write)
        start = time.perf_counter()
        await sync.caught_up(timeout=SETTLE_SECONDS_MAX)
        written.settle_seconds = time.perf_counter() - start
    return written


# Who waits for whom.

_WAITING: Final = """
SELECT a.pid, a.application_name AS name, pg_blocking_pids(a.pid) AS blockers,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    extract(epoch FROM l.waitstart)::float8 AS since
FROM pg_stat_activity AS a LEFT JOIN pg_locks AS l ON l.pid = a.pid AND NOT l.granted
WHERE a.wait_event_type = 'Lock'
"""


@dataclass(slots=True)
class Waits:
    """Spells in which a backend waited for a relay, in milliseconds: as long as it was seen to wait
    at least, and until the look at which it waited no more. `gap_ms` is the longest time between
    two looks."""

    at_least_ms: list[float] = field(default_factory=list)
    at_most_ms: list[float] = field(default_factory=list)
    looks: int = 0
    gap_ms: float = 0.0


async def watch_waits(postgres: str, until: asyncio.Event) -> Waits:
    """Look until told to stop."""
    connection = await asyncpg.connect(postgres)
    waits = Waits()
    # By the backend and the wait: (its beginning, when it was seen last).
    open_spells: dict[tuple[int, float | None], tuple[float, float]] = {}
    last: float | None = None
    try:
        relays = set[int]()
        while not until.is_set():
            if waits.looks % 250 == 0:
                relays = {
                    row["pid"]
                    for row in await connection.fetch(
                        "SELECT pid FROM pg_stat_activity WHERE application_name = $1", RELAY_NAME
                    )
                }
            rows = await connection.fetch(_WAITING)
            now = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
            if last is not None:
                waits.gap_ms = max(waits.gap_ms, (now - last) * 1_000)
            last, waits.looks = now, waits.looks + 1
            blocked = _blocked_by(relays, {row["pid"]: row["blockers"] for row in rows})
            seen = dict[tuple[int, float | None], tuple[float, float]]()
            for row in rows:
                if row["pid"] in blocked and row["name"] == BACKEND_NAME:
                    spell = row["pid"], row["since"]
                    # Behind another backend it may have waited before the relay was in the way.
                    direct = row["since"] is not None and not relays.isdisjoint(row["blockers"])
                    first = row["since"] if direct else row["now"]
                    began, _ = open_spells.get(spell, (first, 0.0))
                    seen[spell] = began, row["now"]
            for spell, (began, seen_at) in open_spells.items():
                if spell not in seen:
                    waits.at_least_ms.append((seen_at - began) * 1_000)
                    waits.at_most_ms.append((now - began) * 1_000)
            open_spells = seen
            await asyncio.sleep(SAMPLE_SECONDS)
    finally:
        await connection.close()
    return waits


def _blocked_by(relays: set[int], blockers: Mapping[int, Sequence[int]]) -> set[int]:
    """Who waits for one of these, or for somebody who does."""
    found = set(relays)
    while more := {pid for pid, by in blockers.items() if pid not in found and found & {*by}}:
        found |= more
    return found - relays


# All together.


@dataclass(slots=True)
class Report:
    """What was measured; `problems` are what should not be."""

    backends: Written
    clients: Written
    waits: Waits
    commits: int
    captured: Written | None = None
    plain: Written | None = None
    problems: list[str] = field(default_factory=list)


async def run(load: Load, folder: Path, *, alone: bool = True) -> Report:
    """Measure in a folder, which is empty. Without `alone` the backends do not write by themselves
    at the end."""
    context = multiprocessing.get_context("spawn")
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(embedded_postgres(folder / "postgres"))
        # Processes that are clients stay as nice as they are then.
        pool, others = (
            stack.enter_context(ProcessPoolExecutor(most, mp_context=context)) for most in (1, 2)
        )
        relays = AsyncExitStack()
        await stack.enter_async_context(relays)
        addresses = [
            await relays.enter_async_context(relay_process(postgres)) for _ in range(load.relays)
        ]
        files = await _begin(load, folder, addresses)
        report = await _together(load, postgres, files, pool, others)
        report.problems += await _compare(postgres, files, report)
        await relays.aclose()
        if alone:
            seconds, loop = load.seconds * ALONE, asyncio.get_running_loop()
            report.captured = await loop.run_in_executor(
                pool, run_backends, postgres, load, seconds, "captured"
            )
            await _value(postgres, "ALTER TABLE item DISABLE TRIGGER USER")
            report.plain = await loop.run_in_executor(
                pool, run_backends, postgres, load, seconds, "plain"
            )
        return report


async def _begin(load: Load, folder: Path, relays: Sequence[RelayProcess]) -> dict[str, str]:
    """The clients' files, with the rows, by the address of their relay."""
    names = [folder / f"client{number}.db" for number in range(load.clients)]
    async with Database(names[0]) as db:
        await db.execute(TABLE)
        await db.executemany(INSERT, [(number, 0.5) for number in range(1, load.rows + 1)])
        await db.track("item")
    files = {str(name): relays[at % len(relays)].url for at, name in enumerate(names)}
    for file, url in files.items():
        async with Database(file) as db, Sync(db, url) as sync:
            await sync.caught_up(timeout=SETTLE_SECONDS_MAX)
    return files


async def _together(
    load: Load,
    postgres: str,
    files: Mapping[str, str],
    pool: ProcessPoolExecutor,
    others: ProcessPoolExecutor,
) -> Report:
    loop = asyncio.get_running_loop()
    commits = "SELECT seq FROM _reunite_head"
    before = await _value(postgres, commits)
    stop = asyncio.Event()
    watching = asyncio.create_task(watch_waits(postgres, stop))
    halves = [dict(list(files.items())[at::2]) for at in range(2)]
    backends, *clients = await asyncio.gather(
        loop.run_in_executor(pool, run_backends, postgres, load, load.seconds, "load"),
        *(
            loop.run_in_executor(others, run_clients, half, load, load.seconds, "load")
            for half in halves
        ),
    )
    stop.set()
    waits = await watching
    # Once more, as some were still writing when others had caught up.
    await asyncio.gather(
        *(loop.run_in_executor(others, run_clients, half, load, 0.0, "settle") for half in halves)
    )
    total = Written()
    for written in clients:
        total.include(written)
    return Report(backends, total, waits, await _value(postgres, commits) - before)


async def _compare(postgres: str, files: Iterable[str], report: Report) -> list[str]:
    """What is not equal, in words."""
    connection = await asyncpg.connect(postgres)
    try:
        table = {
            row["id"]: tuple(row)
            for row in await connection.fetch(
                "SELECT id, hits::bigint, status, price, body::text FROM item"
            )
        }
        documents = await connection.fetch("SELECT key, document FROM _reunite_documents")
        description = await connection.fetchval("SELECT description FROM _reunite_tables")
        left = await connection.fetchval("SELECT count(*) FROM _reunite_captured")
    finally:
        await connection.close()
    problems = [f"{left} writes of backends are not folded"] if left else []
    problems += _differences("the documents", table, _shown(description, documents))
    for file in files:
        with closing(sqlite3.connect(file)) as conn:
            rows = conn.execute(f"SELECT {COLUMNS} FROM item").fetchall()
        problems += _differences(Path(file).name, table, {row[0]: row for row in rows})
        async with Database(file) as db:
            problems += [f"{Path(file).name}: {found}" for found in await db.verify()]
            problems += [f"{Path(file).name}: {tuple(row)}" for row in await db.rejected()]
    expected = Counter(report.backends.added)
    expected.update(report.clients.added)
    problems += [
        f"row {number}: the counter is {row[1]}, and {expected[number]} was added"
        for number, row in table.items()
        if row[1] != expected[number]
    ]
    return problems


def _shown(description: str, documents: Iterable[asyncpg.Record]) -> dict[int, tuple[Any, ...]]:
    """The rows that documents say."""
    columns = columns_of(from_wire(json.loads(description)).cells)
    shown = {}
    for row in documents:
        (key,) = unpack_key(row["key"])
        assert isinstance(key, int)
        document = decode(row["document"])
        if document.alive:
            shown[key] = (key, *columns.values(document))
    return shown


def _differences(
    name: str, expected: Mapping[int, tuple[Any, ...]], found: Mapping[int, tuple[Any, ...]]
) -> list[str]:
    return [
        f"{name}: {found.get(number)} for {expected.get(number)}"
        for number in sorted(expected.keys() | found.keys())
        if expected.get(number) != found.get(number)
    ]


async def _value(postgres: str, sql: str) -> Any:
    connection = await asyncpg.connect(postgres)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


# The report.


def figures(load: Load, report: Report) -> dict[str, float]:
    """All figures by name."""
    backends, clients, waits = report.backends, report.clients, report.waits
    found = {
        "backend transactions/s": backends.transactions / load.seconds,
        "client transactions/s": clients.transactions / load.seconds,
        "failed backend transactions": backends.failures.total(),
        "commits/s": report.commits / load.seconds,
        "settled after s": clients.settle_seconds,
        "backend waits for a relay": len(waits.at_least_ms),
        "  the longest, at least ms": max(waits.at_least_ms, default=0.0),
        "  the longest, at most ms": max(waits.at_most_ms, default=0.0),
        "  over 100 ms": sum(ms > 100 for ms in waits.at_least_ms),
        "looks for waits/s": waits.looks / load.seconds,
        "  the longest gap between two, ms": waits.gap_ms,
    }
    sides = {"beside relay and clients": backends, "captured": report.captured}
    for name, written in {**sides, "without triggers": report.plain}.items():
        if written is not None:
            for kind, times in (("update", written.statement_ms), ("COMMIT", written.commit_ms)):
                for part, ms in _spread(times).items():
                    found[f"{kind}, {name}: {part} ms"] = ms
    for part, ms in _spread(clients.commit_ms).items():
        found[f"client's commit: {part} ms"] = ms
    found["problems"] = len(report.problems)
    return found


def _spread(times: Sequence[float]) -> dict[str, float]:
    """Half, all but one in a hundred, and all took no longer."""
    ordered = sorted(times) or [0.0]
    last = len(ordered) - 1
    return {"50 %": ordered[last // 2], "99 %": ordered[last * 99 // 100], "max": ordered[last]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="of writing (default 60)")
    for name, default in (("backends", 8), ("clients", 8), ("rows", 1_000), ("relays", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default {default})")
    for name, rate in (("backend", 50.0), ("client", 20.0)):
        parser.add_argument(
            f"--{name}-rate",
            type=float,
            default=rate,
            help=f"transactions a second of each {name}, 0 without a limit (default {rate:g})",
        )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    load = Load(**options)
    with tempfile.TemporaryDirectory(prefix="reunite-load-") as folder:
        report = asyncio.run(run(load, Path(folder)))
    found = figures(load, report)
    if as_json:
        print(json.dumps({**found, "problems": report.problems}))
    else:
        for name, value in found.items():
            print(f"{name:<50} {value:>10.2f}")
        for problem in report.problems[:20]:
            print(problem)
    if report.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
