"""What every relay store keeps of a database that is restored under it, as tests."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import pytest

from reunite_transport.relay.store import Store, WentBack
from tests.contracts.pushes import PERSON, A, B, row
from tests.contracts.store_contract import ALL, Opener, accept, write

# A transaction of somebody else on the realm's database: gives what executes a statement in it
# and returns its rows.
Outside: TypeAlias = Callable[[], AbstractAsyncContextManager[Callable[[str], Awaitable[object]]]]
# To the state after the first commit.
RESTORE = (
    "UPDATE _reunite_head SET seq = 1,"
    " token = (SELECT c.token FROM _reunite_commits AS c WHERE c.seq = 1)",
    "DELETE FROM _reunite_commits WHERE seq > 1",
    "DELETE FROM _reunite_documents WHERE seq > 1",
)


class RestoreContract:
    """Subclass it with fixtures `opener` and `outside`, of the same realm."""

    @pytest.mark.parametrize(
        "seen", ["own commit", "head", "page", "part", "greeting", "begin", "losses"]
    )
    @pytest.mark.parametrize("overtaken", [False, True])
    def test_a_database_that_went_back_is_noticed_by_every_call_until_it_is_forgotten(
        self, opener: Opener, outside: Outside, seen: str, overtaken: bool
    ) -> None:
        async def look(store: Store, call: str) -> None:
            match call:
                case "head":
                    await store.head()
                case "page":
                    await store.page(3, b"", rows_max=10, bytes_max=ALL)
                case "part":
                    assert not (await store.page(0, b"", rows_max=1, bytes_max=ALL)).complete
                case "greeting":
                    await store.greet(A, 0, (), 0, b"")
                case "begin":
                    async with store.begin():
                        pass
                case "registry":
                    await store.registry()
                case "losses":
                    await store.losses(row(1))

        calls = ("head", "page", "part", "greeting", "begin", "registry", "losses")

        async def scenario() -> None:
            async with opener() as store, opener() as other:
                await store.describe([PERSON], create=True)
                emails = {row(key): ("insert", {2: f"{key}@x"}) for key in range(2)}
                await write(store, emails, token=b"backup..")
                assert await store.head() == (1, b"backup..")
                author = store if seen == "own commit" else other
                for number in (2, 3):
                    await accept(author, B, number - 1, token=b"lost...%d" % number)
                if seen != "own commit":
                    await look(store, seen)
                async with outside() as execute:
                    for statement in RESTORE:
                        await execute(statement)
                other.forget()
                if overtaken:
                    for number in (2, 3, 4):
                        await accept(other, A, number - 1, token=b"after..%d" % number)
                for call in calls:
                    for _ in range(2):
                        with pytest.raises(WentBack):
                            await look(store, call)
                store.forget()
                for call in calls:
                    await look(store, call)
                assert await store.head() == ((4, b"after..4") if overtaken else (1, b"backup.."))

        asyncio.run(scenario())

    def test_a_registry_that_went_back_is_noticed_before_anybody_commits(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                async with outside() as execute:
                    await execute("UPDATE _reunite_head SET registry = 0")
                    await execute("DELETE FROM _reunite_tables")
                with pytest.raises(WentBack):
                    await store.head()
                store.forget()
                assert await store.registry() == ()

        asyncio.run(scenario())

    def test_a_commit_that_was_begun_in_a_lost_history_is_not_made_in_another(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:

                async def commit() -> None:
                    async with store.begin() as transaction:
                        await transaction.finish(b"late....", {}, [])

                for number in (1, 2):
                    await accept(store, A, number)
                async with outside() as execute:
                    await execute(RESTORE[0])
                    late = asyncio.create_task(commit())
                    # It waits for the lock, and what it knows is forgotten meanwhile.
                    await asyncio.sleep(0)
                    store.forget()
                    for statement in RESTORE[1:]:
                        await execute(statement)
                with pytest.raises(WentBack):
                    await late
                assert await store.head() == (1, b"token...")
                await commit()
                assert await store.head() == (2, b"late....")

        asyncio.run(scenario())
