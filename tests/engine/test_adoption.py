"""Adopting tables that have rows: copies join silently, different files stop and say so."""

import json

import pytest

from reunite.adopt import Choice
from reunite.clock import FLOOR
from reunite.errors import AdoptionConflict
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

PEOPLE = "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, age INT)"
ALL = "SELECT id, name, age FROM people ORDER BY id"


def person(make_peer: MakePeer, *rows: str) -> Peer:
    peer = make_peer(PEOPLE, *(f"INSERT INTO people VALUES ({row})" for row in rows))
    peer.track("people")
    return peer


def sync(relay: Relay, peer: Peer, choice: Choice | None) -> None:
    relay.connect(peer, choice=choice)
    relay.settle()


def test_tracking_changes_nothing_about_a_table(make_peer: MakePeer) -> None:
    peer = make_peer(PEOPLE, "INSERT INTO people VALUES (1, 'Ann', 5)")
    before = peer.rows("SELECT sql FROM sqlite_master WHERE name = 'people'")
    assert peer.track("people") == ["people"]
    assert peer.track("people") == []
    assert peer.rows("SELECT sql FROM sqlite_master WHERE name = 'people'") == before
    assert peer.rows(ALL) == [(1, "Ann", 5)]
    assert {mark for mark, _ in peer.document("people", 1).cells.values()} == {FLOOR}


def test_one_table_that_cannot_be_tracked_leaves_all_untracked(make_peer: MakePeer) -> None:
    peer = make_peer(PEOPLE, "CREATE TABLE keyless (x)")
    with pytest.raises(Exception, match="keyless"):
        peer.track("people", "keyless")
    assert peer.replica.untracked() == ["people", "keyless"]


def test_two_copies_of_one_file_join_silently(make_peer: MakePeer, relay: Relay) -> None:
    a = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6")
    b = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6")
    relay.sync(a, b)
    assert a.rejected() == b.rejected() == []
    assert a.replica.queued() == b.replica.queued() == 0
    assert set(b.states("people").values()) == {"synced"}
    assert a.differences() == b.differences() == []


def test_rows_that_only_one_copy_has_are_added(make_peer: MakePeer, relay: Relay) -> None:
    a = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6")
    b = person(make_peer, "1, 'Ann', 5", "3, 'Cy', 7")
    relay.sync(a, b)
    assert a.rows(ALL) == b.rows(ALL) == [(1, "Ann", 5), (2, "Bob", 6), (3, "Cy", 7)]


