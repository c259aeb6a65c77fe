"""The bytes of row documents, format 1: exact, one form each, and safe to read from a stranger."""

import sys
from dataclasses import dataclass

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reunite.cells.register import Register, Value, same
from reunite.clock import FLOOR, NEVER, stamp
from reunite.document import (
    CELLS_MAX,
    COLUMN_ID_MAX,
    DOCUMENT_BYTES_MAX,
    EMPTY,
    VERSION,
    Document,
    cell_key,
    decode,
    encode,
    encode_edit,
    encode_insert_over_floor,
    latest_stamp,
)
from reunite.errors import FormatError
from tests.engine.documents import DOCUMENTS, STAMPS, VALUES

STAMP = stamp(1, 1)


@dataclass(frozen=True)
class Fields:
    """The eight fields of a valid document, to be spoiled one at a time."""

    version: object = VERSION
    stamps: object = STAMP
    born: object = 1
    edited: object = 1
    deleted: object = 0
    keys: object = (8, 16)
    which: object = 0
    values: object = ("a", 1)

    def bytes(self) -> bytes:
        fields = (self.version, self.stamps, self.born, self.edited, self.deleted)
        return msgpack.packb((*fields, self.keys, self.which, self.values))


@given(DOCUMENTS)
def test_a_document_comes_back_as_it_was(document: Document) -> None:
    again = decode(encode(document))
    assert again[:3] == document[:3]
    assert again.cells.keys() == document.cells.keys()
    for key, (mark, value) in document.cells.items():
        assert again.cells[key][0] == mark
        assert same(again.cells[key][1], value)


@given(DOCUMENTS)
def test_equal_documents_have_equal_bytes(document: Document) -> None:
    backwards = dict(reversed(document.cells.items()))
    assert encode(document._replace(cells=backwards)) == encode(document)


@given(DOCUMENTS, DOCUMENTS)
def test_different_documents_have_different_bytes(a: Document, b: Document) -> None:
    equal = a[:3] == b[:3] and a.cells.keys() == b.cells.keys()
    for key in a.cells if equal else ():
        equal = equal and a.cells[key][0] == b.cells[key][0]
        equal = equal and same(a.cells[key][1], b.cells[key][1])
    assert (encode(a) == encode(b)) == equal


@given(st.binary(max_size=200))
def test_garbage_is_refused_with_format_error_only(data: bytes) -> None:
    assert_refused_or_sound(data)


@given(DOCUMENTS, st.data())
def test_a_mutated_document_is_refused_or_sound(document: Document, data: st.DataObject) -> None:
    spoiled = bytearray(encode(document))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(spoiled) - 1))
        spoiled[place] = data.draw(st.integers(0, 255))
    assert_refused_or_sound(bytes(spoiled))


@given(DOCUMENTS, st.data())
def test_a_truncated_document_is_refused(document: Document, data: st.DataObject) -> None:
    whole = encode(document)
    with pytest.raises(FormatError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(DOCUMENTS, st.binary(min_size=1, max_size=9))
def test_a_document_with_more_behind_it_is_refused(document: Document, more: bytes) -> None:
    with pytest.raises(FormatError):
        decode(encode(document) + more)


SCALARS = st.one_of(
    VALUES, st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.just(float("nan"))
)


@given(st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), min_size=8, max_size=8))
def test_eight_fields_of_anything_are_refused_or_sound(fields: list[object]) -> None:
    assert_refused_or_sound(msgpack.packb([VERSION, STAMP, *fields[2:]]))


def assert_refused_or_sound(data: bytes) -> None:
    try:
        document = decode(data)
    except FormatError:
        return
    assert decode(encode(document)) == document


