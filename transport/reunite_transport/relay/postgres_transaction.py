"""One commit in the making on Postgres: see `StoreTransaction`. Its store holds the head's lock."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from reunite.cells.register import Value
from reunite.overwritten import ROW_PLACES_MAX, Loss, newest
from reunite_transport.relay.postgres_bookkeeping import Connection, OwnTables
from reunite_transport.relay.postgres_capture import Captured
from reunite_transport.relay.postgres_errors import ConnectionLost, translated
from reunite_transport.relay.postgres_rows import RowWriter
from reunite_transport.relay.store import (
    Accepted,
    Busy,
    RowChange,
    RowId,
    Standing,
    Written,
)

_PART_ROWS: Final = 5_000
# A commit of the largest changeset takes seconds.
STATEMENT_MS_MAX: Final = 120_000
# Above this nobody should wait for a relay that itself waits for a row: whoever does waits for the
# rest of the commit, too.
_PATIENCE_MS: Final = 50

_FINISH: Final = """
WITH given AS (
    SELECT replica, number, nonce
    FROM unnest($4::bigint[], $5::bigint[], $6::bytea[]) AS g (replica, number, nonce)
), committed AS (
    INSERT INTO {own.commits} (seq, token, at, relay) VALUES ($1, $2, clock_timestamp(), $3)
), remembered AS (
    INSERT INTO {own.changesets} (replica, number, nonce, seq)
    SELECT replica, number, nonce, $1 FROM given
), advanced AS (
    UPDATE {own.replicas} AS r SET last = g.number, seen_at = clock_timestamp()
    FROM (SELECT replica, max(number) AS number FROM given GROUP BY replica) AS g
    WHERE r.replica = g.replica
)
UPDATE {own.head} SET seq = $1, token = $2
"""

# Each row's places go on where its history has got to, and what is ROW_PLACES_MAX behind goes.
_OVERWRITE: Final = f"""
WITH given AS (
    SELECT tbl, key, place, replaced_by, document
    FROM unnest($2::integer[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bytea[])
        AS g (tbl, key, place, replaced_by, document)
), touched AS (
    SELECT g.tbl, g.key, max(g.place) AS added, coalesce((
        SELECT h.place FROM {{own.history}} AS h
        WHERE h.tbl = g.tbl AND h.key = g.key ORDER BY h.place DESC LIMIT 1
    ), 0) AS reached
    FROM given AS g GROUP BY g.tbl, g.key
), ended AS (
    DELETE FROM {{own.history}} AS h USING touched AS t
    WHERE h.tbl = t.tbl AND h.key = t.key AND h.place <= t.reached + t.added - {ROW_PLACES_MAX}
)
INSERT INTO {{own.history}} (tbl, key, place, seq, replaced_by, document)
SELECT g.tbl, g.key, t.reached + g.place, $1, g.replaced_by, g.document
FROM given AS g JOIN touched AS t USING (tbl, key)
"""


class PostgresTransaction:
    """One commit in the making on Postgres; see `StoreTransaction`."""

    def __init__(
        self,
        connection: Connection,
        own: OwnTables,
        writer: RowWriter,
        *,
        relay: int,
        seq: int,
        now_ms: int,
    ) -> None:
        self.seq = seq
        self.now_ms = now_ms
        self.tables = writer.tables
        self._connection = connection
        self._own = own
        self._writer = writer
        # Of the commit, once it is finished.
        self.token: bytes | None = None
        self._relay = relay
        # Rows that were looked for and have no document: COPY takes them.
        self._absent: set[RowId] = set()
        self._captured = Captured(connection, own, writer.decoders)

    async def hold(self, rows: Sequence[RowId], *, patiently: bool = False) -> Collection[RowId]:
        """Lock rows against backends; see the contract."""
        if not patiently:
            return await self._writer.hold(self._connection, rows, patiently=False)
        with translated():
            # Of each lock and of all: others wait for the rows that are had already.
            await self._connection.execute(f"SET LOCAL statement_timeout = {_PATIENCE_MS}")
        held = await self._writer.hold(self._connection, rows, patiently=True)
        with translated():
            await self._connection.execute(f"SET LOCAL statement_timeout = {STATEMENT_MS_MAX}")
        return held

    async def captured(self) -> AsyncIterator[Sequence[Written]]:
        """What backends wrote, in parts; see the contract."""
        with translated():
            part = await self._captured.part() if await self._captured.look() else None
        while part is not None:
            yield part
            with translated():
                part = await self._captured.part()

    async def consequences(self) -> Sequence[Written]:
        """What triggers and foreign keys did; see the contract. A backend that has written since
        `captured` may have written what they wrote upon, so then it is Busy."""
        with translated():
            found = await self._captured.consequences()
            if found and await self._captured.has_other(found):
                raise Busy("a backend wrote to a row that a trigger or a foreign key changes, too")
        return found

    async def standings(self, replicas: Sequence[int]) -> Mapping[int, Standing]:
        """The known ones among these replicas."""
        with translated():
            rows = await self._connection.fetch(
                f"SELECT replica, term, last FROM {self._own.replicas}"
                " WHERE replica = ANY ($1::bigint[])",
                replicas,
            )
        return {row["replica"]: Standing(row["term"], row["last"]) for row in rows}

    async def accepted_nonces(self, nonces: Sequence[bytes]) -> Collection[bytes]:
        """Those of these nonces under which a changeset is in."""
        with translated():
            rows = await self._connection.fetch(
                f"SELECT nonce FROM {self._own.changesets} WHERE nonce = ANY ($1::bytea[])",
                nonces,
            )
        return {row["nonce"] for row in rows}

    async def documents(self, rows: Sequence[RowId]) -> Mapping[RowId, bytes]:
        """The documents of the rows that have one."""
        with translated():
            found = await self._connection.fetch(
                "SELECT d.tbl, d.key, d.document"
                " FROM unnest($1::integer[], $2::bytea[]) AS wanted (tbl, key)"
                f" JOIN {self._own.documents} AS d USING (tbl, key)",
                [row.table for row in rows],
                [row.key for row in rows],
            )
        documents = {RowId(table, key): document for table, key, document in found}
        self._absent.update(row for row in rows if row not in documents)
        return documents

    async def documents_of(self, table: int) -> AsyncIterator[Mapping[RowId, bytes]]:
        """All documents of a table, in parts."""
        last = b""
        while True:
            with translated():
                found = await self._connection.fetch(
                    f"SELECT key, document FROM {self._own.documents}"
                    " WHERE tbl = $1 AND key > $2 ORDER BY key LIMIT $3",
                    table,
                    last,
                    _PART_ROWS,
                )
            if not found:
                return
            yield {RowId(table, row["key"]): row["document"] for row in found}
            last = found[-1]["key"]

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Roll back what was written inside when the block raises, and only that."""
        with translated():
            await self._connection.execute("SAVEPOINT attempt")
        try:
            yield
        except ConnectionLost:
            raise  # with all that was written on it
        except Exception:
            with translated():
                await self._connection.execute("ROLLBACK TO attempt; RELEASE attempt")
            raise
        with translated():
            await self._connection.execute("RELEASE attempt")

    async def write_rows(self, changes: Sequence[RowChange]) -> Mapping[RowId, Mapping[int, Value]]:
        """Write the app's tables; see the contract."""
        return await self._writer.write(self._connection, changes)

    async def keep(
        self, documents: Mapping[RowId, bytes], losses: Mapping[RowId, Sequence[Loss]] = {}
    ) -> None:
        """Record documents and what they overwrote, ahead of `finish`."""
        new = [row for row in documents if row in self._absent]
        other = [row for row in documents if row not in self._absent]
        own = self._own
        with translated():
            if new:
                await self._connection.copy_records_to_table(
                    "_reunite_documents",
                    schema_name=own.schema,
                    columns=("tbl", "key", "seq", "document"),
                    records=[(row.table, row.key, self.seq, documents[row]) for row in new],
                )
            if other:
                await self._connection.execute(
                    f"INSERT INTO {own.documents} (tbl, key, seq, document)"
                    " SELECT tbl, key, $1, document"
                    " FROM unnest($2::integer[], $3::bytea[], $4::bytea[])"
                    " AS given (tbl, key, document)"
                    " ON CONFLICT (tbl, key) DO UPDATE"
                    " SET seq = excluded.seq, document = excluded.document",
                    self.seq,
                    [row.table for row in other],
                    [row.key for row in other],
                    [documents[row] for row in other],
                )
            if losses:
                await self._connection.execute(
                    _OVERWRITE.format(own=own), self.seq, *_placed(losses)
                )
        self._absent.difference_update(new)

    async def finish(
        self,
        token: bytes,
        documents: Mapping[RowId, bytes],
        accepted: Sequence[Accepted],
        losses: Mapping[RowId, Sequence[Loss]] = {},
    ) -> None:
        """Record the commit; it takes effect when the block ends."""
        await self.keep(documents, losses)
        own = self._own
        with translated():
            await self._connection.execute(
                _FINISH.format(own=own),
                self.seq,
                token,
                self._relay,
                [changeset.replica for changeset in accepted],
                [changeset.number for changeset in accepted],
                [changeset.nonce for changeset in accepted],
            )
        self.token = token


def _placed(losses: Mapping[RowId, Sequence[Loss]]) -> tuple[list[object], ...]:
    """The columns of the newest losses: table, key, place among the row's, stamp and document."""
    columns: tuple[list[object], ...] = ([], [], [], [], [])
    for row, found in losses.items():
        place = 0
        for loss in newest(found):
            place += loss.places
            fields = row.table, row.key, place, loss.replaced_by, loss.document
            for column, value in zip(columns, fields, strict=True):
                column.append(value)
    return columns
