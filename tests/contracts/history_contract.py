"""What every relay store keeps of overwritten values, as tests."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from reunite.cells.register import Register
from reunite.clock import NEVER
from reunite.document import Document, cell_key, encode
from reunite.overwritten import PLACE_BYTES, ROW_PLACES_MAX, Loss
from reunite_transport.relay.store import RowId, Store
from tests.contracts.pushes import A, B, at, row
from tests.contracts.restore_contract import Outside
from tests.contracts.store_contract import Opener


class HistoryContract:
    """Subclass it with fixtures `opener` and `outside`, of the same realm."""

    def test_what_commits_overwrote_of_a_row_is_told_newest_first(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await overwrite(store, {row(1): [loss(1), loss(2)], row("1"): [loss(7)]})
                await overwrite(store, {row(1): [loss(3)], row(1, 2): [loss(8)]})
            async with opener() as store:
                assert await store.losses(row(1)) == (loss(3), loss(2), loss(1))
                assert await store.losses(row("1")) == (loss(7),)
                assert await store.losses(row(1, 2)) == (loss(8),)
                assert await store.losses(row(2)) == ()
                assert await store.losses(row(1, 99)) == ()

        asyncio.run(scenario())

    def test_what_is_overwritten_by_a_commit_that_fails_is_not_kept(self, opener: Opener) -> None:
        async def fail(store: Store) -> None:
            async with store.begin() as transaction:
                await transaction.finish(b"token...", {}, [], {row(1): [loss(1)]})
                raise ZeroDivisionError

        async def scenario() -> None:
            async with opener() as store:
                with pytest.raises(ZeroDivisionError):
                    await fail(store)
                assert await store.losses(row(1)) == ()

        asyncio.run(scenario())

    @pytest.mark.parametrize("step", [1, 7, 3 * ROW_PLACES_MAX])
    def test_of_each_row_the_newest_are_kept(self, opener: Opener, step: int) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await overwrite(store, {row(2): [loss(0)]})
                made = [loss(number) for number in range(3 * ROW_PLACES_MAX)]
                for start in range(0, len(made), step):
                    await overwrite(store, {row(1): made[start : start + step]})
                kept = tuple(reversed(made[-ROW_PLACES_MAX:]))
                assert await store.losses(row(1)) == kept
                assert await store.losses(row(2)) == (loss(0),)

        asyncio.run(scenario())

    def test_large_values_take_the_places_of_many_and_the_last_is_always_kept(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                small = [loss(number) for number in range(10)]
                half = loss(10, ROW_PLACES_MAX // 2 * PLACE_BYTES)
                await overwrite(store, {row(1): [*small, half]})
                assert await store.losses(row(1)) == (half, *reversed(small))
                other = loss(11, ROW_PLACES_MAX // 2 * PLACE_BYTES)
                await overwrite(store, {row(1): [other]})
                assert await store.losses(row(1)) == (other, half)
                huge = loss(12, 3 * ROW_PLACES_MAX * PLACE_BYTES)
                await overwrite(store, {row(1): [huge]})
                assert await store.losses(row(1)) == (huge,)
                await overwrite(store, {row(1): small})
                assert await store.losses(row(1)) == (*reversed(small), huge)

        asyncio.run(scenario())

    def test_a_realm_of_an_earlier_release_gets_the_table(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                realm = store.realm
            async with outside() as execute:
                await execute("DROP TABLE _reunite_history")
            async with opener() as store:
                assert store.realm == realm
                await overwrite(store, {row(1): [loss(1)]})
                assert await store.losses(row(1)) == (loss(1),)

        asyncio.run(scenario())


def loss(number: int, size: int = 1) -> Loss:
    """A value of A's that B overwrote, of about so many bytes."""
    made = at(number, A)
    cells: dict[int, Register] = {cell_key(2): (made, b"v" * size)}
    return Loss(encode(Document(NEVER, NEVER, NEVER, cells)), at(number + 1, B))


async def overwrite(store: Store, losses: Mapping[RowId, Sequence[Loss]]) -> None:
    """Commit nothing but losses."""
    async with store.begin() as transaction:
        await transaction.finish(b"token...", {}, [], losses)
