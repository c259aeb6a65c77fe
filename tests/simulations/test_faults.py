"""Faults do what they say, and none undoes what another does."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from reunite_simulations import faults
from reunite_simulations.chance import EventChance
from reunite_simulations.history import Outcome, Transaction
from reunite_simulations.loop import run
from reunite_simulations.network import Network, Weather
from reunite_simulations.outcome import Report, Settings
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.transactions import transact
from reunite_simulations.workload import Mix
from reunite_simulations.world import World


def settings(seed: int, *names: str, minutes: float = 2.0) -> Settings:
    return Settings(
        seed=seed, schema=own_schema(), replicas=4, minutes=minutes, faults=names, swarm=False
    )


def kinds(report: Report) -> Counter[str]:
    return Counter(happening.kind for happening in report.happenings)


def test_what_two_cut_is_whole_when_both_have_mended_it() -> None:
    said: list[tuple[object, ...]] = []
    network = Network(1, lambda *facts: said.append(facts))
    network.cut("client", "relay", back=False)
    network.cut("relay", "client")
    network.mend("relay", "client")
    assert said[-2:] == [("mend", "relay", "client"), ("cut", "client", "relay", False)]
    assert not network.passes("client", "relay")
    assert network.passes("relay", "client")
    network.mend("client", "relay", back=False)
    assert network.passes("client", "relay")


def test_of_two_weathers_the_worse_holds_in_each_respect() -> None:
    network = Network(1, lambda *_: None)
    slow, narrow = Weather(delay=0.5, bytes_per_second=1e6), Weather(bytes_per_second=2e3)
    network.begin(slow)
    network.begin(narrow)
    assert (network.weather.delay, network.weather.bytes_per_second) == (0.5, 2e3)
    network.end(narrow)
    assert (network.weather.delay, network.weather.bytes_per_second) == (0.5, 1e6)
    network.end(slow)
    assert network.weather == Weather()


def test_who_is_slowed_down_twice_is_slow_until_both_have_ended() -> None:
    network = Network(1, lambda *_: None)
    network.slow_down("client", 0.2)
    network.slow_down("client", 0.7)
    assert network.slowness("client") == 0.7
    network.speed_up("client", 0.7)
    assert network.slowness("client") == 0.2
    network.speed_up("client", 0.2)
    assert network.slowness("client") == 0.0


def test_clocks_that_are_off_from_the_start_are_corrected(tmp_path: Path) -> None:
    offsets: list[tuple[float, int]] = []

    def look(world: World) -> None:
        offsets.extend((c.clock.offset_ms, c.replica.offset_ms()) for c in world.clients)

    world = World(settings(3, minutes=0.5), tmp_path, look)
    assert run(world.live()).violations == []
    assert max(abs(wrong) for wrong, _ in offsets) > 60_000
    assert all(abs(wrong - measured) < 1_100 for wrong, measured in offsets)


def test_only_the_edits_after_a_clock_stepped_are_mistimed() -> None:
    report = run_seed(settings(1, "clock"))
    stepped = {
        str(happening.facts[0]): happening.at
        for happening in reversed(report.happenings)
        if happening.kind == "clock"
    }
    assert stepped
    for made in report.history.transactions:
        assert made.mistimed == (made.at > stepped.get(made.client, made.at))


def test_what_other_programs_write_into_a_rebuilt_table_is_mistimed(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        world._prepare()
        client = world.clients[0]
        world._start(client)
        tables = [table for table in world.own_tables(client) if table.name == "list"]

        def wrote(number: int, mix: Mix) -> Transaction:
            chance = EventChance(1, client.name, number)
            made = transact(client, chance, mix, tables, world.history, world.now())
            assert made.writes
            return made

        others = Mix(strangers=1.0, appends=0.0, large=0.0)
        assert not wrote(1, others).mistimed
        faults._rebuild(client.app, tables[0])
        assert wrote(2, others).mistimed
        # The engine looks first.
        assert not wrote(3, replace(others, strangers=0.0)).mistimed
        assert not wrote(4, others).mistimed
        world._end()

    run(scenario())


def test_a_backup_may_bring_back_a_file_that_was_lost_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        world._prepare()
        client = world.clients[0]
        world.clients = [client]
        world._start(client)
        tables = world.own_tables(client)
        chance, mix = EventChance(1, client.name, 1), Mix(strangers=0.0)
        made = transact(client, chance, mix, tables, world.history, world.now())
        assert made.own

        async def lose(*_: object) -> None:
            await faults.lost(world, EventChance(1, "lost", 1))
            await asyncio.sleep(30)
            assert client.up

        with monkeypatch.context() as patch:
            patch.setattr(EventChance, "pause", lose)
            await faults.backup(world, EventChance(1, "backup", 1))
        assert made.client == "client1 until lost:1"
        assert not made.resent
        await asyncio.sleep(30)
        assert made.resent
        world._end()

    run(scenario())


def test_a_relay_that_dies_at_a_statement_commits_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        world._prepare()
        (relay, _) = world.relays
        await relay.start()
        store = relay._store
        assert store is not None
        died = relay.crash_at(3)
        commit = store._connection.execute
        commit("BEGIN IMMEDIATE")
        commit("UPDATE _reunite_head SET seq = 7")
        commit("SELECT 1")
        with pytest.raises(Exception, match="not authorized"):
            commit("COMMIT")
        assert died.is_set()
        await asyncio.sleep(0)
        assert not relay.up
        assert world.store.execute("SELECT seq FROM _reunite_head").fetchone() == (0,)
        world._end()

    run(scenario())


def test_nobody_dies_of_being_healed(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        world._prepare()
        relay, client = world.relays[0], world.clients[0]
        await relay.start()
        client.start()
        died = relay.crash_at(1)
        client.crash_at(1)
        await relay.heal()
        client.heal()
        await asyncio.sleep(0)
        assert not died.is_set()
        assert relay.up
        client.alive(client.app.execute, "SELECT 1")
        world._end()

    run(scenario())


def test_a_relay_that_dies_as_the_world_heals_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        world._prepare()
        world.clients, world.relays = [], world.relays[:1]
        (relay,) = world.relays
        await relay.start()
        store = relay._store
        assert store is not None
        died = relay.crash_at(1)
        store._connection.execute("SELECT 1")
        assert died.is_set()
        await world._heal()
        await asyncio.sleep(0)
        assert relay.up
        assert relay._store is not store
        world._end()

    run(scenario())


@pytest.mark.parametrize(
    ("name", "happens"),
    [
        ("relay-crash", "died"),
        ("crash", "power"),
        ("relay-disk", "disk"),
        ("second", "second"),
        ("reload", "reload"),
    ],
)
def test_a_world_with_one_fault_keeps_every_promise(name: str, happens: str) -> None:
    report = run_seed(settings(2, name, minutes=4.0))
    assert report.violations == []
    assert report.faults[name] > 0
    assert kinds(report)[happens] > 0


def test_what_a_lost_machine_had_sent_is_still_owed() -> None:
    report = run_seed(settings(2, "lost", minutes=6.0))
    assert report.violations == []
    assert report.faults["lost"] > 0
    assert kinds(report)["lost"] > 0
    lost = [made for made in report.history.transactions if "until lost:" in made.client]
    returned = [made for made in lost if made.outcome is Outcome.RETURNED]
    assert any(not made.doubtful for made in returned)


def test_apps_that_add_a_column_of_one_name_add_the_same() -> None:
    report = run_seed(settings(4, "migrate", minutes=8.0))
    assert report.violations == []
    assert kinds(report)["migrated"] > 0
    assert kinds(report)["rebuilt"] > 0


def test_a_second_sync_ends_with_the_life_that_it_is_of(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        world._prepare()
        await world.relays[0].start()
        client = world.clients[0]
        client.relay = world.relays[0].name
        client.start()
        for number in range(1, 9):
            # Half of them have a connection of their own, which would keep the file.
            chance = EventChance(1, "second", number)
            async with client.second_sync(client.relay, chance):
                await asyncio.sleep(2)
                (task,) = client._seconds
                client.kill()
                await asyncio.wait([task])
                client.start()
                assert client._connections() == [client.app, client._engine]
        world._end()

    run(scenario())


@pytest.mark.parametrize("fault", [faults.crash, faults.lost, faults.disk, faults.reset])
def test_a_fault_that_finds_nobody_does_not_count(fault: faults.Fault, tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(settings(1), tmp_path)
        await fault(world, EventChance(1, "crash", 1))
        assert world.faults == {}

    run(scenario())
