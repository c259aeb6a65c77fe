"""Chance of events: what one draws is its own, so that leaving out another changes nothing of it.

A world's events are the n-th transaction of a client (`client1:5`) and the n-th occurrence of a
kind of fault (`crash:2`). The chance of an event is made from the world's seed and the event's
name. A failing world is made small by leaving events out (`shrink`), which would be no use if
those that stay became others.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Named(Protocol):
    """Anybody whom an event may befall."""

    @property
    def name(self) -> str:
        """The same in every run of a seed."""
        ...


N = TypeVar("N", bound=Named)


class EventChance(random.Random):
    """One event's chance. `picked` names whom it befell."""

    def __init__(self, seed: int, kind: str, number: int) -> None:
        """`kind` is a client's name or that of a fault; its events are numbered from 1."""
        self.event = f"{kind}:{number}"
        self.number = number
        self.picked: list[str] = []
        super().__init__(f"{seed} {self.event}")

    def pick(self, some: Sequence[N]) -> N:
        """One of several, drawn by lots: without any of the others it would be the same."""
        lots = self._lots(some)
        found = some[lots.index(min(lots))]
        self.picked.append(found.name)
        return found

    def pick_some(self, some: Sequence[N], share: float) -> list[N]:
        """Each with a probability."""
        found = [each for each, lot in zip(some, self._lots(some), strict=True) if lot < share]
        self.picked += [each.name for each in found]
        return found

    async def pause(self, least: float, most: float) -> None:
        """Let some time pass."""
        await asyncio.sleep(self.uniform(least, most))

    def _lots(self, some: Sequence[N]) -> list[float]:
        salt = self.getrandbits(32)
        return [random.Random(f"{salt} {each.name}").random() for each in some]


def named_events(words: str) -> frozenset[str]:
    """The events of a list of names, with commas between; `none` is for no event at all."""
    return frozenset(each.strip() for each in words.split(",")) - {"", "none"}
