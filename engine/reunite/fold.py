"""Fold: turning captured keys into entries of a changeset. Owns what counts as an edit.

Each captured row is compared with its image where it has one, else with its visible document;
only cells that differ by storage class and bytes are edits. So a program that writes all columns
back from a fresh copy edits nothing, and a column whose table form is coarser than its document
(see `image`) is not an edit either.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from reunite.bookkeeping import Meta, Row, Tracked, forget_rows, save_new_rows, save_rows
from reunite.capture import (
    WINDOW,
    Captured,
    capture_vanished,
    captured_tables,
    clear,
    has_hidden_collisions,
    last_captured,
)
from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR, NEVER, edit_time, replica_of, stamp, time_of
from reunite.document import (
    DOCUMENT_BYTES_MAX,
    EMPTY,
    Document,
    cell_key,
    decode,
    encode,
    encode_edit,
    encode_insert_over_floor,
    latest_stamp,
    merge,
)
from reunite.keys import key_problem, key_values, stored_key
from reunite.payload import ABSENT, Entry, Kind, RowRef, pack_image, unpack_image
from reunite.rejected import forget_local, record_local
from reunite.schema import Table, ascii_lower, default_value


class Parent(NamedTuple):
    """A foreign key to a parent's primary key: the parent's table id, the cell keys of the
    referring columns (or minus the place in the key) in the order of the parent's key, and what
    the parent's deletion does."""

    table: int
    columns: tuple[int, ...]
    on_delete: str

    def key_of(self, key: Sequence[Value], cells: Mapping[int, Register]) -> Value:
        """The stored key of the parent of a row with this key and these cells; None when it has
        none, or its columns are not all here."""
        values = [
            key[-column - 1] if column < 0 else cells.get(column, (FLOOR, None))[1]
            for column in self.columns
        ]
        return None if None in values else stored_key(values)


class Shape(NamedTuple):
    """What the fold needs of a table, computed once: cells' keys and defaults in column order."""

    tracked: Tracked
    captured: Captured
    keys: tuple[int, ...]
    defaults: tuple[Value, ...]
    parents: tuple[Parent, ...]
    # True when `keys` are in the order that documents keep, which is almost always.
    ascending: bool
    # A UNIQUE index over an expression: REPLACE can delete rows that no trigger sees.
    hidden_collisions: bool


class Cause(NamedTuple):
    """A row whose deletion could have made an edit of these columns, by a foreign key's action."""

    parent: RowRef
    columns: tuple[int, ...]


class Folded(NamedTuple):
    """One row after its fold: the entry, if it was an edit, its new line, and what could have
    caused the edit."""

    entry: Entry | None
    row: Row | None
    causes: Sequence[Cause] = ()


def shapes_of(conn: sqlite3.Connection, tables: Mapping[int, Tracked]) -> dict[int, Shape]:
    """The shapes of the tracked tables by their id."""
    by_name = {ascii_lower(t.table.name): t for t in tables.values() if t.tracked}
    return {
        tracked.id: Shape(
            tracked,
            Captured(tracked),
            tuple(cell_key(column.id) for column in tracked.table.cells),
            tuple(default_value(column) for column in tracked.table.cells),
            tuple(_parents(tracked.table, by_name)),
            (ids := [column.id for column in tracked.table.cells]) == sorted(ids),
            has_hidden_collisions(conn, tracked.table.name),
        )
        for tracked in by_name.values()
    }


def _parents(table: Table, by_name: Mapping[str, Tracked]) -> Iterator[Parent]:
    for foreign_key in table.foreign_keys:
        parent = by_name.get(ascii_lower(foreign_key.parent))
        if parent is None:
            continue
        places = {
            ascii_lower(theirs): own
            for own, theirs in zip(foreign_key.columns, foreign_key.parent_columns, strict=True)
        }
        names = [places.get(ascii_lower(column.name)) for column in parent.table.key]
        columns = [table.column(name) for name in names if name is not None]
        # A generated column is in no document.
        if None not in columns and len(columns) == len(places) == len(parent.table.key):
            yield Parent(
                parent.id,
                tuple(
                    -column.key if column.key else cell_key(column.id)
                    for column in columns
                    if column
                ),
                foreign_key.on_delete,
            )


