"""Fold: turning captured keys into entries of a changeset. Owns what counts as an edit.

Each captured row is compared with its image where it has one, else with its visible document;
only cells that differ by storage class and bytes are edits. So a program that writes all columns
back from a fresh copy edits nothing, and a column whose table form is coarser than its document
(see `image`) is not an edit either. A column that merges inside its value becomes the edit that
makes the new value of the old one (see `columns`): an increment, an added element, typed text.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from reunite.bookkeeping import Meta, Row, forget_rows, save_new_rows, save_rows
from reunite.capture import WINDOW, capture_vanished, captured_tables, clear, last_captured
from reunite.cells import KINDS
from reunite.cells.kinds import Author
from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR, NEVER, edit_time, replica_of, stamp, time_of
from reunite.columns import CellEdit, shows
from reunite.document import (
    DOCUMENT_BYTES_MAX,
    EMPTY,
    KIND_MASK,
    Document,
    decode,
    encode,
    encode_edit,
    encode_insert_over_floor,
    latest_stamp,
    merge,
)
from reunite.errors import FormatError
from reunite.keys import key_problem, key_values
from reunite.payload import ABSENT, Entry, Kind, RowRef, pack_image, unpack_image
from reunite.rejected import forget_local, record_local
from reunite.shape import Shape, changed_values, expected


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
    # A value is not written as every replica shows it, such as JSON with spaces.
    untidy: bool = False


class Edits(NamedTuple):
    """What a fold found: the entries, rows that hold a value otherwise than all show it, and the
    tables that were written, by id."""

    entries: list[Entry]
    untidy: list[RowRef]
    tables: set[int]


def fold(
    conn: sqlite3.Connection,
    shapes: Mapping[int, Shape],
    meta: Meta,
    changeset: int,
    *,
    session: int,
    now_ms: int,
    recorded_ms: int | None = None,
    adopting: bool = False,
) -> Edits:
    """Fold all that is captured into entries of the changeset with this id, and clear the log.

    `session` numbers this opening of the file (see `Author`). `recorded_ms` is the one time of a
    transaction's edits; None lets each row carry the time of its own last capture. With `adopting`,
    rows are taken at the floor, as they came with their table. Lines of `_reunite_rows` are
    written; the caller saves the changeset.
    """
    windows: list[list[Entry]] = []
    untidy: list[RowRef] = []
    author = Author(meta.replica, session)
    causes: dict[RowRef, Sequence[Cause]] = {}
    tables = set(captured_tables(conn, 0, last_captured(conn)))
    for table in tables:
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
                    author,
                    changeset,
                    after,
                    until,
                    now_ms,
                    recorded_ms,
                    adopting,
                    causes,
                    untidy,
                )
        until = after
    if last:
        clear(conn, 0, last)
    entries = [entry for window in reversed(windows) for entry in window]
    return Edits(_derived(entries, causes) if causes else entries, untidy, tables)


def _fold_table(
    conn: sqlite3.Connection,
    shape: Shape,
    meta: Meta,
    author: Author,
    changeset: int,
    after: int,
    until: int,
    now_ms: int,
    recorded_ms: int | None,
    adopting: bool,
    causes: dict[RowRef, Sequence[Cause]],
    untidy: list[RowRef],
) -> list[Entry]:
    entries: list[Entry] = []
    merging = bool(shape.columns.kinds_by_key)
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
            if row is None and values is not None and not adopting and not merging:
                # Nearly all rows of a large transaction: made with no more than they need.
                if at != mark_ms:
                    mark, mark_ms = _mark(meta, at, NEVER), at
                data = _insert_document(shape, author, mark, values)
                if len(data) <= DOCUMENT_BYTES_MAX:
                    entries.append(Entry(ref, Kind.WHOLE, data, at, 0))
                    new.append((key, data))
                    continue
                problem = _TOO_LARGE
            elif adopting:
                folded = _adopted(shape, changeset, ref, row, values)
            else:
                folded = fold_row(shape, meta, author, changeset, ref, row, values, at)
        except UnicodeEncodeError:
            assert values is not None
            problem, rejected = "its text is not valid UTF-8", values
        except FormatError as error:
            problem = f"a column that merges cannot hold its value: {error}"
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
        if folded.untidy:
            untidy.append(ref)
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
    author: Author,
    changeset: int,
    ref: RowRef,
    row: Row | None,
    values: Sequence[Value] | None,
    recorded_ms: int,
) -> Folded | None:
    """Compare one row of the table (`values`, None when absent) with what we know of it."""
    known = row.document if row else None
    image = unpack_image(row.image) if row else None
    if known is None:
        if values is None:
            return Folded(None, None) if row else None
        if image and not _is_changed(shape, image, values):
            return None
        mark = _mark(meta, recorded_ms, NEVER)
        data = _insert_document(shape, author, mark, values)
        image = shape.columns.respelt(values)
        return Folded(
            Entry(ref, Kind.WHOLE, data, recorded_ms, 0),
            Row(None, data, pack_image(image), changeset, True, None),
            untidy=image is not None,
        )
    assert row is not None
    document = decode(known)
    mark = _mark(meta, recorded_ms, latest_stamp(known))
    if values is None:
        if not document.alive or image == ABSENT:
            return None
        if _is_local_only(row):
            return Folded(None, None)
        edited = _Edited(Document(NEVER, NEVER, mark, {}), Kind.PARTIAL, {})
    elif not document.alive:
        if image is not None and not _is_changed(shape, image, values):
            return None
        edited = _revived(shape, document, author, mark, values)
    else:
        found = _changed(shape, document, image, author, mark, values)
        if found is None:
            # A row that had been missing is there again, as the document has it.
            return Folded(None, row._replace(image=None, mark=None)) if image == ABSENT else None
        if isinstance(found, _Respelt):
            return Folded(None, row._replace(image=pack_image(found.image)), untidy=found.untidy)
        edited = found
        if _is_local_only(row):
            edited = _made_whole(document, edited, mark, author)
    return _folded(shape, meta, changeset, ref, row, document, edited, mark, recorded_ms)


def fold_cell(
    shape: Shape,
    meta: Meta,
    author: Author,
    changeset: int,
    ref: RowRef,
    row: Row,
    cell: CellEdit,
    recorded_ms: int,
) -> Folded:
    """An edit of one cell of a living row that is known as an edit, and not by what it made of the
    table; the caller writes the table."""
    assert row.document is not None, "a row that is not known has no cell to edit"
    document = decode(row.document)
    mark = _mark(meta, recorded_ms, latest_stamp(row.document))
    delta = Document(NEVER, mark, NEVER, {cell.key: (mark, cell.delta)})
    image = unpack_image(row.image) or {}
    image.pop(cell.key & ~KIND_MASK, None)
    edited = _Edited(delta, Kind.PARTIAL, {cell.key: (mark, cell.after)}, image or None)
    if _is_local_only(row):
        edited = _made_whole(document, edited, mark, author)
    return _folded(shape, meta, changeset, ref, row, document, edited, mark, recorded_ms)


def _folded(
    shape: Shape,
    meta: Meta,
    changeset: int,
    ref: RowRef,
    row: Row,
    document: Document,
    edited: "_Edited",
    mark: bytes,
    recorded_ms: int,
) -> Folded:
    known, delta = row.document, edited.delta
    assert known is not None
    # The stamp is above all that the row has, so what the edit says is what the join has.
    merged = Document(
        min(document.born, delta.born) if delta.born else document.born,
        delta.edited or document.edited,
        delta.deleted or document.deleted,
        {**document.cells, **edited.cells},
    )
    partial = edited.kind == Kind.PARTIAL
    causes = _causes(shape, ref, document, delta) if shape.parents and partial else ()
    if partial and delta.edited and shape.ascending:
        written = [cell[1] for cell in delta.cells.values()]
        data = encode_edit(mark, tuple(delta.cells), written, inserts=False)
    else:
        data = encode(delta)
    return Folded(
        Entry(ref, edited.kind, data, recorded_ms, _seen(meta, row, known)),
        Row(row.base, encode(merged), pack_image(edited.image), changeset, merged.alive, None),
        causes,
        edited.untidy,
    )


class _Edited(NamedTuple):
    """An edit of a row: the delta, its kind, the cells as they are after it, and the image."""

    delta: Document
    kind: Kind
    cells: Mapping[int, Register]
    image: dict[int, Value] | None = None
    untidy: bool = False


class _Respelt(NamedTuple):
    """No edit: a value only stands otherwise in the table than it is shown."""

    image: dict[int, Value] | None
    untidy: bool


def _made_whole(document: Document, edited: _Edited, mark: bytes, author: Author) -> _Edited:
    full = whole(merge(document, edited.delta), mark, author)
    return edited._replace(delta=full, kind=Kind.WHOLE, cells=full.cells)


def _is_local_only(row: Row) -> bool:
    return row.base is None and row.changeset is None


def _is_changed(shape: Shape, image: Mapping[int, Value], values: Sequence[Value]) -> bool:
    """Whether a row that the document does not have is another than the engine last saw."""
    return bool(changed_values(shape, expected(shape, EMPTY, image), values))


def _revived(
    shape: Shape, dead: Document, author: Author, mark: bytes, values: Sequence[Value]
) -> _Edited:
    """A row written over a deleted one: all columns say what they are. What merges goes on from
    where it was."""
    columns = shape.columns
    edits = [
        columns.edit(dead, key, value, author)
        for key, value in zip(shape.keys, values, strict=True)
    ]
    image = columns.respelt(values)
    return _Edited(
        Document(mark, mark, NEVER, {edit.key: (mark, edit.delta) for edit in edits}),
        Kind.WHOLE,
        {edit.key: (mark, edit.after) for edit in edits},
        image,
        image is not None,
    )


def _changed(
    shape: Shape,
    document: Document,
    image: Mapping[int, Value] | None,
    author: Author,
    mark: bytes,
    values: Sequence[Value],
) -> _Edited | _Respelt | None:
    """What was done to a living row; None when the table holds what it held before."""
    present = None if image == ABSENT else image
    held = expected(shape, document, present)
    changed = changed_values(shape, held, values)
    if not changed:
        return None
    kept = {key: value for key, value in present.items() if key not in changed} if present else {}
    columns = shape.columns
    if not columns.kinds_by_key:
        cells: dict[int, Register] = {key: (mark, value) for key, value in changed.items()}
        return _Edited(Document(NEVER, mark, NEVER, cells), Kind.PARTIAL, cells, kept or None)
    seen = dict(zip(shape.keys, held, strict=True))
    # Where the table held what the document shows, the edit is what makes the new value of that.
    edits = [
        columns.edit(
            document,
            key,
            value,
            author,
            seen=(present[key],) if present and key in present else None,
        )
        for key, value in changed.items()
        if not columns.is_same(key, seen[key], value)
    ]
    delta: dict[int, Register] = {edit.key: (mark, edit.delta) for edit in edits}
    after: dict[int, Register] = {edit.key: (mark, edit.after) for edit in edits}
    edited = document._replace(cells=document.cells | after)
    untidy = False
    for key, value in changed.items():
        shown = columns.value_of(edited, key)
        if not same(value, shown):
            kept[key] = value
            untidy = untidy or same(columns.tidy(key, value), shown)
    if not edits:
        return _Respelt(kept or None, untidy)
    return _Edited(Document(NEVER, mark, NEVER, delta), Kind.PARTIAL, after, kept or None, untidy)


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


def whole(document: Document, mark: bytes, author: Author) -> Document:
    """The document as one edit of everything: how a row that exists nowhere else is sent. One that
    came with its table stays known by its birth at the floor, and a cell that does not show stays
    below the one of its column that does."""
    cells: dict[int, Register] = {}
    for key, (_, value) in document.cells.items():
        kind = key & KIND_MASK
        if kind:
            assert isinstance(value, bytes)
            value = KINDS[kind].as_one_author(value, author)
        cells[key] = (mark if shows(document.cells, key) else FLOOR, value)
    return Document(FLOOR if document.born == FLOOR else mark, mark, NEVER, cells)


def _insert_document(shape: Shape, author: Author, mark: bytes, values: Sequence[Value]) -> bytes:
    """The document of a row that nobody here knew. Columns at their default get the floor stamp,
    so that a late "insert if missing" erases nobody's edit."""
    columns = shape.columns
    if columns.kinds_by_key or not shape.ascending:
        return encode(Document(mark, mark, NEVER, columns.inserted(values, mark, author)))
    at_floor = [
        value is default or (value == default and same(value, default))
        for value, default in zip(values, columns.defaults, strict=True)
    ]
    if True in at_floor:
        return encode_insert_over_floor(mark, shape.keys, values, at_floor)
    return encode_edit(mark, shape.keys, values, inserts=True)


