"""Convergence: who has the same commits has the same documents and tables."""

import sqlite3
from collections.abc import Iterable

from reunite.cells.register import Value
from reunite.schema import Table
from reunite_simulations import observe
from reunite_simulations.checkers import Observed
from reunite_simulations.contents import merges, shown
from reunite_simulations.history import Key


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
        stated = _normal(observe.stated(world.store))
        for client in world.clients:
            held = _normal(observe.bases(client.app))
            if held != stated:
                names = sorted({n for n, _ in held.items() ^ stated.items()})
                yield f"{client.name}: {len(names)} documents differ from the relay's: {names[:3]}"
        for table in world.tables():
            for client in world.clients:
                common = observe.shared(client.app, table)
                held_rows = _shown(client.app, common)
                relays = _shown(world.store, common)
                for key in observe.imaged(client.app, common):
                    held_rows.pop(key, None)
                    relays.pop(key, None)
                if held_rows != relays:
                    keys = sorted({k for k, _ in held_rows.items() ^ relays.items()}, key=repr)
                    both = [(key, held_rows.get(key), relays.get(key)) for key in keys[:3]]
                    yield f"table {table.name!r} differs on {client.name}: {both}"


def _normal(documents: observe.Documents) -> dict[observe.RowName, object]:
    return {name: observe.normal(document) for name, document in documents.items()}


def _shown(conn: sqlite3.Connection, table: Table) -> dict[Key, tuple[Value, ...]]:
    """A table's rows, with JSON that merges in one form: Postgres writes it in one of its own."""
    found = observe.rows(conn, table)
    if any(map(merges, table.cells)):
        for key, values in found.items():
            found[key] = tuple(map(shown, table.cells, values))
    return found