def fold(
    conn: sqlite3.Connection,
    shapes: Mapping[int, Shape],
    meta: Meta,
    changeset: int,
    *,
    now_ms: int,
    recorded_ms: int | None = None,
    adopting: bool = False,
) -> list[Entry]:
    """Fold all that is captured into entries of the changeset with this id, and clear the log.

    `recorded_ms` is the one time of a transaction's edits; None lets each row carry the time of
    its own last capture. With `adopting`, rows are taken at the floor, as they came with their
    table. Lines of `_reunite_rows` are written; the caller saves the changeset.
    """
    windows: list[list[Entry]] = []
    causes: dict[RowRef, Sequence[Cause]] = {}
    for table in captured_tables(conn, 0, last_captured(conn)):
        if table in shapes and shapes[table].hidden_collisions:
            capture_vanished(conn, shapes[table].tracked, now_ms)
    last = last_captured(conn)
    until = last
    # From the end, so that a row which is in two windows carries the time of its last capture.
    while until > 0:
        after = max(until - WINDOW, 0)
        window: list[Entry] = []
        windows.append(window)
        for table in captured_tables(conn, after, until):
            shape = shapes.get(table)
            if shape is not None:
                window += _fold_table(
                    conn,
                    shape,
                    meta,
                    changeset,
                    after,
                    until,
                    now_ms,
                    recorded_ms,
                    adopting,
                    causes,
                )
        until = after
    if last:
        clear(conn, 0, last)
    entries = [entry for window in reversed(windows) for entry in window]
    return _derived(entries, causes) if causes else entries


def _fold_table(
    conn: sqlite3.Connection,
    shape: Shape,
    meta: Meta,
    changeset: int,
    after: int,
    until: int,
    now_ms: int,
    recorded_ms: int | None,
    adopting: bool,
    causes: dict[RowRef, Sequence[Cause]],
) -> list[Entry]:
    entries: list[Entry] = []
    new: list[tuple[Value, bytes]] = []
    lines = []
    gone = []
    plain_key = shape.captured.key_count == 1
    mark, mark_ms = NEVER, None
    for key, captured_ms, row, key_parts, values in shape.captured.read(conn, after, until):
        problem = None if plain_key and type(key) is int else key_problem(key_parts)
        if problem:
            found = [values] if values is not None else shape.captured.read_null(conn, key_parts)
            record_local(conn, shape.tracked, key_parts, found, now_ms, problem)
            continue
        ref = RowRef(shape.tracked.id, key)
        at = recorded_ms if recorded_ms is not None else captured_ms
        folded: Folded | None = None
        rejected: Sequence[Value] = ()
        try:
            if row is None and values is not None and not adopting:
                # Nearly all rows of a large transaction: made with no more than they need.
                if at != mark_ms:
                    mark, mark_ms = _mark(meta, at, NEVER), at
                data = _insert_document(shape, mark, values)
                if len(data) <= DOCUMENT_BYTES_MAX:
                    entries.append(Entry(ref, Kind.WHOLE, data, at, 0))
                    new.append((key, data))
                    continue
                problem = _TOO_LARGE
            elif adopting:
                folded = _adopted(shape, changeset, ref, row, values)
            else:
                folded = fold_row(shape, meta, changeset, ref, row, values, at)
        except UnicodeEncodeError:
            assert values is not None
            problem, rejected = "its text is not valid UTF-8", values
        # The whole row, not just the edit: the relay keeps it as one document.
        if folded and folded.entry and _size(folded) > DOCUMENT_BYTES_MAX:
            problem = _TOO_LARGE
        if problem:
            record_local(conn, shape.tracked, key_parts, [rejected], now_ms, problem)
            lines.append((ref, (row or Row(alive=True))._replace(mark="rejected")))
            continue
        if row is not None and row.mark == "rejected":
            mended = forget_local(conn, shape.tracked, key_parts)
            if mended and folded is None:
                lines.append((ref, row._replace(mark=None)))
        if folded is None:
            continue
        if folded.entry is not None:
            entries.append(folded.entry)
            if folded.causes:
                causes[ref] = folded.causes
        if folded.row is None:
            gone.append(ref)
        else:
            lines.append((ref, folded.row))
    save_new_rows(conn, shape.tracked.id, changeset, new)
    save_rows(conn, lines)
    forget_rows(conn, gone)
    return entries


_TOO_LARGE: Final = f"the row is over {DOCUMENT_BYTES_MAX} bytes"


