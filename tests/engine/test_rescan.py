"""Tables whose shape changes while they are tracked: migrations edit nothing by themselves."""

import sqlite3

import pytest

from reunite.cells.register import Value, same
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import START_MS, Peer

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, n INTEGER)"


@pytest.fixture
def peer(make_peer: MakePeer) -> Peer:
    """A tracked table with two rows."""
    peer = make_peer(TODO)
    peer.track("todo")
    peer.write("INSERT INTO todo VALUES (1, 'milk', 5), (2, 'bread', 7)")
    peer.fold()
    return peer


def rebuild(peer: Peer, declared: str, columns: str, *meanwhile: str) -> None:
    """What Alembic's batch mode does, which drops every trigger of the table."""
    peer.write(
        "PRAGMA foreign_keys = OFF",
        "BEGIN",
        f"CREATE TABLE _alembic_tmp_todo ({declared})",
        f"INSERT INTO _alembic_tmp_todo SELECT {columns} FROM todo",
        "DROP TABLE todo",
        "ALTER TABLE _alembic_tmp_todo RENAME TO todo",
        *meanwhile,
        "COMMIT",
        "PRAGMA foreign_keys = ON",
    )


def test_a_migration_that_changes_no_value_is_no_edit(peer: Peer) -> None:
    rebuild(peer, "id INTEGER PRIMARY KEY, title TEXT NOT NULL, n INTEGER", "id, title, n")
    assert peer.fold() == []
    assert peer.differences() == []


def test_writes_after_a_rebuild_are_captured(peer: Peer) -> None:
    rebuild(peer, "id INTEGER PRIMARY KEY, title TEXT, n INTEGER", "id, title, n")
    peer.fold()
    peer.write("UPDATE todo SET n = 6 WHERE id = 1")
    assert peer.edits() == [{"n": 6}]


def test_writes_made_while_the_triggers_were_gone_are_found(peer: Peer) -> None:
    rebuild(
        peer,
        "id INTEGER PRIMARY KEY, title TEXT, n INTEGER",
        "id, title, n",
        "UPDATE todo SET n = 6 WHERE id = 1",
        "INSERT INTO todo VALUES (3, 'new', 0)",
        "DELETE FROM todo WHERE id = 2",
    )
    assert sorted(map(len, peer.edits())) == [0, 1, 2]
    assert peer.values("todo", 1)["n"] == 6
    assert peer.document("todo", 3).alive
    assert not peer.document("todo", 2).alive
    assert peer.differences() == []


EDIT = "UPDATE todo SET n = 6 WHERE id = 1"
ADD_COLUMN = "ALTER TABLE todo ADD COLUMN note TEXT"
DROP_TRIGGER = "DROP TRIGGER _reunite_1_update"


@pytest.mark.parametrize(
    ("first", "then", "at"),
    [(EDIT, ADD_COLUMN, 1), (ADD_COLUMN, EDIT, 2), (EDIT, DROP_TRIGGER, 1)],
)
def test_an_edit_is_of_when_it_was_captured_though_its_table_changed(
    peer: Peer, first: str, then: str, at: int
) -> None:
    peer.write(first, at=1)
    peer.write(then, at=2)
    peer.write(at=9)
    (entry,) = peer.fold()
    assert entry.recorded_ms == START_MS + at


def test_an_edit_that_was_not_captured_is_of_when_it_was_found(peer: Peer) -> None:
    peer.write(DROP_TRIGGER, EDIT, at=1)
    peer.write(at=9)
    (entry,) = peer.fold()
    assert entry.recorded_ms == START_MS + 9


def test_a_captured_row_whose_key_is_null_hides_no_edit_of_another(make_peer: MakePeer) -> None:
    peer = make_peer("CREATE TABLE word (a TEXT, b TEXT, n INTEGER, PRIMARY KEY (a, b))")
    peer.track("word")
    peer.write("INSERT INTO word VALUES ('x', 'y', 1)")
    peer.fold()
    peer.write("INSERT INTO word VALUES ('x', NULL, 1)", DROP_TRIGGER)
    peer.write("UPDATE word SET n = 2 WHERE b = 'y'")
    assert peer.edits() == [{"n": 2}]


