"""Verify finds every place where a table and its documents disagree, and changes nothing."""

import sqlite3

import pytest

from reunite.errors import FileError
from reunite.verify import verify
from tests.engine.conftest import MakePeer
from tests.engine.peer import Peer


@pytest.fixture(
    params=["id INTEGER PRIMARY KEY, j INT DEFAULT 0", "id INT, j INT, PRIMARY KEY (id, j)"]
)
def peer(request: pytest.FixtureRequest, make_peer: MakePeer) -> Peer:
    """A table of three rows that agrees with its documents."""
    peer = make_peer(
        f"CREATE TABLE t ({request.param.replace(', PRIMARY', ', v, PRIMARY')}"
        f"{'' if 'PRIMARY KEY (' in request.param else ', v'})"
    )
    peer.track("t")
    peer.write("INSERT INTO t (id, j, v) VALUES (1, 0, 'a'), (2, 0, 'b'), (3, 0, 'c')")
    peer.fold()
    return peer


def behind_its_back(peer: Peer, *statements: str) -> None:
    """Write without a trigger noticing."""
    kept = peer.rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    peer.write("BEGIN", *(f"DROP TRIGGER {name!s}" for name, _ in kept))
    peer.write(*statements, *(str(sql) for _, sql in kept), "COMMIT")


def test_a_file_in_order_has_no_difference(peer: Peer) -> None:
    assert peer.differences() == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE t SET v = 'x' WHERE id = 2", "'x'"),
        ("DELETE FROM t WHERE id = 2", "lacks"),
        ("INSERT INTO t (id, j, v) VALUES (9, 0, 'new')", "no document"),
        ("UPDATE _reunite_rows SET visible = X'00' WHERE key IN (2, '2,0')", "damaged"),
        (
            "UPDATE _reunite_rows SET visible = substr(visible, 1, 20) WHERE key IN (2, '2,0')",
            "dam",
        ),
        ("DELETE FROM _reunite_rows WHERE key IN (2, '2,0')", "no document"),
    ],
)
def test_planted_damage_is_found_where_it_is(peer: Peer, damage: str, words: str) -> None:
    behind_its_back(peer, damage)
    (found,) = peer.differences()
    assert found.table == "t"
    assert found.key in (2, "2,0", 9, "9,0")
    assert words in found.message


def test_each_column_that_differs_is_named(peer: Peer) -> None:
    behind_its_back(peer, "UPDATE t SET v = 'x' WHERE id IN (1, 3)")
    assert [(found.column, found.key in (1, 3, "1,0", "3,0")) for found in peer.differences()] == [
        ("v", True),
        ("v", True),
    ]


def test_writes_that_are_not_folded_yet_are_no_differences(peer: Peer) -> None:
    peer.write("UPDATE t SET v = 'x' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    peer.write("INSERT INTO t (id, j, v) VALUES (4, 0, 'd')")
    assert peer.differences() == []


def test_a_trigger_that_is_gone_is_a_difference(peer: Peer) -> None:
    peer.write("DROP TRIGGER _reunite_1_update")
    (found,) = peer.differences()
    assert (found.table, found.key) == ("t", None)
    peer.fold()
    assert peer.differences() == []


def test_verify_changes_nothing(peer: Peer) -> None:
    behind_its_back(peer, "UPDATE t SET v = 'x' WHERE id = 2")
    assert peer.differences() == peer.differences()
    assert not peer.engine.in_transaction


def test_a_file_that_was_never_tracked_says_so() -> None:
    conn = sqlite3.connect(":memory:")
    with pytest.raises(FileError, match="not tracked"):
        verify(conn)
    conn.close()
