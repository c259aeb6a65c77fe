"""Changesets that break a rule or a bound, and are refused alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reunite.clock import AHEAD_MS_MAX, stamp
from reunite.document import Document, cell_key, encode, merge
from reunite.keys import pack_key
from reunite_transport.messages import EntryKind
from reunite_transport.relay import commit
from reunite_transport.relay.admission import Changeset, Refused, size_bound
from reunite_transport.relay.commit import Ignored, Taken, commit_batch
from tests.contracts.pushes import (
    A,
    B,
    at,
    changeset,
    edited,
    entries,
    inserted,
)
from tests.transport.relay.test_commit import TOKEN, Realm, person, run


def test_a_merge_that_no_client_could_take_is_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "DOCUMENT_BYTES_MAX", 3_000)

    async def scenario(r: Realm) -> None:
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A))))))
        of_a = edited(at(r.now + 1, A), {2: 2_000 * "a"})
        of_b = edited(at(r.now + 2, B), {3: 2_000 * "b"})
        for batch in (
            [changeset(A, 2, entries((1, of_a))), changeset(B, 1, entries((1, of_b)))],
            [changeset(B, 1, entries((1, of_b)))],  # with one that is stored already
        ):
            verdict = (await r.commit(*batch)).verdicts[-1]
            assert isinstance(verdict, Refused)
            assert verdict.reason == "too-large"
            assert "person" in verdict.message
        # What takes the place of something is not counted twice.
        for number in range(3, 9):
            again = edited(at(r.now + number, A), {2: 2_000 * str(number)})
            outcome = await r.commit(
                changeset(A, number, entries((1, again))),
                changeset(B, number - 2, entries((1, edited(at(r.now + number, B), {4: number})))),
            )
            assert outcome.verdicts == (Taken(), Taken())
        whole = changeset(A, 9, entries((2, inserted(at(r.now, A), {2: 4_000 * "c"}))))
        assert isinstance((await r.commit(whole)).verdicts[0], Refused)

    run(postgres_url, scenario)


def test_a_merge_of_more_cells_than_a_document_has_is_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "CELLS_MAX", 6)

    async def scenario(r: Realm) -> None:
        later = dict.fromkeys(range(70, 74), 1)
        outcome = await r.commit(
            changeset(A, 1, entries((1, person(at(r.now, A))))),
            changeset(B, 1, entries((1, edited(at(r.now + 1, B), later)))),
        )
        assert [type(verdict) for verdict in outcome.verdicts] == [Taken, Refused]

    run(postgres_url, scenario)


def test_a_row_that_the_database_makes_too_large_is_refused_alone(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "DOCUMENT_BYTES_MAX", 3_000)

    async def scenario(r: Realm) -> None:
        await r.sql(
            "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN NEW.name = repeat(NEW.name, 4000); RETURN NEW; END'"
        )
        await r.sql(
            "CREATE TRIGGER more BEFORE INSERT ON person FOR EACH ROW EXECUTE FUNCTION more()"
        )
        outcome = await r.commit(
            changeset(A, 1, entries((1, person(at(r.now, A), name="x")))),
            changeset(B, 1, entries((2, person(at(r.now, B))))),
        )
        refused, taken = outcome.verdicts
        assert isinstance(refused, Refused)
        assert (refused.reason, taken) == ("too-large", Taken())
        assert await r.sql("SELECT id FROM person") == [(2,)]

    run(postgres_url, scenario)


STAMPS = st.builds(lambda counter: stamp(counter, A), st.integers(1, 9))
VALUES = st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text() | st.binary() | st.floats()
DOCUMENTS = st.builds(
    Document,
    STAMPS,
    STAMPS,
    STAMPS,
    st.dictionaries(st.integers(1, 300).map(cell_key), st.tuples(STAMPS, VALUES), max_size=300),
)


@given(DOCUMENTS, DOCUMENTS)
def test_a_join_is_never_larger_than_its_bound(a: Document, b: Document) -> None:
    bound = sum(size_bound(encode(each), each) for each in (a, b))
    assert len(encode(merge(a, b))) <= bound


def invalid(r: Realm) -> dict[str, Changeset]:
    mine, own = at(r.now, A), entries((1, person(at(r.now, A))))
    return {
        "an unknown table": changeset(A, 1, entries((1, person(mine)), table_id=7)),
        "another's stamp": changeset(A, 1, entries((1, person(at(r.now, B))))),
        "another's stamp in a cell": changeset(
            A, 1, entries((1, person(mine)._replace(cells={16: (at(r.now, B), "x")})))
        ),
        "no document": changeset(A, 1, replace(own, documents=(b"\x90",))),
        "no key": changeset(A, 1, replace(own, keys=(b"x",))),
        "a key of two parts": changeset(A, 1, replace(own, keys=(pack_key((1, 2)),))),
        "a null key": changeset(A, 1, replace(own, keys=(pack_key((None,)),))),
        "an unknown kind": changeset(A, 1, replace(own, kinds=(4,))),
        "an adopted edit": changeset(A, 1, replace(own, kinds=(EntryKind.ADOPTED,))),
        "derived from no table": changeset(A, 1, replace(own, derived=((0, 9, b"\x91\x01"),))),
    }


def test_what_breaks_the_rules_is_refused_as_invalid(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        for what, bad in invalid(r).items():
            (verdict,) = (await r.commit(bad)).verdicts
            assert isinstance(verdict, Refused), what
            assert verdict.reason == "invalid", (what, verdict)
        assert await r.store.head() == (0, b"")

    run(postgres_url, scenario)


def test_what_is_offered_again_keeps_the_stamps_that_it_had(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        of_b = person(at(r.now, B))
        early = edited(at(r.now - 9, B), {3: "half"})
        for expected, document, refill in (
            ("expired", of_b, False),
            ("need-whole", early, True),
            ("clock-ahead", person(at(r.now + AHEAD_MS_MAX + 60_000, B)), True),
        ):
            offered = changeset(A, 1, entries((1, document), kind=EntryKind.OFFERED))
            outcome = await commit_batch(r.store, [offered], TOKEN, refill=refill)
            (verdict,) = outcome.verdicts
            assert isinstance(verdict, Refused)
            assert verdict.reason == expected
        offered = changeset(A, 1, entries((1, of_b), kind=EntryKind.OFFERED))
        outcome = await r.commit(offered)
        assert outcome.verdicts == (Taken(),)
        assert [row.document for row in outcome.rows] == [encode(of_b)]
        # The stamp is not A's own because it was offered once.
        mixed = entries((1, of_b), kind=EntryKind.OFFERED), entries((1, of_b))
        (verdict,) = (await r.commit(changeset(A, 2, *mixed))).verdicts
        assert isinstance(verdict, Refused)
        assert verdict.reason == "invalid"

    run(postgres_url, scenario)


def test_an_invalid_changeset_behind_a_refused_one_is_ignored(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        outcome = await r.commit(
            changeset(A, 1, entries((1, edited(at(r.now, A), {3: "half"})))),
            changeset(A, 2, entries((1, person(at(r.now, B))))),
        )
        assert [type(verdict) for verdict in outcome.verdicts] == [Refused, Ignored]

    run(postgres_url, scenario)


def test_a_clock_ahead_of_the_relays_is_refused_beyond_a_minute(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        near = person(at(r.now + AHEAD_MS_MAX - 1_000, A))
        far = person(at(r.now + AHEAD_MS_MAX + 60_000, B))
        outcome = await r.commit(
            changeset(A, 1, entries((1, near))), changeset(B, 1, entries((2, far)))
        )
        assert outcome.verdicts[0] == Taken()
        assert isinstance(outcome.verdicts[1], Refused)
        assert outcome.verdicts[1].reason == "clock-ahead"

    run(postgres_url, scenario)
