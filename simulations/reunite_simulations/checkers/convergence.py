"""Convergence: who has the same commits has the same documents and tables."""

from collections.abc import Iterable

from reunite_simulations import observe
from reunite_simulations.checkers import Observed


class Convergence:
    """At all times: equal cursors, equal bases. What the relay stated at one commit never changes
    afterwards, so it is remembered across clients and time."""

    promise = "convergence"
    looks = True

    def __init__(self) -> None:
        self._digest_by_commit: dict[tuple[int, bytes], tuple[int, str]] = {}

    def during(self, world: Observed) -> Iterable[str]:
        """Compare all that stand at the same commit."""
        for client in world.clients:
            if not client.up:
                continue
            standing = observe.standing(client.app)
            # Numbered acknowledgements join the base before their rows arrive.
            if not standing.loaded or standing.waiting:
                continue
            found = observe.fingerprint(client.app)
            commit = standing.seq, standing.token
            known = self._digest_by_commit.setdefault(commit, (found, client.name))
            if found != known[0]:
                yield f"{client.name} and {known[1]} differ at commit {standing.seq}"

    def at_end(self, world: Observed) -> Iterable[str]:
        """Everybody holds what the relay holds, in documents and, images aside, in tables."""
        stated = observe.stated(world.store)
        for client in world.clients:
            held = observe.bases(client.app)
            if held != stated:
                names = sorted({n for n, _ in held.items() ^ stated.items()})
                yield f"{client.name}: {len(names)} documents differ from the relay's: {names[:3]}"
        for table in world.tables():
            for client in world.clients:
                common = observe.shared(client.app, table)
                held_rows = observe.rows(client.app, common)
                relays = observe.rows(world.store, common)
                for key in observe.imaged(client.app, common):
                    held_rows.pop(key, None)
                    relays.pop(key, None)
                if held_rows != relays:
                    keys = sorted({k for k, _ in held_rows.items() ^ relays.items()}, key=repr)
                    shown = [(key, held_rows.get(key), relays.get(key)) for key in keys[:3]]
                    yield f"table {table.name!r} differs on {client.name}: {shown}"
