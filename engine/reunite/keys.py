"""Keys: how a row's primary key is written in our own tables, and which keys can sync.

A key of one column is kept as its own value, so that bookkeeping joins the app's table in SQL. A
composite key is kept as its parts' SQL literals with commas between: `1,'a''b',X'00FF'`, which
`quote(a) || ',' || quote(b)` writes in SQLite too.

On the wire and at the relay a key is the msgpack array of its values, in its one shortest form, so
that equal keys have equal bytes. Both sides agree on which row a key
names because only canonical keys sync: integers, text without NUL, blobs; never NULL, never a
float (1 and 1.0 are one key to SQLite and two to others).
"""

import re
from collections.abc import Sequence
from typing import Final

import msgpack

from reunite.cells.register import INTEGER_MAX, Value
from reunite.errors import FormatError

# Postgres refuses an index entry over a third of a page.
KEY_BYTES_MAX: Final = 2_000
_KEY_CLASSES: Final = frozenset({int, str, bytes})
_PART: Final = re.compile(r"(?:(-?\d+)|'((?:[^']|'')*)'|X'((?:[0-9A-F]{2})*)')(?:,(?=.)|$)", re.S)


def stored_key(values: Sequence[Value]) -> Value:
    """The form that our own tables keep a key in."""
    if len(values) == 1:
        return values[0]
    return ",".join(map(_literal, values))


def key_values(stored: Value, count: int) -> tuple[Value, ...]:
    """The key's values again, from their stored form; `count` is how many columns the key has."""
    if count == 1:
        return (stored,)
    assert isinstance(stored, str)
    values: list[Value] = []
    at = 0
    for _ in range(count):
        part = _PART.match(stored, at)
        if part is None:
            break
        integer, text, blob = part.groups()
        if integer is not None:
            values.append(int(integer))
        elif text is not None:
            values.append(text.replace("''", "'"))
        else:
            values.append(bytes.fromhex(blob))
        at = part.end()
    if len(values) < count or at < len(stored):
        raise FormatError(f"not a stored key: {stored!r}")
    return tuple(values)


def pack_key(values: Sequence[Value]) -> bytes:
    """A key's form on the wire and at the relay."""
    return msgpack.packb(tuple(values))


def unpack_key(data: bytes) -> tuple[Value, ...]:
    """The values of a key from a peer. Raises FormatError unless it is canonical."""
    try:
        values: tuple[Value, ...] = msgpack.unpackb(data, use_list=False, max_map_len=0)
        canonical = type(values) is tuple and bool(values) and msgpack.packb(values) == data
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FormatError(f"not a key: {error}") from error
    if not canonical or not {*map(type, values)} <= _KEY_CLASSES or key_problem(values):
        raise FormatError("not a canonical key")
    if any(type(value) is int and value > INTEGER_MAX for value in values):
        raise FormatError("a key holds an integer beyond 64 signed bits")
    return values


def key_problem(values: Sequence[Value]) -> str | None:
    """Why a key cannot leave its file, in words, or None when it can."""
    size = 0
    for value in values:
        if value is None:
            return "a part of its key is NULL"
        if isinstance(value, float):
            return "a part of its key is a floating-point number"
        if isinstance(value, str):
            if "\0" in value:
                return "a part of its key holds a NUL character"
            try:
                size += len(value.encode())
            except UnicodeEncodeError:
                return "a part of its key is not valid UTF-8"
        elif isinstance(value, bytes):
            size += len(value)
    return f"its key is over {KEY_BYTES_MAX} bytes" if size > KEY_BYTES_MAX else None


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bytes):
        return f"X'{value.hex().upper()}'"
    return "NULL" if value is None else repr(value)
