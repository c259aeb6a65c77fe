"""The history of a row, as far as this file saw it: what merges overwrote, and writing it back.

What the relay's statements and acknowledgements overwrite in a base is kept in `_reunite_history`;
what pending work overwrites is worked out anew each time, as it may be refused yet. A relay knows
more, as it saw every edit: what it tells is not kept.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from reunite import outbox
from reunite.bookkeeping import Tracked, lines_of
from reunite.cells.register import Value
from reunite.document import Document, cell_key, decode, merge
from reunite.errors import UsageError
from reunite.keys import pack_key, stored_key
from reunite.overwritten import ROW_PLACES_MAX, Loss, Overwritten, listed, losses, newest
from reunite.payload import RowRef
from reunite.schema import quoted
from reunite.state import State

_ADD: Final = """
INSERT INTO _reunite_history (tbl, key, place, replaced_by, document)
VALUES (?1, ?2, ?3 + coalesce(
    (SELECT max(place) FROM _reunite_history WHERE tbl = ?1 AND key = ?2), 0), ?4, ?5)"""
_END: Final = """
DELETE FROM _reunite_history WHERE tbl = ?1 AND key = ?2 AND place <= (
    SELECT max(place) FROM _reunite_history WHERE tbl = ?1 AND key = ?2) - ?3"""


class RowHistory(NamedTuple):
    """A row, and its losses as this file knows them. `key` has the values of its primary key."""

    tracked: Tracked
    key: tuple[Value, ...]
    losses: list[Loss]

    @property
    def at_relay(self) -> tuple[int, bytes] | None:
        """The row as a relay names it: its table's id and packed key; None for an unknown table."""
        table = self.tracked.registry
        return None if table is None else (table, pack_key(self.key))

    def listed(self, told: Sequence[Loss] = ()) -> list[Overwritten]:
        """The overwritten values, the newest first, with what a relay told of more."""
        known = self.tracked.remote.columns if self.tracked.remote else ()
        own = self.tracked.table.columns
        names = {cell_key(column.id): column.name for column in (*known, *own)}
        key = self.key[0] if len(self.key) == 1 else self.key
        return listed(self.tracked.table.name, key, names, [*told, *self.losses])


def keep(state: State, found: Mapping[RowRef, Sequence[Loss]]) -> None:
    """Keep losses of rows, in order; what is too old for its row's history goes."""
    state.conn.executemany(
        _ADD,
        [
            (*ref, loss.places, loss.replaced_by, loss.document)
            for ref, some in found.items()
            for loss in newest(some)
        ],
    )
    state.conn.executemany(_END, [(*ref, ROW_PLACES_MAX) for ref in found])


def of_row(state: State, table: str, key: Value | Sequence[Value]) -> RowHistory:
    """The history of a row that is or was here. Raises UsageError for what can be no such row."""
    tracked, parts = state.named_row(table, key)
    ref = RowRef(tracked.id, stored_key(parts))
    kept = [
        Loss(document, replaced_by)
        for document, replaced_by in state.conn.execute(
            "SELECT document, replaced_by FROM _reunite_history WHERE tbl = ? AND key = ?"
            " ORDER BY place DESC",
            ref,
        )
    ]
    return RowHistory(tracked, parts, [*_pending(state, ref), *kept])


def restore(state: State, overwritten: Overwritten) -> None:
    """Write a value back, in the caller's transaction. Raises UsageError when it has no place."""
    tracked, parts = state.named_row(overwritten.table, overwritten.key)
    table = tracked.table
    column = table.column(overwritten.column)
    if column is None or column.key:
        raise UsageError(
            f"table {table.name!r} has no column {overwritten.column!r} any more to restore"
        )
    where = " AND ".join(f"{quoted(part.name)} = ?" for part in table.key)
    on = quoted(table.name)
    if state.conn.execute(f"SELECT 1 FROM {on} WHERE {where}", parts).fetchone() is None:
        ref = RowRef(tracked.id, stored_key(parts))
        known = lines_of(state.conn, [ref])[ref].document
        deleted = known is not None and not decode(known).alive
        why = "was deleted; insert it first" if deleted else "is not here"
        raise UsageError(f"the row of {table.name!r} with the key {overwritten.key!r} {why}")
    state.conn.execute(
        f"UPDATE {on} SET {quoted(column.name)} = ? WHERE {where}", (overwritten.value, *parts)
    )


def _pending(state: State, ref: RowRef) -> list[Loss]:
    """What work of this file overwrites that is not in the row's base, the newest first."""
    row = lines_of(state.conn, [ref])[ref]
    if row.changeset is None:
        return []
    visible: Document | None = decode(row.base) if row.base else None
    found: list[Loss] = []
    for changeset in outbox.everything(state.conn):
        for entry in changeset.entries():
            if entry.row == ref:
                edit = decode(entry.document)
                if visible is not None:
                    found += losses(visible, edit)
                visible = edit if visible is None else merge(visible, edit)
    return found[::-1]
