"""The inbox: what the relay has stated, merged into bases and tables when a snapshot is whole.

A page of "the latest state of each row" can hold half a commit, so pages wait in `_reunite_inbox`
until everything up to the head of their snapshot has arrived; then all is merged in one
transaction and the cursor moves. A live commit is whole by itself. Only the first load of a file
that adopted nothing shows rows as they come.

Base is written only here, and only from what the relay states: a stated document replaces the
base; a changeset acknowledged in a live commit joins it as pushed; one that was committed while
the client was away is dropped, joining nothing, when the cursor reaches its commit.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from reunite import history, outbox, reload
from reunite.apply import PendingCollision, apply_rows
from reunite.bookkeeping import Row, lines_of, save_rows
from reunite.clock import time_of
from reunite.columns import columns_of
from reunite.document import EMPTY, Document, as_we_encode, decode, encode, latest_stamp, merge
from reunite.errors import FormatError
from reunite.keys import stored_key, unpack_key
from reunite.overwritten import Loss, losses
from reunite.payload import Entry, Kind, RowRef, Statement, pack_statement, unpack_statement
from reunite.rebase import Steps, holds_more, merging_rows, rebase, steps
from reunite.state import State


def receive(state: State, statements: Sequence[Statement], *, within: bytes = b"") -> bool:
    """Take in a page, or commits that came together. Returns False when they wait in the inbox, for
    the rest of their snapshot or for the verdict on a local changeset that they collide with.

    `within` is where the next page goes on. Raises AdoptionConflict (see `adopt`), and FormatError
    for rows that are not of our format; then nothing has changed.
    """
    waiting = state.conn.execute("SELECT 1 FROM _reunite_inbox LIMIT 1").fetchone() is not None
    last = statements[-1]
    whole = last.complete
    adopting = outbox_adopts(state)
    if whole or not (state.meta.loaded or waiting or adopting):
        state.conn.execute("SAVEPOINT reunite_inbox")
        try:
            # Read only now: to read them at each page would be quadratic.
            integrate(state, [*_waiting(state), *statements])
        except PendingCollision:
            state.conn.execute("ROLLBACK TO reunite_inbox")
        else:
            if waiting:
                state.conn.execute("DELETE FROM _reunite_inbox")
            _move_cursor(state, last, within)
            return True
        finally:
            if state.conn.in_transaction:
                state.conn.execute("RELEASE reunite_inbox")
    state.conn.executemany(
        "INSERT INTO _reunite_inbox (kind, message) VALUES (?, ?)",
        [(int(each.complete), pack_statement(each)) for each in statements],
    )
    if not whole:
        _move_cursor(state, last, within)
    return False


def retry(state: State) -> bool:
    """Integrate what waits in the inbox after a verdict may have made room; True when done."""
    waiting = _waiting(state)
    if not waiting or not waiting[-1].complete:
        return False
    state.conn.execute("SAVEPOINT reunite_inbox")
    try:
        integrate(state, waiting)
    except PendingCollision:
        state.conn.execute("ROLLBACK TO reunite_inbox")
        return False
    finally:
        if state.conn.in_transaction:
            state.conn.execute("RELEASE reunite_inbox")
    state.conn.execute("DELETE FROM _reunite_inbox")
    _move_cursor(state, waiting[-1], b"")
    return True


def forget_waiting(state: State) -> None:
    """Before a greeting: what waits must not know more than the greeting says.

    Changesets that a waiting commit acknowledges are known to be in, and go when the cursor
    reaches it. A whole snapshot that waits for a verdict is dropped, as it is pulled again from the
    cursor; pages of a load that goes on stay.
    """
    waiting = state.conn.execute("SELECT id, kind, message FROM _reunite_inbox ORDER BY id")
    for line, _, message in (lines := waiting.fetchall()):
        statement = unpack_statement(message)
        if statement.acknowledged:
            know(state, [(number, statement.seq) for number in statement.acknowledged])
            state.conn.execute(
                "UPDATE _reunite_inbox SET message = ? WHERE id = ?",
                (pack_statement(statement._replace(acknowledged=())), line),
            )
    # A load that does not say what it has seen cannot be told from one of another history.
    unnamed = state.meta.load_seq is not None and not state.meta.load_token
    if unnamed or (lines and lines[-1][1] == 1):
        state.conn.execute("DELETE FROM _reunite_inbox")
        state.meta.load_seq = state.meta.load_within = state.meta.load_token = None
        state.save("load_seq", "load_within", "load_token")


def know(state: State, pairs: Iterable[tuple[int, int]]) -> None:
    """These changesets were committed at these seqs; they go when the cursor reaches them."""
    for number, seq in pairs:
        changeset = outbox.by_number(state.conn, number)
        if changeset is not None:
            state.conn.execute(
                "UPDATE _reunite_changesets SET seq = ? WHERE id = ?", (seq, changeset.id)
            )
        state.meta.acknowledged = max(state.meta.acknowledged, number)
    state.save("acknowledged")


def drop_reached(state: State) -> None:
    """Drop committed changesets whose commit the cursor has reached already."""
    shared = _shared(state)
    outbox.note_offered(state)
    lines = _Lines(state)
    seen: dict[RowRef, int] = {}
    _drop_reached(state, lines, state.meta.seq, seen, shared.rows)
    _settle_shared(state, lines, shared)
    _note_seen(state, lines, seen)
    changed = lines.changed()
    lines.save_unchanged(changed)
    lines.save_overwritten()
    apply_rows(state, changed)


def outbox_adopts(state: State) -> bool:
    """True while rows that came with a table wait to be compared and sent."""
    return (
        state.conn.execute("SELECT 1 FROM _reunite_changesets WHERE adopting LIMIT 1").fetchone()
        is not None
    )


def integrate(state: State, statements: Iterable[Statement]) -> None:
    """Merge statements into bases and tables, in order, in the caller's transaction."""
    shared = _shared(state)
    outbox.note_offered(state)
    lines = _Lines(state)
    by_registry = state.by_registry()
    seq = 0
    seen: dict[RowRef, int] = {}
    reloading, told = bool(state.meta.reloading), set[RowRef]()
    for statement in statements:
        stated: dict[RowRef, bytes] = {}
        for section in statement.rows:
            tracked = by_registry.get(section.table)
            if tracked is None:
                raise FormatError(
                    f"rows of table {section.table}, which the registry does not have"
                )
            count = len(tracked.table.key)
            for key, document in zip(section.keys, section.documents, strict=True):
                values = unpack_key(key)
                if len(values) != count:
                    raise FormatError(f"a key of {tracked.table.name!r} has {len(values)} parts")
                stated[RowRef(tracked.id, stored_key(values))] = as_we_encode(document)
        shared = _with_copied(state, lines, stated, shared)
        for number in statement.acknowledged:
            _acknowledge(state, lines, number, stated, seen)
        lines.load(stated)
        for ref, document in stated.items():
            row = lines[ref]
            if row.base is not None and row.base != document:
                before, after = decode(row.base), decode(document)
                # A file that has it wrong would tell of what nobody overwrote.
                if not reloading or merge(before, after) == after:
                    lines.overwrite(ref, before, after)
            visible = None
            if row.changeset is not None and row.visible is not None and ref not in shared.rows:
                visible = encode(_joined(decode(document), decode(row.visible)))
            lines[ref] = row._replace(base=document, visible=visible)
        if statement.complete:
            seq = statement.seq
        if reloading:
            told.update(stated)
        if reloading and statement.complete:
            # What follows are commits, which state only what they changed.
            reloading = False
            gone = reload.unstated(state, told)
            lines.load(gone)
            lines.update(made_visible(state, gone))
    if seq:
        _drop_reached(state, lines, seq, seen, shared.rows)
    _settle_shared(state, lines, shared)
    _note_seen(state, lines, seen)
    changed = lines.changed()
    # First, so that a row which is not pending any more holds up nothing.
    lines.save_unchanged(changed)
    lines.save_overwritten()
    # What waits for a verdict would wait for ever where nothing is sent before this has arrived.
    apply_rows(state, changed, may_wait=not shared.steps)


