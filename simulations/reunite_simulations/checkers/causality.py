"""Causal order and the four session guarantees, by cycles in the graph of transactions.

Adya's dependencies over the append-only lists: a transaction that saw an element depends on the
one that added it (wr), one that did not see an element precedes the one that added it (rw), and
those of one session follow each other (so). A cycle with a single rw is G-single, which is a broken
session guarantee where so is in it: a read that misses its own write, goes back, or misses what
another write that it saw had seen. As reads never see what is added later in true time, a cycle
without rw (G1c) cannot be. An element that was refused and seen by another is G1a; a part of a
group is G1b (see `atomicity`). Elements are added once and never replaced: no ww, no G0.

Source: Adya, "Weak Consistency" (1999); Jepsen's causal tests.
"""

from collections.abc import Iterable, Iterator, Sequence, Set

from reunite.keys import stored_key
from reunite_simulations.checkers import (
    Observed,
    rejected_elements,
    rejected_rows,
    rows_in_turn,
)
from reunite_simulations.history import Outcome, Read, Transaction
from reunite_simulations.replaced import Replaced


class Causality:
    """Own writes are looked for at all times. Cycles at the end, over the history; what was before
    the relays' database went back by itself, as it may be gone for a while."""

    promise = "causal order"
    looks = True

    def __init__(self) -> None:
        self._replaced = Replaced()
        self._looks = 0

    def during(self, world: Observed) -> Iterable[str]:
        """Nobody sees again what he replaced himself, unless it was refused."""
        self._replaced.take(world)
        self._looks += 1
        rejected = rejected_rows(world)
        for client, rows in rows_in_turn(world, self._looks):
            for seen, made, _ in self._replaced.found(rows, world.twins):
                table, key, column, _, value = seen
                certain = made.outcome is Outcome.RETURNED and not made.doubtful
                mine = (made.client, made.life) == (client.name, client.session)
                if certain and mine and (table, str(stored_key(key))) not in rejected:
                    yield (
                        f"{client.name} sees {value!r} in {table} {key} {column}, which it had"
                        f" replaced in {made.event} (read your writes)"
                    )

    def at_end(self, world: Observed) -> Iterable[str]:
        """The same, every cycle that is not allowed, and every read of what was refused."""
        yield from self.during(world)
        history = world.history
        rejected = rejected_elements(world)
        steps: list[Transaction | Read] = [*history.transactions, *history.reads]
        steps.sort(key=lambda each: each.at)
        for epoch in range(len(history.restores) + 1):
            some = [each for each in steps if history.epoch(each.at) == epoch]
            by_row = {
                element
                for each in some
                if isinstance(each, Transaction) and history.comes_back_by_row(each)
                for element in each.appended
            }
            yield from _cycles(some, rejected | by_row)
        # What a file had pending that was copied, or went back, may be refused here and not there.
        among = world.twins | world.rolled_back
        alone = {
            element: made.client
            for made in history.transactions
            if history.epoch(made.at) == len(history.restores) and made.client not in among
            for element in made.appended
            if element in rejected
        }
        for step in steps:
            aborted = {e for e in _seen(step) & alone.keys() if alone[e] != step.client}
            if aborted:
                yield f"{step.client} saw {sorted(aborted)[:3]}, which was refused (G1a)"
                return


def _cycles(steps: Sequence[Transaction | Read], without: Set[str]) -> Iterator[str]:
    """The first cycle among these steps, which are in true order, by all elements but some."""
    writers = [
        element
        for step in steps
        if isinstance(step, Transaction) and step.own and not step.doubtful
        for element in step.appended
        if element not in without
    ]
    # By sets as bits: all elements that a session, or a transaction, has in its past.
    bit = {element: 1 << place for place, element in enumerate(writers)}
    past_of_session: dict[tuple[str, int], int] = {}
    past_of_element: dict[str, int] = {}
    for step in steps:
        if isinstance(step, Transaction) and step.outcome is not Outcome.RETURNED:
            continue
        session = (step.client, step.life)
        known = [element for element in _seen(step) if element in bit]
        past = past_of_session.get(session, 0)
        had = 0
        for element in known:
            past |= bit[element] | past_of_element.get(element, 0)
            had |= bit[element]
        missing = past & ~had
        # A first load shows rows as they come.
        if missing and not (isinstance(step, Transaction) and step.loading):
            names = [element for element in bit if bit[element] & missing][:3]
            yield (
                f"{step.client} at {step.at:.1f} s does not see {names}, which is in the past"
                " of what it sees (G-single)"
            )
            return
        if isinstance(step, Transaction):
            for element in step.appended:
                if element in bit:
                    past_of_element[element] = past
                    past |= bit[element]
        past_of_session[session] = past


def _seen(step: Transaction | Read) -> Set[str]:
    return step.read if isinstance(step, Transaction) else step.seen
