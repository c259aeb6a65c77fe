"""Copied and restored files: they become replicas of their own and lose and double nothing."""

import pytest

from reunite.payload import Statement
from tests.engine.conftest import MakePeer
from tests.engine.loopback import REALM, Refusal, Relay
from tests.engine.peer import START_MS, Peer

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


@pytest.mark.parametrize("heard", [False, True])
def test_a_second_edit_stays_after_the_first_when_the_clock_is_measured_anew(
    heard: bool, make_peer: MakePeer, relay: Relay
) -> None:
    a, b = original(make_peer, relay), make_peer()
    a.commit("UPDATE todo SET title = 'first'", at=20_000)
    a.commit("UPDATE todo SET title = 'second'", at=20_100)
    link = relay.connect(a)
    link.push(changesets_max=1)
    if heard:
        link.deliver()
    link.close()
    for ahead_ms in (9_000, 15_000):
        relay.ahead_ms[a.replica] = ahead_ms
        relay.connect(a).close()
    relay.sync(a, b)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "second")]
    assert a.differences() == []


def test_the_third_edit_stays_after_the_first_when_the_second_was_refused(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = original(make_peer, relay), make_peer()
    relay.now_ms = START_MS + 120_000
    link = relay.connect(a)
    a.commit("UPDATE todo SET title = 'one'", at=50_000)
    link.push()
    a.commit("UPDATE todo SET title = 'two'", at=50_001)
    a.commit("UPDATE todo SET title = 'three'", at=50_002)
    link.deliver()
    refusals = iter([Refusal()])
    relay.refuse = lambda _changeset, _after: next(refusals, None)
    link.push(changesets_max=1)
    if link in relay.links:
        link.close()
    relay.ahead_ms[a.replica] = 50_000
    relay.sync(a, b)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "three")]


@pytest.mark.parametrize("fork", [False, True])
def test_what_strangers_write_between_greeting_and_welcome_is_kept(
    fork: bool, make_peer: MakePeer, relay: Relay
) -> None:
    a, b = original(make_peer, relay), make_peer()
    a.commit("UPDATE todo SET title = 'ours'", at=100)
    a.replica.greeting()
    a.write("UPDATE todo SET title = 'a stranger''s'", at=200)
    a.replica.welcome(realm=REALM, offset_ms=50_000, fork=fork, known=())
    assert a.rows(TITLES) == [(1, "a stranger's")]
    relay.sync(a, b)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "a stranger's")]
    assert a.differences() == []


def test_what_strangers_write_before_a_commit_is_known_is_kept(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = original(make_peer, relay), make_peer()
    link = relay.connect(a)
    a.commit("UPDATE todo SET title = 'ours'", at=100)
    link.push()
    link.close()
    # As where the relay drops an edit whose cause is gone: the row goes back to what it was.
    a.replica.receive(Statement((), relay.head, b"a token.", True))
    a.write("UPDATE todo SET title = 'a stranger''s'", at=200)
    a.replica.know([(link.sent, relay.head)])
    assert a.rows(TITLES) == [(1, "a stranger's")]
    relay.sync(a, b)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "a stranger's")]
    assert a.differences() == []