def test_a_trigger_that_somebody_dropped_is_put_back(peer: Peer) -> None:
    peer.write("DROP TRIGGER _reunite_1_update", "UPDATE todo SET n = 6 WHERE id = 1")
    assert peer.edits() == [{"n": 6}]
    peer.write("UPDATE todo SET n = 8 WHERE id = 1")
    assert peer.edits() == [{"n": 8}]


def test_a_column_that_was_added_is_edited_like_any_other(make_peer: MakePeer, peer: Peer) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    peer.write("ALTER TABLE todo ADD COLUMN note TEXT DEFAULT 'none'")
    assert peer.fold() == []
    peer.write("UPDATE todo SET note = 'x' WHERE id = 1")
    assert peer.edits() == [{"note": "x"}]
    relay.sync(peer)
    b.write("ALTER TABLE todo ADD COLUMN note TEXT DEFAULT 'none'")
    relay.sync(b)
    assert b.rows("SELECT id, note FROM todo ORDER BY id") == [(1, "x"), (2, "none")]
    assert b.differences() == peer.differences() == []


def test_cells_kept_for_a_column_are_in_the_table_before_it_is_compared(
    make_peer: MakePeer, peer: Peer
) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    peer.write("ALTER TABLE todo ADD COLUMN note INTEGER DEFAULT 5")
    peer.write("UPDATE todo SET note = 9 WHERE id = 1")
    relay.sync(peer, b)
    b.write("ALTER TABLE todo ADD COLUMN note INTEGER DEFAULT 5")
    b.write("UPDATE todo SET title = 'edited'")
    assert b.edits() == [{"title": "edited"}, {"title": "edited"}]
    assert b.rows("SELECT id, note FROM todo ORDER BY id") == [(1, 9), (2, 5)]


@pytest.mark.parametrize("met", [False, True])
def test_a_column_that_was_renamed_keeps_its_cells(
    make_peer: MakePeer, peer: Peer, met: bool
) -> None:
    relay, b = Relay(), make_peer()
    if met:
        relay.sync(peer, b)
    before = peer.document("todo", 1)
    peer.write("ALTER TABLE todo RENAME COLUMN title TO label")
    assert peer.fold() == []
    assert peer.document("todo", 1).cells == before.cells
    peer.write("UPDATE todo SET label = 'oats' WHERE id = 1")
    assert peer.edits() == [{"label": "oats"}]
    if met:
        relay.sync(peer, b)
        assert b.rows("SELECT title FROM todo WHERE id = 1") == [("oats",)]


def test_a_renamed_column_keeps_its_cells_when_the_registry_grows(
    make_peer: MakePeer, peer: Peer
) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    peer.write("ALTER TABLE todo RENAME COLUMN title TO label")
    peer.fold()
    b.write("ALTER TABLE todo ADD COLUMN note TEXT")
    relay.sync(b, peer)
    peer.write("UPDATE todo SET label = 'oats' WHERE id = 1")
    relay.sync(peer, b)
    assert b.rows("SELECT title FROM todo WHERE id = 1") == [("oats",)]
    assert [column.name for column in relay.tables[1].columns] == ["id", "title", "n", "note"]


@pytest.mark.parametrize("met", [False, True])
def test_a_key_column_that_was_renamed_keeps_its_rows(
    make_peer: MakePeer, peer: Peer, met: bool
) -> None:
    relay, b = Relay(), make_peer()
    if met:
        relay.sync(peer, b)
    peer.write("ALTER TABLE todo RENAME COLUMN id TO uid", "UPDATE todo SET n = 9 WHERE uid = 1")
    assert peer.edits() == [{"n": 9}]
    assert peer.differences() == []
    if met:
        relay.sync(peer, b)
        assert b.rows("SELECT n FROM todo WHERE id = 1") == [(9,)]


