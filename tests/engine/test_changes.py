"""The log of changes: what an app that follows it is told of each row, and whose doing it was."""

import sqlite3

import pytest

from reunite import UsageError, changes
from reunite.changes import Change, Changes
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

TODO = "CREATE TABLE todo (id TEXT PRIMARY KEY, title TEXT, done INTEGER, votes COUNTER)"
ITEM = "CREATE TABLE item (list TEXT, place INTEGER, title TEXT, PRIMARY KEY (list, place))"


@pytest.fixture
def follower(make_peer: MakePeer) -> "Follower":
    """An app that follows its file, which has one row."""
    peer = make_peer(TODO, "INSERT INTO todo VALUES ('milk', 'Buy milk', 0, 0)")
    peer.track("todo")
    return Follower(peer)


class Follower:
    """Asks for what is new, as the watching connection does."""

    def __init__(self, peer: Peer, after: str | None = None) -> None:
        self.peer = peer
        self.token = after
        peer.replica.follow_changes()

    def news(self, *tables: str) -> list[Change]:
        """What has changed since it was last asked."""
        self.peer.replica.follow_changes()
        found = changes.since(self.peer.engine, tables, self.token)
        self.token = found.token
        return list(found)

    def told(self, *tables: str) -> list[tuple[object, ...]]:
        """The same, short: kind, key, columns, origin."""
        return [(c.kind, c.key, *sorted(c.columns), c.origin) for c in self.news(*tables)]


def test_who_begins_is_told_all_rows_and_then_differences(follower: Follower) -> None:
    (first,) = follower.news()
    assert first == Change(
        "todo",
        "milk",
        "inserted",
        {"id": "milk", "title": "Buy milk", "done": 0, "votes": 0},
        frozenset({"title", "done", "votes"}),
        "here",
    )
    assert follower.news() == []
    follower.peer.commit("UPDATE todo SET done = 1", "INSERT INTO todo VALUES ('a', 'A', 0, 0)")
    assert follower.told() == [
        ("inserted", "a", "done", "title", "votes", "here"),
        ("updated", "milk", "done", "here"),
    ]
    follower.peer.commit("DELETE FROM todo WHERE id = 'milk'")
    assert follower.told() == [("deleted", "milk", "here")]


def test_an_empty_file_gives_a_token_to_begin_with(make_peer: MakePeer) -> None:
    peer = make_peer(TODO)
    peer.track("todo")
    follower = Follower(peer)
    found = changes.since(peer.engine, (), None)
    assert (len(found), list(found)) == (0, [])
    follower.token = found.token
    peer.commit("INSERT INTO todo (id) VALUES ('a')")
    assert follower.told() == [("inserted", "a", "done", "title", "votes", "here")]


def test_several_changes_of_a_row_are_told_as_one(follower: Follower) -> None:
    follower.news()
    peer = follower.peer
    peer.commit("UPDATE todo SET done = 1")
    peer.commit("UPDATE todo SET title = 'Oats', votes = votes + 1")
    peer.commit("INSERT INTO todo VALUES ('a', 'A', 0, 0)")
    peer.commit("UPDATE todo SET title = 'B' WHERE id = 'a'")
    milk, new = sorted(follower.news(), key=lambda change: change.kind, reverse=True)
    assert milk.kind == "updated"
    assert milk.columns == {"title", "done", "votes"}
    assert (new.kind, new.row) == ("inserted", {"id": "a", "title": "B", "done": 0, "votes": 0})


def test_what_came_and_went_between_two_looks_is_told_as_gone(follower: Follower) -> None:
    follower.news()
    follower.peer.commit("INSERT INTO todo (id) VALUES ('a')")
    follower.peer.commit("DELETE FROM todo WHERE id = 'a'")
    assert follower.told() == [("deleted", "a", "here")]


def test_a_row_that_is_made_again_is_inserted_again(follower: Follower) -> None:
    follower.news()
    follower.peer.commit("DELETE FROM todo")
    follower.peer.commit("INSERT INTO todo (id, title) VALUES ('milk', 'again')")
    ((kind, key, *_),) = follower.told()
    assert (kind, key) == ("inserted", "milk")


