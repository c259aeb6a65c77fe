"""The counter: a number that everybody's increments add up to. Cell kind 1.

State is a PN-counter, `{replica: (up, down)}`: what each replica has added and taken away in all,
joined by the greater of each. Replica 0 stands for where the counter began (its column's default,
or a row that came with its table), which is the same on every replica. Who writes a counter anew,
over NULL or in a row that was deleted, leaves out the parts that were there, and counts from 0: of
what is left out the state has the same, `{replica: (up, down)}`, joined likewise. So two who do so
leave out the same once, and what others add meanwhile counts.

Bytes: a msgpack array `[replica, up, down, replica, up, down, ...]`, replicas ascending, so that
equal counters have equal bytes; where parts are left out, an array of these, alike, is its last
element. Every number is at most 2^63 - 1.
Sources: Shapiro et al., "A comprehensive study of CRDTs" (2011), PN-counter; Baquero et al., "The
problem with embedded CRDT counters and a solution" (2016), resets of what was seen.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from reunite.cells.kinds import Author, Content, Edit
from reunite.cells.register import INTEGER_MAX, INTEGER_MIN, Value
from reunite.errors import FormatError

KIND: Final = 1

# Everybody who ever counted is in the cell. Three numbers of nine bytes each.
REPLICAS_MAX: Final = 1 << 17
_BEGINNING: Final = 0

_Parts: TypeAlias = Mapping[int, tuple[int, int]]


class _State(NamedTuple):
    """What each replica has added and taken away in all, and what of that counts no more."""

    parts: _Parts
    left_out: _Parts


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
    flat, left_out = _unpack(data)
    for parts in (flat, left_out):
        if {*map(type, parts)} - {int} or len(parts) % 3 or len(parts) > 3 * REPLICAS_MAX:
            raise FormatError("a counter is not a list of whole parts")
        if any(not 0 <= part <= INTEGER_MAX for part in parts):
            raise FormatError("a counter's part is out of range")
        if any(a >= b for a, b in pairwise(parts[::3])):
            raise FormatError("a counter is not in its one form")
    if _packed(_state(data)) != data:
        raise FormatError("a counter is not in its one form")


def merge(a: bytes, b: bytes) -> bytes:
    """The join of two states."""
    ours, theirs = _state(a), _state(b)
    joined = _State(_join(ours.parts, theirs.parts), _join(ours.left_out, theirs.left_out))
    return a if joined == ours else _packed(joined)


def value(data: bytes) -> Value:
    """The number: the sum of all, at most what SQL's integers hold on either side of 0."""
    return max(-INTEGER_MAX, min(INTEGER_MAX, _total(_state(data))))


def initial(found: Content) -> bytes:
    """A counter that begins at this number, the same wherever it begins."""
    assert isinstance(found, int)
    return _packed(_State({_BEGINNING: (max(found, 0), max(-found, 0))}, {})) if found else EMPTY


def edit(before: bytes, wanted: Content, author: Author) -> Edit | None:
    """What makes the counter show `wanted`: the difference, added by its author. None where no
    part can hold it."""
    assert isinstance(wanted, int)
    state = _state(before)
    change = wanted - _total(state)
    return _counted(state, change, author, {}) if change else Edit(EMPTY, before)


def anew(before: bytes, wanted: Content, author: Author) -> Edit | None:
    """What makes a counter that did not show show `wanted`, without what was there; nothing where
    that is the same number."""
    assert isinstance(wanted, int)
    state = _state(before)
    if wanted == _total(state):
        return Edit(EMPTY, before)
    return _counted(state, wanted, author, state.parts)


def again(before: bytes, delta: bytes, made_on: bytes, author: Author) -> Edit | None:
    """What a delta did to `made_on`, done to another state: it adds as much, and leaves out what it
    left out, as far as that is there. Its author's own parts have come before it."""
    did, there, state = _state(delta), _state(made_on), _state(before)
    change = sum(
        (up - had_up) - (down - had_down)
        for replica, (up, down) in did.parts.items()
        if replica != _BEGINNING
        for had_up, had_down in (there.parts.get(replica, (0, 0)),)
    )
    left_out = {}
    for replica, part in state.parts.items() if did.left_out else ():
        seen = part if replica == author.replica else did.left_out.get(replica, (0, 0))
        left_out[replica] = (min(part[0], seen[0]), min(part[1], seen[1]))
    return _counted(state, change, author, left_out)


