"""Faults: what can go wrong in a world. Each seed draws its own mix of them ("swarm testing").

A fault is a task that, while the world is in its first phase, does harm now and then, and undoes
what does not undo itself. `heal` of the world ends them all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from reunite_simulations.world import World

Fault: TypeAlias = Callable[["World"], Awaitable[None]]


async def partition(world: "World") -> None:
    """A client and a relay do not reach each other, in one direction or in both."""
    client, relay = world.pick(world.clients), world.pick(world.relays)
    back = world.chance.random() < 0.6
    pair = (client.name, relay.name) if world.chance.random() < 0.5 else (relay.name, client.name)
    world.network.cut(*pair, back=back)
    await world.pause(1, 60)
    world.network.mend(*pair)


async def island(world: "World") -> None:
    """All relays are away for some clients."""
    some = [client for client in world.clients if world.chance.random() < 0.5]
    for client in some:
        for relay in world.relays:
            world.network.cut(client.name, relay.name)
    await world.pause(5, 90)
    for client in some:
        for relay in world.relays:
            world.network.mend(client.name, relay.name)


async def weather(world: "World") -> None:
    """The network is slow, narrow, loses packets."""
    now = world.network.weather
    before = (now.delay, now.jitter, now.loss, now.bytes_per_second)
    now.delay, now.jitter = world.chance.uniform(0.01, 0.5), world.chance.uniform(0, 0.5)
    now.loss = world.chance.uniform(0, 0.2)
    now.bytes_per_second = world.chance.choice((2e3, 2e4, 1e6))
    await world.pause(5, 60)
    now.delay, now.jitter, now.loss, now.bytes_per_second = before


async def replay(world: "World") -> None:
    """Frames towards relays come twice."""
    world.network.weather.replay = world.chance.uniform(0.01, 0.2)
    await world.pause(5, 30)
    world.network.weather.replay = 0.0


async def reset(world: "World") -> None:
    """A connection is cut while both sides live."""
    connections = list(world.network.connections.values())
    if connections:
        connection = world.pick(connections)
        world.pick([connection.client_end, connection.relay_end]).vanish()


async def slow(world: "World") -> None:
    """A client or a relay reads slowly."""
    clients = [client.name for client in world.clients]
    name = world.pick(clients + [relay.name for relay in world.relays])
    world.network.slow[name] = world.chance.uniform(0.05, 1.0)
    await world.pause(5, 40)
    world.network.slow.pop(name, None)


async def clock(world: "World") -> None:
    """A machine's clock steps, or runs at another speed."""
    client = world.pick(world.clients)
    kind = world.chance.random()
    if kind < 0.3:
        client.clock.offset_ms += world.chance.uniform(-5_000, 5_000)
    elif kind < 0.6:
        client.clock.offset_ms += (
            world.chance.choice((-1, 1)) * world.chance.uniform(60, 3600) * 1e3
        )
    elif kind < 0.8:
        client.clock.offset_ms += world.chance.choice((-3, -1, 2)) * 365 * 86_400_000
    else:
        now = client.clock()
        client.clock.drift = world.chance.uniform(-0.01, 0.01)
        client.clock.offset_ms += now - client.clock()


async def crash(world: "World") -> None:
    """A client's process dies at one of its next statements."""
    client = world.pick_up(world.clients)
    if client is not None:
        client.crash_at(world.chance.randint(1, 200))


async def power(world: "World") -> None:
    """A client's machine loses its power, and the end of its WAL."""
    client = world.pick_up(world.clients)
    if client is not None:
        world.history.doubt(client.name, 0.0)
        world.rolled_back.add(client.name)
        client.kill(cut=True)
        world.died(client)


async def disk(world: "World") -> None:
    """A client's disk is nearly full."""
    client = world.pick_up(world.clients)
    if client is None:
        return
    life = client.lives
    client.limit_pages(world.chance.randint(0, 3))
    await world.pause(2, 30)
    if client.up and client.lives == life:
        client.limit_pages(None)


