"""Triggers and foreign keys of the app: their effects are edits where the app wrote."""

import sqlite3

import pytest

from reunite.cells.register import Value
from reunite.outbox import pending
from reunite.payload import Entry
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

LISTS = "CREATE TABLE list (id INTEGER PRIMARY KEY, name TEXT)"
TODOS = (
    "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, list_id INTEGER"
    " REFERENCES list ON DELETE {action})"
)


def family(make_peer: MakePeer, action: str) -> Peer:
    peer = make_peer(LISTS, TODOS.format(action=action))
    peer.track("list", "todo")
    peer.write("INSERT INTO list VALUES (1, 'home'), (2, 'work')")
    peer.write("INSERT INTO todo VALUES (1, 'milk', 1), (2, 'mail', 2)")
    return peer


def test_what_a_trigger_sets_is_part_of_the_edit(make_peer: MakePeer) -> None:
    peer = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v, at)")
    peer.write(
        "CREATE TRIGGER touch AFTER UPDATE ON t BEGIN"
        " UPDATE t SET at = 'now' WHERE id = NEW.id AND at IS NOT 'now'; END"
    )
    peer.track("t")
    peer.write("INSERT INTO t VALUES (1, 'a', 'then')")
    peer.fold()
    peer.write("UPDATE t SET v = 'b'")
    assert peer.edits() == [{"v": "b", "at": "now"}]


def test_what_a_trigger_inserts_elsewhere_is_part_of_the_changeset(make_peer: MakePeer) -> None:
    peer = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    peer.write("CREATE TABLE history (id INTEGER PRIMARY KEY, v)")
    peer.write(
        "CREATE TRIGGER keep AFTER UPDATE ON t BEGIN INSERT INTO history (v) VALUES (OLD.v); END"
    )
    peer.track("t", "history")
    peer.write("INSERT INTO t VALUES (1, 'a')")
    peer.fold()
    peer.commit("UPDATE t SET v = 'b'")
    assert peer.values("history", 1) == {"v": "a"}
    assert peer.replica.queued() == 2


def last_entries(peer: Peer) -> list[Entry]:
    """The entries of the last changeset."""
    return [changeset.entries() for changeset in pending(peer.engine)][-1]


@pytest.mark.parametrize(("action", "effect"), [("CASCADE", {}), ("SET NULL", {"list_id": None})])
def test_what_a_deleted_parent_does_to_its_children_is_derived(
    make_peer: MakePeer, action: str, effect: dict[str, Value]
) -> None:
    peer = family(make_peer, action)
    peer.commit("DELETE FROM list WHERE id = 1")
    parent, child = sorted(last_entries(peer))
    assert parent.derived is None
    assert child.derived == parent.row
    assert peer.named(child) == effect


def test_an_edit_of_the_user_is_not_derived(make_peer: MakePeer) -> None:
    peer = family(make_peer, "SET NULL")
    peer.commit("UPDATE todo SET list_id = NULL WHERE id = 1", "DELETE FROM list WHERE id = 2")
    derived = {entry.row.key: entry.derived for entry in last_entries(peer) if entry.row.table == 2}
    assert derived[1] is None
    assert derived[2] is not None


def test_an_edit_beside_a_derived_one_is_not_lost_with_it(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = family(make_peer, "SET NULL"), make_peer()
    relay.sync(a, b)
    b.write("UPDATE todo SET list_id = 2 WHERE id = 1", at=100)
    relay.sync(b)
    a.commit("DELETE FROM list WHERE id = 1", "UPDATE todo SET title = 'oats' WHERE id = 1", at=200)
    relay.sync(a, b)
    assert a.rows("SELECT title, list_id FROM todo WHERE id = 1") == [("oats", 2)]
    assert b.rows("SELECT title, list_id FROM todo WHERE id = 1") == [("oats", 2)]


@pytest.mark.parametrize("deleted", ["todo", "tag"])
def test_a_child_of_two_parents_is_derived_from_the_one_that_was_deleted(
    make_peer: MakePeer, deleted: str
) -> None:
    peer = make_peer(
        "CREATE TABLE todo (id INTEGER PRIMARY KEY)",
        "CREATE TABLE tag (id INTEGER PRIMARY KEY)",
        "CREATE TABLE link (todo_id REFERENCES todo ON DELETE CASCADE,"
        " tag_id REFERENCES tag ON DELETE CASCADE, PRIMARY KEY (todo_id, tag_id))",
    )
    peer.track("todo", "tag", "link")
    peer.write("INSERT INTO todo VALUES (1)", "INSERT INTO tag VALUES (7)")
    peer.write("INSERT INTO link VALUES (1, 7)")
    peer.commit(f"DELETE FROM {deleted}")
    parent, child = sorted(last_entries(peer))
    assert child.derived == parent.row


def test_a_grandchild_is_derived_from_its_parent(make_peer: MakePeer) -> None:
    peer = make_peer(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, up REFERENCES node ON DELETE CASCADE)"
    )
    peer.track("node")
    peer.write("INSERT INTO node VALUES (1, NULL), (2, 1), (3, 2)")
    peer.commit("DELETE FROM node WHERE id = 1")
    derived = {entry.row.key: entry.derived for entry in last_entries(peer)}
    assert derived == {1: None, 2: (1, 1), 3: (1, 2)}


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL"])
def test_a_child_that_was_moved_elsewhere_outlives_its_old_parent(
    make_peer: MakePeer, relay: Relay, action: str
) -> None:
    a, b = family(make_peer, action), make_peer()
    relay.sync(a, b)
    b.write("UPDATE todo SET list_id = 2 WHERE id = 1", at=100)
    relay.sync(b)
    a.commit("DELETE FROM list WHERE id = 1", at=200)
    relay.sync(a, b)
    for peer in (a, b):
        assert peer.rows("SELECT id, list_id FROM todo ORDER BY id") == [(1, 2), (2, 2)]
        assert peer.rows("SELECT id FROM list") == [(2,)]
        assert peer.differences() == []


