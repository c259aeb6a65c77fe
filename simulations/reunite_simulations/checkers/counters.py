"""Counters: everybody's increments add up, each once, whatever was sent again, refused or lost.

An independent model: a sum of what each transaction added to the number that it had read. It is one
number where it is known how often each counts, and else lies between two.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from reunite_simulations.changes import Cell, Change, Count, cells
from reunite_simulations.checkers import Observed


class Bounds(NamedTuple):
    """A number lies between these, which are equal when it is known."""

    low: float
    high: float

    def plus(self, other: "Bounds") -> "Bounds":
        """The sum of two numbers."""
        return Bounds(self.low + other.low, self.high + other.high)

    def or_nothing(self) -> "Bounds":
        """The number, or 0."""
        return Bounds(min(self.low, 0), max(self.high, 0))

    def counted(self, count: Count) -> "Bounds":
        """What it adds when it counts so often."""
        match count:
            case Count.NEVER:
                return Bounds(0, 0)
            case Count.ONCE:
                return self
            case Count.PERHAPS:
                return self.or_nothing()
            case Count.ANY:
                return Bounds(-inf if self.low < 0 else 0, inf if self.high > 0 else 0)


class Counters:
    """The final numbers against the sums of the history."""

    promise = "counters add up"
    looks = False

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end: whoever has not heard of an increment has another sum."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every counter is the sum of what counts."""
        for cell in cells(world, "counter", int):
            yield from _differences(cell)


def _differences(cell: Cell) -> Iterator[str]:
    final = _number(cell.final)
    total = sum_of(cell)
    if total.low <= final <= total.high:
        return
    wanted = f"{total.low}" if total.low == total.high else f"{total.low} to {total.high}"
    yield f"{cell.name} is {final}, and what was counted makes {wanted}"


def sum_of(cell: Cell) -> Bounds:
    """What a counter is in the end."""
    parts = [_beginning(cell)]
    made: list[tuple[Change, Bounds]] = []
    for change in cell.changes:
        if change.after is None:
            continue
        after = _number(change.after)
        if change.hidden:
            known = _known(cell, change, made)
            parts = _left_out(cell, change, made, parts, known)
            parts.append(_anew(cell, change, known).counted(change.count))
            added = Bounds(after - known.high, after - known.low)
        else:
            before = _number(change.before or 0)
            added = Bounds(after - before, after - before)
            parts.append(added.counted(change.count))
        made.append((change, added))
    total = Bounds(0, 0)
    for part in parts:
        total = total.plus(part)
    return total


def _left_out(
    cell: Cell,
    change: Change,
    made: Sequence[tuple[Change, Bounds]],
    parts: Sequence[Bounds],
    known: Bounds,
) -> list[Bounds]:
    """What is left of all that was counted where somebody wrote over NULL, or made a row again:
    nothing of what his file had, unless he wrote the number that was there."""
    if change.count is Count.NEVER:
        return list(parts)
    sure = change.count is Count.ONCE and not _may_be(change, known)
    begins_once = not any(each.inserts for each in cell.changes)
    had = [begins_once, *(_is_in_file_of(change, earlier) for earlier, _ in made)]
    return [
        Bounds(0, 0) if sure and here else part.or_nothing()
        for part, here in zip(parts, had, strict=True)
    ]


def _anew(cell: Cell, change: Change, known: Bounds) -> Bounds:
    """What is counted by who wrote over NULL, or made a row again."""
    after = _number(change.after)
    # Who has never heard of the row counts from its default.
    from_default = after - _number(cell.default or 0) if change.inserts else after
    added = Bounds(min(after, from_default), max(after, from_default))
    return added.or_nothing() if _may_be(change, known) else added


def _may_be(change: Change, known: Bounds) -> bool:
    return known.low <= _number(change.after) <= known.high


def _is_in_file_of(change: Change, earlier: Change) -> bool:
    return (
        earlier.made.client == change.made.client
        and earlier.made.life == change.made.life
        and earlier.count is Count.ONCE
    )


def _beginning(cell: Cell) -> Bounds:
    """What it was before anybody counted. Where a row that was there first is made once more, the
    greater beginning counts; a counter that began with NULL began at 0."""
    default = _number(cell.default or 0)
    begins = [default]
    if cell.in_first:
        begins = [_number(cell.started or 0)]
        if any(change.inserts for change in cell.changes):
            begins.append(_joined(begins[0], default))
    if default and any(change.after is None for change in cell.changes):
        begins.append(0)
    return Bounds(min(begins), max(begins))


def _joined(one: int, other: int) -> int:
    return max(one, other, 0) - max(-one, -other, 0)


def _known(cell: Cell, change: Change, made: list[tuple[Change, Bounds]]) -> Bounds:
    """What a file may have held that nobody could read there."""
    known = _beginning(cell)
    if change.inserts:
        # It may never have heard of the row.
        default = _number(cell.default or 0)
        known = Bounds(min(known.low, default, 0), max(known.high, default, 0))
    for earlier, added in made:
        known = known.plus(added if _is_in_file_of(change, earlier) else added.or_nothing())
    return known


def _number(found: object) -> int:
    assert isinstance(found, int)
    return found