def test_who_made_a_row_again_is_told_before_those_who_changed_it(
    met: tuple["Follower", Peer], relay: Relay
) -> None:
    follower, other = met
    follower.peer.commit("UPDATE todo SET done = 1")
    follower.peer.commit("DELETE FROM todo")
    relay.sync(follower.peer, other)
    follower.news()
    other.commit("INSERT INTO todo VALUES ('milk', 'again', 0, 0)")
    relay.sync(other, follower.peer)
    follower.peer.commit("UPDATE todo SET done = 1")
    assert [(kind, origin) for kind, *_, origin in follower.told()] == [
        ("inserted", "replica"),
        ("updated", "here"),
    ]


def test_a_write_that_changes_nothing_is_no_change(follower: Follower) -> None:
    follower.news()
    follower.peer.commit("UPDATE todo SET title = title, done = 0")
    assert follower.news() == []


def test_a_transaction_that_is_rolled_back_is_no_change(follower: Follower) -> None:
    follower.news()
    with pytest.raises(sqlite3.OperationalError):
        follower.peer.commit("DELETE FROM todo", "no SQL")
    assert follower.news() == []
    follower.peer.commit("UPDATE todo SET done = 1")
    assert follower.told() == [("updated", "milk", "done", "here")]


def test_other_programs_writes_are_of_here(follower: Follower) -> None:
    follower.news()
    follower.peer.write("UPDATE todo SET title = 'by a tool'")
    assert follower.told() == [("updated", "milk", "title", "here")]


def test_a_token_goes_on_after_a_restart(follower: Follower) -> None:
    follower.news()
    follower.peer.commit("UPDATE todo SET done = 1")
    again = Follower(follower.peer, after=follower.token)
    assert again.told() == follower.told() == [("updated", "milk", "done", "here")]
    assert again.told() == []


def test_each_follower_has_its_own_place_and_tables(make_peer: MakePeer) -> None:
    peer = make_peer(TODO, ITEM)
    peer.track("todo", "item")
    first, second = Follower(peer), Follower(peer)
    first.news()
    second.news("item")
    peer.commit("INSERT INTO todo (id) VALUES ('a')", "INSERT INTO item VALUES ('l', 1, 'x')")
    assert second.told("ITEM") == [("inserted", ("l", 1), "title", "here")]
    assert [change.table for change in first.news()] == ["todo", "item"]
    peer.commit("UPDATE todo SET done = 1")
    assert second.news("item") == []


def test_parents_come_before_their_children_and_deletes_last(make_peer: MakePeer) -> None:
    peer = make_peer(
        "CREATE TABLE child (id TEXT PRIMARY KEY, of TEXT REFERENCES parent (id))",
        "CREATE TABLE parent (id TEXT PRIMARY KEY)",
        "INSERT INTO parent VALUES ('old')",
        "INSERT INTO child VALUES ('old', 'old')",
    )
    peer.track("child", "parent")
    follower = Follower(peer)
    follower.news()
    peer.commit(
        "DELETE FROM child",
        "DELETE FROM parent",
        "INSERT INTO parent VALUES ('new')",
        "INSERT INTO child VALUES ('new', 'new')",
    )
    assert [(c.table, c.key, c.kind) for c in follower.news()] == [
        ("parent", "new", "inserted"),
        ("child", "new", "inserted"),
        ("child", "old", "deleted"),
        ("parent", "old", "deleted"),
    ]


@pytest.mark.parametrize("origin", ["here", "replica", "backend", "", "x" * 65])
def test_an_origin_has_a_name_of_its_own(origin: str) -> None:
    with pytest.raises(UsageError, match="origin"):
        changes.check_origin(origin)


@pytest.mark.parametrize("token", ["", "x", "1-", "-1", "1-2-3", "12-1"])
def test_a_token_of_elsewhere_is_refused(follower: Follower, token: str) -> None:
    follower.news()
    with pytest.raises(UsageError, match="token"):
        changes.since(follower.peer.engine, (), token)


def test_a_token_of_a_later_state_of_the_file_is_refused(follower: Follower) -> None:
    follower.news()
    assert follower.token is not None
    log, _, turn = follower.token.partition("-")
    with pytest.raises(UsageError, match="later state"):
        changes.since(follower.peer.engine, (), f"{log}-{int(turn, 16) + 1:x}")


def test_a_table_that_is_not_tracked_cannot_be_followed(follower: Follower) -> None:
    with pytest.raises(UsageError, match="not tracked"):
        changes.since(follower.peer.engine, ("nope",), None)


# What comes from elsewhere.


@pytest.fixture
def met(make_peer: MakePeer, relay: Relay) -> tuple[Follower, Peer]:
    """Two files that have met, and one who follows the first."""
    one = make_peer(TODO, "INSERT INTO todo VALUES ('milk', 'Buy milk', 0, 0)")
    two = make_peer()
    one.track("todo")
    relay.sync(one, two)
    follower = Follower(one)
    follower.news()
    return follower, two


