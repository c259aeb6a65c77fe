"""What counts as an edit, and the time that it carries."""

import pytest

from reunite.clock import FLOOR, stamp, time_of
from reunite.document import cell_key
from reunite.payload import Kind
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import START_MS, Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, done INTEGER DEFAULT 0, note TEXT)"
TITLE, DONE, NOTE = cell_key(2), cell_key(3), cell_key(4)


@pytest.fixture
def peer(make_peer: MakePeer) -> Peer:
    """A tracked table with one row, written at the start."""
    peer = make_peer(TODO)
    peer.track("todo")
    peer.write("INSERT INTO todo VALUES (1, 'milk', 0, 'x')")
    peer.fold()
    return peer


def time_at(ms: int) -> int:
    return (START_MS + ms) << 16


def test_writing_all_columns_edits_only_those_that_differ(peer: Peer) -> None:
    peer.write("UPDATE todo SET id = 1, title = 'milk', done = 1, note = 'x' WHERE id = 1")
    assert peer.edits() == [{"done": 1}]


def test_there_and_back_between_two_folds_is_no_edit(peer: Peer) -> None:
    peer.write("UPDATE todo SET title = 'other'", "UPDATE todo SET title = 'milk'")
    peer.write("DELETE FROM todo", "INSERT INTO todo VALUES (1, 'milk', 0, 'x')")
    peer.write("INSERT INTO todo (id) VALUES (2)", "DELETE FROM todo WHERE id = 2")
    assert peer.fold() == []


def test_there_and_back_over_two_folds_is_two_edits(peer: Peer) -> None:
    peer.write("UPDATE todo SET title = 'other'")
    assert peer.edits() == [{"title": "other"}]
    peer.write("UPDATE todo SET title = 'milk'")
    assert peer.edits() == [{"title": "milk"}]


def test_a_fold_of_nothing_is_nothing(peer: Peer) -> None:
    assert peer.fold() == []
    assert peer.replica.queued() == 1


def test_a_transaction_gives_all_its_edits_one_time(peer: Peer) -> None:
    with peer.transaction(at=100) as conn:
        conn.execute("UPDATE todo SET title = 'bread'")
        peer.clock.ms += 50
        conn.execute("INSERT INTO todo VALUES (2, 'two', 1, 'y')")
    cells = [peer.document("todo", key).cells[TITLE] for key in (1, 2)]
    assert [time_of(mark) for mark, _ in cells] == [time_at(100)] * 2


def test_rows_of_other_programs_carry_the_time_of_their_own_last_write(peer: Peer) -> None:
    peer.write("INSERT INTO todo VALUES (2, 'two', 1, 'y')", at=100)
    peer.write("UPDATE todo SET title = 'bread' WHERE id = 1", at=200)
    peer.write("UPDATE todo SET title = 'zwei' WHERE id = 2", at=300)
    peer.clock.ms = START_MS + 9_000
    peer.fold()
    assert time_of(peer.document("todo", 1).cells[TITLE][0]) == time_at(200)
    assert time_of(peer.document("todo", 2).cells[TITLE][0]) == time_at(300)


def test_a_transaction_keeps_what_strangers_left_apart(peer: Peer) -> None:
    peer.write("UPDATE todo SET done = 1", at=100)
    peer.commit("UPDATE todo SET title = 'bread'", at=200)
    cells = peer.document("todo", 1).cells
    assert time_of(cells[DONE][0]) == time_at(100)
    assert time_of(cells[TITLE][0]) == time_at(200)
    assert peer.replica.queued() == 3


def test_an_edit_is_later_than_what_it_saw_whatever_the_clock_says(peer: Peer) -> None:
    peer.write("UPDATE todo SET title = 'early'", at=-5_000)
    peer.fold()
    mark, title = peer.document("todo", 1).cells[TITLE]
    assert title == "early"
    assert time_of(mark) == time_at(0) + 1


def test_a_new_row_has_its_defaults_at_the_floor(peer: Peer) -> None:
    peer.write("INSERT INTO todo (id, title) VALUES (2, 'two')", at=10)
    peer.fold()
    document = peer.document("todo", 2)
    assert document.cells[DONE] == (FLOOR, 0)
    assert document.cells[NOTE] == (FLOOR, None)
    assert (
        document.born == document.edited == document.cells[TITLE][0] == stamp(time_at(10), 1 << 16)
    )


def test_a_row_written_again_over_a_dead_one_is_stamped_whole(peer: Peer) -> None:
    peer.write("DELETE FROM todo")
    (dead,) = peer.fold()
    assert (dead.kind, peer.named(dead)) == (Kind.PARTIAL, {})
    peer.write("INSERT INTO todo (id, title) VALUES (1, 'again')")
    (alive,) = peer.fold()
    assert alive.kind == Kind.WHOLE
    assert peer.named(alive) == {"title": "again", "done": 0, "note": None}
    assert FLOOR not in {mark for mark, _ in peer.document("todo", 1).cells.values()}


def test_a_late_insert_if_missing_erases_no_edit(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer(TODO), make_peer(TODO)
    a.track("todo")
    b.track("todo")
    relay.sync(a, b)
    a.write("INSERT INTO todo VALUES (1, 'milk', 1, 'kept')", at=100)
    b.write("INSERT OR IGNORE INTO todo (id, title) VALUES (1, 'default title')", at=200)
    relay.sync(a, b)
    assert b.rows("SELECT title, done, note FROM todo") == [("default title", 1, "kept")]
    assert a.rows("SELECT title, done, note FROM todo") == [("default title", 1, "kept")]


def test_more_rows_than_one_window_fold_once_each(make_peer: MakePeer) -> None:
    peer = make_peer(TODO)
    peer.track("todo")
    peer.write(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25000)"
        " INSERT INTO todo SELECT i, 'one', 0, NULL FROM n"
    )
    peer.write("UPDATE todo SET title = 'two' WHERE id <= 100")
    assert len(peer.fold()) == 25_000
    assert peer.values("todo", 1)["title"] == "two"
    assert peer.differences() == []


def test_a_row_in_two_windows_carries_the_time_of_its_last_write(make_peer: MakePeer) -> None:
    peer = make_peer(TODO)
    peer.track("todo")
    peer.write("INSERT INTO todo (id, title) VALUES (0, 'one')", at=100)
    peer.write(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20100)"
        " INSERT INTO todo (id) SELECT i FROM n"
    )
    peer.write("UPDATE todo SET title = 'two' WHERE id = 0", at=900)
    peer.fold()
    assert time_of(peer.document("todo", 0).cells[TITLE][0]) == time_at(900)
