"""The outbox: changesets on their way to the relay, in order. Owns their numbers and freezing.

A changeset gets its nonce when it is made and its number when it is first sent; from then on its
payload is frozen until the relay's verdict. A rejected number is used again by its successor.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from reunite.bookkeeping import CHANGESET_ID_STEP, lines_of, save_rows
from reunite.cells.register import Register, Value
from reunite.clock import FLOOR, NEVER, edit_time, stamp, time_of
from reunite.document import Document, decode, encode, latest_stamp
from reunite.keys import key_values
from reunite.payload import Entry, Kind, RowRef, pack_entries, unpack_entries
from reunite.schema import ascii_lower, parents_first
from reunite.shape import Parent
from reunite.state import State

# A loose changeset may be split anywhere, so it is kept small enough that one bad row holds up
# little and a batch at the relay can be filled with several.
LOOSE_ROWS_MAX: Final = 1_000
LOOSE_BYTES_MAX: Final = 1 << 20

# What a changeset's `attempts` say: nothing of it was refused yet; it is a row alone, split off
# what was refused, and its try at the end is still to come; or it has had that.
UNREFUSED: Final = 0
ALONE: Final = -1
AT_THE_END: Final = 1


class Changeset(NamedTuple):
    """A line of the outbox. `seq` is set when the relay has it but we have not reached it."""

    id: int
    number: int | None
    nonce: bytes
    loose: bool
    adopting: bool
    attempts: int
    seq: int | None
    payload: bytes

    def entries(self) -> list[Entry]:
        """The changeset's entries."""
        return unpack_entries(self.payload)


_COLUMNS: Final = "id, number, nonce, loose, adopting, attempts, seq, payload"


def next_id(conn: sqlite3.Connection) -> int:
    """The id for a changeset after all others, those that are gone among them."""
    # Both: the sequence remembers what is gone, and a script that resets all sequences may have
    # forgotten what is there.
    last: int = conn.execute(
        "SELECT max(coalesce((SELECT max(id) FROM _reunite_changesets), 0), coalesce("
        "(SELECT max(seq) FROM sqlite_sequence WHERE name = '_reunite_changesets'), 0))"
    ).fetchone()[0]
    return last + CHANGESET_ID_STEP


def add(
    state: State, changeset: int, entries: Sequence[Entry], *, loose: bool, adopting: bool = False
) -> None:
    """Put entries at the end of the outbox. `changeset` is what the rows' lines name: the id of
    the last, where a large loose one becomes several in the room before it."""
    if not entries:
        return
    cut = list(parts(in_dependency_order(state, entries))) if loose else [list(entries)]
    room = CHANGESET_ID_STEP // len(cut)
    for index, part in enumerate(cut, start=1):
        number = changeset - (len(cut) - index) * room
        insert(state, number, part, loose=loose, adopting=adopting)
        if len(cut) > 1:
            point_lines_at(state, number, [entry.row for entry in part])


def deletes(entry: Entry) -> bool:
    """True for an entry that takes its row away."""
    if entry.kind not in (Kind.PARTIAL, Kind.OFFERED):
        return False
    document = decode(entry.document)
    return document.deleted != NEVER and not document.alive


def in_dependency_order(state: State, entries: Sequence[Entry]) -> list[Entry]:
    """The order in which entries can be committed one by one: parents before their children, and
    deletes last, children before their parents. Tables that refer to each other in a circle have
    no such order: what is refused there is tried again at the end."""
    ordered = parents_first([tracked.table for tracked in state.tables.values()])
    place_by_name = {ascii_lower(table.name): place for place, table in enumerate(ordered)}
    place_by_id = {t.id: place_by_name[ascii_lower(t.table.name)] for t in state.tables.values()}

    def place(entry: Entry) -> tuple[bool, int]:
        table = place_by_id[entry.row.table]
        gone = deletes(entry)
        return gone, -table if gone else table

    found: list[Entry] = []
    placed = sorted(((place(entry), entry) for entry in entries), key=itemgetter(0))
    for (gone, _), run in groupby(placed, itemgetter(0)):
        group = [entry for _, entry in run]
        shape = state.shapes.get(group[0].row.table)
        own = [p for p in shape.parents if p.table == shape.tracked.id] if shape else []
        if own and gone:
            # What a deleted row referred to is not in its entry.
            lines = lines_of(state.conn, [entry.row for entry in group])
            cells = [decode(lines[entry.row].document or entry.document).cells for entry in group]
            group = _own_parents_first(own, group, cells)[::-1]
        elif own:
            cells = [decode(entry.document).cells for entry in group]
            group = _own_parents_first(own, group, cells)
        found += group
    return found


