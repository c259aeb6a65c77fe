"""Makes the bytes of cells as somebody would who wants to harm a relay.

Four ways: honest bytes, changed at places; updates made by the grammar, which are nearly right;
bytes at random; and inputs that are known to have ended a process or filled its memory.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

import msgpack

from reunite.cells.yjs_update import CLIENT_MAX, CLOCK_MAX, DEPTH_MAX, Shape

SHAPES: Final[tuple[Shape, ...]] = ("text", "list", "json")

# Ids that everybody may try to write under: small ones, the largest, and one beyond it.
CLIENTS: Final = (1, 2, 3, 5, 200, CLIENT_MAX, CLIENT_MAX + 1, 1 << 63)
_CLOCKS: Final = (
    *(0, 1, 2, 127, 128, 1 << 20),
    *(CLOCK_MAX - 1, CLOCK_MAX, CLOCK_MAX + 1),
    *((1 << 31) - 2, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 53) - 1, (1 << 64) - 1),
)
_NUMBERS: Final = (0, 1, 2, 3, 7, 100)


def uint(number: int) -> bytes:
    """A variable-length integer."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes((*made, number))


def string(text: str | bytes) -> bytes:
    """Text with its length before it."""
    data = text.encode() if isinstance(text, str) else text
    return uint(len(data)) + data


def nested_arrays(levels: int) -> bytes:
    """Shared arrays inside each other: 26 KB of them overrun Rust's stack."""
    blocks = b"\x07\x01\x04list\x00" + b"".join(
        b"\x07\x00\x01" + uint(clock) + b"\x00" for clock in range(levels - 1)
    )
    return b"\x01" + uint(levels) + b"\x01\x00" + blocks + b"\x00"


def nested_values(levels: int, *, maps: bool = False) -> bytes:
    """One value: arrays, or objects, inside each other."""
    opening = b"\x76\x01\x01a" if maps else b"\x75\x01"
    value = opening * levels + b"\x7e"
    return b"\x01\x01\x01\x00\x08\x01\x04list\x01" + value + b"\x00"


def long_clock(clock: int, shape: str = "text") -> bytes:
    """A block that only says that it is deleted, and how many clocks it takes; one more after."""
    deleted = b"\x01\x01" + string(shape) + uint(clock)
    behind = b"\x84\x01" + uint(clock - 1) + string("a")
    return b"\x01\x02\x01\x00" + deleted + behind + b"\x00"


def many(client: int, count: int) -> bytes:
    """As many blocks as this, of which nearly none is there."""
    return b"\x01" + uint(count) + uint(client) + b"\x00\x00\x01"


KNOWN: Final = (
    # Applies, and ends the process when it is read.
    bytes.fromhex("0201070000000103808080800804010161016202020105070300"),
    # Panics of Rust, on documents that hold `a` of client 5.
    bytes.fromhex("010005000101047465787402840501038864610105010002"),
    bytes.fromhex("010406002101046a736f6e0161010000a7060001280006020171017c3f8000000106010002"),
    *(nested_arrays(levels) for levels in (DEPTH_MAX - 1, DEPTH_MAX, DEPTH_MAX + 1, 3_700)),
    *(nested_values(levels) for levels in (59, 60, 61, DEPTH_MAX, DEPTH_MAX + 1, 9_000)),
    *(nested_values(levels, maps=True) for levels in (60, DEPTH_MAX, 4_000)),
    *(long_clock(clock, shape) for clock in _CLOCKS if clock for shape in SHAPES),
    *(many(1, count) for count in (1 << 20, (1 << 20) + 1, 1 << 31, (1 << 64) - 1)),
    # Deletes of what nobody wrote.
    *(b"\x00\x01\x01\x01\x00" + uint(length) for length in _CLOCKS),
    # A string and a list of values that are longer than the update.
    b"\x01\x01\x01\x00\x04\x01\x04text" + uint(1 << 31) + b"a\x00",
    b"\x01\x01\x01\x00\x08\x01\x04list" + uint(1 << 31) + b"\x7e\x00",
    b"",
    b"\x00",
    b"\x00\x00\x00",
)


