"""A relay as those see it who run it: how it says that it is well."""

import asyncio
from typing import Any

from reunite_transport.messages import Commit
from reunite_transport.relay.store import StoreError
from tests.transport.relay.clients import push, todo
from tests.transport.relay.sockets import World, http_url, running


async def told(world: World) -> tuple[int, dict[str, Any]]:
    """The status and the words of /health."""
    async with world.http.get(http_url(world, "/health")) as answer:
        return answer.status, await answer.json()


def test_a_relay_that_is_well_says_so_and_how_busy_it_is() -> None:
    async def scenario() -> None:
        async with running() as world:
            assert await told(world) == (
                200,
                {
                    "status": "ok",
                    "head": 0,
                    "connections": 0,
                    "queue": 0,
                    "captured_lag_seconds": 0.0,
                },
            )
            client = await world.live(1)
            await client.say(push(1, todo(1, 1, "milk")))
            await client.next(Commit)
            world.store.gate.clear()
            world.store.began.clear()
            world.relay.service.captured_lag_seconds = 2.5
            await client.say(push(2, todo(1, 2, "bread")))
            await world.store.began.wait()
            status, said = await told(world)
            world.store.gate.set()
            assert status == 200
            assert said == {
                "status": "ok",
                "head": 1,
                "connections": 1,
                "queue": 1,
                "captured_lag_seconds": 2.5,
            }

    asyncio.run(scenario())


def test_a_relay_without_its_database_says_what_is_wrong() -> None:
    async def scenario() -> None:
        async with running() as world:
            world.store.failing = StoreError("gone")
            while (found := await told(world))[0] != 503:
                pass
            assert found[1]["status"] == "the database does not answer"
            assert found[1].keys() == {
                *("status", "head", "connections", "queue", "captured_lag_seconds")
            }

    asyncio.run(scenario())
