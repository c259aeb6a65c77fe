"""A restored relay: what a file offers it again, and what becomes of work that was under way."""

from reunite.clock import replica_of, time_of
from reunite.document import decode
from reunite.payload import Kind
from tests.engine.conftest import MakePeer
from tests.engine.loopback import REALM, Relay
from tests.engine.peer import START_MS, Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT)"
TITLES = "SELECT id, title FROM todo ORDER BY id"


def synced(make_peer: MakePeer, relay: Relay) -> Peer:
    peer = make_peer(TODO)
    peer.track("todo")
    peer.write("INSERT INTO todo VALUES (1, 'shared')")
    relay.sync(peer)
    return peer


def refill(peer: Peer, relay: Relay) -> int:
    """Tell a peer that this relay knows nothing of it."""
    return peer.replica.refill(realm=REALM, tables=list(relay.tables.values()))


def test_another_relay_gets_all_that_the_first_had(make_peer: MakePeer, relay: Relay) -> None:
    a, b = synced(make_peer, relay), make_peer()
    relay.sync(b)
    b.commit("UPDATE todo SET title = 'by b'")
    b.commit("INSERT INTO todo VALUES (2, 'two')", "DELETE FROM todo WHERE id = 2")
    relay.sync(b, a)
    before = dict(relay.documents)
    a.commit("INSERT INTO todo VALUES (3, 'unsent')")
    empty = Relay()
    assert refill(a, empty) == len(before)
    assert a.rows(TITLES) == [(1, "by b"), (3, "unsent")]
    empty.sync(a)
    assert {row: empty.documents[row] for row in before} == before
    assert a.differences() == []
    assert a.replica.queued() == 0
    refill(b, empty)
    pushed = len(empty.pushed)
    empty.sync(b)
    assert len(empty.pushed) == pushed, "it was offered what it has"
    assert a.rows(TITLES) == b.rows(TITLES)


