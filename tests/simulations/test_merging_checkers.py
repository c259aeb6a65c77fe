"""The checkers of columns that merge say what is wrong with a history, and nothing of others."""

import pytest

from reunite.cells.register import Value
from reunite_simulations.checkers import Checker
from reunite_simulations.checkers.counters import Counters
from reunite_simulations.checkers.registers import CLOSE_SECONDS, Registers
from reunite_simulations.checkers.sets import Sets
from reunite_simulations.checkers.structures import Structures
from reunite_simulations.checkers.texts import Texts
from reunite_simulations.history import Transaction
from reunite_simulations.workload import APPEND_TABLE
from tests.simulations.told import Told, told_post


def said(checker: Checker, world: Told) -> str:
    return "; ".join(checker.at_end(world))


def witnessed(world: Told, made: Transaction, element: str, *, there: bool) -> None:
    """An element of the lists beside a transaction, which the relay has in the end or has not."""
    made.appended = [element]
    if there:
        world.store.execute(f"INSERT INTO {APPEND_TABLE} VALUES (?, 1, 0)", (element,))


# Counters.


@pytest.mark.parametrize(
    ("votes", "words"), [(3, ""), (8, "what was counted makes 3"), (0, "makes 3"), (6, "makes 3")]
)
def test_what_two_counted_without_knowing_of_each_other_adds_up(votes: int, words: str) -> None:
    world = told_post(votes=votes)
    world.wrote("client1", {"votes": 8}, {})
    world.wrote("client2", {"votes": 0}, {})
    found = said(Counters(), world)
    assert bool(found) is bool(words)
    assert words in found


@pytest.mark.parametrize(("there", "votes"), [(True, 8), (False, 5)])
def test_what_was_written_beside_an_element_counts_when_the_relay_has_it(
    there: bool, votes: int
) -> None:
    for final in (5, 8):
        world = told_post(votes=final)
        made = world.wrote("client1", {"votes": 8}, {})
        witnessed(world, made, "1.0.1", there=there)
        world.history.doubt("client1", 0.0)
        assert bool(said(Counters(), world)) is (final != votes)


@pytest.mark.parametrize(("votes", "wrong"), [(5, False), (8, False), (11, True)])
def test_what_may_be_lost_counts_once_or_not_at_all(votes: int, wrong: bool) -> None:
    world = told_post(votes=votes)
    world.wrote("client1", {"votes": 8}, {}).doubtful = True
    witnessed(world, world.history.transactions[0], "1.0.1", there=True)
    # The relays' database went back since, and may have got it row by row.
    world.history.restores.append(2.0)
    assert said(Counters(), world) == ""
    world.history.restores.clear()
    world.history.transactions[0].appended = []
    world.history.transactions[0].doubtful = False
    world.history.transactions[0].own = False
    world.wrote("client1", {}, {}).own = False
    assert bool(said(Counters(), world)) is wrong


def test_what_a_file_that_went_back_may_send_again_counts_any_number_of_times() -> None:
    world = told_post(votes=14)
    world.wrote("client1", {"votes": 8}, {}).own = False
    assert "makes 8" in said(Counters(), world)
    world.history.repeat("client1-copy1")
    assert said(Counters(), world) == ""


def test_own_work_of_a_file_that_went_back_counts_once_unless_the_relay_did_too() -> None:
    world = told_post(votes=11)
    world.wrote("client1", {"votes": 8}, {})
    world.history.repeat("client1")
    assert "makes 8" in said(Counters(), world)
    made = world.history.transactions[0]
    witnessed(world, made, "1.0.1", there=True)
    assert "makes 8" in said(Counters(), world)
    world.history.restores.append(2.0)
    assert said(Counters(), world) == ""


