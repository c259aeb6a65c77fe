"""Loading everything once more: what was not sent is kept, and nothing counts twice."""

import pytest

from reunite import SyncError, TableError
from reunite.replica import Replica
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer, chance, connect

ITEM = "CREATE TABLE item (id INTEGER PRIMARY KEY, title TEXT, n COUNTER, body CRDT_TEXT)"
ITEMS = "SELECT id, title, n, body FROM item ORDER BY id"


def synced(make_peer: MakePeer, relay: Relay) -> tuple[Peer, Peer]:
    """Two files with four rows that both have."""
    a, b = make_peer(ITEM), make_peer()
    a.track("item")
    for key in range(1, 5):
        a.commit(f"INSERT INTO item VALUES ({key}, 'row {key}', {key}, 'hello world')")
    relay.sync(a)
    relay.sync(b)
    return a, b


def offline_edits(a: Peer, b: Peer) -> None:
    """What both do apart: in the same cells, in others, deletes and inserts."""
    a.commit("UPDATE item SET n = n + 10, body = 'hello new world' WHERE id = 1")
    a.commit("UPDATE item SET n = n + 10 WHERE id = 1")
    a.commit("DELETE FROM item WHERE id = 2")
    a.commit("INSERT INTO item VALUES (5, 'mine', 1, 'x')")
    a.commit("UPDATE item SET title = 'also mine' WHERE id = 3")
    b.commit("UPDATE item SET n = n + 100, body = 'hello world again' WHERE id = 1")
    b.commit("DELETE FROM item WHERE id = 4")


@pytest.mark.parametrize("under_way", ["nothing", "sent", "committed"])
@pytest.mark.parametrize("page_rows", [1, 1000])
def test_offline_edits_survive_a_reload_and_count_once(
    under_way: str, page_rows: int, make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay)
    offline_edits(a, b)
    relay.sync(b)
    relay.page_rows = page_rows
    if under_way != "nothing":
        link = relay.connect(a)
        if under_way == "sent":
            a.replica.outgoing(changesets_max=2, bytes_max=1 << 20)
        else:
            # The relay has them, and the file has not heard of it.
            link.push(changesets_max=2)
        link.close()
    before = a.rows(ITEMS)
    a.replica.reload()
    assert a.rows(ITEMS) == before, "the tables show what they had"
    relay.sync(a)
    relay.sync(b)
    expected = [
        (1, "row 1", 121, "hello new world again"),
        (3, "also mine", 3, "hello world"),
        (5, "mine", 1, "x"),
    ]
    for peer in (a, b):
        assert peer.rows(ITEMS) == expected
        assert peer.differences() == []
        assert peer.rejected() == []
    assert a.replica.queued() == 0


