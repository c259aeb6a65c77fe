"""Table == document: every row of a tracked table equals its document, or the image kept of it."""

from collections.abc import Iterable

from reunite.keys import pack_key
from reunite.verify import verify
from reunite_simulations import observe
from reunite_simulations.checkers import Observed


class Tables:
    """On clients at all times, by the check that users have; at the relay by rows and lives."""

    promise = "table == document"

    def during(self, world: Observed) -> Iterable[str]:
        """Every client that is up."""
        for client in world.clients:
            # A migration is noticed by the next that the engine does, and shows until then.
            if client.up and observe.shape_is_known(client.app):
                for difference in verify(client.app)[:3]:
                    yield f"{client.name}: {difference}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """Clients and the relay."""
        for client in world.clients:
            if not observe.shape_is_known(client.app):
                yield f"{client.name} has not noticed that its schema changed"
        yield from self.during(world)
        alive = observe.living(observe.stated(world.store))
        for table in world.tables():
            keys = {pack_key(key) for key in observe.rows(world.store, table)}
            wanted = {key for name, key in alive if name == table.name}
            if keys != wanted:
                yield f"the relay's {table.name!r} has {len(keys ^ wanted)} rows too many or few"
