"""Yjs updates, checked before Yjs sees them: what they hold and what they need. Owns the parser.

The Rust library behind pycrdt trusts its bytes: some end the process, some make panics that are no
`Exception`, some are put off in silence. So an update is read here first, whole, and passes only if
an honest writer could have made it of a document of ours. Knows nothing of pycrdt.

`parse` sees one update, so it cannot know what that refers to in the document. Before an update of
a peer is applied, `fits` looks at both. What stays possible is an update that contradicts itself on
what stands left of what: Yjs reads it without harm, but two replicas may order it differently.

Encoding v1 (lib0), where `uint` is a variable-length integer, and `id` a client and a clock:

    update  = uint clients, { uint blocks, uint client, uint clock, block... }...,
              uint clients, { uint client, uint ranges, { uint clock, uint length }... }...
    block   = byte info, [id origin], [id right origin], [parent, [string key]], content
    info    = content | 0x80 origin | 0x40 right origin | 0x20 in a map
    parent  = 1, string root | 0, id                     where there is no origin of either side

    | content | what                                      | clocks it takes       |
    |---|---|---|
    | 0       | collected as garbage: length; `info` is 0 | length                |
    | 1       | deleted: length                           | length                |
    | 4       | string, in a text                         | its UTF-16 code units |
    | 7       | shared type: 0 for an array, 1 for a map  | 1                     |
    | 8       | values: uint count, value...              | count                 |

Sources: yjs `UpdateEncoder.js`, lib0 `encoding.js`; what yrs 0.28 does was found by experiment.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import Final, Literal, NamedTuple, TypeAlias

from reunite.errors import FormatError

Shape: TypeAlias = Literal["text", "list", "json"]
"""What a document's one root is, which is also the root's name."""

# A cell is a part of a row document, which ends at the same size.
UPDATE_BYTES_MAX: Final = 16 << 20
# Also of the ranges that are deleted. An honest text has as many blocks as it has characters when
# each was typed elsewhere than the one before.
BLOCKS_MAX: Final = 1 << 18
# Yjs breaks at 2^31. A block that only says how long it is can use up a client's clock, so the end
# is set where nobody gets by writing: ten characters a second in one cell, day and night, for ten
# months under one id.
CLOCK_MAX: Final = 1 << 28
# JavaScript counts exactly up to here, and pycrdt draws ids from all of it.
CLIENT_MAX: Final = (1 << 53) - 1
# Yjs recurses when it reads and deletes, and a few thousand levels end the process. People nest to
# a tenth of this.
DEPTH_MAX: Final = 64
# A number that a double would write otherwise is kept as its text; none is nearly this long.
NUMBER_BYTES_MAX: Final = 1_000

_Id: TypeAlias = tuple[int, int]
# Where a block is: the id of a shared type, and the key in a map.
_Place: TypeAlias = tuple[_Id, bytes | None]
# Kind, length, what it stands beside, and where it says that it is.
_Block: TypeAlias = tuple[int, int, Sequence[_Id], _Place | None]


class Span(NamedTuple):
    """The clocks `first <= clock < end` of a client."""

    first: int
    end: int


class Outline:
    """What others can refer to in an update. For `fits` only."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        # In an order in which every block follows what it refers to: clients, each up to a clock.
        self.order: list[_Id] = []
        # By client, where its blocks start and, in a list or JSON, the blocks and where they are.
        # A place is None for garbage and for what only the document knows.
        self.starts: dict[int, list[int]] = {}
        self.blocks: dict[int, list[_Block]] = {}
        self.places: dict[int, list[_Place | None]] = {}
        # Of shared types that hold something: True for a map, None if that is not known; the depth.
        self.types: dict[_Id, tuple[bool | None, int]] = {}
        # By client, where what it deletes starts, and where that ends.
        self.deletes: dict[int, tuple[list[int], list[int]]] = {}
        # By client, where its strings with characters of two code units start, and they in UTF-16.
        self.wide: dict[int, tuple[list[int], list[bytes]]] = {}
        # Where strings are cut in two: the ids of the right parts.
        self.cuts: list[_Id] = []


