"""Verdicts: what happens to pending work that the relay refuses. Owns split, revert and rejoin.

A refused changeset that is `loose` (other programs' writes, adopted rows) is split, parents first,
and pushed again; a row refused alone gets one more try at the end, when what it needs may have
arrived. What is given up is kept in `reunite_rejected` and reverted exactly: visible becomes base
joined with the rest of the pending work. An adopted row is never touched: it stays, local.
"""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from reunite import changes, outbox
from reunite.adopt import rebuild
from reunite.bookkeeping import CHANGESET_ID_STEP, Row, lines_of, save_rows
from reunite.clock import FLOOR, NEVER, edit_time, stamp
from reunite.document import EMPTY, decode, encode, merge, merges
from reunite.fold import whole
from reunite.outbox import Changeset
from reunite.payload import Entry, Kind, RowRef
from reunite.rebase import Steps, merging_rows, names_authors, rebase, steps, with_whole_cells
from reunite.rejected import record_entry
from reunite.state import State

# The clock was wrong, not the work: it is stamped again.
CLOCK_AHEAD: Final = "clock-ahead"
# The relay lacks the row that an entry adds to: it is sent whole.
NEED_WHOLE: Final = "need-whole"
DEPENDS_ON: Final = "depends-on"
# The relay was restored from a backup, and what came after it is not wanted back.
EXPIRED: Final = "expired"


class Rejection(NamedTuple):
    """What the app is told of a changeset that was given up: rows as (table, key)."""

    reason: str
    message: str
    rows: tuple[tuple[str, object], ...]


def reject(
    state: State,
    number: int,
    nonce: bytes,
    reason: str,
    message: str,
    rows: Collection[RowRef] = (),
) -> list[Rejection]:
    """Take in the relay's refusal, which concerns these rows where it could tell. Returns what was
    given up; the rest goes again from `number`."""
    changeset = outbox.by_number(state.conn, number)
    if changeset is None or changeset.nonce != nonce:
        return []
    # It keeps its nonce for as long as it is the same work: a copy of this file may have it too.
    outbox.thaw(state, number - 1)
    if reason == CLOCK_AHEAD:
        _withdraw_offers(state, changeset)
        restamp(state)
        return []
    entries = changeset.entries()
    if reason == NEED_WHOLE and any(_is_delta(entry) for entry in entries):
        return _send_whole(state, changeset, entries, set(rows))
    if reason == EXPIRED:
        return _give_up(state, changeset, reason, message)
    if (
        changeset.loose
        and changeset.attempts <= outbox.UNREFUSED
        and _move_to_end(state, changeset, entries)
    ):
        return []
    if changeset.loose and len(entries) > 1:
        _split(state, changeset, entries)
        return []
    return _give_up(state, changeset, reason, message)


def restamp(state: State) -> None:
    """Stamp unsent work again after the clock's offset became another."""
    stale = outbox.restamp(state)
    if stale:
        rebuild(state, lines_of(state.conn, stale))


def rejoin(state: State, known: Sequence[tuple[int, int]]) -> None:
    """Become a new replica: this file was copied or restored, and its history is not its own.

    `known` pairs (number, seq) are in already and go when the cursor reaches them; the rest is
    stamped and numbered anew under a new replica id. Nonces stay: the file's twin may have sent
    the same work, or send it yet, and the relay takes it once. What edits have seen of what this
    file offers has to be noted before (`outbox.note_offered`).
    """
    mark_known(state, known, counted_from=state.meta.acknowledged)
    merging = merging_rows(state)
    made = steps(state, merging)
    state.meta.replica = state.chance.replica()
    state.meta.acknowledged = 0
    state.meta.shared = outbox.next_id(state.conn) - 1
    state.save("replica", "acknowledged", "shared")
    changes.renew(state)
    outbox.thaw(state, -1)
    state.renew_session()
    rebase(state, merging, made, renamed=True)
    restamp(state)


def mark_known(state: State, known: Sequence[tuple[int, int]], *, counted_from: int) -> None:
    """Note the commits of pending changesets that the relay has. Numbers follow on from
    `counted_from` in the order of the outbox."""
    ids = [changeset.id for changeset in outbox.pending(state.conn)]
    for number, seq in known:
        index = number - counted_from - 1
        if 0 <= index < len(ids):
            state.conn.execute(
                "UPDATE _reunite_changesets SET number = ?, seq = ? WHERE id = ?",
                (number, seq, ids[index]),
            )


