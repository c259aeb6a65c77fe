"""Cells that merge inside their value: laws of all kinds, for states that were edited apart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reunite.cells import EMPTY_STATE, KINDS, counter
from reunite.cells import set as sets
from reunite.cells.json_text import canonical, order, parsed
from reunite.cells.kinds import Author, Content
from reunite.cells.register import INTEGER_MAX, INTEGER_MIN
from reunite.cells.yjs import JSON_KIND, LIST_KIND, TEXT_KIND
from reunite.errors import FormatError
from tests.engine.documents import TEXT

REPLICAS = 3
# Numbers that a double does not hold among them, and those that it writes otherwise.
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 10**30, 1.0, -0.0, 1e300, 0.1]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from("abc"), TEXT)
KEYS = st.one_of(st.sampled_from("abc"), TEXT)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
WORDS = st.sampled_from(["one", "two", "ones", " ", "\n", "e\u0301", "👍🏿", "日", ".", "x"])
CONTENTS: dict[int, st.SearchStrategy[Any]] = {
    counter.KIND: st.one_of(st.integers(-5, 5), st.integers(-(1 << 40), 1 << 40)),
    sets.KIND: st.frozensets(st.builds(canonical, JSON), max_size=5),
    TEXT_KIND: st.one_of(st.lists(WORDS, max_size=8).map("".join), TEXT),
    LIST_KIND: st.lists(JSON, max_size=5),
    JSON_KIND: st.dictionaries(KEYS, JSON, max_size=5),
}
# Each example edits and merges several cells of nested JSON.
few = settings(max_examples=40)
every_kind = pytest.mark.parametrize(
    "number", KINDS, ids=["counter", "set", "text", "list", "json"]
)


@dataclass
class Apart:
    """Replicas of one cell, and what they have done to it."""

    number: int
    states: list[bytes]

    def author(self, replica: int) -> Author:
        """Who edits there."""
        return Author(replica + 1, 1_000 + replica)

    def edit(self, replica: int, wanted: Content) -> None:
        """One edit of one replica."""
        found = KINDS[self.number].edit(self.states[replica], wanted, self.author(replica))
        assert found is not None
        self.states[replica] = found.after

    def count_anew(self, replica: int, wanted: Content) -> None:
        """One replica writes a counter that does not show."""
        before = self.states[replica]
        found = counter.anew(before, wanted, self.author(replica))
        assert found is not None
        assert counter.value(found.after) == wanted
        assert counter.merge(before, found.delta) == found.after
        assert counter.fits_onto(before, found.delta)
        assert counter.is_by(found.delta, self.author(replica).replica)
        counter.check(found.delta)
        self.states[replica] = found.after

    def meet(self, replica: int, other: int) -> None:
        """One replica takes over what another has."""
        merged = KINDS[self.number].merge(self.states[replica], self.states[other])
        self.states[replica] = merged


@st.composite
def edited_apart(draw: st.DrawFn, number: int) -> Apart:
    """Replicas that began alike, or with nothing, and then edited and met at random."""
    contents = CONTENTS[number]
    begun = draw(
        st.one_of(st.just(EMPTY_STATE[number]), st.builds(KINDS[number].initial, contents))
    )
    found = Apart(number, [begun] * REPLICAS)
    replicas = st.integers(0, REPLICAS - 1)
    for _ in range(draw(st.integers(0, 6))):
        if number == counter.KIND and draw(st.booleans()):
            found.count_anew(draw(replicas), draw(contents))
        elif draw(st.booleans()):
            found.edit(draw(replicas), draw(contents))
        else:
            found.meet(draw(replicas), draw(replicas))
    return found


@every_kind
@few
@given(data=st.data())
def test_merging_takes_states_in_any_order_and_any_number_of_times(
    number: int, data: st.DataObject
) -> None:
    kind = KINDS[number]
    a, b, c = data.draw(edited_apart(number)).states
    ab, ba = kind.merge(a, b), kind.merge(b, a)
    assert kind.value(ab) == kind.value(ba)
    left, right = kind.merge(ab, c), kind.merge(a, kind.merge(b, c))
    assert kind.value(left) == kind.value(right)
    assert kind.merge(a, a) == a
    for part in (a, b, ba, EMPTY_STATE[number]):
        assert kind.merge(ab, part) == ab
    for state in (a, ab, ba, left, right):
        kind.check(state)
    if number in (counter.KIND, sets.KIND):
        assert (ab, left) == (ba, right)


@every_kind
@few
@given(data=st.data())
def test_an_edit_makes_what_is_wanted_of_what_is_there(number: int, data: st.DataObject) -> None:
    kind = KINDS[number]
    apart = data.draw(edited_apart(number))
    before = kind.merge(apart.states[0], apart.states[1])
    wanted = data.draw(CONTENTS[number])
    author = apart.author(0)
    edit = kind.edit(before, wanted, author)
    assert edit is not None
    assert kind.value(edit.after) == kind.shown(wanted)
    kind.check(edit.delta)
    kind.check(edit.after)
    assert kind.fits_onto(before, edit.delta)
    assert kind.is_by(edit.delta, author.replica)
    assert kind.value(kind.merge(before, edit.delta)) == kind.shown(wanted)
    # Whoever has more merges it as well.
    more = kind.merge(before, apart.states[2])
    assert kind.value(kind.merge(more, edit.delta)) == kind.value(kind.merge(more, edit.after))
    json.dumps(kind.intent(before, edit.after))


@every_kind
@few
@given(data=st.data())
def test_an_edit_to_what_is_there_already_is_none(number: int, data: st.DataObject) -> None:
    kind = KINDS[number]
    apart = data.draw(edited_apart(number))
    before = apart.states[0]
    there = kind.content(kind.value(before))
    assert there is not None
    edit = kind.edit(before, there, apart.author(0))
    assert edit is not None
    assert edit.after == before
    assert kind.merge(before, edit.delta) == before


@every_kind
@few
@given(data=st.data())
def test_equal_beginnings_are_one(number: int, data: st.DataObject) -> None:
    kind, content = KINDS[number], data.draw(CONTENTS[number])
    begun = kind.initial(content)
    kind.check(begun)
    assert kind.value(begun) == kind.shown(content)
    # JSON that was spelt in another way is the same.
    again = kind.content(kind.shown(content))
    assert again is not None
    assert kind.shown(again) == kind.shown(content)
    assert kind.initial(again) == begun
    assert kind.merge(begun, kind.initial(again)) == begun
    assert kind.fits_onto(None, begun)


@every_kind
@few
@given(data=st.data())
def test_a_change_is_carried_to_another_value(number: int, data: st.DataObject) -> None:
    kind, contents = KINDS[number], CONTENTS[number]
    seen, wanted, other = data.draw(contents), data.draw(contents), data.draw(contents)
    assert kind.shown(kind.carried(seen, wanted, seen)) == kind.shown(wanted)
    assert kind.shown(kind.carried(seen, seen, other)) == kind.shown(other)


@every_kind
@few
@given(data=st.data())
def test_a_state_by_one_author_shows_the_same(number: int, data: st.DataObject) -> None:
    kind = KINDS[number]
    apart = data.draw(edited_apart(number))
    state = kind.merge(apart.states[0], apart.states[1])
    own = kind.as_one_author(state, apart.author(2))
    kind.check(own)
    assert kind.is_by(own, apart.author(2).replica)
    assert kind.value(own) == kind.value(state)


@every_kind
@few
@given(data=st.data())
def test_bytes_that_are_not_whole_are_refused(number: int, data: st.DataObject) -> None:
    kind = KINDS[number]
    state = data.draw(edited_apart(number)).states[0]
    end = data.draw(st.integers(0, len(state) - 1))
    for broken in (state[:end], state + b"\0"):
        with pytest.raises(FormatError):
            kind.check(broken)


# The counter.


@given(st.lists(st.tuples(st.integers(0, REPLICAS - 1), st.integers(-9, 9)), max_size=12))
def test_a_counter_is_the_sum_of_what_all_added(adds: Sequence[tuple[int, int]]) -> None:
    states = [counter.initial(10)] * REPLICAS
    for replica, number in adds:
        there = counter.value(states[replica])
        assert isinstance(there, int)
        edit = counter.edit(states[replica], there + number, Author(replica + 1, 0))
        assert edit is not None
        states[replica] = edit.after
    merged = counter.merge(counter.merge(states[2], states[0]), states[1])
    assert counter.value(merged) == 10 + sum(number for _, number in adds)


@pytest.mark.parametrize("number", [INTEGER_MAX, -INTEGER_MAX, 0])
def test_a_counter_begins_anywhere_and_ends_at_what_an_integer_holds(number: int) -> None:
    begun = counter.initial(number)
    counter.check(begun)
    assert counter.value(begun) == number
    for sign in (1, -1):
        edit = counter.edit(begun, sign * INTEGER_MAX, Author(1, 0))
        further = counter.edit(begun, sign * INTEGER_MAX, Author(2, 0))
        if edit is not None and further is not None:
            shown = counter.value(counter.merge(edit.after, further.after))
            assert shown == max(-INTEGER_MAX, min(INTEGER_MAX, 2 * sign * INTEGER_MAX - number))


@pytest.mark.parametrize("value", [None, 1.0, "1", b"1", INTEGER_MIN])
def test_what_is_no_number_of_a_counter_has_no_content(value: Any) -> None:
    assert counter.content(value) is None


def test_what_no_part_of_a_counter_can_add_is_no_edit() -> None:
    far = counter.edit(counter.initial(INTEGER_MAX), -INTEGER_MAX, Author(1, 0))
    assert far is None


def test_counters_that_two_write_anew_add_up_without_what_was_there() -> None:
    before = counter.initial(10)
    more = counter.edit(before, 15, Author(3, 0))
    assert more is not None
    state = more.after
    for replica, number in ((1, 3), (2, 4)):
        edit = counter.anew(before, number, Author(replica, 0))
        assert edit is not None
        state = counter.merge(state, edit.delta)
    assert counter.value(state) == 3 + 4 + 5
    assert counter.merge(before, state) == state
    own = counter.as_one_author(state, Author(9, 0))
    counter.check(own)
    assert counter.value(own) == 12
    assert counter.merge(counter.EMPTY, state) == bytes.fromhex(
        "9d000a0001030002040003050093000a00"
    )
    again = counter.anew(before, 10, Author(1, 0))
    assert again is not None
    assert again.after == before


def test_what_another_never_counted_is_not_left_out() -> None:
    before = counter.initial(10)
    edit = counter.anew(before, 0, Author(1, 0))
    assert edit is not None
    assert counter.fits_onto(before, edit.delta)
    assert not counter.fits_onto(counter.initial(9), edit.delta)
    assert not counter.fits_onto(None, edit.delta)


def test_a_counter_of_large_parts_shows_the_same_by_one_author() -> None:
    state = counter.EMPTY
    for replica, number in ((1, INTEGER_MAX), (2, 0), (3, INTEGER_MAX), (4, 0), (5, -9)):
        edit = counter.edit(state, number, Author(replica, 0))
        assert edit is not None
        state = edit.after
    own = counter.as_one_author(state, Author(9, 0))
    counter.check(own)
    assert counter.value(own) == counter.value(state) == -9


# The set.


def test_an_addition_that_a_removal_did_not_see_wins() -> None:
    begun = sets.initial(frozenset(['"x"']))
    gone = sets.edit(begun, frozenset(), Author(1, 0))
    assert gone is not None
    again = sets.edit(gone.after, frozenset(['"x"']), Author(2, 0))
    assert again is not None
    assert sets.value(sets.merge(begun, gone.delta)) == "[]"
    assert sets.value(sets.merge(again.after, gone.after)) == '["x"]'
    unseen = sets.edit(again.after, frozenset(), Author(3, 0))
    assert unseen is not None
    assert sets.fits_onto(again.after, unseen.delta)
    assert not sets.fits_onto(begun, unseen.delta)


def test_a_set_edit_made_anew_sees_no_more_than_it_saw() -> None:
    made_on = sets.edit(sets.EMPTY, frozenset(['"x"', '"y"']), Author(1, 0))
    assert made_on is not None
    removal = sets.edit(made_on.after, frozenset(), Author(2, 0))
    gone = sets.edit(made_on.after, frozenset(), Author(3, 0))
    assert gone is not None
    other = sets.edit(gone.after, frozenset(['"x"']), Author(3, 0))
    assert removal is not None
    assert other is not None
    anew = sets.again(other.after, removal.delta, made_on.after, Author(4, 0))
    assert anew is not None
    assert sets.value(anew.after) == '["x"]'
    # What it saw came in the name of a copy of its file.
    copied = sets.edit(sets.EMPTY, frozenset(['"x"']), Author(6, 0))
    assert copied is not None
    anew = sets.again(copied.after, removal.delta, made_on.after, Author(4, 0))
    assert anew is not None
    assert sets.value(anew.after) == "[]"
    # An element that is there by another's add is added beside it, once.
    add = sets.edit(sets.EMPTY, frozenset(['"x"']), Author(2, 0))
    assert add is not None
    anew = sets.again(other.after, add.delta, sets.EMPTY, Author(2, 0))
    assert anew is not None
    unseen = sets.edit(other.after, frozenset(), Author(5, 0))
    assert unseen is not None
    assert sets.value(sets.merge(anew.after, unseen.after)) == '["x"]'
    twice = sets.again(anew.after, add.delta, sets.EMPTY, Author(2, 0))
    assert twice is not None
    assert twice.after == anew.after
    # Its author's own adds came before it, under the name that it has now.
    own = sets.edit(made_on.after, frozenset(['"x"', '"y"', '"z"']), Author(2, 0))
    assert own is not None
    gone = sets.edit(own.after, frozenset(['"x"', '"y"']), Author(2, 0))
    renamed = sets.again(made_on.after, own.delta, made_on.after, Author(4, 0))
    assert gone is not None
    assert renamed is not None
    anew = sets.again(renamed.after, gone.delta, own.after, Author(4, 0))
    assert anew is not None
    assert sets.value(anew.after) == '["x","y"]'


@given(st.lists(JSON, max_size=8))
def test_a_set_is_shown_in_one_order(elements: list[Any]) -> None:
    content = sets.content(json.dumps(elements))
    assert isinstance(content, frozenset)
    shown = sets.shown(content)
    assert sets.shown(sets.content(json.dumps(elements[::-1] + elements))) == shown
    assert isinstance(shown, str)
    ranks = [order(canonical(element)) for element in json.loads(shown)]
    assert ranks == sorted(ranks)


# JSON.


@given(JSON)
def test_json_is_written_in_one_way_and_means_what_it_meant(found: Any) -> None:
    text = canonical(found)
    assert repr(parsed(text)) == repr(json.loads(json.dumps(found, sort_keys=True)))
    assert canonical(parsed(text)) == text
    for spelt in (json.dumps(found), json.dumps(found, indent=2, ensure_ascii=False)):
        assert canonical(parsed(spelt)) == text


@pytest.mark.parametrize(
    ("spelt", "written"),
    [
        ('{"b" : 1, "a":[ 1.0,1 ]}', '{"a":[1.0,1],"b":1}'),
        ('"\\u00e9\\u0000\\ud83d\\ude00"', '"é\\u0000😀"'),
        ('{"a":1,"a":2}', '{"a":2}'),
        ("9007199254740993", "9007199254740993"),
        ("1e2", "100.0"),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("1" + "0" * 999, "1" + "0" * 999),
    ],
)
def test_json_is_written_so(spelt: str, written: str) -> None:
    assert canonical(parsed(spelt)) == written


@pytest.mark.parametrize(
    "value",
    [
        "",
        "[1,]",
        "{'a':1}",
        "[NaN]",
        "[-Infinity]",
        "1e400",
        "1" + "0" * 1_000,
        '"\\ud800"',
        "[" * 61 + "]" * 61,
        "[" * 100_000,
        b"[]",
        5,
        1.0,
        None,
    ],
)
def test_what_is_no_json_of_ours_means_nothing(value: Any) -> None:
    assert parsed(value) is None
    for number in (sets.KIND, LIST_KIND, JSON_KIND):
        assert KINDS[number].content(value) is None


def test_json_of_another_shape_has_no_content() -> None:
    for number, texts in {
        sets.KIND: ["{}", "1", "null", '"a"'],
        LIST_KIND: ["{}", "1", "null"],
        JSON_KIND: ["[]", "1", "null", "true"],
    }.items():
        assert [KINDS[number].content(text) for text in texts] == [None] * len(texts)
