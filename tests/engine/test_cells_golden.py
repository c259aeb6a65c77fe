"""The bytes of cells that merge are frozen: files and relays hold them. What two files begin alike
with must even be equal to the byte in every release, or it would stand in a merged cell twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from reunite.cells import EMPTY_STATE, KINDS, counter
from reunite.cells import set as sets
from reunite.document import KIND_MASK, check_cells, decode, encode

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden" / "cells-1.json").read_text(encoding="utf-8")
)
DOCUMENT = bytes.fromhex(GOLDEN["document"]["hex"])
begun = pytest.mark.parametrize("case", GOLDEN["begun"], ids=lambda case: str(case["name"]))


@begun
def test_a_cell_begins_with_the_bytes_that_it_began_with(case: dict[str, Any]) -> None:
    kind = KINDS[case["kind"]]
    content = kind.content(case["value"])
    assert content is not None
    assert kind.initial(content).hex() == case["hex"]


@begun
def test_a_beginning_means_what_it_meant(case: dict[str, Any]) -> None:
    kind, data = KINDS[case["kind"]], bytes.fromhex(case["hex"])
    kind.check(data)
    assert kind.value(data) == case["value"]


def test_a_document_with_cells_of_each_kind_means_what_it_meant() -> None:
    document = decode(DOCUMENT)
    check_cells(document)
    shown = []
    for key, (_, held) in document.cells.items():
        kind = KINDS.get(key & KIND_MASK)
        if kind is not None:
            assert isinstance(held, bytes)
            held = kind.value(held)
        shown.append({"key": key, "value": held})
    assert shown == GOLDEN["document"]["cells"]
    assert {key & KIND_MASK for key in document.cells} == {0, *KINDS}


def test_a_document_with_cells_of_each_kind_is_written_as_it_was() -> None:
    assert encode(decode(DOCUMENT)) == DOCUMENT


@pytest.mark.parametrize("number", [counter.KIND, sets.KIND], ids=["counter", "set"])
def test_a_counter_and_a_set_are_written_in_their_one_form(number: int) -> None:
    states = [
        held for key, (_, held) in decode(DOCUMENT).cells.items() if key & KIND_MASK == number
    ]
    for state in states:
        assert isinstance(state, bytes)
        assert KINDS[number].merge(EMPTY_STATE[number], state) == state
    assert len(states) == 1
