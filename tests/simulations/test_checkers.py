"""Each checker says what is wrong with a history that breaks its promise, and nothing else."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from reunite_simulations.checkers.atomicity import Atomicity
from reunite_simulations.checkers.bounds import Bounds
from reunite_simulations.checkers.causality import Causality
from reunite_simulations.checkers.constraints import Constraints
from reunite_simulations.checkers.durability import Durability
from reunite_simulations.checkers.once import ExactlyOnce
from reunite_simulations.checkers.registers import CLOSE_SECONDS, Registers
from reunite_simulations.history import Verb, Write
from reunite_simulations.workload import APPEND_SQL, APPEND_TABLE
from reunite_transport.client_session import GaveUp
from tests.engine.peer import Peer
from tests.simulations.told import ROW, TABLE_SQL, Told, ToldClient, told

SOON, LATER = CLOSE_SECONDS / 2, CLOSE_SECONDS * 2


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    """A client that has loaded the row."""
    found = Peer(tmp_path / "app.db", 1, TABLE_SQL, APPEND_SQL)
    found.write("INSERT INTO todo VALUES (1, 't0', 'n0')")
    found.track("todo", APPEND_TABLE)
    with found.replica.transaction() as state:
        state.conn.execute("DELETE FROM _reunite_changesets")
        state.meta.loaded = 1
        state.save("loaded")
    yield found
    found.close()


def with_client(world: Told, peer: Peer) -> Told:
    world.clients = [ToldClient("client1", peer.app)]
    return world


def said(world: Told) -> str:
    return "; ".join(Registers().at_end(world))


# No lost update, and the later edit wins.


def test_the_last_edit_of_a_cell_is_what_it_holds() -> None:
    world = told(title="t2")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    world.wrote("client2", {"title": "t2"}, {}, at=1 + LATER)
    assert said(world) == ""


@pytest.mark.parametrize("value", ["t1", None])
def test_an_older_value_that_won_is_a_lost_update(value: str | None) -> None:
    world = told(title=value)
    world.wrote("client1", {"title": value}, {}, at=1)
    world.wrote("client2", {"title": "t2"}, {}, at=1 + LATER)
    assert "is older than 't2' of client2" in said(world)


def test_an_edit_that_left_the_first_value_is_a_lost_update() -> None:
    world = told(title="t0")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    assert "had seen 't0', which is still there" in said(world)


def test_of_two_edits_at_nearly_one_time_either_may_win() -> None:
    world = told(title="t1")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    world.wrote("client2", {"title": "t2"}, {}, at=1 + SOON)
    assert said(world) == ""


def test_an_edit_beats_what_it_saw_however_soon_it_came() -> None:
    world = told(title="t1")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    world.wrote("client2", {"title": "t2"}, {"title": "t1"}, at=1 + SOON)
    assert "'t2' of client2 had seen 't1'" in said(world)


def test_nobody_can_say_what_a_wrong_clock_dated() -> None:
    world = told(title="t1")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    world.wrote("client2", {"title": "t2"}, {}, at=1 + LATER).mistimed = True
    assert said(world) == ""


@pytest.mark.parametrize("looked", [False, True])
def test_what_other_programs_did_to_a_row_until_the_engine_looked_is_of_the_last_time(
    looked: bool,
) -> None:
    world = told(title="t1", note="n1")
    world.wrote("client1", {"title": "t1"}, {}, at=1).own = False
    if looked:
        world.begun("client1", at=1 + SOON)
    world.wrote("client2", {"title": "t2"}, {}, at=1 + LATER)
    assert "'t1' is older than 't2' of client2" in said(world)
    world.wrote("client1", {"note": "n1"}, {"title": "t1"}, at=1 + 2 * LATER).own = False
    assert bool(said(world)) is looked


def test_a_value_that_nobody_wrote_is_told() -> None:
    world = told(title="who?")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    assert "'who?' was never written there" in said(world)


def test_a_cell_that_went_back_within_a_transaction_was_not_edited() -> None:
    world = told(title="t2")
    world.wrote("client2", {"title": "t2"}, {}, at=1)
    made = world.wrote("client1", {"title": "t1"}, {}, at=1 + LATER)
    made.writes = [
        *made.writes,
        Write(Verb.UPDATE, "todo", (1,), {"title": "t0"}, {**ROW, "title": "t1"}),
    ]
    assert said(world) == ""


def test_a_row_that_came_and_went_within_a_transaction_was_not_deleted() -> None:
    world = told(title="t1")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    made = world.wrote("client2", {}, {}, at=1 + LATER)
    made.writes = [Write(Verb.INSERT, "todo", (1,), {"title": "t2"}, {}), *made.writes]
    assert said(world) == ""


def test_a_row_that_was_deleted_last_is_gone() -> None:
    world = told(title="t1")
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    world.wrote("client2", {}, {}, at=1 + LATER)
    assert "nobody wrote it after client2 deleted it" in said(world)


def test_a_row_that_was_edited_last_is_there() -> None:
    world = told()
    world.wrote("client1", {}, {}, at=1)
    world.wrote("client2", {"title": "t2"}, {}, at=1 + LATER)
    assert "is gone, and nobody deleted it after client2 wrote it" in said(world)


def test_a_row_that_nobody_deleted_is_there() -> None:
    world = told()
    world.wrote("client1", {"title": "t1"}, {}, at=1)
    assert "is gone" in said(world)


# Atomic visibility.


def test_a_part_of_a_group_is_told() -> None:
    world = told(title="t0")
    world.appended("client1", 1, "1.0.2", "1.1.2")
    world.read("client2", 2, "1.0.2", "1.1.2")
    assert list(Atomicity().at_end(world)) == []
    world.read("client2", 3, "1.0.2")
    (found,) = Atomicity().at_end(world)
    assert found == "client2 at 3.0 s sees 1 of 2 parts of 1"


@pytest.mark.parametrize(("title", "broken"), [("t0", True), ("t1", False), ("t9", False)])
def test_one_cell_new_and_the_other_old_is_told(peer: Peer, title: str, broken: bool) -> None:
    world = with_client(told(title="t1", note="n1"), peer)
    world.wrote("client2", {"title": "t1", "note": "n1"}, {}, at=1)
    # "t0" was there from the beginning, so it was no value that was written once.
    world.initial = {}
    peer.app.execute("UPDATE todo SET title = ?, note = 'n1'", (title,))
    assert bool(list(Atomicity().during(world))) is broken


# Causal order.


def test_a_session_that_misses_its_own_write_is_told() -> None:
    world = told(title="t0")
    world.appended("client1", 1, "1.0.1")
    world.read("client1", 2)
    assert "does not see ['1.0.1']" in next(iter(Causality().at_end(world)))


def test_a_read_that_goes_back_is_told() -> None:
    world = told(title="t0")
    world.appended("client1", 1, "1.0.1")
    world.read("client2", 2, "1.0.1")
    assert list(Causality().at_end(world)) == []
    world.read("client2", 3)
    assert "client2 at 3.0 s" in next(iter(Causality().at_end(world)))


def test_a_write_without_what_its_author_had_seen_is_told() -> None:
    world = told(title="t0")
    world.appended("client1", 1, "1.0.1")
    world.appended("client2", 2, "2.0.1", seen=["1.0.1"])
    world.read("client3", 3, "1.0.1", "2.0.1")
    assert list(Causality().at_end(world)) == []
    world.read("client4", 4, "2.0.1")
    assert "client4 at 4.0 s does not see ['1.0.1']" in next(iter(Causality().at_end(world)))


def test_what_was_before_a_restore_may_be_gone_for_a_while() -> None:
    world = told(title="t0")
    world.appended("client1", 1, "1.0.1")
    world.read("client2", 2, "1.0.1")
    world.history.restores.append(2.5)
    world.read("client2", 3)
    assert list(Causality().at_end(world)) == []


def test_a_read_of_what_was_refused_is_told(peer: Peer) -> None:
    world = with_client(told(title="t0"), peer)
    world.appended("client1", 1, "1.0.1")
    refused = GaveUp("constraint", "no", ((APPEND_TABLE, "1.0.1"),))
    world.clients = [ToldClient("client1", peer.app, events=[refused])]
    assert list(Causality().at_end(world)) == []
    world.read("client2", 2, "1.0.1")
    assert "which was refused (G1a)" in next(iter(Causality().at_end(world)))


def test_a_client_that_sees_what_it_had_replaced_is_told(peer: Peer) -> None:
    world = with_client(told(title="t1"), peer)
    world.wrote("client2", {"title": "t1"}, {}, at=1)
    world.wrote("client1", {"title": "t2"}, {"title": "t1"}, at=2)
    peer.app.execute("UPDATE todo SET title = 't2'")
    checker = Causality()
    assert list(checker.during(world)) == []
    peer.app.execute("UPDATE todo SET title = 't1'")
    assert "read your writes" in next(iter(checker.during(world)))


# Durability.


def with_lists(world: Told, *elements: str) -> Told:
    world.store.execute(APPEND_SQL)
    world.store.executemany(
        f"INSERT INTO {APPEND_TABLE} VALUES (?, 1, 0)", [(each,) for each in elements]
    )
    return world


def test_what_returned_and_is_not_in_its_file_is_told(peer: Peer) -> None:
    world = with_client(told(title="t0"), peer)
    world.appended("client1", 1, "1.0.1")
    assert list(Durability().during(world)) == ["client1 lost ['1.0.1']"]


@pytest.mark.parametrize(("restored", "heard"), [(False, False), (True, True)])
def test_what_was_acknowledged_is_owed_though_its_file_is_lost(
    peer: Peer, restored: bool, heard: bool
) -> None:
    said = acknowledged_and_lost(peer, restored=restored, heard=heard)
    assert "which client1 was told it has" in said


def test_what_a_lost_history_acknowledged_is_not_owed_before_the_file_heard_of_it(
    peer: Peer,
) -> None:
    assert acknowledged_and_lost(peer, restored=True, heard=False) == ""


def acknowledged_and_lost(peer: Peer, *, restored: bool, heard: bool) -> str:
    """What is said of an element that the relay lacks and its file has lost; before, the relays'
    database went back."""
    world = with_client(with_lists(told(title="t0")), peer)
    peer.app.execute(f"INSERT INTO {APPEND_TABLE} VALUES ('1.0.1', 1, 0)")
    peer.fold()
    peer.app.execute("DELETE FROM _reunite_changesets")
    world.appended("client1", 1, "1.0.1")
    if restored:
        world.history.restores.append(2.0)
    if heard:
        world.history.refills["client1"] = [3.0]
    checker = Durability()
    assert list(checker.during(world)) == []
    world.history.doubt("client1", 0.0)
    return "; ".join(checker.at_end(world))


# Exactly-once effect, constraints, bounds.


def test_a_changeset_twice_or_a_hole_is_told() -> None:
    world = told(title="t0")
    world.store.execute("CREATE TABLE _reunite_changesets (replica, number, nonce)")
    rows = [(1, 1, b"a"), (1, 2, b"b")]
    world.store.executemany("INSERT INTO _reunite_changesets VALUES (?, ?, ?)", rows)
    assert list(ExactlyOnce().during(world)) == []
    world.store.execute("INSERT INTO _reunite_changesets VALUES (1, 4, x'61')")
    twice, hole = ExactlyOnce().during(world)
    assert twice == "changeset 61 was accepted 2 times"
    assert hole == "replica 1 has 3 accepted changesets and a last one of 4"


def test_a_reference_to_nothing_at_the_relay_is_told() -> None:
    world = told(title="t0")
    world.store = sqlite3.connect(":memory:")
    world.store.execute("CREATE TABLE todo (id INTEGER PRIMARY KEY, up INT REFERENCES todo)")
    world.store.execute("INSERT INTO todo VALUES (1, 9)")
    assert "refers to no row of 'todo'" in next(iter(Constraints().during(world)))


def test_a_rejection_without_a_trace_or_without_a_reason_is_told(peer: Peer) -> None:
    world = with_client(told(title="t0"), peer)
    refused = GaveUp("constraint", "no", ((APPEND_TABLE, "1.0.1"),))
    world.clients = [ToldClient("client1", peer.app, events=[refused])]
    world.appended("client1", 1, "1.0.1")
    trace, reason = Constraints().at_end(world)
    assert "keeps no trace" in trace
    assert "no constraint concerns them" in reason


def test_a_world_that_is_not_quiet_is_told(peer: Peer) -> None:
    world = with_client(told(title="t0"), peer)
    assert list(Bounds().at_end(world)) == []
    world.commits_when_quiet = 1
    world.bytes_when_quiet = 1 << 20
    commits, quiet = Bounds().at_end(world)
    assert "1 commits though nobody wrote" in commits
    assert "bytes were sent though nobody wrote" in quiet
