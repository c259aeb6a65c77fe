"""One commit in the making on SQLite: see `StoreTransaction`. Its store holds the head's lock."""

import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from reunite.cells.register import Value
from reunite.overwritten import ROW_PLACES_MAX, Loss, newest
from reunite_transport.relay.sqlite_bookkeeping import in_batches
from reunite_transport.relay.sqlite_capture import PART_WRITES, take
from reunite_transport.relay.sqlite_errors import translated
from reunite_transport.relay.sqlite_rows import RowWriter
from reunite_transport.relay.store import (
    Accepted,
    RowChange,
    RowId,
    Standing,
    StoreError,
    Written,
)

_OVERWRITE: Final = """
INSERT INTO _reunite_history (tbl, key, place, seq, replaced_by, document)
VALUES (?1, ?2, ?3 + coalesce(
    (SELECT max(place) FROM _reunite_history WHERE tbl = ?1 AND key = ?2), 0), ?4, ?5, ?6)"""
_END: Final = """
DELETE FROM _reunite_history WHERE tbl = ?1 AND key = ?2 AND place <= (
    SELECT max(place) FROM _reunite_history WHERE tbl = ?1 AND key = ?2) - ?3"""


class SqliteTransaction:
    """One commit in the making on SQLite; see `StoreTransaction`. Nothing in it waits."""

    def __init__(
        self,
        connection: sqlite3.Connection,
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
        self._writer = writer
        # Of the commit, once it is finished.
        self.token: bytes | None = None
        self._relay = relay

    async def hold(self, rows: Sequence[RowId], *, patiently: bool = False) -> Collection[RowId]:
        """Nobody else writes to the file while this transaction is open."""
        return ()

    async def captured(self) -> AsyncIterator[Sequence[Written]]:
        """What other programs wrote, in parts; see the contract."""
        while True:
            with translated():
                part = take(self._connection)
            if not part:
                return
            yield part

    async def consequences(self) -> Sequence[Written]:
        """Foreign keys have no actions here, and what a trigger makes of a written row `write_rows`
        says; what it writes elsewhere is not followed."""
        return ()

    async def standings(self, replicas: Sequence[int]) -> Mapping[int, Standing]:
        """The known ones among these replicas."""
        with translated():
            return {
                replica: Standing(term, last)
                for values, parameters in in_batches([(replica,) for replica in replicas])
                for replica, term, last in self._connection.execute(
                    "SELECT replica, term, last FROM _reunite_replicas"
                    f" WHERE replica IN ({values})",
                    parameters,
                )
            }

    async def accepted_nonces(self, nonces: Sequence[bytes]) -> Collection[bytes]:
        """Those of these nonces under which a changeset is in."""
        with translated():
            return {
                nonce
                for values, parameters in in_batches([(nonce,) for nonce in nonces])
                for (nonce,) in self._connection.execute(
                    f"SELECT nonce FROM _reunite_changesets WHERE nonce IN ({values})", parameters
                )
            }

    async def documents(self, rows: Sequence[RowId]) -> Mapping[RowId, bytes]:
        """The documents of the rows that have one."""
        with translated():
            return {
                RowId(table, key): document
                for values, parameters in in_batches([(row.table, row.key) for row in rows])
                for table, key, document in self._connection.execute(
                    f"SELECT d.tbl, d.key, d.document FROM ({values}) AS given"
                    " CROSS JOIN _reunite_documents AS d"
                    " ON d.tbl = given.column1 AND d.key = given.column2",
                    parameters,
                )
            }

    async def documents_of(self, table: int) -> AsyncIterator[Mapping[RowId, bytes]]:
        """All documents of a table, in parts."""
        last = b""
        while True:
            with translated():
                found = self._connection.execute(
                    "SELECT key, document FROM _reunite_documents WHERE tbl = ? AND key > ?"
                    " ORDER BY key LIMIT ?",
                    (table, last, PART_WRITES),
                ).fetchall()
            if not found:
                return
            yield {RowId(table, key): document for key, document in found}
            last = found[-1][0]

    async def keep(
        self, documents: Mapping[RowId, bytes], losses: Mapping[RowId, Sequence[Loss]] = {}
    ) -> None:
        """Record documents and what they overwrote, ahead of `finish`."""
        with translated():
            self._connection.executemany(
                "INSERT INTO _reunite_documents (tbl, key, seq, document) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (tbl, key) DO UPDATE"
                " SET seq = excluded.seq, document = excluded.document",
                [(row.table, row.key, self.seq, data) for row, data in documents.items()],
            )
            self._connection.executemany(
                _OVERWRITE,
                [
                    (row.table, row.key, loss.places, self.seq, loss.replaced_by, loss.document)
                    for row, found in losses.items()
                    for loss in newest(found)
                ],
            )
            self._connection.executemany(
                _END, [(row.table, row.key, ROW_PLACES_MAX) for row in losses]
            )

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Roll back what was written inside when the block raises, and only that."""
        with translated():
            self._connection.execute("SAVEPOINT attempt")
        try:
            yield
        except Exception as error:
            with translated():
                if not self._connection.in_transaction:
                    # Whatever is written from here on would be committed by itself.
                    raise StoreError(
                        f"SQLite rolled back the whole commit, not just a part of it: {error}"
                    ) from error
                self._connection.execute("ROLLBACK TO attempt")
                self._connection.execute("RELEASE attempt")
            raise
        with translated():
            self._connection.execute("RELEASE attempt")

    async def write_rows(self, changes: Sequence[RowChange]) -> Mapping[RowId, Mapping[int, Value]]:
        """Write the app's tables; see the contract."""
        return self._writer.write(self._connection, changes)

    async def finish(
        self,
        token: bytes,
        documents: Mapping[RowId, bytes],
        accepted: Sequence[Accepted],
        losses: Mapping[RowId, Sequence[Loss]] = {},
    ) -> None:
        """Record the commit; it takes effect when the block ends."""
        await self.keep(documents, losses)
        with translated():
            self._connection.execute(
                "INSERT INTO _reunite_commits (seq, token, at, relay) VALUES (?, ?, ?, ?)",
                (self.seq, token, self.now_ms, self._relay),
            )
            self._connection.executemany(
                "INSERT INTO _reunite_changesets (replica, number, nonce, seq) VALUES (?, ?, ?, ?)",
                [(each.replica, each.number, each.nonce, self.seq) for each in accepted],
            )
            self._connection.executemany(
                "UPDATE _reunite_replicas SET last = max(last, ?), seen_at = ? WHERE replica = ?",
                [(each.number, self.now_ms, each.replica) for each in accepted],
            )
            self._connection.execute(
                "UPDATE _reunite_head SET seq = ?, token = ?", (self.seq, token)
            )
        self.token = token
