"""Applying what arrives: unique values that move, rows that are refused, deletes and edits."""

import pytest

from tests.engine.conftest import MakePeer
from tests.engine.loopback import Refusal, Relay
from tests.engine.peer import Peer

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, name TEXT)"


@pytest.fixture
def pair(make_peer: MakePeer, relay: Relay) -> tuple[Peer, Peer]:
    """Two replicas of one table with three rows."""
    a, b = make_peer(USERS), make_peer()
    a.track("users")
    a.write("INSERT INTO users VALUES (1, 'a', 'Ann'), (2, 'b', 'Bob'), (3, 'c', 'Cy')")
    relay.sync(a, b)
    return a, b


EMAILS = "SELECT id, email FROM users ORDER BY id"


def test_a_swap_of_two_unique_values_arrives(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit(
        "UPDATE users SET email = 'x' WHERE id = 1",
        "UPDATE users SET email = 'a' WHERE id = 2",
        "UPDATE users SET email = 'b' WHERE id = 1",
    )
    relay.sync(a, b)
    assert b.rows(EMAILS) == [(1, "b"), (2, "a"), (3, "c")]
    assert b.rows("SELECT name FROM users ORDER BY id") == [("Ann",), ("Bob",), ("Cy",)]
    assert b.differences() == []
    assert b.fold() == []


def test_a_swap_arrives_beside_a_row_that_the_table_refuses(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    b.write(
        "CREATE TRIGGER no BEFORE INSERT ON users WHEN NEW.name = 'bad'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    a.commit(
        "UPDATE users SET email = 'x' WHERE id = 1",
        "UPDATE users SET email = 'a' WHERE id = 2",
        "UPDATE users SET email = 'b' WHERE id = 1",
        "INSERT INTO users VALUES (9, 'z', 'bad')",
    )
    relay.sync(a, b)
    assert b.rows(EMAILS) == [(1, "b"), (2, "a"), (3, "c")]
    assert b.states("users")[9] == "blocked"
    assert b.differences() == []


def test_a_unique_value_goes_round_among_three(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit(
        "UPDATE users SET email = 'x' WHERE id = 1",
        "UPDATE users SET email = 'b2' WHERE id = 2",
        "UPDATE users SET email = 'b' WHERE id = 3",
        "UPDATE users SET email = 'c' WHERE id = 1",
        "UPDATE users SET email = 'a' WHERE id = 2",
    )
    relay.sync(a, b)
    assert b.rows(EMAILS) == [(1, "c"), (2, "a"), (3, "b")]


def test_a_value_freed_by_a_delete_arrives_with_it(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit("DELETE FROM users WHERE id = 1", "INSERT INTO users VALUES (4, 'a', 'Ada')")
    relay.sync(a, b)
    assert b.rows(EMAILS) == [(2, "b"), (3, "c"), (4, "a")]


def test_a_row_that_a_pending_one_collides_with_waits_and_nothing_is_replaced(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    relay.keep_unique("users", "email")
    a.write("INSERT INTO users VALUES (4, 'x', 'theirs')")
    relay.sync(a)
    b.write("INSERT INTO users VALUES (5, 'x', 'ours')")
    relay.connect(b)
    assert b.rows("SELECT id, name FROM users WHERE email = 'x'") == [(5, "ours")]
    assert b.states("users")[5] == "pending"
    relay.settle()
    assert b.rows("SELECT id, name FROM users WHERE email = 'x'") == [(4, "theirs")]
    assert [line[:4] for line in b.rejected()] == [("users", 5, "insert", "constraint")]
    assert b.replica.queued() == 0
    assert b.differences() == []


def test_a_waiting_row_arrives_once_the_pending_one_is_accepted_and_moved(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    _, b = pair
    relay.connect(b)
    b.write("INSERT INTO users VALUES (5, 'x', 'ours')")
    b.fold()
    relay.edit("users", (4,), at=10, email="x", name="theirs")
    relay.links[0].deliver()
    assert b.rows("SELECT id FROM users WHERE email = 'x'") == [(5,)]
    relay.refuse = lambda changeset, _after: relay_moves(relay)
    relay.settle()
    assert b.rows("SELECT id, email FROM users WHERE id > 3 ORDER BY id") == [(4, "x"), (5, "y")]
    assert b.states("users")[5] == "synced"
    assert b.differences() == []


def relay_moves(relay: Relay) -> Refusal | None:
    """Accept, and let the realm move the accepted row's value right after."""
    relay.refuse = lambda _changeset, _after: None
    relay.after_next_commit = lambda: relay.edit("users", (5,), at=99, email="y")
    return None


def test_commits_behind_one_that_waits_wait_too_and_arrive_in_order(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    _, b = pair
    relay.keep_unique("users", "email")
    relay.connect(b)
    b.write("INSERT INTO users VALUES (5, 'x', 'ours')")
    b.fold()
    relay.edit("users", (4,), at=10, email="x", name="theirs")
    relay.edit("users", (1,), at=11, name="later")
    relay.links[0].deliver()
    assert b.rows("SELECT name FROM users WHERE id = 1") == [("Ann",)]
    relay.settle()
    assert b.rows("SELECT name FROM users WHERE id = 1") == [("later",)]
    assert b.rows("SELECT id FROM users WHERE email = 'x'") == [(4,)]


def test_what_waits_survives_a_reconnect(pair: tuple[Peer, Peer], relay: Relay) -> None:
    _, b = pair
    relay.keep_unique("users", "email")
    b.write("INSERT INTO users VALUES (5, 'x', 'ours')")
    relay.edit("users", (4,), at=10, email="x", name="theirs")
    relay.connect(b).close()
    relay.edit("users", (1,), at=11, name="later")
    relay.connect(b).close()
    assert b.rows("SELECT id FROM users WHERE email = 'x'") == [(5,)]
    relay.sync(b)
    assert b.rows("SELECT id FROM users WHERE email = 'x'") == [(4,)]
    assert b.rows("SELECT name FROM users WHERE id = 1") == [("later",)]
    assert b.differences() == []


def test_reverting_into_a_value_that_later_work_took_wedges_nothing(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    _, b = pair
    relay.keep_unique("users", "email")
    b.commit("UPDATE users SET email = 'c2' WHERE id = 1", "UPDATE users SET name = 'bad'")
    b.commit("UPDATE users SET email = 'a' WHERE id = 2")
    once = iter([Refusal()])
    unique = relay.refuse
    relay.refuse = lambda changeset, after: next(once, None) or unique(changeset, after)
    relay.sync(b)
    assert b.rows(EMAILS) == [(1, "a"), (2, "b"), (3, "c")]
    assert b.states("users") == {1: "synced", 2: "synced", 3: "synced"}
    assert b.differences() == []


def test_a_row_that_the_table_refuses_is_blocked_and_tried_again(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)"), make_peer()
    b.write("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT CHECK (n < 10))")
    a.track("t")
    b.track("t")
    a.write("INSERT INTO t VALUES (1, 50), (2, 5)")
    relay.sync(a, b)
    assert b.rows("SELECT id, n FROM t") == [(2, 5)]
    assert b.states("t") == {1: "blocked", 2: "synced"}
    assert b.differences() == []
    assert b.fold() == []
    assert b.replica.standing().blocked == 1
    a.write("UPDATE t SET n = 7 WHERE id = 1")
    relay.sync(a, b)
    assert b.rows("SELECT id, n FROM t ORDER BY id") == [(1, 7), (2, 5)]
    assert b.states("t") == {1: "synced", 2: "synced"}


def test_a_blocked_update_leaves_the_row_as_it_was(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT, note)"), make_peer()
    b.write("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT CHECK (n < 10), note)")
    a.track("t")
    b.track("t")
    a.write("INSERT INTO t VALUES (1, 5, 'x')")
    relay.sync(a, b)
    a.write("UPDATE t SET n = 50")
    relay.sync(a, b)
    assert b.rows("SELECT n FROM t") == [(5,)]
    b.write("UPDATE t SET note = 'y'")
    assert b.edits() == [{"note": "y"}]
    relay.sync(b, a)
    assert a.rows("SELECT n, note FROM t") == [(50, "y")]


def test_a_trigger_that_needs_what_only_the_app_has_blocks_its_rows_alone(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v)"), make_peer()
    a.track("t")
    a.write("CREATE TABLE free (id INTEGER PRIMARY KEY)")
    a.track("free")
    relay.sync(a, b)
    b.app.create_function("only_in_the_app", 0, lambda: 1)
    b.write("CREATE TRIGGER touch AFTER INSERT ON t BEGIN SELECT only_in_the_app(); END")
    a.write("INSERT INTO t VALUES (1, 'x')", "INSERT INTO free VALUES (1)")
    relay.sync(a, b)
    assert b.rows("SELECT id FROM free") == [(1,)]
    assert b.states("t") == {1: "blocked"}
    b.write("DROP TRIGGER touch")
    a.write("INSERT INTO free VALUES (2)")
    relay.sync(a, b)
    assert b.rows("SELECT v FROM t") == [("x",)]


@pytest.mark.parametrize("clause", ["REPLACE", "IGNORE", "ROLLBACK", "FAIL"])
def test_a_tables_own_conflict_clause_replaces_and_drops_nothing(
    make_peer: MakePeer, relay: Relay, clause: str
) -> None:
    a = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    b = make_peer(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v UNIQUE ON CONFLICT {clause})")
    a.track("t")
    b.track("t")
    a.write("INSERT INTO t VALUES (1, 'x')")
    relay.sync(a, b)
    a.write("INSERT INTO t VALUES (2, 'x')")
    relay.sync(a, b)
    assert b.rows("SELECT id FROM t") == [(1,)]
    assert b.states("t") == {1: "synced", 2: "blocked"}
    assert b.differences() == []


def test_the_later_edit_beats_a_delete_and_brings_the_row_back_whole(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.write("DELETE FROM users WHERE id = 1", at=100)
    b.write("UPDATE users SET name = 'Anna' WHERE id = 1", at=200)
    relay.sync(a, b)
    relay.sync(a)
    for peer in (a, b):
        assert peer.rows("SELECT email, name FROM users WHERE id = 1") == [("a", "Anna")]
        assert peer.differences() == []


def test_the_later_delete_beats_an_edit(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    b.write("UPDATE users SET name = 'Anna' WHERE id = 1", at=100)
    a.write("DELETE FROM users WHERE id = 1", at=200)
    relay.sync(a, b)
    relay.sync(a)
    for peer in (a, b):
        assert peer.rows("SELECT id FROM users") == [(2,), (3,)]
        assert peer.differences() == []


def test_both_deleting_one_row_is_one_delete(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.write("DELETE FROM users WHERE id = 1")
    b.write("DELETE FROM users WHERE id = 1")
    relay.sync(a, b)
    assert a.rows("SELECT id FROM users") == b.rows("SELECT id FROM users") == [(2,), (3,)]


def test_the_later_edit_of_one_column_wins_everywhere(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.write("UPDATE users SET name = 'late' WHERE id = 1", at=200)
    b.write("UPDATE users SET name = 'early' WHERE id = 1", at=100)
    relay.sync(a, b)
    relay.sync(a)
    assert a.rows("SELECT name FROM users WHERE id = 1") == [("late",)]
    assert b.rows("SELECT name FROM users WHERE id = 1") == [("late",)]


def test_what_others_write_between_a_fold_and_an_apply_is_an_edit(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    _, b = pair
    link = relay.connect(b)
    relay.edit("users", (1,), at=100, name="theirs")
    b.write("UPDATE users SET name = 'ours' WHERE id = 1", at=200)
    link.deliver()
    assert b.rows("SELECT name FROM users WHERE id = 1") == [("ours",)]
    relay.settle()
    assert relay.stated("users", 1)["name"] == "ours"
