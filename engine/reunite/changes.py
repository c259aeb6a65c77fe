"""The log of changes that an app follows: which rows changed since when, and whose doing it was.

It is kept from the first `watch_changes` or transaction with an origin, and holds one line a row:
for each origin the turn (see `turns`) of its last change, and of its last change of each column.
So it holds a line for each row that there ever was, and never has to be cut; whoever was away for a
year is told each row once, as it is now. A *token* is a turn: everything up to it was told.

    origin    | whose change
    ----------|------------------------------------------------------------------
    here      | this file's own, by whatever program; also what a refusal took back
    replica   | what a relay brought: another file's, or rows that a database had before
    backend   | that of a backend, or what Postgres itself made of a row
    any other | what `Database.transaction(origin=...)` said; known in this file only
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from reunite.bookkeeping import Row, Tracked, load_meta, load_tables
from reunite.capture import captured_tables, last_captured
from reunite.cells.register import Value, same
from reunite.clock import NEVER, is_relay, replica_of
from reunite.document import EMPTY, KIND_MASK, decode
from reunite.errors import UsageError
from reunite.keys import key_values, stored_key
from reunite.payload import Entry, RowRef
from reunite.schema import ascii_lower, parents_first, quoted
from reunite.state import State

HERE: Final = "here"
REPLICA: Final = "replica"
BACKEND: Final = "backend"
# An origin stands in the line of each row.
ORIGIN_CHARS_MAX: Final = 64
_LOOKUP_KEYS: Final = 900

Kind: TypeAlias = Literal["inserted", "updated", "deleted"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one row, by one origin.

    `key` is its primary key, a tuple where that has several columns; `row` the row as it is now, by
    column, None when it was deleted; `columns` those that this origin changed.
    """

    table: str
    key: Value | tuple[Value, ...]
    kind: Kind
    row: Mapping[str, Value] | None
    columns: frozenset[str]
    origin: str


@dataclass(frozen=True, slots=True)
class Changes(Sequence[Change]):
    """What changed since the token before: a table after those that it refers to, and deletes
    last."""

    token: str
    changes: tuple[Change, ...]

    def __len__(self) -> int:
        return len(self.changes)

    def __getitem__(self, at: Any) -> Any:
        return self.changes[at]


class Edit(NamedTuple):
    """A change that is to be noted. `columns` are names; None for a deleted row."""

    row: RowRef
    origin: str
    is_new: bool
    columns: Iterable[str] | None


def check_origin(origin: str) -> None:
    """Raises UsageError for what cannot name an origin."""
    if origin in (HERE, REPLICA, BACKEND) or not 0 < len(origin) <= ORIGIN_CHARS_MAX:
        raise UsageError(
            f"{origin!r} cannot name an origin: it has 1 to {ORIGIN_CHARS_MAX} characters, and"
            f" {HERE!r}, {REPLICA!r} and {BACKEND!r} have their own meaning"
        )


def renew(state: State) -> None:
    """Let no token of before count: the file was copied or restored, and its twin goes on with the
    same numbers."""
    if state.meta.feed:
        state.meta.feed = state.chance.replica()
        state.save("feed")


def begin(state: State) -> None:
    """Keep the log from now on."""
    if not state.meta.feed:
        state.meta.feed = state.chance.replica()
        state.save("feed")


# Noting. Both are called where the log is kept, in the transaction that changes the rows.


def living(state: State) -> set[RowRef]:
    """The captured rows that were there before, by what was known of them."""
    found: set[RowRef] = set()
    for table in captured_tables(state.conn, 0, last_captured(state.conn)):
        shape = state.shapes.get(table)
        if shape is not None:
            found |= {RowRef(table, key) for key in shape.captured.living(state.conn)}
    return found


def note_entries(state: State, entries: Sequence[Entry], before: Set[RowRef]) -> None:
    """Note what a fold found; `before` are the rows that were there."""
    edits = []
    for entry in entries:
        document = decode(entry.document)
        shape = state.shapes[entry.row.table]
        columns = None
        if document.alive or document.deleted == NEVER:
            names = zip(shape.keys, (column.name for column in shape.columns.columns), strict=True)
            written = {key & ~KIND_MASK for key in document.cells}
            columns = [name for key, name in names if key in written]
        is_new = entry.row not in before
        edits.append(Edit(entry.row, state.origin or HERE, is_new, columns))
    _note(state, edits)


class Held(NamedTuple):
    """A row before or after a merge: its cells in the table, None where it was not there, and its
    line."""

    values: Sequence[Value] | None
    line: Row


