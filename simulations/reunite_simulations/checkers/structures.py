"""Lists and JSON: what different people did to different items and members is all there.

An independent model by item and by member. An item that counts is in its list once until somebody
who saw it takes it out, and then it is gone; items that nobody moved keep their order. A member of
an object holds what somebody wrote there, and nothing that somebody had seen when he replaced it.
Both hold at any depth as long as the object or list around them is the same one: made once and
never taken away. Where one edit both changes an object in a list and takes out or adds another,
which became which is anybody's guess, and such a list is not judged.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from reunite_simulations.changes import Cell, Change, Count, cells
from reunite_simulations.checkers import Observed
from reunite_simulations.trees import Place, Tree, item_place, tree_of

_MISSING = "nothing"


class Structures:
    """The final items and members against the history."""

    promise = "lists and JSON merge by their parts"
    looks = False

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end: whoever has not heard of a part does not have it."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every part is there, or is not, as the history allows."""
        for kind, shape in (("crdt_list", list), ("crdt_json", list), ("crdt_json", dict)):
            for cell in cells(world, kind, shape):
                yield from _differences(_Model(cell))


@dataclass(frozen=True, slots=True)
class _Step:
    """A change by its parts."""

    at: int
    change: Change
    before: Tree
    after: Tree


@dataclass
class _Model:
    """A cell by its parts."""

    cell: Cell
    final: Tree = field(init=False)
    began: Sequence[Tree] = field(init=False)
    steps: Sequence[_Step] = field(init=False)
    wholes: Sequence[tuple[Tree, Tree]] = field(init=False)

    def __post_init__(self) -> None:
        cell = self.cell
        self.final = tree_of(cell.final)
        # A row that was there first did not begin with the default.
        began = [cell.started] if cell.in_first else [cell.default]
        if cell.in_first and any(change.inserts for change in cell.changes):
            began.append(cell.default)
        self.began = [tree_of(each) for each in began]
        self.steps = [
            _Step(
                at, change, tree_of(None if change.hidden else change.before), tree_of(change.after)
            )
            for at, change in enumerate(cell.changes)
            if change.after is not None
        ]
        self.wholes = [(tree_of(before), tree_of(after)) for before, after in cell.wholes()]

    def unstable(self) -> Set[Place]:
        """Objects and lists that may be several, one in the place of another."""
        times: Counter[Place] = Counter()
        for tree in self.began:
            times.update(tree.containers)
        gone: set[Place] = set()
        for step in self.steps:
            had, has = step.before.containers, step.after.containers
            times.update(has - had)
            gone |= had - has
            if step.change.count is not Count.ONCE:
                # What was set inside goes with it where it does not count.
                gone |= has - had
        return gone | {place for place, many in times.items() if many > 1}

    def tangled(self) -> Set[Place]:
        """Lists in which an edit may have made one object of another."""
        found: set[Place] = set()
        for before, after in self.wholes:
            for place in before.lists.keys() & after.lists.keys():
                had, has = set(before.lists[place]), set(after.lists[place])
                gone, new = _containers(had - has), _containers(has - had)
                changed = any(
                    before.inside(item_place(place, name)) != after.inside(item_place(place, name))
                    for name in _containers(had & has)
                )
                if (gone and new) or (changed and (gone or new)):
                    found.add(place)
        return found


def _containers(names: Set[str]) -> Set[str]:
    """The names of items that are objects or lists themselves."""
    return {name for name in names if name[0] in "[{i"}


def _differences(model: _Model) -> Iterator[str]:
    unstable, tangled = model.unstable(), model.tangled()

    def is_one(place: Place) -> bool:
        """Whether a list or an object, and all around it, is the same one to everybody."""
        around = {place[:size] for size in range(len(place) + 1)}
        return tangled.isdisjoint(around) and unstable.isdisjoint(around)

    trees = [model.final, *model.began]
    trees += [tree for step in model.steps for tree in (step.before, step.after)]
    for place in sorted({place for tree in trees for place in tree.lists}):
        if is_one(place):
            yield from _items(model, place)
    for place in sorted({place for tree in trees for place in tree.values}):
        if is_one(place[:-1]):
            yield from _member(model, place)


