"""Fixtures of the engine's tests: files with an app and an engine, and a relay in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.loopback import Relay
from tests.engine.peer import Peer

MakePeer = Callable[..., Peer]


@pytest.fixture
def make_peer(tmp_path: Path) -> Iterator[MakePeer]:
    """Makes peers, each with a file of its own; the arguments are SQL that its app runs first."""
    peers: list[Peer] = []

    def make(*statements: str, copy_of: Peer | None = None) -> Peer:
        path = tmp_path / f"{len(peers) + 1}.db"
        if copy_of is not None:
            copy_of.engine.execute("VACUUM INTO ?", (str(path),))
        peers.append(Peer(path, len(peers) + 1, *statements))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def relay() -> Relay:
    """A relay that takes everything."""
    return Relay()