def _own_parents_first(
    own: Sequence[Parent], entries: Sequence[Entry], cells: Sequence[Mapping[int, Register]]
) -> list[Entry]:
    """Entries of a table whose rows refer to rows of it, each after those it refers to. `own` are
    those foreign keys, `cells` is what the entries' rows hold."""
    waiting: dict[Value, list[Entry]] = {}
    parents: dict[Value, list[Value]] = {}
    for entry, held in zip(entries, cells, strict=True):
        # The key that is referred to is the table's own, so it has as many parts.
        key = key_values(entry.row.key, len(own[0].columns))
        waiting.setdefault(entry.row.key, []).append(entry)
        parents.setdefault(entry.row.key, []).extend(each.key_of(key, held) for each in own)
    ordered: list[Entry] = []
    for first in list(waiting):
        # Depth first, with a list for a stack: a chain of rows can be longer than Python's.
        path = [first]
        while path:
            before = [
                key for key in parents.pop(path[-1], ()) if key in waiting and key != path[-1]
            ]
            if before:
                path += before
            else:
                ordered += waiting.pop(path.pop(), [])
    return ordered


def insert(
    state: State,
    changeset: int,
    entries: Sequence[Entry],
    *,
    loose: bool,
    adopting: bool = False,
    attempts: int = UNREFUSED,
    nonce: bytes | None = None,
) -> None:
    """Write one new line, with a fresh nonce unless it is work that had one."""
    state.conn.execute(
        "INSERT INTO _reunite_changesets (id, nonce, loose, adopting, attempts, rows, payload)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            changeset,
            nonce or state.chance.nonce(),
            loose,
            adopting,
            attempts,
            len(entries),
            pack_entries(entries),
        ),
    )


def pending(conn: sqlite3.Connection) -> Iterator[Changeset]:
    """All changesets that the relay is not known to have, in order."""
    for fields in conn.execute(
        f"SELECT {_COLUMNS} FROM _reunite_changesets WHERE seq IS NULL ORDER BY id"
    ).fetchall():
        yield _changeset(fields)


def everything(conn: sqlite3.Connection) -> Iterator[Changeset]:
    """All changesets, in order: pending ones and those whose commit has not been reached."""
    for fields in conn.execute(
        f"SELECT {_COLUMNS} FROM _reunite_changesets ORDER BY id"
    ).fetchall():
        yield _changeset(fields)


def by_number(conn: sqlite3.Connection, number: int) -> Changeset | None:
    """The changeset that was sent under this number and has no verdict."""
    fields = conn.execute(
        f"SELECT {_COLUMNS} FROM _reunite_changesets WHERE number = ? AND seq IS NULL", (number,)
    ).fetchone()
    return _changeset(fields) if fields else None


def reached(conn: sqlite3.Connection, seq: int) -> list[Changeset]:
    """The changesets that were committed at or before this seq."""
    return [
        _changeset(fields)
        for fields in conn.execute(
            f"SELECT {_COLUMNS} FROM _reunite_changesets WHERE seq <= ? ORDER BY id", (seq,)
        ).fetchall()
    ]


def remove(conn: sqlite3.Connection, changeset: int) -> None:
    """Take a changeset out of the outbox."""
    conn.execute("DELETE FROM _reunite_changesets WHERE id = ?", (changeset,))


