"""Sets: an element is there while somebody added it and nobody who saw that took it away.

An independent model of each element: who added it, and who took it away when it was there for him.
An addition that no later removal may have seen stays; when each was seen by a removal the element
is gone. Who added it again without anybody knowing in which order is not judged.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from reunite_simulations.changes import Cell, Change, Count, cells
from reunite_simulations.checkers import Observed


class _Step(NamedTuple):
    """A change of a set that concerns an element, and its place among all of them."""

    place: int
    change: Change


class Sets:
    """The final elements against the history."""

    promise = "sets keep what was added"
    looks = False

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end: whoever has not heard of an element does not have it."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every element is there, or is not, as the history allows."""
        for cell in cells(world, "crdt_set", frozenset):
            yield from _differences(cell)


def _differences(cell: Cell) -> Iterator[str]:
    final = _elements(cell.final)
    began = [_elements(each) for each in cell.began]
    known = final.union(*began, *(_elements(change.after) for change in cell.changes))
    for element in sorted(known):
        steps = [_Step(*each) for each in enumerate(cell.changes)]
        adds = [step for step in steps if _adds(step.change, element)]
        removes = [step for step in steps if _removes(step.change, element)]
        at_first = any(element in each for each in began)
        last = _last_removed(cell, removes)
        if element not in final:
            if cell.in_first and element in _elements(cell.started) and last < -1:
                yield f"{cell.name} lacks {element}, which was there first and nobody took away"
            elif kept := _kept(adds, last):
                yield f"{cell.name} lacks {element}, which {kept.said} added and nobody took away"
        elif said := _gone(adds, removes, at_first=at_first):
            yield f"{cell.name} has {element}, {said}"


def _adds(change: Change, element: str) -> bool:
    return element in _elements(change.after) and (
        change.hidden or element not in _elements(change.before)
    )


def _removes(change: Change, element: str) -> bool:
    """Whether it took away what it had read."""
    return (
        change.after is not None
        and not change.hidden
        and element in _elements(change.before)
        and element not in _elements(change.after)
    )


def _last_removed(cell: Cell, removes: Sequence[_Step]) -> int:
    """The place of the last change that may have taken an element away. What a change had not read,
    and does not hold itself, it may have taken away."""
    maybe = [step.place for step in removes if step.change.count is not Count.NEVER]
    return max([*maybe, cell.last_hidden()])


def _kept(adds: Sequence[_Step], last: int) -> Change | None:
    """An addition that counts and that nothing later may have taken away."""
    for place, change in adds:
        if place > last and change.count is Count.ONCE and not change.over_hidden:
            return change
    return None


def _gone(adds: Sequence[_Step], removes: Sequence[_Step], *, at_first: bool) -> str | None:
    """Why an element cannot be there; None when it may."""
    real = [step for step in adds if step.change.count is not Count.NEVER]
    if not real and not at_first:
        return "which nobody added" if not adds else "which was refused or lost with its author"
    if any(step.change.count is Count.ANY for step in adds):
        return None
    certain = [step for step in removes if step.change.count is Count.ONCE]
    for remove in certain:
        # Of one addition everybody who saw the element has seen it; of several, its author's own.
        others = [step for step in adds if not _had_seen(remove, step)]
        if len(adds) + at_first == 1 or (not others and not at_first):
            return f"which {remove.change.said} had seen and taken away"
    return None


def _had_seen(later: _Step, earlier: _Step) -> bool:
    one, other = later.change.made, earlier.change.made
    return later.place > earlier.place and (one.client, one.life) == (other.client, other.life)


def _elements(found: object) -> frozenset[str]:
    return found if isinstance(found, frozenset) else frozenset()
