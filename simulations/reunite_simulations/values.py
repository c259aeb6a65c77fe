"""Values that workloads write. Each holds a number that occurs once, so that it names its write.

Plain ones are what every column of their type keeps as it is. Odd ones are too, and are what naive
code breaks on. Extreme ones are kept by SQLite in columns of their type, but a schema may rule them
out by a constraint that is not known to everybody.
"""

import random
from string import ascii_lowercase, ascii_uppercase
from typing import Final

from reunite.cells.register import INTEGER_MAX, Value
from reunite.schema import Column
from reunite_simulations.contents import merges

# What is shared by many: elements of sets, members of objects.
POOL: Final = 5
# A counter begins at less.
COUNTED_MAX: Final = 1_000
BLOB_BYTES_MAX: Final = 100_000
# Blobs are rarely as large as they may be: worlds have to stay fast.
_BLOB_BYTES: Final = (0, 1, 200, 200, 2_000, 2_000, 20_000, BLOB_BYTES_MAX)
_ODD_TEXTS: Final = (
    "v{} Zoë Straße 東京",
    "v{} 🧑‍🚀👩🏽‍🌾🏳️‍🌈",
    "v{} e\u0301 n\u0303 \u200b\u202eabc\u202c \ufeff",
    "'v{}'' \"quoted\" `x` [y]; --",
    "v{}\n\ttwo lines\r\n\x01\x1f\x7f",
    " v{} ",
    '{{"v": "{}\\\\", %s ? :a @b $c}}',
    "-{}e400",
)


def plain(column: Column, number: int) -> Value:
    """A number as a value that the column keeps as it is."""
    match _kind(column):
        case "integer":
            return number
        case "counter":
            return number % COUNTED_MAX
        case "boolean":
            return number % 2
        case "real":
            return number + 0.5
        case "numeric":
            return number / 4
        case "blob":
            return number.to_bytes(5, "big")
        case "date":
            return f"2026-01-{number % 28 + 1:02}"
        case "time":
            return f"{number % 24:02}:00:00"
        case "timestamp" | "timestamptz":
            return f"2026-01-{number % 28 + 1:02} 00:00:00"
        case "uuid":
            return f"00000000-0000-4000-8000-{number:012}"
        case "json":
            return str(number)
        case "crdt_text":
            return f"{word(number)} {word(number, 1)}"
        case "crdt_set":
            return f'["e{number}","p{number % POOL}"]'
        case "crdt_list":
            return f'["e{number}",{{"id":{number},"done":false}}]'
        case "crdt_json":
            return f'{{"k{number % POOL}":{number},"box":{{}},"items":[]}}'
        case _:
            return f"v{number}"


def word(number: int, second: int = 0) -> str:
    """A word of its own for a text, and another. Its first and last letters go round the alphabet,
    so that words which are typed after each other share none."""
    first, last = (number * 2 + second) % 26, (number * 2 + second + 13) % 26
    return f"{ascii_lowercase[first]}{number}{ascii_uppercase[last]}"


def unfit(column: Column, number: int) -> Value:
    """What a column that merges takes beside what merges: not what its type promises."""
    match _kind(column):
        case "counter":
            return f"many {number}"
        case "crdt_text":
            return number.to_bytes(5, "big")
        case "crdt_json":
            return f'"scalar {number}"'
        case _:
            return f"no list {number}"


def odd(column: Column, number: int, chance: random.Random) -> Value:
    """The same in a form that is unusual, where the type has one."""
    match _kind(column):
        case "blob":
            return number.to_bytes(5, "big") + chance.randbytes(chance.choice(_BLOB_BYTES))
        case "text" | "any" if not _takes_numbers(column):
            return chance.choice(_ODD_TEXTS).format(number)
        case "json" | "crdt_json":
            return f'{{"é": [{number}, "🧑‍🚀", null]}}'
        case "crdt_text":
            return chance.choice(_ODD_TEXTS).format(number)
        case "crdt_set" | "crdt_list":
            return f'["é 🧑‍🚀 {number}", {1 << 60}{number}, {number}.5e-3, [{number}, null]]'
        case _:
            return plain(column, number)


def extreme(column: Column, number: int, chance: random.Random) -> Value:
    """The same at the ends of what the type holds; of any type where none is declared."""
    match _kind(column):
        case "integer":
            return chance.choice((INTEGER_MAX - number, -INTEGER_MAX - 1 + number, -number))
        case "real":
            return chance.choice((number * 1e290, -number * 1e290, number * 1e-290))
        case "any":
            return chance.choice((number, -number - 0.5, b"\xff%d" % number, f"{number}"))
        case _:
            return odd(column, number, chance)


def last(column: Column, chance: random.Random) -> Value:
    """The very ends, which name no write: no cell may get one twice. None where there are none."""
    match _kind(column):
        case "integer":
            return chance.choice((INTEGER_MAX, -INTEGER_MAX - 1))
        case "real":
            return chance.choice((-0.0, 1.7976931348623157e308, -5e-324))
        case "blob":
            return b""
        case "text" | "any":
            return ""
        case _:
            return None


def large(column: Column, number: int, size: int, chance: random.Random) -> Value:
    """A value of some size: of text, which packs well, or of bytes, which do not."""
    if _kind(column) == "blob":
        return number.to_bytes(5, "big") + chance.randbytes(size)
    return f"v{number} " + "é, " * (size // 4)


def is_sizeable(column: Column) -> bool:
    """Whether a column takes a value of any size."""
    return _kind(column) in ("text", "blob", "any") and "(" not in column.declared


def occurs_once(column: Column) -> bool:
    """Whether values of this column differ, each from all others."""
    return _kind(column) not in ("boolean", "date", "time", "timestamp") and not merges(column)


def takes_any_text(column: Column) -> bool:
    """Whether a text with a key's behind it is kept as it is."""
    return _kind(column) in ("text", "any") and not _takes_numbers(column)


def _kind(column: Column) -> str:
    return column.type.partition("(")[0]


def _takes_numbers(column: Column) -> bool:
    """Types that mean text to a relay and numbers to SQLite, which goes by parts of the name."""
    name = column.declared.upper()
    return bool(name) and not any(word in name for word in ("CHAR", "CLOB", "TEXT", "BLOB", "ANY"))