def encode_anew(conn: sqlite3.Connection, changeset: int, entries: Sequence[Entry]) -> None:
    """Write a changeset's entries in another form: other stamps, other column ids."""
    conn.execute(
        "UPDATE _reunite_changesets SET payload = ? WHERE id = ?",
        (pack_entries(entries), changeset),
    )


def replace_entries(state: State, changeset: Changeset, entries: Sequence[Entry]) -> None:
    """Give a changeset other entries. With them it is another one, by its nonce: a copy of this
    file may have sent what it was."""
    state.conn.execute(
        "UPDATE _reunite_changesets SET nonce = ?, rows = ?, payload = ? WHERE id = ?",
        (part_nonce(changeset, entries), len(entries), pack_entries(entries), changeset.id),
    )


def part_nonce(changeset: Changeset, entries: Sequence[Entry]) -> bytes:
    """The nonce of what is left of a changeset: the same in a copy of this file that is left with
    the same, so that the relay takes it once. As hard to guess as the changeset's own."""
    digest = blake2b(changeset.nonce, digest_size=len(changeset.nonce))
    for entry in entries:
        digest.update(repr((entry.row.table, entry.row.key, int(entry.kind))).encode())
    return digest.digest()


def nonces(conn: sqlite3.Connection, limit: int) -> list[bytes]:
    """The first pending nonces, whose numbers follow on from the acknowledged one."""
    return [
        row[0]
        for row in conn.execute(
            "SELECT nonce FROM _reunite_changesets WHERE seq IS NULL ORDER BY id LIMIT ?", (limit,)
        )
    ]


def freeze(state: State, *, changesets_max: int, bytes_max: int) -> list[Changeset]:
    """Number the next unsent changesets, up to these bounds but at least one if any, and return
    them. They are frozen from now on."""
    last: int | None = state.conn.execute(
        "SELECT max(number) FROM _reunite_changesets WHERE seq IS NULL"
    ).fetchone()[0]
    number = max(last or 0, state.meta.acknowledged)
    taken: list[Changeset] = []
    size = 0
    for fields in state.conn.execute(
        f"SELECT {_COLUMNS} FROM _reunite_changesets WHERE number IS NULL AND seq IS NULL"
        " ORDER BY id LIMIT ?",
        (changesets_max,),
    ):
        found = _changeset(fields)
        size += len(found.payload)
        if taken and size > bytes_max:
            break
        number += 1
        taken.append(found._replace(number=number))
    state.conn.executemany(
        "UPDATE _reunite_changesets SET number = ? WHERE id = ?",
        [(found.number, found.id) for found in taken],
    )
    return taken


def sent(conn: sqlite3.Connection, after: int, *, changesets_max: int) -> list[Changeset]:
    """Frozen changesets above a number, to be sent again after a reconnect."""
    return [
        _changeset(fields)
        for fields in conn.execute(
            f"SELECT {_COLUMNS} FROM _reunite_changesets WHERE seq IS NULL AND number > ?"
            " ORDER BY number LIMIT ?",
            (after, changesets_max),
        ).fetchall()
    ]


def shares(state: State) -> bool:
    """True while there is work that another file may have as well."""
    found = (
        state.meta.shared
        and state.conn.execute(
            "SELECT 1 FROM _reunite_changesets WHERE id <= ? LIMIT 1", (state.meta.shared,)
        ).fetchone()
    )
    return bool(found)


def is_under_way(conn: sqlite3.Connection) -> bool:
    """True while a changeset is sent or in whose commit has not been reached."""
    found = conn.execute(
        "SELECT 1 FROM _reunite_changesets WHERE number IS NOT NULL OR seq IS NOT NULL LIMIT 1"
    ).fetchone()
    return found is not None


def thaw(state: State, after: int) -> None:
    """Unfreeze what was sent above a number. It is the same work still, by its nonces, and the
    relay takes it once, whoever sends it."""
    state.conn.execute(
        "UPDATE _reunite_changesets SET number = NULL WHERE seq IS NULL AND number > ?", (after,)
    )


