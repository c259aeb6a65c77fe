"""The demo: three replicas of a small music library drift apart and merge, on a relay of their own.

Owns its data and its script; needs nothing, and leaves nothing behind. Two of the three go
offline, all three edit the same rows and different ones, and then they meet again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reunite import Database
from reunite.cells.register import Value
from reunite_transport.relay.postgres_query import fetch_rows
from reunite_transport.relay.run import running_relay
from reunite_transport.sync import Sync

Line: TypeAlias = tuple[Value, ...]
Library: TypeAlias = Mapping[str, Sequence[Line]]


class Edit(NamedTuple):
    """Something that one of the three does, and how the demo says it."""

    who: str
    says: str
    sql: str


class Outcome(NamedTuple):
    """How the demo ended. `equal` is about every row on the three replicas and in Postgres;
    `rows` counts them by table, `differences` what `verify` found on the replicas."""

    equal: bool
    rows: dict[str, int]
    replicas: list[str]
    edits: int
    differences: int
    seconds: float


STUDIO, TRAIN, CABIN = REPLICAS = ("studio", "train", "cabin")

SCHEMA: Final = (
    "CREATE TABLE artist (id TEXT PRIMARY KEY, name TEXT NOT NULL)",
    "CREATE TABLE album (id TEXT PRIMARY KEY, artist TEXT NOT NULL REFERENCES artist (id),"
    " title TEXT NOT NULL, year INTEGER)",
    "CREATE TABLE track (id TEXT PRIMARY KEY, album TEXT NOT NULL REFERENCES album (id),"
    " title TEXT NOT NULL, stars INTEGER)",
)
ROWS: Final = (
    "INSERT INTO artist (id, name) VALUES ('a1', 'Mira Holt'), ('a2', 'The Lanterns')",
    "INSERT INTO album (id, artist, title, year) VALUES"
    " ('b1', 'a1', 'Salt Roads', 1999), ('b2', 'a2', 'Night Post', 2004)",
    "INSERT INTO track (id, album, title, stars) VALUES"
    " ('t1', 'b1', 'Ferry Song', 4), ('t2', 'b1', 'Low Water', 3), ('t3', 'b1', 'Grey Gulls', 2),"
    " ('t4', 'b2', 'Last Bus', 5), ('t5', 'b2', 'Interlude', 1)",
)
# In this order, each a little later than the one before.
EDITS: Final = (
    Edit(
        STUDIO,
        "gives Salt Roads another title",
        "UPDATE album SET title = 'Salt Road' WHERE id = 'b1'",
    ),
    Edit(
        TRAIN,
        "corrects the year of the same album",
        "UPDATE album SET year = 2001 WHERE id = 'b1'",
    ),
    Edit(CABIN, "gives Low Water 1 star", "UPDATE track SET stars = 1 WHERE id = 't2'"),
    Edit(TRAIN, "gives Low Water 5 stars, later", "UPDATE track SET stars = 5 WHERE id = 't2'"),
    Edit(CABIN, "deletes Interlude", "DELETE FROM track WHERE id = 't5'"),
    Edit(TRAIN, "gives Interlude 4 stars, later", "UPDATE track SET stars = 4 WHERE id = 't5'"),
    Edit(STUDIO, "deletes Grey Gulls", "DELETE FROM track WHERE id = 't3'"),
    Edit(
        TRAIN,
        "adds a track to Night Post",
        "INSERT INTO track (id, album, title, stars) VALUES ('t6', 'b2', 'Harbour', 3)",
    ),
    Edit(CABIN, "adds an artist", "INSERT INTO artist (id, name) VALUES ('a3', 'Oda Lind')"),
    Edit(
        CABIN,
        "adds an album of hers",
        "INSERT INTO album (id, artist, title, year) VALUES ('b3', 'a3', 'Thaw', 2020)",
    ),
    Edit(
        CABIN,
        "adds a track to it",
        "INSERT INTO track (id, album, title, stars) VALUES ('t7', 'b3', 'Meltwater', 5)",
    ),
)
RULES: Final = (
    "Salt Road   two columns of one row: both edits stay",
    "Low Water   one column: the later edit wins",
    "Interlude   edited after it was deleted: it lives, whole",
    "Grey Gulls  deleted, and edited by nobody: it is gone",
    "inserts     apart: everybody has them all",
)

QUERIES: Final = {
    "artist": "SELECT id, name FROM artist ORDER BY id",
    "album": "SELECT id, artist, title, year FROM album ORDER BY id",
    "track": "SELECT id, album, title, stars FROM track ORDER BY id",
}

# The scratch data of a demo may be lost with the machine.
POSTGRES_SETTINGS: Final = {"fsync": "off", "full_page_writes": "off"}
CATCH_UP_SECONDS: Final = 20.0
# Stamps count milliseconds: what is told as later is at least one later.
BETWEEN_EDITS_SECONDS: Final = 0.005
# Where there is no terminal that says how wide it is.
COLUMNS: Final = 100


async def play(console: Console | None) -> Outcome:
    """Play the demo, telling it on the console if there is one."""
    started = time.monotonic()
    if console is None:
        console = Console(quiet=True)
    if not console.is_terminal:
        console.width = COLUMNS
    with TemporaryDirectory(prefix="reunite-demo-") as folder:
        async with _three_replicas(Path(folder)) as (db_by_name, relay_url, postgres):
            outcome = await _play(console, db_by_name, relay_url, postgres)
    return outcome._replace(seconds=round(time.monotonic() - started, 2))


@asynccontextmanager
async def _three_replicas(
    folder: Path,
) -> AsyncIterator[tuple[dict[str, Database], str, str]]:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(
            running_relay(data=folder / "postgres", port=0, settings=POSTGRES_SETTINGS)
        )
        db_by_name = {
            name: await stack.enter_async_context(Database(folder / f"{name}.db"))
            for name in REPLICAS
        }
        yield db_by_name, relay.url, relay.postgres


async def _play(
    console: Console, db_by_name: Mapping[str, Database], relay_url: str, postgres: str
) -> Outcome:
    studio = db_by_name[STUDIO]
    for statement in (*SCHEMA, *ROWS):
        await studio.execute(statement)
    await studio.track_all()
    # The studio first: the others get their tables from it.
    await _meet(db_by_name, relay_url, REPLICAS)
    before = await _library_of(studio)
    _show(console, "Before: three SQLite files, one relay, all equal", db_by_name, {}, before)

    console.print(f"\n{TRAIN} and {CABIN} go offline, and everybody edits on:\n", style="bold")
    async with Sync(studio, relay_url) as online:
        for who, says, sql in EDITS:
            await asyncio.sleep(BETWEEN_EDITS_SECONDS)
            await db_by_name[who].execute(sql)
            console.print(Text.assemble((f"  {who:<7}", "bold"), says))
        await online.caught_up(CATCH_UP_SECONDS)
    apart = {name: await _library_of(db) for name, db in db_by_name.items()}
    _show(console, "\nApart: + new, ~ changed, - deleted", db_by_name, apart, before)

    await _meet(db_by_name, relay_url, (TRAIN, CABIN, STUDIO, TRAIN))
    merged = {name: await _library_of(db) for name, db in db_by_name.items()}
    merged["Postgres"] = {
        table: await fetch_rows(postgres, query) for table, query in QUERIES.items()
    }
    _show(console, "\nBack online: merged, and read from Postgres by SQL", merged, merged, before)
    differences = sum([len(await db.verify()) for db in db_by_name.values()])
    equal = all(library == merged["Postgres"] for library in merged.values()) and not differences
    console.print()
    for rule in RULES:
        console.print(f"  {rule}")
    console.print(
        "\nAll three and Postgres are equal." if equal else "\nThey are NOT equal: this is a bug.",
        style="bold green" if equal else "bold red",
    )
    rows = {table: len(lines) for table, lines in merged["Postgres"].items()}
    return Outcome(equal, rows, list(REPLICAS), len(EDITS), differences, 0.0)


async def _meet(db_by_name: Mapping[str, Database], relay_url: str, names: Iterable[str]) -> None:
    """Let replicas sync one after the other, each until it has all that the relay has."""
    for name in names:
        async with Sync(db_by_name[name], relay_url) as sync:
            await sync.caught_up(CATCH_UP_SECONDS)


async def _library_of(db: Database) -> Library:
    return {
        table: [tuple(row) for row in await db.fetch_all(query)] for table, query in QUERIES.items()
    }


# Showing: one outline a replica, side by side, a row of the library on the same line in each.


def _show(
    console: Console,
    title: str,
    names: Iterable[str],
    library_by_name: Mapping[str, Library],
    before: Library,
) -> None:
    """Print what each sees, and how it differs from `before`."""
    console.print(title, style="bold")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    was = _outline(before)
    outlines = [_outline(library_by_name.get(name, before)) for name in names]
    for place in sorted(set(was).union(*outlines)):
        table.add_row(*(_cell(place, was.get(place), lines.get(place)) for lines in outlines))
    console.print(table)


def _cell(place: tuple[str, ...], was: str | None, now: str | None) -> Text:
    indent = " " * len(place)
    if now is None:
        return Text() if was is None else Text(f"-{indent}{was}", style="red")
    if was is None:
        return Text(f"+{indent}{now}", style="green")
    if now != was:
        return Text(f"~{indent}{now}", style="yellow")
    return Text(f" {indent}{now}")


def _outline(library: Library) -> dict[tuple[str, ...], str]:
    """Lines by their place, (artist, album, track), which sorts children below parents."""
    lines: dict[tuple[str, ...], str] = {}
    place_of: dict[str, tuple[str, ...]] = {}
    for table in QUERIES:
        for key, *fields in library[table]:
            parent = () if table == "artist" else place_of.get(str(fields.pop(0)), ("?",))
            place = place_of[str(key)] = (*parent, str(key))
            lines[place] = " ".join(map(str, fields)) + ("*" if table == "track" else "")
    return lines