def _size(folded: Folded) -> int:
    assert folded.entry is not None
    visible = folded.row.visible if folded.row else None
    return max(len(folded.entry.document), len(visible or b""))


def fold_row(
    shape: Shape,
    meta: Meta,
    changeset: int,
    ref: RowRef,
    row: Row | None,
    values: Sequence[Value] | None,
    recorded_ms: int,
) -> Folded | None:
    """Compare one row of the table (`values`, None when absent) with what we know of it."""
    known = row.document if row else None
    if known is None:
        if values is None:
            return Folded(None, None) if row else None
        if row and row.image and not _changed(shape, EMPTY, unpack_image(row.image), values):
            return None
        data = _insert_document(shape, _mark(meta, recorded_ms, NEVER), values)
        return Folded(
            Entry(ref, Kind.WHOLE, data, recorded_ms, 0),
            Row(None, data, None, changeset, True, None),
        )
    assert row is not None
    document = decode(known)
    mark = _mark(meta, recorded_ms, latest_stamp(known))
    image = unpack_image(row.image)
    local_only = row.base is None and row.changeset is None
    if values is None:
        if not document.alive or image == ABSENT:
            return None
        if local_only:
            return Folded(None, None)
        delta, kind = Document(NEVER, NEVER, mark, {}), Kind.PARTIAL
        image = None
    else:
        if not document.alive:
            if image is not None and not _changed(shape, EMPTY, image, values):
                return None
            cells = {key: (mark, value) for key, value in zip(shape.keys, values, strict=True)}
            delta, kind = Document(mark, mark, NEVER, cells), Kind.WHOLE
            image = None
        else:
            changed = _changed(shape, document, image if image != ABSENT else None, values)
            if not changed and image != ABSENT:
                return None
            if not changed:
                return Folded(None, row._replace(image=None, mark=None))
            delta = Document(
                NEVER, mark, NEVER, {key: (mark, value) for key, value in changed.items()}
            )
            kind = Kind.PARTIAL
            if local_only:
                delta, kind = whole(merge(document, delta), mark), Kind.WHOLE
            image = (
                {key: seen_value for key, seen_value in image.items() if key not in changed} or None
                if image and image != ABSENT
                else None
            )
    # The stamp is above all that the row has, so what the edit says is what the join has.
    merged = Document(
        min(document.born, delta.born) if delta.born else document.born,
        delta.edited or document.edited,
        delta.deleted or document.deleted,
        document.cells | delta.cells,
    )
    causes = _causes(shape, ref, document, delta) if shape.parents and kind == Kind.PARTIAL else ()
    if kind == Kind.PARTIAL and delta.edited and shape.ascending:
        values = [cell[1] for cell in delta.cells.values()]
        data = encode_edit(mark, tuple(delta.cells), values, inserts=False)
    else:
        data = encode(delta)
    return Folded(
        Entry(ref, kind, data, recorded_ms, _seen(meta, row, known)),
        Row(row.base, encode(merged), pack_image(image), changeset, merged.alive, None),
        causes,
    )


def _seen(meta: Meta, row: Row, visible: bytes) -> int:
    """The time of what the relay had stated of a row when it was edited. While that is offered to
    a restored relay it is no base, and is known by a stamp that another replica made."""
    if row.base is not None:
        return time_of(latest_stamp(row.base))
    latest = latest_stamp(visible)
    return time_of(latest) if replica_of(latest) != meta.replica else 0


def _mark(meta: Meta, recorded_ms: int, latest: bytes) -> bytes:
    """The stamp of an edit of a row whose document has this latest stamp."""
    return stamp(edit_time(recorded_ms, meta.offset_ms, time_of(latest)), meta.replica)


def _causes(shape: Shape, ref: RowRef, before: Document, delta: Document) -> Sequence[Cause]:
    """The parents whose deletion could have made this edit, by a foreign key's action."""
    found = []
    key = key_values(ref.key, shape.captured.key_count)
    for parent in shape.parents:
        cascades = parent.on_delete == "CASCADE"
        if parent.on_delete in ("NO ACTION", "RESTRICT") or cascades != (delta.deleted != NEVER):
            continue
        if not cascades and not any(column in delta.cells for column in parent.columns):
            continue
        parent_key = parent.key_of(key, before.cells)
        if parent_key is not None:
            found.append(Cause(RowRef(parent.table, parent_key), parent.columns))
    return found