def test_a_row_that_the_relay_no_longer_has_is_gone_afterwards(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, _ = synced(make_peer, relay)
    a.write("CREATE TABLE draft (id INTEGER PRIMARY KEY)", "INSERT INTO draft VALUES (1)")
    for row in [row for row in relay.documents if row[1] in list_keys(relay)[2:]]:
        del relay.documents[row], relay._seqs[row]
    a.replica.reload()
    assert len(a.rows(ITEMS)) == 4
    relay.sync(a)
    assert [row[0] for row in a.rows(ITEMS)] == [1, 2]
    assert a.states("item") == {1: "synced", 2: "synced"}
    assert a.rows("SELECT id FROM draft") == [(1,)]
    assert a.differences() == []


def list_keys(relay: Relay) -> list[bytes]:
    return sorted(key for _, key in relay.documents)


def test_an_edit_of_such_a_row_brings_it_back_whole_and_a_delete_leaves_it_gone(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = make_peer("CREATE TABLE item (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
    a.track("item")
    for key in range(1, 5):
        a.commit(f"INSERT INTO item VALUES ({key}, 'row {key}', 'body')")
    relay.sync(a)
    for row in [row for row in relay.documents if row[1] in list_keys(relay)[2:]]:
        del relay.documents[row], relay._seqs[row]
    a.commit("UPDATE item SET title = 'edited' WHERE id = 3")
    a.commit("DELETE FROM item WHERE id = 4")
    a.replica.reload()
    relay.sync(a)
    assert a.rows("SELECT id, title FROM item") == [(1, "row 1"), (2, "row 2"), (3, "edited")]
    assert a.replica.queued() == 0
    assert a.differences() == []
    assert relay.stated("item", 3) == {"title": "edited", "body": "body"}


def test_a_table_that_the_relay_has_let_go_stays(make_peer: MakePeer, relay: Relay) -> None:
    a, _ = synced(make_peer, relay)
    before = a.rows(ITEMS)
    relay.documents.clear()
    relay._seqs.clear()
    a.replica.reload()
    relay.sync(a)
    assert a.rows(ITEMS) == before
    assert a.replica.standing().loaded


def test_a_reload_that_is_cut_between_pages_goes_on_and_is_whole(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay)
    offline_edits(a, b)
    relay.sync(b)
    relay.page_rows = 1
    before = a.rows(ITEMS)
    a.replica.reload()
    for _ in range(3):
        a.replica.take_registry(list(relay.tables.values()))
        relay.greet(a.replica)
        page, within = relay.pages(a.replica)[0]
        a.replica.receive(page, within=within)
        assert a.rows(ITEMS) == before
        # The process is killed, and begins anew on the same file.
        a.engine.close()
        a.engine = connect(a.path)
        a.replica = Replica(a.engine, chance=chance(77 << 16), clock=a.clock)
        a.replica.prepare()
        assert not a.replica.has_reached(0, 0)
    b.commit("INSERT INTO item VALUES (9, 'meanwhile', 0, '')")
    relay.sync(b)
    relay.sync(a)
    relay.sync(b)
    assert [row[0] for row in a.rows(ITEMS)] == [1, 3, 5, 9]
    assert a.rows("SELECT n FROM item WHERE id = 1") == [(121,)]
    assert a.rows(ITEMS) == b.rows(ITEMS)
    assert (a.differences(), a.replica.queued()) == ([], 0)


def test_a_page_of_a_session_that_began_before_does_not_count(
    make_peer: MakePeer, relay: Relay
) -> None:
    """It goes on from the cursor, so it lacks nearly all rows."""
    a, b = synced(make_peer, relay)
    before = a.rows(ITEMS)
    b.commit("INSERT INTO item VALUES (9, 'news', 0, '')")
    relay.sync(b)
    greeting = a.replica.greeting().number
    ((page, within),) = relay.pages(a.replica)
    a.replica.reload()
    with pytest.raises(SyncError, match="again") as caught:
        a.replica.receive(page, within=within, greeting=greeting)
    assert caught.value.code == "reload"
    assert a.rows(ITEMS) == before
    assert a.replica.position().seq == 0
    relay.sync(a)
    assert len(a.rows(ITEMS)) == 5


def test_a_first_load_that_is_under_way_begins_again(make_peer: MakePeer, relay: Relay) -> None:
    a, _ = synced(make_peer, relay)
    relay.page_rows = 1
    c = make_peer()
    relay.greet(c.replica)
    c.replica.take_registry(list(relay.tables.values()))
    page, within = relay.pages(c.replica)[0]
    c.replica.receive(page, within=within)
    assert len(c.rows(ITEMS)) == 1
    c.replica.reload()
    relay.sync(c)
    assert c.rows(ITEMS) == a.rows(ITEMS)


def test_a_relay_that_was_restored_gets_back_what_it_lost_all_the_same(
    make_peer: MakePeer, relay: Relay
) -> None:
    """The greeting still names the cursor, so the relay can tell that it lost something."""
    a, _ = synced(make_peer, relay)
    known = a.replica.greeting()
    a.replica.reload()
    assert (a.replica.greeting().seq, a.replica.greeting().token) == (known.seq, known.token)
    empty = Relay()
    a.replica.refill(realm=known.realm or b"", tables=[])
    empty.sync(a)
    assert len(empty.documents) == len(a.rows(ITEMS)) == 4


def test_what_was_written_past_the_triggers_is_an_edit_made_now(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = synced(make_peer, relay)
    triggers = a.rows("SELECT sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
    schema = a.rows("PRAGMA schema_version")
    for (name,) in a.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
        a.write(f'DROP TRIGGER "{name!s}"')
    a.write("UPDATE item SET title = 'unseen' WHERE id = 1", "DELETE FROM item WHERE id = 2")
    for (sql,) in triggers:
        a.write(str(sql))
    a.write(f"PRAGMA schema_version = {schema[0][0]!s}")
    a.app.close()
    a.app = connect(a.path)
    assert len(a.differences()) == 2
    a.replica.reload()
    relay.sync(a, b)
    assert a.differences() == []
    assert [row[:2] for row in b.rows(ITEMS)] == [(1, "unseen"), (3, "row 3"), (4, "row 4")]


def test_what_could_not_be_synced_stays(make_peer: MakePeer, relay: Relay) -> None:
    a, _ = synced(make_peer, relay)
    relay.keep_unique("item", "title")
    a.commit("INSERT INTO item VALUES (7, 'row 1', 0, '')")
    relay.sync(a)
    rejected = a.rejected()
    assert len(rejected) == 1
    a.replica.reload()
    relay.sync(a)
    assert a.rejected() == rejected


def test_tables_that_stay_here_are_left_out_until_they_are_named(make_peer: MakePeer) -> None:
    a = make_peer(ITEM, "CREATE TABLE Draft (id INTEGER PRIMARY KEY)")
    a.replica.keep_local(["draft"])
    assert a.replica.untracked() == ["item"]
    a.track("item")
    a.write("CREATE TABLE later (id INTEGER PRIMARY KEY)")
    assert a.replica.untracked() == ["later"]
    assert a.replica.standing().local_only == ("Draft",)
    with pytest.raises(TableError, match="tracked already"):
        a.replica.keep_local(["Item"])
    with pytest.raises(TableError, match="nowhere"):
        a.replica.keep_local(["later", "nowhere"])
    assert a.replica.standing().local_only == ("Draft",)
    assert a.track("DRAFT") == ["Draft"]
    assert a.replica.standing().local_only == ()
