"""`reunite_rows` and the outbox: what the app can read of each row's way to the relay."""

import pytest

from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT)"
MANY = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)"
    " INSERT INTO todo SELECT i, 'x' FROM n"
)


@pytest.fixture
def peer(make_peer: MakePeer) -> Peer:
    """A tracked table, with nothing in it."""
    peer = make_peer(TODO)
    peer.track("todo")
    return peer


def test_a_row_is_pending_then_sent_then_synced(peer: Peer, relay: Relay) -> None:
    link = relay.connect(peer)
    peer.write("INSERT INTO todo VALUES (1, 'milk')")
    peer.fold()
    assert peer.states("todo") == {1: "pending"}
    link.push()
    assert peer.states("todo") == {1: "sent"}
    link.deliver()
    assert peer.states("todo") == {1: "synced"}


def test_a_row_with_later_work_is_pending_until_all_of_it_is_in(peer: Peer, relay: Relay) -> None:
    link = relay.connect(peer)
    peer.commit("INSERT INTO todo VALUES (1, 'milk')")
    link.push()
    peer.commit("UPDATE todo SET title = 'oats'")
    link.deliver()
    assert peer.states("todo") == {1: "pending"}
    relay.settle()
    assert peer.states("todo") == {1: "synced"}
    assert peer.line("todo", 1).visible is None


def test_a_deleted_row_is_seen_until_its_delete_is_in(peer: Peer, relay: Relay) -> None:
    peer.commit("INSERT INTO todo VALUES (1, 'milk')")
    relay.sync(peer)
    peer.write("DELETE FROM todo")
    peer.fold()
    assert peer.states("todo") == {1: "pending"}
    relay.sync(peer)
    assert peer.states("todo") == {}


def test_rows_of_a_changeset_in_several_parts_are_synced_with_their_part(
    peer: Peer, relay: Relay
) -> None:
    link = relay.connect(peer)
    peer.write(MANY)
    peer.fold()
    assert peer.replica.queued() > 1
    link.push(changesets_max=1)
    link.deliver()
    states = list(peer.states("todo").values())
    assert states.count("synced") == 2_500 - states.count("pending") > 0
    relay.settle()
    assert set(peer.states("todo").values()) == {"synced"}
    assert peer.line("todo", 1).visible is None
    assert peer.line("todo", 2_500).visible is None


def test_rows_that_were_adopted_in_several_parts_are_synced(
    make_peer: MakePeer, relay: Relay
) -> None:
    peer = make_peer(TODO, MANY)
    peer.track("todo")
    relay.sync(peer)
    assert set(peer.states("todo").values()) == {"synced"}


def test_a_row_that_was_never_anywhere_and_is_gone_leaves_no_line(peer: Peer, relay: Relay) -> None:
    relay.sync(peer)
    relay.delete("todo", (7,), at=1)
    peer.write("INSERT INTO todo VALUES (1, 'x')", "DELETE FROM todo")
    relay.sync(peer)
    assert peer.states("todo") == {}


def test_a_file_says_what_is_left_to_do(peer: Peer, relay: Relay) -> None:
    peer.commit("INSERT INTO todo VALUES (1, 'milk')")
    standing = peer.replica.standing()
    assert (standing.pending, standing.rejected, standing.blocked, standing.loaded) == (
        1,
        0,
        0,
        False,
    )
    relay.sync(peer)
    standing = peer.replica.standing()
    assert (standing.pending, standing.seq, standing.loaded) == (0, relay.head, True)
    assert standing.last_sync_ms == peer.clock.ms


def test_polling_notices_what_others_wrote_once(peer: Peer) -> None:
    assert [peer.replica.poll(), peer.replica.poll()] == [1, 1]
    peer.write("INSERT INTO todo VALUES (1, 'milk')")
    assert peer.replica.poll() == 2
    assert peer.states("todo") == {1: "pending"}
    assert peer.replica.poll() == 2


def test_polling_does_not_wait_for_a_writer(peer: Peer) -> None:
    before = peer.replica.poll()
    peer.write("INSERT INTO todo VALUES (1, 'milk')", "BEGIN IMMEDIATE")
    assert peer.replica.poll() == before
    peer.write("COMMIT")
    assert peer.replica.poll() == before + 1


def test_a_mark_is_reached_when_all_work_before_it_is_resolved(peer: Peer, relay: Relay) -> None:
    peer.commit("INSERT INTO todo VALUES (1, 'milk')")
    mark = peer.replica.outbox_mark()
    relay.sync(peer)
    peer.commit("INSERT INTO todo VALUES (2, 'later')")
    assert peer.replica.has_reached(relay.head, mark)
    assert not peer.replica.has_reached(relay.head + 1, mark)
    assert not peer.replica.has_reached(relay.head, peer.replica.outbox_mark())


def test_a_script_that_resets_all_sequences_does_not_disorder_the_outbox(
    peer: Peer, relay: Relay
) -> None:
    for number in (1, 2):
        peer.write(f"INSERT INTO todo VALUES ({number}, 'before')", "DELETE FROM sqlite_sequence")
        peer.fold()
    peer.commit("UPDATE todo SET title = 'after'")
    peer.write("DELETE FROM sqlite_sequence", "DELETE FROM todo WHERE id = 2")
    relay.sync(peer)
    assert len(relay.pushed) == 4
    assert relay.stated("todo", 1) == {"title": "after"}
    assert relay.stated("todo", 2) == {}
    peer.write("DELETE FROM sqlite_sequence", "INSERT INTO todo VALUES (3, 'next')")
    relay.sync(peer)
    assert relay.stated("todo", 3) == {"title": "next"}
    assert peer.replica.queued() == 0
    assert peer.differences() == []


def test_a_mark_never_names_work_that_was_done_after_it(peer: Peer, relay: Relay) -> None:
    peer.commit("INSERT INTO todo VALUES (1, 'milk')")
    relay.sync(peer)
    mark = peer.replica.outbox_mark()
    for number in (2, 3):
        peer.commit(f"INSERT INTO todo VALUES ({number}, 'later')")
        assert peer.replica.has_reached(relay.head, mark)
