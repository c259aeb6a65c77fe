"""The relay's store on Postgres: one realm in one schema. See `store` for the contract.

Whoever needs the head's lock uses one connection of its own, taking turns within the process, so
that no call that holds the lock ever waits for a pooled connection. Reads use a small pool.

A network may swallow all and say nothing, so every statement has a time after which its connection
is given up and replaced. What a caller that goes away began on the head's connection is finished
first: in the middle of a statement, only giving up the connection would stop it.

Nothing is set for a session: every setting is SET LOCAL, so a pooler in between does no harm.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, Final, TypeVar

import asyncpg

from reunite.errors import FormatError, TableError
from reunite.overwritten import Loss
from reunite.schema import Table, quoted
from reunite_transport.messages import Verdict
from reunite_transport.relay.history import compared
from reunite_transport.relay.memory import Memory
from reunite_transport.relay.postgres_adopt import (
    capture_all,
    catalog_mark,
    follow,
    log_uncaptured,
    take_in,
)
from reunite_transport.relay.postgres_bookkeeping import (
    Connection,
    OwnTables,
    Pool,
    Reader,
    bootstrap,
    new_replica_id,
)
from reunite_transport.relay.postgres_capture import RELAY_SETTING
from reunite_transport.relay.postgres_columns import read_column_sql
from reunite_transport.relay.postgres_domains import make_domains
from reunite_transport.relay.postgres_errors import (
    CONNECTION_ERRORS,
    ConnectionLost,
    translated,
)
from reunite_transport.relay.postgres_reading import KEPT, LOOK, LOSSES, PAGE, section
from reunite_transport.relay.postgres_registry import create as create_growth
from reunite_transport.relay.postgres_registry import highest_id, read_registry
from reunite_transport.relay.postgres_rows import RowWriter
from reunite_transport.relay.postgres_sequences import read_sequences
from reunite_transport.relay.postgres_transaction import STATEMENT_MS_MAX, PostgresTransaction
from reunite_transport.relay.registry import Registered, grow, ordered
from reunite_transport.relay.store import (
    FeedPage,
    Greeting,
    Look,
    RowId,
    StoreError,
    WentBack,
)

# Under the head a lock is waited for this long only: everybody else waits behind it.
LOCK_WAIT_MS: Final = 30
# Altering a table waits for its readers and blocks new ones meanwhile.
ALTER_WAIT_MS: Final = 2_000
# A server that is there has ended the statement before: this one is for a network that is not.
HEAD_SECONDS_MAX: Final = STATEMENT_MS_MAX / 1_000 + 10
# Reads are of one page, one row, or a count that ends early.
READ_SECONDS_MAX: Final = 10.0
# For a connection to be made, or to be taken leave of.
CONNECT_SECONDS_MAX: Final = 10.0
# A relay that stopped in the middle of a commit must not hold the head for ever.
IDLE_MS_MAX: Final = 30_000
# Pages are read by a few connections at a time; more would only share the same disk.
POOL_MAX: Final = 4

_log = logging.getLogger(__name__)

_TABLE_BYTES: Final = 4
_COUNTED_ROWS_MAX: Final = 1_000_000
_LAST_TABLE: Final = (1 << 31) - 1
_T = TypeVar("_T")
_NOW_MS: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"


async def open_postgres(url: str, *, schema: str = "public") -> "PostgresStore":
    """Open the realm in a schema of a Postgres database, making it where it is missing.

    Raises StoreError when the database cannot be reached or was written by a newer reunite.
    """
    with translated():
        pool = await asyncpg.create_pool(
            url,
            # A pool with a floor logs at length that it cannot keep it while Postgres is away.
            min_size=0,
            max_size=POOL_MAX,
            # A plan cached while a table was empty scans it for ever.
            statement_cache_size=0,
            reset=_keep,
            command_timeout=READ_SECONDS_MAX,
            timeout=CONNECT_SECONDS_MAX,
        )
    try:
        connection = await _connect(url)
        try:
            realm = await bootstrap(connection, schema)
            await _offer_domains(connection)
            await capture_all(connection, schema, ALTER_WAIT_MS)
        except BaseException:
            connection.terminate()
            raise
    except BaseException:
        pool.terminate()
        raise
    return PostgresStore(url, schema, realm, pool, connection)


class _Unfinished(Exception):
    """A commit's block ended without `finish`: nothing of it is kept."""


