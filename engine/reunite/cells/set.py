"""The set: a JSON array whose concurrent additions all survive. Cell kind 2.

An element is a JSON value, known by its canonical text (see `reunite.cells.json_text`). State is
`{element: (adds, removed)}`: the number of the last add by each replica, and of each replica the
last add that a removal has seen; both joined by the greater number. An element is there while some
add is newer than what was removed of its replica: so an addition that a removal did not see wins.
Replica 0 stands for elements that the set began with.

Bytes, equal for equal sets: msgpack `[replicas, element, adds, removed, element, ...]`, replicas
and elements ascending, adds and removed flat lists `[index of a replica, number, ...]`.
Source: Bieniusa et al., "An optimized conflict-free replicated set" (2012).
"""

from typing import Final, TypeAlias

import msgpack

from reunite.cells.json_text import canonical, order, parsed
from reunite.cells.kinds import Author, Content, Edit
from reunite.cells.register import INTEGER_MAX, Value
from reunite.errors import FormatError

KIND: Final = 2

ELEMENTS_MAX: Final = 1 << 17
_BEGINNING: Final = 0

_Numbers: TypeAlias = dict[int, int]
_State: TypeAlias = dict[str, tuple[_Numbers, _Numbers]]

_pack = msgpack.Packer().pack
# No replicas, no elements.
EMPTY: Final = _pack([[]])


def content(value: Value) -> Content | None:
    """The elements of a JSON array, as their texts; None for what is none."""
    found = parsed(value)
    if not isinstance(found, list) or len(found) > ELEMENTS_MAX:
        return None
    return frozenset(map(canonical, found))


def shown(found: Content) -> Value:
    """The elements as a JSON array, in the order that `json_text.order` gives."""
    assert isinstance(found, frozenset)
    return f"[{','.join(sorted(found, key=order))}]"


def check(data: bytes) -> None:
    """Raise FormatError unless these bytes, from a peer, are a set's."""
    state = _state(data)
    if len(state) > ELEMENTS_MAX:
        raise FormatError(f"a set of {len(state)} elements is over {ELEMENTS_MAX}")
    for element, both in state.items():
        found = parsed(element)
        if canonical(found) != element or (found is None and element != "null"):
            raise FormatError("a set's element is not written in its one form")
        for numbers in both:
            if any(not 0 < number <= INTEGER_MAX for number in numbers.values()):
                raise FormatError("a set's number is out of range")
        if not (both[0] or both[1]):
            raise FormatError("a set holds an element that nobody added")
    if _packed(state) != data:
        raise FormatError("a set is not in its one form")


def merge(a: bytes, b: bytes) -> bytes:
    """The join of two states."""
    ours, theirs = _state(a), _state(b)
    joined = dict(ours)
    for element, (adds, removed) in theirs.items():
        if element in ours:
            adds, removed = _join(ours[element][0], adds), _join(ours[element][1], removed)
        joined[element] = (adds, removed)
    return a if joined == ours else _packed(joined)


def value(data: bytes) -> Value:
    """The elements that are there, as a JSON array."""
    return shown(_present(_state(data)))


def initial(found: Content) -> bytes:
    """A set that begins with these elements, the same wherever it begins."""
    assert isinstance(found, frozenset)
    return _packed({element: ({_BEGINNING: 1}, {}) for element in found})


def edit(before: bytes, wanted: Content, author: Author) -> Edit | None:
    """Add what is missing, and remove what is too much as it was seen. None where so many elements
    came and went that a relay would refuse the set."""
    assert isinstance(wanted, frozenset)
    state = _state(before)
    present = _present(state)
    delta: _State = {}
    for element in wanted - present:
        adds, removed = state.get(element, ({}, {}))
        number = 1 + max(adds.get(author.replica, 0), removed.get(author.replica, 0))
        delta[element] = ({author.replica: number}, {})
    for element in present - wanted:
        delta[element] = ({}, dict(state[element][0]))
    if len(state | delta) > ELEMENTS_MAX:
        return None
    packed = _packed(delta)
    return Edit(packed, merge(before, packed))


