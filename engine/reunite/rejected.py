"""What could not be synced, kept where the app can read it: the table `reunite_rejected`.

Each line is one row's intent: `kind` insert, update, delete or adopted; `values` a JSON object of
the columns that it set (blobs as {"blob": hex}), for columns that merge what was done to them
({"add": 3}, {"add": [...], "remove": [...]}, {"before": ..., "after": ...}); `reason` the
protocol's word, `local` when the row never left this file, or `declared` for a column (without a
row) that does not do as it is declared now; `message` what to do about it.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence

from reunite.bookkeeping import Tracked
from reunite.cells import EMPTY_STATE, KINDS
from reunite.cells.register import Register, Value
from reunite.clock import FLOOR, NEVER
from reunite.columns import is_hidden
from reunite.document import EMPTY, KIND_MASK, Document, cell_key, decode
from reunite.errors import FormatError
from reunite.keys import stored_key
from reunite.payload import Entry, Kind


def record_entry(
    conn: sqlite3.Connection,
    tracked: Tracked,
    entry: Entry,
    now_ms: int,
    reason: str,
    message: str,
    *,
    changeset: int | None,
    before: Document = EMPTY,
) -> None:
    """Keep the intent of one entry of a rejected changeset, which was made on the row `before`;
    `changeset` is None for what was in none."""
    if changeset is not None:
        conn.execute("INSERT OR IGNORE INTO _reunite_refused (changeset) VALUES (?)", (changeset,))
    document = decode(entry.document)
    if entry.kind == Kind.ADOPTED:
        kind = "adopted"
    elif document.deleted != NEVER:
        kind = "delete"
    else:
        kind = "insert" if document.born != NEVER else "update"
    name_by_key = {cell_key(column.id): column.name for column in tracked.table.columns}
    values = {
        name_by_key.get(key & ~KIND_MASK, f"#{key >> 3}"): _intent(key, cell, before)
        for key, cell in document.cells.items()
    }
    _insert(conn, tracked, entry.row.key, kind, reason, message, values, now_ms)


def record_local(
    conn: sqlite3.Connection,
    tracked: Tracked,
    key: Sequence[Value],
    rows: Sequence[Sequence[Value]],
    now_ms: int,
    problem: str,
) -> None:
    """Keep note of the rows of a key that cannot leave this file; the table is not touched. There
    are none when the row is gone, and several when the key is NULL. What was noted before of this
    key is replaced."""
    forget_local(conn, tracked, key)
    message = f"{problem}; the row stays in this file only. Change it, and it will sync"
    for values in rows:
        named = dict(zip((column.name for column in tracked.table.key), key, strict=True))
        # A row that is too large comes without values: they are not kept a second time.
        named |= dict(zip((column.name for column in tracked.table.cells), values, strict=False))
        stored = _printable(stored_key(key))
        _insert(conn, tracked, stored, "insert", "local", message, named, now_ms)


def forget_local(conn: sqlite3.Connection, tracked: Tracked, key: Sequence[Value]) -> bool:
    """Drop what `record_local` noted of this key; False when there was nothing."""
    dropped = conn.execute(
        "DELETE FROM reunite_rejected WHERE \"table\" = ? AND key IS ? AND reason = 'local'",
        (tracked.table.name, _printable(stored_key(key))),
    )
    return dropped.rowcount > 0


def _insert(
    conn: sqlite3.Connection,
    tracked: Tracked,
    key: Value,
    kind: str,
    reason: str,
    message: str,
    values: Mapping[str, object],
    now_ms: int,
) -> None:
    conn.execute(
        'INSERT INTO reunite_rejected (at_ms, "table", key, kind, reason, message, "values")'
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now_ms, tracked.table.name, key, kind, reason, message, json.dumps(values, default=_blob)),
    )


def _intent(key: int, cell: Register, before: Document) -> object:
    """What an entry says of a column: its value, or what was done to one that merges."""
    kind, state = key & KIND_MASK, cell[1]
    if not kind:
        return state
    assert isinstance(state, bytes)
    known = before.cells.get(key, (FLOOR, EMPTY_STATE[kind]))[1]
    assert isinstance(known, bytes)
    hidden = is_hidden(before, key)
    for begun in (known, EMPTY_STATE[kind]):
        # What did not show is not what its author changed.
        seen = EMPTY_STATE[kind] if hidden else begun
        try:
            return KINDS[kind].intent(seen, KINDS[kind].merge(begun, state))
        except FormatError:
            continue  # more than a cell can hold, or made on what is not known
    return {"unreadable": state.hex()}


def _blob(value: bytes) -> dict[str, str]:
    return {"blob": value.hex()}


def _printable(key: Value) -> Value:
    """The key with bytes that are not UTF-8 made visible, as SQLite's binding refuses them."""
    return key.encode("utf-8", "backslashreplace").decode() if isinstance(key, str) else key
