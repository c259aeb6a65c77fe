"""Faults: what can go wrong in a world. Each seed draws its own mix of them ("swarm testing").

A fault is a task that, while the world is in its first phase, does harm once, and undoes what does
not undo itself. It says so by `note_fault`, once it has found whom to befall. Each takes all its
chance from its own event, so that it stays as it is when others are left out. `heal` of the world
ends them all.
"""

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from reunite.keys import stored_key
from reunite.schema import Table, quoted
from reunite_simulations import observe
from reunite_simulations.chance import EventChance
from reunite_simulations.network import Weather
from reunite_simulations.nodes import Crashed, copy_files
from reunite_simulations.workload import APPEND_TABLE

if TYPE_CHECKING:
    from reunite_simulations.nodes import Client, RelayNode
    from reunite_simulations.world import World

# A client that loses power when it writes writes within this time; what it has sent is so late, and
# relays take it for gone a little later; and of its WAL so much may be what it wrote last.
WRITES_WITHIN_SECONDS: Final = 30.0
LATE_SECONDS_MAX: Final = 14.0
SHARE_OF_LAST: Final = 0.02
# So many crashes at a statement are losses of power.
POWERLESS_CRASHES: Final = 0.3
# A relay that dies at a statement of a commit dies within this time, commits or not.
COMMITS_WITHIN_SECONDS: Final = 20.0
# What apps add, so that two that add a column of one name add the same; and how many of all
# migrations make a table anew.
ADDED: Final = (
    ("added0", "TEXT"),
    ("added1", "TEXT DEFAULT 'x'"),
    ("added2", "INTEGER NOT NULL DEFAULT 5"),
    ("added3", "COUNTER NOT NULL DEFAULT 2"),
    ("added4", "CRDT_TEXT"),
)
REBUILDS: Final = 0.3

Fault: TypeAlias = Callable[["World", EventChance], Coroutine[Any, Any, None]]


async def partition(world: "World", chance: EventChance) -> None:
    """A client and a relay do not reach each other, in one direction or in both."""
    client, relay = chance.pick(world.clients), chance.pick(world.relays)
    back = chance.random() < 0.6
    pair = (client.name, relay.name) if chance.random() < 0.5 else (relay.name, client.name)
    world.note_fault(chance)
    world.network.cut(*pair, back=back)
    await chance.pause(1, 60)
    world.network.mend(*pair, back=back)


async def island(world: "World", chance: EventChance) -> None:
    """All relays are away for some clients."""
    some = chance.pick_some(world.clients, 0.5)
    if not some:
        return
    world.note_fault(chance)
    for client in some:
        for relay in world.relays:
            world.network.cut(client.name, relay.name)
    await chance.pause(5, 90)
    for client in some:
        for relay in world.relays:
            world.network.mend(client.name, relay.name)


async def weather(world: "World", chance: EventChance) -> None:
    """The network is slow, narrow, loses packets."""
    bad = Weather(
        delay=chance.uniform(0.01, 0.5),
        jitter=chance.uniform(0, 0.5),
        loss=chance.uniform(0, 0.2),
        bytes_per_second=chance.choice((2e3, 2e4, 1e6)),
    )
    world.note_fault(chance)
    world.network.begin(bad)
    await chance.pause(5, 60)
    world.network.end(bad)


async def replay(world: "World", chance: EventChance) -> None:
    """Frames towards relays come twice."""
    bad = Weather(replay=chance.uniform(0.01, 0.2))
    world.note_fault(chance)
    world.network.begin(bad)
    await chance.pause(5, 30)
    world.network.end(bad)


async def reset(world: "World", chance: EventChance) -> None:
    """A connection is cut while both sides live."""
    connections = list(world.network.connections.values())
    if connections:
        world.note_fault(chance)
        connection = chance.pick(connections)
        chance.pick([connection.client_end, connection.relay_end]).vanish()


async def slow(world: "World", chance: EventChance) -> None:
    """A client or a relay reads slowly."""
    nodes: list[Client | RelayNode] = [*world.clients, *world.relays]
    name = chance.pick(nodes).name
    seconds = chance.uniform(0.05, 1.0)
    world.note_fault(chance)
    world.network.slow_down(name, seconds)
    world.note("slow", name)
    await chance.pause(5, 40)
    world.network.speed_up(name, seconds)


