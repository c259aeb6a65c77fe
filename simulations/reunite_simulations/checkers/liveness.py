"""Liveness: once healed, all comes to rest in bounded time: outboxes empty, digests equal."""

from collections.abc import Iterable

from reunite_simulations import observe
from reunite_simulations.checkers import Observed


class Liveness:
    """Nobody has stopped for good, nobody has anything left."""

    promise = "liveness"
    looks = True

    def during(self, world: Observed) -> Iterable[str]:
        """A client that says it cannot go on, though nothing was asked of its user."""
        for client in world.clients:
            if client.stopped is not None:
                yield f"{client.name} stopped for good: {client.stopped.code}: {client.stopped}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """Everybody is at rest."""
        yield from self.during(world)
        (head,) = world.store.execute("SELECT seq FROM _reunite_head").fetchone()
        for client in world.clients:
            standing = observe.standing(client.app)
            if standing.queued or standing.waiting:
                yield (
                    f"{client.name} still has {standing.queued} changesets queued and"
                    f" {standing.waiting} pages waiting"
                )
            if standing.seq != head:
                yield f"{client.name} is at commit {standing.seq}, the relay at {head}"
            # What a file's own rules refuse, which the relay does not have, stays blocked.
            blocked = observe.blocked_tables(client.app)
            if unruly := sorted(blocked - observe.tables_with_rules(client.app)):
                yield f"{client.name} has {standing.blocked} rows blocked in {unruly}"
