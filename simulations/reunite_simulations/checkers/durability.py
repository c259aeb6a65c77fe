"""Durability: what returned survives the process, what was acknowledged survives the client.

Elements of the append-only lists are never deleted, so each must be where it belongs for ever,
unless it was rejected or its file lost its end.
"""

from collections.abc import Iterable

from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rejected_elements
from reunite_simulations.history import Outcome
from reunite_simulations.workload import APPEND_TABLE
from reunite_transport.client_session import Refilling


class Durability:
    """Every element that returned is in its file, and in the end at the relay."""

    promise = "durability"

    def during(self, world: Observed) -> Iterable[str]:
        """After any number of crashes, a file has what its app wrote."""
        owed = self._owed(world)
        for client in world.clients:
            if client.up and observe.has_table(client.app, APPEND_TABLE):
                seen = observe.elements(client.app, APPEND_TABLE)
                missing = owed.get(client.name, set()) - seen
                if missing:
                    yield f"{client.name} lost {sorted(missing)[:3]}"
            if world.history.restored_at < 0:
                # The files may well give it back; it was acknowledged all the same.
                yield from (
                    f"the relay has lost what {client.name} knows of it, and nobody restored it"
                    for event in client.events
                    if isinstance(event, Refilling)
                )

    def at_end(self, world: Observed) -> Iterable[str]:
        """What was not rejected is at the relay."""
        seen = observe.elements(world.store, APPEND_TABLE)
        for client, owed in self._owed(world).items():
            if missing := owed - seen:
                yield f"the relay lacks {sorted(missing)[:3]} of {client}"

    def _owed(self, world: Observed) -> dict[str, set[str]]:
        """By client, what returned and was not rejected."""
        owed: dict[str, set[str]] = {}
        for transaction in world.history.transactions:
            if transaction.outcome is Outcome.RETURNED and not transaction.doubtful:
                owed.setdefault(transaction.client, set()).update(transaction.appended)
        rejected = rejected_elements(world)
        return {client: elements - rejected for client, elements in owed.items()}