def _withdraw_offers(state: State, refused: Changeset) -> None:
    """What was refused for its time was never in, nor was what was sent after it: it is work of
    this file again, and not what a restored relay has lost. So it is in this replica's name."""
    withdrawn = set()
    for changeset in outbox.pending(state.conn):
        if changeset.id < refused.id or changeset.adopting:
            continue
        entries = changeset.entries()
        own = [
            entry._replace(kind=Kind.PARTIAL if _is_delta(entry) else Kind.WHOLE)
            if entry.kind == Kind.OFFERED and not entry.is_base
            else entry
            for entry in entries
        ]
        if own != entries:
            withdrawn |= {entry.row for entry in entries}
            outbox.encode_anew(state.conn, changeset.id, own)
    merging = merging_rows(state) & withdrawn if withdrawn else set()
    rebase(state, merging, steps(state, merging), renamed=True)


def _send_whole(
    state: State, changeset: Changeset, entries: Sequence[Entry], lacking: Collection[RowRef]
) -> list[Rejection]:
    """Send the rows that the relay lacks whole; of others only what was edited may go, or it would
    win over what others wrote."""
    lines = lines_of(state.conn, {entry.row for entry in entries})
    made = steps(state, {entry.row for entry in entries if entry.row in lacking})
    fresh = []
    for entry in entries:
        row = lines[entry.row]
        visible = decode(row.document) if row.document else None
        step = made.get((changeset.id, entry.row, entry.document))
        if row.base is not None and step is not None and merges(decode(entry.document)):
            # It may have the row and lack only what a cell builds on.
            filled = with_whole_cells(entry, step)
            if filled != entry:
                fresh.append(filled)
                continue
        if entry.row in lacking and _is_delta(entry) and visible is not None and visible.alive:
            full = merge(visible, decode(entry.document))
            # The row itself is what is sent now, whatever has changed it.
            entry = entry._replace(derived=None)
            if entry.kind == Kind.OFFERED:
                entry = entry._replace(document=encode(full))
            elif row.base is None or not names_authors(full):
                # What others have counted cannot be said for them, nor be counted as our own.
                mark = decode(entry.document).latest()
                sent = whole(full, mark, state.author)
                entry = entry._replace(kind=Kind.WHOLE, document=encode(sent))
        fresh.append(entry)
    if list(entries) == fresh:
        return _give_up(state, changeset, NEED_WHOLE, "the relay no longer has the row")
    outbox.replace_entries(state, changeset, fresh)
    rebuild(state, lines)
    return []


def _split(state: State, changeset: Changeset, entries: Sequence[Entry]) -> None:
    """Two halves in the changeset's place, in the order that foreign keys allow."""
    ordered = outbox.in_dependency_order(state, entries)
    middle = len(ordered) // 2
    before: int | None = state.conn.execute(
        "SELECT max(id) FROM _reunite_changesets WHERE id < ?", (changeset.id,)
    ).fetchone()[0]
    least = changeset.id - CHANGESET_ID_STEP
    room = changeset.id - (least if before is None else max(before, least))
    outbox.remove(state.conn, changeset.id)
    first = changeset.id - room // 2
    for number, half in ((first, ordered[:middle]), (changeset.id, ordered[middle:])):
        outbox.insert(
            state,
            number,
            half,
            loose=True,
            adopting=changeset.adopting,
            attempts=outbox.AT_THE_END if len(half) > 1 else outbox.ALONE,
            nonce=outbox.part_nonce(changeset, half),
        )
    moved = {entry.row for entry in ordered[:middle]} - {entry.row for entry in ordered[middle:]}
    last = {
        ref for ref, row in lines_of(state.conn, moved).items() if row.changeset == changeset.id
    }
    outbox.point_lines_at(state, first, list(last))


def _move_to_end(state: State, changeset: Changeset, entries: Sequence[Entry]) -> bool:
    """Give what was refused one more try after all else, when what it needs may have gone before;
    False when it is the last already, or later pending work builds on it."""
    later = [other for other in outbox.pending(state.conn) if other.id > changeset.id]
    rows = {entry.row for entry in entries}
    if not later or any(entry.row in rows for other in later for entry in other.entries()):
        return False
    end = outbox.next_id(state.conn)
    outbox.remove(state.conn, changeset.id)
    outbox.insert(
        state,
        end,
        entries,
        loose=True,
        adopting=changeset.adopting,
        attempts=outbox.AT_THE_END,
        nonce=changeset.nonce,
    )
    outbox.point_lines_at(state, end, list(rows))
    return True


