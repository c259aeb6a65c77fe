"""Texts: what was typed is there, whole and once, and what was deleted stays away.

An independent model of the words of a text, of which workloads type each once. A word that counts
is there in one piece until somebody who saw it takes it away or writes into it, and then it is gone
for good; words that stay keep their order. What an edit holds between the first and the last place
where it differs may have been written anew, so that is not judged, and neither is a word that
shares its first or last letter with one that it took the place of: those letters stay as they were.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import pairwise

from reunite_simulations.changes import Cell, Change, Count, cells
from reunite_simulations.checkers import Observed
from reunite_simulations.contents import words


class Texts:
    """The final words against the history."""

    promise = "texts keep what was typed"
    looks = False

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end: whoever has not heard of a word does not have it."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every word is there, or is not, as the history allows."""
        for cell in cells(world, "crdt_text", str):
            yield from _differences(cell)


def _differences(cell: Cell) -> Iterator[str]:
    final = _text(cell.final)
    found = words(final)
    times = Counter(found)
    unsure = _rewritten(cell)
    held: set[str] = set()
    for word, (place, change) in sorted(_once(cell).items()):
        if word in unsure:
            continue
        count = Count.ONCE if change is None else change.count
        gone = [(at, each) for at, each in enumerate(cell.changes) if _breaks(each, word)]
        wholly = [each for _, each in gone if each.count is Count.ONCE and _deletes(each, word)]
        if count is Count.ANY:
            continue
        if times[word] > 1:
            yield f"{cell.name} has {word!r} {times[word]} times, and it was typed once"
        if count is Count.NEVER and times[word]:
            yield f"{cell.name} has {word!r}, which was refused or lost with its author"
        if times[word] and wholly:
            yield f"{cell.name} has {word!r}, which {wholly[-1].said} had seen and deleted"
        # What broke it may have been refused, and the pieces deleted by others all the same.
        last = max((at for at, _ in gone), default=-2)
        kept = cell.in_first if change is None else not change.over_hidden
        if count is Count.ONCE and kept and place > max(last, cell.last_hidden()):
            held.add(word)
            if word not in final:
                by = change.said if change is not None else "everybody's first file"
                yield f"{cell.name} lacks {word!r}, which {by} typed: {final!r}"
    yield from _out_of_order(cell, found, held)
    if strange := _strange(cell, final):
        yield f"{cell.name} has {strange!r}, which nobody typed: {final!r}"


def _once(cell: Cell) -> dict[str, tuple[int, Change | None]]:
    """The words that were typed once, by whom, and the place of that change; None when they were
    there first."""
    times: Counter[str] = Counter()
    found: dict[str, tuple[int, Change | None]] = {}
    for began in cell.began:
        for word in words(_text(began)):
            times[word] += 1
            found[word] = -1, None
    for place, change in enumerate(cell.changes):
        new = Counter(words(_text(change.after)))
        old = Counter() if change.hidden else Counter(words(_text(change.before)))
        before, after = "" if change.hidden else _text(change.before), _text(change.after)
        for word in new - old:
            # Also what stands in it beside other letters: without those it is a word, too.
            times[word] += max(new[word], after.count(word) - before.count(word))
            found[word] = place, change
            if _touches(change, word):
                times[word] += 1
    return {word: found[word] for word in found if times[word] == 1}


def _taken(change: Change) -> Set[str]:
    if change.after is None or change.hidden:
        return frozenset()
    return (Counter(words(_text(change.before))) - Counter(words(_text(change.after)))).keys()


def _breaks(change: Change, word: str) -> bool:
    """Whether a word is less often in one piece after a change, also where it had come to stand
    beside another without a space."""
    if change.after is None or change.hidden:
        return False
    return _text(change.before).count(word) > _text(change.after).count(word)


def _touches(change: Change, word: str) -> bool:
    """Whether a new word may keep letters of one that it took the place of."""
    return any(word[0] == other[0] or word[-1] == other[-1] for other in _taken(change))


def _deletes(change: Change, word: str) -> bool:
    """Whether an edit took a word away, and no letter of it is left in a new one."""
    new = Counter(words(_text(change.after))) - Counter(words(_text(change.before)))
    return word in _taken(change) and not any(
        word[0] == other[0] or word[-1] == other[-1] for other in new
    )


def _rewritten(cell: Cell) -> Set[str]:
    """Words that an edit may have written anew: those in the midst of what it changed."""
    found: set[str] = set()
    for before, after in cell.wholes():
        one, other = words(_text(before)), words(_text(after))
        start, end = _common(one, other)
        found |= {*one[start : len(one) - end]} & {*other[start : len(other) - end]}
    return found


def _common(one: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """How many words two texts begin and end with alike."""
    limit = min(len(one), len(other))
    start = next((at for at in range(limit) if one[at] != other[at]), limit)
    limit -= start
    end = next((at for at in range(limit) if one[-1 - at] != other[-1 - at]), limit)
    return start, end


def _out_of_order(cell: Cell, found: Sequence[str], held: Set[str]) -> Iterator[str]:
    place = {word: at for at, word in enumerate(found) if word in held}
    for change in cell.changes:
        seen = [word for word in words(_text(change.after)) if word in place]
        for one, other in pairwise(seen):
            if place[one] > place[other]:
                yield f"{cell.name} has {other!r} before {one!r}; {change.said} had it otherwise"
                return


def _strange(cell: Cell, final: str) -> str:
    """Letters of the final text that are more than all that were typed."""
    typed: Counter[str] = Counter()
    for began in cell.began:
        typed.update(_text(began))
    for change in cell.changes:
        if change.count is Count.ANY:
            return ""
        if change.before is None:
            typed.update(_text(change.after))
    for before, after in cell.wholes():
        typed.update(_new_part(_text(before), _text(after)))
    return "".join(sorted(Counter(final) - typed))


def _new_part(old: str, new: str) -> str:
    """What of a text lies between the first and the last word where another differs; a mark that
    combines with what was deleted before it is typed anew."""
    start, end = _common(old, new)
    while start and not new[start - 1].isspace():
        start -= 1
    while end and not new[-end].isspace():
        end -= 1
    return new[start : len(new) - end]


def _text(found: object) -> str:
    return found if isinstance(found, str) else ""