class _Shared(NamedTuple):
    """Rows of which another file may have sent the pending edits of columns that merge, what those
    were made on, and of which of them a copy of this file has sent others in its name."""

    rows: set[RowRef]
    steps: Steps
    copied: set[RowRef]


def _shared(state: State) -> _Shared:
    """What is so while another file may have sent what is pending; nothing else."""
    if not outbox.shares(state):
        return _Shared(set(), {}, set())
    adopted = {
        entry.row
        for changeset in outbox.pending(state.conn)
        if changeset.adopting
        for entry in changeset.entries()
        if entry.kind == Kind.ADOPTED
    }
    rows = merging_rows(state) - adopted
    return _Shared(rows, steps(state, rows), set())


def _with_copied(
    state: State, lines: "_Lines", stated: Mapping[RowRef, bytes], shared: _Shared
) -> _Shared:
    """Also the rows that show that there is a copy of this file, which the next greeting will
    find: what it has counted in this name would hide what is pending here."""
    merging = {
        number
        for number, tracked in state.tables.items()
        if columns_of(tracked.table.cells).kinds_by_key
    }
    lines.load(ref for ref in stated if ref.table in merging)
    found = {
        ref
        for ref, document in stated.items()
        if ref.table in merging
        and (known := lines[ref].visible) is not None
        and holds_more(decode(known), decode(document), state.meta.replica)
    }
    if not found:
        return shared
    fresh = found - shared.rows
    # What came together with this, and left the outbox for it, is in no row's line yet.
    made = {
        **steps(state, fresh, bases={ref: lines[ref].base for ref in fresh}),
        **shared.steps,
    }
    return _Shared(shared.rows | found, made, shared.copied | found)


