"""Changesets: what was written since the last fold becomes one, in the transaction that saw it.

Other programs' writes become loose changesets with the times at which they were made, a transaction
of the app one that carries one time. What is larger than a relay takes is refused.
"""

from collections.abc import Sequence
from typing import Final

from reunite import changes, outbox
from reunite.apply import tidy
from reunite.capture import last_captured
from reunite.errors import UsageError
from reunite.fold import Edits, fold
from reunite.payload import Entry
from reunite.rescan import notice_schema_changes
from reunite.state import State

# A changeset is merged in memory and committed in one transaction of the relay.
CHANGESET_ROWS_MAX: Final = 200_000
CHANGESET_BYTES_MAX: Final = 32 << 20


def fold_strangers(state: State) -> bool:
    """Fold what other programs wrote into a loose changeset; True when there was any edit."""
    return _fold(state, recorded_ms=None) is not None


def fold_own(state: State, known: Sequence[Entry] = ()) -> int | None:
    """Fold this transaction's own writes into one changeset that carries one time, and return its
    id; None when nothing was edited. `known` are entries of it whose rows are folded already."""
    return _fold(state, recorded_ms=state.now_ms, known=known)


def _fold(state: State, recorded_ms: int | None, known: Sequence[Entry] = ()) -> int | None:
    notice_schema_changes(state)
    if not (known or last_captured(state.conn)):
        return None
    changeset = outbox.next_id(state.conn)

    # Who follows the changes is told which rows are new.
    living = changes.living(state) if state.meta.feed else set()

    def found() -> Edits:
        return fold(
            state.conn,
            state.shapes,
            state.meta,
            changeset,
            session=state.session,
            now_ms=state.now_ms,
            recorded_ms=recorded_ms,
        )

    edits, untidy, tables = found()
    state.written |= tables
    entries = [*known, *edits]
    if untidy:
        tidy(state, untidy)
        # No edit, but the rows are as their documents say now.
        entries += found().entries
    if recorded_ms is not None:
        _refuse_too_large(entries)
    if state.meta.feed:
        changes.note_entries(state, entries, living)
    outbox.add(state, changeset, entries, loose=recorded_ms is None)
    return changeset if entries else None


def _refuse_too_large(entries: Sequence[Entry]) -> None:
    size = sum(len(entry.document) for entry in entries)
    if len(entries) > CHANGESET_ROWS_MAX or size > CHANGESET_BYTES_MAX:
        raise UsageError(
            f"this transaction changes {len(entries)} rows ({size} bytes); one changeset ends at"
            f" {CHANGESET_ROWS_MAX} rows and {CHANGESET_BYTES_MAX} bytes; it was rolled back. Write"
            " in smaller transactions"
        )
