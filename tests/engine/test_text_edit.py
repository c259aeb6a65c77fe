"""The smallest edit that makes one text of another: exact, by words, never within a character."""

import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reunite.cells.text_edit import PAIRS_MAX, Replacement, hunks, text_edit
from tests.engine.documents import TEXT

FAMILY = "👨\u200d👩\u200d👧"
# Words that share letters, and all that joins others into one character.
PARTS = st.sampled_from(
    f"a|ab|abc|one|ones| |  |\n|\r|\r\n|.|\u0301|e\u0301|{FAMILY}|👩|\u200d|👍|🏻|🏿|\ufe0f|❤"
    "|🇩|🇪|1\ufe0f\u20e3|日|本|ก\u0e34|\u1112|\u1161|\u11ab|🏴|\U000e0067|\U000e007f"
    "|क\u094d\u200dष".split("|")
)
PLAIN = st.lists(st.sampled_from(["a", "ab", "abc", "b", " ", "."]), max_size=12).map("".join)
TEXTS = st.one_of(st.lists(PARTS, max_size=12).map("".join), TEXT)


def made(old: str, edit: Sequence[Replacement]) -> str:
    """What the replacements make of a text; they are in order and do not overlap."""
    found, at = "", 0
    for start, end, text in edit:
        assert at <= start <= end <= len(old)
        assert start < end or text
        found += old[at:start] + text
        at = end
    return found + old[at:]


def is_within_a_character(text: str, at: int) -> bool:
    """True where what is on both sides of a place is seen as one, as far as this test knows."""
    if not 0 < at < len(text):
        return False
    before, behind = text[at - 1], text[at]
    return (
        (before, behind) == ("\r", "\n")
        or "\u200d" in (before, behind)
        or unicodedata.category(behind) in ("Mn", "Me", "Mc")
        or unicodedata.name(behind, "").startswith(("EMOJI MODIFIER", "TAG ", "CANCEL TAG"))
        or ("\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= behind <= "\U0001f1ff")
        or unicodedata.name(behind, "").startswith(("HANGUL JUNGSEONG", "HANGUL JONGSEONG"))
    )


@given(TEXTS, TEXTS)
@example("ab", "ab\u0301")
@example("\u200dab", "\u200dac ab")
@example("ab\u0301", "ab ac\u0301")
def test_an_edit_makes_the_new_text_and_divides_no_character(old: str, new: str) -> None:
    edit = text_edit(old, new)
    assert made(old, edit) == new
    moved = 0
    for start, end, text in edit:
        for at in (start, end):
            assert not is_within_a_character(old, at)
        for at in (start + moved, start + moved + len(text)):
            assert not is_within_a_character(new, at)
        moved += len(text) - (end - start)


@given(TEXTS)
def test_an_equal_text_is_no_edit(text: str) -> None:
    assert text_edit(text, text) == []


@given(PLAIN, PLAIN, PLAIN)
def test_what_is_typed_at_one_place_is_all_that_is_inserted(head: str, new: str, tail: str) -> None:
    typed = text_edit(head + tail, head + new + tail)
    assert [end - start for start, end, _ in typed] == [0] * len(typed)
    deleted = text_edit(head + new + tail, head + tail)
    assert not any(text for _, _, text in deleted)


@pytest.mark.parametrize(
    ("old", "new", "edit"),
    [
        ("", "new", [(0, 0, "new")]),
        ("old", "", [(0, 3, "")]),
        ("one three", "one two three", [(4, 4, "two ")]),
        ("the cat sat", "the cow sat", [(5, 7, "ow")]),
        ("a cat and a dog", "a hen and a fly", [(2, 5, "hen"), (12, 15, "fly")]),
        ("color", "colour", [(4, 4, "u")]),
        ("world", "wide world", [(0, 0, "wide ")]),
        ("caf\u0065\u0301", "caf\u0065\u0302", [(3, 5, "e\u0302")]),
        ("👍🏻 x", "👍🏿 x", [(0, 2, "👍🏿")]),
        ("🇩🇪", "🇩🇰", [(0, 2, "🇩🇰")]),
        (FAMILY, FAMILY + "\u200d👦", [(0, 5, FAMILY + "\u200d👦")]),
        ("今日は良い", "昨日は悪い", [(0, 1, "昨"), (3, 4, "悪")]),
        ("a\r\nb", "a\nb", [(1, 3, "\n")]),
    ],
)
def test_the_edit_is_the_one_that_people_mean(
    old: str, new: str, edit: Sequence[tuple[int, int, str]]
) -> None:
    assert text_edit(old, new) == edit


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_hunks_say_where_two_lists_differ(old: list[int], new: list[int]) -> None:
    found: list[int] = []
    at = new_at = 0
    for hunk in hunks(old, new):
        assert old[at : hunk.start] == new[new_at : hunk.new_start]
        assert hunk.start > at or not found
        found += old[at : hunk.start] + new[hunk.new_start : hunk.new_end]
        at, new_at = hunk.end, hunk.new_end
    assert found + old[at:] == new


def test_what_is_too_large_to_compare_is_replaced_between_its_equal_ends() -> None:
    old = "start " + "a b " * (PAIRS_MAX // 20_000) + "end"
    new = "start " + "c d " * (PAIRS_MAX // 20_000) + "end"
    ((start, end, text),) = text_edit(old, new)
    assert made(old, [Replacement(start, end, text)]) == new
    assert (start, len(old) - end) == (6, 4)