class Update(NamedTuple):
    """What an update holds of each client, below which clock of each it needs everything, and how
    many blocks and deleted ranges it has."""

    spans: Mapping[int, Span]
    needs: Mapping[int, int]
    outline: Outline
    parts: int


def parse(data: bytes, shape: Shape) -> Update:
    """What an update of a document of this shape holds. Raises FormatError unless it is sound."""
    if len(data) > UPDATE_BYTES_MAX:
        raise FormatError(f"a Yjs update of {len(data)} bytes is over {UPDATE_BYTES_MAX}")
    try:
        return _Reader(data, shape).read()
    except IndexError:
        raise FormatError("a Yjs update ends too early") from None
    except UnicodeDecodeError:
        raise FormatError("a Yjs update holds text that is not UTF-8") from None


def ready(update: Update, known: Mapping[int, int]) -> bool:
    """True when all that the update builds on is in a document of this state vector."""
    return all(known.get(client, 0) >= clock for client, clock in update.needs.items())


def fits(update: Update, document: Update) -> bool:
    """True when all that the update builds on is in the document, which is whole.

    Raises FormatError when the update contradicts the document. An update that fits can be applied,
    and the document is sound again: Yjs does not fail, and `parse` takes what it writes. Takes as
    long as the update is, not the document.
    """
    assert not document.needs
    known = {client: span.end for client, span in document.spans.items()}
    if not ready(update, known):
        return False
    ours, theirs = document.outline, update.outline
    if ours.wide or theirs.wide:
        for client, clock in theirs.cuts:
            if clock < known.get(client, 0):
                _check_cut(ours, client, clock)
        # Yjs cuts what it has the beginning of already.
        for client in theirs.wide:
            _check_cut(theirs, client, known.get(client, 0))
    if theirs.blocks:
        _check_places(update.spans, theirs, known, ours)
    return True


def parse_state(data: bytes) -> dict[int, int]:
    """The next clock by client id, of a state vector. Raises FormatError unless it is sound."""
    state: dict[int, int] = {}
    try:
        count, at = _uint(data, 0)
        for _ in range(count):
            client, at = _uint(data, at)
            clock, at = _uint(data, at)
            if client in state or clock > CLOCK_MAX:
                raise FormatError("a Yjs state names a client twice or a clock out of range")
            state[client] = clock
    except IndexError:
        raise FormatError("a Yjs state ends too early") from None
    if at < len(data):
        raise FormatError("a Yjs state has bytes after its end")
    return state


# The parts of `info`; from the first one on, there is an origin of a side.
_BESIDE: Final = 0x40
_IN_MAP: Final = 0x20
_CONTENT: Final = 0x1F
# By its two highest bits: where each origin that follows cuts a string, before its clock or after.
_SIDES: Final = ((), (0,), (1,), (1, 0))

_GARBAGE: Final = 0
_DELETED: Final = 1
_STRING: Final = 4
_TYPE: Final = 7
_VALUES: Final = 8
_FLAT: Final = frozenset({_GARBAGE, _DELETED, _STRING})
_NESTED: Final = frozenset({_GARBAGE, _DELETED, _TYPE, _VALUES})
# The kinds of shared types, so that they differ as the other contents do.
_ARRAY: Final = 16
_MAP: Final = 17

