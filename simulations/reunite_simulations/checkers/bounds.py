"""Bounded queues and traffic: nothing grows without end, and a quiet world is silent."""

from collections.abc import Iterable
from typing import Final

from reunite_simulations import observe
from reunite_simulations.checkers import Observed

# What a world sends for one transaction of one client, to each of the others: the rows, an
# acknowledgement, and all of it again after lost connections. Worlds of many seeds stay below a
# tenth of it.
BYTES_EACH: Final = 8 << 10
# And so often each byte of large values, to each client: a whole row goes with every edit of it.
TIMES_AGAIN: Final = 10
# After the last merge, to and from each client: who was told that it is behind may still ask.
QUIET_BYTES_EACH: Final = 1 << 10


class Bounds:
    """Queues hold no more than was written; nothing is said when nothing happens."""

    promise = "bounded queues and traffic"
    looks = True

    def during(self, world: Observed) -> Iterable[str]:
        """An outbox holds no more changesets than its file has seen rows written; after a restore
        it holds offers of all rows, too."""
        for client in world.clients:
            if client.up:
                queued = observe.standing(client.app).queued
                if queued > world.rows_written + observe.count_rows(client.app) + 100:
                    yield f"{client.name} has {queued} changesets queued"

    def at_end(self, world: Observed) -> Iterable[str]:
        """After the last merge nobody commits, and hardly a byte passes."""
        if world.commits_when_quiet:
            yield f"{world.commits_when_quiet} commits though nobody wrote: rows answer each other"
        quiet = world.bytes_when_quiet
        if quiet > QUIET_BYTES_EACH * len(world.clients):
            yield f"{quiet} bytes were sent though nobody wrote"
        spent = world.bytes_sent
        rows = sum(map(len, world.initial.values()))
        loads = rows * len(world.clients) * (1 + len(world.history.restores))
        written = len(world.history.transactions) + 50
        large = sum(
            len(value)
            for made in world.history.transactions
            for write in made.writes
            for value in write.cells.values()
            if isinstance(value, str | bytes)
        )
        again = TIMES_AGAIN * len(world.clients) * (1 + len(world.history.restores))
        allowed = BYTES_EACH * (written * len(world.clients) + loads) + large * again
        if spent > allowed:
            yield f"{spent} bytes were sent, over the {allowed} that were to be expected"
