"""Contents: what a value of a column that merges means, to people who read the table. Knows nothing
of cells.

A counter means a number, a text its words, JSON what it says. A value that a column's type does not
promise (NULL, a text in a counter) means nothing here: it is a register beside the cell.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Final, TypeAlias

from reunite.cells.json_text import canonical, parsed
from reunite.cells.register import Value, same
from reunite.schema import Column
from reunite.types import MERGING

# By type: int, str, frozenset[str], list, dict or list.
Content: TypeAlias = object
# A place in JSON objects: the keys on the way to it.
Path: TypeAlias = tuple[str, ...]

_WORDS: Final = re.compile(r"\w+")


def merges(column: Column) -> bool:
    """Whether concurrent edits of a column are merged inside its value."""
    return column.type in MERGING


def content(column: Column, value: Value) -> Content | None:
    """What a value means in a column that merges; None when its type does not promise it."""
    if column.type == "counter":
        return value if type(value) is int else None
    if column.type == "crdt_text":
        return value if isinstance(value, str) else None
    found = parsed(value)
    if column.type == "crdt_json":
        return found if isinstance(found, dict | list) else None
    if not isinstance(found, list):
        return None
    return frozenset(map(canonical, found)) if column.type == "crdt_set" else found


def means_the_same(column: Column, one: Value, other: Value) -> bool:
    """Whether two values are equal, or are two ways to write one."""
    if same(one, other) or not merges(column):
        return same(one, other)
    found = content(column, one)
    return found is not None and key_of(found) == key_of(content(column, other))


def stand_in(column: Column, value: Value) -> Value:
    """One value for all that merges with each other, and any other value itself."""
    found = content(column, value)
    return value if found is None else f"\0{type(found).__name__}"


def shown(column: Column, value: Value) -> Value:
    """A value as every replica shows it: JSON in one form, whoever wrote it."""
    found = content(column, value) if merges(column) else None
    if found is None or isinstance(found, int | str):
        return value
    if isinstance(found, Set):
        return f"[{','.join(sorted(found))}]"
    return canonical(found)


def key_of(found: Content | None) -> Content | None:
    """A content by which equal ones are known: 1 is not 1.0 in JSON."""
    return canonical(found) if isinstance(found, dict | list) else found


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORDS.findall(text)


def item_name(item: object) -> str:
    """What people know an item of a list by: an object's `id` where it has one, else all of it."""
    if isinstance(item, Mapping) and isinstance(item.get("id"), int | str):
        return f"id {json.dumps(item['id'])}"
    return canonical(item)


def names(items: Sequence[object]) -> list[str]:
    """What the items of a list are known by, in order."""
    return [item_name(item) for item in items]