def note_merge(state: State, before: Mapping[RowRef, Held], after: Mapping[RowRef, Held]) -> None:
    """Note how a merge changed the tables. What it brings is others' doing, unless the state says
    whose it is."""
    edits = []
    for ref, (values, line) in after.items():
        shape, old = state.shapes[ref.table], before[ref].values
        if values is None and old is None:
            continue
        known = _stamps(before[ref].line)
        fresh = _stamps(line)
        if values is None:
            edits.append(Edit(ref, _brought_by(state, fresh[_LIFE] - known[_LIFE]), False, None))
            continue
        if old is None:
            author = _brought_by(state, set().union(*fresh.values()))
            everything = [column.name for column in shape.columns.columns]
            edits.append(Edit(ref, author, True, everything))
            continue
        names: dict[str, list[str]] = {}
        for place, (key, value) in enumerate(zip(shape.keys, values, strict=True)):
            if not same(old[place], value):
                author = _brought_by(state, fresh[key] - known[key] or fresh[key])
                names.setdefault(author, []).append(shape.columns.columns[place].name)
        edits += [Edit(ref, origin, False, columns) for origin, columns in names.items()]
    _note(state, edits)


def note_column(
    state: State, tracked: Tracked, column: str, keys: Iterable[Sequence[Value]]
) -> None:
    """Note that a column, which others have had for a while, has got its values here."""
    state.written.add(tracked.id)
    if state.meta.feed:
        rows = [RowRef(tracked.id, stored_key(key)) for key in keys]
        _note(state, [Edit(row, REPLICA, False, [column]) for row in rows])


# Where the stamps of a row's life stand among those of its cells.
_LIFE: Final = -1


def _stamps(line: Row) -> dict[int, set[bytes]]:
    """The stamps of a row by column: of what it shows, and of what the relay stated, since a cell
    that merges has the stamp of the last edit alone."""
    found: dict[int, set[bytes]] = defaultdict(set)
    for data in (line.visible, line.base):
        document = decode(data) if data else EMPTY
        found[_LIFE] |= {document.born, document.edited, document.deleted}
        for key, (mark, _) in document.cells.items():
            found[key & ~KIND_MASK].add(mark)
    return found


def _brought_by(state: State, stamps: Set[bytes]) -> str:
    """Whose the newest of these stamps is that is not this file's own."""
    if state.origin is not None:
        return state.origin
    others = [mark for mark in stamps if mark and replica_of(mark) != state.meta.replica]
    return BACKEND if others and is_relay(replica_of(max(others))) else REPLICA


def _by(author: int, replica: int) -> str:
    return BACKEND if is_relay(author) else HERE if author == replica else REPLICA


# A line's edits by origin: [turn, {column: turn}], and [turn, null] where it deleted the row.
_Edits: TypeAlias = dict[str, tuple[int, dict[str, int] | None]]


class _Line(NamedTuple):
    """A line of the log. `born` is the turn in which the row came to be there, 0 when it always
    was; `author` the origin that made it."""

    turn: int
    born: int
    author: str | None
    edits: _Edits


def _note(state: State, edits: Iterable[Edit]) -> None:
    turn = state.meta.turn + 1
    noted = list(edits)
    state.written.update(edit.row.table for edit in noted)
    lines = _lines(state.conn, {edit.row for edit in noted})
    for ref, origin, is_new, columns in noted:
        known = lines.get(ref)
        born, author, by_origin = known[1:] if known else (0, None, {})
        if is_new or columns is None:
            # What was done to it in a former life, or before it went, is of no interest.
            by_origin = {}
        if columns is None:
            by_origin[origin] = (turn, None)
        else:
            edited = by_origin.get(origin, (0, None))[1] or {}
            by_origin[origin] = (turn, {**edited, **dict.fromkeys(columns, turn)})
            if is_new:
                born, author = turn, origin
        lines[ref] = _Line(turn, born, author, by_origin)
    state.conn.executemany(
        "INSERT OR REPLACE INTO _reunite_changes (tbl, key, turn, born, author, edits)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (*ref, line.turn, line.born, line.author, json.dumps(line.edits, ensure_ascii=False))
            for ref, line in lines.items()
        ],
    )


def _lines(conn: sqlite3.Connection, refs: Iterable[RowRef]) -> dict[RowRef, _Line]:
    keys_by_table: dict[int, list[Value]] = {}
    for table, key in refs:
        keys_by_table.setdefault(table, []).append(key)
    found = {}
    for table, keys in keys_by_table.items():
        for at in range(0, len(keys), _LOOKUP_KEYS):
            some = keys[at : at + _LOOKUP_KEYS]
            for key, *fields, edits in conn.execute(
                "SELECT key, turn, born, author, edits FROM _reunite_changes"
                f" WHERE tbl = ? AND key IN ({','.join('?' * len(some))})",
                (table, *some),
            ):
                turn, born, author = fields
                found[RowRef(table, key)] = _Line(turn, born, author, json.loads(edits))
    return found


# Reading, on the connection that watches, in a read transaction.


