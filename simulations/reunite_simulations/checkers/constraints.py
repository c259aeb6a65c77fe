"""Constraints hold at the relay, and what they cost somebody is visible to him."""

from collections.abc import Iterable

from reunite_simulations import observe
from reunite_simulations.checkers import Observed
from reunite_transport.client_session import GaveUp


class Constraints:
    """Foreign keys and UNIQUE at the relay; a line in `reunite_rejected` for each row given up."""

    promise = "constraints hold"

    def during(self, world: Observed) -> Iterable[str]:
        """Ask SQLite itself."""
        for table, rowid, parent, _ in world.store.execute("PRAGMA foreign_key_check"):
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
