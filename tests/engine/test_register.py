"""Registers: when two values are the same, and which of two cells wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reunite.cells.register import Register, Value, same, wins
from reunite.clock import stamp
from tests.engine.documents import STAMPS, VALUES

REGISTERS = st.tuples(STAMPS, VALUES)
# Alike to Python or to the eye, and different to SQL or in their bytes.
ALIKE: list[Value] = [None, 0, 0.0, -0.0, 1, 1.0, "1", b"1", "", b"", "0", "\u00e9", "e\u0301"]


@pytest.mark.parametrize("a", ALIKE, ids=repr)
@pytest.mark.parametrize("b", ALIKE, ids=repr)
def test_values_are_the_same_by_class_and_bytes(a: Value, b: Value) -> None:
    assert same(a, b) == (repr(a) == repr(b) and type(a) is type(b))


@given(REGISTERS, REGISTERS)
def test_one_of_two_different_registers_wins(a: Register, b: Register) -> None:
    equal = a[0] == b[0] and same(a[1], b[1])
    assert wins(a, b) + wins(b, a) == (0 if equal else 1)


@given(REGISTERS, REGISTERS, REGISTERS)
def test_winning_is_transitive(a: Register, b: Register, c: Register) -> None:
    if wins(a, b) and wins(b, c):
        assert wins(a, c)


@given(VALUES, VALUES)
def test_the_later_stamp_wins_whatever_the_values(early: Value, late: Value) -> None:
    assert wins((stamp(2, 1), late), (stamp(1, 9), early))


@pytest.mark.parametrize(
    ("lesser", "greater"),
    [
        (None, 0),
        (1, 1.0),
        (1.0, "1"),
        ("1", b"1"),
        (-1, 1),
        (-(1 << 63), (1 << 63) - 1),
        (0.0, -0.0),
        ("\U0000ffff", "\U00010000"),
    ],
    ids=repr,
)
def test_equal_stamps_are_settled_by_class_and_then_by_bytes(lesser: Value, greater: Value) -> None:
    assert wins((stamp(1, 1), greater), (stamp(1, 1), lesser))
    assert not wins((stamp(1, 1), lesser), (stamp(1, 1), greater))