def test_a_column_that_was_dropped_leaves_its_cells_in_the_document(peer: Peer) -> None:
    before = peer.document("todo", 1)
    peer.write("ALTER TABLE todo DROP COLUMN title")
    assert peer.fold() == []
    peer.write("UPDATE todo SET n = 6 WHERE id = 1")
    assert peer.edits() == [{"n": 6}]
    assert before.cells.keys() == peer.document("todo", 1).cells.keys()
    assert peer.differences() == []


def test_a_dropped_columns_cells_do_not_come_back_under_a_new_column_of_its_name(
    peer: Peer,
) -> None:
    peer.write("ALTER TABLE todo DROP COLUMN title")
    peer.fold()
    peer.write("ALTER TABLE todo ADD COLUMN title TEXT")
    assert peer.fold() == []
    assert peer.rows("SELECT title FROM todo") == [(None,), (None,)]
    assert peer.differences() == []


def test_a_table_that_was_renamed_stays_tracked(make_peer: MakePeer, peer: Peer) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    peer.write("ALTER TABLE todo RENAME TO chore", "UPDATE chore SET n = 6 WHERE id = 1")
    relay.sync(peer, b)
    assert b.rows("SELECT n FROM todo WHERE id = 1") == [(6,)]
    b.write("UPDATE todo SET n = 8 WHERE id = 1")
    relay.sync(b, peer)
    assert peer.rows("SELECT n FROM chore WHERE id = 1") == [(8,)]
    assert peer.differences() == []


def test_a_type_that_changes_by_a_rebuild_is_no_edit(make_peer: MakePeer, peer: Peer) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    rebuild(peer, "id INTEGER PRIMARY KEY, title TEXT, n TEXT", "id, title, n")
    assert peer.rows("SELECT n FROM todo") == [("5",), ("7",)]
    assert peer.fold() == []
    assert peer.values("todo", 1)["n"] == 5
    b.write("UPDATE todo SET n = 6 WHERE id = 1")
    peer.write("UPDATE todo SET title = 'oats' WHERE id = 1")
    assert peer.edits() == [{"title": "oats"}]
    relay.sync(b, peer)
    assert peer.rows("SELECT n FROM todo") == [("6",), ("7",)]
    assert b.rows("SELECT n FROM todo") == [(6,), (7,)]
    assert peer.differences() == b.differences() == []


@pytest.mark.parametrize(
    ("declared", "value", "held"),
    [("TEXT", 5, "5"), ("REAL", 5, 5.0), ("BLOB", 5, 5), ("NUMERIC", 5, 5), ("DECIMAL(5,2)", 5, 5)],
)
def test_a_changed_type_and_back_is_no_edit(
    peer: Peer, declared: str, value: Value, held: Value
) -> None:
    rebuild(peer, f"id INTEGER PRIMARY KEY, title TEXT, n {declared}", "id, title, n")
    assert peer.fold() == []
    assert same(peer.rows("SELECT n FROM todo WHERE id = 1")[0][0], held)
    rebuild(peer, "id INTEGER PRIMARY KEY, title TEXT, n INTEGER", "id, title, n")
    assert peer.fold() == []
    assert same(peer.values("todo", 1)["n"], value)
    assert peer.differences() == []


def test_a_table_that_was_dropped_is_let_go_and_deletes_nothing(
    make_peer: MakePeer, peer: Peer
) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    peer.write("DROP TABLE todo")
    assert peer.fold() == []
    relay.sync(peer, b)
    assert len(b.rows("SELECT id FROM todo")) == 2
    assert peer.replica.standing().left_alone == ("todo",)


