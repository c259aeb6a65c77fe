"""JSON as text columns hold it: what a text means, and the one way in which it is written.

Objects are written with their keys in order and without spaces, as SQLite's own json() writes
them; integers are exact, other numbers are doubles. Text that is no JSON, that repeats Python's
extensions (NaN), or that no other side could hold (lone surrogates, numbers beyond a double, very
deep nesting) has no meaning here, and is kept as plain text.
"""

import json
import math
from typing import Final

from reunite.cells.register import Value

# Yjs, Postgres and Python all parse by recursion; people nest by ten.
DEPTH_MAX: Final = 60
# Digits of an integer. Postgres's numeric would take more; nobody counts so far.
DIGITS_MAX: Final = 1_000


def parsed(value: Value) -> object:
    """What a JSON text means; None for what is no JSON of ours, and for null."""
    if type(value) is not str:
        return None
    try:
        found = _DECODER.decode(value)
        value.encode()
        canonical(found).encode()
        nested = depth(found)
    except (ValueError, RecursionError):
        return None
    return found if nested <= DEPTH_MAX else None


def canonical(found: object) -> str:
    """The one text of a JSON value."""
    return _ENCODER.encode(found)


def order(element: str) -> tuple[int, float, str]:
    """Where a JSON text stands among others: null, false, true, numbers by size, text by code
    points, then arrays and objects."""
    first = element[0]
    if first in "-0123456789":
        number = float(element)
        return (3, number, element)
    rank = {"n": 0, "f": 1, "t": 2, '"': 4, "[": 5, "{": 6}[first]
    return (rank, 0.0, json.loads(element) if first == '"' else element)


def depth(found: object) -> int:
    """How deep a JSON value is nested; a scalar is 0."""
    if isinstance(found, dict):
        return 1 + max(map(depth, found.values()), default=0)
    if isinstance(found, list):
        return 1 + max(map(depth, found), default=0)
    return 0


def _integer(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise ValueError("an integer of too many digits")
    return int(text)


def _double(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number beyond a double")
    return number


def _refuse(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


# `json.loads` and `json.dumps` make a new one at each call.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, parse_int=_integer, parse_float=_double)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
