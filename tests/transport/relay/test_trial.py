"""Edits that are sound and would take Yjs minutes: refused in seconds, alone, and honest ones of
the same size are taken."""

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from pycrdt import Array, Doc, Text

from reunite.cells import yjs
from reunite.cells.yjs_update import parse
from reunite.errors import FormatError
from reunite_transport.relay import trial
from reunite_transport.relay.store import StoreError
from reunite_transport.relay.trial import Trials
from tests.engine.test_yjs_update import block, by_one, one, string, uint, update

BLOCKS = 40_000


def at_one_place() -> bytes:
    """Blocks of one client that all stand between the same two letters."""
    mine = [string("a", right=(1, BLOCKS - 1 - (i % 2))) for i in range(BLOCKS)]
    return update((2, 0, mine), (1, 0, [string("b" * BLOCKS, "text")]))


def cuts_of_a_large_text() -> bytes:
    mine = [string("a", left=(1, 100 * i)) for i in range(BLOCKS)]
    return update((2, 0, mine), (1, 0, [string("b" * (100 * BLOCKS), "text")]))


def cuts_of_a_large_list() -> bytes:
    many = 1_000_000
    mine = [one(left=(1, i)) for i in range(BLOCKS)]
    return update((2, 0, mine), (1, 0, [block(8, uint(many) + b"\x7e" * many, "list")]))


@pytest.mark.parametrize(
    ("kind", "crafted"),
    [
        (yjs.TEXT, at_one_place()),
        (yjs.TEXT, cuts_of_a_large_text()),
        (yjs.LIST, cuts_of_a_large_list()),
    ],
    ids=["at one place", "cuts of a text", "cuts of a list"],
)
def test_what_takes_yjs_long_is_tried_elsewhere_and_refused(kind: yjs.Yjs, crafted: bytes) -> None:
    kind.check(crafted)
    assert kind.is_heavy(None, crafted)

    async def scenario() -> None:
        async with Trials() as trials:
            with pytest.raises(FormatError, match="too long"):
                await trials.hold([(kind.shape, b"", crafted)])
            # The next one is tried in a new process.
            await trials.hold([(kind.shape, b"", b"\0\0")])

    asyncio.run(scenario())


def test_a_document_is_tried_before_it_takes_long_to_load() -> None:
    """However little of it comes at once."""
    chance = random.Random(1)
    doc = Doc[Any](client_id=3)
    text = doc.get("text", type=Text)
    text += "a" * 10_000
    heavy = []
    for _ in range(100):
        before, state = doc.get_update(), doc.get_state()
        for _ in range(100):
            text.insert(chance.randrange(10_000), "b")
        delta = doc.get_update(state)
        assert not yjs.TEXT.is_heavy(None, delta)
        heavy.append(yjs.TEXT.is_heavy(before, delta))
    assert 1 < sum(heavy) < 10


def test_an_honest_text_of_many_places_is_taken() -> None:
    chance = random.Random(2)
    doc = Doc[Any](client_id=3)
    text = doc.get("text", type=Text)
    text += "a" * 20_000
    for _ in range(20_000):
        text.insert(chance.randrange(20_000), "b")
    honest = doc.get_update()
    assert yjs.TEXT.is_heavy(None, honest)

    async def scenario() -> None:
        async with Trials() as trials:
            await trials.hold([("text", b"", honest)])

    asyncio.run(scenario())


def test_a_usual_edit_is_not_tried() -> None:
    doc = Doc[Any](client_id=3)
    text = doc.get("text", type=Text)
    text += "a" * 1_000_000
    before = doc.get_update()
    state = doc.get_state()
    text.insert(500_000, "b")
    assert not yjs.TEXT.is_heavy(None, before)
    assert not yjs.TEXT.is_heavy(before, doc.get_update(state))


def test_where_nothing_can_be_tried_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with Trials() as trials:
            await trials.hold([("text", b"", b"\0\0")])

    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(trial, "_PROGRAM", broken)
    with pytest.raises(StoreError, match="ends with 3"):
        asyncio.run(scenario())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match="no process can be started"):
        asyncio.run(scenario())


def test_ranges_that_are_deleted_are_counted() -> None:
    many = (1 << 18) + 1
    ranges = uint(1) + uint(1) + uint(many) + b"".join(uint(2 * i) + uint(1) for i in range(many))
    with pytest.raises(FormatError, match="too much"):
        parse(by_one(string("b", "text"))[:-1] + ranges, "text")


def test_a_list_of_many_blocks_is_read_in_one_go() -> None:
    doc = Doc[Any](client_id=3)
    items = doc.get("list", type=Array)
    values = [1, 1.5, "é\u2028", None, True, {"k": [1, {}]}, 1 << 60, 1e300, [49, 50], [300, 1]]
    found = yjs.LIST.content(yjs.LIST.value(yjs.LIST.initial(values)))
    assert found == values
    for number in range(50):
        items.insert(0, number)
    assert yjs.LIST.content(yjs.LIST.value(doc.get_update())) == list(range(49, -1, -1))