def _items(model: _Model, place: Place) -> Iterator[str]:
    """What is wrong with the items of one list."""
    final = model.final.lists.get(place)
    if final is None:
        return
    where = f"{model.cell.name} {'.'.join(place)}".strip()
    times = Counter(final)
    moved = _moved(model, place)
    held: set[str] = set()
    known = {name for tree in model.began for name in tree.lists.get(place, ())}
    adds_by_name: dict[str, list[_Step]] = {}
    takes_by_name: dict[str, list[_Step]] = {}
    for step in model.steps:
        had, has = step.before.lists.get(place, ()), step.after.lists.get(place, ())
        for name in {*has} - {*had}:
            adds_by_name.setdefault(name, []).append(step)
        for name in {*had} - {*has}:
            takes_by_name.setdefault(name, []).append(step)
    for name in sorted({*final, *known, *adds_by_name}):
        adds, takes = adds_by_name.get(name, []), takes_by_name.get(name, [])
        real = [step for step in adds if step.change.count is not Count.NEVER]
        if times[name] and not real and name not in known:
            why = "was refused or lost with its author" if adds else "nobody put there"
            yield f"{where} has {name}, which {why}"
            continue
        if name in moved or len(adds) + (name in known) != 1:
            continue
        if adds and adds[0].change.count in (Count.ANY, Count.NEVER):
            continue
        if times[name] > 1:
            yield f"{where} has {name} {times[name]} times, and it was put there once"
        if certain := [step for step in takes if step.change.count is Count.ONCE]:
            if times[name]:
                yield f"{where} has {name}, which {certain[-1].change.said} had seen and taken out"
        elif _is_kept(model.cell, adds, takes):
            held.add(name)
            if not times[name]:
                by = adds[0].change.said if adds else "everybody's first file"
                yield f"{where} lacks {name}, which {by} put there"
    for step in model.steps:
        seen = [name for name in step.after.lists.get(place, ()) if name in held and times[name]]
        if seen != [name for name in final if name in {*seen}]:
            yield f"{where} has {final}; {step.change.said} had {seen} in this order"
            return


def _is_kept(cell: Cell, adds: Sequence[_Step], takes: Sequence[_Step]) -> bool:
    """Whether an item that was put there once, or was there first, cannot have been taken out."""
    last = max([step.at for step in takes if step.change.count is not Count.NEVER], default=-2)
    last = max(last, cell.last_hidden())
    if not adds:
        return cell.in_first and last < -1
    change = adds[0].change
    return change.count is Count.ONCE and not change.over_hidden and adds[0].at > last


def _moved(model: _Model, place: Place) -> Set[str]:
    """Items that an edit may have put elsewhere."""
    found: set[str] = set()
    for before, after in model.wholes:
        had, has = before.lists.get(place, ()), after.lists.get(place, ())
        both = {*had} & {*has}
        one, other = ([name for name in some if name in both] for some in (had, has))
        if one != other:
            found |= both
        for some in (had, has):
            found |= {name for name, many in Counter(some).items() if many > 1}
    return found


def _member(model: _Model, place: Place) -> Iterator[str]:
    """What is wrong with one member of an object."""
    final = model.final.values.get(place, _MISSING)
    where = f"{model.cell.name} {'.'.join(place)}"
    began = {tree.values.get(place, _MISSING) for tree in model.began}
    writes: list[tuple[_Step, str]] = []
    for step in model.steps:
        had, has = step.before.values.get(place, _MISSING), step.after.values.get(place, _MISSING)
        if had != has or step.change.hidden:
            writes.append((step, has))
    own = [step for step, value in writes if value == final]
    if final not in began and all(step.change.count is Count.NEVER for step in own):
        why = "was refused or lost with its author" if own else "nobody wrote there"
        yield f"{where} is {final}, which {why}"
        return
    if len(own) + (final in began) != 1 or any(step.change.count is Count.ANY for step in own):
        return
    for step, _ in writes:
        seen = step.before.values.get(place, _MISSING) == final and not step.change.hidden
        if seen and step.change.count is Count.ONCE:
            yield f"{where} is {final}, which {step.change.said} had seen and replaced"
            return