def again(before: bytes, delta: bytes, made_on: bytes, author: Author) -> Edit | None:
    """What a delta did, done to another set: its removals hide no add that they had not seen. None
    where so many elements came and went that a relay would refuse the set."""
    del made_on  # A removal names what it saw.
    state, mine = _state(before), author.replica
    fresh: _State = {}
    for element, (adds, removed) in _state(delta).items():
        there, gone = state.get(element, ({}, {}))
        if _is_there({r: n for r, n in adds.items() if r != _BEGINNING}, removed):
            # Beside another's add, which somebody else may have seen and removed.
            if not there.get(mine, 0) > gone.get(mine, 0):
                fresh[element] = ({mine: 1 + max(there.get(mine, 0), gone.get(mine, 0))}, {})
            continue
        # Its author's own adds came before it, and may have been made anew as well.
        took = {r: n for r, n in there.items() if r == mine or n <= removed.get(r, 0)}
        if removed and _is_there(there, gone):
            # Where none of what it saw is there, that came in the name of a copy of the file.
            fresh[element] = ({}, took or dict(there))
    if len(state | fresh) > ELEMENTS_MAX:
        return None
    packed = _packed(fresh)
    return Edit(packed, merge(before, packed))


def carried(seen: Content, wanted: Content, onto: Content) -> Content:
    """The same additions and removals on another set."""
    assert isinstance(seen, frozenset)
    assert isinstance(wanted, frozenset)
    assert isinstance(onto, frozenset)
    return (onto - (seen - wanted)) | (wanted - seen)


def is_by(data: bytes, replica: int) -> bool:
    """True when all that these bytes add was added by this replica; removals name others."""
    own = {_BEGINNING, replica}
    return all(adds.keys() <= own for adds, _ in _state(data).values())


def part_of(data: bytes, replica: int) -> bytes:
    """What one replica added."""
    return _packed(
        {
            element: ({replica: adds[replica]}, {})
            for element, (adds, _) in _state(data).items()
            if replica in adds
        }
    )


def as_one_author(data: bytes, author: Author) -> bytes:
    """The same elements, added by one replica: for who has never heard of the others."""
    state = _state(data)
    made: _State = {}
    for element in _present(state):
        adds, removed = state[element]
        least = removed.get(author.replica, 0) + 1
        made[element] = ({author.replica: max(adds.get(author.replica, 0), least)}, {})
    return _packed(made)


def fits_onto(before: bytes | None, delta: bytes) -> bool:
    """True when no removal says that it saw an add which was never made: it would hide what its
    replica has yet to add."""
    known = _state(before) if before is not None else {}
    for element, (adds, removed) in _state(delta).items():
        there = known.get(element, ({}, {}))[0]
        for replica, number in removed.items():
            if number > max(there.get(replica, 0), adds.get(replica, 0)):
                return False
    return True


def intent(before: bytes, after: bytes) -> object:
    """What an edit did, for people: `{"add": [...], "remove": [...]}`."""
    old, new = _present(_state(before)), _present(_state(after))
    return {"add": parsed(shown(new - old)), "remove": parsed(shown(old - new))}


def _present(state: _State) -> frozenset[str]:
    return frozenset(
        element for element, (adds, removed) in state.items() if _is_there(adds, removed)
    )


def _is_there(adds: _Numbers, removed: _Numbers) -> bool:
    return any(number > removed.get(replica, 0) for replica, number in adds.items())


def _join(a: _Numbers, b: _Numbers) -> _Numbers:
    return a | {replica: max(number, a.get(replica, 0)) for replica, number in b.items()}


def _state(data: bytes) -> _State:
    try:
        # No array is longer than the data: the join of two allowed states has to be readable.
        replicas, *rest = msgpack.unpackb(data, use_list=False)
        state: _State = {}
        for at in range(0, len(rest), 3):
            element, adds, removed = rest[at : at + 3]
            if type(element) is not str:
                raise FormatError("a set's element is not text")
            state[element] = (_numbers(replicas, adds), _numbers(replicas, removed))
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise FormatError(f"not a set: {error}") from error
    return state


def _numbers(replicas: tuple[int, ...], flat: tuple[int, ...]) -> _Numbers:
    if type(replicas) is not tuple or type(flat) is not tuple or {*map(type, flat)} - {int}:
        raise FormatError("a set's numbers are not lists of integers")
    found = {replicas[flat[at]]: flat[at + 1] for at in range(0, len(flat), 2)}
    if any(type(replica) is not int or replica < 0 for replica in found):
        raise FormatError("a set names something that is no replica")
    return found


def _packed(state: _State) -> bytes:
    replicas = sorted({r for adds, removed in state.values() for r in (*adds, *removed)})
    index = {replica: at for at, replica in enumerate(replicas)}
    parts: list[object] = [replicas]
    for element in sorted(state):
        parts.append(element)
        for numbers in state[element]:
            parts.append([n for r in sorted(numbers) for n in (index[r], numbers[r])])
    return _pack(parts)
