"""Row documents: the CRDT state of one row, its merge, and its bytes. Owns document format 1.

A document is a join-semilattice value: `merge` is commutative, associative and idempotent, and a
delta (an edit's own cells and life) is a small document that merges like the one it came from.

Life: `born` is the least stamp that the row was inserted with, `edited` the greatest of any
insert or update, `deleted` the greatest of any delete. The row is alive while `edited > deleted`.
Deleting erases no cell, so a row revived by a later edit comes back whole.

Format 1, msgpack, equal documents have equal bytes (ext types and maps do not occur):

    [1, stamps, born, edited, deleted, keys, which, values]

    | field   | type | what |
    |---|---|---|
    | 1       | int         | the format's version |
    | stamps  | bin         | the distinct stamps, 16 bytes each, in ascending order |
    | born    | int         | 0 for never, else 1 + index of a stamp; so `edited`, `deleted` |
    | keys    | array of int| `column_id << 3 | kind`, ascending; kinds: see `reunite.cells` |
    | which   | int or array| the index of each cell's stamp: as one number, see below, or a list |
    | values  | array       | nil, int, float, str or bin; always bin for a kind but the register |

`which` is the sum of index * stamps ** position over the cells, in the order of their keys, where
all such numbers for that many stamps and cells fit 63 bits; else the list of indexes. So it is 0
while there is one stamp, and a further one costs little more than its own bytes.

A cell that merges inside its value has the stamp of its last edit, which says which of a column's
cells shows, and its own bytes, which say what it is.

The primary key is not in the document: it names the document.
Source of the semantics: Shapiro et al., "A comprehensive study of CRDTs" (2011), LWW-register.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

import msgpack

from reunite.cells import KINDS
from reunite.cells.register import INTEGER_MAX, Register, Value, wins
from reunite.cells.yjs import Yjs
from reunite.clock import FLOOR, NEVER, STAMP_BYTES
from reunite.errors import FormatError

VERSION: Final = 1

# A row larger than this would not fit a frame with room for others; SQLite itself ends at 1 GB.
DOCUMENT_BYTES_MAX: Final = 16 << 20
# SQLite's own ceiling for columns is 32,767; Postgres ends at 1,600.
CELLS_MAX: Final = 4_096
COLUMN_ID_MAX: Final = (1 << 28) - 1
# The bits of a cell's key that say what kind it is.
KIND_MASK: Final = 7


_K = TypeVar("_K")
_V = TypeVar("_V")


class Document(NamedTuple):
    """One row's CRDT state. `cells` maps a cell key to (stamp, value); treat it as immutable."""

    born: bytes
    edited: bytes
    deleted: bytes
    cells: dict[int, Register]

    @property
    def alive(self) -> bool:
        """True while the last edit is later than the last delete."""
        return self.edited > self.deleted

    def latest(self) -> bytes:
        """The greatest stamp anywhere in the document."""
        life = max(self.born, self.edited, self.deleted)
        return max(life, max((stamp for stamp, _ in self.cells.values()), default=life))


EMPTY: Final = Document(NEVER, NEVER, NEVER, {})


def cell_key(column_id: int, kind: int = 0) -> int:
    """The key of a column's cell."""
    return column_id << 3 | kind


def merge(a: Document, b: Document) -> Document:
    """The join of two states of one row, or of a state and a delta.

    Raises FormatError for a delta of a cell that builds on what `a` does not have."""
    cells = a.cells
    copied = False
    for key, theirs in b.cells.items():
        ours = cells.get(key)
        if ours is not None and key & KIND_MASK and ours is not theirs:
            theirs = _merged(key & KIND_MASK, ours, theirs)
            if theirs is ours:
                continue
        elif ours is not None and (ours is theirs or not wins(theirs, ours)):
            continue
        if not copied:
            cells, copied = cells.copy(), True
        cells[key] = theirs
    a_born, b_born = a.born, b.born
    born = min(a_born, b_born) if a_born and b_born else a_born or b_born
    return Document(born, max(a.edited, b.edited), max(a.deleted, b.deleted), cells)