_ROOT: Final = (-1, 0)
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class _Reader:
    """One reading of one update."""

    def __init__(self, data: bytes, shape: Shape) -> None:
        self._data = data
        self._spans: dict[int, Span] = {}
        self._needs: dict[int, int] = {}
        self._outline = Outline(shape)
        self._parts = 0
        # References of a client's block to another client: (client, clock, other, its clock).
        self._across: list[tuple[int, int, int, int]] = []

    def read(self) -> Update:
        """Read all of it."""
        outline = self._outline
        at = self._read_deletes(self._read_blocks())
        if at < len(self._data):
            raise FormatError("a Yjs update has bytes after its end")
        for client, span in self._spans.items():
            self._need(client, span.first)
        outline.order = self._order()
        if outline.wide:
            for client, clock in outline.cuts:
                _check_cut(outline, client, clock)
        if outline.blocks:
            outline.places, outline.types = _check_places(self._spans, outline, {}, None)
        return Update(self._spans, self._needs, outline, self._parts)

    def _need(self, client: int, clock: int) -> None:
        if clock > self._needs.get(client, 0):
            if clock > CLOCK_MAX:
                raise FormatError(f"a Yjs update names a clock over {CLOCK_MAX}")
            self._needs[client] = clock

    def _read_blocks(self) -> int:
        data, spans, outline, across = self._data, self._spans, self._outline, self._across
        shape = outline.shape
        flat = shape == "text"
        contents = _FLAT if flat else _NESTED
        cuts = outline.cuts
        total = 0
        clients, at = _uint(data, 0)
        for _ in range(clients):
            count, at = _uint(data, at)
            own_at = at
            client, at = _uint(data, at)
            own = data[own_at:at]
            # References are mostly to a client's own blocks or to those of the same other client.
            peer, peer_bytes = client, own
            first, at = _uint(data, at)
            total += count
            if client in spans or not count or total > BLOCKS_MAX:
                raise FormatError("a Yjs update holds a client twice, no blocks or too many")
            clock = first
            starts: list[int] = []
            blocks: list[_Block] = []
            if not flat:
                outline.starts[client], outline.blocks[client] = starts, blocks
            for _ in range(count):
                info = data[at]
                at += 1
                kind = info & _CONTENT
                if kind not in contents or (info and not kind) or (flat and info & _IN_MAP):
                    raise FormatError(f"a Yjs {shape} holds a block of another kind: {info}")
                beside: Sequence[_Id] = ()
                place: _Place | None = None
                if info >= _BESIDE:
                    for after in _SIDES[info >> 6]:
                        if data.startswith(own, at):
                            other = client
                            at += len(own)
                        elif data.startswith(peer_bytes, at):
                            other = peer
                            at += len(peer_bytes)
                        else:
                            peer_at = at
                            peer, at = _uint(data, at)
                            peer_bytes = data[peer_at:at]
                            other = peer
                        other_clock = data[at]
                        at += 1
                        if other_clock > 127:
                            other_clock, at = _uint(data, at - 1)
                        if other != client:
                            across.append((client, clock, other, other_clock))
                        elif other_clock >= clock:
                            raise FormatError("a Yjs block stands beside a later one")
                        if flat:
                            cuts.append((other, other_clock + after))
                        else:
                            beside = (*beside, (other, other_clock))
                elif info:
                    place, at = self._read_parent(info, client, clock, at)
                kind, length, at = self._read_content(kind, client, clock, at)
                if not length:
                    raise FormatError("a Yjs block is empty")
                if not flat:
                    starts.append(clock)
                    blocks.append((kind, length, beside, place))
                clock += length
            if clock > CLOCK_MAX:
                raise FormatError(f"a Yjs update holds a clock over {CLOCK_MAX}")
            spans[client] = Span(first, clock)
        self._parts = total
        return at

    def _read_parent(self, info: int, client: int, clock: int, at: int) -> tuple[_Place, int]:
        data, shape = self._data, self._outline.shape
        root = bytes((1, len(shape))) + shape.encode()
        parent = _ROOT
        if data.startswith(root, at):
            at += len(root)
        elif data[at] or shape == "text":
            raise FormatError("a Yjs update names a root that its shape does not have")
        else:
            other, at = _uint(data, at + 1)
            other_clock, at = _uint(data, at)
            parent = other, other_clock
            if other != client:
                self._across.append((client, clock, other, other_clock))
            elif other_clock >= clock:
                raise FormatError("a Yjs block is inside a later one")
        if not info & _IN_MAP:
            return (parent, None), at
        end = _string(data, at)
        return (parent, data[at:end]), end

    def _read_content(self, kind: int, client: int, clock: int, at: int) -> tuple[int, int, int]:
        """The kind of a block, now one of shared types too, its length, and where it ends."""
        data = self._data
        if kind == _TYPE:
            if data[at] > 1:
                raise FormatError("a Yjs update holds a shared type of another kind")
            return _MAP if data[at] else _ARRAY, 1, at + 1
        length, at = _uint(data, at)
        if kind == _VALUES:
            for _ in range(length):
                at = _value(data, at, 1)
        elif kind == _STRING:
            text = data[at : at + length]
            if len(text) < length:
                raise FormatError("a Yjs string ends too early")
            at += length
            if not text.isascii():
                decoded = text.decode()
                units = decoded.encode("utf-16-le")
                length = len(units) >> 1
                if length > len(decoded):
                    starts, strings = self._outline.wide.setdefault(client, ([], []))
                    starts.append(clock)
                    strings.append(units)
        return kind, length, at

    def _read_deletes(self, at: int) -> int:
        data, spans, outline = self._data, self._spans, self._outline
        total = 0
        clients, at = _uint(data, at)
        for _ in range(clients):
            client, at = _uint(data, at)
            count, at = _uint(data, at)
            total += count
            if client in outline.deletes or not count or total > BLOCKS_MAX:
                raise FormatError("a Yjs update deletes of a client twice, nothing or too much")
            starts: list[int] = []
            ends: list[int] = []
            outline.deletes[client] = starts, ends
            end = 0
            for _ in range(count):
                clock, at = _uint(data, at)
                length, at = _uint(data, at)
                if clock < end or not length:
                    raise FormatError("a Yjs update deletes in no order, or nothing")
                end = clock + length
                starts.append(clock)
                ends.append(end)
                outline.cuts.append((client, clock))
                outline.cuts.append((client, end))
            if client not in spans or end > spans[client].end:
                self._need(client, end)
        self._parts += total
        return at

    def _order(self) -> list[_Id]:
        """The order of `Outline`. Refuses blocks of several clients that wait for each other."""
        spans = self._spans
        waits: dict[int, list[tuple[int, int, int]]] = {client: [] for client in spans}
        for client, clock, other, other_clock in self._across:
            if other not in spans or other_clock >= spans[other].end:
                self._need(other, other_clock + 1)
            elif other_clock >= spans[other].first:
                waits[client].append((clock, other, other_clock))
        # How far each client has come, how many of its waits are over, and who waits for it.
        reached = {client: span.first for client, span in spans.items()}
        over = dict.fromkeys(spans, 0)
        waiting: dict[int, list[_Id]] = {client: [] for client in spans}
        order: list[_Id] = []
        free = list(spans)
        while free:
            client = free.pop()
            end = spans[client].end
            while over[client] < len(waits[client]):
                clock, other, other_clock = waits[client][over[client]]
                if other_clock >= reached[other]:
                    heappush(waiting[other], (other_clock, client))
                    end = clock
                    break
                over[client] += 1
            reached[client] = end
            order.append((client, end))
            while waiting[client] and waiting[client][0][0] < end:
                free.append(heappop(waiting[client])[1])
        if any(reached[client] < span.end for client, span in spans.items()):
            raise FormatError("the blocks of a Yjs update wait for each other")
        return order


