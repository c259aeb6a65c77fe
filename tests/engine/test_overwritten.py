"""What a merge overwrites: each value that gives way, once, and what took its place."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reunite.cells.register import Register, same
from reunite.clock import FLOOR, NEVER, stamp
from reunite.document import Document, cell_key, decode, encode, merge
from reunite.errors import FormatError
from reunite.overwritten import (
    PLACE_BYTES,
    ROW_PLACES_MAX,
    Loss,
    Overwritten,
    listed,
    losses,
    newest,
)
from tests.engine.documents import DOCUMENTS

TITLE, NOTE = cell_key(2), cell_key(3)
NAMES = {TITLE: "title", NOTE: "note"}


def mark(ms: int, replica: int = 7) -> bytes:
    return stamp(ms << 16, replica)


def loss(cells: dict[int, Register], replaced_by: bytes, born: bytes = NEVER) -> Loss:
    return Loss(encode(Document(born, NEVER, NEVER, cells)), replaced_by)


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


@given(DOCUMENTS, DOCUMENTS)
def test_what_a_merge_drops_is_in_its_losses_and_nothing_else(
    before: Document, edit: Document
) -> None:
    found = [
        (key, cell, each.replaced_by)
        for each in losses(before, edit)
        for key, cell in decode(each.document).cells.items()
    ]
    dropped = [
        (key, side.cells[key], winner[0])
        for key, winner in merge(before, edit).cells.items()
        for side in (before, edit)
        if key in side.cells and not same(side.cells[key][1], winner[1])
        # A default that loses was written by nobody.
        if side is before or side.cells[key][0] != FLOOR or edit.born == FLOOR
    ]
    assert sorted(map(repr, found)) == sorted(map(repr, dropped))


@given(DOCUMENTS)
def test_a_document_overwrites_nothing_of_its_own(document: Document) -> None:
    assert losses(document, document) == []


def test_one_edit_of_several_columns_is_one_loss() -> None:
    before = Document(mark(1), mark(1), NEVER, {TITLE: (mark(1), "a"), NOTE: (mark(1), "b")})
    edit = Document(NEVER, mark(2), NEVER, {TITLE: (mark(2), "c"), NOTE: (mark(2), "d")})
    assert losses(before, edit) == [loss(before.cells, mark(2))]


def test_a_cell_that_merges_inside_its_value_loses_nothing() -> None:
    counter = cell_key(2, 1)
    zero = Document(NEVER, mark(1), NEVER, {counter: (mark(1), b"\x93\x00\x00\x00")})
    one = Document(NEVER, mark(2), NEVER, {counter: (mark(2), b"\x93\x07\x01\x00")})
    assert losses(zero, one) == []


@given(st.lists(st.integers(0, 30 * PLACE_BYTES), max_size=12))
def test_the_newest_losses_fill_the_places_and_the_last_one_is_always_kept(
    sizes: list[int],
) -> None:
    found = [Loss(bytes(size), mark(number)) for number, size in enumerate(sizes)]
    kept = newest(found)
    assert kept == found[len(found) - len(kept) :]
    assert bool(kept) == bool(found)
    assert sum(each.places for each in kept[1:]) < ROW_PLACES_MAX
    if len(kept) < len(found):
        assert sum(each.places for each in kept) >= ROW_PLACES_MAX


def test_values_are_listed_once_and_the_newest_first() -> None:
    told = [loss({TITLE: (mark(2_500, 8), "b")}, mark(9_000, 9))]
    own = [
        loss({TITLE: (mark(2_500, 8), "b")}, mark(9_999, 7)),
        loss({TITLE: (mark(1_000), "a"), NOTE: (mark(4_000), 1.5)}, mark(2_500, 8)),
    ]
    assert listed("todo", 1, NAMES, [*told, *own]) == [
        Overwritten("todo", 1, "note", 1.5, at(4_000), 7, at(2_500), 8),
        Overwritten("todo", 1, "title", "b", at(2_500), 8, at(9_000), 9),
        Overwritten("todo", 1, "title", "a", at(1_000), 7, at(2_500), 8),
    ]


def test_what_came_with_its_table_is_of_nobody_and_a_default_as_old_as_its_row() -> None:
    found = [
        loss({TITLE: (FLOOR, "old"), NOTE: (FLOOR, None)}, mark(9_000), born=FLOOR),
        loss({TITLE: (FLOOR, "other")}, FLOOR, born=FLOOR),
        loss({NOTE: (FLOOR, "x")}, mark(8_000), born=mark(5_000, 5)),
    ]
    assert listed("todo", (1, "k"), NAMES, found) == [
        Overwritten("todo", (1, "k"), "note", "x", at(5_000), 5, at(8_000), 7),
        Overwritten("todo", (1, "k"), "title", "old", None, None, at(9_000), 7),
        Overwritten("todo", (1, "k"), "note", None, None, None, at(9_000), 7),
        Overwritten("todo", (1, "k"), "title", "other", None, None, None, None),
    ]


def test_columns_that_nobody_can_name_are_left_out() -> None:
    found = [loss({cell_key(9): (mark(1), "?"), cell_key(2, 1): (mark(1), b"")}, mark(2))]
    assert listed("todo", 1, NAMES, found) == []


def test_a_time_beyond_the_calendar_is_its_end() -> None:
    (shown,) = listed("todo", 1, NAMES, [loss({TITLE: (b"\xff" * 16, "a")}, b"\xff" * 16)])
    assert shown.at is not None
    assert shown.at.year == 9999


def test_what_is_no_document_is_a_format_error() -> None:
    with pytest.raises(FormatError):
        listed("todo", 1, NAMES, [Loss(b"\x90", mark(1))])
