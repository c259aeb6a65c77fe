"""Refusals: what is given up is reverted exactly, and the rest goes on."""

import json

import pytest

from reunite.document import Document, decode
from reunite.keys import pack_key, unpack_key
from reunite.replica import Outgoing
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Refusal, Relay, RowId
from tests.engine.peer import Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, n INTEGER)"


@pytest.fixture
def pair(make_peer: MakePeer, relay: Relay) -> tuple[Peer, Peer]:
    """Two replicas of one row."""
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.write("INSERT INTO todo VALUES (1, 'milk', 5)")
    relay.sync(a, b)
    return a, b


def refuse_value(relay: Relay, *values: object, reason: str = "constraint") -> None:
    """Refuse from now on every changeset that sets one of these values."""

    def refuse(changeset: Outgoing, _after: dict[RowId, Document]) -> Refusal | None:
        held = [
            value
            for section in changeset.rows
            for document in section.documents
            for _, value in decode(document).cells.values()
        ]
        return Refusal(reason, "no") if set(values) & set(held) else None

    relay.refuse = refuse


TITLES = "SELECT id, title FROM todo ORDER BY id"


def test_a_refused_edit_goes_without_a_trace(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit("UPDATE todo SET title = 'bad' WHERE id = 1", at=200)
    b.commit("UPDATE todo SET title = 'good' WHERE id = 1", at=100)
    relay.sync(b)
    refuse_value(relay, "bad")
    relay.sync(a)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "good")]
    assert a.document("todo", 1) == b.document("todo", 1)
    assert a.states("todo") == {1: "synced"}
    assert a.differences() == []