class PostgresStore:
    """A realm on Postgres; made by `open_postgres`."""

    def __init__(
        self,
        url: str,
        schema: str,
        realm: bytes,
        pool: Pool,
        connection: Connection,
    ) -> None:
        self.realm = realm
        self.replica = new_replica_id()
        self._url = url
        self._schema = schema
        self._own = OwnTables(schema)
        self._pool = pool
        self._connection = connection
        self._turn = asyncio.Lock()
        self._memory = Memory(RowWriter(schema, ()))
        # What was looked at when migrations were followed last, and what was found.
        self._catalog: str | None = None
        self._troubles: Mapping[str, str] = {}
        schema_setting = quoted(schema).replace("'", "''")
        self._begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
            " SET LOCAL plan_cache_mode = force_custom_plan;"
            f" SET LOCAL statement_timeout = {STATEMENT_MS_MAX};"
            f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_MS_MAX};"
            " SET LOCAL lock_timeout = 0;"
            " SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD';"
            " SET LOCAL IntervalStyle = 'postgres'; SET LOCAL bytea_output = 'hex';"
            " SET LOCAL extra_float_digits = 1; SET LOCAL row_security = off;"
            f" SET LOCAL {RELAY_SETTING} = 'on';"
            f" SELECT pg_catalog.set_config('search_path', '{schema_setting}, public', true)"
        )

    async def registry(self) -> tuple[Table, ...]:
        """All tables, numbered, parents before children; read again only when it has grown."""
        memory = self._memory
        # One snapshot, or the tables could be of another history than the head.
        async with (
            self._reading() as reader,
            reader.transaction(isolation="repeatable_read", readonly=True),
        ):
            head = await self._head(reader, memory)
            if head["registry"] != memory.registry:
                registered = await read_registry(reader, self._own)
                memory.read(head["registry"], await self._writer(reader, registered))
        return memory.writer.tables

    async def describe(self, tables: Sequence[Table], *, create: bool) -> tuple[Table, ...]:
        """Register and create what is new; see the contract. Kept cells of a column that was
        unknown so far are not written to the table until their rows are edited."""
        memory = self._memory
        async with self._reading() as reader:
            known = await read_registry(reader, self._own)
        growth = grow(known, tables)
        if not growth.registered:
            return await self.registry()
        if not create:
            raise TableError(
                growth.registered[0].table.name,
                "is not in the realm, or lacks columns there, and this relay creates none",
            )
        async with self._turn:
            return await _to_its_end(self._grow(memory, tables))

    async def _grow(self, memory: Memory[RowWriter], tables: Sequence[Table]) -> tuple[Table, ...]:
        async with self._locked(memory, ALTER_WAIT_MS) as (connection, head):
            with translated():
                known = await read_registry(connection, self._own)
                highest = await highest_id(connection, self._own)
                growth = grow(known, tables, highest_id=highest)
                await create_growth(connection, self._own, known, growth)
                await connection.execute(f"UPDATE {self._own.head} SET registry = registry + 1")
                by_id = {entry.table.id: entry for entry in (*known, *growth.registered)}
                writer = await self._writer(connection, list(by_id.values()))
        memory.read(head["registry"] + 1, writer)
        return memory.writer.tables

    async def track(self, names: Sequence[str] | None) -> tuple[TableError, ...]:
        """Take tables that are in the schema into the realm, by name or (None) all that can be, and
        return why others cannot. Their rows are captured, and folded by the next commit. Raises
        TableError for a named table that cannot be taken, Busy when one is in use for too long."""
        memory = self._memory
        async with self._turn:
            return await _to_its_end(self._track(memory, names))

    async def _track(
        self, memory: Memory[RowWriter], names: Sequence[str] | None
    ) -> tuple[TableError, ...]:
        async with self._locked(memory, ALTER_WAIT_MS) as (connection, _):
            with translated():
                growth, refused = await take_in(connection, self._own, names)
                if growth.registered:
                    await connection.execute(f"UPDATE {self._own.head} SET registry = registry + 1")
        return refused

    async def follow(self, *, track_new: bool) -> Mapping[str, str]:
        """Notice what migrations did to the realm's tables; see the contract."""
        memory = self._memory
        async with self._reading() as reader:
            if await catalog_mark(reader, self._schema) == self._catalog:
                return self._troubles
        async with self._turn:
            return await _to_its_end(self._follow(memory, track_new=track_new))

    async def _follow(self, memory: Memory[RowWriter], *, track_new: bool) -> Mapping[str, str]:
        async with self._locked(memory, LOCK_WAIT_MS) as (connection, head):
            with translated():
                found = await follow(connection, self._own, track_new=track_new)
                if found.grew:
                    await connection.execute(f"UPDATE {self._own.head} SET registry = registry + 1")
                mark = await catalog_mark(connection, self._schema)
                writer = await self._writer(connection, found.registered)
        for table in found.uncaptured:
            log_uncaptured(table)
        memory.refresh(head["registry"] + found.grew, writer)
        self._catalog, self._troubles = mark, found.troubles
        return found.troubles

    async def greet(
        self, replica: int, acknowledged: int, nonces: Sequence[bytes], seq: int, token: bytes
    ) -> Greeting:
        """Raise the replica's term and compare histories; see the contract."""
        memory = self._memory
        async with self._turn:
            greeting = await _to_its_end(
                self._greet(memory, replica, acknowledged, nonces, seq=seq, token=token)
            )
        async with self._reading() as reader:
            # Only a first load is long; counting ends where a progress bar would stop to matter.
            rows = await reader.fetchval(
                f"SELECT count(*) FROM (SELECT FROM {self._own.documents} WHERE seq > $1 LIMIT $2)"
                " AS d",
                seq,
                _COUNTED_ROWS_MAX,
            )
        return replace(greeting, rows=rows)

    async def _greet(
        self,
        memory: Memory[RowWriter],
        replica: int,
        acknowledged: int,
        nonces: Sequence[bytes],
        *,
        seq: int,
        token: bytes,
    ) -> Greeting:
        own = self._own
        async with self._locked(memory, LOCK_WAIT_MS) as (connection, head):
            with translated():
                known_commit = seq == 0 or await connection.fetchval(
                    f"SELECT true FROM {own.commits} WHERE seq >= $1 AND token = $2", seq, token
                )
                last = await connection.fetchval(
                    f"SELECT last FROM {own.replicas} WHERE replica = $1", replica
                )
                if not known_commit or acknowledged > (last or 0):
                    return Greeting(0, Verdict.LOST, (), head["seq"], head["now_ms"], 0)
                accepted = await connection.fetch(
                    f"SELECT number, nonce, seq FROM {own.changesets}"
                    " WHERE replica = $1 AND number > $2 ORDER BY number",
                    replica,
                    acknowledged,
                )
                verdict, known = compared(
                    acknowledged,
                    last or 0,
                    nonces,
                    [(r["number"], r["nonce"], r["seq"]) for r in accepted],
                )
                # A copy of a file must not fence off the file that it was copied from.
                raised = 0 if verdict is Verdict.FORK else 1
                term = await connection.fetchval(
                    f"INSERT INTO {own.replicas} AS r (replica, term, last, seen_at)"
                    " VALUES ($1, 1, 0, clock_timestamp()) ON CONFLICT (replica) DO UPDATE"
                    " SET term = r.term + $2, seen_at = excluded.seen_at RETURNING term",
                    replica,
                    raised,
                )
        return Greeting(term, verdict, known, head["seq"], head["now_ms"], 0)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["PostgresTransaction"]:
        """Start a commit. When the connection is lost as the block ends, the commit may have
        happened: the numbers that the store holds then say so."""
        memory = self._memory
        with suppress(_Unfinished):
            async with self._turn, self._locked(memory, LOCK_WAIT_MS) as (connection, head):
                if head["registry"] != memory.registry:
                    with translated():
                        registered = await read_registry(connection, self._own)
                        writer = await self._writer(connection, registered)
                    memory.read(head["registry"], writer)
                transaction = PostgresTransaction(
                    connection,
                    self._own,
                    memory.writer,
                    relay=self.replica,
                    seq=head["seq"] + 1,
                    now_ms=head["now_ms"],
                )
                yield transaction
                if transaction.token is None:
                    raise _Unfinished
            memory.saw(transaction.seq, transaction.token)

    async def page(self, seq: int, within: bytes, *, rows_max: int, bytes_max: int) -> FeedPage:
        """The next rows of the feed. Raises FormatError for a `within` that is not of a page."""
        table, key = _LAST_TABLE, b""
        if within:
            if len(within) <= _TABLE_BYTES:
                raise FormatError("not a place in the feed")
            table, key = int.from_bytes(within[:_TABLE_BYTES], "big"), within[_TABLE_BYTES:]
            if table > _LAST_TABLE:
                raise FormatError("not a place in the feed")
        memory = self._memory
        async with self._reading() as reader:
            rows = await reader.fetch(
                PAGE.format(own=self._own),
                *(memory.seq, memory.token, memory.registry),
                *(seq, table, key, rows_max, bytes_max),
            )
        head = _checked(memory, rows[0] if rows else None)
        rows = [row for row in rows if row["tbl"] is not None]
        complete = not rows or len(rows) == rows[0]["found"]
        end = head["seq"] if complete else rows[-1]["row_seq"]
        sections = tuple(
            section(table_id, list(run)) for table_id, run in groupby(rows, lambda row: row["tbl"])
        )
        within = b""
        if not complete:
            within = rows[-1]["tbl"].to_bytes(_TABLE_BYTES, "big") + rows[-1]["key"]
        return FeedPage(sections, end, within, complete, bytes(head["token"]))

    async def losses(self, row: RowId) -> tuple[Loss, ...]:
        """What commits overwrote of a row, the newest first."""
        memory = self._memory
        async with self._reading() as reader:
            rows = await reader.fetch(
                LOSSES.format(own=self._own),
                *(memory.seq, memory.token, memory.registry),
                *(row.table, row.key),
            )
        _checked(memory, rows[0] if rows else None)
        return tuple(
            Loss(found["document"], found["replaced_by"])
            for found in rows
            if found["document"] is not None
        )

    def forget(self) -> None:
        """Remember nothing of the history so far; see the contract."""
        self._memory = Memory(RowWriter(self._schema, ()))
        self._catalog = None
        # What was written under the old id may be gone, and be offered back by clients.
        self.replica = new_replica_id()

    async def head(self) -> tuple[int, bytes]:
        """The last commit's (seq, token)."""
        memory = self._memory
        async with self._reading() as reader:
            head = await self._head(reader, memory)
        return head["seq"], bytes(head["token"])

    async def look(self) -> Look:
        """The last commit, and what waits to be folded."""
        memory = self._memory
        async with self._reading() as reader:
            found = await reader.fetchrow(
                LOOK.format(own=self._own), memory.seq, memory.token, memory.registry
            )
        head = _checked(memory, found)
        return Look(head["seq"], bytes(head["token"]), head["waiting"], head["lag"] or 0.0)

    async def close(self) -> None:
        """Let go of the database; a commit under way is finished first."""
        async with self._turn:
            try:
                async with asyncio.timeout(CONNECT_SECONDS_MAX):
                    await self._connection.close()
                    await self._pool.close()
            except (asyncpg.PostgresError, *CONNECTION_ERRORS):
                self._connection.terminate()
                self._pool.terminate()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Reader]:
        """A pooled connection. One whose statement ran out of time is given up: the pool would wait
        for its word on that, too."""
        with translated():
            connection = await self._pool.acquire()
            try:
                yield connection
            except (TimeoutError, asyncio.CancelledError):
                connection.terminate()
                raise
            finally:
                await self._pool.release(connection)

    async def _head(self, reader: Reader, memory: Memory[RowWriter]) -> asyncpg.Record:
        head = await reader.fetchrow(
            f"SELECT h.seq, h.token, h.registry, {KEPT.format(own=self._own)} AS kept"
            f" FROM {self._own.head} AS h",
            *(memory.seq, memory.token, memory.registry),
        )
        return _checked(memory, head)

    @asynccontextmanager
    async def _locked(
        self, memory: Memory[RowWriter], lock_wait_ms: int
    ) -> AsyncIterator[tuple[Connection, asyncpg.Record]]:
        """A transaction that holds the head, for whoever has the turn. The head itself is waited
        for as long as it takes: the relay that holds it is at work, and `lock_wait_ms` counts
        from then on."""
        assert self._turn.locked(), "the head's connection is used in turns"
        connection = await self._connected()
        try:
            with translated():
                await connection.execute(self._begin)
                await connection.fetchval(f"SELECT seq FROM {self._own.head} FOR UPDATE")
                # Read after the wait, which the head may have moved in.
                head = await connection.fetchrow(
                    f"SELECT h.seq, h.token, h.registry, {_NOW_MS} AS now_ms,"
                    f" {KEPT.format(own=self._own)} AS kept,"
                    " set_config('lock_timeout', $4, true)"
                    f" FROM {self._own.head} AS h",
                    *(memory.seq, memory.token, memory.registry),
                    str(lock_wait_ms),
                )
            yield connection, _checked(memory, head)
            with translated():
                await connection.execute("COMMIT")
        except BaseException as error:
            await _roll_back(connection, error)
            raise

    async def _connected(self) -> Connection:
        if self._connection.is_closed():
            self._connection = await _connect(self._url)
        return self._connection

    async def _writer(self, reader: Reader, registered: Sequence[Registered]) -> RowWriter:
        tables = ordered(registered)
        special, names = await read_column_sql(reader, self._schema, tables)
        sequences = await read_sequences(reader, self._schema, tables)
        return RowWriter(self._schema, tables, special, names, sequences)


