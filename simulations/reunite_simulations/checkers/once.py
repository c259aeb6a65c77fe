"""Exactly-once effect: a changeset is in the relay's history once, however often it was sent.

A copied file sends what its twin has sent; then the same nonce stands under two replicas, the
second time without an effect. Of one replica it stands once.
"""

from collections.abc import Iterable

from reunite_simulations.checkers import Observed


class ExactlyOnce:
    """No nonce was accepted twice, and numbers have no holes."""

    promise = "exactly-once effect"
    looks = True

    def during(self, world: Observed) -> Iterable[str]:
        """Ask the store."""
        for nonce, count in world.store.execute(
            "SELECT nonce, count(*) FROM _reunite_changesets GROUP BY replica, nonce"
            " HAVING count(*) > 1"
        ):
            yield f"changeset {nonce.hex()} was accepted {count} times"
        for replica, count, last in world.store.execute(
            "SELECT replica, count(*), max(number) FROM _reunite_changesets GROUP BY replica"
            " HAVING count(*) <> max(number)"
        ):
            yield f"replica {replica:x} has {count} accepted changesets and a last one of {last}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """The same."""
        return self.during(world)