def restamp(state: State) -> set[RowRef]:
    """Stamp all unsent entries again from what was recorded: after the clock's offset or the
    replica's id has changed. Returns the rows whose pending changed; their lines are stale."""
    note_offered(state)
    chain: dict[RowRef, int] = {}
    changed: set[RowRef] = set()
    for changeset in everything(state.conn):
        sent = changeset.number is not None or changeset.seq is not None
        entries = changeset.entries()
        fresh = []
        for entry in entries:
            floor = chain.get(entry.row, 0)
            if sent or entry.kind in (Kind.ADOPTED, Kind.OFFERED):
                if not entry.is_base:
                    chain[entry.row] = max(floor, time_of(latest_stamp(entry.document)))
                fresh.append(entry)
                continue
            # A clock that was ahead and was put right recorded a time that is still to come.
            recorded_ms = min(entry.recorded_ms, state.now_ms)
            time = edit_time(recorded_ms, state.meta.offset_ms, max(entry.seen, floor))
            chain[entry.row] = time
            document = with_stamp(decode(entry.document), stamp(time, state.meta.replica))
            stamped = encode(document)
            if stamped != entry.document:
                changed.add(entry.row)
            fresh.append(entry._replace(document=stamped))
        if fresh != entries:
            encode_anew(state.conn, changeset.id, fresh)
    return changed


def note_offered(state: State) -> None:
    """Note what edits have seen that were made since this file offers what a relay had stated."""
    if shares(state):
        offered = {
            entry.row: time_of(latest_stamp(entry.document))
            for changeset in pending(state.conn)
            for entry in changeset.entries()
            if entry.is_base
        }
        note_seen(state, offered, after=state.meta.shared)


def note_seen(state: State, time_by_row: Mapping[RowRef, int], *, after: int = 0) -> None:
    """Note that the pending edits of these rows have seen, at these times, what leaves the outbox:
    stamped again, they must not fall behind it. The next edit of each row is told; each later one
    is stamped after the one before it, and is told when that leaves the outbox. Those in changesets
    up to `after` have not seen it."""
    left = dict(time_by_row)
    ids = state.conn.execute(
        "SELECT id FROM _reunite_changesets WHERE seq IS NULL AND id > ? ORDER BY id", (after,)
    )
    for (changeset,) in ids.fetchall() if left else ():
        (payload,) = state.conn.execute(
            "SELECT payload FROM _reunite_changesets WHERE id = ?", (changeset,)
        ).fetchone()
        entries = unpack_entries(payload)
        noted = [entry._replace(seen=max(entry.seen, left.get(entry.row, 0))) for entry in entries]
        if noted != entries:
            encode_anew(state.conn, changeset, noted)
        for entry in entries:
            left.pop(entry.row, None)
        if not left:
            return


def with_stamp(document: Document, mark: bytes) -> Document:
    """An entry's document with its one stamp replaced; what is at the floor or never stays."""
    born, edited, deleted, cells = document
    return Document(
        born if born in (NEVER, FLOOR) else mark,
        mark if edited else edited,
        mark if deleted else deleted,
        {key: cell if cell[0] == FLOOR else (mark, cell[1]) for key, cell in cells.items()},
    )


def point_lines_at(state: State, changeset: int, refs: Sequence[RowRef]) -> None:
    """Let the rows' lines name this changeset as their last pending one."""
    rows = lines_of(state.conn, refs)
    save_rows(state.conn, [(ref, row._replace(changeset=changeset)) for ref, row in rows.items()])


def parts(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in runs that are small enough for loose changesets."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.document)
        if part and (len(part) >= LOOSE_ROWS_MAX or size > LOOSE_BYTES_MAX):
            yield part
            part, size = [], len(entry.document)
        part.append(entry)
    if part:
        yield part


def _changeset(fields: Sequence[Any]) -> Changeset:
    changeset, number, nonce, loose, adopting, attempts, seq, payload = fields
    return Changeset(changeset, number, nonce, bool(loose), bool(adopting), attempts, seq, payload)
