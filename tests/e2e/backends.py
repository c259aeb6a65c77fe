"""A Postgres that a backend with plain SQL shares with two relays, and three clients at these."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import asyncpg

from reunite import Database
from reunite.driver import real_clock
from reunite.schema import quoted
from reunite_transport import Sync
from reunite_transport.client_session import Event, Received
from reunite_transport.relay.server import Relay
from tests.e2e.world import (
    QUICK,
    SECONDS_MAX,
    assert_quiet,
    contents,
    fetch,
    read,
    rejected,
    relay_on,
    settle,
    table_names,
    until,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
# Migrations are looked for as often as commits are.
LIMITS = replace(QUICK, migration_seconds=0.05)


@dataclass
class Client:
    """An app on a file, which comes and goes."""

    file: Path
    url: str
    db: Database
    events: list[Event] = field(default_factory=list)
    _connection: AsyncExitStack = field(default_factory=AsyncExitStack)
    _sync: Sync | None = None

    @property
    def sync(self) -> Sync:
        """The sync of now."""
        assert self._sync is not None, "this client is away"
        return self._sync

    @property
    def is_away(self) -> bool:
        """True while it is offline."""
        return self._sync is None

    async def connect(self) -> None:
        """Begin to sync."""
        sync = Sync(self.db, self.url, on_event=self.events.append)
        self._sync = await self._connection.enter_async_context(sync)

    async def leave(self) -> None:
        """Go offline."""
        await self._connection.aclose()
        self._sync = None

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Be offline for as long as the block lasts."""
        await self.leave()
        yield
        await self.connect()

    async def execute(self, sql: str, *parameters: object) -> None:
        """Write as the app does."""
        await self.db.execute(sql, parameters)

    def rows_received(self) -> int:
        """How many rows have come, whatever became of them."""
        return sum(event.rows for event in self.events if isinstance(event, Received))