@pytest.mark.parametrize(("votes", "wrong"), [(70, False), (73, False), (74, True), (65, True)])
def test_a_number_under_null_is_left_out_as_far_as_it_was_there(votes: int, wrong: bool) -> None:
    world = told_post(votes=votes)
    world.wrote("client1", {"votes": None}, {})
    world.wrote("client2", {"votes": 8}, {})
    world.wrote("client1", {"votes": 70}, {"votes": None})
    assert bool(said(Counters(), world)) is wrong


@pytest.mark.parametrize(("votes", "wrong"), [(70, False), (40, False), (35, True), (75, True)])
def test_what_two_write_over_null_adds_up_without_what_was_there(votes: int, wrong: bool) -> None:
    world = told_post(votes=votes)
    for client, number in (("client1", 30), ("client2", 40)):
        world.wrote(client, {"votes": None}, {})
        world.wrote(client, {"votes": number}, {"votes": None})
    assert bool(said(Counters(), world)) is wrong


def test_a_row_that_two_make_holds_what_both_counted() -> None:
    world = told_post(votes=7)
    world.initial = {}
    world.inserted("client1", {"votes": 3})
    world.inserted("client2", {"votes": 4})
    assert said(Counters(), world) == ""
    world.store.execute("UPDATE post SET votes = 4")
    assert "makes 7" in said(Counters(), world)


# Sets.


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ('["home","new"]', ""),
        ('["home"]', 'lacks "new", which client1 at 1.0 s added and nobody took away'),
        ('["new"]', 'lacks "home", which was there first and nobody took away'),
        ('["home","new","x"]', 'has "x", which nobody added'),
    ],
)
def test_an_element_that_was_added_is_there(tags: str, words: str) -> None:
    world = told_post(tags=tags)
    world.wrote("client1", {"tags": '["new", "home"]'}, {})
    assert said(Sets(), world).removeprefix("post (1,) tags ") == words


@pytest.mark.parametrize(("tags", "wrong"), [("[]", False), ('["home"]', True)])
def test_an_element_that_somebody_saw_and_took_away_is_gone(tags: str, wrong: bool) -> None:
    world = told_post(tags=tags)
    world.wrote("client1", {"tags": "[]"}, {})
    assert bool(said(Sets(), world)) is wrong


def test_of_two_additions_one_that_no_removal_saw_stays() -> None:
    for tags, wrong in (('["home","p"]', False), ('["home"]', True)):
        world = told_post(tags=tags)
        world.wrote("client1", {"tags": '["home","p"]'}, {})
        world.wrote("client1", {"tags": '["home"]'}, {"tags": '["home","p"]'})
        world.wrote("client2", {"tags": '["home","p"]'}, {})
        assert bool(said(Sets(), world)) is wrong


def test_an_element_of_a_refused_change_is_told() -> None:
    world = told_post(tags='["home","new"]')
    made = world.wrote("client1", {"tags": '["home","new"]'}, {})
    witnessed(world, made, "1.0.1", there=False)
    assert "which was refused or lost with its author" in said(Sets(), world)


# Texts.


def typed(final: str, *edits: tuple[str, str]) -> str:
    world = told_post(body=final)
    for number, (before, after) in enumerate(edits):
        world.wrote(f"client{number + 1}", {"body": after}, {"body": before})
    return said(Texts(), world)


BOTH = (("one two three", "one red two three"), ("one two three", "one two blue three"))


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ("one red two blue three", ""),
        ("one two blue three", "lacks 'red', which client1 at 1.0 s typed"),
        ("one red blue three", "lacks 'two', which everybody's first file typed"),
        ("one r two ed blue three", "lacks 'red'"),
        ("one red two blue three blue", "has 'blue' 2 times, and it was typed once"),
        ("one red two blue three!", "has '!', which nobody typed"),
        ("one blue two red three", "client1 at 1.0 s had it otherwise"),
    ],
)
def test_what_two_typed_is_there_whole_and_once(final: str, words: str) -> None:
    found = typed(final, *BOTH)
    assert bool(found) is bool(words)
    assert words in found


