"""Reload: taking everything from the relay once more, and losing nothing that it has not.

What is in the tables stays until all has arrived; then, in one transaction, each base is what the
relay states, and rows that it does not state are gone. Pending work stays in the outbox and is
joined with the new bases: an entry holds what its author's part of a cell has become, so nothing
counts twice. Until then the cursor stays too, or a relay that was restored from a backup could not
be told from one that has it all (see `refill`), and what it lost would be lost here as well.

Pages of a session that began before do not count: they go on from where the file was.
"""

from collections.abc import Collection

from reunite.bookkeeping import Row, lines_of
from reunite.capture import capture_all, capture_vanished
from reunite.document import decode
from reunite.payload import RowRef
from reunite.state import State


def begin(state: State) -> None:
    """Have the next session load everything. The caller folds before and after: what the tables
    hold that no document has, as what was written past the triggers, is an edit made now."""
    for tracked in state.tables.values():
        if tracked.tracked:
            capture_all(state.conn, tracked, state.now_ms)
            capture_vanished(state.conn, tracked, state.now_ms)
    state.conn.execute("DELETE FROM _reunite_inbox")
    meta = state.meta
    meta.load_seq = meta.load_within = meta.load_token = None
    meta.greetings = -abs(meta.greetings)
    # A first load that is under way begins again, and shows rows as they come.
    meta.reloading = meta.loaded
    state.save("load_seq", "load_within", "load_token", "greetings", "reloading")


def unstated(state: State, stated: Collection[RowRef]) -> dict[RowRef, Row]:
    """The lines of rows that the relay no longer has, without their bases.

    A table of which it states nothing is one that it has let go, and stays as it is. So does a row
    with an edit that is pending: it is sent whole, as if it had been deleted before. An edit that
    cannot be, as it adds to what others have counted, is given up, and its row goes next time.
    """
    tables = {ref.table for ref in stated}
    found = [
        ref
        for line in state.conn.execute("SELECT tbl, key FROM _reunite_rows WHERE base IS NOT NULL")
        if line[0] in tables and (ref := RowRef(*line)) not in stated
    ]
    return {
        ref: row._replace(base=None)
        for ref, row in lines_of(state.conn, found).items()
        if row.changeset is None or row.visible is None or not decode(row.visible).alive
    }
