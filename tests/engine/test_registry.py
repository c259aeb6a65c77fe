"""The registry's numbers take the place of a file's own, once, in all that the file keeps."""

from dataclasses import replace

import pytest

from reunite.document import cell_key
from reunite.errors import TableError
from reunite.schema import PROVISIONAL_ID, Column, Index, Table, from_wire, to_wire
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, a TEXT, b DECIMAL(20,2), c TEXT)"
BACKWARDS = "CREATE TABLE todo (c TEXT, b DECIMAL(20,2), a TEXT, id INTEGER PRIMARY KEY)"
ROW = "INSERT INTO todo (id, a, b, c) VALUES (1, 'a', 2, 'c')"


def test_documents_are_keyed_again_when_the_registry_numbers_differently(
    make_peer: MakePeer,
) -> None:
    relay = Relay(first_column=50)
    a, b = make_peer(TODO, ROW), make_peer(BACKWARDS)
    a.track("todo")
    b.track("todo")
    a.commit("UPDATE todo SET a = 'a2'", at=100)
    b.commit("INSERT INTO todo (id, c) VALUES (2, 'from b')", at=100)
    relay.sync(b, a)
    assert set(a.document("todo", 1).cells) == {cell_key(n) for n in (50, 51, 52)}
    for peer in (a, b):
        peer_rows = peer.rows("SELECT id, a, b, c FROM todo ORDER BY id")
        assert peer_rows == [(1, "a2", 2, "c"), (2, None, None, "from b")]
        assert peer.differences() == []
    a.write("UPDATE todo SET c = 'c2' WHERE id = 1")
    relay.sync(a, b)
    assert b.rows("SELECT a, c FROM todo WHERE id = 1") == [("a2", "c2")]


