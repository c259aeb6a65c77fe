"""Table == document: every row of a tracked table equals its document, or the image kept of it."""

from collections.abc import Iterable, Iterator

from reunite.keys import pack_key
from reunite.verify import verify
from reunite_simulations import observe
from reunite_simulations.checkers import Observed, ObservedClient, turns


class Tables:
    """On clients at all times, by the check that users have; at the relay by rows and lives."""

    promise = "table == document"
    looks = True

    def __init__(self) -> None:
        self._looks = 0

    def during(self, world: Observed) -> Iterable[str]:
        """Every client that is up; of those with many rows some at each look, in turn."""
        self._looks += 1
        for place, client in enumerate(world.clients):
            if client.up and (self._looks + place) % turns(client) == 0:
                yield from _differences(client)

    def at_end(self, world: Observed) -> Iterable[str]:
        """Clients and the relay."""
        for client in world.clients:
            if not observe.shape_is_known(client.app):
                yield f"{client.name} has not noticed that its schema changed"
            yield from _differences(client)
        alive = observe.living(observe.stated(world.store))
        for table in world.tables():
            keys = {pack_key(key) for key in observe.rows(world.store, table)}
            wanted = {key for name, key in alive if name == table.name}
            if keys != wanted:
                yield f"the relay's {table.name!r} has {len(keys ^ wanted)} rows too many or few"


def _differences(client: ObservedClient) -> Iterator[str]:
    # A migration is noticed by the next that the engine does, and shows until then.
    if observe.shape_is_known(client.app):
        for difference in verify(client.app)[:3]:
            yield f"{client.name}: {difference}"
