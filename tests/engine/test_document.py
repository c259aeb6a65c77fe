"""Row documents: the laws of their merge."""

from hypothesis import given

from reunite.cells.register import Register
from reunite.clock import NEVER, stamp
from reunite.document import EMPTY, Document, cell_key, decode, encode, merge
from tests.engine.documents import DOCUMENTS

NAME, DONE = cell_key(1), cell_key(2)


@given(DOCUMENTS, DOCUMENTS)
def test_merge_is_commutative(a: Document, b: Document) -> None:
    assert encode(merge(a, b)) == encode(merge(b, a))


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_merge_is_associative(a: Document, b: Document, c: Document) -> None:
    assert encode(merge(merge(a, b), c)) == encode(merge(a, merge(b, c)))


@given(DOCUMENTS)
def test_merge_is_idempotent(a: Document) -> None:
    assert encode(merge(a, a)) == encode(a)
    assert encode(merge(a, decode(encode(a)))) == encode(a)


@given(DOCUMENTS, DOCUMENTS)
def test_merging_again_what_was_merged_changes_nothing(a: Document, b: Document) -> None:
    assert encode(merge(merge(a, b), b)) == encode(merge(a, b))


@given(DOCUMENTS)
def test_nothing_is_the_neutral_element(a: Document) -> None:
    assert encode(merge(EMPTY, a)) == encode(merge(a, EMPTY)) == encode(a)


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_a_delta_merges_like_the_document_it_came_from(
    a: Document, delta: Document, elsewhere: Document
) -> None:
    after = merge(a, delta)
    assert encode(merge(merge(elsewhere, a), delta)) == encode(merge(elsewhere, after))


@given(DOCUMENTS, DOCUMENTS)
def test_merge_leaves_its_arguments_as_they_were(a: Document, b: Document) -> None:
    before = encode(a), encode(b)
    merge(a, b)
    assert (encode(a), encode(b)) == before


@given(DOCUMENTS, DOCUMENTS)
def test_no_cell_and_no_life_goes_back_in_a_merge(a: Document, b: Document) -> None:
    merged = merge(a, b)
    assert merged.edited >= a.edited
    assert merged.deleted >= a.deleted
    assert all(merged.cells[key][0] >= cell[0] for key, cell in a.cells.items())
    assert merged.latest() >= a.latest() or a.born != merged.born


def test_born_is_the_least_stamp_of_those_that_were_born() -> None:
    early, late = stamp(1, 1), stamp(2, 1)
    assert merge(Document(late, NEVER, NEVER, {}), Document(early, NEVER, NEVER, {})).born == early
    assert merge(Document(late, NEVER, NEVER, {}), EMPTY).born == late


def test_a_row_is_alive_while_its_last_edit_is_later_than_its_last_delete() -> None:
    one, two, three = stamp(1, 1), stamp(2, 1), stamp(3, 1)
    row = Document(one, one, NEVER, {})
    assert row.alive
    dead = merge(row, Document(NEVER, NEVER, two, {}))
    assert not dead.alive
    assert merge(dead, Document(NEVER, three, NEVER, {})).alive


def test_a_row_that_was_deleted_keeps_its_cells() -> None:
    row = Document(stamp(1, 1), stamp(1, 1), NEVER, {NAME: (stamp(1, 1), "Ada")})
    dead = merge(row, Document(NEVER, NEVER, stamp(2, 1), {}))
    assert dead.cells == row.cells


def test_cells_of_columns_that_nobody_here_knows_are_kept() -> None:
    known = Document(stamp(1, 1), stamp(1, 1), NEVER, {NAME: (stamp(1, 1), "Ada")})
    foreign = Document(NEVER, stamp(2, 2), NEVER, {cell_key(99): (stamp(2, 2), b"?")})
    assert set(merge(known, foreign).cells) == {NAME, cell_key(99)}


def test_latest_is_the_greatest_stamp_anywhere() -> None:
    assert EMPTY.latest() == NEVER
    cells: dict[int, Register] = {NAME: (stamp(1, 1), 1), DONE: (stamp(9, 1), 2)}
    assert Document(stamp(3, 1), stamp(4, 1), NEVER, cells).latest() == stamp(9, 1)
    assert Document(stamp(3, 1), stamp(4, 1), stamp(10, 1), cells).latest() == stamp(10, 1)
