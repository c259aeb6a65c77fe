"""What could not be synced, kept where the app can read it: the table `reunite_rejected`.

Each line is one row's intent: `kind` insert, update, delete or adopted; `values` a JSON object of
the columns that it set (blobs as {"blob": hex}); `reason` the protocol's word, or `local` when the
row never left this file; `message` what to do about it.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence

from reunite.bookkeeping import Row, Tracked, save_rows
from reunite.cells.register import Value
from reunite.clock import NEVER
from reunite.document import cell_key, decode
from reunite.payload import Entry, Kind, RowRef


def record_entry(
    conn: sqlite3.Connection, tracked: Tracked, entry: Entry, now_ms: int, reason: str, message: str
) -> None:
    """Keep the intent of one entry of a rejected changeset."""
    document = decode(entry.document)
    if entry.kind == Kind.ADOPTED:
        kind = "adopted"
    elif document.deleted != NEVER:
        kind = "delete"
    else:
        kind = "insert" if entry.kind == Kind.WHOLE else "update"
    name_by_key = {cell_key(column.id): column.name for column in tracked.table.columns}
    values = {name_by_key.get(key, f"#{key >> 3}"): cell[1] for key, cell in document.cells.items()}
    _insert(conn, tracked, entry.row.key, kind, reason, message, values, now_ms)


def record_local(
    conn: sqlite3.Connection,
    tracked: Tracked,
    key: Value,
    key_parts: Sequence[Value],
    values: Sequence[Value] | None,
    now_ms: int,
    problem: str,
) -> None:
    """Keep note of a row that cannot leave this file; the table is not touched. A row already
    noted for the same problem is not noted twice."""
    conn.execute(
        "DELETE FROM reunite_rejected WHERE \"table\" = ? AND key IS ? AND reason = 'local'",
        (tracked.table.name, _printable(key)),
    )
    if values is None:
        return
    named = dict(zip((column.name for column in tracked.table.key), key_parts, strict=True))
    named |= dict(zip((column.name for column in tracked.table.cells), values, strict=True))
    message = f"{problem}; the row stays in this file only. Change it, and it will sync"
    _insert(conn, tracked, _printable(key), "insert", "local", message, named, now_ms)
    if key is not None and _printable(key) == key:
        old = conn.execute(
            "SELECT base, visible, image, changeset, alive, mark FROM _reunite_rows"
            " WHERE tbl = ? AND key = ?",
            (tracked.id, key),
        ).fetchone()
        row = Row(*old) if old else Row(alive=True)
        save_rows(conn, [(RowRef(tracked.id, key), row._replace(mark="rejected"))])


def _insert(
    conn: sqlite3.Connection,
    tracked: Tracked,
    key: Value,
    kind: str,
    reason: str,
    message: str,
    values: Mapping[str, Value],
    now_ms: int,
) -> None:
    conn.execute(
        'INSERT INTO reunite_rejected (at_ms, "table", key, kind, reason, message, "values")'
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now_ms, tracked.table.name, key, kind, reason, message, json.dumps(values, default=_blob)),
    )


def _blob(value: bytes) -> dict[str, str]:
    return {"blob": value.hex()}


def _printable(key: Value) -> Value:
    """The key with bytes that are not UTF-8 made visible, as SQLite's binding refuses them."""
    return key.encode("utf-8", "backslashreplace").decode() if isinstance(key, str) else key