def test_a_table_that_is_made_and_tracked_again_has_the_realms_rows(
    make_peer: MakePeer, peer: Peer
) -> None:
    relay, b = Relay(), make_peer()
    relay.sync(peer, b)
    peer.write("DROP TABLE todo")
    b.write("UPDATE todo SET n = 6 WHERE id = 1")
    relay.sync(b, peer)
    peer.write(TODO)
    peer.track("todo")
    assert peer.rows("SELECT id, n FROM todo ORDER BY id") == [(1, 6), (2, 7)]
    assert peer.fold() == []
    assert peer.differences() == []


def test_a_table_whose_key_became_another_is_let_go(peer: Peer) -> None:
    rebuild(peer, "id INTEGER, title TEXT PRIMARY KEY, n INTEGER", "id, title, n")
    assert peer.fold() == []
    assert peer.replica.untracked() == ["todo"]


def test_a_table_that_lost_its_key_is_let_go(peer: Peer) -> None:
    rebuild(peer, "id INTEGER, title TEXT, n INTEGER", "id, title, n")
    assert peer.fold() == []
    assert peer.replica.untracked() == ["todo"]


def test_statistics_and_other_tables_are_no_change_of_shape(peer: Peer) -> None:
    peer.write("CREATE INDEX by_title ON todo (title)", "CREATE TABLE other (x)", "ANALYZE")
    assert peer.fold() == []
    assert peer.differences() == []


def test_a_rebuild_in_a_transaction_of_our_own_is_taken_in(peer: Peer) -> None:
    peer.commit(
        "CREATE TABLE new (id INTEGER PRIMARY KEY, title TEXT, n INTEGER, note TEXT)",
        "INSERT INTO new SELECT id, title, n, 'x' FROM todo",
        "DROP TABLE todo",
        "ALTER TABLE new RENAME TO todo",
    )
    assert peer.values("todo", 1) == {"title": "milk", "n": 5, "note": "x"}
    assert peer.differences() == []


def test_a_column_goes_after_its_unique_index_was_seen_to_go(make_peer: MakePeer) -> None:
    peer = make_peer(TODO, "CREATE UNIQUE INDEX u ON todo (title)")
    peer.track("todo")
    peer.write("DROP INDEX u")
    # Our trigger for that index still names the column, so SQLite refuses, loudly.
    with pytest.raises(sqlite3.OperationalError, match="_reunite_"):
        peer.write("ALTER TABLE todo DROP COLUMN title")
    assert peer.fold() == []
    peer.write("ALTER TABLE todo DROP COLUMN title")
    assert peer.fold() == []
    assert peer.differences() == []


POST = "CREATE TABLE post (id INTEGER PRIMARY KEY, votes {}, body {}, steps {})"
PLAIN = ("INTEGER DEFAULT 0", "TEXT", "TEXT")
MERGING = ("COUNTER DEFAULT 0", "CRDT_TEXT", "CRDT_LIST_TEXT")


def posts(make_peer: MakePeer, declared: tuple[str, str, str]) -> Peer:
    """A tracked table with a row that came with it, and one that was written."""
    row = "INSERT INTO post VALUES ({}, 5, 'one two', '[1, 2]')"
    peer = make_peer(POST.format(*declared), row.format(1))
    peer.track("post")
    peer.write(row.format(2))
    peer.fold()
    return peer


def redeclare(peer: Peer, declared: tuple[str, str, str], *meanwhile: str) -> None:
    """What migration tools do to declare a table's columns otherwise."""
    peer.write(
        "BEGIN",
        "ALTER TABLE post RENAME TO old",
        POST.format(*declared),
        "INSERT INTO post SELECT * FROM old",
        "DROP TABLE old",
        *meanwhile,
        "COMMIT",
    )


def types(peer: Peer) -> list[str]:
    """The logical types of a peer's one table, without the key."""
    (tracked,) = peer.replica.tables()
    return [column.type for column in tracked.table.cells]


def told(peer: Peer) -> list[tuple[Value, ...]]:
    """What `reunite_rejected` says."""
    return peer.rows('SELECT "table", key, kind, reason, "values" FROM reunite_rejected')


