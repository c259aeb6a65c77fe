"""The image: what a table holds where it cannot or will not hold what the document says."""

import pytest

from reunite.cells.register import Value, same
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay

INEXACT = [
    ("DECIMAL(20,2)", "12345678901234567.89", 12345678901234568),
    ("DECIMAL(5,2)", "1.10", 1.1),
    ("REAL", -0.0, 0.0),
    ("UUID", "00000000000000000000000000000042", 42),
    ("DATETIME", "2026", 2026),
    ("INTEGER", "5", 5),
    ("INTEGER", 5.0, 5),
    ("TEXT", 5, "5"),
    ("REAL", 5, 5.0),
]


@pytest.mark.parametrize(("declared", "value", "held"), INEXACT)
def test_a_value_that_a_column_cannot_hold_stays_exact_in_the_document(
    make_peer: MakePeer, relay: Relay, declared: str, value: Value, held: Value
) -> None:
    a = make_peer(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared}, note)")
    a.track("t")
    relay.sync(a)
    relay.edit("t", (1,), at=10, v=value, note="x")
    relay.sync(a)
    assert same(a.rows("SELECT v FROM t")[0][0], held)
    assert same(a.values("t", 1)["v"], value)
    assert a.differences() == []
    a.write("UPDATE t SET note = 'y', v = v")
    assert a.edits() == [{"note": "y"}]
    relay.sync(a)
    assert same(relay.stated("t", 1)["v"], value)
    a.write("UPDATE t SET v = 7")
    assert same(a.edits()[0]["v"], a.rows("SELECT v FROM t")[0][0])
    assert a.differences() == []


def touch(mark: str) -> str:
    """A trigger that dates every update its own way."""
    return (
        "CREATE TRIGGER touch AFTER UPDATE ON t BEGIN"
        f" UPDATE t SET at = '{mark}' WHERE id = NEW.id AND at IS NOT '{mark}'; END"
    )


def test_a_trigger_that_rewrites_applied_rows_is_no_edit_and_no_ping_pong(
    make_peer: MakePeer, relay: Relay
) -> None:
    table = "CREATE TABLE t (id INTEGER PRIMARY KEY, v, at)"
    a, b = make_peer(table, touch("A")), make_peer(table, touch("B"))
    a.track("t")
    b.track("t")
    a.write("INSERT INTO t VALUES (1, 'x', NULL)")
    relay.sync(a, b)
    a.write("UPDATE t SET v = 'y'")
    relay.sync(a, b)
    pushed = len(relay.pushed)
    for _ in range(3):
        relay.sync(a, b)
    assert len(relay.pushed) == pushed
    assert a.rows("SELECT v, at FROM t") == [("y", "A")]
    assert b.rows("SELECT v FROM t") == [("y",)]
    assert b.values("t", 1) == {"v": "y", "at": "A"}
    assert a.differences() == b.differences() == []


def test_rows_that_a_trigger_adds_during_an_apply_are_the_authors(
    make_peer: MakePeer, relay: Relay
) -> None:
    schema = (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v)",
        "CREATE TABLE history (id INTEGER PRIMARY KEY, v, who)",
    )
    keep = (
        "CREATE TRIGGER keep AFTER {} ON t BEGIN"
        " INSERT INTO history (v, who) VALUES (NEW.v, {}); END"
    )
    a, b = make_peer(*schema), make_peer(*schema)
    for peer, who in ((a, "'A'"), (b, "'B'")):
        peer.write(keep.format("INSERT", who), keep.format("UPDATE", who).replace("keep", "keep2"))
        peer.track("t", "history")
    a.write("INSERT INTO t VALUES (1, 'x')")
    relay.sync(a, b)
    assert a.rows("SELECT v, who FROM history") == b.rows("SELECT v, who FROM history")
    assert b.rows("SELECT v, who FROM history") == [("x", "A")]
    pushed = len(relay.pushed)
    relay.sync(a, b)
    assert len(relay.pushed) == pushed
    assert a.differences() == b.differences() == []


def test_a_row_that_a_trigger_refuses_silently_is_known_to_be_absent(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = make_peer(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v)",
        "CREATE TRIGGER no BEFORE INSERT ON t WHEN NEW.v = 'bad' BEGIN SELECT RAISE(IGNORE); END",
    )
    a.track("t")
    relay.sync(a)
    relay.edit("t", (1,), at=10, v="bad")
    relay.edit("t", (2,), at=10, v="good")
    relay.sync(a)
    assert a.rows("SELECT id FROM t") == [(2,)]
    assert a.fold() == []
    assert a.differences() == []


def test_an_edit_of_a_cell_with_an_image_beats_the_document(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v DECIMAL(20,2))"), make_peer()
    a.track("t")
    relay.sync(a, b)
    relay.edit("t", (1,), at=10, v="12345678901234567.89")
    relay.sync(a, b)
    a.write("UPDATE t SET v = 3")
    relay.sync(a, b)
    assert relay.stated("t", 1) == {"v": 3}
    assert b.rows("SELECT v FROM t") == [(3,)]
    assert a.line("t", 1).image is None
