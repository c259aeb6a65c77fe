"""Atomic visibility: nobody sees a part of what one transaction wrote through the engine."""

from collections.abc import Iterable, Iterator, Set

from reunite_simulations import observe
from reunite_simulations.checkers import Observed
from reunite_simulations.workload import APPEND_TABLE


class Atomicity:
    """All elements of a group, or none."""

    promise = "atomic visibility"

    def during(self, world: Observed) -> Iterable[str]:
        """Look at everybody who has loaded once; a first load shows rows as they come."""
        own = _own_groups(world)
        for client in world.clients:
            if not client.up or not observe.has_table(client.app, APPEND_TABLE):
                continue
            if observe.standing(client.app).loaded:
                seen = observe.elements(client.app, APPEND_TABLE)
                yield from _parts(client.name, seen, own)

    def at_end(self, world: Observed) -> Iterable[str]:
        """The same, of all, and what they had read meanwhile."""
        yield from self.during(world)
        own = _own_groups(world)
        for read in world.history.reads:
            yield from _parts(f"{read.client} at {read.at:.1f} s", read.seen, own)


def _own_groups(world: Observed) -> set[str]:
    return {
        element.partition(".")[0]
        for transaction in world.history.transactions
        if transaction.own and not world.history.comes_back_by_row(transaction)
        for element in transaction.appended
    }


def _parts(who: str, elements: Set[str], own: Set[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for element in elements:
        group, _, parts = element.split(".")
        seen[group] = seen.get(group, 0) + 1
        wanted[group] = int(parts)
    for group in sorted(own & seen.keys()):
        if seen[group] != wanted[group]:
            yield f"{who} sees {seen[group]} of {wanted[group]} parts of {group}"