class Hostile:
    """Bytes by chance. `wild` is how often a part is not what it should be."""

    def __init__(self, chance: Random, wild: float = 0.03) -> None:
        self._chance = chance
        self._wild = wild

    def update(
        self, shape: Shape, honest: Sequence[bytes], known: Mapping[int, int]
    ) -> tuple[str, bytes]:
        """A Yjs update and how it was made. `honest` are updates of the document that it is aimed
        at, `known` is that document's state."""
        chance = self._chance
        how = chance.choices(("changed", "cut", "grammar", "random", "known"), (30, 6, 50, 4, 10))[
            0
        ]
        match how:
            case "changed":
                return how, self.changed(chance.choice(honest), honest)
            case "cut":
                data = chance.choice(honest)
                return how, data[: chance.randrange(len(data))]
            case "grammar":
                return how, self.grammar(shape, known)
            case "random":
                return how, chance.randbytes(chance.choice((1, 2, 5, 20, 200)))
            case _:
                return how, chance.choice(KNOWN)

    def changed(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """Honest bytes with a few changes."""
        chance, made = self._chance, bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            at = chance.randrange(len(made) + 1)
            match chance.randrange(7):
                case 0:
                    made[at : at + 1] = bytes((chance.randrange(256),))
                case 1:
                    # One more or less, as of a clock or a length.
                    made[at : at + 1] = bytes(
                        (byte ^ chance.choice((1, 3, 0x20, 0x40, 0x80)))
                        for byte in made[at : at + 1]
                    )
                case 2:
                    made[at:at] = uint(chance.choice(_CLOCKS))
                case 3:
                    del made[at : at + chance.choice((1, 1, 2, 5))]
                case 4:
                    made[at:at] = made[at : at + chance.choice((1, 2, 8, 30))]
                case 5:
                    other = chance.choice(others)
                    start = chance.randrange(len(other) + 1)
                    made[at:at] = other[start : start + chance.choice((1, 4, 16, 64))]
                case _:
                    made[at : at + 1] = uint(chance.choice(_NUMBERS))
        return bytes(made)

    def grammar(self, shape: Shape, known: Mapping[int, int]) -> bytes:
        """An update of a form that could be, about a document with this state."""
        chance = self._chance
        clients = sorted({self._client(known) for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))})
        firsts = {client: self._number(known.get(client, 0)) for client in clients}
        # What blocks can refer to: all of the document, and what was made here so far.
        there = dict(known)
        parts = [uint(self._number(len(clients)))]
        for client in chance.sample(clients, len(clients)):
            clock = firsts[client]
            count = chance.choice((1, 1, 2, 3, 6))
            parts += [uint(self._number(count)), uint(client), uint(clock)]
            there.setdefault(client, 0)
            for _ in range(count):
                data, length = self._block(shape, there)
                parts.append(data)
                clock += length
                there[client] = max(there[client], clock)
        deleted = sorted({self._client(there) for _ in range(chance.choice((0, 0, 1, 2)))})
        parts.append(uint(self._number(len(deleted))))
        for client in deleted:
            ranges = chance.choice((1, 1, 2, 4))
            parts += [uint(client), uint(self._number(ranges))]
            clock = 0
            for _ in range(ranges):
                clock = self._number(clock + chance.randrange(max(1, there.get(client, 0))))
                length = self._number(chance.choice((1, 1, 2, 5)))
                parts += [uint(clock), uint(length)]
                clock += length
        return b"".join(parts)

    def counter(self, own: int) -> bytes:
        """A counter's cell, of parts that are not right more often than not."""
        parts = self._parts(own)
        if self._chance.random() < 0.3:
            parts.append(self._parts(own))
        return self._packed(parts)

    def _parts(self, own: int) -> list[object]:
        chance = self._chance
        ids = (0, own, own, own + 1, 1, (1 << 63) - 1, 1 << 63, -1)
        numbers: Sequence[object] = (
            0,
            1,
            5,
            (1 << 63) - 1,
            1 << 63,
            -1,
            1.5,
            True,
            None,
            "1",
            [],
            {},
        )
        parts: list[object] = []
        for _ in range(chance.choice((0, 1, 1, 2, 3))):
            parts += [
                chance.choice(ids),
                chance.choice(numbers[: 3 if chance.random() < 0.7 else 12]),
            ]
            parts.append(chance.choice(numbers[: 3 if chance.random() < 0.7 else 12]))
        if chance.random() < 0.2:
            parts = parts[: chance.randrange(len(parts) + 1)]
        return parts

    def set(self, own: int) -> bytes:
        """A set's cell, likewise."""
        chance = self._chance
        replicas = sorted(
            chance.sample((0, own, own + 1, 7, (1 << 63) - 1, (1 << 64) - 1), chance.randrange(4))
        )
        elements = ('"a"', '"b"', "1", "null", "[1]", '{"a":1}')
        bad = (
            "1.0e400",
            "NaN",
            '"a',
            "[ 1]",
            "",
            "[" * 100 + "]" * 100,
            "9" * 5_000,
            5,
            None,
            b"a",
        )
        parts: list[object] = [replicas]
        for element in sorted(chance.sample(elements, chance.choice((0, 1, 1, 2, 3)))):
            parts.append(element if chance.random() > 0.1 else chance.choice(bad))
            for _ in range(2):
                flat: list[object] = []
                for index in range(len(replicas)):
                    if chance.random() < 0.6:
                        flat += [index, chance.choice((1, 1, 2, 9))]
                if chance.random() < 0.1:
                    flat.append(chance.choice((0, -1, 99, 1 << 63, None, "1", 1.5, [], {})))
                parts.append(flat)
        if chance.random() < 0.1:
            parts = parts[: chance.randrange(len(parts) + 1)]
        return self._packed(parts)

    def _packed(self, parts: object) -> bytes:
        chance = self._chance
        kind = chance.random()
        if kind < 0.75:
            return msgpack.packb(parts)
        if kind < 0.9:
            data = msgpack.packb(parts)
            return self.changed(data, [data])
        return chance.choice(
            (
                b"\xdd\xff\xff\xff\xff",
                b"\x91" * 5_000,
                b"\xdf\xff\xff\xff\xff",
                b"\xc6\xff\xff\xff\xff",
                b"\xc1",
                b"\x80" * 100,
                msgpack.packb({"a": 1}),
                msgpack.packb("abc"),
                msgpack.packb(b"abc"),
                msgpack.packb([[1] * 70_000]),
                chance.randbytes(chance.randrange(40)),
            )
        )

    def _number(self, number: int) -> int:
        """This number, or now and then another."""
        chance = self._chance
        if chance.random() > self._wild:
            return number
        if chance.random() < 0.5:
            return max(0, number + chance.choice((-2, -1, 1, 2)))
        return chance.choice(_CLOCKS)

    def _client(self, known: Mapping[int, int]) -> int:
        chance = self._chance
        if known and chance.random() < 0.7:
            return chance.choice(list(known))
        return chance.choice(CLIENTS[: 6 if chance.random() > self._wild else len(CLIENTS)])

    def _id(self, there: Mapping[int, int]) -> bytes:
        client = self._client(there)
        return uint(client) + uint(
            self._number(self._chance.randrange(max(1, there.get(client, 0))))
        )

    def _block(self, shape: Shape, there: Mapping[int, int]) -> tuple[bytes, int]:
        """A block, and how many clocks it takes."""
        chance = self._chance
        kind = chance.choice((4, 4, 4, 4, 1, 0) if shape == "text" else (8, 8, 8, 7, 7, 1, 0))
        if chance.random() < self._wild:
            kind = chance.randrange(32)
        if not kind:
            length = chance.choice((1, 2, 5))
            return b"\x00" + uint(self._number(length)), length
        sides = chance.choice((0, 0x80, 0x40, 0xC0))
        in_map = shape != "text" and chance.random() < (0.6 if shape == "json" else 0.2)
        info = kind | sides | (0x20 if in_map else 0)
        data = bytes((info,))
        data += b"".join(self._id(there) for side in (0x80, 0x40) if info & side)
        if not sides:
            if chance.random() < 0.7 or not there or shape == "text":
                root = shape if chance.random() > self._wild else chance.choice((*SHAPES, "x", ""))
                data += b"\x01" + string(root)
            else:
                data += b"\x00" + self._id(there)
            if in_map:
                data += string(chance.choice(("a", "b", "key", "", "é")))
        content, length = self._content(kind)
        return data + content, length

    def _content(self, kind: int) -> tuple[bytes, int]:
        chance = self._chance
        match kind:
            case 1:
                length = self._number(chance.choice((1, 2, 5)))
                return uint(length), length
            case 4:
                text = chance.choice(("a", "word ", "é", "😀", "e\u0301", "\x00", "a😀b"))
                data = text.encode() if chance.random() > self._wild else b"\xed\xa0\x80"
                return string(data), len(text.encode("utf-16-le")) // 2
            case 7:
                return uint(self._number(chance.choice((0, 1)))), 1
            case 8:
                count = chance.choice((1, 1, 1, 2, 3))
                data = b"".join(self._value(0) for _ in range(count))
                return uint(self._number(count)) + data, count
            case _:
                return self._value(0), 1

    def _value(self, depth: int) -> bytes:
        chance = self._chance
        if chance.random() < self._wild:
            return bytes((chance.randrange(256),)) + chance.randbytes(chance.randrange(10))
        kind = chance.randrange(11 if depth < 4 else 8)
        if kind < 2:
            return b"\x77" + string(chance.choice(("", "a", "é😀", "\x00", "1")))
        if kind == 2:
            number = chance.choice(
                (b"1e999", b"1.0", b"-0.0", b"9007199254740993", b"x", b"1" * 900)
            )
            return b"\x74" + string(number)
        if kind < 5:
            return b"\x7d" + uint(chance.choice((0, 1, 63, 5)))
        if kind < 7:
            infinite = chance.random() < self._wild
            return b"\x7b" + (b"\x7f\xf0" if infinite else b"\x3f\xf8") + bytes(6)
        if kind == 7:
            return chance.choice((b"\x7e", b"\x78", b"\x79", b"\x7f", b"\x7a" + bytes(8)))
        count = chance.randrange(3)
        if kind == 8:
            return b"\x75" + uint(count) + b"".join(self._value(depth + 1) for _ in range(count))
        keys = chance.sample(("a", "b", "c"), count)
        if chance.random() < self._wild:
            keys = keys * 2
        return (
            b"\x76" + uint(len(keys)) + b"".join(string(k) + self._value(depth + 1) for k in keys)
        )
