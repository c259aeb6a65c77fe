"""The inbox: nothing of a snapshot or commit shows before all of it can."""

import pytest

from reunite.errors import FormatError, RealmMismatch
from reunite.payload import StatedRows, Statement
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT)"


@pytest.fixture
def pair(make_peer: MakePeer) -> tuple[Peer, Peer]:
    """A replica with five rows and an empty file."""
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.write(*(f"INSERT INTO todo VALUES ({n}, 'one')" for n in range(1, 6)))
    return a, b


def test_pages_of_a_catch_up_show_when_the_last_one_is_in(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    relay = Relay(page_rows=2)
    relay.sync(a, b)
    a.write("UPDATE todo SET title = 'two'")
    relay.sync(a)
    pages = relay.pages(b.replica)
    assert len(pages) == 3
    for page, within in pages[:2]:
        assert not b.replica.receive(page, within=within)
        assert b.rows("SELECT DISTINCT title FROM todo") == [("one",)]
    assert b.replica.receive(pages[2][0])
    assert b.rows("SELECT DISTINCT title FROM todo") == [("two",)]
    assert b.differences() == []


def test_a_first_load_shows_rows_as_they_come(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    relay = Relay(page_rows=2)
    relay.sync(a)
    relay.greet(b.replica)
    b.replica.take_registry(list(relay.tables.values()))
    counts = []
    for page, within in relay.pages(b.replica):
        b.replica.receive(page, within=within)
        counts.append((len(b.rows("SELECT id FROM todo")), b.replica.standing().loaded))
    assert counts == [(2, False), (4, False), (5, True)]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_catch_up_that_broke_off_goes_on_where_it_was(
    pair: tuple[Peer, Peer], loaded: bool
) -> None:
    a, b = pair
    relay = Relay(page_rows=2)
    relay.sync(*((a, b) if loaded else (a,)))
    a.write("UPDATE todo SET title = 'two'")
    relay.sync(a)
    relay.greet(b.replica)
    b.replica.take_registry(list(relay.tables.values()))
    page, within = relay.pages(b.replica)[0]
    b.replica.receive(page, within=within)
    assert len(relay.pages(b.replica)) == 2
    relay.sync(b)
    assert b.rows("SELECT id, title FROM todo") == [(n, "two") for n in range(1, 6)]
    assert b.differences() == []


def test_nothing_is_pushed_before_the_first_load_is_whole(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    relay = Relay(page_rows=2)
    relay.sync(a)
    relay.greet(b.replica)
    b.replica.take_registry(list(relay.tables.values()))
    b.write("INSERT INTO todo VALUES (9, 'early')")
    page, within = relay.pages(b.replica)[0]
    b.replica.receive(page, within=within)
    assert b.replica.outgoing(changesets_max=9, bytes_max=1 << 20) == []
    relay.sync(b)
    assert relay.stated("todo", 9) == {"title": "early"}


def test_a_row_that_the_relay_took_holds_up_no_other(make_peer: MakePeer, relay: Relay) -> None:
    """Both are there, as the relay knows nothing of this file's own index."""
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    relay.sync(a, b)
    a.write("CREATE UNIQUE INDEX own ON todo (title)")
    link, other = relay.connect(a), relay.connect(b)
    b.commit("INSERT INTO todo VALUES (2, 'x')")
    a.commit("INSERT INTO todo VALUES (1, 'x')")
    other.push()
    link.deliver()
    assert a.replica.standing().seq < relay.head
    link.push()
    link.deliver()
    assert a.replica.standing().seq == relay.head
    assert a.replica.standing().blocked == 1
    a.commit("UPDATE todo SET title = 'y' WHERE id = 1")
    relay.settle()
    assert a.rows("SELECT * FROM todo") == b.rows("SELECT * FROM todo") == [(1, "y"), (2, "x")]


def test_edits_made_during_a_load_are_kept(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    relay = Relay(page_rows=2)
    relay.sync(a)
    relay.greet(b.replica)
    b.replica.take_registry(list(relay.tables.values()))
    for page, within in relay.pages(b.replica):
        b.replica.receive(page, within=within)
        b.write("UPDATE todo SET title = 'ours'", at=500)
    relay.sync(b, a)
    assert a.rows("SELECT DISTINCT title FROM todo") == [("ours",)]


@pytest.mark.parametrize(
    "rows",
    [
        [StatedRows(99, [b"\x91\x01"], [b""])],
        [StatedRows(1, [b"\x92\x01\x01"], [b""])],
        [StatedRows(1, [b"\x91\xc0"], [b""])],
        [StatedRows(1, [b"\x91\x01"], [b"garbage"])],
    ],
)
def test_rows_that_are_not_of_our_format_change_nothing(
    pair: tuple[Peer, Peer], relay: Relay, rows: list[StatedRows]
) -> None:
    a, _ = pair
    relay.sync(a)
    before = a.rows("SELECT id, title FROM todo"), a.replica.standing()
    with pytest.raises(FormatError):
        a.replica.receive(Statement(rows, relay.head + 1, b"token", True))
    assert (a.rows("SELECT id, title FROM todo"), a.replica.standing()) == before
    assert a.differences() == []


def test_a_row_of_a_table_that_nobody_tracks_here_is_kept_for_later(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    b.write(TODO, "INSERT INTO todo VALUES (1, 'mine')")
    relay.sync(a, b)
    assert b.rows("SELECT id, title FROM todo") == [(1, "mine")]
    assert b.replica.standing().left_alone == ("todo",)


def test_a_file_belongs_to_one_realm(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, _ = pair
    relay.sync(a)
    with pytest.raises(RealmMismatch):
        a.replica.welcome(realm=b"another", offset_ms=0, fork=False, known=[])
    relay.sync(a)


def test_what_was_taken_in_twice_is_taken_in_once(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    relay.sync(a, b)
    a.write("UPDATE todo SET title = 'two' WHERE id = 1")
    link = relay.connect(b)
    relay.sync(a)
    statements = list(link.queue)
    link.deliver()
    before = b.rows("SELECT tbl, key, base, visible, image, changeset FROM _reunite_rows")
    for statement in statements:
        b.replica.receive(statement)
    assert b.rows("SELECT tbl, key, base, visible, image, changeset FROM _reunite_rows") == before


def test_a_commit_missed_while_away_is_dropped_and_joins_nothing(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    relay.sync(a, b)
    a.write("UPDATE todo SET title = 'ours' WHERE id = 1", at=100)
    link = relay.connect(a)
    link.push()
    link.close()
    relay.ahead_ms[a.replica] = -5_000
    b.write("UPDATE todo SET title = 'theirs' WHERE id = 1", at=2_000)
    relay.sync(b)
    relay.sync(a, b)
    assert a.rows("SELECT title FROM todo WHERE id = 1") == [("theirs",)]
    assert a.document("todo", 1) == b.document("todo", 1)
    assert a.replica.queued() == 0
    assert a.states("todo")[1] == "synced"