def _settle_shared(state: State, lines: "_Lines", shared: _Shared) -> None:
    """Work that another file had sent as well has arrived, by whomever; what was made on it is made
    anew on what it became."""
    rows, made, copied = shared
    if made:
        lines.load(rows)
        bases = {ref: lines[ref].base for ref in rows}
        rebase(state, rows, made, bases=bases, copied=copied)
        lines.update(made_visible(state, {ref: lines[ref] for ref in rows}))


class _Lines:
    """The lines that an integration touches, as they were and as they become."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._before: dict[RowRef, Row] = {}
        self._now: dict[RowRef, Row] = {}
        self._overwritten: dict[RowRef, list[Loss]] = {}

    def load(self, refs: Iterable[RowRef]) -> None:
        """Read lines in batches; one that does not exist is empty."""
        found = lines_of(self._state.conn, (ref for ref in refs if ref not in self._now))
        self._before |= found
        self._now |= found

    def __getitem__(self, ref: RowRef) -> Row:
        return self._now[ref]

    def __setitem__(self, ref: RowRef, row: Row) -> None:
        self._now[ref] = row

    def update(self, rows: Mapping[RowRef, Row]) -> None:
        """Replace lines that are loaded."""
        self._now.update(rows)

    def overwrite(self, ref: RowRef, base: Document, edit: Document) -> None:
        """Note what merging an edit with a base overwrites of either."""
        found = losses(base, edit)
        if found:
            self._overwritten.setdefault(ref, []).extend(found)

    def changed(self) -> dict[RowRef, Row]:
        """The lines whose visible document became another: their tables have to be written."""
        return {
            ref: row
            for ref, row in self._now.items()
            if row.document != self._before[ref].document or self._before[ref].mark is not None
        }

    def save_unchanged(self, changed: dict[RowRef, Row]) -> None:
        """Write the lines that changed without their visible document."""
        save_rows(
            self._state.conn,
            [
                (ref, row)
                for ref, row in self._now.items()
                if ref not in changed and row != self._before[ref]
            ],
        )

    def save_overwritten(self) -> None:
        """Keep what was overwritten in the history of its rows."""
        history.keep(self._state, self._overwritten)


def _note_seen(state: State, lines: _Lines, time_by_row: Mapping[RowRef, int]) -> None:
    still_pending = {
        ref: time for ref, time in time_by_row.items() if lines[ref].changeset is not None
    }
    outbox.note_seen(state, still_pending)


def _saw(seen: dict[RowRef, int], entry: Entry) -> None:
    """Note the time of an edit for those of its row that come after it."""
    if entry.is_base:
        return
    seen[entry.row] = max(seen.get(entry.row, 0), time_of(latest_stamp(entry.document)))


def _acknowledge(
    state: State,
    lines: _Lines,
    number: int,
    stated: dict[RowRef, bytes],
    seen: dict[RowRef, int],
) -> None:
    """Join a changeset with the base. What rows that were edited again have seen of it is added
    to `seen`."""
    changeset = outbox.by_number(state.conn, number)
    if changeset is None:
        return
    entries = changeset.entries()
    lines.load(entry.row for entry in entries)
    for entry in entries:
        row = lines[entry.row]
        base = row.base
        if entry.row in stated:
            lines.overwrite(entry.row, decode(stated[entry.row]), decode(entry.document))
        elif base is None:
            base = entry.document
        else:
            before, edit = decode(base), decode(entry.document)
            lines.overwrite(entry.row, before, edit)
            base = encode(merge(before, edit))
        if row.changeset == changeset.id:
            row = row._replace(changeset=None, visible=None)
        else:
            _saw(seen, entry)
        lines[entry.row] = row._replace(base=base)
    outbox.remove(state.conn, changeset.id)
    state.meta.acknowledged = max(state.meta.acknowledged, number)


def _drop_reached(
    state: State, lines: _Lines, seq: int, seen: dict[RowRef, int], shared: set[RowRef]
) -> None:
    """Drop the changesets that the relay committed at or before this seq; what they did has
    arrived as rows. What rows that were edited again have seen of them is added to `seen`."""
    for changeset in outbox.reached(state.conn, seq):
        entries = changeset.entries()
        lines.load(entry.row for entry in entries)
        outbox.remove(state.conn, changeset.id)
        again = []
        for entry in entries:
            row = lines[entry.row]
            if row.base is not None and row.base != entry.document:
                lines.overwrite(entry.row, decode(row.base), decode(entry.document))
            if row.changeset == changeset.id:
                lines[entry.row] = row._replace(changeset=None, visible=None)
            else:
                again.append(entry.row)
                _saw(seen, entry)
        again = [ref for ref in again if ref not in shared]
        lines.update(made_visible(state, {ref: lines[ref] for ref in again}))


def made_visible(state: State, rows: Mapping[RowRef, Row]) -> dict[RowRef, Row]:
    """The lines with their visible document made anew: base joined with what is pending, and with
    what is committed but has not arrived."""
    if not rows:
        return {}
    visible = {ref: decode(row.base) if row.base else EMPTY for ref, row in rows.items()}
    last: dict[RowRef, int] = {}
    for changeset in outbox.everything(state.conn):
        for entry in changeset.entries():
            if entry.row in visible:
                visible[entry.row] = _joined(visible[entry.row], decode(entry.document))
                last[entry.row] = changeset.id
    return {
        ref: row._replace(
            visible=encode(visible[ref]) if ref in last else None, changeset=last.get(ref)
        )
        for ref, row in rows.items()
    }


def _joined(document: Document, edit: Document) -> Document:
    """The document with an edit, or without one that it cannot hold: what two wrote can be larger
    together than a row may be. The edit stays pending, and the relay refuses it."""
    try:
        return merge(document, edit)
    except FormatError:
        return document


def retry_blocked(state: State) -> None:
    """Write blocked rows again, as a verdict may have made room for them."""
    apply_rows(state, {})


def _move_cursor(state: State, statement: Statement, within: bytes) -> None:
    meta = state.meta
    if statement.complete:
        meta.seq, meta.token, meta.loaded = statement.seq, statement.token, 1
        meta.load_seq = meta.load_within = meta.load_token = None
        meta.last_sync_ms = state.now_ms
        meta.reloading = 0
    else:
        meta.load_seq, meta.load_within = statement.seq, within
        meta.load_token = statement.token
    state.save()


def _waiting(state: State) -> list[Statement]:
    return [
        unpack_statement(message)
        for (message,) in state.conn.execute("SELECT message FROM _reunite_inbox ORDER BY id")
    ]