@pytest.mark.parametrize(
    "spoiled",
    [
        Fields(version=2),
        Fields(version="1"),
        Fields(stamps=STAMP[:15]),
        Fields(stamps=STAMP + b"x"),
        Fields(stamps="sixteen letters!"),
        Fields(stamps=[STAMP]),
        Fields(stamps=stamp(2, 1) + stamp(1, 1)),
        Fields(stamps=STAMP + STAMP),
        Fields(stamps=b""),
        Fields(born=2),
        Fields(edited=-1),
        Fields(deleted=None),
        Fields(born=1.0),
        Fields(keys=8),
        Fields(keys=None),
        Fields(keys=(16, 8)),
        Fields(keys=(8, 8)),
        Fields(keys=(0, 8)),
        Fields(keys=(-8, 8)),
        Fields(keys=(8, 17)),
        Fields(keys=(8, "16")),
        Fields(keys=(8, cell_key(COLUMN_ID_MAX + 1))),
        Fields(keys=(8,)),
        Fields(keys=(8, {})),
        Fields(keys=(8, (16,))),
        Fields(which=1),
        Fields(which=-1),
        Fields(which=0.0),
        Fields(which=(0,)),
        Fields(which=(0, -1)),
        Fields(which=(0, 1)),
        Fields(which=(0, 0.0)),
        Fields(which=(0, True)),
        Fields(which=()),
        Fields(which=b"\0\0"),
        Fields(values=("a",)),
        Fields(values=("a", 1, 2)),
        Fields(values=("a", True)),
        Fields(values=("a", [1])),
        Fields(values=("a", {"b": 1})),
        Fields(values=("a", msgpack.ExtType(5, b"x"))),
        Fields(values=("a", msgpack.Timestamp(1))),
        Fields(values=("a", float("nan"))),
        Fields(values=("a", 1 << 63)),
        Fields(values="ab"),
        Fields(values=b"ab"),
        Fields(values={"a": 1, "b": 2}),
    ],
    ids=repr,
)
def test_what_no_encoder_writes_is_refused(spoiled: Fields) -> None:
    assert decode(Fields().bytes()).cells == {8: (STAMP, "a"), 16: (STAMP, 1)}
    with pytest.raises(FormatError):
        decode(spoiled.bytes())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        msgpack.packb([]),
        msgpack.packb([1] * 7),
        msgpack.packb([1] * 9),
        msgpack.packb({"a": 1}),
        msgpack.packb(1),
        b"\xdd\xff\xff\xff\xff",
        b"\x98\x01\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xc1",
        b"\x98\x01\xc4\x00\x00\x00\x00\x90\x00\x92\xa2\xff\xff\x01",
    ],
    ids=lambda data: data[:12].hex(),
)
def test_what_is_no_document_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data)


def test_a_document_of_a_later_format_says_to_upgrade() -> None:
    with pytest.raises(FormatError, match="upgrade"):
        decode(Fields(version=2).bytes())


def test_a_document_holds_as_many_cells_as_it_may() -> None:
    many: dict[int, Register] = {
        cell_key(column): (STAMP, column) for column in range(1, CELLS_MAX + 1)
    }
    assert decode(encode(Document(STAMP, STAMP, NEVER, many))).cells == many
    many[cell_key(CELLS_MAX + 1)] = (STAMP, 0)
    with pytest.raises(FormatError, match=r"too many|over"):
        decode(encode(Document(STAMP, STAMP, NEVER, many)))


def test_the_highest_column_id_is_in() -> None:
    document = Document(STAMP, STAMP, NEVER, {cell_key(COLUMN_ID_MAX): (STAMP, 1)})
    assert decode(encode(document)) == document


def test_a_document_is_as_large_as_the_join_of_two_may_be_and_no_larger() -> None:
    document = Document(STAMP, STAMP, NEVER, {8: (STAMP, "")})
    room = 2 * DOCUMENT_BYTES_MAX - len(encode(document)) - 4
    fits = encode(document._replace(cells={8: (STAMP, "x" * room)}))
    assert len(fits) == 2 * DOCUMENT_BYTES_MAX
    assert len(str(decode(fits).cells[8][1])) == room
    with pytest.raises(FormatError, match="over"):
        decode(encode(document._replace(cells={8: (STAMP, "x" * (room + 1))})))


@pytest.mark.parametrize("nested", [b"\x90", b"\x80", b"\xdc\x00\x00", b"\xdf\x00\x00\x00\x00"])
def test_a_large_document_of_nested_values_is_refused_before_it_is_built(nested: bytes) -> None:
    count = 1_000_000 // len(nested)
    head = b"\x98\x01\xc4\x10" + STAMP + b"\x01\x01\x00"
    bomb = head + b"\x91\x08\x00\xdd" + count.to_bytes(4, "big") + nested * count
    with pytest.raises(FormatError):
        decode(bomb)
    with pytest.raises(FormatError):
        decode(head + b"\x91\x08\x00\x91" + nested + b"x" * 100_000)


@pytest.mark.parametrize("stamps", [1, 2, 3, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 20, 60])
def test_a_large_document_is_read_however_many_stamps_its_cells_have(
    stamps: int, columns: int
) -> None:
    cells: dict[int, Register] = {
        cell_key(number + 1): (
            stamp(number % stamps + 1, 1),
            "é" * 40_000 if number == 0 else number,
        )
        for number in reversed(range(columns))
    }
    document = Document(stamp(1, 1), stamp(stamps, 1), NEVER, cells)
    assert decode(encode(document)) == document


