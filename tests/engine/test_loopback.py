"""The relay in memory, which the other tests trust: two replicas meet over it."""

from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, done INTEGER DEFAULT 0)"


def test_a_row_goes_from_one_replica_to_another_that_had_no_such_table(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.write("INSERT INTO todo VALUES (1, 'milk', 0)")
    relay.sync(a, b)
    assert b.rows("SELECT id, title, done FROM todo") == [(1, "milk", 0)]
    assert a.states("todo") == b.states("todo") == {1: "synced"}
    assert a.differences() == b.differences() == []


def test_edits_of_different_columns_made_apart_both_survive(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.write("INSERT INTO todo VALUES (1, 'milk', 0)")
    relay.sync(a, b)
    a.write("UPDATE todo SET title = 'bread'")
    b.write("UPDATE todo SET done = 1")
    relay.sync(a, b)
    assert a.rows("SELECT title, done FROM todo") == [("bread", 1)]
    assert b.rows("SELECT title, done FROM todo") == [("bread", 1)]