def test_another_replicas_edits_are_told_as_such(met: tuple[Follower, Peer], relay: Relay) -> None:
    follower, two = met
    two.commit("UPDATE todo SET votes = votes + 2, title = 'Oats'")
    two.commit("INSERT INTO todo (id) VALUES ('theirs')")
    relay.sync(two, follower.peer)
    assert sorted(follower.told()) == [
        ("inserted", "theirs", "done", "title", "votes", "replica"),
        ("updated", "milk", "title", "votes", "replica"),
    ]
    two.commit("DELETE FROM todo WHERE id = 'theirs'")
    relay.sync(two, follower.peer)
    assert follower.told() == [("deleted", "theirs", "replica")]


def test_a_backends_edits_are_told_as_such(met: tuple[Follower, Peer], relay: Relay) -> None:
    follower, _ = met
    relay.edit("todo", ("milk",), 10, title="by the backend")
    relay.edit("todo", ("new",), 10, title="by the backend")
    relay.sync(follower.peer)
    told = [(c.kind, c.key, c.origin) for c in follower.news()]
    assert told == [("updated", "milk", "backend"), ("inserted", "new", "backend")]
    relay.delete("todo", ("new",), 20)
    relay.sync(follower.peer)
    assert follower.told() == [("deleted", "new", "backend")]