def whole(document: Document, mark: bytes) -> Document:
    """The document as one edit of everything: how a row that exists nowhere else is sent. One that
    came with its table stays known by its birth at the floor."""
    cells: dict[int, Register] = {key: (mark, cell[1]) for key, cell in document.cells.items()}
    return Document(FLOOR if document.born == FLOOR else mark, mark, NEVER, cells)


def expected(shape: Shape, document: Document, image: Mapping[int, Value] | None) -> list[Value]:
    """What the table holds of a living row, in column order."""
    cells = document.cells
    if tuple(cells) == shape.keys:
        found = [cell[1] for cell in cells.values()]
    else:
        found = [
            cells[key][1] if key in cells else default
            for key, default in zip(shape.keys, shape.defaults, strict=True)
        ]
    if image:
        found = [image.get(key, value) for key, value in zip(shape.keys, found, strict=True)]
    return found


def _insert_document(shape: Shape, mark: bytes, values: Sequence[Value]) -> bytes:
    """The document of a row that nobody here knew. Columns at their default get the floor stamp,
    so that a late "insert if missing" erases nobody's edit."""
    at_floor = [
        value is default or (value == default and same(value, default))
        for value, default in zip(values, shape.defaults, strict=True)
    ]
    if not shape.ascending:
        cells = {
            key: (FLOOR if floor else mark, value)
            for key, value, floor in zip(shape.keys, values, at_floor, strict=True)
        }
        return encode(Document(mark, mark, NEVER, cells))
    if True in at_floor:
        return encode_insert_over_floor(mark, shape.keys, values, at_floor)
    return encode_edit(mark, shape.keys, values, inserts=True)


def _adopted(
    shape: Shape, changeset: int, ref: RowRef, row: Row | None, values: Sequence[Value] | None
) -> Folded | None:
    """A row that came with its table: all of it at the floor, below any edit."""
    if values is None:
        return None
    cells = {key: (FLOOR, value) for key, value in zip(shape.keys, values, strict=True)}
    document = Document(FLOOR, FLOOR, NEVER, cells)
    known = decode(row.document) if row and row.document else None
    if known is not None and known.alive and not _changed(shape, known, None, values):
        return None
    data = encode(document)
    entry = Entry(ref, Kind.ADOPTED, data, 0, 0)
    if row is None or known is None:
        return Folded(entry, Row(None, data, None, changeset, True, None))
    # The realm has another row under this key. The table keeps its own until that is settled, and
    # only what is written from here on is an edit.
    merged = merge(known, document)
    held = (
        _changed(shape, merged, None, values)
        if merged.alive
        else dict(zip(shape.keys, values, strict=True))
    )
    line = Row(row.base, encode(merged), pack_image(held or None), changeset, merged.alive, None)
    return Folded(entry, line)


def _changed(
    shape: Shape,
    document: Document,
    image: Mapping[int, Value] | None,
    values: Sequence[Value],
) -> dict[int, Value]:
    before = expected(shape, document, image)
    return {
        key: value
        for key, value, old in zip(shape.keys, values, before, strict=True)
        if value is not old
        and (type(value) is not type(old) or value != old or type(value) is float)
        and not same(value, old)
    }


def _derived(entries: Sequence[Entry], causes: Mapping[RowRef, Sequence[Cause]]) -> list[Entry]:
    """Mark what the deletion of a parent in this same changeset has caused as derived from it.

    Other columns of the row that were written beside it become an entry of their own, so that
    they stay when the relay drops the derived one.
    """
    deleted = {
        entry.row
        for entry in entries
        if entry.kind == Kind.PARTIAL and decode(entry.document).deleted != NEVER
    }
    marked: list[Entry] = []
    for entry in entries:
        left = entry
        for parent, columns in causes.get(entry.row, ()):
            if parent not in deleted or left.derived is not None:
                continue
            document = decode(left.document)
            rest = {key: cell for key, cell in document.cells.items() if key not in columns}
            if not rest:
                left = left._replace(derived=parent)
                continue
            caused = {key: cell for key, cell in document.cells.items() if key in columns}
            caused_only = encode(document._replace(cells=caused))
            marked.append(left._replace(document=caused_only, derived=parent))
            left = left._replace(document=encode(document._replace(cells=rest)))
        marked.append(left)
    return marked