def _adopted(
    shape: Shape, changeset: int, ref: RowRef, row: Row | None, values: Sequence[Value] | None
) -> Folded | None:
    """A row that came with its table: all of it at the floor, below any edit. The table is left as
    it is, also where its values are written otherwise than all others will show them."""
    if values is None:
        return None
    columns = shape.columns
    begun = [columns.begin(key, value) for key, value in zip(shape.keys, values, strict=True)]
    document = Document(FLOOR, FLOOR, NEVER, {edit.key: (FLOOR, edit.after) for edit in begun})
    known = decode(row.document) if row and row.document else None
    if row is not None and known is not None and known.alive:
        differs = changed_values(shape, columns.values(known), values)
        if all(columns.is_same(key, columns.value_of(known, key), v) for key, v in differs.items()):
            return Folded(None, row._replace(image=pack_image(differs))) if differs else None
    data = encode(document)
    entry = Entry(ref, Kind.ADOPTED, data, 0, 0)
    if row is None or known is None:
        return Folded(entry, Row(None, data, pack_image(columns.respelt(values)), changeset, True))
    # The realm has another row under this key. The table keeps its own until that is settled, and
    # only what is written from here on is an edit.
    merged = merge(known, document)
    held = (
        changed_values(shape, columns.values(merged), values)
        if merged.alive
        else dict(zip(shape.keys, values, strict=True))
    )
    line = Row(row.base, encode(merged), pack_image(held or None), changeset, merged.alive, None)
    return Folded(entry, line)


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
