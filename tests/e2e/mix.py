"""Relays, clients and a Postgres as real processes under a mix of faults, until all is at rest.

A run has the simulator's two phases. First every app writes while faults happen; then all heals,
nobody writes, and everything has to come to rest. Its seed decides which faults happen, to whom and
for how long, and what apps write; what the machine makes of it is its own, so the same seed is a
similar run and not the same.
"""

import asyncio
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.judge import Judgement, Remains, copy_store, judge, make_first
from tests.e2e.mix_faults import strike
from tests.e2e.nodes import NOWHERE, ClientNode, Mix, RelayNode, Server
from tests.e2e.proxy import proxy_to


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is like. Faults happen for `seconds`, up to `at_once` of them together."""

    seed: int
    seconds: float = 20.0
    clients: int = 5
    relays: int = 2
    at_once: int = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run."""

    settings: Settings
    faults: Mapping[str, int]
    judgement: Judgement
    happenings: Sequence[tuple[float, str]]
    seconds: float
    remains: Remains

    @property
    def violations(self) -> Sequence[str]:
        """What is wrong."""
        return self.judgement.violations

    def __str__(self) -> str:
        found = self.judgement
        counted = ", ".join(f"{many} {what}" for what, many in sorted(found.transactions.items()))
        faults = ", ".join(f"{name} {many}" for name, many in sorted(self.faults.items()))
        checks = ", ".join(f"{promise} {many}" for promise, many in found.checks.items())
        return (
            f"seed {self.settings.seed}: {self.seconds:.0f} s,"
            f" {len(found.violations)} violations\n"
            f"  transactions: {counted}; {found.commits} commits, {found.rejections} rejections,"
            f" {found.reads} reads\n"
            f"  faults: {faults}\n"
            f"  checks: {checks}"
        )

    def told(self) -> str:
        """All of it, with what happened when."""
        lines = [str(self), *(f"  {said}" for said in self.violations)]
        return "\n".join([*lines, *(f"{at:9.2f} s  {said}" for at, said in self.happenings)])


async def run_mix(settings: Settings, folder: Path) -> Report:
    """Run one seed to its end, in an empty folder that keeps its files."""
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        mix = await _started(settings, folder, stack)
        await strike(mix, settings.seed, settings.seconds, settings.at_once)
        mix.look_for_the_dead()
        mix.heal()
        await mix.stop_writing()
        commits = await mix.come_to_rest()
        mix.look_for_the_dead()
        for client in mix.clients:
            await client.stop()
            if client.process.returncode:
                mix.violations.append(
                    f"no crash of the code itself: {client.name} did not end in order"
                )
        await copy_store(mix.server.url, folder / "store.db")
        remains = Remains(
            first=folder / "first.db",
            files={client.name: client.file for client in mix.clients},
            journals={client.name: client.journals for client in mix.clients},
            store=folder / "store.db",
            commits_when_quiet=commits,
            bytes_sent=sum(
                client.proxy.up.carried + client.proxy.down.carried for client in mix.clients
            ),
        )
    judgement = await asyncio.to_thread(judge, remains)
    judgement.violations[:0] = mix.violations
    seconds = time.monotonic() - began
    return Report(settings, mix.faults, judgement, mix.happenings, seconds, remains)


async def _started(settings: Settings, folder: Path, stack: AsyncExitStack) -> Mix:
    """Everything up, and to be ended by `stack`."""
    chance = random.Random(f"{settings.seed} start")
    make_first(folder / "first.db")
    server = Server(folder / "postgres")
    stack.push_async_callback(server.stop)
    await server.start()
    relays = [
        RelayNode(name, server.url, folder / f"{name}.log")
        for name in (f"relay{number + 1}" for number in range(settings.relays))
    ]
    for relay in relays:
        stack.push_async_callback(relay.kill)
    await asyncio.gather(*(relay.start() for relay in relays))
    clients = []
    for place in range(settings.clients):
        proxy = await stack.enter_async_context(proxy_to(NOWHERE))
        relays[place % len(relays)].lead_here(proxy)
        client = ClientNode(f"client{place + 1}", folder, proxy, settings.seed, place)
        # Some begin with a copy of the database as it was, others with nothing.
        if place == 0 or chance.random() < 0.4:
            shutil.copyfile(folder / "first.db", client.file)
        clients.append(client)
    mix = Mix(server, relays, clients)
    for client in clients:
        await client.start()
        stack.push_async_callback(client.kill)
    return mix
