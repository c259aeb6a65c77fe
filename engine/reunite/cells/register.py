"""The register: one value, the later stamp wins. Owns what a value is and when two are the same.

A value is one of SQLite's five storage classes: None, int (64 bits), float (never NaN, which
SQLite reads back as NULL), str or bytes. Booleans, dates, decimals and uuids are stored by
SQLite as one of these, so nothing is lost by keeping just them.
"""

import struct
from typing import Final, TypeAlias

KIND: Final = 0

Value: TypeAlias = int | float | str | bytes | None
Register: TypeAlias = tuple[bytes, Value]

INTEGER_MIN: Final = -(1 << 63)
INTEGER_MAX: Final = (1 << 63) - 1

_CLASS_ORDER: Final = {type(None): 0, int: 1, float: 2, str: 3, bytes: 4}


def same(a: Value, b: Value) -> bool:
    """True when two values are equal by storage class and bytes (1 is not 1.0, 0.0 is not -0.0)."""
    if a is b:
        return True
    if type(a) is not type(b) or a != b:
        return False
    return not isinstance(a, float) or struct.pack(">d", a) == struct.pack(">d", b)


def wins(challenger: Register, holder: Register) -> bool:
    """True when `challenger` replaces `holder`: the later stamp, then the greater encoded value."""
    if challenger[0] != holder[0]:
        return challenger[0] > holder[0]
    return _order(challenger[1]) > _order(holder[1])


def _order(value: Value) -> tuple[int, bytes]:
    """A total order of values that every replica computes alike: storage class, then bytes."""
    if value is None:
        data = b""
    elif isinstance(value, int):
        data = (value - INTEGER_MIN).to_bytes(9, "big")
    elif isinstance(value, float):
        data = struct.pack(">d", value)
    elif isinstance(value, str):
        data = value.encode("utf-8")
    else:
        data = value
    return _CLASS_ORDER[type(value)], data