def test_numbers_that_change_places_are_not_mixed_up(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer(TODO, ROW), make_peer(BACKWARDS, ROW)
    b.track("todo")
    relay.sync(b)
    a.track("todo")
    a.commit("UPDATE todo SET a = 'a2', c = 'c2'", at=100)
    relay.sync(a, b)
    assert b.rows("SELECT a, b, c FROM todo") == [("a2", 2, "c2")]
    assert a.differences() == b.differences() == []


def test_a_column_that_the_registry_lacks_is_described_to_it(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO), make_peer("CREATE TABLE todo (id INTEGER PRIMARY KEY, extra, a TEXT)")
    a.track("todo")
    relay.sync(a)
    b.track("todo")
    b.write("INSERT INTO todo VALUES (1, 'x', 'a')")
    relay.sync(b, a)
    assert relay.stated("todo", 1) == {"a": "a", "extra": "x"}
    assert all(column.id < PROVISIONAL_ID for column in b.replica.tables()[0].table.columns)
    a.write("ALTER TABLE todo ADD COLUMN extra")
    relay.sync(a)
    assert a.rows("SELECT extra FROM todo") == [("x",)]


def test_a_table_with_another_key_than_the_realms_is_refused_with_both_named(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = make_peer(TODO)
    a.track("todo")
    relay.sync(a)
    b = make_peer("CREATE TABLE todo (id INTEGER, a TEXT PRIMARY KEY)")
    b.track("todo")
    with pytest.raises(TableError, match=r"\(a\).*\(id\)"):
        relay.sync(b)


def test_tables_are_made_with_their_constraints_parents_first(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(), make_peer()
    a.write(
        "CREATE TABLE \"a list\" (id TEXT PRIMARY KEY, name TEXT DEFAULT 'it''s' NOT NULL)",
        "CREATE TABLE item (id INTEGER PRIMARY KEY AUTOINCREMENT, code TEXT UNIQUE,"
        ' list TEXT REFERENCES "a list" ON DELETE CASCADE, n NUMERIC(10, 2) DEFAULT 1.5)',
        "CREATE INDEX by_list ON item (list, code)",
        "CREATE TABLE pair (x INT, y BLOB, PRIMARY KEY (y, x)) WITHOUT ROWID",
    )
    a.track("item", "pair", "a list")
    relay.sync(a, b)
    for peer in (a, b):
        with pytest.raises(Exception, match="FOREIGN KEY"):
            peer.write("INSERT INTO item (list) VALUES ('none')")
    described = [
        [(t.table.name, t.table.columns, t.table.foreign_keys, t.table.autoincrement)]
        for t in b.replica.tables()
    ]
    assert sorted(described, key=str) == sorted(
        [
            [(t.table.name, t.table.columns, t.table.foreign_keys, t.table.autoincrement)]
            for t in a.replica.tables()
        ],
        key=str,
    )
    b.write("INSERT INTO \"a list\" (id) VALUES ('l')", "INSERT INTO item (list) VALUES ('l')")
    relay.sync(b, a)
    assert a.rows("SELECT id, list, n FROM item") == [(1, "l", 1.5)]


def test_an_index_whose_name_is_taken_gets_another(make_peer: MakePeer, relay: Relay) -> None:
    a = make_peer(TODO, "CREATE UNIQUE INDEX by_a ON todo (a)")
    b = make_peer("CREATE TABLE mine (a)", "CREATE INDEX by_a ON mine (a)")
    a.track("todo")
    relay.sync(a, b)
    assert b.rows("SELECT name FROM pragma_index_list('todo')") == [("todo_by_a",)]


def test_taking_the_same_registry_again_changes_nothing(make_peer: MakePeer, relay: Relay) -> None:
    a = make_peer(TODO)
    a.track("todo")
    relay.sync(a)
    before = a.replica.tables()
    assert a.replica.take_registry(list(relay.tables.values())) == []
    assert a.replica.tables() == before
    relay.tables[1] = replace(relay.tables[1], indexes=())
    a.replica.take_registry(list(relay.tables.values()))
    assert a.replica.tables()[0].table == before[0].table


def test_cells_that_arrived_before_their_column_was_numbered_are_shown(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO, ROW), make_peer()
    a.track("todo")
    relay.sync(a, b)
    b.write("ALTER TABLE todo ADD COLUMN note TEXT", "UPDATE todo SET note = 'from b'")
    relay.sync(b)
    a.write("ALTER TABLE todo ADD COLUMN note TEXT", "UPDATE todo SET a = 'a2'")
    for page, within in relay.pages(a.replica):
        a.replica.receive(page, within=within)
    assert a.rows("SELECT note FROM todo") == [(None,)]
    relay.sync(a, b)
    for peer in (a, b):
        assert peer.rows("SELECT a, note FROM todo") == [("a2", "from b")]
        assert peer.differences() == []


def test_an_edit_of_a_column_that_both_added_is_merged_with_the_other(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(TODO, ROW), make_peer()
    a.track("todo")
    relay.sync(a, b)
    b.write("ALTER TABLE todo ADD COLUMN note TEXT")
    b.write("UPDATE todo SET note = 'earlier'", at=100)
    relay.sync(b)
    a.write("ALTER TABLE todo ADD COLUMN note TEXT")
    a.write("UPDATE todo SET note = 'later'", at=200)
    for page, within in relay.pages(a.replica):
        a.replica.receive(page, within=within)
    relay.sync(a, b)
    assert a.rows("SELECT note FROM todo") == b.rows("SELECT note FROM todo") == [("later",)]
    assert a.document("todo", 1) == b.document("todo", 1)


# Descriptions that are sound and that no SQLite, or not this one, can make a table of.
IMPOSSIBLE = {
    "strict": Table(
        "odd",
        (
            Column("id", 1, "INTEGER", "integer", key=1),
            Column("a", 2, "VARCHAR(10)", "text"),
        ),
        strict=True,
    ),
    "autoincrement": Table(
        "odd",
        (Column("id", 1, "BIGINT", "integer", key=1), Column("a", 2, "TEXT", "text")),
        autoincrement=True,
    ),
    "index": Table(
        "odd",
        (Column("id", 1, "INTEGER", "integer", key=1), Column("a", 2, "TEXT", "text")),
        indexes=(Index("i", ("a",)), Index("i", ("id",))),
    ),
}


@pytest.mark.parametrize("table", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_table_that_cannot_be_made_here_is_left_alone_and_its_rows_are_kept(
    table: Table, make_peer: MakePeer, relay: Relay
) -> None:
    assert from_wire(to_wire(table)) == table
    a, b = make_peer(TODO, ROW), make_peer()
    a.track("todo")
    relay.register(table)
    relay.edit("odd", (1,), at=100, a="kept")
    relay.sync(a, b)
    for peer in (a, b):
        assert peer.replica.standing().left_alone == ("odd",)
        assert peer.rows("SELECT name FROM sqlite_master WHERE name = 'odd'") == []
        assert peer.values("odd", 1) == {"a": "kept"}
    relay.edit("odd", (1,), at=200, a="kept on")
    a.write("UPDATE todo SET a = 'goes on'")
    relay.sync(a, b)
    assert b.rows("SELECT a FROM todo") == [("goes on",)]
    assert b.values("odd", 1) == {"a": "kept on"}
    assert b.replica.queued() == 0
    assert b.differences() == []


def test_a_table_under_another_number_is_another_table_and_this_files_is_left_alone(
    make_peer: MakePeer, relay: Relay
) -> None:
    """The relay let it go and took it in again: of what happened meanwhile nobody knows."""
    a = make_peer(TODO, ROW)
    a.track("todo")
    relay.sync(a)
    (known,) = a.replica.tables()
    assert known.remote is not None
    a.commit("UPDATE todo SET a = 'not sent' WHERE id = 1", at=100)
    assert a.replica.take_registry([replace(known.remote, id=known.remote.id + 7)]) == []
    (table,) = a.replica.tables()
    assert not table.tracked
    assert a.replica.standing().left_alone == ("todo",)
    rejected = 'SELECT "table", key, kind, reason FROM reunite_rejected'
    assert a.rows(rejected) == [("todo", 1, "update", "expired")]
    # What is written from now on is the file's own.
    a.write("UPDATE todo SET c = 'mine' WHERE id = 1")
    assert a.replica.unsent() is False
    assert a.rows("SELECT a, c FROM todo") == [("not sent", "mine")]
    # Taking the same again changes nothing.
    assert a.replica.take_registry([replace(known.remote, id=known.remote.id + 7)]) == []
    assert a.replica.standing().left_alone == ("todo",)
