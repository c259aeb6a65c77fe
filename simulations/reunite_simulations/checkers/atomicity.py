"""Atomic visibility: nobody sees a part of what one transaction wrote through the engine."""

from collections.abc import Iterable

from reunite_simulations import observe
from reunite_simulations.checkers import Observed
from reunite_simulations.workload import APPEND_TABLE


class Atomicity:
    """All elements of a group, or none."""

    promise = "atomic visibility"

    def during(self, world: Observed) -> Iterable[str]:
        """Look at everybody who has loaded once; a first load shows rows as they come."""
        own = {
            element.partition(".")[0]
            for transaction in world.history.transactions
            if transaction.own
            for element in transaction.appended
        }
        for client in world.clients:
            if not client.up or not observe.has_table(client.app, APPEND_TABLE):
                continue
            if not observe.standing(client.app).loaded:
                continue
            seen: dict[str, int] = {}
            wanted: dict[str, int] = {}
            for element in observe.elements(client.app, APPEND_TABLE):
                group, _, parts = element.split(".")
                seen[group] = seen.get(group, 0) + 1
                wanted[group] = int(parts)
            for group in own & seen.keys():
                if seen[group] != wanted[group]:
                    yield f"{client.name} sees {seen[group]} of {wanted[group]} parts of {group}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """The same, of all."""
        return self.during(world)