def test_a_child_that_was_moved_is_alive_on_its_author_with_later_work_pending(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = family(make_peer, "SET NULL"), make_peer()
    relay.sync(a, b)
    b.write("UPDATE todo SET list_id = 2 WHERE id = 1", at=100)
    relay.sync(b)
    a.commit("DELETE FROM list WHERE id = 1", at=200)
    link = relay.connect(a)
    link.push(changesets_max=1)
    a.commit("UPDATE todo SET title = 'oats' WHERE id = 1", at=300)
    relay.settle()
    link.close()
    relay.sync(b)
    assert b.rows("SELECT title, list_id FROM todo WHERE id = 1") == [("oats", 2)]
    assert a.rows("SELECT title, list_id FROM todo WHERE id = 1") == [("oats", 2)]
    assert a.differences() == []


def test_a_trigger_that_rolls_back_does_not_undo_a_merge(make_peer: MakePeer, relay: Relay) -> None:
    todo = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT)"
    guard = (
        "CREATE TRIGGER guard BEFORE UPDATE ON todo WHEN NEW.title = 'forbidden'"
        " BEGIN SELECT RAISE(ROLLBACK, 'not here'); END"
    )
    a, b = make_peer(todo), make_peer(todo, guard)
    for peer in (a, b):
        peer.track("todo")
    a.write("INSERT INTO todo VALUES (1, 'milk'), (2, 'bread')")
    relay.sync(a, b)
    a.write(
        "UPDATE todo SET title = 'forbidden' WHERE id = 1",
        "UPDATE todo SET title = 'x' WHERE id = 2",
    )
    relay.sync(a, b)
    assert b.rows("SELECT title FROM todo ORDER BY id") == [("forbidden",), ("x",)]
    assert b.differences() == []
    # It guards the app's own writes as before.
    with pytest.raises(sqlite3.IntegrityError, match="not here"):
        b.write("UPDATE todo SET title = 'forbidden' WHERE id = 2")


TAGGED = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, tags CRDT_LIST_TEXT, n INTEGER DEFAULT 0)",
    "CREATE TABLE tally (id INTEGER PRIMARY KEY, n COUNTER DEFAULT 0)",
    "INSERT INTO tally (id) VALUES (1)",
)
COUNTS = "CREATE TRIGGER counts AFTER {} ON t BEGIN UPDATE tally SET n = n + 1 WHERE id = 1; END"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("tallied", [True, False])
def test_a_trigger_counts_once_what_is_spelt_otherwise_than_all_show_it(
    make_peer: MakePeer, relay: Relay, own: bool, tallied: bool
) -> None:
    a, b = make_peer(*TAGGED, COUNTS.format("UPDATE")), make_peer()
    a.track("t", *(["tally"] if tallied else []))
    write = a.commit if own else a.write
    write("INSERT INTO t (id, tags) VALUES (1, '[1, 2]')")
    a.fold()
    assert a.rows("SELECT n FROM tally") == [(0,)]
    write("UPDATE t SET tags = '[1, 2, 3]'")
    relay.sync(a, b)
    assert a.rows("SELECT n FROM tally") == [(1,)]
    assert b.rows("SELECT tags FROM t") == [("[1,2,3]",)]
    # Its own row keeps its spelling, until something else comes for it.
    assert a.rows("SELECT tags FROM t") == [("[1, 2, 3]",)]
    assert a.differences() == b.differences() == []
    write("UPDATE t SET tags = '[0, 1, 2, 3]'")
    b.write("UPDATE t SET tags = '[1,2,3,4]'")
    relay.sync(a, b)
    relay.sync(a)
    assert a.rows("SELECT tags FROM t") == b.rows("SELECT tags FROM t") == [("[0,1,2,3,4]",)]
    assert a.fold() == []
    assert a.line("t", 1).image is None
    assert a.differences() == b.differences() == []


def test_a_value_that_keeps_its_spelling_is_edited_only_by_what_changes_it(
    make_peer: MakePeer,
) -> None:
    peer = make_peer(*TAGGED, COUNTS.format("UPDATE"))
    peer.track("t")
    peer.write("INSERT INTO t (id, tags) VALUES (1, '[1, 2]')")
    peer.fold()
    peer.write("UPDATE t SET n = 1, tags = '[ 1, 2 ]'")
    assert peer.edits() == [{"n": 1}]
    peer.write("UPDATE t SET tags = '[1,2]'")
    assert peer.fold() == []
    assert peer.line("t", 1).image is None
    assert peer.differences() == []


@pytest.mark.parametrize(
    "trigger",
    [
        COUNTS.format("INSERT"),
        COUNTS.format("DELETE"),
        COUNTS.format("UPDATE OF n"),
        COUNTS.format("UPDATE").replace("id = 1", "id = NEW.n"),
        COUNTS.format("UPDATE").replace("BEGIN", "WHEN NEW.n > 0 BEGIN"),
    ],
)
def test_a_value_is_respelt_where_no_trigger_does_anything(
    make_peer: MakePeer, trigger: str
) -> None:
    peer = make_peer(*TAGGED, "CREATE UNIQUE INDEX u ON t (tags)", trigger)
    peer.track("t", "tally")
    peer.write("INSERT INTO t (id, tags) VALUES (1, '[1, 2]'), (2, '[1, 3]')")
    peer.fold()
    assert peer.rows("SELECT tags FROM t ORDER BY id") == [("[1,2]",), ("[1,3]",)]
    assert peer.line("t", 1).image is None
    assert peer.differences() == []
