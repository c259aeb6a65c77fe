"""Worlds hold their promises, can be repeated, and their parts do what they say."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reunite_simulations import faults
from reunite_simulations.loop import Deadlock, run
from reunite_simulations.network import HEARTBEAT_SECONDS, Network, Socket
from reunite_simulations.outcome import Report, Settings
from reunite_simulations.seeds import own_schema, run_seed


def world(seed: int, *, minutes: float = 1.0, words: str = "all") -> Report:
    return run_seed(
        Settings(seed=seed, schema=own_schema(), minutes=minutes, faults=faults.named(words))
    )


@pytest.mark.parametrize("words", ["none", *faults.GROUPS])
def test_a_world_with_one_kind_of_fault_keeps_every_promise(words: str) -> None:
    report = world(1, words=words)
    assert report.violations == []
    assert report.rows_written > 20
    assert all(report.checks.values())


def test_one_seed_is_one_history_whatever_the_process() -> None:
    program = (
        "from tests.simulations.test_worlds import world; r = world(1036, minutes=2.0);"
        "print(r.trace_hash, len(r.happenings))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_a_word_that_is_no_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="'rain' is no fault"):
        faults.named("partition, rain")
    assert faults.named("all") == tuple(faults.FAULTS)
    assert faults.named("none") == ()


def test_virtual_time_jumps_and_a_wait_for_nothing_is_an_error() -> None:
    async def sleeps() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run(sleeps()) == pytest.approx(3600)
    with pytest.raises(Deadlock):
        run(asyncio.Event().wait())


def test_a_stream_is_late_under_loss_and_in_order() -> None:
    async def scenario() -> None:
        network = Network(1, lambda *_: None)
        network.weather.loss = 0.4
        ends: list[Socket] = []
        network.listen("relay", ends.append)
        async with network.connect("client", "relay") as socket:
            for number in range(50):
                await socket.send(bytes([number]))
            received = [await ends[0].receive() for _ in range(50)]
        assert received == [bytes([number]) for number in range(50)]
        assert network.counts.lost > 5
        assert await ends[0].receive() is None

    run(scenario())


def test_a_half_open_connection_is_noticed_by_both_sides() -> None:
    async def scenario() -> None:
        network = Network(1, lambda *_: None)
        ends: list[Socket] = []
        network.listen("relay", ends.append)
        loop = asyncio.get_running_loop()
        async with network.connect("client", "relay") as socket:
            await asyncio.sleep(1)
            network.cut("client", "relay")
            began = loop.time()
            await socket.send(b"into the dark")
            assert await socket.receive() is None
            assert await ends[0].receive() is None
            assert HEARTBEAT_SECONDS <= loop.time() - began <= 2 * HEARTBEAT_SECONDS
            with pytest.raises(ConnectionError):
                await socket.send(b"more")

    run(scenario())