async def clock(world: "World", chance: EventChance) -> None:
    """A machine's clock steps, or runs at another speed."""
    client = chance.pick(world.clients)
    kind = chance.random()
    world.note_fault(chance)
    world.history.mistime(client.name, client.settled_at)
    if kind < 0.3:
        client.clock.offset_ms += chance.uniform(-5_000, 5_000)
    elif kind < 0.6:
        client.clock.offset_ms += chance.choice((-1, 1)) * chance.uniform(60, 3600) * 1e3
    elif kind < 0.8:
        client.clock.offset_ms += chance.choice((-3, -1, 2)) * 365 * 86_400_000
    else:
        now = client.clock()
        client.clock.drift = chance.uniform(-0.01, 0.01)
        client.clock.offset_ms += now - client.clock()
    world.note("clock", client.name, client.clock() - world.true_ms())


async def crash(world: "World", chance: EventChance) -> None:
    """A client's process dies at one of its next statements, or its machine loses its power."""
    client = _pick_up(world, chance)
    if client is not None:
        world.note_fault(chance)
        cut = chance.uniform(0.001, 1.0) if chance.random() < POWERLESS_CRASHES else 0.0
        if chance.random() < 0.5:
            cut *= SHARE_OF_LAST
        client.crash_at(chance.randint(1, 200), cut=cut)


async def power(world: "World", chance: EventChance) -> None:
    """A client's machine loses its power, and the end of its WAL."""
    client = _pick_up(world, chance)
    if client is None:
        return
    world.note_fault(chance)
    cut = chance.uniform(0.001, 1.0)
    if chance.random() < 0.7:
        # When the app has just written: of that the file loses all, and the relay hears of it when
        # the client has perhaps come back and written something else.
        life, written = client.lives, asyncio.Event()
        late = chance.uniform(2, LATE_SECONDS_MAX)

        def hold() -> None:
            world.network.hold(client.name, late)
            written.set()

        listening = client.on_change(hold)
        with suppress(TimeoutError):
            async with asyncio.timeout(WRITES_WITHIN_SECONDS):
                await written.wait()
        if not client.up or client.lives != life:
            return
        listening()
        await chance.pause(0, 0.5)
        cut *= SHARE_OF_LAST
    if client.up:
        client.kill(cut=cut)
        client.relay = chance.pick(world.relays).name
        world.died(client)


async def disk(world: "World", chance: EventChance) -> None:
    """A client's disk is nearly full."""
    client = _pick_up(world, chance)
    if client is None:
        return
    life = client.lives
    world.note_fault(chance)
    client.tight += 1
    client.limit_pages(chance.randint(0, 3))
    world.note("disk", client.name)
    await chance.pause(2, 30)
    if client.up and client.lives == life:
        client.tight -= 1
        if not client.tight:
            client.limit_pages(None)


async def relay_disk(world: "World", chance: EventChance) -> None:
    """The disk of the relays' database is nearly full."""
    up = [(relay, relay.service) for relay in world.relays if relay.up]
    if not up:
        return
    room = chance.randint(0, 3)
    world.note_fault(chance)
    for relay, _ in up:
        relay.tight += 1
        relay.limit_pages(room)
        world.note("disk", relay.name)
    await chance.pause(2, 30)
    for relay, service in up:
        if relay.service is service:
            relay.tight -= 1
            if not relay.tight:
                relay.limit_pages(None)


async def copied(world: "World", chance: EventChance) -> None:
    """A copy of a client's file is used beside it."""
    client = _pick_up(world, chance)
    if client is not None and len(world.clients) < world.settings.replicas + 2:
        world.note_fault(chance)
        world.add_copy(client, chance)


async def backup(world: "World", chance: EventChance) -> None:
    """A client's file is replaced by a backup of it."""
    client = _pick_up(world, chance)
    if client is None:
        return
    world.note_fault(chance)
    path = client.path.with_name(f"{client.name}-backup{chance.number}.db")
    client.copy_to(path)
    taken, settled_at, lost_files = world.now(), client.settled_at, len(client.lost_files)
    await chance.pause(5, 60)
    if client.up:
        # It may be a backup of a file that was lost meanwhile, with its machine.
        client.back_again = client.lost_files[lost_files:]
        world.history.doubt(client.name, taken)
        world.rolled_back.add(client.name)
        # What was pending then is so again, and may have been sent since, as by a copy.
        world.twins.add(client.name)
        client.settled_at = settled_at
        if client.name in world.history.wrong_clocks:
            world.history.mistime(client.name, settled_at)
        client.restore(path)
        world.died(client)


