"""Rows over the largest size of a document: noted, never in the way of anything else."""

import pytest

from reunite.document import DOCUMENT_BYTES_MAX, Document, encode
from reunite.replica import Outgoing
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Refusal, Relay, RowId
from tests.engine.peer import Peer

FILE = "CREATE TABLE file (id INTEGER PRIMARY KEY, a TEXT, b TEXT, c TEXT)"
LENGTHS = "SELECT length(a), length(b), c FROM file"
LARGE = 9_000_000


def enlarge(column: str) -> str:
    return f"UPDATE file SET {column} = printf('%.*c', {LARGE}, '{column}')"


@pytest.fixture
def peer(make_peer: MakePeer, relay: Relay) -> Peer:
    """A replica of one small row."""
    peer = make_peer(FILE)
    peer.track("file")
    peer.write("INSERT INTO file (id, c) VALUES (1, 'c')")
    relay.sync(peer)
    return peer


def two_large_edits(peer: Peer) -> None:
    """Two edits, each of an allowed size, of which the second makes the row too large."""
    for column in ("a", "b"):
        peer.write(enlarge(column))
        peer.fold()
    assert [(line[1], line[3]) for line in peer.rejected()] == [(1, "local")]
    assert peer.states("file") == {1: "rejected"}


def test_a_row_that_two_edits_made_too_large_can_be_updated_and_mended(
    peer: Peer, relay: Relay, make_peer: MakePeer
) -> None:
    two_large_edits(peer)
    peer.write("UPDATE file SET c = 'still too large'")
    assert peer.fold() == []
    assert [(line[1], line[3]) for line in peer.rejected()] == [(1, "local")]
    peer.write("UPDATE file SET a = 'small'")
    relay.sync(peer)
    assert peer.rejected() == []
    other = make_peer()
    relay.sync(other)
    assert other.rows(LENGTHS) == peer.rows(LENGTHS) == [(5, LARGE, "still too large")]
    assert peer.states("file") == {1: "synced"}


def test_a_row_that_two_edits_made_too_large_can_be_deleted(peer: Peer, relay: Relay) -> None:
    two_large_edits(peer)
    peer.write("DELETE FROM file")
    relay.sync(peer)
    assert peer.rejected() == []
    assert peer.rows(LENGTHS) == []
    assert relay.stated("file", 1) == {}
    assert peer.replica.queued() == 0
    assert peer.differences() == []


def test_an_edit_that_stays_here_outlives_the_acknowledgement_of_those_before_it(
    peer: Peer, relay: Relay
) -> None:
    two_large_edits(peer)
    relay.sync(peer)
    assert relay.stated("file", 1)["b"] is None
    assert peer.rows(LENGTHS) == [(LARGE, LARGE, "c")]
    assert peer.states("file") == {1: "rejected"}
    peer.write("UPDATE file SET a = 'small'")
    relay.sync(peer)
    assert len(str(relay.stated("file", 1)["b"])) == LARGE
    assert peer.states("file") == {1: "synced"}
    assert peer.differences() == []


def test_an_edit_that_stays_here_outlives_edits_of_others_to_other_columns(
    peer: Peer, relay: Relay
) -> None:
    peer.write(enlarge("a"))
    relay.sync(peer)
    peer.write(enlarge("b"))
    relay.sync(peer)
    relay.edit("file", (1,), at=100, c="theirs")
    relay.sync(peer)
    assert peer.rows(LENGTHS) == [(LARGE, LARGE, "theirs")]
    assert peer.states("file") == {1: "rejected"}
    assert [(line[1], line[3]) for line in peer.rejected()] == [(1, "local")]
    peer.write("UPDATE file SET a = 'small'", at=200)
    relay.sync(peer)
    assert len(str(relay.stated("file", 1)["b"])) == LARGE
    assert relay.stated("file", 1)["c"] == "theirs"
    assert peer.states("file") == {1: "synced"}
    assert peer.differences() == []


def test_an_edit_that_stays_here_outlives_new_stamps_for_those_before_it(
    peer: Peer, relay: Relay
) -> None:
    two_large_edits(peer)
    relay.ahead_ms[peer.replica] = -50_000
    relay.greet(peer.replica)
    assert peer.rows(LENGTHS) == [(LARGE, LARGE, "c")]
    relay.sync(peer)
    assert peer.rows(LENGTHS) == [(LARGE, LARGE, "c")]


def test_a_delete_by_another_replica_ends_an_edit_that_stays_here(peer: Peer, relay: Relay) -> None:
    two_large_edits(peer)
    relay.sync(peer)
    relay.delete("file", (1,), at=100)
    relay.sync(peer)
    assert peer.rows(LENGTHS) == []
    assert peer.states("file") == {}
    assert peer.differences() == []


def test_two_devices_that_make_one_row_too_large_are_told_and_go_on(
    peer: Peer, relay: Relay, make_peer: MakePeer
) -> None:
    def refuse(_changeset: Outgoing, after: dict[RowId, Document]) -> Refusal | None:
        sizes = [len(encode(document)) for document in after.values()]
        return Refusal("too-large") if max(sizes) > DOCUMENT_BYTES_MAX else None

    relay.refuse = refuse
    other = make_peer()
    relay.sync(other)
    link = relay.connect(other)
    other.commit(enlarge("b"), at=200)
    peer.commit(enlarge("a"), at=100)
    relay.connect(peer).push()
    # What the relay stated joins what is pending here.
    link.deliver()
    assert other.rows(LENGTHS) == [(LARGE, LARGE, "c")]
    other.write("UPDATE file SET c = 'c2'", at=300)
    assert other.fold() == []
    relay.settle()
    assert other.rows(LENGTHS) == [(LARGE, None, "c2")]
    assert peer.rows(LENGTHS) == [(LARGE, None, "c")]
    assert "too-large" in [line[3] for line in other.rejected()]
    other.write("UPDATE file SET c = 'c3'", at=400)
    relay.settle()
    assert other.rows(LENGTHS) == peer.rows(LENGTHS) == [(LARGE, None, "c3")]
    assert other.replica.queued() == 0
    assert other.differences() == peer.differences() == []
