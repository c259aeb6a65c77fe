"""Wrong clocks: an edit's stamp is its true time, yet after all that the edit saw."""

from reunite.clock import time_of
from reunite.document import cell_key
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import START_MS, Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, n INTEGER)"
TITLE = cell_key(2)
MINUTE = 60_000


def pair(make_peer: MakePeer, relay: Relay) -> tuple[Peer, Peer]:
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.write("INSERT INTO todo VALUES (1, 'milk', 5)")
    relay.sync(a, b)
    relay.now_ms = START_MS + 2 * MINUTE
    return a, b


def time_at(ms: int) -> int:
    return (START_MS + ms) << 16


def test_an_edit_by_a_fast_clock_loses_to_a_truly_later_one(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    a.commit("UPDATE todo SET title = 'older'", at=10 * MINUTE)
    b.commit("UPDATE todo SET title = 'later'", at=MINUTE)
    relay.sync(b)
    relay.ahead_ms[a.replica] = 10 * MINUTE
    relay.sync(a, b)
    assert a.rows("SELECT title FROM todo") == b.rows("SELECT title FROM todo") == [("later",)]
    assert a.document("todo", 1) == b.document("todo", 1)


def test_the_same_when_the_later_edit_arrived_before_the_clock_was_measured(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    link = relay.connect(a)
    a.commit("UPDATE todo SET title = 'older'", at=10 * MINUTE)
    b.commit("UPDATE todo SET title = 'later'", at=MINUTE)
    relay.connect(b).push()
    link.deliver()
    assert a.rows("SELECT title FROM todo") == [("older",)]
    link.push()
    assert link not in relay.links
    relay.ahead_ms[a.replica] = 10 * MINUTE
    relay.sync(a, b)
    assert a.rows("SELECT title FROM todo") == b.rows("SELECT title FROM todo") == [("later",)]


def test_a_refused_future_stamp_does_not_stay_in_the_document(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, _ = pair(make_peer, relay)
    a.commit("UPDATE todo SET title = 'ahead'", at=10 * MINUTE)
    link = relay.connect(a)
    link.push()
    assert a.replica.queued() == 1
    assert link.rejections == []
    relay.ahead_ms[a.replica] = 9 * MINUTE
    relay.sync(a)
    assert time_of(a.document("todo", 1).latest()) == time_at(MINUTE)
    a.commit("UPDATE todo SET title = 'next'", at=10 * MINUTE + 1)
    relay.sync(a)
    assert relay.stated("todo", 1)["title"] == "next"
    assert time_of(a.document("todo", 1).latest()) == time_at(MINUTE + 1)


def test_edits_keep_their_order_when_they_are_stamped_again(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    b.commit("UPDATE todo SET n = 6", at=MINUTE)
    relay.sync(b, a)
    for title in "xyz":
        a.commit(f"UPDATE todo SET title = '{title}'", at=10 * MINUTE)
    relay.ahead_ms[a.replica] = 10 * MINUTE
    relay.sync(a, b)
    assert b.rows("SELECT title, n FROM todo") == [("z", 6)]
    assert time_of(b.document("todo", 1).cells[TITLE][0]) == time_at(MINUTE) + 3


def test_a_slow_clock_does_not_make_an_edit_older_than_what_it_saw(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    b.commit("UPDATE todo SET title = 'seen'", at=MINUTE)
    relay.sync(b, a)
    a.commit("UPDATE todo SET title = 'answer'", at=-10 * MINUTE)
    relay.sync(a, b)
    assert b.rows("SELECT title FROM todo") == [("answer",)]


def test_a_slow_clock_is_set_right_by_the_handshake(make_peer: MakePeer, relay: Relay) -> None:
    a, b = pair(make_peer, relay)
    b.commit("UPDATE todo SET title = 'older'", at=MINUTE)
    a.commit("UPDATE todo SET title = 'later'", at=-8 * MINUTE)
    relay.sync(b)
    relay.ahead_ms[a.replica] = -10 * MINUTE
    relay.sync(a, b)
    assert a.rows("SELECT title FROM todo") == b.rows("SELECT title FROM todo") == [("later",)]


def test_the_noise_of_the_network_is_no_wrong_clock(make_peer: MakePeer, relay: Relay) -> None:
    a, _ = pair(make_peer, relay)
    relay.ahead_ms[a.replica] = 300
    a.commit("UPDATE todo SET title = 'x'", at=MINUTE)
    relay.sync(a)
    assert time_of(a.document("todo", 1).cells[TITLE][0]) == time_at(MINUTE)


def test_tables_follow_when_edits_are_stamped_again(make_peer: MakePeer, relay: Relay) -> None:
    a, b = pair(make_peer, relay)
    link = relay.connect(a)
    a.commit("UPDATE todo SET title = 'ours', n = 1", at=10 * MINUTE)
    b.commit("UPDATE todo SET title = 'theirs'", at=MINUTE)
    relay.connect(b).push()
    link.deliver()
    assert a.rows("SELECT title, n FROM todo") == [("ours", 1)]
    link.close()
    relay.ahead_ms[a.replica] = 10 * MINUTE
    relay.greet(a.replica)
    assert a.rows("SELECT title, n FROM todo") == [("theirs", 1)]
    assert a.differences() == []


def test_edits_of_a_clock_that_was_put_right_do_not_come_from_the_future(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    a.commit("UPDATE todo SET title = 'x'", at=10 * MINUTE)
    a.commit("UPDATE todo SET title = 'y'", at=10 * MINUTE + 1)
    a.write("UPDATE todo SET n = 6")
    a.fold()
    a.clock.ms = START_MS + MINUTE
    link = relay.connect(a)
    link.push()
    assert link not in relay.links
    assert time_of(a.document("todo", 1).latest()) == time_at(MINUTE) + 2
    relay.sync(a, b)
    assert a.rejected() == []
    assert a.rows("SELECT title, n FROM todo") == b.rows("SELECT title, n FROM todo") == [("y", 6)]


def test_edits_of_a_measured_clock_that_was_put_right_do_not_come_from_the_future(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    relay.ahead_ms[a.replica] = 10 * MINUTE
    a.clock.ms = START_MS + 10 * MINUTE
    relay.sync(a)
    a.commit("UPDATE todo SET title = 'x'", at=10 * MINUTE + 1)
    del relay.ahead_ms[a.replica]
    a.clock.ms = START_MS + MINUTE
    relay.greet(a.replica)
    assert time_of(a.document("todo", 1).latest()) == time_at(MINUTE)
    relay.sync(a, b)
    assert b.rows("SELECT title FROM todo") == [("x",)]
