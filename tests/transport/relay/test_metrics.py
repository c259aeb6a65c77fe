"""What a relay counts of its work, as Prometheus reads it."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reunite_transport.messages import Commit, Rejected
from reunite_transport.relay.metrics import COMMIT_SECONDS, CONTENT_TYPE, Metrics
from reunite_transport.relay.store import Busy, Look, RowChange, StoreError, Violation
from reunite_transport.relay.tally import Tally
from tests.transport.relay.clients import push, todo
from tests.transport.relay.memory_store import MemoryStore
from tests.transport.relay.sockets import QUICK, World, http_url, running

README = Path(__file__).resolve().parents[3] / "README.md"


def samples(text: str) -> dict[str, float]:
    """The values by name, with the labels where there are any."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def scraped(world: World) -> dict[str, float]:
    async with world.http.get(http_url(world, "/metrics")) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
        return samples(await answer.text())


async def scraped_when(world: World, name: str, value: float) -> dict[str, float]:
    """The first scrape in which a number is so."""
    while (found := await scraped(world)).get(name) != value:
        pass
    return found


def test_commits_and_their_rows_are_counted() -> None:
    async def scenario() -> None:
        async with running() as world:
            client = await world.live(1)
            before = await scraped(world)
            await client.say(push(1, todo(1, 1, "milk"), todo(1, 2, "bread")))
            await client.next(Commit)
            await client.say(push(2, todo(1, 3, "tea")))
            await client.next(Commit)
            found = await scraped(world)
            assert before["reunite_commits_total"] == before["reunite_commit_seconds_count"] == 0
            assert found["reunite_commits_total"] == 2
            assert found["reunite_changesets_committed_total"] == 2
            assert found["reunite_rows_committed_total"] == 3
            assert found["reunite_commit_seconds_count"] == 2
            assert found["reunite_commit_seconds_bucket{le=+Inf}"] == 2
            assert 0 < found["reunite_commit_seconds_sum"] < 20
            assert found["reunite_head_seq"] == 2
            assert found["reunite_commit_failures_total"] == 0

    asyncio.run(scenario())


def test_commit_times_are_told_apart_from_a_millisecond_to_a_minute() -> None:
    assert (COMMIT_SECONDS[0], COMMIT_SECONDS[-1]) == (0.001, 60.0)
    assert list(COMMIT_SECONDS) == sorted(COMMIT_SECONDS)
    metrics = Metrics()
    metrics.committed(changesets=1, rows=1, seconds=0.02)
    found = samples(metrics.text().decode())
    assert found["reunite_commit_seconds_bucket{le=0.01}"] == 0
    assert found["reunite_commit_seconds_bucket{le=0.025}"] == 1


def test_rejections_are_counted_by_their_reason() -> None:
    def check(changes: Sequence[RowChange]) -> None:
        if any("bad" in str(change.after) for change in changes):
            raise Violation("no bad titles")

    async def scenario() -> None:
        async with running() as world:
            world.store.check = check
            one, two = await world.live(1), await world.live(2)
            await one.say(push(1, todo(1, 1, "bad")))
            await one.next(Rejected)
            await two.say(push(1, todo(2, 2, "of tomorrow", at=100_000_000)))
            await two.next(Rejected)
            found = await scraped(world)
            assert found["reunite_rejections_total{reason=constraint}"] == 1
            assert found["reunite_rejections_total{reason=clock-ahead}"] == 1
            assert found["reunite_commits_total"] == 0

    asyncio.run(scenario())


def test_what_has_to_wait_is_counted() -> None:
    async def scenario() -> None:
        async with running() as world:
            locked = iter([True, True, False])

            def check(changes: Sequence[RowChange]) -> None:
                if next(locked):
                    raise Busy("a backend holds the row")

            world.store.check = check
            client = await world.live(1)
            await client.say(push(1, todo(1, 1, "milk")))
            await client.next(Commit)
            found = await scraped(world)
            assert found["reunite_postponed_total"] == 2
            assert found["reunite_commit_failures_total"] == 0

    asyncio.run(scenario())