def test_work_has_not_reached_the_relay_before_its_last_row_was_tried(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    """A refused row of other programs' work goes behind what was written meanwhile."""
    a, _ = pair
    refuse_value(relay, "bad")
    a.write("INSERT INTO todo VALUES (2, 'good', 1), (3, 'bad', 1)")
    a.commit("UPDATE todo SET n = 6 WHERE id = 1")
    mark = a.replica.outbox_mark()
    link = relay.connect(a)
    for _ in range(20):
        assert a.replica.has_reached(relay.head, mark) is (a.replica.queued() == 0)
        if not a.replica.queued():
            break
        link.push(changesets_max=1)
        link.deliver()
    assert len(a.rejected()) == 1


def test_a_refused_delete_goes_without_a_trace(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit("DELETE FROM todo", at=200)
    relay.refuse = lambda _changeset, _after: Refusal()
    b_before = b.document("todo", 1)
    relay.sync(a)
    assert a.rows(TITLES) == [(1, "milk")]
    assert a.document("todo", 1) == b_before


def test_a_refusal_is_kept_as_an_intent_and_told(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, _ = pair
    a.commit("UPDATE todo SET title = 'bad'", "INSERT INTO todo VALUES (2, 'b', NULL)")
    a.commit("DELETE FROM todo WHERE id = 1")
    relay.refuse = lambda _changeset, _after: Refusal("constraint", "UNIQUE failed")
    link = relay.connect(a)
    relay.settle()
    kept = {(line[1], line[2]): json.loads(str(line[4])) for line in a.rejected()}
    assert kept == {
        (1, "update"): {"title": "bad"},
        (2, "insert"): {"title": "b", "n": None},
        (1, "delete"): {},
    }
    assert [set(r.rows) for r in link.rejections] == [{("todo", 1), ("todo", 2)}, {("todo", 1)}]
    assert {r.message for r in link.rejections} == {"UNIQUE failed"}
    assert a.rows(TITLES) == [(1, "milk")]


def test_a_transaction_is_refused_as_one(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit("UPDATE todo SET n = 6", "INSERT INTO todo VALUES (2, 'bad', 0)")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert a.rows("SELECT id, n FROM todo") == b.rows("SELECT id, n FROM todo") == [(1, 5)]


def test_later_work_on_other_rows_goes_on(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit("UPDATE todo SET title = 'bad'")
    a.commit("UPDATE todo SET n = 6")
    a.commit("INSERT INTO todo VALUES (2, 'two', 0)")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    rows = [(1, "milk", 6), (2, "two", 0)]
    assert a.rows("SELECT id, title, n FROM todo") == rows
    assert b.rows("SELECT id, title, n FROM todo") == rows
    assert a.differences() == []


def test_edits_of_a_row_whose_insert_was_refused_go_with_it(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("INSERT INTO todo VALUES (2, 'bad', 0)")
    a.commit("UPDATE todo SET n = 1 WHERE id = 2", "UPDATE todo SET n = 6 WHERE id = 1")
    a.commit("UPDATE todo SET n = 7 WHERE id = 1")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert a.rows("SELECT id, n FROM todo") == b.rows("SELECT id, n FROM todo") == [(1, 7)]
    assert sorted((line[1], line[3]) for line in a.rejected()) == [
        (1, "depends-on"),
        (2, "constraint"),
        (2, "depends-on"),
    ]
    assert a.replica.queued() == 0
    assert a.differences() == []


def test_edits_of_a_row_whose_revival_was_refused_go_with_it(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("DELETE FROM todo")
    relay.sync(a, b)
    a.commit("INSERT INTO todo VALUES (1, 'bad', 0)")
    a.commit("UPDATE todo SET n = 9")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert a.rows(TITLES) == b.rows(TITLES) == []
    assert a.replica.queued() == 0


def test_a_row_deleted_and_written_again_after_a_refused_insert_is_sent_whole(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("INSERT INTO todo VALUES (2, 'bad', 0)")
    a.commit("DELETE FROM todo WHERE id = 2")
    a.commit("INSERT INTO todo VALUES (2, 'good', 1)")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert a.rows(TITLES) == b.rows(TITLES) == [(1, "milk"), (2, "good")]
    assert a.differences() == []


def test_loose_work_is_split_until_the_bad_row_stands_alone(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.write(*(f"INSERT INTO todo VALUES ({n}, 'ok', 0)" for n in range(2, 40)))
    a.write("UPDATE todo SET title = 'bad' WHERE id IN (1, 17)")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert [(line[1], line[2]) for line in a.rejected()] == [(1, "update"), (17, "insert")]
    assert len(b.rows(TITLES)) == 38
    assert a.rows(TITLES) == b.rows(TITLES)
    assert b.rows("SELECT title FROM todo WHERE id = 1") == [("milk",)]
    assert set(a.states("todo").values()) == {"synced"}
    assert a.line("todo", 2).visible is None
    assert a.replica.queued() == 0
    assert a.differences() == []


def test_a_loose_row_that_came_too_early_is_tried_again_at_the_end(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.write("INSERT INTO todo VALUES (2, 'child', 3)")
    a.fold()
    a.write("INSERT INTO todo VALUES (3, 'parent', 0)")

    def refuse(_changeset: Outgoing, after: dict[RowId, Document]) -> Refusal | None:
        child, parent = (1, b"\x91\x02"), (1, b"\x91\x03")
        rows = {**relay.documents, **after}
        return Refusal() if child in rows and parent not in rows else None

    relay.refuse = refuse
    relay.sync(a, b)
    assert a.rejected() == []
    assert b.rows(TITLES) == [(1, "milk"), (2, "child"), (3, "parent")]
    assert set(a.states("todo").values()) == {"synced"}


def test_a_row_that_the_relay_no_longer_knows_is_sent_whole(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    relay.documents.clear()
    a.commit("UPDATE todo SET n = 6")
    relay.sync(a)
    assert relay.stated("todo", 1) == {"title": "milk", "n": 6}
    relay.sync(b)
    assert a.document("todo", 1).cells == b.document("todo", 1).cells


def test_of_a_changeset_only_the_rows_that_the_relay_lacks_are_sent_whole(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("INSERT INTO todo VALUES (7, 'tea', 1)")
    relay.sync(a, b)
    table = next(table.id for table in relay.tables.values() if table.name == "todo")
    del relay.documents[(table, pack_key((7,)))]
    b.clock.ms += 10
    b.commit("UPDATE todo SET title = 'cream' WHERE id = 1")
    relay.sync(b)
    a.clock.ms += 20
    a.commit("UPDATE todo SET n = 6")
    relay.sync(a)
    assert relay.stated("todo", 1) == {"title": "cream", "n": 6}
    assert relay.stated("todo", 7) == {"title": "tea", "n": 6}


def test_a_delete_of_a_row_that_the_relay_no_longer_knows_ends(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, _ = pair
    relay.documents.clear()
    a.commit("DELETE FROM todo")
    relay.sync(a)
    assert a.replica.queued() == 0


def test_a_stale_verdict_is_no_verdict(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, _ = pair
    a.commit("UPDATE todo SET n = 6")
    relay.connect(a)
    (sent,) = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    assert a.replica.reject(sent.number, b"other", "constraint", "") == []
    assert a.replica.reject(sent.number + 1, sent.nonce, "constraint", "") == []
    assert a.rows("SELECT n FROM todo") == [(6,)]


def test_a_number_that_was_refused_is_used_again_with_another_nonce(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, _ = pair
    a.commit("UPDATE todo SET title = 'bad'")
    a.commit("UPDATE todo SET n = 6")
    relay.connect(a)
    first, second = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    a.replica.reject(first.number, first.nonce, "constraint", "no")
    (again,) = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    assert again.number == first.number
    # What was behind it is the same work still, and the relay would take it once.
    assert again.nonce == second.nonce != first.nonce


def test_what_was_sent_is_frozen_until_its_verdict(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, _ = pair
    a.commit("UPDATE todo SET n = 6", at=100)
    relay.connect(a)
    (sent,) = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    relay.ahead_ms[a.replica] = 50_000
    relay.connect(a)
    assert a.replica.unanswered(sent.number - 1, changesets_max=9) == [sent]


def test_an_adopted_row_that_is_refused_stays_and_syncs_when_it_is_edited(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO), make_peer()
    a.write(*(f"INSERT INTO todo VALUES ({n}, 'ok', 0)" for n in range(1, 10)))
    a.write("UPDATE todo SET title = 'bad' WHERE id = 4")
    a.track("todo")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert a.rows("SELECT title FROM todo WHERE id = 4") == [("bad",)]
    assert a.states("todo")[4] == "rejected"
    assert [(line[1], line[2], line[3]) for line in a.rejected()] == [(4, "adopted", "constraint")]
    assert len(b.rows(TITLES)) == 8
    assert a.differences() == []
    assert a.fold() == []
    a.write("UPDATE todo SET title = 'mended' WHERE id = 4")
    relay.sync(a, b)
    assert b.rows("SELECT title, n FROM todo WHERE id = 4") == [("mended", 0)]
    assert a.states("todo")[4] == "synced"


def test_an_edit_under_way_makes_a_refused_adopted_row_sendable(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO, "INSERT INTO todo VALUES (1, 'bad', 0)"), make_peer()
    a.track("todo")
    a.commit("UPDATE todo SET title = 'mended'")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert b.rows("SELECT title, n FROM todo") == [("mended", 0)]
    assert a.states("todo") == {1: "synced"}
    assert a.document("todo", 1) == b.document("todo", 1)


def test_a_refused_adopted_row_that_is_deleted_is_forgotten(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = make_peer(TODO, "INSERT INTO todo VALUES (1, 'bad', 0)")
    a.track("todo")
    refuse_value(relay, "bad")
    relay.sync(a)
    a.write("DELETE FROM todo")
    relay.sync(a)
    assert a.replica.queued() == 0
    assert a.states("todo") == {}
    assert a.differences() == []


def test_a_row_is_synced_when_its_later_work_was_refused_before_its_earlier_work_was_in(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, _ = pair
    a.commit("UPDATE todo SET n = 6")
    a.commit("UPDATE todo SET title = 'bad'")
    link = relay.connect(a)
    earlier, later = a.replica.outgoing(changesets_max=9, bytes_max=1 << 20)
    assert relay.take(link, earlier) is None
    a.replica.reject(later.number, later.nonce, "constraint", "no")
    assert a.states("todo") == {1: "sent"}
    link.deliver()
    assert a.states("todo") == {1: "synced"}
    assert a.line("todo", 1).visible is None
    assert a.rows("SELECT title, n FROM todo") == [("milk", 6)]


def test_a_delete_of_a_row_whose_insert_was_refused_takes_nothing_else_with_it(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("INSERT INTO todo VALUES (2, 'bad', 0)")
    a.commit("DELETE FROM todo WHERE id = 2", "UPDATE todo SET n = 6 WHERE id = 1")
    refuse_value(relay, "bad")
    relay.sync(a, b)
    assert a.rows("SELECT id, n FROM todo") == b.rows("SELECT id, n FROM todo") == [(1, 6)]
    assert [(line[1], line[2], line[3]) for line in a.rejected()] == [(2, "insert", "constraint")]
    assert a.replica.queued() == 0
    assert a.states("todo") == {1: "synced"}
    assert a.differences() == []


def pushed_keys(relay: Relay, after: int) -> list[list[object]]:
    """The keys of each changeset that was pushed, taken or refused, after so many others."""
    return [
        [unpack_key(key)[0] for section in changeset.rows for key in section.keys]
        for changeset in relay.pushed[after:]
    ]


def test_loose_work_is_tried_again_at_the_end_once_before_it_is_split_and_then_row_by_row(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.write(*(f"INSERT INTO todo VALUES ({n}, 'ok', 0)" for n in range(2, 6)))
    a.write("UPDATE todo SET title = 'bad' WHERE id = 2")
    a.fold()
    a.write("INSERT INTO todo VALUES (10, 'later', 0)")
    refuse_value(relay, "bad")
    before = len(relay.pushed)
    relay.sync(a, b)
    assert pushed_keys(relay, before) == [
        [2, 3, 4, 5],
        [10],
        [2, 3, 4, 5],
        [2, 3],
        [2],
        [3],
        [4, 5],
        [2],
    ]
    assert [(line[1], line[2]) for line in a.rejected()] == [(2, "insert")]
    assert [key for key, _ in b.rows(TITLES)] == [1, 3, 4, 5, 10]


def test_loose_work_that_later_work_builds_on_keeps_its_place(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.write("INSERT INTO todo VALUES (2, 'bad', 0), (3, 'ok', 0)")
    a.fold()
    a.write("UPDATE todo SET n = 7 WHERE id = 3")
    refuse_value(relay, "bad")
    before = len(relay.pushed)
    relay.sync(a, b)
    assert pushed_keys(relay, before) == [[2, 3], [2], [3], [3], [2]]
    assert b.rows("SELECT id, n FROM todo") == [(1, 5), (3, 7)]