async def copied(world: "World") -> None:
    """A copy of a client's file is used beside it."""
    client = world.pick_up(world.clients)
    if client is not None and len(world.clients) < world.settings.replicas + 2:
        world.add_copy(client)


async def backup(world: "World") -> None:
    """A client's file is replaced by a backup of it."""
    client = world.pick_up(world.clients)
    if client is None:
        return
    path = client.path.with_name(f"{client.name}-backup{world.faults['backup']}.db")
    client.copy_to(path)
    taken = world.now()
    await world.pause(5, 60)
    if client.up:
        world.history.doubt(client.name, taken)
        world.rolled_back.add(client.name)
        client.restore(path)
        world.died(client)


async def locked(world: "World") -> None:
    """Another program holds a client's file in a transaction."""
    client = world.pick_up(world.clients)
    if client is None:
        return
    stranger = client.stranger()
    try:
        stranger.execute("BEGIN IMMEDIATE")
        await world.pause(0.1, 10)
    finally:
        stranger.close()


async def relay_crash(world: "World") -> None:
    """A relay dies and comes back."""
    relay = world.pick(world.relays)
    if relay.up:
        await relay.kill()
        await world.pause(0.1, 20)
        await world.start_relay(relay)


async def relay_roll(world: "World") -> None:
    """A relay is stopped in order and started again, as a new version is rolled out."""
    relay = world.pick(world.relays)
    if relay.up:
        await relay.stop()
        await world.pause(0.1, 5)
        await world.start_relay(relay)


async def roam(world: "World") -> None:
    """A client goes to another relay."""
    client = world.pick(world.clients)
    client.relay = world.pick(world.relays).name
    for connection in list(world.network.connections.values()):
        if connection.client_end.name == client.name:
            connection.client_end.vanish()


# Each fault with the mean seconds between two of its kind in one world, and the group that
# `--faults` names it by.
FAULTS: Final[Mapping[str, tuple[Fault, float, str]]] = {
    "partition": (partition, 25.0, "partition"),
    "island": (island, 60.0, "partition"),
    "weather": (weather, 40.0, "network"),
    "replay": (replay, 40.0, "network"),
    "reset": (reset, 20.0, "network"),
    "slow": (slow, 60.0, "network"),
    "clock": (clock, 40.0, "clock"),
    "crash": (crash, 40.0, "crash"),
    "power": (power, 100.0, "crash"),
    "disk": (disk, 80.0, "disk"),
    "locked": (locked, 60.0, "disk"),
    "copied": (copied, 200.0, "copy"),
    "backup": (backup, 150.0, "copy"),
    "relay-crash": (relay_crash, 60.0, "relay"),
    "relay-roll": (relay_roll, 90.0, "relay"),
    "roam": (roam, 60.0, "relay"),
}
GROUPS: Final = tuple(dict.fromkeys(group for _, _, group in FAULTS.values()))


def named(words: str) -> tuple[str, ...]:
    """The faults that a list of names or groups, with commas between, stands for; `all` and
    `none` are words of it. Raises ValueError for a word that is no fault."""
    found: dict[str, None] = {}
    for word in filter(None, (each.strip() for each in words.split(","))):
        if word == "none":
            continue
        some = [name for name, (_, _, group) in FAULTS.items() if word in (name, group, "all")]
        if word == "all":
            some = list(FAULTS)
        if not some:
            raise ValueError(
                f"{word!r} is no fault; there are {', '.join(FAULTS)}, and the groups"
                f" {', '.join(GROUPS)}, all, none"
            )
        found |= dict.fromkeys(some)
    return tuple(found)


async def strike(world: "World", name: str) -> None:
    """Let one kind of fault happen now and then, until cancelled."""
    fault, seconds, _ = FAULTS[name]
    while True:
        await asyncio.sleep(world.chance.expovariate(1 / seconds))
        world.count_fault(name)
        await fault(world)