def since(conn: sqlite3.Connection, names: Sequence[str], after: str | None) -> Changes:
    """What changed after a token, or everything that is there. Raises UsageError."""
    meta, tables = load_meta(conn), load_tables(conn)
    told = _turn(after, meta.feed, meta.turn) if after is not None else -1
    tracked = {ascii_lower(t.table.name): t for t in tables.values() if t.tracked}
    for name in names:
        if ascii_lower(name) not in tracked:
            raise UsageError(f"table {name!r} is not tracked; call db.track({name!r}) first")
    wanted = [tracked[ascii_lower(name)] for name in names] or list(tracked.values())
    by_name = {t.table.name: t for t in wanted}
    ordered = [by_name[t.name] for t in parents_first([t.table for t in wanted])]
    written: list[Change] = []
    deleted: list[Change] = []
    for each in ordered:
        gone: list[Change] = []
        for change in _changes_of(conn, each, told, meta.replica):
            (gone if change.kind == "deleted" else written).append(change)
        deleted = gone + deleted
    return Changes(f"{meta.feed:x}-{meta.turn:x}", (*written, *deleted))


def _turn(token: str, feed: int, turn: int) -> int:
    log, _, at = token.partition("-")
    try:
        known, since = int(log, 16), int(at, 16)
    except ValueError:
        raise UsageError(f"{token!r} is no token of `watch_changes`") from None
    if known != feed or since > turn:
        raise UsageError(
            "this token is of another file, or of a later state of this one; begin without a token"
        )
    return since


def _changes_of(
    conn: sqlite3.Connection, tracked: Tracked, told: int, replica: int
) -> Iterator[Change]:
    table = tracked.table
    count = len(table.key)
    names = [column.name for column in (*table.key, *table.cells)]
    columns = ", ".join(map(quoted, names))
    cells = frozenset(column.name for column in table.cells)

    def change(key: Value, kind: Kind, row: Any, columns: Iterable[str], origin: str) -> Change:
        values = key_values(key, count)
        shown = dict(zip(names, row, strict=True)) if row is not None else None
        named = values[0] if count == 1 else values
        return Change(table.name, named, kind, shown, frozenset(columns), origin)

    if told < 0:
        # The sign takes the affinity off, without which SQLite would not search by our key.
        stored = f"+t.{quoted(table.key[0].name)}"
        if count > 1:
            stored = " || ',' || ".join(f"quote(t.{quoted(column.name)})" for column in table.key)
        for key, base, visible, *row in conn.execute(
            f"SELECT r.key, r.base, r.visible, {columns} FROM {quoted(table.name)} AS t"
            # CROSS: SQLite would go through our lines and look for each in the whole table.
            f" CROSS JOIN _reunite_rows AS r ON r.tbl = {tracked.id} AND r.key = {stored}"
            f" LEFT JOIN _reunite_changes AS c ON c.tbl = {tracked.id} AND c.key = r.key"
            " WHERE c.key IS NULL ORDER BY r.key"
        ):
            yield change(key, "inserted", row, cells, _author(base, visible, replica))
    where = " AND ".join(f"{quoted(column.name)} = ?" for column in table.key)
    select = f"SELECT {columns} FROM {quoted(table.name)} WHERE {where}"
    lines = conn.execute(
        "SELECT c.key, c.born, c.author, c.edits, r.base, r.visible"
        " FROM _reunite_changes AS c"
        " LEFT JOIN _reunite_rows AS r ON r.tbl = c.tbl AND r.key = c.key"
        " WHERE c.turn > ? AND c.tbl = ? ORDER BY c.turn, c.key",
        (told, tracked.id),
    )
    for key, born, author, edits, base, visible in lines.fetchall():
        row = conn.execute(select, key_values(key, count)).fetchone()
        by_origin: _Edits = json.loads(edits)
        if told < 0:
            # Who begins is told what is there, and of it that something was done here.
            if row is not None:
                first = HERE if HERE in by_origin else author or _author(base, visible, replica)
                yield change(key, "inserted", row, cells, first)
            continue
        if row is not None and born > told and author not in by_origin:
            yield change(key, "inserted", row, cells, author or REPLICA)
        # Whose row it is comes first, for who would insert it.
        for origin, (turn, turns) in sorted(
            by_origin.items(), key=lambda edit: (edit[0] != author, edit[1][0])
        ):
            if turn <= told or (turns is None) != (row is None):
                continue
            if turns is None:
                yield change(key, "deleted", None, (), origin)
            elif born > told and origin == author:
                yield change(key, "inserted", row, cells, origin)
            else:
                fresh = {name for name, at in turns.items() if at > told}
                # A column may have got another name since.
                yield change(key, "updated", row, fresh if fresh <= cells else cells, origin)


def _author(base: bytes | None, visible: bytes | None, replica: int) -> str:
    """Whose a row is that was there before the log was kept: who edited it last, or this file where
    it is nowhere else."""
    data = visible or base
    if base is None or data is None:
        return HERE
    document = decode(data)
    return _by(replica_of(max(document.born, document.edited)), replica)
