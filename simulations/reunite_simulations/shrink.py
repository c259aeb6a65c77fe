"""Shrinking: from a world that breaks a promise to a small one that breaks it in the same way.

Time is cut, then whole kinds of events are left out, clients and relays that nobody needs, and at
last single events by delta debugging. That works because every event has its own chance: those that
stay happen when and as they did, as far as what is left out has nothing to do with them.

Source: Zeller, Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002).
"""

import math
import re
import time
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from reunite_simulations.faults import FAULTS
from reunite_simulations.outcome import Report
from reunite_simulations.seeds import run_seed


def shrink(report: Report, *, seconds: float = 60.0, runs: int = 1_000) -> Report:
    """The report of the smallest failing world that was found with this many real seconds and runs.
    Its settings name the events that are left, and running them fails in the same way again. Ctrl-C
    ends the search with what was found so far."""
    search = _Search(report, time.monotonic() + seconds, runs)
    with suppress(KeyboardInterrupt):
        search.cut_time()
        search.drop_kinds()
        search.drop_nodes()
        search.drop_events()
        search.drop_nodes()
        search.cut_time()
    return search.best


@dataclass(frozen=True, slots=True)
class Smallest:
    """What was found out about a failure. `shrunk` says that a shorter history was looked for,
    `repeatable` that running the world again made the same one."""

    report: Report
    shrunk: bool = False
    repeatable: bool = True


def look_into(report: Report, *, seconds: float) -> Smallest:
    """Run a failing world once more, and shrink it if that makes the same history. With 0 seconds
    nothing is run."""
    named = shrink(report, runs=0)
    if not seconds:
        return Smallest(named)
    try:
        if not _is_repeatable(report):
            return Smallest(named, repeatable=False)
    except KeyboardInterrupt:
        return Smallest(named)
    return Smallest(shrink(report, seconds=seconds), shrunk=True)


def _is_repeatable(report: Report) -> bool:
    try:
        return run_seed(report.settings).trace_hash == report.trace_hash
    except Exception:  # It did not raise the first time.
        return False


def shape(message: str, names: Set[str] = frozenset()) -> str:
    """What a violation's message says whomever it is about: without values, numbers and names."""
    for values in _VALUES:
        message = values.sub("", message)
    words = (word for word in message.split() if word.strip(".,:;") not in names)
    return " ".join(words)


# Quoted text, lists and tuples from the inside out, and words with a number in them.
_VALUES: Final = (
    re.compile(r"""b?'(\\.|[^'\\])*'|b?"(\\.|[^"\\])*\""""),
    *[re.compile(r"\[[^][]*\]|\([^()]*\)|\{[^{}]*\}")] * 4,
    re.compile(r"[\w.+-]*\d[\w.+-]*|\bNone\b"),
)


class _Search:
    """The smallest failing world so far, and what may be spent on a smaller one."""

    def __init__(self, report: Report, until: float, runs: int) -> None:
        writes = [write for made in report.history.transactions for write in made.writes]
        self.names = {write.table for write in writes}.union(*(write.cells for write in writes))
        self.failure = self._failure(report)
        self.until = until
        self.runs = runs
        self.best = _said(report)

    @property
    def events(self) -> list[str]:
        """What still happens, in true order."""
        return [each.event for each in self.best.history.events]

    def fails(self, **changes: Any) -> bool:
        """Whether a changed world breaks the same promise in the same way; then it is the best."""
        if self.runs <= 0 or time.monotonic() > self.until:
            return False
        self.runs -= 1
        try:
            report = run_seed(replace(self.best.settings, **changes))
        except Exception:  # Whatever it is, it is not this failure, which must not be lost.
            return False
        if not report.violations or self._failure(report) != self.failure:
            return False
        self.best = _said(report)
        return True

    def _failure(self, report: Report) -> tuple[str, str]:
        first = report.violations[0]
        return first.promise, shape(first.message, self.names)

    def cut_time(self) -> None:
        """Let the world heal earlier."""
        minutes = self.best.settings.minutes
        last = max((each.at for each in self.best.history.events), default=0.0)
        seconds = [minutes * 60 / 8, minutes * 60 / 4, minutes * 60 / 2, last + 1, last + 15]
        seconds.append(self.best.violations[0].at + 1)
        shorter = sorted({math.ceil(each / 0.6) / 100 for each in seconds})
        any(self.fails(minutes=each) for each in shorter if each < minutes)

    def drop_kinds(self) -> None:
        """Leave out all faults, or all of a kind, and all transactions of a client."""
        self._leave_out({event for event in self.events if _kind(event) in FAULTS})
        for kind in sorted({_kind(event) for event in self.events}):
            self._leave_out({event for event in self.events if _kind(event) == kind})

    def drop_nodes(self) -> None:
        """Do with the first clients, and with fewer relays."""
        for count in range(1, self.best.settings.replicas):
            left = frozenset(event for event in self.events if _client(event) <= count)
            if self.fails(replicas=count, only=left):
                break
        any(self.fails(relays=count) for count in range(1, self.best.settings.relays))

    def drop_events(self) -> None:
        """Leave out halves, quarters and so on, until no single event can be missed."""
        size = max(len(self.events) // 2, 1)
        while True:
            events, dropped = self.events, False
            for start in range(0, len(events), size):
                dropped |= self._leave_out(events[start : start + size])
            if size == 1 and not dropped:
                return
            size = max(size // 2, 1)

    def _leave_out(self, some: Iterable[str]) -> bool:
        events = frozenset(self.events)
        left = events.difference(some)
        return left != events and self.fails(only=left)


def _said(report: Report) -> Report:
    """The same world, with the events and kinds of faults by name that happened in it."""
    events = frozenset(each.event for each in report.history.events)
    kinds = {each.kind for each in report.history.strikes}
    drawn = tuple(name for name in report.settings.faults if name in kinds)
    return replace(report, settings=replace(report.settings, only=events, faults=drawn))


def _kind(event: str) -> str:
    return event.rpartition(":")[0]


def _client(event: str) -> int:
    """A client's number, also that of a copy's original; 0 for a fault."""
    kind = _kind(event).partition("-copy")[0]
    return int(kind.removeprefix("client")) if kind.startswith("client") else 0
