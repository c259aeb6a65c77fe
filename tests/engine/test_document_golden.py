"""Format 1 is frozen: files and relays hold these bytes. A later format adds a file beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from reunite.clock import replica_of, time_of
from reunite.document import Document, decode, encode

GOLDEN = Path(__file__).parent.parent / "golden" / "document-1.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())


def meaning(document: Document) -> dict[str, Any]:
    """A document in words: stamps as [time, replica], blobs and floats in their own form."""

    def mark(data: bytes) -> list[int] | None:
        return [time_of(data), replica_of(data)] if data else None

    def value(held: object) -> object:
        if isinstance(held, bytes):
            return {"blob": held.hex()}
        return {"real": held.hex()} if isinstance(held, float) else held

    return {
        "born": mark(document.born),
        "edited": mark(document.edited),
        "deleted": mark(document.deleted),
        "cells": {str(key): [mark(s), value(v)] for key, (s, v) in document.cells.items()},
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_a_document_written_in_format_1_means_what_it_meant(case: dict[str, Any]) -> None:
    assert meaning(decode(bytes.fromhex(case["hex"]))) == case["meaning"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_a_document_is_written_in_format_1_as_it_was(case: dict[str, Any]) -> None:
    assert encode(decode(bytes.fromhex(case["hex"]))).hex() == case["hex"]