def test_batches_that_fail_are_counted_and_the_database_is_said_to_be_away() -> None:
    async def scenario() -> None:
        async with running() as world:
            client = await world.live(1)
            assert (await scraped(world))["reunite_database_answers"] == 1
            world.store.failing = StoreError("gone")
            await client.say(push(1, todo(1, 1, "milk")))
            await scraped_when(world, "reunite_commit_failures_total", 1)
            await scraped_when(world, "reunite_database_answers", 0)
            world.store.come_back()
            await client.next(Commit)
            await scraped_when(world, "reunite_database_answers", 1)

    asyncio.run(scenario())


def test_what_is_queued_is_shown_until_it_has_its_verdict() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, poll_seconds=60.0)) as world:
            client = await world.live(1)
            world.store.gate.clear()
            await client.say(push(1, todo(1, 1, "milk")), push(2, todo(1, 2, "bread")))
            found = await scraped_when(world, "reunite_queued_changesets", 2)
            assert found["reunite_queued_bytes"] == world.relay.service.flusher.queued_bytes > 0
            world.store.gate.set()
            while 2 not in (await client.next(Commit)).acknowledged:
                pass
            found = await scraped(world)
            assert (found["reunite_queued_changesets"], found["reunite_queued_bytes"]) == (0, 0)

    asyncio.run(scenario())


def test_connections_and_pages_of_the_feed_are_counted() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, page_rows_max=3)) as world:
            author = await world.live(1)
            await author.say(push(1, *(todo(1, key, "t") for key in range(10))))
            await author.next(Commit)
            before = await scraped(world)
            reader = await world.live(2)
            found = await scraped(world)
            assert (before["reunite_connections"], found["reunite_connections"]) == (1, 2)
            assert before["reunite_feed_pages_total"] == 1  # the author's, which was empty
            assert found["reunite_feed_pages_total"] == 5
            assert found["reunite_feed_rows_total"] == 10
            await reader.socket.close()
            await scraped_when(world, "reunite_connections", 1)

    asyncio.run(scenario())


def test_rows_of_a_backend_are_shown_while_they_wait_and_when_they_are_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with running() as world:
            service = world.relay.service
            found = await scraped(world)
            assert found["reunite_captured_rows"] == found["reunite_captured_lag_seconds"] == 0
            look = await service.store.look()

            async def waiting() -> Look:
                return replace(look, waiting=7, lag_seconds=1.5)

            monkeypatch.setattr(service.store, "look", waiting)
            monkeypatch.setattr(service.flusher, "fold_soon", lambda _: None)
            service.metrics.folded(3)
            found = await scraped_when(world, "reunite_captured_rows", 7)
            assert found["reunite_captured_lag_seconds"] == 1.5
            assert found["reunite_backend_rows_folded_total"] == 3

    asyncio.run(scenario())


def test_two_relays_in_one_process_count_for_themselves() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with running() as here, running(store=store) as there:
            client = await here.live(1)
            await client.say(push(1, todo(1, 1, "milk")))
            await client.next(Commit)
            assert (await scraped(here))["reunite_commits_total"] == 1
            assert (await scraped(there))["reunite_commits_total"] == 0

    asyncio.run(scenario())


def test_everything_that_can_be_counted_is() -> None:
    def methods(kind: type[Any]) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Tally)
    assert methods(Tally) <= methods(Metrics)


def test_every_number_is_explained_in_the_readme() -> None:
    async def scenario() -> set[str]:
        async with running() as world:
            async with world.http.get(http_url(world, "/metrics")) as answer:
                families = text_string_to_metric_families(await answer.text())
            return {
                f"{family.name}{'_total' if family.type == 'counter' else ''}"
                for family in families
                if family.name.startswith("reunite_") and not family.name.endswith("_created")
            }

    shown = asyncio.run(scenario())
    assert len(shown) >= 15
    assert set(re.findall(r"`(reunite_\w+)`", README.read_text(encoding="utf-8"))) >= shown
