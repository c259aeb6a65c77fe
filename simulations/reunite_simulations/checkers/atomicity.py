"""Atomic visibility: nobody sees a part of what one transaction wrote through the engine."""

from collections.abc import Iterable, Iterator, Set

from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rows_in_turn
from reunite_simulations.history import Transaction
from reunite_simulations.replaced import Replaced, Seen, shows
from reunite_simulations.workload import APPEND_TABLE


class Atomicity:
    """All elements of a group, or none; and of two cells that were written together never one as it
    became and the other as it had been."""

    promise = "atomic visibility"
    looks = True

    def __init__(self) -> None:
        self._replaced = Replaced()
        self._looks = 0

    def during(self, world: Observed) -> Iterable[str]:
        """Look at everybody who has loaded once; a first load shows rows as they come."""
        self._replaced.take(world)
        self._looks += 1
        epoch = len(world.history.restores)
        own = _own_groups(world, epoch)
        for client in world.clients:
            if not client.up or not observe.has_table(client.app, APPEND_TABLE):
                continue
            if observe.standing(client.app).loaded:
                seen = observe.elements(client.app, APPEND_TABLE)
                yield from _parts(client.name, seen, own)
        for client, rows in rows_in_turn(world, self._looks):
            # A row that the table does not take is told of, and stays behind the others.
            if not observe.standing(client.app).loaded or observe.is_marked(client.app):
                continue
            for old, made, wrote in self._replaced.found(rows, world.twins):
                new = next((each for each in wrote if shows(rows, each)), None)
                certain = made.own and not made.doubtful and _is_of(epoch, world, made)
                if certain and new is not None:
                    yield f"{client.name} sees {_said(new)} of {made.event}, beside {_said(old)}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """The same, of all, and what they had read meanwhile."""
        yield from self.during(world)
        own_by_epoch = [_own_groups(world, n) for n in range(len(world.history.restores) + 1)]
        for read in world.history.reads:
            own = own_by_epoch[world.history.epoch(read.at)]
            yield from _parts(f"{read.client} at {read.at:.1f} s", read.seen, own)


def _said(seen: Seen) -> str:
    table, key, column, _, value = seen
    return f"{value!r} in {table} {key} {column}"


def _is_of(epoch: int, world: Observed, made: Transaction) -> bool:
    """Whether the relay got this as a whole, after it was restored so often."""
    history = world.history
    return history.epoch(made.at) == epoch and not history.comes_back_by_row(made)


def _own_groups(world: Observed, epoch: int) -> set[str]:
    return {
        element.partition(".")[0]
        for transaction in world.history.transactions
        if transaction.own and _is_of(epoch, world, transaction)
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
