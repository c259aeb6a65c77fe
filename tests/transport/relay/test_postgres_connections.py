"""Connections to Postgres that are lost, stuck or cancelled, and what the store makes of them."""

import asyncio

import pytest

from reunite_transport.relay import postgres_store
from reunite_transport.relay.postgres_errors import ConnectionLost
from reunite_transport.relay.store import Standing, StoreError
from tests.contracts.pushes import PERSON, A, B, row
from tests.contracts.store_contract import write
from tests.transport.relay.proxy import proxied
from tests.transport.relay.test_postgres_store import backend, opened


def test_a_lost_connection_is_a_store_error_and_the_next_commit_has_a_new_one(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            await store.describe([PERSON], create=True)

            async def interrupted() -> None:
                async with store.begin() as transaction:
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                    await transaction.standings([A])

            with pytest.raises(StoreError):
                await interrupted()
            await write(store, {row(1): ("insert", {2: "a@x"})})

    asyncio.run(scenario())


def test_a_commit_that_is_cancelled_lets_go_of_the_head(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store:
            await store.describe([PERSON], create=True)
            begun = asyncio.Event()

            async def stuck() -> None:
                async with store.begin():
                    begun.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(stuck())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await write(store, {row(1): ("insert", {2: "a@x"})})

    asyncio.run(scenario())


def test_a_network_that_swallows_all_is_a_store_error_and_the_next_commit_has_a_new_one(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD_SECONDS_MAX", "READ_SECONDS_MAX", "CONNECT_SECONDS_MAX"):
        monkeypatch.setattr(postgres_store, name, 1.0)

    async def scenario() -> None:
        async with proxied(postgres_url) as proxy, opened(proxy.url) as store:
            await store.describe([PERSON], create=True)

            swallowed = asyncio.Event()

            async def stuck() -> None:
                async with store.begin() as transaction, transaction.savepoint():
                    proxy.swallow()
                    swallowed.set()
                    await transaction.standings([A])

            async def read() -> None:
                await swallowed.wait()
                await store.head()

            async with asyncio.timeout(20):
                waited = await asyncio.gather(stuck(), read(), read(), return_exceptions=True)
                assert [type(error) for error in waited] == [ConnectionLost] * 3
                # While it lasts, connecting anew does not hang either.
                with pytest.raises(ConnectionLost):
                    await store.greet(A, 0, (), 0, b"")
                proxy.flow()
                await write(store, {row(1): ("insert", {2: "a@x"})})
                assert (await store.head())[0] == 1

    asyncio.run(scenario())


def test_a_store_whose_network_swallows_all_can_be_closed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "CONNECT_SECONDS_MAX", 1.0)

    async def scenario() -> None:
        async with proxied(postgres_url) as proxy, opened(proxy.url) as store:
            reading = asyncio.create_task(store.head())
            await reading
            proxy.swallow()
            reading = asyncio.create_task(store.head())
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                await store.close()
            with pytest.raises(StoreError):
                await reading

    asyncio.run(scenario())


def test_a_server_that_is_gone_is_said_once_and_by_nobody_else(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with proxied(postgres_url) as proxy, opened(proxy.url) as store:
            await store.registry()
            await proxy.go_away()
            for _ in range(20):
                with pytest.raises(StoreError):
                    await store.head()

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == []


def test_what_a_client_that_leaves_began_under_the_head_keeps_its_connection(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            pid = store._connection.get_server_pid()
            for term in (1, 2):
                lock = connection.transaction()
                await lock.start()
                await connection.execute("SELECT FROM _reunite_head FOR UPDATE")
                greeting = asyncio.create_task(store.greet(A, 0, (), 0, b""))
                while not await connection.fetchval(
                    "SELECT cardinality(pg_blocking_pids($1)) > 0", pid
                ):
                    pass
                queued = asyncio.create_task(store.greet(B, 0, (), 0, b""))
                await asyncio.sleep(0)
                queued.cancel()
                greeting.cancel()
                await lock.rollback()
                for task in (queued, greeting):
                    with pytest.raises(asyncio.CancelledError):
                        await task
                async with store.begin() as transaction:
                    assert await transaction.standings([A, B]) == {A: Standing(term, 0)}
            assert store._connection.get_server_pid() == pid

    asyncio.run(scenario())


def test_work_under_the_head_that_is_cancelled_twice_ends(postgres_url: str) -> None:
    async def scenario() -> None:
        async with opened(postgres_url) as store, backend(postgres_url) as connection:
            pid = store._connection.get_server_pid()
            lock = connection.transaction()
            await lock.start()
            await connection.execute("SELECT FROM _reunite_head FOR UPDATE")
            greeting = asyncio.create_task(store.greet(A, 0, (), 0, b""))
            while not await connection.fetchval(
                "SELECT cardinality(pg_blocking_pids($1)) > 0", pid
            ):
                pass
            for _ in range(2):
                greeting.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await greeting
            await lock.rollback()
            assert (await store.greet(A, 0, (), 0, b"")).term == 1

    asyncio.run(scenario())
