"""A second sync of a client's file: what it needs of a database, in the process of the first or in
another one of the same machine.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from reunite.database import HistorySource
from reunite.replica import Replica

if TYPE_CHECKING:
    from reunite_simulations.nodes import Client, Clock

T = TypeVar("T")

# How long a verb of a slow one takes at most: what it is about to send is late by that.
VERB_SECONDS_MAX: Final = 1.0


class SecondDatabase:
    """A client's file, as `Sync` wants it."""

    def __init__(self, client: "Client", replica: Replica, chance: Random) -> None:
        """`replica` is the client's own, or another one of the same file."""
        self.replica = replica
        self._client = client
        self._chance = chance
        self._seconds = chance.uniform(0, VERB_SECONDS_MAX)

    @property
    def path(self) -> Path:
        """The client's file."""
        return self._client.path

    @property
    def clock(self) -> "Clock":
        """The machine's clock."""
        return self._client.clock

    def refuse_inside(self) -> None:
        """Nobody waits here until it has caught up."""

    async def on_engine(self, function: Callable[..., T], *args: object) -> T:
        """Run a verb in line; what it returns is there after a while."""
        result = self._client.alive(function, *args)
        await asyncio.sleep(self._chance.uniform(0, self._seconds))
        return result

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """It looks for the app's writes as for those of other programs."""
        return lambda: None

    def add_history_source(self, source: HistorySource) -> Callable[[], None]:
        """No app of a world looks at what was overwritten."""
        return lambda: None
