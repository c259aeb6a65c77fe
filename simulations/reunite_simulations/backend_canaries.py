"""Canaries of what backends write: relays that are broken on purpose, each in one way that loses,
doubles or splits what an ordinary program wrote to their database. See `canaries`."""

import sqlite3
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch
from weakref import WeakSet

from reunite.cells.register import same
from reunite_transport.relay import backend, sqlite_capture, sqlite_transaction
from reunite_transport.relay.backend import Edits
from reunite_transport.relay.sqlite_capture import take as take_captured
from reunite_transport.relay.sqlite_transaction import SqliteTransaction
from reunite_transport.relay.store import RowId, Written

# The number of no table.
_NO_TABLE: Final = -1


def loses_what_a_backend_wrote() -> AbstractContextManager[object]:
    """One captured write in some tens is taken out and not folded."""
    count = 0

    def take(connection: sqlite3.Connection) -> list[Written]:
        nonlocal count
        found = []
        for written in take_captured(connection):
            count += 1
            found.append(written if count % 30 else written._replace(table=_NO_TABLE))
        return found

    return patch.object(sqlite_transaction, "take", take)


def folds_a_part_of_a_transaction() -> AbstractContextManager[object]:
    """The last of what was captured waits for the next commit."""

    async def captured(self: SqliteTransaction) -> AsyncIterator[Sequence[Written]]:
        (count,) = self._connection.execute("SELECT count(*) FROM _reunite_captured").fetchone()
        with patch.object(sqlite_capture, "PART_WRITES", max(count - 1, 1)):
            part = take_captured(self._connection)
        if part:
            yield part

    return patch.object(SqliteTransaction, "captured", captured)


@contextmanager
def writes_over_backends() -> Iterator[None]:
    """What a batch brings is merged and written before what backends wrote is folded, which is left
    to the next commit."""
    with_batch: WeakSet[SqliteTransaction] = WeakSet()
    real_nonces, real_captured = SqliteTransaction.accepted_nonces, SqliteTransaction.captured

    async def accepted_nonces(
        self: SqliteTransaction, nonces: Sequence[bytes]
    ) -> Collection[bytes]:
        if nonces:
            with_batch.add(self)
        return await real_nonces(self, nonces)

    async def captured(self: SqliteTransaction) -> AsyncIterator[Sequence[Written]]:
        if self not in with_batch:
            async for part in real_captured(self):
                yield part

    with (
        patch.object(SqliteTransaction, "accepted_nonces", accepted_nonces),
        patch.object(SqliteTransaction, "captured", captured),
    ):
        yield


def counts_what_a_backend_saw() -> AbstractContextManager[object]:
    """A backend's edit of a counter adds all that the number is then."""
    real = Edits.steps

    def steps(self: Edits, part: Sequence[Written]) -> list[tuple[RowId, Written]]:
        return [(row, _counted_anew(self, written)) for row, written in real(self, part)]

    return patch.object(Edits, "steps", steps)


def _counted_anew(edits: Edits, written: Written) -> Written:
    before, after = written.before, written.after
    if before is None or after is None:
        return written
    zeros = {
        column.id: 0
        for column in edits._tables[written.table].cells
        if column.type == "counter"
        and not same(before.get(column.id), after.get(column.id))
        and isinstance(before.get(column.id), int)
    }
    return written._replace(before={**before, **zeros})


def stamps_backends_by_the_clock() -> AbstractContextManager[object]:
    """A backend's edit is of the time at which it was written, though it saw a later one."""
    return patch.object(backend, "time_of", lambda _mark: 0)


def captures_what_the_relay_writes() -> AbstractContextManager[object]:
    """The flag that keeps the triggers still while a relay writes is not set."""
    real = SqliteTransaction.__init__

    def init(
        self: SqliteTransaction, connection: sqlite3.Connection, *rest: Any, **named: Any
    ) -> None:
        connection.execute("UPDATE _reunite_relay SET writes = 0")
        real(self, connection, *rest, **named)

    return patch.object(SqliteTransaction, "__init__", init)


BACKEND_CANARIES: Final = (
    loses_what_a_backend_wrote,
    folds_a_part_of_a_transaction,
    writes_over_backends,
    counts_what_a_backend_saw,
    stamps_backends_by_the_clock,
    captures_what_the_relay_writes,
)