def _merged(kind: int, ours: Register, theirs: Register) -> Register:
    joined = KINDS[kind].merge(_state(ours), _state(theirs))
    if joined is ours[1] and theirs[0] <= ours[0]:
        return ours
    return max(ours[0], theirs[0]), joined


def merges(document: Document) -> bool:
    """True when a document has a cell that merges inside its value."""
    found = _known_keys.get(tuple(document.cells))
    return bool(found[1]) if found else any(key & KIND_MASK for key in document.cells)


def check_cells(document: Document) -> None:
    """Raise FormatError unless every cell of a document, from a peer, is sound. `decode` looks at
    no cell's own bytes: they are checked once, where they come in, and whenever Yjs gets them."""
    for key, cell in document.cells.items():
        if key & KIND_MASK:
            KINDS[key & KIND_MASK].check(_state(cell))


def is_by(document: Document, replica: int) -> bool:
    """True when no cell of an entry says something in another replica's name."""
    return all(
        KINDS[key & KIND_MASK].is_by(_state(cell), replica)
        for key, cell in document.cells.items()
        if key & KIND_MASK
    )


def fits_onto(before: Document | None, delta: Document) -> bool:
    """True when nothing of a delta builds on what is not in `before`."""
    known = before.cells if before is not None else {}
    return all(
        KINDS[key & KIND_MASK].fits_onto(_state(known[key]) if key in known else None, _state(cell))
        for key, cell in delta.cells.items()
        if key & KIND_MASK
    )


def heavy_cells(before: Document | None, delta: Document) -> Sequence[tuple[str, bytes, bytes]]:
    """The Yjs cells for which a sound delta may be made to take long, so that a relay tries it
    elsewhere first: the root's name, the cell before, and what is applied to it."""
    known = before.cells if before is not None else {}
    found = []
    for key, cell in delta.cells.items():
        kind = KINDS[key & KIND_MASK] if key & KIND_MASK else None
        if isinstance(kind, Yjs):
            old = _state(known[key]) if key in known else None
            if kind.is_heavy(old, _state(cell)):
                found.append((kind.shape, old or b"", _state(cell)))
    return found


def _state(cell: Register) -> bytes:
    assert isinstance(cell[1], bytes)
    return cell[1]


def encode(document: Document) -> bytes:
    """The bytes of a document, format 1."""
    born, edited, deleted, cells = document
    keys = tuple(cells)
    if keys not in _known_keys:
        keys = tuple(sorted(keys))
        cells = {key: cells[key] for key in keys}
    # Pairs all; `strict=` would cost as much as the pairing does, here and in `decode`.
    cell_stamps, values = zip(*cells.values()) if keys else ((), ())  # noqa: B905
    distinct = {born, edited, deleted, *cell_stamps}
    distinct.discard(NEVER)
    if len(distinct) == 1:
        # Most rows: one edit wrote everything.
        life = (1 if born else 0, 1 if edited else 0, 1 if deleted else 0)
        return _pack((VERSION, *distinct, *life, keys, 0, values))
    stamps = sorted(distinct)
    index = {value: position for position, value in enumerate(stamps)}
    which = _which(len(stamps), tuple([index[value] for value in cell_stamps]))
    index[NEVER] = -1
    life = (index[born] + 1, index[edited] + 1, index[deleted] + 1)
    return _pack((VERSION, b"".join(stamps), *life, keys, which, values))


def encode_edit(
    mark: bytes, keys: Sequence[int], values: Sequence[Value], *, inserts: bool
) -> bytes:
    """The bytes of an edit with one stamp: an insert (born and edited) or an update (edited).

    The same bytes as `encode` gives, without the document between; `keys` are ascending.
    """
    return _pack((VERSION, mark, 1 if inserts else 0, 1, 0, keys, 0, values))


def encode_insert_over_floor(
    mark: bytes, keys: Sequence[int], values: Sequence[Value], at_floor: Sequence[bool]
) -> bytes:
    """The bytes of an insert whose cells are at the floor where `at_floor` says so, at least one;
    otherwise as `encode_edit`."""
    which = _which(2, tuple([0 if floor else 1 for floor in at_floor]))
    return _pack((VERSION, FLOOR + mark, 2, 2, 0, keys, which, values))


