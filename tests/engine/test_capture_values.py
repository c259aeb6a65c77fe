"""Captured values are exact, whatever an SQLite column can hold."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reunite.cells.register import Value, same
from tests.engine.conftest import MakePeer
from tests.engine.documents import VALUES
from tests.engine.loopback import Relay

ANY = "CREATE TABLE t (id INTEGER PRIMARY KEY, v)"

EXACT: list[Value] = [
    None,
    0,
    (1 << 63) - 1,
    -(1 << 63),
    0.0,
    -0.0,
    1e308,
    5e-324,
    0.1 + 0.2,
    math.inf,
    -math.inf,
    "",
    "1",
    "a\0b",
    "\U0010ffff\ufffe\ufffd\u0000",
    "e\u0301 \u202e\u200d\U0001f468\u200d\U0001f469",
    "x" * 1_000_000,
    b"",
    b"\0\xff",
    bytes(range(256)) * 4_000,
]


@pytest.mark.parametrize("value", EXACT, ids=lambda value: repr(value)[:20])
def test_a_value_arrives_elsewhere_as_it_was_written(
    make_peer: MakePeer, relay: Relay, value: Value
) -> None:
    a, b = make_peer(ANY), make_peer()
    a.track("t")
    a.app.execute("INSERT INTO t VALUES (1, ?)", (value,))
    relay.sync(a, b)
    assert same(b.values("t", 1)["v"], value)
    assert same(b.rows("SELECT v FROM t")[0][0], value)
    assert a.differences() == b.differences() == []
    assert a.fold() == b.fold() == []


def test_nan_is_null_to_sqlite_and_so_to_us(make_peer: MakePeer) -> None:
    a = make_peer(ANY)
    a.track("t")
    a.app.execute("INSERT INTO t VALUES (1, ?)", (math.nan,))
    a.fold()
    assert a.values("t", 1) == {"v": None}


def test_any_values_survive_a_fold_and_change_nothing_after_it(make_peer: MakePeer) -> None:
    a = make_peer(ANY)
    a.track("t")

    @settings(max_examples=40)
    @given(st.lists(VALUES, max_size=10))
    def check(values: list[Value]) -> None:
        a.app.execute("DELETE FROM t")
        a.app.executemany("INSERT INTO t VALUES (?, ?)", enumerate(values))
        a.fold()
        a.app.execute("UPDATE t SET v = v")
        assert a.fold() == []
        for key, value in enumerate(values):
            assert same(a.values("t", key)["v"], value)
        assert a.differences() == []

    check()


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 1.0), (1, "1"), ("1", b"1"), (0.0, -0.0), ("", None), ("e\u0301", "\u00e9"), (b"", "")],
    ids=repr,
)
def test_a_value_that_python_or_the_eye_takes_for_equal_is_an_edit(
    make_peer: MakePeer, before: Value, after: Value
) -> None:
    a = make_peer(ANY)
    a.track("t")
    a.app.execute("INSERT INTO t VALUES (1, ?)", (before,))
    a.fold()
    a.app.execute("UPDATE t SET v = ?", (after,))
    (entry,) = a.fold()
    assert same(a.named(entry)["v"], after)


def test_text_that_is_not_utf_8_stays_local_and_is_noted(make_peer: MakePeer) -> None:
    a = make_peer(ANY)
    a.track("t")
    a.write("INSERT INTO t VALUES (1, CAST(X'FF41' AS TEXT)), (2, 'fine')")
    assert a.edits() == [{"v": "fine"}]
    assert [line[:4] for line in a.rejected()] == [("t", 1, "insert", "local")]
    assert a.states("t") == {1: "rejected", 2: "pending"}
    assert a.rows("SELECT CAST(v AS BLOB) FROM t WHERE id = 1") == [(b"\xffA",)]
    assert a.differences() == []


def test_a_table_with_text_that_is_not_utf_8_can_be_tracked(make_peer: MakePeer) -> None:
    a = make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, d DATE, n INTEGER)")
    bad = "CAST(X'FF' AS TEXT)"
    a.write(f"INSERT INTO t VALUES (1, {bad}, {bad}, {bad}), (2, 'fine', '2026-01-01', 1)")
    a.track("t")
    assert a.states("t") == {1: "rejected", 2: "pending"}


def test_a_row_that_was_mended_syncs_and_its_note_goes(make_peer: MakePeer, relay: Relay) -> None:
    a = make_peer(ANY)
    a.track("t")
    a.write("INSERT INTO t VALUES (1, CAST(X'FF41' AS TEXT))")
    relay.sync(a)
    assert relay.stated("t", 1) == {}
    a.write("UPDATE t SET v = 'mended'")
    relay.sync(a)
    assert relay.stated("t", 1) == {"v": "mended"}
    assert a.rejected() == []
    assert a.states("t") == {1: "synced"}


def test_a_row_over_the_limit_stays_local_and_is_noted(make_peer: MakePeer) -> None:
    a = make_peer(ANY)
    a.track("t")
    a.write("INSERT INTO t VALUES (1, zeroblob(17000000)), (2, 'fine')")
    assert a.edits() == [{"v": "fine"}]
    assert [line[:4] for line in a.rejected()] == [("t", 1, "insert", "local")]
    assert a.states("t")[1] == "rejected"
    assert a.differences() == []
