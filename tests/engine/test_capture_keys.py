"""Keys of every shape, keys that change, and keys that cannot sync."""

import pytest

from reunite.cells.register import Value
from reunite.keys import stored_key
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay


@pytest.mark.parametrize(
    "declared",
    [
        "a INTEGER PRIMARY KEY, b, v",
        "a TEXT PRIMARY KEY, b, v",
        "a BLOB, b, v, PRIMARY KEY (a)",
        "a, b TEXT, v, PRIMARY KEY (b, a)",
        "a INT, b TEXT, v, PRIMARY KEY (a, b)",
    ],
)
@pytest.mark.parametrize("option", ["", "WITHOUT ROWID"])
def test_rows_of_any_key_sync(
    make_peer: MakePeer, relay: Relay, declared: str, option: str
) -> None:
    a, b = make_peer(f"CREATE TABLE t ({declared}) {option}"), make_peer()
    a.track("t")
    a.write("INSERT INTO t VALUES (1, 'x,''y', 1), (2, 'b', 2), (3, '', 3)")
    relay.sync(a, b)
    b.write("UPDATE t SET v = 20 WHERE v = 2", "DELETE FROM t WHERE v = 3")
    relay.sync(b, a)
    assert a.rows("SELECT a, b, v FROM t ORDER BY v") == b.rows("SELECT a, b, v FROM t ORDER BY v")
    assert [row[2] for row in a.rows("SELECT a, b, v FROM t ORDER BY v")] == [1, 20]
    assert a.differences() == b.differences() == []


def test_a_strict_table_syncs(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer("CREATE TABLE t (id TEXT PRIMARY KEY, n INT, v ANY) STRICT"), make_peer()
    a.track("t")
    a.write("INSERT INTO t VALUES ('1', 1, '1'), ('2', 2, 2)")
    relay.sync(a, b)
    assert b.rows("SELECT id, n, v FROM t ORDER BY id") == [("1", 1, "1"), ("2", 2, 2)]
    assert "STRICT" in str(b.rows("SELECT sql FROM sqlite_master WHERE name = 't'")[0][0])


def test_a_table_of_nothing_but_its_key_syncs(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer("CREATE TABLE t (x INT, y INT, PRIMARY KEY (x, y))"), make_peer()
    a.track("t")
    a.write("INSERT INTO t VALUES (1, 1), (1, 2)")
    relay.sync(a, b)
    b.write("DELETE FROM t WHERE y = 1")
    relay.sync(b, a)
    assert a.rows("SELECT x, y FROM t") == [(1, 2)]


def test_a_changed_key_is_a_delete_and_an_insert(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer("CREATE TABLE t (id TEXT PRIMARY KEY, v)"), make_peer()
    a.track("t")
    a.write("INSERT INTO t VALUES ('old', 1)")
    relay.sync(a, b)
    a.write("UPDATE t SET id = 'new'")
    relay.sync(a, b)
    assert b.rows("SELECT id, v FROM t") == [("new", 1)]
    assert not b.document("t", "old").alive


def test_keys_that_change_places_keep_their_rows_apart(make_peer: MakePeer, relay: Relay) -> None:
    a, b = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v)"), make_peer()
    a.track("t")
    a.write("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    relay.sync(a, b)
    a.commit(
        "UPDATE t SET id = -1 WHERE id = 1",
        "UPDATE t SET id = 1 WHERE id = 2",
        "UPDATE t SET id = 2 WHERE id = -1",
    )
    relay.sync(a, b)
    assert b.rows("SELECT id, v FROM t ORDER BY id") == [(1, "b"), (2, "a")]
    assert a.differences() == b.differences() == []


@pytest.mark.parametrize(
    ("declared", "key"),
    [
        ("k TEXT PRIMARY KEY, v", (None,)),
        ("k TEXT PRIMARY KEY, v", ("a\0b",)),
        ("k PRIMARY KEY, v", (1.5,)),
        ("k TEXT PRIMARY KEY, v", ("x" * 3_000,)),
        ("k TEXT, j INT, v, PRIMARY KEY (k, j)", (None, 1)),
        ("k TEXT, j INT, v, PRIMARY KEY (k, j)", ("a\0b", 1)),
        ("k TEXT, j INT, v, PRIMARY KEY (k, j)", ("a", 1.5)),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_row_whose_key_cannot_sync_stays_local_and_is_noted(
    make_peer: MakePeer, relay: Relay, declared: str, key: tuple[Value, ...]
) -> None:
    a = make_peer(f"CREATE TABLE t ({declared})")
    a.track("t")
    marks = ", ".join("?" * (len(key) + 1))
    fine = ("a", 1)[: len(key)]
    a.app.execute(f"INSERT INTO t VALUES ({marks})", (*fine, "fine"))
    a.app.execute(f"INSERT INTO t VALUES ({marks})", (*key, "here"))
    relay.sync(a)
    assert len(relay.documents) == 1
    ((table, _, kind, reason, values),) = a.rejected()
    assert (table, kind, reason) == ("t", "insert", "local")
    assert '"v": "here"' in str(values)
    assert a.states("t")[stored_key(fine)] == "synced"
    assert a.differences() == []
    a.write("DELETE FROM t WHERE v = 'here'")
    a.fold()
    assert a.rejected() == []
    assert a.differences() == []


def test_each_of_many_rows_with_null_keys_is_noted(make_peer: MakePeer) -> None:
    a = make_peer("CREATE TABLE t (k TEXT PRIMARY KEY, v)")
    a.write("INSERT INTO t VALUES (NULL, 1), (NULL, 2)")
    a.track("t")
    assert len(a.rejected()) == 2
    a.write("UPDATE t SET k = 'one' WHERE v = 1")
    a.fold()
    assert len(a.rejected()) == 1
    assert a.states("t") == {"one": "pending"}