def test_a_row_whose_insert_is_in_and_has_not_arrived_is_whole_after_a_fork(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = original(make_peer, relay)
    a.write("ALTER TABLE todo ADD COLUMN note TEXT")
    a.commit("INSERT INTO todo VALUES (2, 'inserted', 'noted')", at=100)
    b = make_peer(copy_of=a)
    a.commit("INSERT INTO todo VALUES (3, 'after the copy', NULL)", at=150)
    relay.sync(a)
    b.commit("UPDATE todo SET title = 'updated' WHERE id = 2", at=200)
    replica = b.replica.standing().replica
    relay.greet(b.replica)
    assert b.replica.standing().replica != replica
    row = "SELECT title, note FROM todo WHERE id = 2"
    assert b.rows(row) == [("updated", "noted")]
    assert b.differences() == []
    relay.sync(b, a)
    assert a.rows(row) == b.rows(row) == [("updated", "noted")]


def test_what_a_waiting_commit_acknowledged_is_not_asked_for_after_a_reconnect(
    make_peer: MakePeer,
) -> None:
    """Numbers in a greeting follow on from the acknowledged one; one that is skipped would wait in
    the outbox for ever."""
    relay = Relay()
    a = make_peer("CREATE TABLE person (id INTEGER PRIMARY KEY, email TEXT UNIQUE)")
    a.track("person")
    a.commit("INSERT INTO person VALUES (1, 'one'), (2, 'two')")
    relay.sync(a)
    link = relay.connect(a)
    a.commit("UPDATE person SET email = 'committed' WHERE id = 2")
    a.commit("UPDATE person SET email = 'same' WHERE id = 1")
    committed, colliding = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    relay.edit("person", (5,), at=100, email="same")
    statement = relay.pages(a.replica)[0][0]._replace(acknowledged=(committed.number,))
    assert not a.replica.receive(statement)
    a.replica.know([(colliding.number, relay.head + 1)])
    link.close()
    greeting = a.replica.greeting()
    assert (greeting.acknowledged, greeting.nonces) == (colliding.number, ())
    rows = "SELECT seq FROM _reunite_changesets ORDER BY id"
    assert a.rows(rows) == [(statement.seq,), (relay.head + 1,)]


def test_a_commit_that_waits_acknowledges_nothing_after_a_fork(make_peer: MakePeer) -> None:
    relay = Relay(page_rows=1)
    a = make_peer("CREATE TABLE person (id INTEGER PRIMARY KEY, email TEXT UNIQUE)")
    a.track("person")
    a.commit("INSERT INTO person VALUES (1, 'one'), (2, 'two')")
    relay.sync(a)
    link = relay.connect(a)
    a.commit("UPDATE person SET email = 'committed' WHERE id = 2")
    a.commit("UPDATE person SET email = 'same' WHERE id = 1")
    committed, _ = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    # What arrives collides with the pending row, so it waits, and the acknowledgement behind it.
    relay.edit("person", (5,), at=100, email="same")
    assert relay.take(link, committed) is None
    link.deliver()
    assert not a.replica.receive(relay.pages(a.replica)[0][0])
    link.close()
    # The page after next says that nobody collides any longer.
    relay.edit("person", (5,), at=200, email="other")
    greeting = a.replica.greeting()
    assert (greeting.acknowledged, len(greeting.nonces)) == (committed.number, 1)
    a.replica.welcome(realm=REALM, offset_ms=0, fork=True, known=[])
    a.commit("INSERT INTO person VALUES (3, 'three')")
    anew = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    assert committed.number in [changeset.number for changeset in anew]
    for page, within in relay.pages(a.replica):
        a.replica.receive(page, within=within)
    assert a.replica.position().seq == relay.head
    assert a.replica.queued() == len(anew)
    relay.sync(a)
    assert relay.stated("person", 3) == {"email": "three"}
    assert relay.stated("person", 1) == {"email": "same"}
    assert a.differences() == []


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("sent", [False, True])
def test_what_was_counted_before_a_copy_is_noticed_counts_once(
    sent: bool, together: bool, make_peer: MakePeer, relay: Relay
) -> None:
    """The commit that acknowledges it comes with what the copy counted in the same name."""
    a = make_peer("CREATE TABLE tally (id INTEGER PRIMARY KEY, n COUNTER)")
    a.track("tally")
    a.write("INSERT INTO tally VALUES (1, 5)")
    relay.sync(a)
    link = relay.connect(a)
    a.commit("UPDATE tally SET n = n + 3")
    link.push()
    copy = make_peer(copy_of=a)
    other = relay.connect(copy)
    copy.commit("UPDATE tally SET n = n + 10")
    other.push()
    a.commit("UPDATE tally SET n = n + 2")
    if sent:
        assert len(a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)) == 1
    acknowledged, copied = link.queue
    for statements in [(acknowledged, copied)] if together else [(acknowledged,), (copied,)]:
        assert a.replica.receive(*statements)
    link.close()
    other.close()
    relay.sync(a, copy, a)
    assert a.rows("SELECT n FROM tally") == copy.rows("SELECT n FROM tally") == [(20,)]
    assert a.differences() == copy.differences() == []
