"""The counter: a number that everybody's increments add up to. Cell kind 1.

State is a PN-counter, `{replica: (up, down)}`: what each replica has added and taken away in all,
joined by the greater of each. Replica 0 stands for where the counter began (its column's default,
or a row that came with its table), which is the same on every replica.

Bytes: a msgpack array `[replica, up, down, replica, up, down, ...]`, replicas ascending, so that
equal counters have equal bytes. Every number is at most 2^63 - 1.
Source: Shapiro et al., "A comprehensive study of CRDTs" (2011), PN-counter.
"""

from itertools import pairwise
from typing import Final

import msgpack

from reunite.cells.kinds import Author, Content, Edit
from reunite.cells.register import INTEGER_MAX, INTEGER_MIN, Value
from reunite.errors import FormatError

KIND: Final = 1

# Everybody who ever counted is in the cell. Three numbers of nine bytes each.
REPLICAS_MAX: Final = 1 << 17
_BEGINNING: Final = 0

_pack = msgpack.Packer().pack
EMPTY: Final = _pack(())


def content(value: Value) -> Content | None:
    """The number that an SQL value is; None for what is no integer, and for the least one, which
    no part can take away."""
    return value if type(value) is int and value > INTEGER_MIN else None


def shown(found: Content) -> Value:
    """The number as SQL has it."""
    assert isinstance(found, int)
    return found


def check(data: bytes) -> None:
    """Raise FormatError unless these bytes, from a peer, are a counter's."""
    parts = _unpack(data)
    if {*map(type, parts)} - {int} or len(parts) % 3 or len(parts) > 3 * REPLICAS_MAX:
        raise FormatError("a counter is not a list of whole parts")
    if any(not 0 <= part <= INTEGER_MAX for part in parts):
        raise FormatError("a counter's part is out of range")
    replicas = parts[::3]
    if any(a >= b for a, b in pairwise(replicas)) or _pack(parts) != data:
        raise FormatError("a counter is not in its one form")


def merge(a: bytes, b: bytes) -> bytes:
    """The join of two states."""
    ours, theirs = _parts(a), _parts(b)
    joined = ours | {
        replica: (max(up, ours[replica][0]), max(down, ours[replica][1]))
        if replica in ours
        else (up, down)
        for replica, (up, down) in theirs.items()
    }
    return a if joined == ours else _packed(joined)


def value(data: bytes) -> Value:
    """The number: the sum of all, at most what SQL's integers hold on either side of 0."""
    return max(-INTEGER_MAX, min(INTEGER_MAX, _total(_parts(data))))


def initial(found: Content) -> bytes:
    """A counter that begins at this number, the same wherever it begins."""
    assert isinstance(found, int)
    return _packed({_BEGINNING: (max(found, 0), max(-found, 0))}) if found else EMPTY


def edit(before: bytes, wanted: Content, author: Author) -> Edit | None:
    """What makes the counter show `wanted`: the difference, added by its author. None where no
    part can hold it."""
    assert isinstance(wanted, int)
    parts = _parts(before)
    change = wanted - _total(parts)
    if not change:
        return Edit(EMPTY, before)
    up, down = parts.get(author.replica, (0, 0))
    mine = (up + max(change, 0), down + max(-change, 0))
    if max(mine) > INTEGER_MAX:
        return None
    return Edit(_packed({author.replica: mine}), _packed(parts | {author.replica: mine}))


def carried(seen: Content, wanted: Content, onto: Content) -> Content:
    """The same difference on another number."""
    assert isinstance(seen, int)
    assert isinstance(wanted, int)
    assert isinstance(onto, int)
    return onto + wanted - seen


def is_by(data: bytes, replica: int) -> bool:
    """True when no other replica's part is in these bytes."""
    return _parts(data).keys() <= {_BEGINNING, replica}


def as_one_author(data: bytes, author: Author) -> bytes:
    """The same number, counted by one replica: for who has never heard of the others."""
    parts = _parts(data)
    others = [part for replica, part in parts.items() if replica != _BEGINNING]
    mine = (sum(up for up, _ in others), sum(down for _, down in others))
    if max(mine) > INTEGER_MAX:
        number = mine[0] - mine[1]
        mine = (min(max(number, 0), INTEGER_MAX), min(max(-number, 0), INTEGER_MAX))
    return _packed({r: p for r, p in parts.items() if r == _BEGINNING} | {author.replica: mine})


def fits_onto(before: bytes | None, delta: bytes) -> bool:
    """Parts are totals: any joins any."""
    del before, delta
    return True


def intent(before: bytes, after: bytes) -> object:
    """What an edit did, for people: `{"add": 3}`."""
    return {"add": _total(_parts(after)) - _total(_parts(before))}


def _total(parts: dict[int, tuple[int, int]]) -> int:
    return sum(up - down for up, down in parts.values())


def _parts(data: bytes) -> dict[int, tuple[int, int]]:
    flat = _unpack(data)
    return {flat[at]: (flat[at + 1], flat[at + 2]) for at in range(0, len(flat), 3)}


def _packed(parts: dict[int, tuple[int, int]]) -> bytes:
    return _pack([number for replica in sorted(parts) for number in (replica, *parts[replica])])


def _unpack(data: bytes) -> tuple[int, ...]:
    try:
        parts = msgpack.unpackb(
            data, use_list=False, max_array_len=3 * REPLICAS_MAX, max_map_len=0, max_ext_len=0
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise FormatError(f"not a counter: {error}") from error
    if type(parts) is not tuple:
        raise FormatError("not a counter")
    return parts