def _give_up(state: State, changeset: Changeset, reason: str, message: str) -> list[Rejection]:
    """Drop a changeset, and what builds on rows that only it made, and revert."""
    rejections = []
    merging = merging_rows(state)
    known = steps(state, merging)
    dropped: list[Entry] = []
    kept_adopted: dict[RowRef, Entry] = {}
    gone = {entry.row for entry in changeset.entries() if _is_complete(entry)}
    lines = lines_of(state.conn, {entry.row for entry in changeset.entries()})
    gone = {ref for ref in gone if not _lives(lines[ref].base)}
    for entry in changeset.entries():
        if lines[entry.row].base is None and _came_with_its_table(entry):
            kept_adopted[entry.row] = entry
    gone -= kept_adopted.keys()
    rejections.append(_record(state, changeset, changeset.entries(), reason, message, known))
    dropped += changeset.entries()
    outbox.remove(state.conn, changeset.id)
    for later in [c for c in outbox.pending(state.conn) if c.id > changeset.id]:
        entries = later.entries()
        adjusted = [_on_adopted(state, entry, kept_adopted) for entry in entries]
        # A delete of what is gone has what it wanted.
        adjusted = [e for e in adjusted if not (e.row in gone and outbox.deletes(e))]
        lost = [e for e in adjusted if e.row in gone and _is_delta(e)]
        if lost and not later.loose:
            rejections.append(
                _record(
                    state,
                    later,
                    adjusted,
                    DEPENDS_ON,
                    f"it builds on a change that was rejected: {message}",
                    known,
                )
            )
            dropped += adjusted
            outbox.remove(state.conn, later.id)
            gone |= {e.row for e in adjusted if _is_complete(e)}
            continue
        if lost:
            rejections.append(
                _record(
                    state,
                    later,
                    lost,
                    DEPENDS_ON,
                    f"it builds on a change that was rejected: {message}",
                    known,
                )
            )
            dropped += lost
            adjusted = [entry for entry in adjusted if entry not in lost]
        gone -= {e.row for e in adjusted if _is_complete(e)}
        if adjusted != entries:
            outbox.replace_entries(state, later, adjusted)
    seen: dict[RowRef, int] = {}
    for entry in dropped:
        seen[entry.row] = max(entry.seen, seen.get(entry.row, 0))
    outbox.note_seen(state, seen)
    # What was written may be written otherwise now, and a copy of this file may have sent it.
    state.renew_session()
    rebase(state, merging, known)
    _revert(state, {entry.row for entry in dropped}, kept_adopted)
    return rejections


def _came_with_its_table(entry: Entry) -> bool:
    """True for an adopted row, also where it was refused before and has been edited since."""
    return entry.kind == Kind.ADOPTED or (
        entry.kind == Kind.WHOLE and decode(entry.document).born == FLOOR
    )


def _is_delta(entry: Entry) -> bool:
    return entry.kind == Kind.PARTIAL or (
        entry.kind == Kind.OFFERED and decode(entry.document).born == NEVER
    )


def _is_complete(entry: Entry) -> bool:
    return entry.kind == Kind.WHOLE or (
        entry.kind == Kind.OFFERED and decode(entry.document).born != NEVER
    )


def _lives(base: bytes | None) -> bool:
    return base is not None and decode(base).alive


def _on_adopted(state: State, entry: Entry, adopted: dict[RowRef, Entry]) -> Entry:
    """An edit of an adopted row that was refused is what makes the row sendable: whole."""
    below = adopted.get(entry.row)
    if below is None or entry.kind != Kind.PARTIAL:
        return entry
    document = decode(entry.document)
    del adopted[entry.row]
    if document.deleted != NEVER:
        return entry
    mark = stamp(edit_time(entry.recorded_ms, state.meta.offset_ms, entry.seen), state.meta.replica)
    full = whole(merge(decode(below.document), document), mark, state.author)
    return entry._replace(kind=Kind.WHOLE, document=encode(full), derived=None)


def _record(
    state: State,
    changeset: Changeset,
    entries: Sequence[Entry],
    reason: str,
    message: str,
    known: Steps,
) -> Rejection:
    for entry in entries:
        step = known.get((changeset.id, entry.row, entry.document))
        record_entry(
            state.conn,
            state.tables[entry.row.table],
            entry,
            state.now_ms,
            reason,
            message,
            changeset=changeset.id,
            before=step.before if step else EMPTY,
        )
    return Rejection(
        reason,
        message,
        tuple((state.tables[e.row.table].table.name, e.row.key) for e in entries),
    )


def _revert(state: State, refs: set[RowRef], adopted: dict[RowRef, Entry]) -> None:
    lines = lines_of(state.conn, refs)
    rebuild(state, {ref: row for ref, row in lines.items() if ref not in adopted})
    if adopted:
        save_rows(
            state.conn,
            [
                (ref, Row(None, entry.document, None, None, True, "rejected"))
                for ref, entry in adopted.items()
            ],
        )
