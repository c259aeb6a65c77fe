"""Bounded queues and traffic: nothing grows without end, and a quiet world is silent."""

from collections.abc import Iterable
from typing import Final

from reunite_simulations import observe
from reunite_simulations.checkers import Observed

# What a world sends for one transaction of one client, to each of the others: the rows, an
# acknowledgement, and all of it again after lost connections.
BYTES_EACH: Final = 64 << 10


class Bounds:
    """Queues hold no more than was written; nothing is said when nothing happens."""

    promise = "bounded queues and traffic"

    def during(self, world: Observed) -> Iterable[str]:
        """An outbox never holds more changesets than its client wrote rows."""
        for client in world.clients:
            if client.up:
                queued = observe.standing(client.app).queued
                if queued > world.rows_written + 1_000:
                    yield f"{client.name} has {queued} changesets queued"

    def at_end(self, world: Observed) -> Iterable[str]:
        """After the last merge nobody commits, and hardly a byte passes."""
        if world.commits_when_quiet:
            yield f"{world.commits_when_quiet} commits though nobody wrote: rows answer each other"
        spent = world.bytes_sent
        allowed = BYTES_EACH * (len(world.history.transactions) + 50) * len(world.clients)
        if spent > allowed:
            yield f"{spent} bytes were sent, over the {allowed} that were to be expected"
