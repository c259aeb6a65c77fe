"""Logical column types: what a column means, beside what SQLite calls it.

SQLite keeps any value in any column; Postgres does not. A column's logical type is what its
declared type promises, kept only where all values present at tracking fit, else `text`:

    integer boolean real numeric numeric(p,s) text blob date time timestamp timestamptz uuid json
    any counter crdt_text crdt_set crdt_list crdt_json

`any` is a column without a declared type. Documents hold SQLite's storage classes whatever the
logical type, so nothing here changes a value.

The last five are of columns that merge, each declared by a name of its own. What was declared to
merge never becomes text because of a value: where one does not fit, `reunite.adopt` says so.

| declared | logical type | values that fit | its plain type |
|---|---|---|---|
| COUNTER | counter | integers | integer |
| CRDT_TEXT | crdt_text | text | text |
| CRDT_SET_TEXT | crdt_set | text that is a JSON array | json |
| CRDT_LIST_TEXT | crdt_list | text that is a JSON array | json |
| CRDT_JSON_TEXT | crdt_json | text that is JSON | json |
"""

import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Final

from reunite.cells.register import Value

# Postgres's own ceiling for numeric(p,s).
PRECISION_MAX: Final = 1_000

# SQLite gives a column text affinity for the TEXT in its type's name, and COUNTER numeric affinity.
_MERGING_BY_NAME: Final[Mapping[str, str]] = {
    "COUNTER": "counter",
    "CRDT_TEXT": "crdt_text",
    "CRDT_SET_TEXT": "crdt_set",
    "CRDT_LIST_TEXT": "crdt_list",
    "CRDT_JSON_TEXT": "crdt_json",
}
_PLAIN: Final[Mapping[str, str]] = {
    "counter": "integer",
    "crdt_text": "text",
    "crdt_set": "json",
    "crdt_list": "json",
    "crdt_json": "json",
}
# The logical types of columns whose concurrent edits are merged inside the value.
MERGING: Final[frozenset[str]] = frozenset(_MERGING_BY_NAME.values())
# What such a column takes beside NULL, in words for whoever gave it something else.
MERGING_TAKES: Final[Mapping[str, str]] = {
    "counter": "integers",
    "crdt_text": "text",
    "crdt_set": "text that is a JSON array",
    "crdt_list": "text that is a JSON array",
    "crdt_json": "text that is JSON",
}


def logical_type(declared: str) -> str:
    """The logical type that a declared SQLite type promises, by its name alone."""
    text = declared.upper().strip()
    name = text.partition("(")[0].strip()
    if not name:
        return "any"
    if name in _MERGING_BY_NAME:
        return _MERGING_BY_NAME[name]
    if name in ("BOOL", "BOOLEAN"):
        return "boolean"
    if "INT" in name:
        return "integer"
    if name in ("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"):
        return "timestamptz"
    if name.startswith(("DATETIME", "TIMESTAMP")):
        return "timestamp"
    if name in ("DATE", "TIME", "UUID"):
        return name.lower()
    if name in ("JSON", "JSONB"):
        return "json"
    if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if "BLOB" in name or name in ("BYTEA", "BINARY", "VARBINARY"):
        return "blob"
    if any(word in name for word in ("REAL", "FLOA", "DOUB")):
        return "real"
    if name in ("NUMERIC", "DECIMAL", "MONEY"):
        sized = re.search(r"\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)", text)
        if sized:
            precision, scale = int(sized[1]), int(sized[2] or 0)
            if 0 < precision <= PRECISION_MAX and scale <= precision:
                return f"numeric({precision},{scale})"
        return "numeric"
    return "any" if name == "ANY" else "text"


def plain_type(logical: str) -> str:
    """The logical type, without bounds, of what a column's values are: a counter's is integer."""
    kind = logical.partition("(")[0]
    return _PLAIN.get(kind, kind)


def fits(kind: str, value: Value) -> bool:
    """True when a column of a logical type without bounds holds this value as it is."""
    return value is None or kind in ("any", "text") or _FITS[kind](value)


def fitting_type(wanted: str, values: Iterable[Value]) -> str:
    """`wanted` when every value present fits it exactly, else the widest type that holds them:
    numeric without bounds for numbers that a bounded one would round, `text` for the rest.

    For an untyped key column (`any`) pass through `key_type` instead.
    """
    kind, _, bounds = wanted.partition("(")
    if kind in ("any", "text"):
        return wanted
    present = [value for value in values if value is not None]
    if kind == "numeric" and bounds:
        precision, scale = map(int, bounds.rstrip(")").split(","))
        if all(_fits_numeric(value, precision, scale) for value in present):
            return wanted
        wanted = kind
    return wanted if all(map(_FITS[kind], present)) else "text"


def key_type(values: Iterable[Value]) -> str:
    """The logical type of an untyped key column: that of its values when they agree, else text."""
    classes = {type(value) for value in values if value is not None}
    if classes == {int}:
        return "integer"
    return "blob" if classes == {bytes} else "text"


def decimal_of(value: Value) -> Decimal | None:
    """The exact number that a value writes, or None when it writes none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() else None


def _fits_numeric(value: Value, precision: int, scale: int) -> bool:
    number = decimal_of(value)
    if number is None:
        return False
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return -exponent <= scale and (number == 0 or number.adjusted() + 1 <= precision - scale)


def _fits_text(pattern: str, parse: Callable[[str], object]) -> Callable[[Value], bool]:
    shape = re.compile(pattern)

    def fits(value: Value) -> bool:
        if not isinstance(value, str) or not shape.fullmatch(value):
            return False
        try:
            parse(value)
        except ValueError:
            return False
        return True

    return fits


def _fits_json(*classes: type) -> Callable[[Value], bool]:
    """Whether a value is a JSON text of one of these classes. Python's parser takes more than
    JSON: what it would make a NaN or an infinity, and halves of characters, no other side holds."""

    def fits_json(value: Value) -> bool:
        if not isinstance(value, str):
            return False
        try:
            found = json.loads(value, parse_constant=_no_json, parse_float=_finite)
            if "\\u" in value:
                json.dumps(found, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # one for JSON as deep as no parser goes
            return False
        return isinstance(found, classes)

    return fits_json


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_json(digits)


def _no_json(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


_DAY: Final = r"\d{4}-\d\d-\d\d"
_CLOCK: Final = r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?"

_FITS: Final[dict[str, Callable[[Value], bool]]] = {
    "integer": lambda value: type(value) is int,
    "boolean": lambda value: type(value) is int and value in (0, 1),
    "real": lambda value: isinstance(value, float | int),
    "numeric": lambda value: decimal_of(value) is not None,
    "blob": lambda value: isinstance(value, bytes),
    "date": _fits_text(_DAY, date.fromisoformat),
    "time": _fits_text(_CLOCK, time.fromisoformat),
    "timestamp": _fits_text(f"{_DAY}([ T]{_CLOCK})?", datetime.fromisoformat),
    "timestamptz": _fits_text(rf"{_DAY}[ T]{_CLOCK}(Z|[+-]\d\d(:?\d\d)?)", datetime.fromisoformat),
    "uuid": _fits_text(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid.UUID),
    "json": _fits_text(r"(?s).*", json.loads),
    "counter": lambda value: type(value) is int,
    "crdt_text": lambda value: isinstance(value, str),
    "crdt_set": _fits_json(list),
    "crdt_list": _fits_json(list),
    "crdt_json": _fits_json(object),
}