def _checked(memory: Memory[RowWriter], head: asyncpg.Record | None) -> asyncpg.Record:
    """The head that a statement read, noted, if it is in the history that is remembered."""
    if head is None:
        raise StoreError("_reunite_head is empty; restore this schema")
    if not head["kept"]:
        raise WentBack
    memory.saw(head["seq"], bytes(head["token"]))
    return head


async def _connect(url: str) -> Connection:
    with translated():
        try:
            connection: Connection = await asyncpg.connect(
                url, timeout=CONNECT_SECONDS_MAX, command_timeout=HEAD_SECONDS_MAX
            )
        except asyncpg.InsufficientPrivilegeError as error:
            raise StoreError(
                f"Postgres lets the relay's role not connect: {error.message}; GRANT CONNECT ON"
                " DATABASE ... to that role"
            ) from error
        return connection


async def _offer_domains(connection: Connection) -> None:
    """Make the domains of merging columns where they are missing. What cannot be made now is asked
    for when a column needs it: most realms have none."""
    with translated(), suppress(asyncpg.PostgresError):
        async with connection.transaction(isolation="read_committed"):
            await connection.execute("SET TRANSACTION READ WRITE")
            await make_domains(connection)


async def _to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which goes on when the caller is cancelled, and the caller then waits
    for it; cancelled again, it ends the work."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # of interest to nobody any more
        raise


async def _roll_back(connection: Connection, error: BaseException) -> None:
    """Leave the connection clean, or dead: one that was interrupted in the middle of a statement
    may be in any state."""
    lost = isinstance(error, ConnectionLost) or not isinstance(error, Exception)
    if not lost and not connection.is_closed():
        with suppress(asyncpg.PostgresError, *CONNECTION_ERRORS):
            await connection.execute("ROLLBACK")
            return
    connection.terminate()


async def _keep(_connection: object) -> None:
    """Pooled connections are left as they were: nothing is ever set on them."""