def test_a_document_after_one_that_could_not_be_encoded_is_whole() -> None:
    with pytest.raises(UnicodeEncodeError):
        encode(Document(STAMP, STAMP, NEVER, {8: (STAMP, "before \ud800")}))
    assert decode(encode(EMPTY)) == EMPTY


# What a table holds: ids as a registry gives them, values of every class.
@given(
    st.lists(VALUES, min_size=6, max_size=6),
    st.lists(st.integers(1, 8_000), min_size=6, max_size=6, unique=True),
    st.lists(st.integers(0, 8), min_size=9, max_size=9),
)
@example([None] * 6, list(range(7_995, 8_001)), [0, 0, 1, 2, 3, 4, 5, 6, 7])
def test_a_document_costs_45_bytes_more_than_its_row_and_18_for_each_further_stamp(
    values: list[object], columns: list[int], marks: list[int]
) -> None:
    stamps = [stamp(sys.maxsize, mark + 1) for mark in marks]
    cells = {
        cell_key(column): (mark, value)
        for column, mark, value in zip(columns, stamps[3:], values, strict=True)
    }
    document = Document(stamps[0], stamps[1], stamps[2], cells)  # type: ignore[arg-type]
    row = len(msgpack.packb(values))
    assert len(encode(document)) <= row + 45 + 18 * (len(set(stamps)) - 1)


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_a_further_stamp_of_a_six_column_row_costs_18_bytes_at_most(marks: list[int]) -> None:
    def size(marks: list[int]) -> int:
        held: dict[int, Register] = {
            cell_key(i + 1): (stamp(9, mark + 1), i) for i, mark in enumerate(marks)
        }
        return len(encode(Document(STAMP, stamp(9, marks[0] + 1), NEVER, held)))

    assert size(marks) - size([0] * 6) <= 18 * (len({*marks}) - 1)


@pytest.mark.parametrize(
    ("stamps", "cells"), [(2, 1), (2, 63), (2, 64), (3, 39), (3, 40), (7, 22), (300, 301)]
)
def test_a_row_of_many_cells_and_stamps_comes_back(stamps: int, cells: int) -> None:
    marks = [stamp(9, number + 1) for number in range(stamps)]
    held: dict[int, Register] = {cell_key(i + 1): (marks[-1 - i % stamps], i) for i in range(cells)}
    document = Document(marks[0], marks[-1], NEVER, held)
    assert decode(encode(document)) == document


@pytest.mark.parametrize("which", [4, -1, 1 << 63, (0, 2), (0,), (0, 0, 1), [], "ab"], ids=repr)
def test_cells_of_stamps_that_are_not_there_are_refused(which: object) -> None:
    fields = (VERSION, stamp(1, 1) + stamp(2, 1), 1, 2, 0, (8, 16), which, ("a", "b"))
    with pytest.raises(FormatError):
        decode(msgpack.packb(fields))


def test_the_floor_is_a_stamp_like_any_other() -> None:
    document = Document(FLOOR, FLOOR, NEVER, {8: (FLOOR, "kept")})
    assert decode(encode(document)) == document


@given(STAMPS, st.lists(VALUES, max_size=6), st.booleans())
def test_an_edit_is_encoded_as_its_document_is(
    mark: bytes, values: list[Value], inserts: bool
) -> None:
    keys = [cell_key(column) for column in range(1, len(values) + 1)]
    cells = {key: (mark, value) for key, value in zip(keys, values, strict=True)}
    born = mark if inserts else NEVER
    assert encode_edit(mark, keys, values, inserts=inserts) == encode(
        Document(born, mark, NEVER, cells)
    )


@given(st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=6))
def test_an_insert_over_the_floor_is_encoded_as_its_document_is(
    held: list[tuple[Value, bool]],
) -> None:
    keys = [cell_key(column) for column in range(1, len(held) + 1)]
    values, at_floor = [value for value, _ in held], [floor for _, floor in held]
    at_floor[0] = True
    cells = {
        key: (FLOOR if floor else STAMP, value)
        for key, value, floor in zip(keys, values, at_floor, strict=True)
    }
    assert encode_insert_over_floor(STAMP, keys, values, at_floor) == encode(
        Document(STAMP, STAMP, NEVER, cells)
    )


@given(DOCUMENTS)
def test_the_latest_stamp_is_read_without_decoding(document: Document) -> None:
    if document.latest() != NEVER:
        assert latest_stamp(encode(document)) == document.latest()


def test_the_latest_of_many_stamps_is_read_without_decoding() -> None:
    cells: dict[int, Register] = {cell_key(n): (stamp(n, 1), n) for n in range(1, 1_000)}
    assert latest_stamp(encode(Document(STAMP, STAMP, NEVER, cells))) == stamp(999, 1)