@dataclass
class Shared:
    """All that use one Postgres. `rejections` are expected at the end, in all files."""

    url: str
    backend: Connection
    relays: list[Relay]
    clients: Sequence[Client]
    track_new: bool = True
    rejections: int = 0
    _lives: list[AsyncExitStack] = field(default_factory=list)

    async def start_relays(self) -> None:
        """Start both relays, where they were before if they ran."""
        ports = [relay.port for relay in self.relays] or [0, 0]
        self.relays = []
        for port in ports:
            life = AsyncExitStack()
            self._lives.append(life)
            self.relays.append(
                await life.enter_async_context(
                    relay_on(
                        self.url,
                        port=port,
                        track_all=True,
                        track_new=self.track_new,
                        limits=LIMITS,
                    )
                )
            )

    async def stop_relays(self) -> None:
        """Stop both relays."""
        while self._lives:
            await self._lives.pop().aclose()

    async def settle(self) -> None:
        """Let all who are there have what all, the backend too, have done."""
        await settle(*(client.sync for client in self.clients if not client.is_away))

    def everywhere(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query, which are the same in every file."""
        first, *others = [read(client.file, sql) for client in self.clients]
        for other, client in zip(others, self.clients[1:], strict=True):
            assert other == first, f"{client.file.name} differs"
        return first

    async def until_all_have(self, table: str, column: str = "%") -> None:
        """Wait until a table that a backend made, or a column of it, is at every client."""
        sql = "SELECT 1 FROM pragma_table_info(?) WHERE name LIKE ?"
        for client in self.clients:
            await until(
                lambda file=client.file: read(file, sql, table, column) != [],  # type: ignore[misc]
                f"{client.file.name} has {table}.{column}",
            )

    async def in_postgres(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query to Postgres."""
        return [tuple(row) for row in await self.backend.fetch(sql)]


@asynccontextmanager
async def shared(
    postgres_url: str,
    folder: Path,
    *statements: str,
    clock: Callable[[], int] = real_clock,
    backend_url: str | None = None,
    track_new: bool = True,
) -> AsyncIterator[Shared]:
    """Run statements as a backend, which may connect as another role than the relays, start two
    relays that track all tables, and let three empty files load them: the first and the third at
    one relay, the second at the other. The first has the `clock`. With `track_new` tables that are
    made later join, too.

    At the end all files, Postgres and the documents have to hold the same.
    """
    async with AsyncExitStack() as stack:
        backend: Connection = await asyncpg.connect(backend_url or postgres_url)
        stack.push_async_callback(backend.close)
        for statement in statements:
            await backend.execute(statement)
        here = Shared(postgres_url, backend, [], (), track_new)
        await here.start_relays()
        stack.push_async_callback(here.stop_relays)
        async with AsyncExitStack() as open_files:
            clients = []
            for place, name in enumerate(("first", "second", "third")):
                db = Database(folder / f"{name}.db", clock=real_clock if place else clock)
                await open_files.enter_async_context(db)
                clients.append(Client(db.path, here.relays[place % 2].url, db))
                open_files.push_async_callback(clients[-1].leave)
                await clients[-1].connect()
            here.clients = clients
            await here.settle()
            yield here
            await here.settle()
        files = [client.file for client in here.clients]
        await assert_files_equal_postgres(postgres_url, *files)
        await assert_quiet(postgres_url, *files, rejections=here.rejections)


async def assert_files_equal_postgres(postgres_url: str, *files: Path) -> None:
    """All tables of the files hold the same rows, and so do those of Postgres."""
    first, *others = files
    for other in others:
        assert contents(other) == contents(first), f"{other.name} differs from {first.name}"
    for table in table_names(first):
        columns = [row[1] for row in read(first, f"PRAGMA table_info({quoted(table)})")]
        kinds, rows = await rows_in_postgres(postgres_url, table, columns)
        listed = ", ".join(map(quoted, columns))
        found = [
            tuple(canonical(value, kind) for value, kind in zip(row, kinds, strict=True))
            for row in read(first, f"SELECT {listed} FROM {quoted(table)}")
        ]
        assert sorted(found, key=repr) == rows, (table, sorted(found, key=repr), rows)


async def rows_in_postgres(
    postgres_url: str, table: str, columns: Sequence[str]
) -> tuple[list[str], list[tuple[object, ...]]]:
    """The types of these columns, and all rows in an order of their own."""
    connection: Connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("SET TimeZone = 'UTC'")
        listed = ", ".join(map(quoted, columns))
        attributes = (
            await connection.prepare(f"SELECT {listed} FROM {quoted(table)}")
        ).get_attributes()
        kinds = [
            "json" if attribute.type.kind == "array" else attribute.type.name
            for attribute in attributes
        ]
        parts = [
            _READ.get(attribute.type.kind, _READ.get(kind, "{}")).format(quoted(name))
            for name, kind, attribute in zip(columns, kinds, attributes, strict=True)
        ]
        rows = [
            tuple(canonical(value, kind) for value, kind in zip(row.values(), kinds, strict=True))
            for row in await connection.fetch(f"SELECT {', '.join(parts)} FROM {quoted(table)}")
        ]
    finally:
        await connection.close()
    return kinds, sorted(rows, key=repr)


# What the driver does not give as a file has it.
_READ = {"array": "to_json({})::text", "interval": "{}::text"}


def canonical(value: Any, kind: str) -> object:
    """A value of a file, or of Postgres, as all write it; `kind` is Postgres's type."""
    if value is None:
        return None
    if kind in ("json", "jsonb"):
        # A column that SQLite knows as one of JSON holds a lone number as a number.
        return "json", json.dumps(json.loads(str(value), parse_float=Decimal), default=str)
    return _CANONICAL.get(kind, str)(value)


def _moment(kind: type[datetime] | type[date] | type[time], value: Any) -> object:
    return kind.fromisoformat(value) if isinstance(value, str) else value


def _instant(value: str | datetime) -> datetime:
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _number(value: object) -> object:
    """SQLite keeps what has more than 15 digits as a double."""
    number = Decimal(str(value)).normalize()
    return number if len(number.as_tuple().digits) <= 15 else float(number)


def _single(value: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


_CANONICAL: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys(("bool", "int2", "int4", "int8"), int),
    "float4": _single,
    "float8": float,
    "numeric": _number,
    "bytea": bytes,
    "date": lambda value: _moment(date, value),
    "time": lambda value: _moment(time, value),
    "timestamp": lambda value: _moment(datetime, value),
    "timestamptz": _instant,
}


async def health(relay: Relay) -> dict[str, Any]:
    """What a relay says of itself."""
    address = f"http://{relay.host}:{relay.port}/health"
    async with aiohttp.ClientSession() as http, http.get(address) as answer:
        said: dict[str, Any] = await answer.json()
        return said


async def until_told(relay: Relay, table: str | None) -> str:
    """Wait until a relay tells of a table, and return what; None: until all are in order."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            tables: dict[str, str] = (await health(relay))["tables"]
            if table in tables or (table is None and not tables):
                return tables.get(table or "", "")
            await asyncio.sleep(0.01)


async def until_rejected(client: Client) -> tuple[Any, ...]:
    """Wait for what is given up first."""
    async with asyncio.timeout(SECONDS_MAX):
        while not rejected(client.file):  # noqa: ASYNC110 - a file has no event to wait for
            await asyncio.sleep(0.01)
    return rejected(client.file)[0]


async def captured(postgres_url: str) -> int:
    """How many writes of backends no commit has folded."""
    ((count,),) = await fetch(postgres_url, "SELECT count(*) FROM _reunite_captured")
    return int(count)
