"""Refill: what a file does when the relay lost commits that it knows. Owns the making of offers.

A relay that was restored from a backup does not know this file's cursor. Then all that the relay
had stated is offered to it again, as it was, stamps of others included: a join with documents that
are there already changes nothing, and several files may offer the same. An offer waits in the
outbox, before all other work, until the realm has been loaded anew (see `adopt.reconcile`); what
the relay has by then is not sent. The rows come back, not the transactions that wrote them.
"""

from collections.abc import Sequence
from typing import Final

from reunite import outbox, registry
from reunite.bookkeeping import CHANGESET_ID_STEP
from reunite.payload import Entry, Kind, RowRef
from reunite.schema import Table
from reunite.state import State
from reunite.verdicts import rejoin

# Nothing that is offered is stamped again.
_NOT_RECORDED: Final = 0


def refill(state: State, tables: Sequence[Table]) -> int:
    """Forget the relay's history and make ready to offer what it had stated; `tables` is its
    registry as it is now. Returns how many rows may be offered."""
    state.conn.execute("DELETE FROM _reunite_inbox")
    # Of what it offers already; what it is about to offer came under edits that are older.
    outbox.note_offered(state)
    _keep_what_was_sent(state)
    count = _offer_bases(state)
    registry.forget(state, tables)
    meta = state.meta
    meta.seq, meta.token, meta.loaded = 0, b"", 0
    meta.load_seq = meta.load_within = meta.load_token = None
    # All is loaded anyway, and what the relay does not have is offered.
    meta.reloading = 0
    state.save()
    rejoin(state, ())
    return count


def _keep_what_was_sent(state: State) -> None:
    """What was sent may have been committed, and another file may offer what came of it: it goes
    again with the stamps that it had, or it would count as a second edit."""
    for changeset in outbox.everything(state.conn):
        if changeset.number is None and changeset.seq is None:
            continue
        entries = changeset.entries()
        kept = [
            entry if entry.kind == Kind.ADOPTED else entry._replace(kind=Kind.OFFERED)
            for entry in entries
        ]
        outbox.encode_anew(state.conn, changeset.id, kept)
    state.conn.execute("UPDATE _reunite_changesets SET number = NULL, seq = NULL")


def _offer_bases(state: State) -> int:
    entries = [
        Entry(RowRef(table, key), Kind.OFFERED, base, _NOT_RECORDED, _NOT_RECORDED)
        for table, key, base in state.conn.execute(
            "SELECT tbl, key, base FROM _reunite_rows WHERE base IS NOT NULL ORDER BY tbl, key"
        )
    ]
    # Below all that is there, and below every mark: who waits for earlier work waits for this, too.
    (first,) = state.conn.execute("SELECT min(id) FROM _reunite_changesets").fetchone()
    last = (outbox.next_id(state.conn) if first is None else first) - CHANGESET_ID_STEP
    parts = list(outbox.parts(outbox.in_dependency_order(state, entries)))
    for back, part in enumerate(reversed(parts)):
        changeset = last - back * CHANGESET_ID_STEP
        outbox.insert(state, changeset, part, loose=True, adopting=True)
        state.conn.executemany(
            "UPDATE _reunite_rows SET visible = coalesce(visible, base), base = NULL,"
            f" changeset = coalesce(changeset, {changeset}) WHERE tbl = ? AND key = ?",
            [entry.row for entry in part],
        )
    return len(entries)
