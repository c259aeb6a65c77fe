"""Rows that a REPLACE deletes without a trigger, and the app's own conflict clauses."""

import sqlite3

import pytest

from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import START_MS, Peer

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, name TEXT, active INT DEFAULT 1)"
PLAIN = "CREATE UNIQUE INDEX u ON users (email)"
PARTIAL = "CREATE UNIQUE INDEX u ON users (email) WHERE active"
NOCASE = "CREATE UNIQUE INDEX u ON users (email COLLATE NOCASE)"
EXPRESSION = "CREATE UNIQUE INDEX u ON users (lower(email))"
DESCENDING = "CREATE UNIQUE INDEX u ON users (email DESC, active)"


def tracked(make_peer: MakePeer, *indexes: str) -> Peer:
    peer = make_peer(USERS, *indexes)
    peer.track("users")
    peer.write("INSERT INTO users VALUES (1, 'a@x', 'Ann', 1), (2, 'b@x', 'Bob', 1)")
    peer.fold()
    return peer


def assert_gone(peer: Peer, *keys: int) -> None:
    peer.fold()
    assert peer.differences() == []
    assert [key for key in (1, 2, 3) if not peer.document("users", key).alive] == list(keys)


def test_replace_of_its_own_key_is_an_edit(make_peer: MakePeer) -> None:
    peer = tracked(make_peer)
    peer.write("INSERT OR REPLACE INTO users VALUES (1, 'a@x', 'Anna', 1)")
    assert peer.edits() == [{"name": "Anna"}]


@pytest.mark.parametrize("index", [PLAIN, PARTIAL, NOCASE, EXPRESSION, DESCENDING])
def test_the_victim_of_a_replace_on_a_further_index_is_deleted(
    make_peer: MakePeer, index: str
) -> None:
    peer = tracked(make_peer, index)
    peer.write("INSERT OR REPLACE INTO users VALUES (3, 'a@x', 'Cy', 1)")
    assert_gone(peer, 1)


@pytest.mark.parametrize("index", [PLAIN, PARTIAL, NOCASE, EXPRESSION, DESCENDING])
def test_the_victim_of_an_update_or_replace_is_deleted(make_peer: MakePeer, index: str) -> None:
    peer = tracked(make_peer, index)
    peer.write("UPDATE OR REPLACE users SET email = 'a@x' WHERE id = 2")
    assert_gone(peer, 1, 3)


@pytest.mark.parametrize("index", [NOCASE, EXPRESSION])
def test_a_victim_that_differs_in_case_is_deleted(make_peer: MakePeer, index: str) -> None:
    peer = tracked(make_peer, index)
    peer.write("INSERT OR REPLACE INTO users VALUES (3, 'A@X', 'Cy', 1)")
    assert peer.differences() == [], "of what is not folded yet nothing is said"
    assert_gone(peer, 1)


def test_a_row_that_enters_a_partial_index_can_have_a_victim(make_peer: MakePeer) -> None:
    peer = tracked(make_peer, PARTIAL)
    peer.write("INSERT INTO users VALUES (3, 'a@x', 'Cy', 0)")
    peer.fold()
    peer.write("UPDATE OR REPLACE users SET active = 1 WHERE id = 3")
    assert_gone(peer, 1)


def test_a_replace_can_have_two_victims(make_peer: MakePeer) -> None:
    peer = tracked(make_peer, PLAIN, "CREATE UNIQUE INDEX n ON users (name)")
    peer.write("INSERT OR REPLACE INTO users VALUES (3, 'a@x', 'Bob', 1)")
    assert_gone(peer, 1, 2)


def test_update_or_replace_of_the_key_deletes_what_had_it(make_peer: MakePeer) -> None:
    peer = tracked(make_peer)
    peer.write("UPDATE OR REPLACE users SET id = 1 WHERE id = 2")
    assert_gone(peer, 2, 3)
    assert peer.values("users", 1)["name"] == "Bob"


def test_the_victim_is_deleted_elsewhere_too(make_peer: MakePeer, relay: Relay) -> None:
    a, b = tracked(make_peer, PLAIN), make_peer()
    relay.sync(a, b)
    a.write("INSERT OR REPLACE INTO users VALUES (3, 'a@x', 'Cy', 1)")
    relay.sync(a, b)
    assert b.rows("SELECT id, name FROM users ORDER BY id") == [(2, "Bob"), (3, "Cy")]
    assert b.differences() == []