def latest_stamp(data: bytes) -> bytes:
    """The greatest stamp of an encoded document of our own making, without decoding it: stamps
    are kept in ascending order, so it is the last one."""
    end = 4 + data[3] if data[2] == _BIN8 else 5 + int.from_bytes(data[3:5], "big")
    return data[end - STAMP_BYTES : end]


def as_we_encode(data: bytes) -> bytes:
    """A peer's document in a form that `latest_stamp` can read; nearly always the same bytes."""
    plain = data[:2] == _HEAD and data[2] in (_BIN8, _BIN8 + 1)
    return data if plain else encode(decode(data))


def decode(data: bytes) -> Document:
    """The document in `data`, which may come from a peer: every field is checked.

    Raises FormatError for anything that is not sound. What it takes, `encode` writes in one form.
    """
    if len(data) > _PLAIN_BYTES_MAX:
        _refuse_nesting(data)
    try:
        version, packed, born, edited, deleted, raw_keys, which, values = msgpack.unpackb(
            data, use_list=False
        )
        if version != VERSION:
            raise FormatError(f"document format {version!r} is not known here; upgrade reunite")
        keys, merging = _known_keys.get(raw_keys) or _ascending_keys(raw_keys)
        # Text and bytes would pass for a list of what is in them.
        if type(values) is not tuple:
            raise FormatError("a document's values are not a list")
        classes = {*map(type, values)}
        if not classes <= _CLASSES:
            raise FormatError("a document holds a value that is not of SQL")
        if float in classes and [value for value in values if value != value]:
            raise FormatError("a document holds NaN, which SQL reads back as NULL")
        # Only msgpack's uint64, which starts with this byte, can exceed a signed integer.
        if data.find(b"\xcf", _VALUES_FROM) >= 0 and any(
            type(value) is int and value > INTEGER_MAX for value in values
        ):
            raise FormatError("a document holds an integer beyond 64 signed bits")
        if len(keys) != len(values):
            raise FormatError("a document's values do not fit its cells")
        if merging and {type(values[place]) for place in merging} != {bytes}:
            raise FormatError("a cell that merges is not bytes")
        single = type(packed) is bytes and len(packed) == STAMP_BYTES
        stamps = (packed,) if single else _ascending_stamps(packed)
        if which == 0 and type(which) is int:
            stamp = stamps[0] if keys else NEVER
            # Pairs all, as in `encode`.
            cells = {key: (stamp, value) for key, value in zip(keys, values)}  # noqa: B905
        else:
            indexes = _indexes(len(stamps), len(keys), which)
            cells = {
                key: (stamps[position], value)
                for key, position, value in zip(keys, indexes, values, strict=True)
            }
        life = (NEVER, *stamps)
        if born < 0 or edited < 0 or deleted < 0:
            raise FormatError("a document's life is out of range")
        return Document(life[born], life[edited], life[deleted], cells)
    except FormatError:
        raise
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise FormatError(f"not a document: {type(error).__name__}: {error}") from error


_pack = msgpack.Packer().pack
# msgpack's byte for binary data of up to 255 bytes; the next one is for 65,535.
_BIN8: Final = 0xC4
# An array of eight, and the version.
_HEAD: Final = bytes((0x98, VERSION))
_CLASSES: Final = frozenset({type(None), int, float, str, bytes})
# No value can start before this byte, but a stamp can hold any byte.
_VALUES_FROM: Final = 24
# Rows of one table share their key list and much of the rest, so that is checked or computed once;
# bounded, as a peer feeds it.
_KNOWN_MAX: Final = 4_096
_KNOWN_LENGTH_MAX: Final = 100
_known_keys: dict[object, tuple[tuple[int, ...], tuple[int, ...]]] = {}
_known_which: dict[tuple[int, tuple[int, ...]], int | tuple[int, ...]] = {}
_known_indexes: dict[tuple[int, int, int], tuple[int, ...]] = {}
# A number that msgpack holds and every database's signed integer too.
_WHICH_END: Final = 1 << 63
# What the relay stated and what is pending here can each be of the largest size.
_JOIN_BYTES_MAX: Final = 2 * DOCUMENT_BYTES_MAX
# Nested empty arrays cost a peer one byte and us 56; up to this size that does not matter.
_PLAIN_BYTES_MAX: Final = 64 << 10