ADDS = "UPDATE post SET votes = votes + {0}, body = body || ' {0}', steps = {1}"


def test_columns_declared_to_merge_by_a_rebuild_merge(make_peer: MakePeer, relay: Relay) -> None:
    a, b = posts(make_peer, PLAIN), make_peer()
    a.write("UPDATE post SET votes = 6 WHERE id = 2")
    a.fold()
    redeclare(a, MERGING)
    assert a.fold() == []
    assert types(a) == ["counter", "crdt_text", "crdt_list"]
    assert a.rows("SELECT steps FROM post") == [("[1, 2]",), ("[1, 2]",)]
    a.write(ADDS.format(10, "'[1, 2, 10]'"))
    relay.sync(a, b)
    assert types(b) == types(a)
    a.write(ADDS.format(1, "'[1, 2, 10, 1]'"), at=1)
    b.write(ADDS.format(2, "'[2, 1, 2, 10]'"), at=2)
    relay.sync(a, b)
    relay.sync(a)
    rows = a.rows("SELECT * FROM post ORDER BY id")
    assert rows == b.rows("SELECT * FROM post ORDER BY id")
    assert [row[1] for row in rows] == [18, 19]
    assert [sorted(str(row[2]).split()) for row in rows] == [["1", "10", "2", "one", "two"]] * 2
    assert [row[3] for row in rows] == ["[2,1,2,10,1]"] * 2
    assert told(a) == told(b) == a.differences() == b.differences() == []


