"""Keys: their stored form, their wire form, and which cannot leave a file."""

import sqlite3

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reunite.cells.register import INTEGER_MAX, INTEGER_MIN, Value
from reunite.errors import FormatError
from reunite.keys import (
    KEY_BYTES_MAX,
    key_problem,
    key_values,
    pack_key,
    stored_key,
    unpack_key,
)

KEY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PARTS: st.SearchStrategy[Value] = st.one_of(
    st.integers(INTEGER_MIN, INTEGER_MAX),
    KEY_TEXT,
    st.text("',\"X\n", max_size=8),
    st.binary(max_size=20),
)
KEYS = st.lists(PARTS, min_size=1, max_size=4).map(tuple)


@given(KEYS)
def test_a_stored_key_gives_back_its_values(key: tuple[Value, ...]) -> None:
    assert key_values(stored_key(key), len(key)) == key


@given(st.lists(PARTS, min_size=2, max_size=4).map(tuple))
def test_sqlite_writes_a_composite_key_as_we_do(key: tuple[Value, ...]) -> None:
    parts = " || ',' || ".join(["quote(?)"] * len(key))
    conn = sqlite3.connect(":memory:")
    try:
        assert conn.execute(f"SELECT {parts}", key).fetchone() == (stored_key(key),)
    finally:
        conn.close()


@given(KEYS, KEYS)
def test_different_keys_are_stored_differently(a: tuple[Value, ...], b: tuple[Value, ...]) -> None:
    if len(a) == len(b):
        assert (stored_key(a) == stored_key(b)) == (a == b)


@given(KEYS)
def test_a_packed_key_gives_back_its_values(key: tuple[Value, ...]) -> None:
    assert unpack_key(pack_key(key)) == key


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_canonical(data: bytes) -> None:
    try:
        key = unpack_key(data)
    except FormatError:
        return
    assert pack_key(key) == data


@pytest.mark.parametrize(
    "values",
    [
        (),
        (None,),
        (1.5,),
        (True,),
        ("a\0b",),
        ("x" * (KEY_BYTES_MAX + 1),),
        (1 << 63,),
        ((1,),),
        ({},),
        (msgpack.ExtType(1, b""),),
    ],
    ids=lambda values: repr(values)[:30],
)
def test_a_key_that_is_not_canonical_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(FormatError):
        unpack_key(msgpack.packb(values))


@pytest.mark.parametrize(
    "data", [b"\x91\xcc\x01", b"\x91\xd9\x01a", b"\xdc\x00\x01\x01", b"\x81\xa1a\x01", b"\x01"]
)
def test_a_key_in_a_longer_form_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_key(data)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((1, None), "NULL"),
        ((1.0,), "floating"),
        (("a\0",), "NUL"),
        (("\ud800",), "UTF-8"),
        ((b"x" * 1_000, "y" * 1_001), "2000"),
    ],
)
def test_a_key_that_cannot_leave_its_file_says_why(values: tuple[Value, ...], word: str) -> None:
    assert word in str(key_problem(values))


@given(KEYS)
def test_every_other_key_can_leave(key: tuple[Value, ...]) -> None:
    assert key_problem(key) is None


@pytest.mark.parametrize("stored", ["1,", "1,,2", "'a", "1 2", "X'0'", "1,x", "1,2,3"])
def test_a_damaged_stored_key_is_refused(stored: str) -> None:
    with pytest.raises(FormatError):
        key_values(stored, 2)