def test_ones_own_edits_are_told_once_and_not_again_when_the_relay_has_them(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, _ = met
    follower.peer.commit("UPDATE todo SET done = 1, votes = 7")
    assert follower.told() == [("updated", "milk", "done", "votes", "here")]
    relay.sync(follower.peer)
    assert follower.news() == []


def test_a_row_that_several_changed_is_told_for_each(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, two = met
    two.commit("UPDATE todo SET title = 'Oats'", at=10)
    follower.peer.commit("UPDATE todo SET done = 1", at=20)
    relay.edit("todo", ("milk",), 30, title="Bread")
    relay.sync(two, follower.peer)
    found = follower.news()
    assert {(c.origin, *c.columns) for c in found} == {("here", "done"), ("backend", "title")}
    assert {c.row["title"] for c in found if c.row} == {"Bread"}


def test_what_a_refusal_takes_back_is_a_change_of_here(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, _ = met
    relay.keep_unique("todo", "title")
    follower.peer.commit("INSERT INTO todo (id, title) VALUES ('b', 'Buy milk')")
    follower.peer.commit("UPDATE todo SET done = 1 WHERE id = 'milk'")
    assert len(follower.news()) == 2
    relay.sync(follower.peer)
    assert follower.told() == [("deleted", "b", "here")]


def test_a_table_that_is_tracked_later_is_told(make_peer: MakePeer) -> None:
    peer = make_peer(TODO, ITEM, "INSERT INTO item VALUES ('l', 1, 'x')")
    peer.track("todo")
    follower = Follower(peer)
    follower.news()
    peer.track("item")
    assert follower.told() == [("inserted", ("l", 1), "title", "here")]


def test_a_first_load_is_told(make_peer: MakePeer, relay: Relay) -> None:
    one = make_peer(TODO, "INSERT INTO todo VALUES ('milk', 'Buy milk', 0, 0)")
    one.track("todo")
    one.commit("INSERT INTO todo VALUES ('a', 'A', 0, 0)")
    two = make_peer()
    follower = Follower(two)
    follower.news()
    relay.sync(one, two)
    assert sorted((c.kind, c.key, c.origin) for c in follower.news()) == [
        ("inserted", "a", "replica"),
        ("inserted", "milk", "replica"),
    ]


def test_a_file_that_nobody_follows_keeps_no_log(make_peer: MakePeer) -> None:
    peer = make_peer(TODO)
    peer.track("todo")
    peer.commit("INSERT INTO todo (id) VALUES ('a')")
    assert peer.rows("SELECT count(*) FROM _reunite_changes") == [(0,)]


def test_the_log_is_no_longer_than_the_tables(follower: Follower) -> None:
    for number in range(20):
        follower.peer.commit(f"UPDATE todo SET done = {number}")
    assert follower.peer.rows("SELECT count(*) FROM _reunite_changes") == [(1,)]


@pytest.mark.parametrize("key", ["id INTEGER PRIMARY KEY", "id, x, PRIMARY KEY (id, x)"])
def test_noting_and_telling_take_work_that_follows_the_number_of_rows(
    make_peer: MakePeer, key: str
) -> None:
    def steps_of(rows: int) -> int:
        peer = make_peer(f"CREATE TABLE t (y, {key})")
        many = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {rows})"
        peer.write(
            f"{many} INSERT INTO t (id) SELECT i FROM n"
            if "x" not in key
            else f"{many} INSERT INTO t (id, x) SELECT i, i FROM n"
        )
        peer.track("t")
        follower = Follower(peer)
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        peer.engine.set_progress_handler(count, 100)
        assert len(follower.news()) == rows
        peer.write("UPDATE t SET y = 1")
        assert len(follower.news()) == rows
        peer.engine.set_progress_handler(None, 0)
        return steps

    assert steps_of(1200) < 6 * steps_of(300)


def test_changes_read_as_a_sequence() -> None:
    change = Change("t", 1, "deleted", None, frozenset(), "here")
    found = Changes("1-1", (change,))
    assert (len(found), found[0], list(found), change in found) == (1, change, [change], True)


def test_what_two_counted_is_told_as_what_the_other_did(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, two = met
    follower.peer.commit("UPDATE todo SET votes = votes + 1", at=1000)
    two.commit("UPDATE todo SET votes = votes + 5", at=10)
    assert follower.told() == [("updated", "milk", "votes", "here")]
    relay.sync(two, follower.peer)
    assert follower.told() == [("updated", "milk", "votes", "replica")]
    assert follower.peer.rows("SELECT votes FROM todo") == [(6,)]


def test_a_column_that_this_file_gets_late_is_told(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, two = met
    two.write("ALTER TABLE todo ADD COLUMN extra TEXT", "UPDATE todo SET extra = 'from two'")
    relay.sync(two, follower.peer)
    assert follower.news() == []
    follower.peer.write("ALTER TABLE todo ADD COLUMN extra TEXT")
    (change,) = follower.news()
    assert (*change.columns, change.origin) == ("extra", "replica")
    assert change.row is not None
    assert change.row["extra"] == "from two"


def test_an_edit_of_a_column_that_was_renamed_since_tells_all_columns(follower: Follower) -> None:
    follower.news()
    follower.peer.commit("UPDATE todo SET title = 'Oats'")
    follower.peer.write("ALTER TABLE todo RENAME COLUMN title TO name")
    (change,) = follower.news()
    assert change.kind == "updated"
    assert change.columns == {"name", "done", "votes"}


def test_a_token_of_before_a_copy_went_its_own_way_is_refused(
    met: tuple[Follower, Peer], relay: Relay, make_peer: MakePeer
) -> None:
    follower, _ = met
    follower.peer.commit("UPDATE todo SET done = 1")
    copy = make_peer(copy_of=follower.peer)
    follower.peer.commit("UPDATE todo SET done = 2")
    relay.sync(follower.peer)
    copy.commit("UPDATE todo SET title = 'of the copy'")
    relay.sync(copy)
    assert follower.news(), "its own tokens stay good"
    with pytest.raises(UsageError, match="another file"):
        changes.since(copy.engine, (), follower.token)


def test_who_begins_late_is_told_each_row_once_and_nothing_of_the_dead(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, two = met
    peer = follower.peer
    peer.commit("INSERT INTO todo (id) VALUES ('dead')")
    two.commit("UPDATE todo SET title = 'of two'", at=10)
    relay.sync(two, peer)
    peer.commit("UPDATE todo SET done = 1 WHERE id = 'milk'", "DELETE FROM todo WHERE id = 'dead'")
    assert Follower(peer).told() == [("inserted", "milk", "done", "title", "votes", "here")]


def test_a_row_that_is_made_again_says_nothing_of_its_former_life(
    met: tuple[Follower, Peer], relay: Relay
) -> None:
    follower, two = met
    two.commit("UPDATE todo SET title = 'of two'", at=10)
    relay.sync(two, follower.peer)
    follower.peer.commit("DELETE FROM todo", at=20)
    follower.peer.commit("INSERT INTO todo (id) VALUES ('milk')", at=30)
    assert follower.told() == [("inserted", "milk", "done", "title", "votes", "here")]
    two.commit("UPDATE todo SET done = 1", at=40)
    relay.sync(follower.peer, two)
    two.commit("DELETE FROM todo", at=50)
    relay.sync(two, follower.peer)
    assert follower.told() == [("deleted", "milk", "replica")]
