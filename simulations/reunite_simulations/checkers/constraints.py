"""Constraints hold at the relay, and what they cost somebody is visible to him."""

from collections.abc import Iterable, Sequence

from reunite.schema import ascii_lower
from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rejected_elements
from reunite_simulations.history import Transaction
from reunite_transport.client_session import GaveUp


class Constraints:
    """Foreign keys and UNIQUE at the relay; a line in `reunite_rejected` for each row given up."""

    promise = "constraints hold"
    looks = True

    def during(self, world: Observed) -> Iterable[str]:
        """Ask SQLite itself, of the tables that the relay has."""
        known = {ascii_lower(table.name) for table in world.tables()}
        for table, rowid, parent, _ in world.store.execute("PRAGMA foreign_key_check"):
            if ascii_lower(parent) in known:
                yield f"row {rowid} of {table!r} at the relay refers to no row of {parent!r}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """The same, and every rejection that was told is kept."""
        yield from self.during(world)
        for client in world.clients:
            kept = {(table, str(key)) for table, key, _, _ in observe.rejected(client.app)}
            if client.name in world.rolled_back:
                continue
            for event in client.events:
                if isinstance(event, GaveUp):
                    for table, key in event.rows:
                        if (table, str(key)) not in kept:
                            yield f"{client.name} was told of {table} {key}, and keeps no trace"
        blameless = {element for made in world.history.transactions for element in _alone(made)}
        if refused := sorted(rejected_elements(world) & blameless):
            yield f"{refused[:3]} were refused, though no constraint concerns them"


def _alone(made: Transaction) -> Sequence[str]:
    """The elements of a changeset that holds nothing else: they refer to nothing, and every id
    occurs once."""
    other = made.writes or len(made.statements) > len(made.appended)
    return made.appended if made.own and not other else ()
