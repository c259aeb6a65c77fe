"""A connection that ends as soon as it is live is tried again later and later."""

import asyncio
from pathlib import Path

import pytest

from reunite_simulations.loop import run
from reunite_simulations.outcome import Settings
from reunite_simulations.seeds import own_schema
from reunite_simulations.world import World
from reunite_transport.relay.hub import Hub, Member


def test_a_session_that_fails_when_it_is_live_does_not_hammer_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(hub: Hub, member: Member) -> None:
        asyncio.get_running_loop().call_later(0.05, hub.fail, member, "every time")

    monkeypatch.setattr(Hub, "catch_up", fail)
    world = World(
        Settings(seed=1, schema=own_schema(), replicas=1, relays=1, minutes=2, faults=()), tmp_path
    )
    run(world.live())
    # Of some minutes.
    assert 5 < world.network.counts.connections < 100