def _check_cut(outline: Outline, client: int, clock: int) -> None:
    """Refuse a cut between the two code units of a character: Yjs miscounts from there on."""
    starts, strings = outline.wide.get(client, ([], []))
    found = bisect_right(starts, clock) - 1
    if found >= 0:
        high = 2 * (clock - starts[found]) + 1
        if b"\xdc" <= strings[found][high : high + 1] <= b"\xdf":
            raise FormatError("a Yjs update divides a character")


def _check_places(
    spans: Mapping[int, Span], outline: Outline, known: Mapping[int, int], base: Outline | None
) -> tuple[dict[int, list[_Place | None]], dict[_Id, tuple[bool | None, int]]]:
    """The places and types of an update that is applied to a base, which `known` is the state of.

    Refuses blocks in two shared types at once, in a value, or nested too deeply: with those Yjs
    uses memory that it has freed.
    """
    types: dict[_Id, tuple[bool | None, int]] = {_ROOT: (outline.shape == "json", 0)}
    places: dict[int, list[_Place | None]] = {client: [] for client in spans}

    def found(at: _Id) -> tuple[int, _Place | None]:
        """The kind of the block with this id, and where it is. What is not here may be garbage."""
        client, clock = at
        if base and clock < known.get(client, 0):
            index = bisect_right(base.starts[client], clock) - 1
            return base.blocks[client][index][0], base.places[client][index]
        if client not in spans or not spans[client].first <= clock < spans[client].end:
            return _GARBAGE, None
        index = bisect_right(outline.starts[client], clock) - 1
        return outline.blocks[client][index][0], places[client][index]

    def type_of(parent: _Id) -> tuple[bool | None, int]:
        kind, place = found(parent)
        if kind in (_GARBAGE, _DELETED):
            return None, 1
        if kind == _VALUES:
            raise FormatError("a Yjs block is inside a value")
        outer = place[0] if place else _ROOT
        depth = 1 + (types.get(outer) or (base and base.types.get(outer)) or (None, 1))[1]
        if depth > DEPTH_MAX:
            raise FormatError("a Yjs update is nested too deeply")
        return kind == _MAP, depth

    for client, end in outline.order:
        own, starts, blocks = places[client], outline.starts[client], outline.blocks[client]
        old = known.get(client, 0)
        while len(own) < len(starts) and (start := starts[len(own)]) < end:
            kind, length, beside, place = blocks[len(own)]
            if start + length <= old:
                own.append(None)
                continue
            if place:
                if place[0] not in types:
                    types[place[0]] = type_of(place[0])
                is_map = types[place[0]][0]
                if is_map is not None and is_map != (place[1] is not None):
                    raise FormatError("a Yjs block has a key in a list, or none in a map")
            for at in beside if start >= old else (*beside, (client, old - 1)):
                there = found(at)[1]
                if there and place and there != place:
                    raise FormatError("a Yjs block is in two places")
                place = place or there
            if length > 1 and kind == _VALUES and place and place[1] is not None:
                # Yjs joins values of the past that it was told to keep.
                from_, to = outline.deletes.get(client, ([], []))
                index = bisect_right(from_, start) - 1
                if index < 0 or to[index] < start + length:
                    raise FormatError("a Yjs update holds several values under one key")
            own.append(place)
    return places, types