def test_what_was_sent_goes_again_with_the_stamps_that_it_had(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = synced(make_peer, relay)
    a.commit("UPDATE todo SET title = 'sent'")
    relay.connect(a).close()
    (sent,) = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    a.commit("INSERT INTO todo VALUES (2, 'unsent')")
    empty = Relay()
    refill(a, empty)
    empty.sync(a)
    offered, again, fresh = empty.pushed
    assert [push.rows[0].kinds for push in empty.pushed] == [
        [Kind.OFFERED],
        [Kind.OFFERED],
        [Kind.WHOLE],
    ]
    assert (again.nonce, again.rows[0].documents) == (sent.nonce, sent.rows[0].documents)
    stamp = decode(fresh.rows[0].documents[0]).edited
    assert replica_of(stamp) == a.replica.standing().replica
    assert offered.nonce not in (sent.nonce, fresh.nonce)


def test_work_that_was_refused_for_its_time_is_stamped_again(
    make_peer: MakePeer, relay: Relay
) -> None:
    """The clock was ahead when it was sent, so the lost relay cannot have taken it."""
    a = synced(make_peer, relay)
    a.commit("INSERT INTO todo VALUES (2, 'ahead')", at=3_600_000)
    relay.connect(a).close()
    a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    empty = Relay()
    empty.now_ms = START_MS + 10_000
    refill(a, empty)
    for _ in range(3):
        empty.ahead_ms[a.replica] = 3_600_000
        empty.connect(a)
        empty.settle()
    assert a.replica.queued() == 0
    assert empty.pushed[-1].rows[0].kinds == [Kind.WHOLE]
    assert time_of(a.document("todo", 2).edited) >> 16 <= START_MS + 70_000


def test_an_edit_of_what_is_offered_beats_it_whatever_the_clock_says(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay), make_peer()
    relay.sync(b)
    b.commit("UPDATE todo SET title = 'late'", at=50_000)
    relay.sync(b, a)
    empty = Relay()
    refill(a, empty)
    a.commit("UPDATE todo SET title = 'had seen it'", at=0)
    link = empty.connect(a)
    link.push(changesets_max=1)
    link.deliver()
    link.close()
    # Another offset has it stamped again, when what it had seen is a base once more.
    empty.ahead_ms[a.replica] = 20_000
    empty.sync(a)
    assert a.rows(TITLES) == [(1, "had seen it")]
    assert empty.stated("todo", 1) == {"title": "had seen it"}


def test_an_edit_that_had_not_seen_what_is_offered_does_not_beat_it(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay), make_peer()
    relay.sync(b)
    a.commit("UPDATE todo SET title = 'earlier'", at=10_000)
    b.commit("UPDATE todo SET title = 'later'", at=50_000)
    relay.sync(b)
    # It hears of that, and of the restore, before it could send its own.
    relay.connect(a).close()
    empty = Relay()
    refill(a, empty)
    link = empty.connect(a)
    link.push(changesets_max=1)
    link.deliver()
    link.close()
    empty.ahead_ms[a.replica] = 300
    empty.sync(a)
    assert a.rows(TITLES) == [(1, "later")]
    assert empty.stated("todo", 1) == {"title": "later"}
    assert (a.replica.queued(), a.differences()) == (0, [])


def test_nor_after_a_second_restore_while_it_offers(make_peer: MakePeer, relay: Relay) -> None:
    a, b = synced(make_peer, relay), make_peer()
    relay.sync(b)
    first, second = Relay(), Relay()
    refill(a, first)
    a.commit("UPDATE todo SET title = 'earlier'", at=10_000)
    refill(b, first)
    b.commit("UPDATE todo SET title = 'later'", at=50_000)
    first.sync(b)
    first.connect(a).close()
    refill(a, second)
    second.sync(a)
    assert a.rows(TITLES) == [(1, "later")]
    assert second.stated("todo", 1) == {"title": "later"}
    assert (a.replica.queued(), a.differences()) == (0, [])


def test_an_edit_on_top_of_its_own_files_work_has_seen_what_is_offered(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay), make_peer()
    relay.sync(b)
    b.commit("UPDATE todo SET title = 'others'", at=50_000)
    relay.sync(b)
    a.commit("UPDATE todo SET title = 'mine'", at=60_000)
    relay.connect(a).close()
    empty = Relay()
    refill(a, empty)
    a.commit("UPDATE todo SET title = 'on top'", at=61_000)
    # By this clock, both of its edits were before the other's.
    empty.ahead_ms[a.replica] = 40_000
    empty.sync(a)
    assert a.rows(TITLES) == [(1, "on top")]
    assert empty.stated("todo", 1) == {"title": "on top"}


def test_rows_that_the_relay_still_has_are_not_written_again(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = synced(make_peer, relay)
    a.write(
        "CREATE TABLE audit (id INTEGER)",
        "CREATE TRIGGER seen AFTER UPDATE ON todo BEGIN INSERT INTO audit VALUES (NEW.id); END",
    )
    relay.sync(a)
    refill(a, relay)
    relay.sync(a)
    assert a.rows("SELECT count(*) FROM audit") == [(0,)]
    assert (a.replica.queued(), a.states("todo")) == (0, {1: "synced"})


def test_what_no_table_shows_here_and_no_relay_has_is_kept_as_rejected(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay), make_peer("CREATE TABLE todo (id INTEGER PRIMARY KEY)")
    relay.sync(b)
    assert b.replica.standing().left_alone == ("todo",)
    empty = Relay()
    refill(b, empty)
    empty.sync(b)
    assert [(row[0], row[1]) for row in b.rejected()] == [("todo", 1)]
    assert a.replica.queued() == 0


def test_a_load_that_does_not_say_what_it_saw_begins_anew(
    make_peer: MakePeer, relay: Relay
) -> None:
    synced(make_peer, relay)
    b = make_peer()
    relay.page_rows = 1
    b.replica.take_registry(list(relay.tables.values()))
    b.engine.execute("UPDATE _reunite_meta SET value = 1 WHERE name = 'load_seq'")
    greeting = b.replica.greeting()
    assert (greeting.seq, greeting.token) == (0, b"")
    assert b.replica.position().seq == 0
