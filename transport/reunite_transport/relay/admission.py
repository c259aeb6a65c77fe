"""Admission: what a pushed changeset says, checked by itself, before any document is looked at.

Everything here comes from a peer: keys, stamps, cells and kinds are as the protocol allows, or the
changeset is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from reunite.clock import AHEAD_MS_MAX, FLOOR, NEVER, replica_of, time_of
from reunite.document import Document, check_cells, decode, is_by, merges
from reunite.errors import FormatError
from reunite.keys import unpack_key
from reunite.schema import Table
from reunite_transport.messages import MESSAGE_CHARS_MAX, Entries, EntryKind
from reunite_transport.relay.store import RowId


@dataclass(frozen=True, slots=True)
class Changeset:
    """A whole changeset as a session collected it; `term` is that of its session."""

    replica: int
    term: int
    number: int
    nonce: bytes
    loose: bool
    sections: tuple[Entries, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The changeset is not in and will not be as it is; see `messages` for the reasons. `rows`
    are those that the reason concerns, where that is known. `message` is for the author alone; for
    the log are `table` and `constraint`, where the database names them."""

    reason: str
    message: str
    rows: tuple[RowId, ...] = ()
    table: str | None = field(default=None, compare=False)
    constraint: str | None = field(default=None, compare=False)


class Entry(NamedTuple):
    """One row's part of a changeset."""

    row: RowId
    document: Document
    kind: int
    # At most what the document adds to the bytes of the row's.
    size: int
    # The parents whose deletion caused this entry.
    derived: tuple[tuple[int, bytes], ...] = ()
    # Whether a cell of it merges inside its value.
    merging: bool = False


class Refusal(Exception):
    """A changeset cannot be taken; `verdict` says why."""

    def __init__(self, reason: str, message: str, rows: Iterable[RowId] = ()) -> None:
        self.verdict = Refused(reason, message[:MESSAGE_CHARS_MAX], tuple(rows))


def checked(
    changeset: Changeset, tables: Mapping[int, Table], now_ms: int, *, refill: bool
) -> list[Entry]:
    """The entries of a changeset, each checked by itself. Raises Refusal."""
    entries: list[Entry] = []
    own, offered = {NEVER, FLOOR}, {NEVER, FLOOR}
    for section in changeset.sections:
        table = tables.get(section.table)
        if table is None:
            raise Refusal("invalid", f"the relay does not sync table {section.table}")
        derived = _derived(section, tables)
        rows = zip(section.keys, section.documents, section.kinds, strict=True)
        for index, (key, data, kind) in enumerate(rows):
            try:
                _check_key(key, table)
                document = decode(data)
                merging = merges(document)
                if merging:
                    check_cells(document)
            except FormatError as error:
                raise Refusal("invalid", f"table {table.name!r}: {error}") from error
            stamps = {document.born, document.edited, document.deleted}
            stamps.update([cell[0] for cell in document.cells.values()])
            fine = offered if kind == EntryKind.OFFERED else own
            own_only = kind != EntryKind.OFFERED
            if merging and own_only and not is_by(document, changeset.replica):
                raise Refusal("invalid", "a cell names another replica than the pusher's")
            if not stamps <= fine:
                for found in stamps - fine:
                    _check_time(found, now_ms)
                    if kind != EntryKind.OFFERED and replica_of(found) != changeset.replica:
                        raise Refusal("invalid", "a stamp is not the pusher's own")
                fine |= stamps
            if kind == EntryKind.ADOPTED:
                if not stamps <= {NEVER, FLOOR} or document.deleted != NEVER:
                    raise Refusal("invalid", "an adopted row holds an edit")
            elif kind == EntryKind.OFFERED and not refill:
                raise Refusal(
                    "expired",
                    "the relay was restored from a backup, and what came after it is not wanted",
                )
            elif kind not in (EntryKind.PARTIAL, EntryKind.WHOLE, EntryKind.OFFERED):
                raise Refusal("invalid", f"an entry is of an unknown kind: {kind!r}")
            size = size_bound(data, document)
            row = RowId(table.id, key)
            parents = derived.get(index, ())
            entries.append(Entry(row, document, kind, size, parents, merging))
    return entries


def _derived(
    section: Entries, tables: Mapping[int, Table]
) -> dict[int, tuple[tuple[int, bytes], ...]]:
    parents_by_index: dict[int, tuple[tuple[int, bytes], ...]] = {}
    for index, parent, key in section.derived:
        if not 0 <= index < len(section.keys) or parent not in tables:
            raise Refusal("invalid", "an entry is derived from nothing")
        try:
            _check_key(key, tables[parent])
        except FormatError as error:
            raise Refusal("invalid", f"an entry is derived from nothing: {error}") from error
        parents_by_index[index] = (*parents_by_index.get(index, ()), (parent, key))
    return parents_by_index


def _check_key(key: bytes, table: Table) -> None:
    if len(unpack_key(key)) != len(table.key):
        raise FormatError("a key has too few or too many parts")


def _check_time(found: bytes, now_ms: int) -> None:
    ahead_ms = (time_of(found) >> 16) - now_ms
    if ahead_ms > AHEAD_MS_MAX:
        raise Refusal(
            "clock-ahead", f"an edit is {ahead_ms} ms ahead of the relay's clock; set yours"
        )


def is_delta(kind: int, document: Document) -> bool:
    """True for an entry that says too little to make a row of."""
    return kind == EntryKind.PARTIAL or (kind == EntryKind.OFFERED and document.born == NEVER)


def size_bound(data: bytes, document: Document) -> int:
    """At most what a document adds to the bytes of a join: each cell's number of a stamp, and a
    double where a peer wrote a single, may come on top of its own bytes."""
    return len(data) + 8 * len(document.cells) + 64