@pytest.mark.parametrize(("final", "wrong"), [("one three", False), ("one two three", True)])
def test_a_word_that_was_deleted_stays_away(final: str, wrong: bool) -> None:
    assert bool(typed(final, ("one two three", "one three"))) is wrong


def test_a_word_that_somebody_deleted_later_may_be_gone() -> None:
    edits = (BOTH[0], ("one red two three", "one two three"))
    assert typed("one two three", *edits) == ""


def test_a_word_that_keeps_letters_of_another_is_not_judged() -> None:
    edits = (("one two three", "one tiro three"), ("one two three", "one tango three"))
    assert typed("one tirango three", *edits) == ""


def test_a_mark_that_two_typed_anew_with_its_letter_may_stand_twice() -> None:
    marked = "🚀e\u0301 one two three"
    edits = [("one two three", marked)]
    edits += [(marked, marked.replace("e", new, 1)) for new in ("", "a1")]
    assert typed("🚀\u0301a1\u0301 one two three", *edits) == ""
    assert "nobody typed" in typed("🚀\u0301a1\u0301 one two three\u0301\u0301", *edits)


def test_a_word_beside_another_without_a_space_is_there() -> None:
    edits = (("one two three", "one two three red"), ("one two three", "one two three, blue"))
    assert typed("one two three red, blue", *edits) == ""
    assert typed("one two three, bluered", *edits) == ""


def test_a_word_in_the_midst_of_a_larger_edit_may_have_been_typed_anew() -> None:
    edits = (("one two three", "red two blue"), ("one two three", "one three"))
    assert typed("red two blue", *edits) == ""


def test_a_text_over_a_deleted_row_may_take_away_what_it_had_not_read() -> None:
    world = told_post(body="new")
    world.wrote("client1", {"body": "one two red three"}, {})
    world.wrote("client2", {}, {})
    world.inserted("client2", {"body": "new"})
    assert said(Texts(), world) == ""
    world.wrote("client2", {"body": "new green"}, {"body": "new"})
    assert "lacks 'green'" in said(Texts(), world)


# Lists and JSON.


def steps(final: str, *edits: str) -> str:
    world = told_post(steps=final)
    for number, after in enumerate(edits):
        world.wrote(f"client{number + 1}", {"steps": after}, {})
    return said(Structures(), world)


ADDED = ('["a","buy",{"id":1,"done":false}]', '["buy","b",{"id":1,"done":true}]')


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ('["a","buy","b",{"id":1,"done":true}]', ""),
        ('["a","buy",{"id":1,"done":true}]', 'lacks "b", which client2 at 2.0 s put there'),
        ('["a","buy","b","b",{"id":1,"done":true}]', 'has "b" 2 times'),
        ('["b","buy","a",{"id":1,"done":true}]', "in this order"),
        ('["a","b",{"id":1,"done":true}]', 'lacks "buy", which everybody\'s first file put there'),
        ('["a","buy","b",{"id":1,"done":false}]', "had seen and replaced"),
        ('["a","buy","b","c",{"id":1,"done":true}]', 'has "c", which nobody put there'),
    ],
)
def test_what_two_put_into_a_list_is_there_once(final: str, words: str) -> None:
    found = steps(final, *ADDED)
    assert bool(found) is bool(words)
    assert words in found


def test_items_that_nobody_moved_keep_their_order() -> None:
    world = told_post(steps='["b","a","buy",{"id":1,"done":false}]')
    world.wrote("client1", {"steps": '["a","buy",{"id":1,"done":false}]'}, {})
    seen: dict[str, Value] = {"steps": '["a","buy",{"id":1,"done":false}]'}
    world.wrote("client2", {"steps": '["a","b","buy",{"id":1,"done":false}]'}, seen)
    assert "in this order" in said(Structures(), world)