def _ascending_keys(keys: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`keys` when they are distinct ascending keys of known kinds, and the places of those whose
    cells merge. The cached list stands for any that equals it, so that a peer's 8.0 becomes 8."""
    if type(keys) is not tuple or len(keys) > CELLS_MAX:
        raise FormatError("a document's keys are not a list, or too many")
    previous = 0
    for key in keys:
        known = type(key) is int and previous < key and 0 < key >> 3 <= COLUMN_ID_MAX
        if not known or (key & KIND_MASK and key & KIND_MASK not in KINDS):
            raise FormatError(f"a document has a cell of an unknown kind or column: {key!r}")
        previous = key
    found = keys, tuple(place for place, key in enumerate(keys) if key & KIND_MASK)
    if len(keys) <= _KNOWN_LENGTH_MAX:
        _remember(_known_keys, keys, found)
    return found


def _which(stamps: int, indexes: tuple[int, ...]) -> int | tuple[int, ...]:
    """Which of so many stamps each cell has, as documents hold it; see the head of this file."""
    found = _known_which.get((stamps, indexes))
    if found is None:
        found = indexes
        if stamps ** len(indexes) <= _WHICH_END:
            found = sum(index * stamps**position for position, index in enumerate(indexes))
        if len(indexes) <= _KNOWN_LENGTH_MAX:
            _remember(_known_which, (stamps, indexes), found)
    return found


def _indexes(stamps: int, cells: int, which: object) -> tuple[int, ...]:
    """What `_which` made of them, from a peer."""
    if type(which) is tuple:
        if {*map(type, which)} != {int} or min(which) < 0 or len(which) != cells:
            raise FormatError("a document's stamps do not fit its cells")
        return which
    if type(which) is not int or not 0 < which < stamps**cells <= _WHICH_END:
        raise FormatError("a document's stamps do not fit its cells")
    found = _known_indexes.get((stamps, cells, which))
    if found is None:
        left, indexes = which, []
        for _ in range(cells):
            left, index = divmod(left, stamps)
            indexes.append(index)
        found = tuple(indexes)
        _remember(_known_indexes, (stamps, cells, which), found)
    return found


def _remember(known: dict[_K, _V], key: _K, value: _V) -> None:
    if len(known) >= _KNOWN_MAX:
        known.clear()
    known[key] = value


def _ascending_stamps(packed: bytes) -> tuple[bytes, ...]:
    if type(packed) is not bytes or len(packed) % STAMP_BYTES:
        raise FormatError("a document's stamps are not whole")
    stamps = [packed[at : at + STAMP_BYTES] for at in range(0, len(packed), STAMP_BYTES)]
    if sorted(set(stamps)) != stamps:
        raise FormatError("a document's stamps are not ascending")
    return tuple(stamps)


def _refuse_nesting(data: bytes) -> None:
    """Refuse arrays in arrays, maps and long arrays before memory is given to them."""
    if len(data) > _JOIN_BYTES_MAX:
        raise FormatError(f"a document of {len(data)} bytes is over {_JOIN_BYTES_MAX}")
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    try:
        if unpacker.read_array_header() != 8:
            raise FormatError("not a document: not eight fields")
        for field in range(8):
            # Field 6 is one number where a number holds it, which may itself take several bytes.
            if field in (5, 7) or (field == 6 and _is_array(data[unpacker.tell()])):
                count = unpacker.read_array_header()
                if count > CELLS_MAX:
                    raise FormatError(f"a document of {count} cells is over {CELLS_MAX}")
                for _ in range(count):
                    _skip_scalar(unpacker, data)
            else:
                _skip_scalar(unpacker, data)
    except (ValueError, IndexError, msgpack.UnpackException) as error:
        raise FormatError(f"not a document: {error}") from error


def _is_array(first: int) -> bool:
    return 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)


def _skip_scalar(unpacker: msgpack.Unpacker, data: bytes) -> None:
    first = data[unpacker.tell()]
    if 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
        raise FormatError("a document's value is a list or a map")
    unpacker.skip()
