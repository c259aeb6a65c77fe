"""Edits of columns that merge, in plain SQL as apps make them: votes are counted up, words typed
and deleted, elements added, items put in and taken out, members of objects set.

Some know the value that they change, as an editor does; some are one expression for many rows.
What is typed or added is a word, an element or an item of its own nearly always, so that it can be
looked for.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from reunite.cells.register import Value
from reunite.schema import Column, quoted
from reunite_simulations import values
from reunite_simulations.contents import content, words

# Of all edits: those that put NULL or another odd value there, and those that write all anew.
COVERS: Final = 0.03
OUTRIGHT: Final = 0.08

_Next: TypeAlias = Callable[[], int]


class Expression(NamedTuple):
    """What an UPDATE sets a column to, with its values."""

    sql: str
    given: Sequence[Value] = ()


def edit(column: Column, held: Value, following: _Next, chance: random.Random) -> Expression:
    """An edit of a value that was read. `following` gives numbers that no other write has."""
    drawn = chance.random()
    if drawn < COVERS:
        covers = [values.unfit(column, following()), *([] if column.notnull else [None, None])]
        return Expression("?", [chance.choice(covers)])
    found = content(column, held)
    if found is None or drawn < COVERS + OUTRIGHT:
        return Expression("?", [values.plain(column, following())])
    name = quoted(column.name)
    if isinstance(found, int):
        return _count(name, following, chance)
    if isinstance(found, str):
        return _type(name, found, following, chance)
    if isinstance(found, dict):
        return _set_member(name, found, following, chance)
    items = json.loads(str(held))
    if column.type == "crdt_set":
        return _change_set(name, items, following, chance)
    return _change_list(name, items, following, chance)


def edit_of_all(column: Column, following: _Next, chance: random.Random) -> Expression:
    """An edit of whatever several rows hold, none of which was read."""
    name, number = quoted(column.name), following()
    if column.type == "counter":
        return _count(name, following, chance)
    if column.type == "crdt_text":
        sql, given = f"{name} || ?", [f" {values.word(number)}"]
        return Expression(f"CASE WHEN typeof({name}) = 'text' THEN {sql} ELSE {name} END", given)
    kind, sql, given = "array", f"json_insert({name}, '$[#]', ?)", [f"e{number}"]
    if column.type == "crdt_json":
        key = f"k{chance.randrange(values.POOL)}"
        kind, sql, given = "object", f"json_set({name}, '$.{key}', ?)", [f"e{number}"]
    text = f"typeof({name}) = 'text' AND json_valid({name})"
    inner = f"CASE WHEN json_type({name}) = '{kind}' THEN {sql} ELSE {name} END"
    return Expression(f"CASE WHEN {text} THEN {inner} ELSE {name} END", given)


def respelt(column: Column, held: Value, chance: random.Random) -> Value:
    """The same value as another program may write it: JSON with spaces, and keys in its order."""
    found = content(column, held)
    if column.type not in ("crdt_set", "crdt_list", "crdt_json") or found is None:
        return held
    loaded = json.loads(str(held))
    if isinstance(loaded, dict):
        keys = list(loaded)
        chance.shuffle(keys)
        loaded = {key: loaded[key] for key in keys}
    elif column.type == "crdt_set":
        chance.shuffle(loaded)
    return json.dumps(loaded, ensure_ascii=chance.random() < 0.5)


def _count(name: str, following: _Next, chance: random.Random) -> Expression:
    amount = chance.choice((1, 1, 1, 2, 10, following() % values.COUNTED_MAX))
    if chance.random() < 0.3:
        return Expression(f"{name} - ?", [amount])
    return Expression(f"{name} + ?", [amount])


def _type(name: str, text: str, following: _Next, chance: random.Random) -> Expression:
    number = following()
    new, known = values.word(number), words(text)
    kind = chance.random()
    if not known or kind < 0.25:
        return Expression(f"{name} || ?", [f" {new}" if text else new])
    word = chance.choice(known)
    start = text.index(word)
    if kind < 0.55:
        return Expression("?", [f"{text[:start]}{new} {text[start:]}"])
    if kind < 0.7:
        end = start + len(word)
        end += text[end : end + 1] == " "
        return Expression("?", [text[:start] + text[end:]])
    if kind < 0.85:
        # An editor's "replace" of one word by another.
        return Expression(f"replace({name}, ?, ?)", [word, _unlike(word, number)])
    if kind < 0.95:
        inside = start + chance.randint(0, len(word))
        return Expression("?", [f"{text[:inside]}{number}{text[inside:]}"])
    return Expression("?", [f"{text[:start]}🧑‍🚀e\u0301{new}, {text[start:]}"])


def _unlike(word: str, number: int) -> str:
    """A word that begins and ends otherwise than another, so that it takes its place whole."""
    found = (values.word(number, second) for second in range(26))
    return next(each for each in found if each[0] != word[0] and each[-1] != word[-1])


def _change_set(
    name: str, items: Sequence[Any], following: _Next, chance: random.Random
) -> Expression:
    shared = chance.random() < 0.4
    element = f"p{chance.randrange(values.POOL)}" if shared else f"e{following()}"
    kind = chance.random()
    if not items or kind < 0.4:
        return Expression(f"json_insert({name}, '$[#]', ?)", [element])
    gone = chance.choice(items)
    left = [item for item in items if item != gone]
    if kind < 0.6 and all(isinstance(item, str) for item in items):
        array = f"SELECT json_group_array(value) FROM json_each({name}) WHERE value <> ?"
        return Expression(f"({array})", [gone])
    if kind < 0.75:
        return Expression("?", [json.dumps(left)])
    # As an object mapper does: all of it, as it was read and changed.
    return Expression("?", [json.dumps([element, *left], ensure_ascii=False)])


def _change_list(
    name: str, items: Sequence[Any], following: _Next, chance: random.Random
) -> Expression:
    number = following()
    new: Any = f"e{number}" if chance.random() < 0.6 else {"id": number, "done": False}
    kind = chance.random()
    if not items or kind < 0.25:
        return Expression(f"json_insert({name}, '$[#]', json(?))", [json.dumps(new)])
    place = chance.randrange(len(items))
    if kind < 0.5:
        return Expression("?", [json.dumps([*items[:place], new, *items[place:]])])
    if kind < 0.7:
        return Expression(f"json_remove({name}, '$[{place}]')")
    if isinstance(items[place], Mapping):
        key = chance.choice(("done", "note", "size"))
        return Expression(f"json_set({name}, '$[{place}].{key}', ?)", [f"e{number}"])
    return Expression(f"json_set({name}, '$[{place}]', ?)", [f"e{number}"])


def _set_member(
    name: str, found: Mapping[str, Any], following: _Next, chance: random.Random
) -> Expression:
    number = following()
    key = f"k{chance.randrange(values.POOL)}"
    kind = chance.random()
    box, items = found.get("box"), found.get("items")
    if kind < 0.3 and isinstance(box, Mapping):
        return Expression(f"json_set({name}, '$.box.{key}', ?)", [f"e{number}"])
    if kind < 0.5 and isinstance(items, list):
        if items and chance.random() < 0.4:
            return Expression(f"json_remove({name}, '$.items[{chance.randrange(len(items))}]')")
        return Expression(f"json_insert({name}, '$.items[#]', ?)", [f"e{number}"])
    if kind < 0.6 and key in found:
        return Expression(f"json_remove({name}, '$.{key}')")
    if kind < 0.65:
        inner = json.dumps({key: number, "deep": {"n": number, "list": [number]}})
        return Expression(f"json_set({name}, '$.own{number}', json(?))", [inner])
    if kind < 0.7:
        # As an object mapper does: all of it, as it was read and changed.
        return Expression("?", [json.dumps({**found, key: number, "big": 1 << 60 | number})])
    return Expression(f"json_set({name}, '$.{key}', ?)", [chance.choice((number, f"e{number}"))])