def test_a_stale_copy_does_not_undo_what_was_edited_since(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6", "3, 'Cy', 7")
    relay.sync(a)
    a.write("UPDATE people SET name = 'Anna' WHERE id = 1", "DELETE FROM people WHERE id = 2")
    relay.sync(a)
    b = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6", "3, 'Cy', 7")
    relay.sync(b, a)
    assert a.rows(ALL) == b.rows(ALL) == [(1, "Anna", 5), (3, "Cy", 7)]
    assert b.rejected() == []


def test_two_different_files_stop_with_counts_and_nothing_changes(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6", "4, 'Di', 8")
    b = person(make_peer, "1, 'Alice', 5", "2, 'Bert', 6", "3, 'Cy', 7", "4, 'Di', 8")
    relay.sync(a)
    before, head = b.rows(ALL), relay.head
    with pytest.raises(AdoptionConflict, match="2 rows of people") as caught:
        relay.sync(b)
    assert caught.value.counts == {"people": 2}
    assert b.rows(ALL) == before
    assert relay.head == head
    assert b.rejected() == []
    assert b.differences() == []


def test_a_conflict_is_found_again_until_somebody_chooses(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = person(make_peer, "1, 'Ann', 5"), person(make_peer, "1, 'Alice', 5")
    relay.sync(a)
    for _ in range(2):
        with pytest.raises(AdoptionConflict):
            relay.sync(b)
    sync(relay, b, "theirs")
    assert b.rows(ALL) == [(1, "Ann", 5)]


def test_a_conflict_over_several_pages_changes_nothing_either(make_peer: MakePeer) -> None:
    relay = Relay(page_rows=1)
    a, b = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6"), person(make_peer, "2, 'Bert', 6")
    relay.sync(a)
    with pytest.raises(AdoptionConflict):
        relay.sync(b)
    assert b.rows(ALL) == [(2, "Bert", 6)]
    sync(relay, b, "theirs")
    assert b.rows(ALL) == [(1, "Ann", 5), (2, "Bob", 6)]
    assert b.differences() == []


def test_theirs_takes_the_realms_rows_and_keeps_ours_aside(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = person(make_peer, "1, 'Ann', 5")
    b = person(make_peer, "1, 'Alice', 9", "3, 'Cy', 7")
    relay.sync(a)
    sync(relay, b, "theirs")
    assert b.rows(ALL) == [(1, "Ann", 5), (3, "Cy", 7)]
    ((table, key, kind, reason, values),) = b.rejected()
    assert (table, key, kind, reason) == ("people", 1, "adopted", "adoption")
    assert json.loads(str(values)) == {"name": "Alice", "age": 9}
    assert b.states("people") == {1: "synced", 3: "synced"}
    relay.sync(a)
    assert a.rows(ALL) == b.rows(ALL)


def test_ours_are_edits_made_now(make_peer: MakePeer, relay: Relay) -> None:
    a = person(make_peer, "1, 'Ann', 5")
    b = person(make_peer, "1, 'Alice', 5", "3, 'Cy', 7")
    relay.sync(a)
    a.commit("UPDATE people SET age = 6", at=100)
    relay.sync(a)
    b.clock.ms += 1_000
    sync(relay, b, "ours")
    relay.sync(a)
    assert a.rows(ALL) == b.rows(ALL) == [(1, "Alice", 5), (3, "Cy", 7)]
    assert b.rejected() == []
    assert a.document("people", 1) == b.document("people", 1)


@pytest.mark.parametrize("choice", ["theirs", "ours"])
def test_an_edit_made_after_tracking_beats_the_row_that_was_adopted(
    make_peer: MakePeer, relay: Relay, choice: Choice
) -> None:
    a, b = person(make_peer, "1, 'Ann', 5"), person(make_peer, "1, 'Alice', 5")
    relay.sync(a)
    b.commit("UPDATE people SET name = 'Alicia'", at=100)
    b.clock.ms += 1_000
    sync(relay, b, choice)
    relay.sync(a)
    assert a.rows(ALL) == b.rows(ALL) == [(1, "Alicia", 5)]


@pytest.mark.parametrize("choice", ["theirs", "ours"])
def test_a_row_deleted_after_tracking_stays_deleted(
    make_peer: MakePeer, relay: Relay, choice: Choice
) -> None:
    a, b = person(make_peer, "1, 'Ann', 5"), person(make_peer, "1, 'Alice', 5")
    relay.sync(a)
    b.commit("DELETE FROM people", at=100)
    b.clock.ms += 1_000
    sync(relay, b, choice)
    relay.sync(a)
    assert a.rows(ALL) == b.rows(ALL) == []


def test_tracking_another_table_later_compares_it_too(make_peer: MakePeer, relay: Relay) -> None:
    pets = "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT)"
    a, b = person(make_peer, "1, 'Ann', 5"), person(make_peer, "1, 'Ann', 5")
    a.write(pets, "INSERT INTO pet VALUES (1, 'Rex')")
    a.track("pet")
    b.write(pets, "INSERT INTO pet VALUES (1, 'Tom')")
    relay.sync(a, b)
    assert b.rows("SELECT name FROM pet") == [("Tom",)]
    b.track("pet")
    with pytest.raises(AdoptionConflict, match="1 row of pet"):
        relay.sync(b)
    sync(relay, b, "theirs")
    assert b.rows("SELECT name FROM pet") == [("Rex",)]


def test_rows_of_the_realm_show_when_a_table_is_tracked_later(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6"), make_peer(PEOPLE)
    b.write("INSERT INTO people VALUES (1, 'Ann', 5), (3, 'Cy', 7)")
    relay.sync(a, b)
    b.track("people")
    relay.sync(b, a)
    assert a.rows(ALL) == b.rows(ALL) == [(1, "Ann", 5), (2, "Bob", 6), (3, "Cy", 7)]
    assert b.differences() == []


def test_adopted_rows_with_a_unique_value_that_the_realm_has_elsewhere_wedge_nothing(
    make_peer: MakePeer, relay: Relay
) -> None:
    users = "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE)"
    a = make_peer(users, "INSERT INTO users VALUES (1, 'x')")
    b = make_peer(users, "INSERT INTO users VALUES (2, 'x'), (3, 'y')")
    a.track("users")
    b.track("users")
    relay.sync(a)
    relay.keep_unique("users", "email")
    relay.sync(b)
    assert b.replica.queued() == 0
    assert b.rows("SELECT id FROM users WHERE email = 'y'") == [(3,)]
    assert b.states("users")[3] == "synced"
    assert b.states("users")[1] == "blocked"
    assert b.rows("SELECT id FROM users WHERE email = 'x'") == [(2,)]
    assert b.differences() == []


def test_a_copy_with_a_further_column_at_its_default_joins_silently(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6")
    relay.sync(a)
    b = make_peer(PEOPLE, "INSERT INTO people VALUES (1, 'Ann', 5), (2, 'Bob', 6)")
    b.write("ALTER TABLE people ADD COLUMN city TEXT DEFAULT 'Rome'", "ALTER TABLE people ADD note")
    b.track("people")
    relay.sync(b, a)
    assert a.rejected() == b.rejected() == []
    assert a.replica.queued() == b.replica.queued() == 0
    assert b.rows("SELECT id, city, note FROM people") == [(1, "Rome", None), (2, "Rome", None)]
    assert a.differences() == b.differences() == []


def test_a_copy_with_a_further_column_that_was_filled_in_is_another_file(
    make_peer: MakePeer, relay: Relay
) -> None:
    relay.sync(person(make_peer, "1, 'Ann', 5"))
    b = make_peer(PEOPLE, "INSERT INTO people VALUES (1, 'Ann', 5)")
    b.write("ALTER TABLE people ADD COLUMN city TEXT", "UPDATE people SET city = 'Rome'")
    b.track("people")
    with pytest.raises(AdoptionConflict):
        relay.sync(b)


def test_a_row_of_which_nothing_is_equal_is_not_lost_in_silence(
    make_peer: MakePeer, relay: Relay
) -> None:
    """All of the realm's row was edited since it was adopted: it may have been another row."""
    city = "CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT, pop INTEGER)"
    a = make_peer(city, "INSERT INTO city VALUES (1, 'Rome', 10)")
    b = make_peer(city, "INSERT INTO city VALUES (1, 'Oslo', 99)")
    a.track("city")
    relay.sync(a)
    a.write("UPDATE city SET name = 'Roma', pop = 11")
    relay.sync(a)
    b.track("city")
    relay.sync(b)
    assert b.rows("SELECT name, pop FROM city") == [("Roma", 11)]
    kept = b.rows('SELECT reason, kind, "values" FROM reunite_rejected')
    assert kept == [("adoption", "adopted", '{"name": "Oslo", "pop": 99}')]


def test_a_copy_joins_in_silence_though_a_row_of_it_was_edited_everywhere(
    make_peer: MakePeer, relay: Relay
) -> None:
    genre = "CREATE TABLE genre (id INTEGER PRIMARY KEY, name TEXT)"
    rows = "INSERT INTO genre VALUES (1, 'Rock'), (2, 'Jazz')"
    a, b = make_peer(genre, rows), make_peer(genre, rows)
    a.track("genre")
    b.track("genre")
    relay.sync(a)
    a.write("UPDATE genre SET name = 'Rock!' WHERE id = 1")
    relay.sync(a, b)
    assert b.rows("SELECT name FROM genre ORDER BY id") == [("Rock!",), ("Jazz",)]
    assert b.rows("SELECT * FROM reunite_rejected") == []


def test_a_table_tracked_beside_the_realms_keeps_its_rows_until_the_choice(
    make_peer: MakePeer, relay: Relay
) -> None:
    relay.sync(person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6"))
    b = make_peer(PEOPLE, "INSERT INTO people VALUES (1, 'Zoe', 9), (3, 'Cy', 7)")
    relay.sync(b)
    b.track("people")
    assert b.differences() == []
    assert b.rows(ALL) == [(1, "Zoe", 9), (2, "Bob", 6), (3, "Cy", 7)]
    b.clock.ms += 1
    b.write("UPDATE people SET age = 10 WHERE id = 1")
    with pytest.raises(AdoptionConflict):
        sync(relay, b, None)
    assert b.differences() == []
    sync(relay, b, "theirs")
    # The edit made since is an edit; what the row was tracked with is not.
    assert b.rows(ALL) == [(1, "Ann", 10), (2, "Bob", 6), (3, "Cy", 7)]
    assert relay.stated("people", 1) == {"name": "Ann", "age": 10}
    assert b.differences() == []


def test_a_row_that_the_realm_has_deleted_stays_until_the_choice(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = person(make_peer, "1, 'Ann', 5", "2, 'Bob', 6")
    relay.sync(a)
    a.write("DELETE FROM people WHERE id = 1")
    relay.sync(a)
    b = make_peer(PEOPLE, "INSERT INTO people VALUES (1, 'Zoe', 9)")
    relay.sync(b)
    b.track("people")
    assert (b.differences(), b.rows(ALL)) == ([], [(1, "Zoe", 9), (2, "Bob", 6)])
    sync(relay, b, "ours")
    assert relay.stated("people", 1) == {"name": "Zoe", "age": 9}
    assert b.differences() == []