async def second(world: "World", chance: EventChance) -> None:
    """A second sync of a client's file comes and goes beside the first."""
    client = _pick_up(world, chance)
    if client is None:
        return
    world.note_fault(chance)
    relay, life = chance.pick(world.relays).name, client.lives
    for _ in range(chance.randint(1, 10)):
        if not client.up or client.lives != life:
            return
        world.note("second", client.name, relay)
        async with client.second_sync(relay, chance):
            await chance.pause(0.2, 15)


async def reload(world: "World", chance: EventChance) -> None:
    """A client loads everything from the relay once more."""
    client = _pick_up(world, chance)
    if client is None:
        return
    # The disk may be full, or somebody else writing.
    with suppress(sqlite3.Error, Crashed):
        client.alive(client.replica.reload)
        world.note_fault(chance)
        world.note("reload", client.name)


async def lost(world: "World", chance: EventChance) -> None:
    """A client's machine is gone with its file, and its user goes on with an empty one."""
    client = _pick_up(world, chance)
    if client is None:
        return
    world.note_fault(chance)
    history, file = world.history, f"{client.name} until {chance.event}"
    # Gone is what the relay has not acknowledged, and what it was to get again after a restore.
    standing = observe.standing(client.app)
    if standing.queued:
        history.doubt(client.name, client.settled_at)
    for strike in history.strikes:
        if strike.kind.startswith("relay-restore"):
            history.doubt(client.name, strike.at)
    # And the file's own words on what was refused.
    refused = {(table, str(key)) for table, key, _, _ in observe.rejected(client.app)}
    for made in history.transactions:
        if made.client == client.name and any(
            (write.table, str(stored_key(write.key))) in refused for write in made.writes
        ):
            made.doubtful = True
    history.retire(client.name, file)
    client.lost_files.append(file)
    world.rolled_back |= {client.name, file}
    if client.name in world.twins:
        world.twins.add(file)
    client.lose(chance.number)
    world.died(client)


async def locked(world: "World", chance: EventChance) -> None:
    """Another program holds a client's file in a transaction."""
    client = _pick_up(world, chance)
    if client is None:
        return
    world.note_fault(chance)
    stranger = client.stranger()
    try:
        # Another such program may hold it already.
        with suppress(sqlite3.OperationalError):
            stranger.execute("BEGIN IMMEDIATE")
            world.note("locked", client.name)
        await chance.pause(0.1, 10)
    finally:
        stranger.close()


async def relay_crash(world: "World", chance: EventChance) -> None:
    """A relay dies, often at a statement of a commit, and comes back."""
    relay = chance.pick(world.relays)
    if not relay.up:
        return
    world.note_fault(chance)
    service, at_commit = relay.service, chance.random() < 0.7
    if at_commit:
        died = relay.crash_at(chance.randint(1, 60))
        with suppress(TimeoutError):
            async with asyncio.timeout(COMMITS_WITHIN_SECONDS):
                await died.wait()
    if relay.service is service:
        await relay.kill()
    await chance.pause(0.1, 20)
    await world.start_relay(relay)


async def relay_roll(world: "World", chance: EventChance) -> None:
    """A relay is stopped in order and started again, as a new version is rolled out."""
    relay = chance.pick(world.relays)
    if relay.up:
        world.note_fault(chance)
        await relay.stop()
        await chance.pause(0.1, 5)
        await world.start_relay(relay)


async def relay_restore(world: "World", chance: EventChance) -> None:
    """The relays' database breaks, and a backup of it takes its place."""
    backup = world.folder / f"relay-backup{chance.number}.db"
    copy_files(world.folder / "relay.db", backup)
    taken = world.now()
    if chance.random() < 0.5:
        # Under relays that run. One of them does not reach the database for a while, in which the
        # other may commit over the lost numbers.
        await chance.pause(1, 20)
        relay = chance.pick(world.relays)
        relay.reach_store(False)
        try:
            world.restore_store_under_relays(backup, taken)
            await chance.pause(0, 40)
        finally:
            relay.reach_store(True)
        return
    await chance.pause(5, 60)
    await world.restore_store(backup, taken)
    await chance.pause(0.1, 10)
    for relay in world.relays:
        await world.start_relay(relay)


