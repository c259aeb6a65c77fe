"""Trees: values taken apart into what merges by itself: members of objects, items of lists, words.

A place is the way to it: the keys of objects, and `#` with an item's name for an object in a list.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from reunite.cells.json_text import canonical
from reunite_simulations.contents import Content, item_name, words

Place: TypeAlias = tuple[str, ...]

# What stands for an object and for a list where a value is asked for: they are what is in them.
OBJECT: Final = "an object"
LIST: Final = "a list"
_KINDS: Final = frozenset({OBJECT, LIST})


@dataclass(slots=True)
class Tree:
    """One JSON value. `values` has a text for each member of an object, `lists` the names of the
    items of each list; `containers` are the places of objects and lists, the root aside."""

    values: dict[Place, str] = field(default_factory=dict)
    lists: dict[Place, Sequence[str]] = field(default_factory=dict)
    containers: set[Place] = field(default_factory=set)

    def inside(self, place: Place) -> Sequence[object]:
        """All that is at a place and below it."""
        size = len(place)
        parts: tuple[Mapping[Place, object], ...] = (self.values, self.lists)
        return [(at, found) for part in parts for at, found in part.items() if at[:size] == place]


def tree_of(found: Content | None) -> Tree:
    """Take a value apart; of none nothing."""
    tree = Tree()
    if isinstance(found, dict | list):
        _take(tree, found, ())
    return tree


def parts_of(found: Content | None) -> Set[str]:
    """What is in a value by itself, for people: words, elements, items, members. A number has no
    parts."""
    if isinstance(found, str):
        return frozenset(words(found))
    if isinstance(found, Set):
        return found
    tree = tree_of(found)
    members = [(place, value) for place, value in tree.values.items() if value not in _KINDS]
    items = [(place, name) for place, names in tree.lists.items() for name in names]
    return frozenset(" ".join((*place, part)) for place, part in (*members, *items))


def item_place(place: Place, name: str) -> Place:
    """Where the object of this name in a list is."""
    return (*place, f"#{name}")


def _take(tree: Tree, found: object, place: Place) -> None:
    if not isinstance(found, dict | list):
        return
    if place:
        tree.containers.add(place)
    if isinstance(found, dict):
        for key, value in found.items():
            kind = OBJECT if isinstance(value, dict) else LIST
            own = kind if isinstance(value, dict | list) else canonical(value)
            tree.values[*place, key] = own
            _take(tree, value, (*place, key))
        return
    tree.lists[place] = [item_name(item) for item in found]
    for item in found:
        # What has no name of its own is known by all of it, and then nothing in it changes.
        if isinstance(item, dict) and "id" in item:
            _take(tree, item, item_place(place, item_name(item)))
