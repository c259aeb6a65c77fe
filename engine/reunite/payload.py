"""Bytes that the engine keeps in its own tables: changeset payloads, images, table descriptions.

File format 1. Payloads are columnar: `[[table, keys, kinds, documents, times, seen, derived]...]`
with the file's own table ids and stored keys. They come from our own file, so reading checks only
what a damaged file could break.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import msgpack

from reunite.cells.register import Value
from reunite.errors import FileError, FormatError
from reunite.schema import Table, from_wire, to_wire


class Kind(IntEnum):
    """What an entry holds: a delta, a complete document, one that came with a table, or a document
    or delta as the relay had it before it was restored, with the stamps that it had."""

    PARTIAL = 0
    WHOLE = 1
    ADOPTED = 2
    OFFERED = 3


class RowRef(NamedTuple):
    """A row in this file: its table's id here and its key in stored form (see `reunite.keys`)."""

    table: int
    key: Value


class Entry(NamedTuple):
    """One row's part of a changeset.

    `document` is encoded, every stamp of it this replica's single one or FLOOR, but for OFFERED
    ones. `recorded_ms` is the local clock at the edit and `seen` the greatest time in the row's
    base then, so that the stamp can be made again; both are 0 for what is no edit of this file.
    `derived` names the parent whose deletion changed this row.
    """

    row: RowRef
    kind: int
    document: bytes
    recorded_ms: int
    seen: int
    derived: RowRef | None = None

    @property
    def is_base(self) -> bool:
        """True for what a relay had stated, offered to it again. Of the row's pending edits only
        those that were made since then have seen it."""
        return self.kind == Kind.OFFERED and not self.recorded_ms


class StatedRows(NamedTuple):
    """Rows of one table as the relay states them: its id for the table, packed keys, documents."""

    table: int
    keys: Sequence[bytes]
    documents: Sequence[bytes]


class Statement(NamedTuple):
    """A page or a live commit. When `complete`, everything up to `seq` is in it and what came
    before it, and (`seq`, `token`) is the new cursor; else more pages follow. `acknowledged`
    numbers join the base as they were pushed."""

    rows: Sequence[StatedRows]
    seq: int
    token: bytes
    complete: bool
    acknowledged: Sequence[int] = ()


# The image of a row that the document has and the table has not.
ABSENT: Final[Mapping[int, Value]] = {-1: None}


def pack_entries(entries: Sequence[Entry]) -> bytes:
    """A changeset's payload."""
    columns: dict[int, tuple[list[object], ...]] = {}
    for row, kind, document, recorded_ms, seen, derived in entries:
        section = columns.get(row.table)
        if section is None:
            section = columns[row.table] = ([], [], [], [], [], [])
        keys, kinds, documents, times, seens, parents = section
        if derived is not None:
            parents.append((len(keys), derived.table, derived.key))
        keys.append(row.key)
        kinds.append(kind)
        documents.append(document)
        times.append(recorded_ms)
        seens.append(seen)
    return msgpack.packb([(table, *section) for table, section in columns.items()])


def unpack_entries(payload: bytes) -> list[Entry]:
    """The entries of a payload, grouped by table as they were packed."""
    try:
        sections = msgpack.unpackb(payload, use_list=False)
        entries = []
        for table, keys, kinds, documents, times, seens, parents in sections:
            derived = {index: RowRef(parent, key) for index, parent, key in parents}
            entries += [
                Entry(RowRef(table, key), kind, document, recorded_ms, seen, derived.get(index))
                for index, (key, kind, document, recorded_ms, seen) in enumerate(
                    zip(keys, kinds, documents, times, seens, strict=True)
                )
            ]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FileError(f"a pending changeset in this file is damaged: {error}") from error
    return entries


def pack_image(image: Mapping[int, Value] | None) -> bytes | None:
    """What the table holds where it differs from the document, by column id; None for nothing."""
    return None if image is None else msgpack.packb(dict(image))


def unpack_image(data: bytes | None) -> dict[int, Value] | None:
    """The image again. `ABSENT` stands for a row that the table does not have."""
    if data is None:
        return None
    image: dict[int, Value] = msgpack.unpackb(data, strict_map_key=False)
    return image


def pack_table(table: Table) -> bytes:
    """A table's description for the file."""
    return msgpack.packb(to_wire(table))


def unpack_table(data: bytes) -> Table:
    """A table's description from the file."""
    try:
        return from_wire(msgpack.unpackb(data, use_list=False))
    except (FormatError, ValueError, msgpack.UnpackException) as error:
        raise FileError(f"a table's description in this file is damaged: {error}") from error


def pack_statement(statement: Statement) -> bytes:
    """A page or commit that waits in the inbox."""
    return msgpack.packb(statement)


def unpack_statement(data: bytes) -> Statement:
    """A page or commit from the inbox."""
    try:
        rows, *rest = msgpack.unpackb(data, use_list=False)
        return Statement([StatedRows(*section) for section in rows], *rest)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FileError(f"a received page in this file is damaged: {error}") from error