@pytest.mark.parametrize("index", [PLAIN, EXPRESSION])
def test_an_index_that_was_created_later_is_seen(make_peer: MakePeer, index: str) -> None:
    peer = tracked(make_peer)
    peer.write(index)
    peer.fold()
    peer.write("INSERT OR REPLACE INTO users VALUES (3, 'a@x', 'Cy', 1)")
    assert_gone(peer, 1)


@pytest.mark.parametrize("index", [PLAIN, EXPRESSION])
def test_an_index_and_a_replace_before_the_next_fold_are_seen(
    make_peer: MakePeer, index: str
) -> None:
    peer = tracked(make_peer)
    peer.write(index, "INSERT OR REPLACE INTO users VALUES (3, 'a@x', 'Cy', 1)")
    assert_gone(peer, 1)


def test_a_delete_has_its_own_time_where_vanished_rows_are_looked_for(make_peer: MakePeer) -> None:
    peer = tracked(make_peer, EXPRESSION)
    peer.write("DELETE FROM users WHERE id = 1", at=1_000)
    peer.write("INSERT OR REPLACE INTO users VALUES (3, 'b@x', 'Cy', 1)", at=2_000)
    peer.clock.ms = START_MS + 9_000
    times = {entry.row.key: entry.recorded_ms - START_MS for entry in peer.fold()}
    assert times == {1: 1_000, 2: 9_000, 3: 2_000}


def test_an_upsert_edits_what_it_sets(make_peer: MakePeer) -> None:
    peer = tracked(make_peer)
    peer.write(
        "INSERT INTO users VALUES (1, 'z', 'Zoe', 0)"
        " ON CONFLICT (id) DO UPDATE SET name = excluded.name"
    )
    assert peer.edits() == [{"name": "Zoe"}]


def test_an_upsert_on_a_further_index_edits_the_row_that_it_hits(make_peer: MakePeer) -> None:
    peer = tracked(make_peer, PLAIN)
    peer.write(
        "INSERT INTO users VALUES (9, 'a@x', 'Zoe', 0)"
        " ON CONFLICT (email) DO UPDATE SET name = excluded.name"
    )
    assert peer.edits() == [{"name": "Zoe"}]
    assert_gone(peer, 3)


def test_an_upsert_that_does_nothing_is_no_edit(make_peer: MakePeer) -> None:
    peer = tracked(make_peer, PLAIN)
    peer.write("INSERT INTO users VALUES (9, 'a@x', 'Zoe', 0) ON CONFLICT DO NOTHING")
    peer.write("INSERT OR IGNORE INTO users VALUES (9, 'a@x', 'Zoe', 0)")
    assert peer.edits() == []


@pytest.mark.parametrize("clause", ["ABORT", "FAIL", "ROLLBACK"])
def test_an_apps_conflict_clause_does_what_it_does_without_us(
    make_peer: MakePeer, clause: str
) -> None:
    peer = tracked(make_peer, PLAIN)
    with pytest.raises(sqlite3.IntegrityError, match=r"users\.email"):
        peer.write(f"INSERT OR {clause} INTO users VALUES (3, 'a@x', 'Cy', 1)")
    peer.write(f"INSERT OR {clause} INTO users VALUES (3, 'c@x', 'Cy', 1)")
    peer.write(f"UPDATE OR {clause} users SET name = 'Di' WHERE id = 3")
    peer.fold()
    assert peer.values("users", 3)["name"] == "Di"


def test_what_was_rolled_back_was_never_captured(make_peer: MakePeer) -> None:
    peer = tracked(make_peer)
    peer.write("BEGIN", "UPDATE users SET name = 'x'", "SAVEPOINT s", "DELETE FROM users")
    peer.write("ROLLBACK TO s", "COMMIT")
    assert peer.edits() == [{"name": "x"}, {"name": "x"}]
    peer.write("BEGIN", "DELETE FROM users", "ROLLBACK")
    assert peer.fold() == []
