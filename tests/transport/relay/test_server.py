"""The relay over real sockets: what clients say to each other through it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from reunite.schema import Column, Table
from reunite_transport.messages import (
    Barrier,
    Behind,
    Commit,
    Describe,
    Error,
    Known,
    Page,
    Pull,
    Reached,
    Registry,
    Rejected,
    Resume,
    Verdict,
)
from reunite_transport.relay.store import RowChange, Violation
from tests.transport.relay.clients import TODO, hello, push, todo
from tests.transport.relay.memory_store import MemoryStore
from tests.transport.relay.sockets import QUICK, running


def test_a_push_is_acknowledged_and_reaches_the_others() -> None:
    async def scenario() -> None:
        async with running() as world:
            one, two = await world.live(1), await world.live(2)
            key, document = todo(1, 1, "milk")
            await one.say(push(1, (key, document)))
            mine, theirs = await one.next(Commit), await two.next(Commit)
            assert (mine.seq, mine.acknowledged, mine.sections) == (1, (1,), ())
            assert (theirs.acknowledged, theirs.sections[0].keys) == ((), (key,))
            assert theirs.sections[0].documents == (document,)
            late = await world.connect()
            welcome = await late.greet(hello(3))
            assert (welcome.head, welcome.realm) == (1, world.store.realm)
            assert [table.name for table in welcome.tables] == ["todo"]
            (page,) = await late.pull()
            assert (page.seq, page.token) == (1, mine.token)
            assert page.sections[0].documents == (document,)

    asyncio.run(scenario())


def test_a_rejected_changeset_is_corrected_and_pushed_again() -> None:
    def check(changes: Sequence[RowChange]) -> None:
        if any("bad" in str(change.after) for change in changes):
            raise Violation("no bad titles")

    async def scenario() -> None:
        async with running() as world:
            world.store.check = check
            client = await world.live(1)
            await client.say(push(1, todo(1, 1, "bad")), push(2, todo(1, 2, "good")))
            rejected = await client.next(Rejected)
            assert (rejected.number, rejected.reason) == (1, "constraint")
            assert rejected.message == "no bad titles"
            await client.say(Resume(1), push(1, todo(1, 2, "good")))
            assert (await client.next(Commit)).acknowledged == (1,)

    asyncio.run(scenario())


def test_pages_are_bounded_and_end_complete() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, page_rows_max=3)) as world:
            client = await world.live(1)
            await client.say(push(1, *(todo(1, key, "t") for key in range(10))))
            await client.next(Commit)
            other = await world.connect()
            await other.greet(hello(2))
            pages = await other.pull()
            assert [sum(len(s.keys) for s in page.sections) for page in pages] == [3, 3, 3, 1]
            assert [page.complete for page in pages] == [False, False, False, True]

    asyncio.run(scenario())


def test_a_second_socket_of_a_replica_ends_the_first() -> None:
    async def scenario() -> None:
        async with running() as world:
            first = await world.live(1)
            second = await world.live(1)
            assert await first.error() == "fenced"
            assert await first.closed() == 1008
            await second.say(push(1, todo(1, 1, "milk")))
            assert (await second.next(Commit)).acknowledged == (1,)

    asyncio.run(scenario())


def test_a_push_of_a_half_open_twin_does_not_count() -> None:
    async def scenario() -> None:
        store = MemoryStore(TODO)
        async with running(store=store) as here, running(store=store) as there:
            twin = await here.live(1)
            current = await there.live(1)
            await twin.say(push(1, todo(1, 1, "of the twin")))
            assert await twin.error() == "fenced"
            await current.say(push(1, todo(1, 1, "milk")))
            assert (await current.next(Commit)).acknowledged == (1,)

    asyncio.run(scenario())


def test_a_copied_file_forks_and_goes_on_under_a_new_id() -> None:
    async def scenario() -> None:
        async with running() as world:
            original = await world.live(1)
            await original.say(push(1, todo(1, 1, "milk")))
            await original.next(Commit)
            copy = await world.connect()
            welcome = await copy.greet(replace(hello(1), nonces=(b"another8",)))
            assert welcome.verdict is Verdict.FORK
            assert (await copy.greet(hello(2))).verdict is Verdict.CONTINUE
            await copy.pull()
            await copy.say(replace(push(1, todo(2, 2, "bread")), nonce=b"another8"))
            assert (await copy.next(Commit)).acknowledged == (1,)

    asyncio.run(scenario())


def test_a_copied_file_that_pushes_what_its_twin_has_pushed_hears_that_it_is_in() -> None:
    async def scenario() -> None:
        async with running() as world:
            original = await world.live(1)
            await original.say(push(1, todo(1, 1, "milk")))
            await original.next(Commit)
            copy = await world.connect()
            await copy.greet(hello(2))
            await copy.pull()
            await copy.say(push(1, todo(2, 1, "milk")), push(2, todo(2, 2, "bread")))
            # One after the other or at once, but never a later one before an earlier one.
            known = list((await copy.next(Known)).pairs)
            while len(known) < 2:
                known += (await copy.next(Known)).pairs
            assert [number for number, _ in known] == [1, 2]
            await copy.next(Behind)

    asyncio.run(scenario())


def test_a_reconnect_learns_what_is_in() -> None:
    async def scenario() -> None:
        async with running() as world:
            client = await world.live(1)
            await client.say(push(1, todo(1, 1, "milk")))
            await client.next(Commit)
            await client.socket.close()
            again = await world.connect()
            assert (await again.greet(hello(1, pending=2))).known == ((1, 1),)
            await again.say(push(2, todo(1, 2, "bread")))
            assert (await again.next(Known)).pairs == ((2, 2),)

    asyncio.run(scenario())


def test_another_realm_and_a_lost_history_are_told_apart() -> None:
    async def scenario() -> None:
        async with running() as world:
            stranger = await world.connect()
            await stranger.say(replace(hello(1), realm=bytes(16)))
            assert await stranger.error() == "realm"
            await stranger.closed()
            right = await world.connect()
            for lost in (
                replace(hello(1), seq=99, token=b"token 88"),
                replace(hello(1), acknowledged=5),
            ):
                assert (await right.greet(lost)).verdict is Verdict.LOST
            await right.greet(replace(hello(1), realm=world.store.realm))

    asyncio.run(scenario())


NEW = Table("list", (Column("id", 1, "INTEGER", "integer", key=1),))


def test_a_described_table_reaches_everybody() -> None:
    async def scenario() -> None:
        async with running() as world:
            one, two = await world.live(1), await world.live(2)
            await one.say(Describe((NEW,)))
            for registry in (await one.next(Registry), await two.next(Registry)):
                assert {table.name: table.id for table in registry.tables} == {"todo": 1, "list": 2}
            await one.say(Describe((NEW,)))
            assert len((await one.next(Registry)).tables) == 2

    asyncio.run(scenario())


def test_a_relay_that_creates_no_tables_says_so() -> None:
    async def scenario() -> None:
        async with running(create_tables=False) as world:
            client = await world.live(1)
            await client.say(Describe((TODO,)))
            assert len((await client.next(Registry)).tables) == 1
            await client.say(Describe((NEW,)))
            error = await client.message()
            assert isinstance(error, Error)
            assert error.code == "unknown-table"
            assert "'list'" in error.message

    asyncio.run(scenario())


def test_commits_and_tables_of_another_relay_are_noticed() -> None:
    async def scenario() -> None:
        store = MemoryStore(TODO)
        async with running(store=store) as here, running(store=store) as there:
            reader, writer = await here.live(1), await there.live(2)
            await writer.say(Describe((NEW,)))
            await writer.next(Registry)
            await writer.say(push(1, todo(2, 1, "x"), table=2))
            commit = await writer.next(Commit)
            assert (await reader.next(Behind)).seq == commit.seq
            await reader.say(Pull(0, b""))
            tables: tuple[Table, ...] = ()
            while not isinstance(message := await reader.message(), Page):
                if isinstance(message, Registry):
                    tables = message.tables
            assert [table.name for table in tables] == ["todo", "list"]
            assert message.sections[0].table == 2

    asyncio.run(scenario())


def test_a_barrier_holds_what_was_committed_anywhere() -> None:
    async def scenario() -> None:
        store = MemoryStore(TODO)
        slow = replace(QUICK, poll_seconds=1_000)
        async with running(store=store, limits=slow) as here, running(store=store) as there:
            reader, writer = await here.live(1), await there.live(2)
            await writer.say(push(1, todo(2, 1, "milk")))
            await writer.next(Commit)
            await reader.say(Barrier(7))
            assert (await reader.next(Behind)).seq == 1
            assert await reader.next(Reached) == Reached(7, 1)

    asyncio.run(scenario())
