"""The flusher: one batch at a time, each client's order, and nobody waits for another's trouble."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from reunite.keys import pack_key
from reunite_transport.messages import Commit, EntryKind, Error, Known, Rejected
from reunite_transport.relay import flusher as flusher_module
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.backend import Edits
from reunite_transport.relay.commit import Outcome, commit_batch
from reunite_transport.relay.flusher import (
    FAILURES_MAX,
    QUEUED_BYTES_MAX,
    CommitBatch,
    Flusher,
)
from reunite_transport.relay.hub import Hub
from reunite_transport.relay.store import (
    Busy,
    RowChange,
    RowId,
    Store,
    StoreError,
    Violation,
    Written,
)
from tests.transport.relay.clients import SECONDS_MAX, TODO, Client, ready, todo
from tests.transport.relay.memory_store import START_MS, MemoryStore


@dataclass
class World:
    """A flusher at work, and every batch that it had committed, as (replica, number) pairs."""

    store: MemoryStore
    hub: Hub
    flusher: Flusher
    batches: list[list[tuple[int, int]]]
    began: asyncio.Event

    async def tried(self, times: int) -> None:
        """Wait until so many batches were tried."""
        while len(self.batches) < times:
            self.began.clear()
            await self.began.wait()

    async def client(self, replica: int) -> Client:
        greeting = await self.store.greet(replica, 0, (), 0, b"")
        client = Client(self.hub, replica, term=greeting.term).live()
        client.hear()
        return client

    def push(
        self,
        client: Client,
        number: int,
        title: str = "t",
        size: int = 1,
        *,
        key: int | None = None,
        kind: EntryKind = EntryKind.WHOLE,
    ) -> None:
        """Push a row of its own, or the one that came with `key`: its key tells author and
        number."""
        key = client.replica * 1_000 + (key or number)
        pushed = ready(number, todo(client.replica, key, title * size, at=number))
        pushed = replace(pushed, sections=(replace(pushed.sections[0], kinds=(kind,)),))
        # Of its own for each author: the same one would be the work of a copied file.
        nonce = client.replica.to_bytes(4, "big") + number.to_bytes(4, "big")
        self.flusher.push(client.member, replace(pushed, nonce=nonce))


@asynccontextmanager
async def at_work(
    commit: CommitBatch = commit_batch,
    queued_bytes_max: int = QUEUED_BYTES_MAX,
) -> AsyncIterator[World]:
    store = MemoryStore(TODO)
    batches: list[list[tuple[int, int]]] = []
    began = asyncio.Event()

    async def recorded(
        store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
    ) -> Outcome:
        batches.append([(changeset.replica, changeset.number) for changeset in batch])
        began.set()
        return await commit(store, batch, token, patiently=patiently)

    hub = Hub(head=0, registry=(TODO,))
    flusher = Flusher(
        store,
        hub,
        commit=recorded,
        delay_seconds_min=0.001,
        delay_seconds_max=0.004,
        queued_bytes_max=queued_bytes_max,
    )
    running = asyncio.create_task(flusher.run())
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield World(store, hub, flusher, batches, began)
            store.gate.set()
            flusher.stop()
            await running
    finally:
        running.cancel()


def test_what_queues_up_during_a_commit_is_the_next_batch() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            one, two = await world.client(1), await world.client(2)
            world.store.gate.clear()
            world.push(one, 1)
            await world.store.began.wait()
            for number in (1, 2):
                world.push(two, number)
            world.push(one, 2)
            world.store.gate.set()
            assert (await one.next(Commit)).acknowledged == (1,)
            assert (await one.next(Commit)).acknowledged == (2,)
            assert (await two.next(Commit)).acknowledged == ()
            assert (await two.next(Commit)).acknowledged == (1, 2)
            assert sorted(world.batches[1]) == [(1, 2), (2, 1), (2, 2)]
            assert world.flusher.queued_bytes == 0

    asyncio.run(scenario())


def test_a_batch_is_bounded_and_everybody_has_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "BATCH_ROWS_MAX", 2)

    async def scenario() -> None:
        async with at_work() as world:
            one, two = await world.client(1), await world.client(2)
            for number in range(1, 6):
                world.push(one, number)
            world.push(two, 1)
            while (await two.next(Commit)).acknowledged != (1,):
                pass
            assert world.batches[:2] == [[(1, 1), (1, 2)], [(2, 1), (1, 3)]]
            while 5 not in (await one.next(Commit)).acknowledged:
                pass

    asyncio.run(scenario())


def test_a_batch_edits_few_rows_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "BATCH_EDITS_MAX", 2)

    async def scenario() -> None:
        async with at_work() as world:
            one = await world.client(1)
            for number in range(1, 6):
                world.push(one, number)
            for number in range(6, 11):
                world.push(one, number, kind=EntryKind.PARTIAL, key=number - 5)
            while 10 not in (await one.next(Commit)).acknowledged:
                pass
            assert [len(batch) for batch in world.batches] == [7, 2, 1]

    asyncio.run(scenario())


def test_a_changeset_larger_than_a_batch_is_one_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "BATCH_BYTES_MAX", 200)

    async def scenario() -> None:
        async with at_work() as world:
            one, two = await world.client(1), await world.client(2)
            world.push(one, 1, size=500)
            world.push(two, 1)
            await one.next(Commit)
            while (await two.next(Commit)).acknowledged != (1,):
                pass
            assert world.batches == [[(1, 1)], [(2, 1)]]

    asyncio.run(scenario())


def test_a_rejection_drops_what_its_author_has_queued_and_nobody_elses() -> None:
    def check(changes: Sequence[RowChange]) -> None:
        if any("bad" in str(change.after) for change in changes):
            raise Violation("no bad titles")

    async def scenario() -> None:
        async with at_work() as world:
            world.store.check = check
            one, two = await world.client(1), await world.client(2)
            world.push(one, 1)
            world.push(one, 2, "bad")
            world.push(one, 3)
            world.push(two, 1)
            rejected = await one.next(Rejected)
            assert (rejected.number, rejected.reason) == (2, "constraint")
            while (await two.next(Commit)).acknowledged != (1,):
                pass
            assert world.flusher.queued_bytes == 0
            taken = sorted(world.store._changesets)
            assert taken == [(1, 1), (2, 1)]

    asyncio.run(scenario())


def test_an_author_reads_what_is_in_before_what_is_not() -> None:
    def check(changes: Sequence[RowChange]) -> None:
        if any("bad" in str(change.after) for change in changes):
            raise Violation("no bad titles")

    async def scenario() -> None:
        async with at_work() as world:
            world.store.check = check
            client = await world.client(1)
            world.push(client, 1)
            world.push(client, 2, "bad")
            commit = await client.next(Commit)
            assert commit.acknowledged == (1,)
            assert (await client.next(Rejected)).number == 2

    asyncio.run(scenario())


def test_a_postponed_changeset_waits_alone_and_in_order() -> None:
    locked = True

    def check(changes: Sequence[RowChange]) -> None:
        if locked and any("locked" in str(change.after) for change in changes):
            raise Busy("a backend holds it")

    async def scenario() -> None:
        nonlocal locked
        async with at_work() as world:
            world.store.check = check
            one, two = await world.client(1), await world.client(2)
            world.push(one, 1, "locked")
            world.push(one, 2)
            number = 0
            while sum((1, 1) in batch for batch in world.batches) < 4:
                number += 1
                world.push(two, number)
                while number not in (await two.next(Commit)).acknowledged:
                    pass
            assert not [pair for pair in world.store._changesets if pair[0] == 1]
            locked = False
            while (await one.next(Commit)).acknowledged != (1, 2):
                pass

    asyncio.run(scenario())


def test_a_lost_database_is_tried_again_and_connections_stay() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            one, two = await world.client(1), await world.client(2)
            world.store.failing = StoreError("gone")
            world.push(one, 1)
            world.push(two, 1)
            await world.tried(6)
            world.store.failing = None
            while (await one.next(Commit)).acknowledged != (1,):
                pass
            while (await two.next(Commit)).acknowledged != (1,):
                pass
            assert not one.session.closed
            assert all(len(batch) == 1 for batch in world.batches[1:])

    asyncio.run(scenario())


def test_a_database_that_went_back_takes_nothing_until_all_is_dropped() -> None:
    """What is queued was made in another history: there a table may have had another number."""

    async def scenario() -> None:
        async with at_work() as world:
            one, two = await world.client(1), await world.client(2)
            world.push(one, 1)
            await one.next(Commit)
            world.store.restore(0)
            world.store.commit_elsewhere()
            world.push(two, 1)
            await world.tried(3)
            assert not two.session.closed
            world.store.forget()
            world.flusher.forget_all()
            world.hub.go_back()
            assert world.flusher.queued_bytes == 0
            again = await world.client(2)
            world.push(again, 1)
            assert (await again.next(Known)).pairs == ((1, 2),)

    asyncio.run(scenario())


def test_a_commit_to_a_history_that_is_lost_meanwhile_is_said_to_nobody() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            old = await world.client(1)
            world.store.gate.clear()
            world.push(old, 1)
            await world.store.began.wait()
            world.flusher.forget_all()
            world.hub.go_back()
            new = Client(world.hub, 2).live(0)
            new.frames()
        # Leaving has finished the batch under way.
        assert world.store.token_by_seq.keys() == {0, 1}
        assert new.hear() == []
        assert world.hub.head == 0

    asyncio.run(scenario())


def test_a_commit_whose_answer_was_lost_has_its_author_ask_again() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            client = await world.client(1)
            world.store.lost_answers = 1
            world.push(client, 1)
            error = await client.next(Error)
            assert error.code == "internal"
            assert len(world.batches) == 2
            again = await world.store.greet(
                1, 0, ((1).to_bytes(4, "big") + (1).to_bytes(4, "big"),), 0, b""
            )
            assert again.known == ((1, 1),)

    asyncio.run(scenario())


def test_a_batch_that_fails_in_our_code_costs_only_its_cause_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def poisoned(
        store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
    ) -> Outcome:
        if any(changeset.replica == 1 for changeset in batch):
            raise ZeroDivisionError("ours to repair")
        return await commit_batch(store, batch, token)

    async def scenario() -> None:
        async with at_work(poisoned) as world:
            one, two = await world.client(1), await world.client(2)
            world.push(one, 1)
            world.push(two, 1)
            assert (await one.next(Error)).code == "internal"
            assert (await two.next(Commit)).acknowledged == (1,)
            assert not two.session.closed

    asyncio.run(scenario())


def test_a_changeset_that_fails_in_our_code_again_and_again_is_refused_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def poisoned(
        store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
    ) -> Outcome:
        if any(changeset.replica == 1 and changeset.number == 3 for changeset in batch):
            raise ZeroDivisionError("ours to repair")
        return await commit_batch(store, batch, token)

    async def scenario() -> None:
        async with at_work(poisoned) as world:
            two = await world.client(2)
            world.push(two, 1)
            for first in (1, 3):
                one = await world.client(1)
                for number in range(first, 6):
                    world.push(one, number)
                assert (await one.next(Error)).code == "internal"
                world.hub.leave(one.member)
                # What stands before it is in, and it is pushed again after a new Hello.
                assert (1, 2) in world.store._changesets
            one = await world.client(1)
            for number in range(3, 6):
                world.push(one, number)
            rejected = await one.next(Rejected)
            assert (rejected.number, rejected.reason) == (3, "invalid")
            assert "ZeroDivisionError" in rejected.message
            assert not one.session.closed
            assert world.flusher.queued_bytes == 0
            assert (2, 1) in world.store._changesets

    asyncio.run(scenario())


def test_what_cannot_be_folded_is_told_and_refuses_nobodys_push(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    real = Edits.applied
    failed = asyncio.Event()
    times = 0

    def broken(*arguments: Any) -> Any:
        nonlocal times
        times += 1
        if times > FAILURES_MAX + 1:
            failed.set()
        raise ZeroDivisionError("ours to repair")

    async def scenario() -> None:
        async with at_work() as world:
            one = await world.client(1)
            monkeypatch.setattr(Edits, "applied", broken)
            wrote = Written(TODO.id, 1, START_MS << 16, None, {1: 7, 2: "theirs"})
            world.store.captured.append(wrote)
            world.store.keeps_captured = True
            world.push(one, 1)
            await failed.wait()
            assert world.flusher.unfoldable
            monkeypatch.setattr(Edits, "applied", real)
            world.store.keeps_captured = False
            assert (await one.next(Commit)).acknowledged == (1,)
            assert not world.flusher.unfoldable
            assert RowId(TODO.id, pack_key((7,))) in world.store.documents

    asyncio.run(scenario())


def test_only_the_latest_failures_are_remembered(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(flusher_module, "FAILED_MAX", 3)

    async def poisoned(
        store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
    ) -> Outcome:
        raise ZeroDivisionError("ours to repair")

    async def scenario() -> None:
        async with at_work(poisoned) as world:
            for replica in range(1, 7):
                client = await world.client(replica)
                world.push(client, 1)
                await client.next(Error)
            assert [replica for replica, _ in world.flusher._failures] == [4, 5, 6]

    asyncio.run(scenario())


def test_an_older_session_is_fenced_by_its_term() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            client = await world.client(1)
            await world.store.greet(1, 0, (), 0, b"")
            world.push(client, 1)
            assert (await client.next(Error)).code == "fenced"
            assert world.store._changesets == {}
            assert world.flusher.queued_bytes == 0

    asyncio.run(scenario())


def test_what_a_forgotten_member_has_in_a_batch_is_committed_and_said_to_nobody() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            one, two = await world.client(1), await world.client(2)
            world.store.gate.clear()
            world.push(one, 1)
            world.push(one, 2)
            await world.store.began.wait()
            world.flusher.forget(one.member)
            world.hub.leave(one.member)
            assert world.flusher.queued_bytes == 0
            world.store.gate.set()
            assert len((await two.next(Commit)).sections[0].keys) == 2
            assert one.hear() == []

    asyncio.run(scenario())


def test_stopping_finishes_the_batch_under_way_and_takes_no_other() -> None:
    async def scenario() -> None:
        async with at_work() as world:
            client = await world.client(1)
            world.store.gate.clear()
            world.push(client, 1)
            await world.store.began.wait()
            world.push(client, 2)
            world.flusher.stop()
            world.store.gate.set()
            assert (await client.next(Commit)).acknowledged == (1,)
        assert world.batches == [[(1, 1)]]

    asyncio.run(scenario())


def test_only_who_fills_the_queue_waits_for_room() -> None:
    async def scenario() -> None:
        async with at_work(queued_bytes_max=1_000) as world:
            one, two = await world.client(1), await world.client(2)
            world.store.gate.clear()
            world.push(one, 1, size=5_000)
            world.push(two, 1)
            await world.store.began.wait()
            await world.flusher.wait_for_room(two.member)
            waiting = asyncio.create_task(world.flusher.wait_for_room(one.member))
            await asyncio.sleep(0)
            assert not waiting.done()
            world.store.gate.set()
            await waiting

    asyncio.run(scenario())
