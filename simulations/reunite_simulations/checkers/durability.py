"""Durability: what returned survives the process, what was acknowledged survives the client.

Elements of the append-only lists are never deleted, so each must be where it belongs for ever,
unless it was rejected or its file lost its end.
"""

from collections.abc import Iterable, Set

from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rejected_elements
from reunite_simulations.history import Outcome
from reunite_simulations.workload import APPEND_TABLE
from reunite_transport.client_session import Refilling


class Durability:
    """Every element that returned is in its file, and in the end at the relay; there, too, what
    was acknowledged and whose file was lost."""

    promise = "durability"
    looks = True

    def __init__(self) -> None:
        self._acknowledged: dict[str, set[str]] = {}
        self._restores = 0

    def during(self, world: Observed) -> Iterable[str]:
        """After any number of crashes, a file has what its app wrote."""
        if len(world.history.restores) != self._restores:
            # What only the lost part of the relay's history had is gone, unless a file has it.
            self._restores = len(world.history.restores)
            self._acknowledged.clear()
        owed = self._owed(world)
        for client in world.clients:
            if client.up and observe.has_table(client.app, APPEND_TABLE):
                seen = observe.elements(client.app, APPEND_TABLE)
                missing = owed.get(client.name, set()) - seen
                if missing:
                    yield f"{client.name} lost {sorted(missing)[:3]}"
                standing = observe.standing(client.app)
                if standing.loaded and not standing.queued:
                    acknowledged = seen & _written(world, client.name)
                    if not _has_heard(world, client.name):
                        acknowledged &= observe.elements(world.store, APPEND_TABLE)
                    self._acknowledged.setdefault(client.name, set()).update(acknowledged)
            if not world.history.restores:
                # The files may well give it back; it was acknowledged all the same.
                yield from (
                    f"the relay has lost what {client.name} knows of it, and nobody restored it"
                    for event in client.events
                    if isinstance(event, Refilling)
                )

    def at_end(self, world: Observed) -> Iterable[str]:
        """What was not rejected is at the relay."""
        seen = observe.elements(world.store, APPEND_TABLE)
        rejected = rejected_elements(world)
        for client, owed in self._owed(world).items():
            if missing := owed - seen:
                yield f"the relay lacks {sorted(missing)[:3]} of {client}"
        for client, acknowledged in self._acknowledged.items():
            if missing := acknowledged - rejected - seen:
                yield f"the relay lacks {sorted(missing)[:3]}, which {client} was told it has"

    def _owed(self, world: Observed) -> dict[str, set[str]]:
        """By client, what returned and was not rejected."""
        owed: dict[str, set[str]] = {}
        for transaction in world.history.transactions:
            if transaction.outcome is Outcome.RETURNED and not transaction.doubtful:
                owed.setdefault(transaction.client, set()).update(transaction.appended)
        rejected = rejected_elements(world)
        return {client: elements - rejected for client, elements in owed.items()}


def _has_heard(world: Observed, client: str) -> bool:
    """Whether a client knows that the relays' database went back; until it does, it takes for
    acknowledged what may be gone, and has not offered it again."""
    history = world.history
    refills = history.refills.get(client, [])
    return not history.restores or any(at >= history.restores[-1] for at in refills)


def _written(world: Observed, client: str) -> Set[str]:
    """All elements that a client's app has added, or may have."""
    return {
        element
        for made in world.history.transactions
        if made.client == client
        for element in made.appended
    }
