"""Convergence: who has the same commits has the same documents and tables."""

from collections.abc import Iterable

from reunite_simulations import observe
from reunite_simulations.checkers import Observed


class Convergence:
    """At all times: equal cursors, equal bases. What the relay stated at one commit never changes
    afterwards, so it is remembered across clients and time."""

    promise = "convergence"

    def __init__(self) -> None:
        self._digest_by_seq: dict[int, tuple[str, str]] = {}

    def during(self, world: Observed) -> Iterable[str]:
        """Compare all that stand at the same commit."""
        for client in world.clients:
            if not client.up:
                continue
            standing = observe.standing(client.app)
            # Numbered acknowledgements join the base before their rows arrive.
            if not standing.loaded or standing.waiting or client.name in world.unsettled:
                continue
            found = observe.digest(observe.bases(client.app).items())
            known = self._digest_by_seq.setdefault(standing.seq, (found, client.name))
            if found != known[0]:
                yield f"{client.name} and {known[1]} differ at commit {standing.seq}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """Everybody holds what the relay holds, in documents and in tables."""
        stated = observe.stated(world.store)
        for client in world.clients:
            held = observe.bases(client.app)
            if held != stated:
                names = sorted({n for n, _ in held.items() ^ stated.items()})
                yield f"{client.name}: {len(names)} documents differ from the relay's: {names[:3]}"
        for table in world.tables():
            first = observe.rows(world.clients[0].app, table)
            relays = observe.rows(world.store, table)
            if first != relays:
                keys = sorted({key for key, _ in first.items() ^ relays.items()}, key=repr)
                yield f"table {table.name!r} differs between a client and the relay: {keys[:3]}"
            for client in world.clients[1:]:
                own = observe.rows(client.app, table)
                if own != first:
                    keys = sorted({key for key, _ in first.items() ^ own.items()}, key=repr)
                    shown = [(key, first.get(key), own.get(key)) for key in keys[:3]]
                    yield f"table {table.name!r} differs on {client.name}: {shown}"
