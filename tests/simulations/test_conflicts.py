"""What became of edits that did not know of each other, as a history tells it."""

from reunite.cells.register import Value
from reunite_simulations.conflicts import Conflicts, Merged, Overwritten, Side, found
from tests.simulations.told import told, told_post


def test_edits_of_two_columns_that_did_not_know_of_each_other_are_merged() -> None:
    world = told(title="t1", note="n2")
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {"note": "n2"}, {})
    sides = Side("client1", 1.0, {"title": "t1"}), Side("client2", 2.0, {"note": "n2"})
    assert found(world) == Conflicts([Merged("todo", (1,), *sides)], [])


def test_an_edit_that_had_seen_the_other_is_no_merge() -> None:
    world = told(title="t1", note="n2")
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {"note": "n2"}, {"title": "t1"})
    assert found(world) == Conflicts([], [])


def test_a_merge_that_was_edited_later_was_one() -> None:
    world = told()
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {"note": "n2"}, {})
    world.wrote("client1", {}, {"title": "t1", "note": "n2"})
    assert len(found(world).merged) == 1


def test_of_two_edits_of_one_cell_one_gave_way() -> None:
    world = told(title="t3")
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {"title": "t2"}, {})
    world.wrote("client2", {"title": "t3"}, {"title": "t2"})
    loser, winner = Side("client1", 1.0, {"title": "t1"}), Side("client2", 2.0, {"title": "t2"})
    overwritten = Overwritten("todo", (1,), "title", loser, winner)
    assert found(world) == Conflicts([], [overwritten])


def test_an_edit_that_somebody_saw_and_replaced_did_not_give_way() -> None:
    world = told(title="t2")
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {"title": "t2"}, {"title": "t1"})
    assert found(world) == Conflicts([], [])


def test_an_edit_gives_way_to_a_deletion_that_had_not_seen_it() -> None:
    world = told()
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {}, {})
    loser, winner = Side("client1", 1.0, {"title": "t1"}), Side("client2", 2.0, {})
    assert found(world).overwritten == [Overwritten("todo", (1,), "title", loser, winner)]


def test_what_may_have_been_lost_with_its_file_says_nothing() -> None:
    world = told(title="t2")
    world.wrote("client1", {"title": "t1"}, {})
    world.wrote("client2", {"title": "t2"}, {})
    world.history.transactions[0].doubtful = True
    assert found(world) == Conflicts([], [])


def test_edits_of_one_value_that_merges_are_told_by_their_parts() -> None:
    world = told_post(body="one red two blue three", meta='{"box":{"a":"2","b":3}}')
    world.wrote("client1", {"body": "one red two three", "meta": '{"box":{"a":"2"}}'}, {})
    meta = '{"box":{"a":"1","b":3},"items":[1],"k":"v"}'
    world.wrote("client2", {"body": "one two blue three", "meta": meta}, {})
    sides = Side("client1", 1.0, {"body": "red"}), Side("client2", 2.0, {"body": "blue"})
    others = (
        Side("client1", 1.0, {"meta": 'box a "2"'}),
        Side("client2", 2.0, {"meta": "box b 3"}),
    )
    merged = [Merged("post", (1,), *sides), Merged("post", (1,), *others)]
    assert found(world) == Conflicts(merged, [])


def test_an_edit_that_had_seen_what_was_typed_is_no_merge() -> None:
    world = told_post(body="one red two blue three", votes=9)
    world.wrote("client1", {"body": "one red two three", "votes": 7}, {})
    seen: dict[str, Value] = {"body": "one red two three", "votes": 7}
    world.wrote("client2", {"body": "one red two blue three", "votes": 9}, seen)
    assert found(world) == Conflicts([], [])
