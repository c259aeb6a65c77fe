"""A row's key as the texts that Postgres casts: each key has its own, or two documents would name
one row. SQLite tells 1 from '1' in a column without a type, and so do documents; a column of
Postgres has one type, and so each key column takes values of one class.

Integers and text may mix in a text column whose SQLite type makes numbers of text that writes one
(STRING, DATETIME): there '1' is 1, and the other does not occur.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from reunite.cells.register import Value, same
from reunite.errors import FormatError
from reunite.keys import unpack_key
from reunite.schema import Column, through_affinity
from reunite_transport.relay.postgres_row_sql import Shape
from reunite_transport.relay.postgres_schema import text_function
from reunite_transport.relay.store import RowId, Violation

# All other types are written as text.
_CLASSES: Final[Mapping[str, type]] = {"integer": int, "boolean": int, "blob": bytes}
_WORDS: Final[Mapping[type, str]] = {int: "an integer", str: "text", bytes: "a blob"}


def key_texts(shape: Shape, rows: Iterable[RowId]) -> list[list[str | None]]:
    """The rows' keys, a list for each key column. Raises Violation for one that does not fit."""
    columns: list[list[Value]] = [[] for _ in shape.keys]
    for row in rows:
        try:
            for values, value in zip(columns, unpack_key(row.key), strict=True):
                values.append(value)
        except (FormatError, ValueError) as error:
            raise Violation(f"table {shape.table.name!r}: a key does not fit: {error}") from error
    texts = []
    for column, values in zip(shape.keys, columns, strict=True):
        _check_classes(shape, column, values)
        texts.append(list(map(text_function(column.type), values)))
    return texts


def _check_classes(shape: Shape, column: Column, values: list[Value]) -> None:
    wanted = _CLASSES.get(column.type, str)
    taken = {wanted}
    if column.name in shape.numeric_keys:
        taken = {int, str}
        if not all(map(same, values, through_affinity(column.declared, values))):
            raise Violation(
                f"table {shape.table.name!r}: key column {column.name!r} holds a text that"
                f" {column.declared} makes a number; write the number"
            )
    if not {*map(type, values)} <= taken:
        found = next(type(value) for value in values if type(value) not in taken)
        raise Violation(
            f"table {shape.table.name!r}: key column {column.name!r} holds {_WORDS[found]}, and in"
            f" the realm it is of the type {column.type}, which takes {_WORDS[wanted]} only"
        )
