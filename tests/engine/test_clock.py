"""Stamps: their order is the order of time, and an edit comes after all that it saw."""

from hypothesis import given
from hypothesis import strategies as st

from reunite.clock import FLOOR, NEVER, STAMP_BYTES, edit_time, replica_of, stamp, time_of

TIMES = st.integers(0, (1 << 64) - 1)
REPLICAS = st.integers(0, (1 << 64) - 1)


@given(TIMES, REPLICAS)
def test_a_stamp_gives_back_its_time_and_replica(time: int, replica: int) -> None:
    made = stamp(time, replica)
    assert len(made) == STAMP_BYTES
    assert (time_of(made), replica_of(made)) == (time, replica)


@given(st.tuples(TIMES, REPLICAS), st.tuples(TIMES, REPLICAS))
def test_stamps_sort_by_time_then_replica(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (stamp(*a) < stamp(*b)) == (a < b)


def test_never_is_below_the_floor_and_the_floor_below_every_edit() -> None:
    earliest = stamp(edit_time(-5, 0, 0), 1)
    assert NEVER < FLOOR < earliest
    assert time_of(NEVER) == time_of(FLOOR) == 0


@given(st.integers(0, 1 << 47), st.integers(-(1 << 40), 1 << 40), st.integers(0, (1 << 64) - 2))
def test_an_edit_is_later_than_all_that_it_saw(recorded: int, offset: int, seen: int) -> None:
    assert seen < edit_time(recorded, offset, seen) < 1 << 64


def test_an_edit_that_saw_nothing_newer_has_the_true_time_of_its_making() -> None:
    assert edit_time(10_000, 4_000, 0) == 6_000 << 16


def test_the_counter_carries_into_the_milliseconds() -> None:
    assert edit_time(0, 0, (5 << 16) + 65_535) == 6 << 16


def test_time_ends_and_does_not_start_again() -> None:
    assert edit_time(0, 0, (1 << 64) - 1) == (1 << 64) - 1
