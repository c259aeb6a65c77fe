"""Builds what clients push: documents and changesets of small tables, for the relay's tests."""

from collections.abc import Mapping, Sequence

from reunite.cells.register import Value
from reunite.clock import NEVER, stamp
from reunite.document import Document, cell_key, encode
from reunite.keys import pack_key
from reunite.schema import Column, ForeignKey, Index, Table
from reunite_transport.messages import Entries, EntryKind
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.store import RowId

A, B = 101, 102


def table(
    name: str,
    *columns: Column,
    foreign_keys: Sequence[ForeignKey] = (),
    unique: Sequence[tuple[str, ...]] = (),
) -> Table:
    """A table with an integer key `id`, these columns, and a UNIQUE over each of `unique`."""
    return Table(
        name=name,
        columns=(Column("id", 1, "INTEGER", "integer", True, None, 1), *columns),
        foreign_keys=tuple(foreign_keys),
        indexes=tuple(Index(f"unique_{'_'.join(over)}", over, True) for over in unique),
    )


def column(
    name: str, kind: str = "text", default: str | None = None, *, notnull: bool = False
) -> Column:
    """A column that is no key; its id is given by the registry."""
    declared = {
        "integer": "INTEGER",
        "text": "TEXT",
        "real": "REAL",
        "blob": "BLOB",
        "crdt_set": "CRDT_SET_TEXT",
        "crdt_list": "CRDT_LIST_TEXT",
        "crdt_json": "CRDT_JSON_TEXT",
    }
    return Column(name, 900, declared.get(kind, kind), kind, notnull, default)


PERSON = table(
    "person", column("email"), column("name"), column("age", "integer"), unique=[("email",)]
)


def at(now_ms: int, replica: int, counter: int = 0) -> bytes:
    """A stamp of this millisecond."""
    return stamp((now_ms << 16) + counter, replica)


def row(key: Value | tuple[Value, ...], table_id: int = 1) -> RowId:
    """A row by its key's value or values."""
    return RowId(table_id, pack_key(key if isinstance(key, tuple) else (key,)))


def inserted(made_at: bytes, values: Mapping[int, Value]) -> Document:
    """A new row whose cells, by column id, all have one stamp."""
    return Document(made_at, made_at, NEVER, {cell_key(c): (made_at, v) for c, v in values.items()})


def edited(made_at: bytes, values: Mapping[int, Value]) -> Document:
    """The delta of an update."""
    return Document(NEVER, made_at, NEVER, {cell_key(c): (made_at, v) for c, v in values.items()})


def deleted(made_at: bytes) -> Document:
    """The delta of a delete."""
    return Document(NEVER, NEVER, made_at, {})


def entries(
    *rows: tuple[Value, Document],
    table_id: int = 1,
    kind: EntryKind | None = None,
    derived: tuple[tuple[int, int, bytes], ...] = (),
) -> Entries:
    """A section; a document that was born in it is WHOLE, any other PARTIAL."""
    return Entries(
        table_id,
        tuple(row(key, table_id).key for key, _ in rows),
        tuple(encode(document) for _, document in rows),
        tuple(
            kind if kind is not None else EntryKind.WHOLE if document.born else EntryKind.PARTIAL
            for _, document in rows
        ),
        derived,
    )


def changeset(
    replica: int, number: int, *sections: Entries, term: int = 1, nonce: bytes | None = None
) -> Changeset:
    """A changeset; its nonce tells its author and number unless another is given."""
    return Changeset(replica, term, number, nonce or nonce_of(replica, number), False, sections)


def nonce_of(replica: int, number: int) -> bytes:
    """The nonce that `changeset` gives."""
    return replica.to_bytes(4, "big") + number.to_bytes(4, "big")
