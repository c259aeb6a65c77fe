"""Copied and restored files: they become replicas of their own and lose and double nothing."""

from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT)"
TITLES = "SELECT id, title FROM todo ORDER BY id"


def original(make_peer: MakePeer, relay: Relay) -> Peer:
    peer = make_peer(TODO)
    peer.track("todo")
    peer.write("INSERT INTO todo VALUES (1, 'shared')")
    relay.sync(peer)
    return peer


def test_a_copy_and_its_original_both_go_on(make_peer: MakePeer, relay: Relay) -> None:
    a = original(make_peer, relay)
    b = make_peer(copy_of=a)
    a.commit("INSERT INTO todo VALUES (2, 'a')")
    b.commit("INSERT INTO todo VALUES (3, 'b')")
    for peer in (a, b, a):
        relay.sync(peer)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "shared"), (2, "a"), (3, "b")]
    assert a.replica.standing().replica != b.replica.standing().replica
    assert a.differences() == b.differences() == []


def test_a_copy_whose_numbers_were_used_by_its_original_drops_none_of_its_work(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = original(make_peer, relay)
    b = make_peer(copy_of=a)
    for key in range(10, 20):
        a.commit(f"INSERT INTO todo VALUES ({key}, 'a')")
    for key in range(20, 45):
        b.commit(f"INSERT INTO todo VALUES ({key}, 'b')")
    for peer in (a, b, a):
        relay.sync(peer)
    assert a.rows("SELECT count(*) FROM todo") == b.rows("SELECT count(*) FROM todo") == [(36,)]
    assert b.replica.queued() == 0


def test_unsent_work_that_was_copied_arrives_once(make_peer: MakePeer, relay: Relay) -> None:
    a = original(make_peer, relay)
    a.commit("INSERT INTO todo VALUES (11, 'copied')")
    b = make_peer(copy_of=a)
    a.commit("INSERT INTO todo VALUES (12, 'a')")
    relay.sync(a)
    b.commit("INSERT INTO todo VALUES (13, 'b')")
    pushed = len(relay.pushed)
    relay.sync(b, a)
    assert len(relay.pushed) == pushed + 1
    assert a.rows(TITLES) == b.rows(TITLES)
    assert [key for key, _ in a.rows(TITLES)] == [1, 11, 12, 13]
    assert b.replica.queued() == 0
    assert set(b.states("todo").values()) == {"synced"}


def test_a_restored_backup_becomes_a_new_replica_and_catches_up(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = original(make_peer, relay)
    backup = make_peer(copy_of=a)
    a.commit("UPDATE todo SET title = 'after the backup'")
    relay.sync(a)
    backup.commit("INSERT INTO todo VALUES (5, 'restored')")
    relay.sync(backup, a)
    expected = [(1, "after the backup"), (5, "restored")]
    assert a.rows(TITLES) == backup.rows(TITLES) == expected


def test_an_acknowledgement_that_was_lost_is_no_second_push(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = original(make_peer, relay)
    link = relay.connect(a)
    a.commit("INSERT INTO todo VALUES (2, 'a')")
    a.commit("INSERT INTO todo VALUES (3, 'b')")
    link.push(changesets_max=1)
    link.close()
    pushed = len(relay.pushed)
    relay.sync(a)
    assert len(relay.pushed) == pushed + 1
    assert a.replica.queued() == 0
    assert a.replica.acknowledged() == len(relay.pushed)


def test_what_was_sent_and_never_arrived_is_sent_again_as_it_was(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = original(make_peer, relay)
    a.commit("INSERT INTO todo VALUES (2, 'a')")
    relay.connect(a).close()
    (lost,) = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    relay.sync(a)
    assert relay.pushed[-1] == lost