async def migrate(world: "World", chance: EventChance) -> None:
    """One client's app is updated, and adds a column or rebuilds a table; the others have the
    column later, or never."""
    client = _pick_up(world, chance)
    if client is None or not world.has_table(client, APPEND_TABLE):
        return
    table = chance.choice(world.own_tables(client))
    name, declared = chance.choice(ADDED)
    # The disk may be full, or somebody else writing.
    with suppress(sqlite3.Error, Crashed):
        if chance.random() < REBUILDS:
            client.alive(_rebuild, client.app, table)
            world.note("rebuilt", client.name, table.name)
        elif table.column(name) is None:
            added = f"ALTER TABLE {quoted(table.name)} ADD COLUMN {name} {declared}"
            client.alive(client.app.execute, added)
            world.note("migrated", client.name, table.name, name)
        else:
            return
        world.note_fault(chance)


def _rebuild(conn: sqlite3.Connection, table: Table) -> None:
    """Make a table anew with the same columns and rows, as migration tools change one. All its
    triggers are gone then, and those of the app are made again.

    Source: "ALTER TABLE", 7, in SQLite's documentation."""
    (sql,) = conn.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
    ).fetchone()
    belongings = conn.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type IN ('index', 'trigger')"
        " AND sql IS NOT NULL AND name NOT GLOB '_reunite*'",
        (table.name,),
    ).fetchall()
    columns = ", ".join(quoted(column.name) for column in table.columns)
    conn.execute("PRAGMA foreign_keys = OFF")
    try:
        conn.execute("BEGIN IMMEDIATE")
        conn.execute(f"CREATE TABLE rebuilt {sql[sql.index('(') :]}")
        conn.execute(f"INSERT INTO rebuilt ({columns}) SELECT {columns} FROM {quoted(table.name)}")
        conn.execute(f"DROP TABLE {quoted(table.name)}")
        conn.execute(f"ALTER TABLE rebuilt RENAME TO {quoted(table.name)}")
        for (belonging,) in belongings:
            conn.execute(belonging)
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        conn.execute("PRAGMA foreign_keys = ON")


async def roam(world: "World", chance: EventChance) -> None:
    """A client goes to another relay."""
    client = chance.pick(world.clients)
    world.note_fault(chance)
    client.relay = chance.pick(world.relays).name
    world.note("roam", client.name, client.relay)
    for connection in list(world.network.connections.values()):
        if connection.client_end.name == client.name:
            connection.client_end.vanish()


def _pick_up(world: "World", chance: EventChance) -> "Client | None":
    """A client that is up, if there is any."""
    up = [client for client in world.clients if client.up]
    return chance.pick(up) if up else None


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
    "power": (power, 60.0, "crash"),
    "disk": (disk, 80.0, "disk"),
    "locked": (locked, 60.0, "disk"),
    "lost": (lost, 200.0, "crash"),
    "relay-disk": (relay_disk, 120.0, "disk"),
    "copied": (copied, 200.0, "copy"),
    "backup": (backup, 150.0, "copy"),
    "second": (second, 80.0, "copy"),
    "reload": (reload, 120.0, "copy"),
    "relay-crash": (relay_crash, 60.0, "relay"),
    "relay-roll": (relay_roll, 90.0, "relay"),
    "roam": (roam, 60.0, "relay"),
    "relay-restore": (relay_restore, 200.0, "relay"),
    "migrate": (migrate, 60.0, "schema"),
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
    """Let one kind of fault happen now and then, until cancelled. One that lasts does not put off
    the next."""
    fault, seconds, _ = FAULTS[name]
    async with asyncio.TaskGroup() as lasting:
        for number in itertools.count(1):
            chance = EventChance(world.settings.seed, name, number)
            await asyncio.sleep(chance.expovariate(1 / seconds))
            if world.happens(chance.event):
                if name.startswith("relay-restore"):
                    # It always finds whom to befall.
                    world.note_fault(chance)
                lasting.create_task(fault(world, chance))
