"""The parser of Yjs updates: nothing honest is refused, and nothing that passes harms Yjs.

Run as a program, this file is the liar: what it makes is applied in a process of its own, which it
might end. `python -m tests.engine.test_yjs_update 0 100000` tries that often, from that seed on.
"""

import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from pycrdt import Array, Doc, Map, Text, TransactionEvent, UndoManager, get_update, merge_updates

from reunite.cells.yjs_update import (
    BLOCKS_MAX,
    CLIENT_MAX,
    CLOCK_MAX,
    DEPTH_MAX,
    UPDATE_BYTES_MAX,
    Shape,
    Span,
    fits,
    parse,
    parse_state,
    ready,
)
from reunite.errors import FormatError

SHAPES: Final[Sequence[Shape]] = ("text", "list", "json")
ROOTS: Final[dict[Shape, type[Any]]] = {"text": Text, "list": Array, "json": Map}
EMPTY: Final = b"\0\0"
ONE: Final = b"\x7c" + struct.pack(">f", 1)
NULL: Final = b"\x7e"
Id = tuple[int, int]


# Bytes, as they are on the wire.


def uint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))


def sized(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return uint(len(data)) + data


def block(
    content: int,
    body: bytes,
    parent: str | Id | None = None,
    key: str | None = None,
    *,
    left: Id | None = None,
    right: Id | None = None,
) -> bytes:
    info = content | (left is not None) << 7 | (right is not None) << 6 | (key is not None) << 5
    found = bytes((info,))
    for beside in (left, right):
        if beside is not None:
            found += uint(beside[0]) + uint(beside[1])
    if isinstance(parent, str):
        found += b"\1" + sized(parent)
    elif parent is not None:
        found += b"\0" + uint(parent[0]) + uint(parent[1])
    if parent is not None and key is not None:
        found += sized(key)
    return found + body


def string(text: str | bytes, *where: Any, **beside: Any) -> bytes:
    return block(4, sized(text), *where, **beside)


array = partial(block, 7, b"\0")
mapping = partial(block, 7, b"\1")
one = partial(block, 8, b"\1" + ONE)


def update(
    *clients: tuple[int, int, Sequence[bytes]], deletes: Sequence[tuple[int, Sequence[Id]]] = ()
) -> bytes:
    """An update of (client, first clock, blocks)s that deletes (client, (clock, length)s)s."""
    found = uint(len(clients))
    for client, clock, blocks in clients:
        found += uint(len(blocks)) + uint(client) + uint(clock) + b"".join(blocks)
    found += uint(len(deletes))
    for client, ranges in deletes:
        found += uint(client) + uint(len(ranges))
        found += b"".join(uint(clock) + uint(length) for clock, length in ranges)
    return found


def by_one(*blocks: bytes, deletes: Sequence[Id] = ()) -> bytes:
    return update((1, 0, blocks), deletes=[(1, deletes)] if deletes else ())


def valued(value: bytes) -> bytes:
    return by_one(block(8, b"\1" + value, "list"))


# What honest people do.

CHARACTERS: Final = [*"aé😀漢\0\uffff", "e\u0301", "👨\u200d👩\u200d👧", "words " * 5]
SCALARS: Final = [None, True, False, 1, -2, 0.1, 1e300, 2**53, 2**60, b"1.0", "", "😀", "\0"]


def some_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(9)
    if depth > 2 or kind > 3:
        return chance.choice(SCALARS)
    items = [some_value(chance, depth + 1) for _ in range(chance.randrange(3))]
    if kind == 0:
        return Array(items)
    if kind == 1:
        return Map({chance.choice("abc"): item for item in items})
    plain = [item for item in items if not isinstance(item, Array | Map)]
    return plain if kind == 2 else {chance.choice(["", "😀"]): item for item in plain}


def edit_text(chance: random.Random, text: Text) -> None:
    found = str(text)
    start = chance.choice([0, len(found), chance.randrange(len(found) + 1)])
    end = min(len(found), start + chance.choice([0, 0, 1, 3, 30]))
    # pycrdt counts the bytes of UTF-8.
    at, to = len(found[:start].encode()), len(found[:end].encode())
    if to > at:
        del text[at:to]
    if end == start or chance.random() < 0.3:
        text.insert(at, "".join(chance.choices(CHARACTERS, k=chance.choice([1, 1, 3]))))


def edit(chance: random.Random, shared: Any) -> None:
    if isinstance(shared, Text):
        edit_text(chance, shared)
        return
    inner = list(shared) if isinstance(shared, Array) else [shared[key] for key in shared]
    inner = [item for item in inner if isinstance(item, Array | Map)]
    if inner and chance.random() < 0.6:
        edit(chance, chance.choice(inner))
    elif isinstance(shared, Array):
        if len(shared) and chance.random() < 0.4:
            start = chance.randrange(len(shared))
            del shared[start : chance.choice([start + 1, len(shared)])]
        else:
            shared.insert(chance.randrange(len(shared) + 1), some_value(chance))
    else:
        key = chance.choice(["a", "b", "😀", ""])
        if key in shared and chance.random() < 0.3:
            del shared[key]
        else:
            shared[key] = some_value(chance)


class Person:
    def __init__(self, shape: Shape, client: int, *, keeps: bool = False) -> None:
        self.doc = Doc[Any](client_id=client, skip_gc=keeps or None)
        self.root = ROOTS[shape]()
        self.doc[shape] = self.root
        self.log: list[bytes] = []
        self._subscription = self.doc.observe(self._note)
        self.undo = UndoManager(scopes=[self.root], capture_timeout_millis=0)

    def _note(self, event: TransactionEvent) -> None:
        self.log.append(event.update)

    def act(self, chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.1 and self.undo.can_undo():
            self.undo.undo()
        elif kind < 0.15 and self.undo.can_redo():
            self.undo.redo()
        else:
            with self.doc.transaction():
                for _ in range(chance.choice([1, 1, 1, 4])):
                    edit(chance, self.root)


def history(shape: Shape, seed: int, steps: int = 30) -> tuple[list[Person], list[bytes]]:
    """Up to three people edit, exchange what is new, and merge. They, and all that pycrdt wrote."""
    chance = random.Random(f"{shape} {seed}")
    clients = {chance.getrandbits(chance.choice([7, 20, 53])) for _ in range(3)}
    people = [Person(shape, client, keeps=chance.random() < 0.2) for client in clients]
    written: list[bytes] = []
    for _ in range(steps):
        one, other = chance.choice(people), chance.choice(people)
        if chance.random() < 0.7:
            one.act(chance)
        else:
            news = other.doc.get_update(one.doc.get_state())
            one.doc.apply_update(news)
            written += (news, one.doc.get_update())
    for one in people:
        written += one.log
        # More at once, and pycrdt's sort panics at times. With gaps between, it writes skips.
        whole = [person.doc.get_update() for person in people]
        merged = merge_updates(*whole, *one.log[:8])
        written += (merged, get_update(merged, one.doc.get_state()), *whole)
    return people, written


SEEDS: Final = range(12)
in_every_shape = pytest.mark.parametrize(
    ("shape", "seed"), [(shape, seed) for shape in SHAPES for seed in SEEDS]
)


@in_every_shape
def test_nothing_that_pycrdt_writes_is_refused(shape: Shape, seed: int) -> None:
    people, written = history(shape, seed)
    for data in written:
        parse(data, shape)
    for person in people:
        whole = parse(person.doc.get_update(), shape)
        state = {client: span.end for client, span in whole.spans.items()}
        assert state == parse_state(person.doc.get_state())
        assert not whole.needs


@in_every_shape
def test_an_honest_update_that_is_ready_fits_and_is_applied_whole(shape: Shape, seed: int) -> None:
    _, written = history(shape, seed)
    late = Person(shape, 5)
    for data in random.Random(seed).sample(written, k=min(40, len(written))):
        honest, state = parse(data, shape), parse_state(late.doc.get_state())
        is_ready = ready(honest, state)
        assert fits(honest, parse(late.doc.get_update(), shape)) == is_ready
        if is_ready:
            late.doc.apply_update(data)
            for client, span in honest.spans.items():
                state[client] = max(span.end, state.get(client, 0))
            assert parse_state(late.doc.get_state()) == state


@in_every_shape
def test_an_edit_is_ready_when_what_went_before_it_is_known(shape: Shape, seed: int) -> None:
    person, chance = Person(shape, 1), random.Random(seed)
    for _ in range(20):
        before = parse_state(person.doc.get_state())
        edit(chance, person.root)
        last = parse(person.log[-1], shape) if person.log else parse(EMPTY, shape)
        assert ready(last, before)
        assert ready(last, parse_state(person.doc.get_state()))
        if last.spans and before:
            assert not ready(last, {1: before[1] - 1})


# What an update says.


def test_what_an_update_holds_and_needs() -> None:
    beside = string("x", left=(7, 4), right=(8, 0))
    data = update((9, 3, [beside]), (2, 0, [string("y", left=(9, 3))]), deletes=[(6, [(1, 2)])])
    found = parse(data, "text")
    assert found.spans == {9: Span(3, 4), 2: Span(0, 1)}
    assert found.needs == {9: 3, 7: 5, 8: 1, 6: 3}


def test_an_update_does_not_need_what_it_holds() -> None:
    blocks = [string("ab", "text"), string("c", left=(1, 1))]
    d = string("d", left=(1, 2))
    data = update((2, 0, [d]), (1, 0, blocks), deletes=[(1, [(0, 2), (2, 1)])])
    assert parse(data, "text").needs == {}


def test_a_string_is_as_long_as_its_utf_16() -> None:
    person = Person("text", 1)
    person.root.insert(0, "a😀e\u0301")
    assert parse(person.log[0], "text").spans == {1: Span(0, 5)}
    assert parse_state(person.doc.get_state()) == {1: 5}


def test_a_state_vector_is_read() -> None:
    largest = uint(CLIENT_MAX) + uint(CLOCK_MAX)
    assert parse_state(b"\2" + largest + b"\1\2") == {CLIENT_MAX: CLOCK_MAX, 1: 2}


STATES = [b"", b"\1", b"\1\1", b"\0\0", b"\2\1\1\1\2", b"\1\x81\0\1", b"\xff\xff\x07\1\1"]
STATES += [b"\1\1" + uint(CLOCK_MAX + 1), b"\1" + uint(CLIENT_MAX + 1) + b"\1"]


@pytest.mark.parametrize("data", STATES)
def test_an_unsound_state_vector_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_state(data)


# What is refused.

A, EMOJI = string("a", "text"), string("a😀b", "text")
KEYED: Final = one("json", "k")
TWO: Final = b"\2" + ONE + ONE
CRASH: Final = bytes.fromhex("0201070000000103808080800804010161016202020105070300")
NAN, INFINITE, TOO_LONG = float("nan"), float("inf"), uint(CLIENT_MAX + 1)
IN_DEEP: Final = (1, DEPTH_MAX - 1)
DEEP: Final = [array("list"), *(array((1, level)) for level in range(DEPTH_MAX - 1))]

UNSOUND: Final[dict[str, tuple[Shape, bytes]]] = {
    "no bytes": ("text", b""),
    "more bytes than the limit": ("text", by_one(string("a" * UPDATE_BYTES_MAX, "text"))),
    "what applies and then ends the process": ("list", CRASH),
    "bytes after the end": ("text", by_one(A) + b"\0"),
    "a client in more bytes than it takes": ("text", b"\1\1\x81\0\0" + A + b"\0"),
    "a clock in more bytes than it takes": ("text", b"\1\1\1\x80\0" + A + b"\0"),
    "a client of 54 bits": ("text", update((CLIENT_MAX + 1, 0, [A]))),
    "a client of 70 bits": ("text", b"\1\1" + b"\xff" * 9 + b"\1\0" + A + b"\0"),
    "a client twice": ("text", update((1, 0, [A]), (1, 1, [A]))),
    "a client without blocks": ("text", by_one()),
    "more blocks than there are": ("text", b"\1\2\1\0" + A + b"\0"),
    "more blocks than the limit": ("text", b"\1" + uint(BLOCKS_MAX + 1) + b"\1\0" + A + b"\0"),
    "more clients than there are": ("text", b"\xff\xff\xff\x0f" + by_one(A)[1:]),
    "a skip": ("text", by_one(b"\x0a\1", A)),
    "an empty string": ("text", by_one(string("", "text"))),
    "empty garbage": ("text", by_one(b"\0\0", A)),
    "an empty deletion": ("text", by_one(block(1, b"\0", "text"))),
    "no values": ("list", by_one(block(8, b"\0", "list"))),
    "a clock pushed to 2^31": ("text", by_one(b"\0" + uint((1 << 31) - 1), A)),
    "a clock over the limit": ("text", by_one(b"\0" + uint(CLOCK_MAX), A)),
    "a first clock over the limit": ("text", update((1, CLOCK_MAX, [A]))),
    "a need over the limit": ("text", by_one(string("a", left=(2, CLOCK_MAX)))),
    "a delete over the limit": ("text", update(deletes=[(1, [(CLOCK_MAX, 1)])])),
    "deletes of a client twice": ("text", update(deletes=[(1, [(0, 1)]), (1, [(1, 1)])])),
    "deletes of nothing": ("text", update(deletes=[(1, [])])),
    "an empty delete": ("text", update(deletes=[(1, [(0, 0)])])),
    "deletes that descend": ("text", update(deletes=[(1, [(5, 1), (0, 1)])])),
    "deletes that overlap": ("text", update(deletes=[(1, [(0, 2), (1, 2)])])),
    "text that is not UTF-8": ("text", by_one(string(b"\xff", "text"))),
    "a surrogate": ("text", by_one(string(b"\xed\xa0\x80", "text"))),
    "another root": ("text", by_one(string("a", "texts"))),
    "the root of another shape": ("list", by_one(one("json"))),
    "a text inside a block": ("text", by_one(A, string("a", (1, 0)))),
    "a key in a text": ("text", by_one(string("a", "text", "k"))),
    "a value in a text": ("text", by_one(one("text"))),
    "a format in a text": ("text", by_one(block(6, b"\1b\1t", "text"))),
    "an embedded value": ("text", by_one(block(5, b"\1t", "text"))),
    "a string in a list": ("list", by_one(string("a", "list"))),
    "binary data": ("list", by_one(block(3, b"\1t", "list"))),
    "a document in a list": ("list", by_one(block(9, b"\1t\x76\0", "list"))),
    "a move": ("list", by_one(one("list"), block(11, b"\0\1\0", "list"))),
    "an unknown content": ("list", by_one(block(24, b"\1\x7e", "list"))),
    "garbage with an origin": ("text", by_one(A, block(0, b"\1", left=(1, 0)))),
    "a shared text": ("list", by_one(block(7, b"\2", "list"))),
    "an unknown parent": ("list", by_one(b"\x08\2\1\0\1\x7e")),
    "a key in a list": ("list", by_one(one("list", "k"))),
    "no key in a map": ("json", by_one(one("json"))),
    "a key in a shared array": ("list", by_one(array("list"), one((1, 0), "k"))),
    "no key in a shared map": ("list", by_one(mapping("list"), one((1, 0)))),
    "values under one key": ("json", by_one(block(8, TWO, "json", "k"), deletes=[(0, 1)])),
    "a block inside a value": ("list", by_one(one("list"), one((1, 0)))),
    "a block inside itself": ("list", by_one(array((1, 0)))),
    "a block beside itself": ("text", by_one(string("ab", left=(1, 0)))),
    "a block beside a later one": ("text", by_one(string("a", right=(1, 1)), A)),
    "blocks in each other": ("list", update((2, 0, [array((1, 0))]), (1, 0, [array((2, 0))]))),
    "blocks that wait for each other": (
        "text", update((2, 0, [A, string("a", left=(1, 0))]), (1, 0, [string("a", left=(2, 1))])),
    ),
    "two places": ("list", by_one(array("list"), one((1, 0)), one(left=(1, 0), right=(1, 1)))),
    "two keys": ("json", by_one(KEYED, one("json", "l"), one(left=(1, 0), right=(1, 1)))),
    "after half of a character": ("text", by_one(EMOJI, string("c", left=(1, 1)))),
    "before half of one": ("text", update((2, 0, [string("c", right=(1, 2))]), (1, 0, [EMOJI]))),
    "half a character deleted": ("text", by_one(EMOJI, deletes=[(2, 2)])),
    "undefined": ("list", valued(b"\x7f")),
    "an unknown value": ("list", valued(b"\x73")),
    "no number": ("list", valued(b"\x7b" + struct.pack(">d", NAN))),
    "an infinite number": ("list", valued(b"\x7b" + struct.pack(">d", -INFINITE))),
    "no short number": ("list", valued(b"\x7c" + struct.pack(">f", NAN))),
    "a short infinite number": ("list", valued(b"\x7c" + struct.pack(">f", INFINITE))),
    "an integer in more bytes than it takes": ("list", valued(b"\x7d\x81\0")),
    "an integer of 54 bits": ("list", valued(b"\x7d\xbf" + b"\xff" * 6 + b"\x7f")),
    "a value that ends too early": ("list", b"\1\1\1\0\x08\1\4list\1\x7b\0"),
    "more values than there are": ("list", by_one(block(8, TOO_LONG[:-1] + b"\7\x7e", "list"))),
    "more items than there are": ("list", valued(b"\x75\xff\xff\xff\x07\x7e")),
    "a key twice": ("list", valued(b"\x76\2\1a\x7e\1a\x7e")),
    "a string that is not UTF-8": ("list", valued(b"\x77\1\xff")),
    "a key that is not UTF-8": ("list", valued(b"\x76\1\1\xff\x7e")),
    "26 KB of nested arrays": ("list", valued(b"\x75\1" * 13_000 + NULL)),
    "arrays one too deep": ("list", valued(b"\x75\1" * (DEPTH_MAX + 1) + NULL)),
    "shared types one too deep": ("list", by_one(*DEEP, array(IN_DEEP), one((1, DEPTH_MAX)))),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "data"), UNSOUND.values(), ids=UNSOUND)
def test_what_no_honest_writer_makes_is_refused(shape: Shape, data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data, shape)


@in_every_shape
def test_an_update_that_ends_too_early_is_refused(shape: Shape, seed: int) -> None:
    shortest = min(history(shape, seed, 10)[1][-3:], key=len)
    for end in range(len(shortest)):
        with pytest.raises(FormatError):
            parse(shortest[:end], shape)


@pytest.mark.parametrize("number", ["0", "-0", "1.0", "-12.50e+3", "1E-400", "9" * 1_000])
def test_a_number_kept_as_text_is_taken(number: str) -> None:
    parse(valued(b"\x74" + sized(number)), "list")


NO_NUMBERS: Final = ["", "01", "+1", "1.", ".5", "1e", "0x1", "NaN", "1 ", "1\n", "--1", "\u0661"]


@pytest.mark.parametrize("number", [*NO_NUMBERS, "9" * 1_001])
def test_bytes_that_are_no_number_are_refused(number: str) -> None:
    with pytest.raises(FormatError):
        parse(valued(b"\x74" + sized(number)), "list")


VALUES = [b"\x78", b"\x79", NULL, ONE, b"\x75\0", b"\x75\1" * DEPTH_MAX + NULL, b"\x77\1\0"]
VALUES += [b"\x7d\0", b"\x7d\x40", b"\x7d\xc0\1", b"\x7d\xbf" + b"\xff" * 6 + b"\x1f", b"\x76\0"]
VALUES += [b"\x7a" + b"\xff" * 8, b"\x7b" + struct.pack(">d", 1e308), b"\x76\2\1a\x7e\0\x78"]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_of_json_is_taken(value: bytes) -> None:
    parse(valued(value), "list")


# What contradicts a document.

FACE: Final = by_one(EMOJI)
TYPED: Final = by_one(array("list"), block(8, TWO, (1, 0)), one("list"))
MAPPED: Final = by_one(KEYED, mapping("json", "m"))

CONTRADICTIONS: Final[dict[str, tuple[Shape, bytes, bytes]]] = {
    "a block inside a value": ("list", TYPED, update((2, 0, [one((1, 1))]))),
    "a key in an array": ("list", TYPED, update((2, 0, [one((1, 0), "k")]))),
    "no key in a map": ("json", MAPPED, update((2, 0, [one((1, 1))]))),
    "two places": ("list", TYPED, update((2, 0, [one(left=(1, 2), right=(1, 3))]))),
    "values under one key": ("json", MAPPED, update((2, 0, [block(8, TWO, left=(1, 0))]))),
    "what goes on elsewhere": ("list", TYPED, update((1, 2, [block(8, b"\3" + ONE * 3, (1, 0))]))),
    "after half of a character": ("text", FACE, update((2, 0, [string("c", left=(1, 1))]))),
    "before half of one": ("text", FACE, update((2, 0, [string("c", right=(1, 2))]))),
    "half a character deleted": ("text", FACE, update(deletes=[(1, [(2, 1)])])),
    "text that goes on in a character": ("text", FACE, by_one(string("aaa😀", "text"))),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "document", "data"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_contradicts_a_document_is_refused(shape: Shape, document: bytes, data: bytes) -> None:
    sound, whole = parse(data, shape), parse(document, shape)
    assert ready(sound, {1: whole.spans[1].end})
    with pytest.raises(FormatError):
        fits(sound, whole)


def test_a_document_is_not_nested_too_deeply_little_by_little() -> None:
    document = parse(by_one(*DEEP), "list")
    deepest = array(IN_DEEP)
    assert fits(parse(update((1, DEPTH_MAX, [deepest])), "list"), document)
    with pytest.raises(FormatError, match="too deeply"):
        fits(parse(update((1, DEPTH_MAX, [deepest, one((1, DEPTH_MAX))])), "list"), document)


# What passes is applied.


def lie(chance: random.Random, shape: Shape, state: dict[int, int]) -> bytes:
    """A well-formed update about a document of this state, of which little else is true."""
    everyone, ends = [*state, 1, 2, 300], dict(state)

    def somewhere(client: int, clock: int) -> Id:
        others = [other for other, end in ends.items() if end and other != client]
        if others and (not clock or chance.random() < 0.4):
            client = chance.choice(others)
            clock = ends[client] + chance.choice([0] * 9 + [1])
        return client, chance.randrange(max(1, clock))

    def content(where: dict[str, Any]) -> tuple[bytes, int]:
        kind, length = chance.random(), chance.choice([1, 1, 2, 5])
        if kind < 0.05:
            return b"\0" + uint(length), length
        if kind < 0.15:
            return block(1, uint(length), **where), length
        if shape == "text":
            text = "".join(chance.choices("aé😀", k=length))
            return string(text, **where), len(text.encode("utf-16-le")) // 2
        if kind < 0.5:
            return chance.choice([array, mapping])(**where), 1
        items = b"".join(chance.choices([ONE, NULL, b"\x76\1\1a\x78", b"\x74\0031.0"], k=length))
        return block(8, uint(length) + items, **where), length

    clients = []
    for client in sorted(set(chance.choices(everyone, k=chance.choice([1, 1, 2, 3])))):
        first = clock = max(0, ends.get(client, 0) - chance.choice([0, 0, 0, 1, 2]))
        blocks = []
        for _ in range(chance.choice([1, 2, 3, 6])):
            where: dict[str, Any] = {}
            sides = chance.choice(["", "left", "left", "right", "left right"])
            if not any(ends.values()):
                sides = ""
            where.update((side, somewhere(client, clock)) for side in sides.split())
            if not sides:
                is_root = shape == "text" or chance.random() < 0.5
                where["parent"] = shape if is_root else somewhere(client, clock)
                if chance.random() < 0.5 if not is_root else shape == "json":
                    where["key"] = chance.choice("ab")
            data, length = content(where)
            blocks.append(data)
            clock += length
            ends[client] = max(clock, ends.get(client, 0))
        clients.append((client, first, blocks))
    deletes = []
    for client in chance.sample(sorted(ends), chance.randrange(len(ends))):
        deletes.append((client, [(chance.randrange(ends[client] + 1), chance.choice([1, 2, 3]))]))
    return update(*clients[:: chance.choice([1, -1])], deletes=deletes)


def attack(first: int, count: int) -> None:
    """Apply what passes of so many lies, and of honest updates that were damaged."""
    pasts = {shape: [history(shape, seed, 8) for seed in SEEDS] for shape in SHAPES}
    passed = 0
    for seed in range(first, first + count):
        chance = random.Random(seed)
        shape = chance.choice(SHAPES)
        people, written = chance.choice(pasts[shape])
        person = Person(shape, 5)
        if chance.random() < 0.6:
            person.doc.apply_update(people[0].doc.get_update())
        for _ in range(3):
            whole = parse(person.doc.get_update(), shape)
            state = {client: span.end for client, span in whole.spans.items()}
            data = lie(chance, shape, state)
            if chance.random() < 0.2:
                data = chance.choice(written)
                at = chance.randrange(len(data) + 1)
                data = data[:at] + chance.randbytes(1) + data[at + chance.randrange(3) :]
            try:
                sound = parse(data, shape)
                if not fits(sound, whole):
                    continue
            except FormatError:
                continue
            passed += 1
            print(seed, shape, data.hex(), flush=True)
            person.doc.apply_update(data)
            person.root.to_py()
            after = parse(person.doc.get_update(), shape)
            assert not after.needs
            assert all(after.spans[client].end >= span.end for client, span in sound.spans.items())
        edit(chance, person.root)
        person.root.to_py()
    print(passed)


def test_what_passes_does_yjs_no_harm() -> None:
    command = [sys.executable, "-m", "tests.engine.test_yjs_update", "0", "1000"]
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, (lines[-1:], ran.stderr[-2_000:])
    assert int(lines[-1]) > 500, "too few passed to show anything"


if __name__ == "__main__":
    attack(int(sys.argv[1]), int(sys.argv[2]))
