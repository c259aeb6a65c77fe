"""The faults of a mix: each befalls one node for a while, and is over when it returns."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from tests.e2e.nodes import ClientNode, Mix, RelayNode
from tests.e2e.processes import crash_postgres, has_ended
from tests.e2e.world import until

Fault: TypeAlias = Callable[[Mix, random.Random], Awaitable[None]]

# Long enough for heartbeats to notice, short enough for many of them in a run.
FAULT_SECONDS: Final = (0.1, 2.0)
PAUSE_SECONDS: Final = (0.1, 0.6)


async def kill_client(mix: Mix, chance: random.Random) -> None:
    """An app's process dies at any moment or while it commits, and is started again."""
    client = chance.choice(mix.clients)
    async with client.turn:
        if chance.random() < 0.7:
            await _grown(client.journals[-1])
        mix.note(f"kill {client.name}")
        await client.kill()
        await _while(chance)
        await client.start()


async def kill_relay(mix: Mix, chance: random.Random) -> None:
    """A relay's process dies, and is started again."""
    relay = chance.choice(mix.relays)
    async with relay.turn:
        mix.note(f"kill {relay.name}")
        await relay.kill()
        await _while(chance)
        await _start(mix, relay)


async def roll_relay(mix: Mix, chance: random.Random) -> None:
    """A relay is stopped in order, and a new one started."""
    relay = chance.choice(mix.relays)
    async with relay.turn:
        mix.note(f"roll {relay.name}")
        await relay.stop()
        await _start(mix, relay)


async def stop_client(mix: Mix, chance: random.Random) -> None:
    """An app's machine sleeps."""
    await _freeze(mix, chance.choice(mix.clients), chance)


async def stop_relay(mix: Mix, chance: random.Random) -> None:
    """A relay hangs, with whatever it holds."""
    await _freeze(mix, chance.choice(mix.relays), chance)


async def kill_postgres(mix: Mix, chance: random.Random) -> None:
    """Postgres dies, its postmaster alone or with all its processes, and is started again."""
    number = chance.choice((signal.SIGKILL, signal.SIGQUIT))
    async with mix.server.turn:
        mix.note(f"{number.name} postgres")
        postmaster = crash_postgres(mix.server.data, number)
        await until(partial(has_ended, postmaster), "the end of Postgres")
        await _while(chance)
        await mix.server.start()


async def cut(mix: Mix, chance: random.Random) -> None:
    """Connections break, and both ends notice."""
    client = chance.choice(mix.clients)
    mix.note(f"cut {client.name}")
    client.proxy.cut()


async def cut_at_byte(mix: Mix, chance: random.Random) -> None:
    """Connections break at some byte, in the middle of a frame as it comes."""
    client = chance.choice(mix.clients)
    way = chance.choice((client.proxy.up, client.proxy.down))
    way.cut_after = chance.choice((chance.randint(1, 300), chance.randint(1, 20_000)))
    mix.note(f"cut {client.name} after {way.cut_after} bytes")
    await _while(chance)
    way.cut_after = None


async def hold(mix: Mix, chance: random.Random) -> None:
    """Nothing passes one way, and then all that waited."""
    client = chance.choice(mix.clients)
    way = chance.choice((client.proxy.up, client.proxy.down))
    mix.note(f"hold {client.name}")
    way.open.clear()
    await _while(chance)
    way.open.set()


async def delay(mix: Mix, chance: random.Random) -> None:
    """The network is slow, both ways."""
    client = chance.choice(mix.clients)
    mix.note(f"delay {client.name}")
    client.proxy.up.late_seconds = chance.uniform(0.01, 0.2)
    client.proxy.down.late_seconds = chance.uniform(0.01, 0.2)
    await _while(chance)
    client.proxy.up.late_seconds = client.proxy.down.late_seconds = 0.0


async def silence(mix: Mix, chance: random.Random) -> None:
    """What goes one way is lost; then the connections are."""
    client = chance.choice(mix.clients)
    way = chance.choice((client.proxy.up, client.proxy.down))
    mix.note(f"silence {client.name}")
    way.lossy = True
    await _while(chance)
    client.proxy.cut()
    way.lossy = False


async def repeat(mix: Mix, chance: random.Random) -> None:
    """Frames towards the relay come twice."""
    client = chance.choice(mix.clients)
    client.proxy.up.repeats = chance.randint(1, 5)
    mix.note(f"repeat {client.proxy.up.repeats} frames of {client.name}")
    await _while(chance)
    client.proxy.up.repeats = 0


async def roam(mix: Mix, chance: random.Random) -> None:
    """A client is led to another relay."""
    client, to = chance.choice(mix.clients), chance.choice(mix.relays)
    mix.note(f"roam {client.name} to {to.name}")
    for relay in mix.relays:
        relay.proxies.discard(client.proxy)
    to.lead_here(client.proxy)
    client.proxy.cut()


FAULTS: Final[Mapping[str, Fault]] = {
    "kill client": kill_client,
    "kill relay": kill_relay,
    "roll relay": roll_relay,
    "stop client": stop_client,
    "stop relay": stop_relay,
    "kill postgres": kill_postgres,
    "cut": cut,
    "cut at byte": cut_at_byte,
    "hold": hold,
    "delay": delay,
    "silence": silence,
    "repeat": repeat,
    "roam": roam,
}


async def strike(mix: Mix, seed: int, seconds: float, at_once: int) -> None:
    """Let faults happen for so long, up to `at_once` together; all are over at the end."""
    drawn = _drawn(random.Random(f"{seed} faults"))
    until_time = asyncio.get_running_loop().time() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(seconds))
        for _ in range(at_once):
            group.create_task(_strike(mix, drawn, until_time))


async def _strike(mix: Mix, drawn: Iterator[tuple[str, random.Random]], until_time: float) -> None:
    while asyncio.get_running_loop().time() < until_time:
        name, chance = next(drawn)
        await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))
        mix.look_for_the_dead()
        mix.faults[name] += 1
        await FAULTS[name](mix, chance)


def _drawn(chance: random.Random) -> Iterator[tuple[str, random.Random]]:
    """Kinds of faults, all of them before any comes again, each with a chance of its own."""
    while True:
        for name in chance.sample(list(FAULTS), len(FAULTS)):
            yield name, random.Random(chance.getrandbits(64))


async def _grown(journal: Path) -> None:
    """Wait until a client notes something, as it does before each commit; not for long, as it may
    be waiting itself."""
    had = _size(journal)
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while _size(journal) == had:  # noqa: ASYNC110 - a file has no event to wait for
                await asyncio.sleep(0.001)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


async def _while(chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(*FAULT_SECONDS))


async def _freeze(mix: Mix, node: ClientNode | RelayNode, chance: random.Random) -> None:
    async with node.turn:
        mix.note(f"stop {node.name}")
        node.process.send_signal(signal.SIGSTOP)
        await _while(chance)
        node.process.send_signal(signal.SIGCONT)


async def _start(mix: Mix, relay: RelayNode) -> None:
    """Start a relay. One that finds no Postgres ends, and is for others to start again."""
    async with mix.server.turn:
        await relay.start()
        mix.note(f"started {relay.name}")