def test_a_row_written_before_its_column_merged_is_the_row_of_a_copy_that_did(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = posts(make_peer, PLAIN), posts(make_peer, MERGING)
    redeclare(a, MERGING)
    relay.sync(a, b)
    a.write("UPDATE post SET votes = votes + 1")
    b.write("UPDATE post SET votes = votes + 2")
    relay.sync(a, b)
    relay.sync(a)
    assert a.rows("SELECT votes FROM post") == b.rows("SELECT votes FROM post") == [(8,), (8,)]
    assert a.differences() == b.differences() == []


def test_a_column_declared_plain_again_is_plain(make_peer: MakePeer, relay: Relay) -> None:
    a, b = posts(make_peer, MERGING), make_peer()
    a.write(ADDS.format(1, "'[1, 2, 1]'"))
    a.fold()
    redeclare(a, PLAIN)
    assert a.fold() == []
    assert types(a) == ["integer", "text", "text"]
    assert a.values("post", 2) == {"votes": 6, "body": "one two 1", "steps": "[1,2,1]"}
    relay.sync(a, b)
    a.write("UPDATE post SET votes = 7, body = 'a'", at=1)
    b.write("UPDATE post SET votes = 9, body = 'b'", at=2)
    relay.sync(a, b)
    relay.sync(a)
    for peer in (a, b):
        assert peer.rows("SELECT votes, body FROM post") == [(9, "b"), (9, "b")]
        assert peer.rows("SELECT steps FROM post") == [("[1,2,1]",)] * 2
        assert peer.differences() == told(peer) == []


def test_what_was_counted_before_a_column_was_plain_again_is_nobodys_part(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = posts(make_peer, MERGING)
    copy = make_peer(copy_of=a)
    a.write("UPDATE post SET votes = votes + 3", at=1)
    copy.write("UPDATE post SET votes = votes + 2", at=2)
    copy.fold()
    redeclare(copy, PLAIN)
    relay.sync(a)
    relay.sync(copy)
    assert copy.replica.standing().replica != a.replica.standing().replica
    relay.sync(a)
    assert types(copy) == types(a) == ["counter", "crdt_text", "crdt_list"]
    assert a.rows("SELECT votes FROM post") == copy.rows("SELECT votes FROM post") == [(7,), (7,)]
    assert a.differences() == copy.differences() == []


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("votes = 'many'", ["integer", "crdt_text", "crdt_list"]),
        ("votes = 1.5", ["integer", "crdt_text", "crdt_list"]),
        ("body = x'00'", ["counter", "text", "crdt_list"]),
        ("steps = '{}'", ["counter", "crdt_text", "text"]),
    ],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_a_column_that_cannot_hold_what_was_written_to_it_does_not_merge_and_says_so(
    make_peer: MakePeer, relay: Relay, written: str, kept: list[str], corrected: bool
) -> None:
    """Also where that was corrected: the relay gets the one before the other."""
    a, b = posts(make_peer, PLAIN), make_peer()
    a.write(f"UPDATE post SET {written} WHERE id = 1")
    a.fold()
    if corrected:
        a.write("UPDATE post SET votes = 7, body = 'a', steps = '[]'")
        a.fold()
    redeclare(a, MERGING)
    assert a.fold() == []
    assert types(a) == kept
    column = written.partition(" ")[0]
    declared = MERGING[("votes", "body", "steps").index(column)].split()[0]
    assert told(a) == [("post", None, "update", "declared", f'{{"{column}": "{declared}"}}')]
    ((message,),) = a.rows("SELECT message FROM reunite_rejected")
    assert f"column {column!r} is declared {declared}, which takes" in str(message)
    relay.sync(a, b)
    assert b.rows("SELECT * FROM post") == a.rows("SELECT * FROM post")
    assert types(b) == types(a)
    assert a.differences() == b.differences() == []


def test_a_default_that_does_not_fit_does_not_merge_and_is_told(make_peer: MakePeer) -> None:
    peer = posts(make_peer, PLAIN)
    redeclare(peer, ("COUNTER DEFAULT 'none'", *PLAIN[1:]))
    assert peer.fold() == []
    assert types(peer) == ["integer", "text", "text"]
    assert len(told(peer)) == 1


@pytest.mark.parametrize(("first", "then"), [(PLAIN, MERGING), (MERGING, PLAIN)])
def test_the_realms_type_stays_when_a_column_is_declared_otherwise_and_it_is_told(
    make_peer: MakePeer, relay: Relay, first: tuple[str, str, str], then: tuple[str, str, str]
) -> None:
    a, b = posts(make_peer, first), make_peer()
    relay.sync(a, b)
    before = types(a)
    redeclare(a, then)
    assert a.fold() == []
    assert types(a) == before
    names = ("votes", "body", "steps")
    assert told(a) == [
        ("post", None, "update", "declared", f'{{"{name}": "{declared.split()[0]}"}}')
        for name, declared in zip(names, then, strict=True)
    ]
    ((message,),) = a.rows("SELECT message FROM reunite_rejected LIMIT 1")
    assert f"the realm has it as {before[0]}, which decides" in str(message)
    # Once, and nothing where it is declared as the realm has it again.
    a.write("ALTER TABLE post ADD COLUMN note TEXT", "ALTER TABLE post DROP COLUMN note")
    a.fold()
    redeclare(a, first)
    relay.sync(a, b)
    assert len(told(a)) == 3
    assert told(b) == a.differences() == b.differences() == []


def test_a_column_that_the_relay_does_not_have_yet_may_begin_to_merge(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = posts(make_peer, PLAIN), make_peer()
    relay.sync(a)
    a.write("ALTER TABLE post ADD COLUMN seen INTEGER", "UPDATE post SET seen = 1")
    a.fold()
    redeclare(a, (*PLAIN[:2], "TEXT, seen COUNTER"))
    a.fold()
    relay.sync(a, b)
    a.write("UPDATE post SET seen = seen + 1")
    b.write("UPDATE post SET seen = seen + 1")
    relay.sync(a, b)
    relay.sync(a)
    assert a.rows("SELECT seen FROM post") == b.rows("SELECT seen FROM post") == [(3,), (3,)]
    assert told(a) == a.differences() == b.differences() == []
