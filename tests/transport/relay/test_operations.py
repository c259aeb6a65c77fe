"""A relay as those see it who run it: how it says that it is well, and how it stops."""

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from reunite_transport.messages import Commit
from reunite_transport.relay.store import StoreError
from tests.transport.relay.clients import SECONDS_MAX, push, todo
from tests.transport.relay.sockets import QUICK, Socket, World, http_url, running

# Long enough for a look at it.
DRAINING = replace(QUICK, drain_seconds=SECONDS_MAX)


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
                    "tables": {},
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
                "tables": {},
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
                *("status", "head", "connections", "queue", "captured_lag_seconds", "tables")
            }

    asyncio.run(scenario())


async def stopping(world: World) -> tuple[Socket, asyncio.Task[None]]:
    """Begin to stop the relay while a commit of a client is under way, which waits for the gate."""
    client = await world.live(1)
    world.store.gate.clear()
    world.store.began.clear()
    await client.say(push(1, todo(1, 1, "milk")))
    await world.store.began.wait()
    closing = asyncio.create_task(world.relay.close())
    # One turn of the loop, in which it begins to.
    await asyncio.sleep(0)
    return client, closing


def test_a_relay_that_stops_says_so_at_once_and_until_its_end() -> None:
    async def scenario() -> None:
        async with running(limits=DRAINING) as world, aiohttp.ClientSession() as other:
            client, closing = await stopping(world)
            status, said = await told(world)
            assert (status, said["status"]) == (503, "draining")
            assert (said["connections"], said["queue"]) == (1, 1)
            async with world.http.get(http_url(world, "/metrics")) as answer:
                assert answer.status == 200
            # Also to one that asks for the first time.
            async with other.get(http_url(world, "/health")) as answer:
                assert answer.status == 503
            world.store.gate.set()
            await client.closed()
            await closing
            with pytest.raises(aiohttp.ClientConnectionError):
                await told(world)

    asyncio.run(scenario())


def test_a_relay_that_stops_takes_no_clients_and_sends_those_that_it_has_elsewhere() -> None:
    async def scenario() -> None:
        async with running(limits=DRAINING) as world:
            client, closing = await stopping(world)
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await world.connect()
            assert refused.value.status == 503
            await client.say(push(2, todo(1, 2, "bread")))
            world.store.gate.set()
            # The batch under way is in; what was pushed later is for the next relay.
            assert (await client.next(Commit)).acknowledged == (1,)
            assert await client.closed() == aiohttp.WSCloseCode.GOING_AWAY
            await closing
            assert len(world.store.documents) == 1

    asyncio.run(scenario())


def test_a_client_that_was_about_to_connect_is_sent_elsewhere_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with running(limits=DRAINING) as world:
            prepare = web.WebSocketResponse.prepare
            stopped: list[tuple[Socket, asyncio.Task[None]]] = []

            async def slow(
                socket: web.WebSocketResponse, request: web.BaseRequest
            ) -> AbstractStreamWriter | None:
                with monkeypatch.context() as patch:
                    patch.setattr(web.WebSocketResponse, "prepare", prepare)
                    stopped.append(await stopping(world))
                return await prepare(socket, request)

            monkeypatch.setattr(web.WebSocketResponse, "prepare", slow)
            late = await world.connect()
            assert await late.closed() == aiohttp.WSCloseCode.GOING_AWAY
            ((client, closing),) = stopped
            world.store.gate.set()
            await client.closed()
            await closing

    asyncio.run(scenario())


def test_a_relay_that_cannot_finish_stops_all_the_same() -> None:
    async def scenario() -> None:
        async with running(limits=replace(QUICK, drain_seconds=0.05)) as world:
            client, closing = await stopping(world)
            assert await client.closed() == aiohttp.WSCloseCode.GOING_AWAY
            await closing
            assert world.store.documents == {}

    asyncio.run(scenario())
