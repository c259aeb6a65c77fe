"""The smallest edit that makes one text, or one list, of another.

A text is compared by words, so that an edit takes a word away whole and puts another in its place:
letters that two different words happen to share would let concurrent edits tear words apart. What
begins or ends alike is kept letter for letter, so that typing inside a word is an insertion. No
edit begins or ends inside what people see as one character (a letter and its accents, an emoji and
its modifiers). Scripts that put no spaces between words are compared by characters.
"""

import re
import unicodedata
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

from rapidfuzz.distance import Indel

# A comparison takes a bit for each pair of parts: this many are 12 MB and a few tens of
# milliseconds. What is larger and has nothing in common is replaced whole.
PAIRS_MAX: Final = 100_000_000

# Scripts that are written without spaces: of South-East Asia, and Chinese and Japanese.
_SPACELESS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3040-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS: Final = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+|\s+|[^\w\s]")
_WORD: Final = re.compile(rf"[^\W{_SPACELESS}]")
_ZERO_WIDTH_JOINER: Final = "\u200d"
_SKIN_TONES: Final = ("\U0001f3fb", "\U0001f3ff")
_FLAGS: Final = ("\U0001f1e6", "\U0001f1ff")
# Keycaps, variations, the tags that make flags of regions, and letters inside a Korean syllable.
_EXTENDING: Final = re.compile(
    "[\u20e3\ufe00-\ufe0f\U000e0020-\U000e007f\u1160-\u11ff\ud7b0-\ud7fb]"
)


class Replacement(NamedTuple):
    """`old[start:end]` becomes `text`; places are code points."""

    start: int
    end: int
    text: str


class Hunk(NamedTuple):
    """`old[start:end]` becomes `new[new_start:new_end]`."""

    start: int
    end: int
    new_start: int
    new_end: int


def text_edit(old: str, new: str) -> list[Replacement]:
    """The replacements that make `new` of `old`, from its start to its end."""
    start, end = _differing(old, new)
    old_words = _words(old[start : len(old) - end])
    new_words = _words(new[start : len(new) - end])
    found = []
    at, place = start, 0
    for hunk in hunks(old_words, new_words):
        at += sum(map(len, old_words[place : hunk.start]))
        gone = "".join(old_words[hunk.start : hunk.end])
        text = "".join(new_words[hunk.new_start : hunk.new_end])
        kept = _common_prefix(gone, text)
        tail = _common_suffix(gone, text, kept)
        found.append(Replacement(at + kept, at + len(gone) - tail, text[kept : len(text) - tail]))
        at, place = at + len(gone), hunk.end
    return found


def _differing(old: str, new: str) -> tuple[int, int]:
    """How much of two texts is alike at the beginning and at the end, in whole words: "wide world"
    is "world" with a word before it, and not with "ide w" in it."""
    start = _common_prefix(old, new)
    end = _common_suffix(old, new, start)
    while (
        start
        and _is_word(old[start - 1])
        and _is_word(old[start : start + 1] + new[start : start + 1])
    ):
        start -= 1
    while (
        end
        and _is_word(old[-end])
        and _is_word(old[: len(old) - end][-1:] + new[: len(new) - end][-1:])
    ):
        end -= 1
    # A word can begin or end inside a character, behind what joins it to another.
    while start and (_splits(old, start) or _splits(new, start)):
        start -= 1
    while end and (_splits(old, len(old) - end) or _splits(new, len(new) - end)):
        end -= 1
    return start, end


def _is_word(text: str) -> bool:
    """True when one of these letters belongs to a word."""
    return _WORD.search(text) is not None


def hunks(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[Hunk]:
    """Where two sequences differ, in order; what lies between is equal."""
    if len(old) * len(new) > PAIRS_MAX:
        return [Hunk(0, len(old), 0, len(new))]
    found: list[Hunk] = []
    for step in Indel.opcodes(old, new):
        if step.tag == "equal":
            continue
        if found and found[-1].end == step.src_start and found[-1].new_end == step.dest_start:
            last = found.pop()
            found.append(Hunk(last.start, step.src_end, last.new_start, step.dest_end))
        else:
            found.append(Hunk(step.src_start, step.src_end, step.dest_start, step.dest_end))
    return found


def _words(text: str) -> list[str]:
    """The words of a text, and what is between them; whole characters as they are seen."""
    found: list[str] = []
    at = 0
    for word in _WORDS.findall(text):
        if _splits(text, at):
            found[-1] += word
        else:
            found.append(word)
        at += len(word)
    return found


def _common_prefix(a: str, b: str) -> int:
    """How much both begin alike, up to where a character ends in both."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        found = limit
    else:
        # By halves, as comparing slices is what Python does fast.
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if a[low:middle] == b[low:middle]:
                low = middle
            else:
                high = middle - 1
        found = low
    while found and (_splits(a, found) or _splits(b, found)):
        found -= 1
    return found


def _common_suffix(a: str, b: str, after: int) -> int:
    """How much both end alike, behind what they begin with."""
    low, high = 0, min(len(a), len(b)) - after
    while low < high:
        middle = (low + high + 1) // 2
        if a[len(a) - middle : len(a) - low] == b[len(b) - middle : len(b) - low]:
            low = middle
        else:
            high = middle - 1
    while low and (_splits(a, len(a) - low) or _splits(b, len(b) - low)):
        low -= 1
    return low


def _splits(text: str, at: int) -> bool:
    """True when a cut here would part what is seen as one character."""
    if not 0 < at < len(text):
        return False
    before, behind = text[at - 1], text[at]
    if behind < "\u0300" and before != _ZERO_WIDTH_JOINER:
        return before == "\r" and behind == "\n"
    return (
        before == _ZERO_WIDTH_JOINER
        or behind == _ZERO_WIDTH_JOINER
        or unicodedata.category(behind)[0] == "M"
        or _SKIN_TONES[0] <= behind <= _SKIN_TONES[1]
        or _EXTENDING.match(behind) is not None
        or (_FLAGS[0] <= behind <= _FLAGS[1] and _FLAGS[0] <= before <= _FLAGS[1])
    )