def _counted(state: _State, change: int, author: Author, left_out: _Parts) -> Edit | None:
    up, down = state.parts.get(author.replica, (0, 0))
    mine = {author.replica: (up + max(change, 0), down + max(-change, 0))} if change else {}
    if any(max(part) > INTEGER_MAX for part in mine.values()):
        return None
    delta = _State(mine, {replica: part for replica, part in left_out.items() if any(part)})
    after = _State({**state.parts, **mine}, _join(state.left_out, delta.left_out))
    return Edit(_packed(delta), _packed(after))


def carried(seen: Content, wanted: Content, onto: Content) -> Content:
    """The same difference on another number."""
    assert isinstance(seen, int)
    assert isinstance(wanted, int)
    assert isinstance(onto, int)
    return onto + wanted - seen


def is_by(data: bytes, replica: int) -> bool:
    """True when no other replica's part is in these bytes; what is left out names others."""
    return _state(data).parts.keys() <= {_BEGINNING, replica}


def part_of(data: bytes, replica: int) -> bytes:
    """What one replica counted."""
    parts = _state(data).parts
    return _packed(_State({replica: parts[replica]}, {})) if replica in parts else EMPTY


def as_one_author(data: bytes, author: Author) -> bytes:
    """The same number, counted by one replica: for who has never heard of the others."""
    parts, left_out = _state(data)
    keeps = {replica: part for replica, part in parts.items() if replica == _BEGINNING}
    without = {
        replica: left_out[replica]
        for replica in (_BEGINNING, author.replica)
        if replica in left_out
    }
    others = _State(
        {replica: part for replica, part in parts.items() if replica != _BEGINNING},
        {replica: part for replica, part in left_out.items() if replica != _BEGINNING},
    )
    least = without.get(author.replica, (0, 0))
    mine = (_sum(others, 0) + least[0], _sum(others, 1) + least[1])
    if max(mine) > INTEGER_MAX:
        number = _total(others)
        mine = (min(max(number, 0), INTEGER_MAX), min(max(-number, 0), INTEGER_MAX))
        without.pop(author.replica, None)
    return _packed(_State(keeps | {author.replica: mine}, without))


def fits_onto(before: bytes | None, delta: bytes) -> bool:
    """True when no part is left out that was never counted: it would hide what its replica has yet
    to add. Parts are totals: any joins any."""
    left_out = _state(delta).left_out
    known = _join(_state(before).parts if before is not None else {}, _state(delta).parts)
    return not left_out or _join(known, left_out) == known


def intent(before: bytes, after: bytes) -> object:
    """What an edit did, for people: `{"add": 3}`."""
    return {"add": _total(_state(after)) - _total(_state(before))}


def _total(state: _State) -> int:
    return _sum(state, 0) - _sum(state, 1)


def _sum(state: _State, side: int) -> int:
    """What all have added (0) or taken away (1), but for what is left out."""
    return sum(part[side] for part in state.parts.values()) - sum(
        part[side] for part in state.left_out.values()
    )


def _join(a: _Parts, b: _Parts) -> _Parts:
    joined = {**a}
    for replica, (up, down) in b.items():
        had = a.get(replica, (0, 0))
        joined[replica] = (max(up, had[0]), max(down, had[1]))
    return joined


def _state(data: bytes) -> _State:
    return _State(
        *(
            {flat[at]: (flat[at + 1], flat[at + 2]) for at in range(0, len(flat), 3)}
            for flat in _unpack(data)
        )
    )


def _packed(state: _State) -> bytes:
    flat, left_out = map(_flat, state)
    return _pack([*flat, left_out] if left_out else flat)


def _flat(parts: _Parts) -> list[int]:
    return [number for replica in sorted(parts) for number in (replica, *parts[replica])]


def _unpack(data: bytes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The parts, and those that are left out, each flat."""
    try:
        found = msgpack.unpackb(
            data, use_list=False, max_array_len=3 * REPLICAS_MAX + 1, max_map_len=0, max_ext_len=0
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise FormatError(f"not a counter: {error}") from error
    if type(found) is not tuple:
        raise FormatError("not a counter")
    if found and type(found[-1]) is tuple:
        return found[:-1], found[-1]
    return found, ()
