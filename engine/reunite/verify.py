"""Verify: every table row equals its document, or the image kept of it. Reads, never writes.

Rows that were captured and not folded yet differ by right and are passed over.
"""

import sqlite3
from typing import NamedTuple

from reunite.bookkeeping import Row, is_prepared, load_tables
from reunite.capture import fetch_text, vanished
from reunite.cells.register import Value, same
from reunite.document import EMPTY, decode
from reunite.errors import FileError, FormatError
from reunite.keys import key_problem, stored_key
from reunite.payload import ABSENT, unpack_image
from reunite.rescan import is_current
from reunite.schema import quoted
from reunite.shape import Shape, expected, shapes_of


class Difference(NamedTuple):
    """One place where table and document disagree. `column` is None for a whole row or table."""

    table: str
    key: Value
    column: str | None
    message: str


def verify(conn: sqlite3.Connection) -> list[Difference]:
    """All differences of a file. Raises FileError when the file has never been tracked."""
    if not is_prepared(conn):
        raise FileError("this file is not tracked; run `reunite track FILE --all` first")
    conn.execute("BEGIN")
    try:
        found: list[Difference] = []
        for shape in shapes_of(conn, load_tables(conn)).values():
            found += _verify_table(conn, shape)
        return found
    finally:
        conn.execute("ROLLBACK")


def _verify_table(conn: sqlite3.Connection, shape: Shape) -> list[Difference]:
    tracked = shape.tracked
    name = tracked.table.name
    if not is_current(conn, tracked):
        return [
            Difference(
                name,
                None,
                None,
                "its shape or triggers changed since it was last looked at; `reunite sync` or"
                " `reunite track` takes the change in",
            )
        ]
    key = [quoted(column.name) for column in tracked.table.key]
    stored = (
        # The sign takes the affinity off, without which SQLite would not search by our key.
        f"+t.{key[0]}" if len(key) == 1 else " || ',' || ".join(f"quote(t.{part})" for part in key)
    )
    cells = "".join(f", t.{quoted(column.name)}" for column in tracked.table.cells)
    parts = "".join(f", t.{part}" for part in key)
    logged = ", ".join(f"k{index}" for index in range(len(key)))
    unfolded = {
        stored_key(values)
        for values in fetch_text(
            conn, f"SELECT {logged} FROM _reunite_log WHERE tbl = ?", (tracked.id,)
        )
    }
    found = []
    for line in fetch_text(
        conn,
        f"SELECT {stored}, r.base, r.visible, r.image, r.changeset, r.alive, r.mark{parts}{cells}"
        f" FROM {quoted(name)} AS t LEFT JOIN _reunite_rows AS r"
        f" ON r.tbl = {tracked.id} AND r.key = {stored}",
        (),
    ):
        # A row whose key cannot sync is noted in `reunite_rejected`, and is in no document.
        values, held = line[7 : 7 + len(key)], line[7 + len(key) :]
        if key_problem(values) is None and stored_key(values) not in unfolded:
            found += _verify_row(shape, line[0], Row(*line[1:7]), held)
    if unfolded and shape.hidden_collisions:
        # What was written may have replaced rows unseen; the fold looks for them.
        return found
    for values in vanished(conn, tracked):
        row = Row(
            *conn.execute(
                "SELECT base, visible, image, changeset, alive, mark FROM _reunite_rows"
                " WHERE tbl = ? AND key = ?",
                (tracked.id, stored_key(values)),
            ).fetchone()
        )
        if stored_key(values) not in unfolded and unpack_image(row.image) != ABSENT:
            found.append(Difference(name, stored_key(values), None, "the table lacks the row"))
    return found


def _verify_row(shape: Shape, key: Value, row: Row, values: tuple[Value, ...]) -> list[Difference]:
    name = shape.tracked.table.name
    if row.mark == "rejected":
        return []
    if row.document is None and row.image is None:
        return [Difference(name, key, None, "the row has no document")]
    image = unpack_image(row.image)
    try:
        document = decode(row.document) if row.document else EMPTY
        wanted = expected(shape, document, image if image != ABSENT else None)
    except FormatError as error:
        return [Difference(name, key, None, f"the document is damaged: {error}")]
    if not document.alive:
        if image is None or image == ABSENT:
            return [Difference(name, key, None, "the document says that the row is deleted")]
        wanted = [image.get(cell, None) for cell in shape.keys]
    return [
        Difference(name, key, column.name, f"the table has {value!r}, the document {said!r}")
        for column, value, said in zip(shape.tracked.table.cells, values, wanted, strict=True)
        if not same(value, said)
    ]
