"""What a commit overwrites is kept: old values that gave way, and pushed ones that came late."""

import pytest

from reunite.cells import counter
from reunite.cells.kinds import Author
from reunite.cells.register import Register
from reunite.clock import FLOOR, NEVER
from reunite.document import Document, cell_key, decode
from reunite.overwritten import Loss
from reunite_transport.messages import EntryKind
from reunite_transport.relay.admission import Refused
from reunite_transport.relay.commit import Taken, commit_batch
from tests.contracts.pushes import (
    A,
    B,
    at,
    changeset,
    column,
    deleted,
    edited,
    entries,
    row,
    table,
)
from tests.transport.relay.test_commit import TOKEN, Realm, person, run

EMAIL, NAME, AGE = 2, 3, 4


def shown(losses: tuple[Loss, ...]) -> list[tuple[dict[int, tuple[bytes, object]], bytes]]:
    """Losses as (cells by column, what replaced them)."""
    return [
        (
            {key >> 3: cell for key, cell in decode(loss.document).cells.items()},
            loss.replaced_by,
        )
        for loss in losses
    ]


def test_an_old_value_that_gives_way_is_kept_with_its_stamp(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        first, second = at(r.now, A), at(r.now + 1, B)
        await r.commit(changeset(A, 1, entries((1, person(first, "a@x", name="Ann")))))
        assert await r.store.losses(row(1)) == ()
        edit = edited(second, {EMAIL: "b@x", NAME: "Bea", AGE: 0})
        await r.commit(changeset(B, 1, entries((1, edit))))
        # AGE has another stamp and the same value.
        assert shown(await r.store.losses(row(1))) == [
            ({EMAIL: (first, "a@x"), NAME: (first, "Ann")}, second)
        ]
        assert await r.sql("SELECT seq FROM _reunite_history") == [(2,)]

    run(postgres_url, scenario)


def test_a_pushed_value_that_comes_too_late_is_kept(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        born, late, early = at(r.now, A), at(r.now + 9, B), at(r.now + 5, A)
        await r.commit(changeset(A, 1, entries((1, person(born, "a@x")))))
        await r.commit(changeset(B, 1, entries((1, edited(late, {EMAIL: "late"})))))
        outcome = await r.commit(
            changeset(A, 2, entries((1, edited(early, {EMAIL: "early", AGE: 3}))))
        )
        assert outcome.verdicts == (Taken(),)
        assert shown(await r.store.losses(row(1))) == [
            ({AGE: (born, 0)}, early),
            ({EMAIL: (early, "early")}, late),
            ({EMAIL: (born, "a@x")}, late),
        ]

    run(postgres_url, scenario)


def test_every_step_within_one_batch_is_kept_in_order(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        new = person(at(r.now, A), "0")
        steps = [edited(at(r.now + step, A), {EMAIL: str(step)}) for step in (1, 2, 3)]
        await r.commit(
            changeset(A, 1, entries((1, new))),
            *(changeset(A, n, entries((1, step))) for n, step in enumerate(steps, 2)),
        )
        found = shown(await r.store.losses(row(1)))
        assert [cells[EMAIL][1] for cells, _ in found] == ["2", "1", "0"]

    run(postgres_url, scenario)


def test_a_refused_changeset_overwrites_nothing(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        await r.commit(
            changeset(
                A,
                1,
                entries((1, person(at(r.now, A), "a@x")), (2, person(at(r.now, A), "b@x"))),
            )
        )
        outcome = await r.commit(
            changeset(A, 2, entries((2, edited(at(r.now + 1, A), {EMAIL: "a@x"})))),
            changeset(B, 1, entries((1, edited(at(r.now + 2, B), {NAME: "Bea"})))),
        )
        assert isinstance(outcome.verdicts[0], Refused)
        assert outcome.verdicts[1] == Taken()
        assert await r.store.losses(row(2)) == ()
        assert len(await r.store.losses(row(1))) == 1

    run(postgres_url, scenario)


def test_a_delete_overwrites_nothing_and_a_new_life_what_the_old_one_held(
    postgres_url: str,
) -> None:
    async def scenario(r: Realm) -> None:
        born, again = at(r.now, A), at(r.now + 2, B)
        await r.commit(changeset(A, 1, entries((1, person(born, "a@x")))))
        await r.commit(changeset(A, 2, entries((1, deleted(at(r.now + 1, A))))))
        assert await r.store.losses(row(1)) == ()
        await r.commit(changeset(B, 1, entries((1, person(again, "b@x")))))
        assert shown(await r.store.losses(row(1))) == [({EMAIL: (born, "a@x")}, again)]

    run(postgres_url, scenario)


def test_two_rows_under_one_key_keep_the_values_of_the_one_that_lost(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        one, other = at(r.now + 1, A), at(r.now, B)
        await r.commit(changeset(A, 1, entries((1, person(one, "a@x", name="Ann")))))
        await r.commit(changeset(B, 1, entries((1, person(other, "b@x", name="Bea")))))
        assert shown(await r.store.losses(row(1))) == [
            ({EMAIL: (other, "b@x"), NAME: (other, "Bea")}, one)
        ]

    run(postgres_url, scenario)


def test_a_value_that_came_with_its_table_is_kept_and_a_default_that_loses_is_not(
    postgres_url: str,
) -> None:
    async def scenario(r: Realm) -> None:
        adopted = Document(FLOOR, FLOOR, NEVER, {cell_key(EMAIL): (FLOOR, "old@x")})
        await r.commit(changeset(A, 1, entries((1, adopted), kind=EntryKind.ADOPTED)))
        edit = at(r.now + 1, A)
        await r.commit(changeset(A, 2, entries((1, edited(edit, {EMAIL: "a@x"})))))
        (lost,) = await r.store.losses(row(1))
        assert decode(lost.document) == Document(
            FLOOR, NEVER, NEVER, {cell_key(EMAIL): (FLOOR, "old@x")}
        )
        # "Insert if missing" of another file, with its defaults at the floor.
        made = at(r.now + 2, B)
        late = Document(made, made, NEVER, {cell_key(EMAIL): (FLOOR, None)})
        await r.commit(changeset(B, 1, entries((1, late))))
        assert await r.store.losses(row(1)) == (lost,)

    run(postgres_url, scenario)


def test_a_default_that_somebody_replaces_is_as_old_as_its_row(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        born = at(r.now, A)
        cells: dict[int, Register] = {cell_key(EMAIL): (FLOOR, None), cell_key(NAME): (born, "Ann")}
        await r.commit(changeset(A, 1, entries((1, Document(born, born, NEVER, cells)))))
        edit = edited(at(r.now + 1, B), {EMAIL: "b@x"})
        await r.commit(changeset(B, 1, entries((1, edit))))
        (lost,) = await r.store.losses(row(1))
        assert decode(lost.document) == Document(
            born, NEVER, NEVER, {cell_key(EMAIL): (FLOOR, None)}
        )

    run(postgres_url, scenario)


def test_columns_that_merge_have_no_history(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        def counted(by: int, to: int, at_ms: int, *, new: bool = False) -> Document:
            made = at(r.now + at_ms, by)
            edit = counter.edit(counter.initial(0), to, Author(by, by))
            assert edit is not None
            cells: dict[int, Register] = {cell_key(2, counter.KIND): (made, edit.delta)}
            return Document(made if new else NEVER, made, NEVER, cells)

        outcome = await r.commit(
            changeset(A, 1, entries((1, counted(A, 3, 0, new=True)))),
            changeset(B, 1, entries((1, counted(B, 4, 2)))),
            changeset(A, 2, entries((1, counted(A, 5, 1)))),
        )
        assert outcome.verdicts == (Taken(),) * 3
        assert await r.sql("SELECT n FROM tally") == [(9,)]
        assert await r.store.losses(row(1)) == ()

    run(postgres_url, scenario, table("tally", column("n", "counter")))


@pytest.mark.parametrize("history", [True, False])
def test_a_relay_may_keep_no_history(postgres_url: str, history: bool) -> None:
    async def scenario(r: Realm) -> None:
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A), "a@x")))))
        batch = [changeset(A, 2, entries((1, edited(at(r.now + 1, A), {EMAIL: "b@x"}))))]
        await commit_batch(r.store, batch, TOKEN, history=history)
        assert len(await r.store.losses(row(1))) == history

    run(postgres_url, scenario)