def test_an_item_that_was_taken_out_stays_away() -> None:
    assert steps('[{"id":1,"done":false}]', '[{"id":1,"done":false}]') == ""
    found = steps('["buy",{"id":1,"done":false}]', '[{"id":1,"done":false}]')
    assert "had seen and taken out" in found


def test_items_that_were_moved_are_not_judged() -> None:
    moved = '[{"id":1,"done":false},"buy"]'
    assert steps('[{"id":1,"done":false},"buy","buy"]', moved, moved) == ""


def test_which_object_became_which_is_not_judged() -> None:
    """One edit takes out an object and puts in another: the first may have become the second."""
    assert steps('["buy"]', '["buy",{"id":2,"done":false}]', '["buy"]') == ""


def meta(final: str, *edits: str) -> str:
    world = told_post(meta=final)
    for number, after in enumerate(edits):
        world.wrote(f"client{number + 1}", {"meta": after}, {})
    return said(Structures(), world)


KEYS = (
    '{"box":{"a":"2"},"items":[1],"k":"v"}',
    '{"box":{"a":"1","b":"3"},"items":[1,2],"k":"v"}',
    '{"box":{"a":"1"},"items":[0,1]}',
)


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ('{"box":{"a":"2","b":"3"},"items":[0,1,2]}', ""),
        ('{"box":{"a":"2"},"items":[0,1,2]}', "box.b is nothing, which client2"),
        ('{"box":{"a":"1","b":"3"},"items":[0,1,2]}', 'box.a is "1", which client1'),
        ('{"box":{"a":"2","b":"3"},"items":[0,1,2],"k":"v"}', 'k is "v", which client3'),
        ('{"box":{"a":"2","b":"3"},"items":[1,2]}', "items lacks 0"),
        ('{"box":{"a":"9","b":"3"},"items":[0,1,2]}', 'box.a is "9", which nobody wrote there'),
    ],
)
def test_members_that_different_people_set_are_all_there(final: str, words: str) -> None:
    found = meta(final, *KEYS)
    assert bool(found) is bool(words)
    assert words in found


def test_of_two_objects_made_in_one_place_one_may_be_gone() -> None:
    made = [f'{{"box":{{"a":"1"}},"items":[1],"k":"v","new":{{"{key}":1}}}}' for key in "xy"]
    assert meta(made[0], *made) == ""


def test_a_member_of_a_refused_change_is_told() -> None:
    final = '{"box":{"a":"1"},"items":[1],"k":"w"}'
    world = told_post(meta=final)
    made = world.wrote("client1", {"meta": final}, {})
    witnessed(world, made, "1.0.1", there=False)
    assert "which was refused or lost with its author" in said(Structures(), world)


# What shows in a column that merges is a register.


@pytest.mark.parametrize(("value", "words"), [(None, ""), (6, "is older than None"), (7, "")])
def test_null_that_was_put_there_last_shows(value: Value, words: str) -> None:
    world = told_post(votes=value)
    world.wrote("client1", {"votes": 6}, {}, at=1)
    world.wrote("client2", {"votes": None}, {}, at=1 + 2 * CLOSE_SECONDS)
    if value == 7:
        world.wrote("client1", {"votes": 7}, {"votes": 6}, at=2 + 2 * CLOSE_SECONDS)
    found = said(Registers(), world)
    assert bool(found) is bool(words)
    assert words in found


def test_a_value_that_merges_is_nobodys_own() -> None:
    world = told_post(votes=9, body="one red two blue three")
    world.wrote("client1", {"votes": 7, "body": "one red two three"}, {}, at=1)
    world.wrote("client2", {"votes": 7, "body": "one two blue three"}, {}, at=9)
    assert said(Registers(), world) == ""


def test_json_that_is_only_written_otherwise_is_no_edit() -> None:
    world = told_post(tags=None)
    world.wrote("client1", {"tags": None}, {}, at=1)
    world.wrote("client2", {"tags": '[ "home" ]'}, {}, at=9)
    assert said(Registers(), world) == ""