def _uint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer of at most 53 bits in its shortest form, and where it ends."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value = byte & 127
    for shift in (7, 14, 21, 28, 35, 42, 49):
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            break
    if value > CLIENT_MAX or not 0 < byte < 128:
        raise FormatError("a Yjs update holds an integer that is too long")
    return value, at + 1


def _string(data: bytes, at: int) -> int:
    """Where a string ends."""
    length, at = _uint(data, at)
    text = data[at : at + length]
    if len(text) < length:
        raise FormatError("a Yjs string ends too early")
    if not text.isascii():
        text.decode()
    return at + length


def _value(data: bytes, at: int, depth: int) -> int:
    """Where a value ends that is one of JSON's. Past the end of the data, if it ends too early."""
    kind = data[at]
    at += 1
    if kind == 119:
        return _string(data, at)
    if kind == 124 or kind == 123:
        # A number is not finite when all bits of its exponent are set: 8 here, 11 there.
        if data[at] & 0x7F == 0x7F and data[at + 1] >= (0x80 if kind == 124 else 0xF0):
            raise FormatError("a Yjs update holds a number that is not finite")
        return at + (4 if kind == 124 else 8)
    if kind in (120, 121, 126):
        return at
    if kind == 125:
        return _int(data, at)
    if kind == 122:
        return at + 8
    if kind == 116:
        length, at = _uint(data, at)
        if length > NUMBER_BYTES_MAX or not _NUMBER.fullmatch(data[at : at + length]):
            raise FormatError("a Yjs update holds bytes that are no number")
        return at + length
    if kind != 117 and kind != 118:
        raise FormatError(f"a Yjs update holds a value of another kind: {kind}")
    if depth > DEPTH_MAX:
        raise FormatError("a Yjs update is nested too deeply")
    count, at = _uint(data, at)
    keys = set[bytes]()
    for number in range(count):
        if kind == 118:
            key_at = at
            at = _string(data, at)
            keys.add(data[key_at:at])
            if len(keys) == number:
                raise FormatError("a Yjs update holds a key twice")
        at = _value(data, at, depth + 1)
    return at


def _int(data: bytes, at: int) -> int:
    """Where a signed variable-length integer ends."""
    byte = data[at]
    at += 1
    value, shift = byte & 63, 6
    while byte > 127:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if not byte or value > CLIENT_MAX:
            raise FormatError("a Yjs update holds an integer that is too long")
    return at
