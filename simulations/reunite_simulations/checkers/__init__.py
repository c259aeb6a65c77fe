"""Checkers: one module a promise of the design. Each looks at a world from outside.

`during` is asked while faults happen, of whatever is up; `at_end` once all is healed and quiet.
What they yield is what is wrong, in words; nothing yielded is a promise kept.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from reunite_simulations.world import World


class Checker(Protocol):
    """A promise, and how to see that it was broken."""

    promise: str

    def during(self, world: "World") -> Iterable[str]:
        """What is wrong just now."""
        ...

    def at_end(self, world: "World") -> Iterable[str]:
        """What is wrong after all."""
        ...


def all_checkers() -> Sequence[Checker]:
    """One of each, for one world."""
    from reunite_simulations.checkers.atomicity import Atomicity
    from reunite_simulations.checkers.bounds import Bounds
    from reunite_simulations.checkers.causality import Causality
    from reunite_simulations.checkers.constraints import Constraints
    from reunite_simulations.checkers.convergence import Convergence
    from reunite_simulations.checkers.durability import Durability
    from reunite_simulations.checkers.liveness import Liveness
    from reunite_simulations.checkers.once import ExactlyOnce
    from reunite_simulations.checkers.registers import Registers
    from reunite_simulations.checkers.tables import Tables

    return (
        Liveness(),
        Convergence(),
        Durability(),
        Registers(),
        Atomicity(),
        Causality(),
        ExactlyOnce(),
        Tables(),
        Constraints(),
        Bounds(),
    )
