"""What a world's page shows of each node: when it was up, who did not reach it, what it did.

Knows happenings and what they mean; nothing of how a page draws them. What lies close together is
one moment or one mark that says all of it: their number is bounded, however long the world.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from reunite_simulations.conflicts import Merged, Side
from reunite_simulations.history import Key
from reunite_simulations.outcome import Happening, Report
from reunite_transport.console import counted

# What a browser lays out at once without a pause: moments of all lanes together, and of one.
MOMENTS_MAX: Final = 4000
MOMENTS_OF_LANE_MAX: Final = 360
# Marks are wider than moments: so many of these share one mark of a kind.
MOMENTS_OF_MARK: Final = 3
TEXT_MAX: Final = 160

# What a kind of happening is drawn as, and said to be; its first fact is the node.
_SAID: Final[Mapping[str, tuple[str, str]]] = {
    "power": ("power", "loses its power, and the end of its WAL"),
    "backup": ("backup", "its file is replaced by a backup"),
    "rolled": ("rolled", "is stopped in order, to be started anew"),
    "copied": ("copied", "its file is copied: {1}"),
    "migrated": ("migrated", "its app adds a column: {1}.{2}"),
    "rebuilt": ("migrated", "its app makes a table anew: {1}"),
    "lost": ("backup", "its machine is gone with its file; it goes on with an empty one"),
    "stopped": ("stopped", "sync stops for good: {1}"),
    "clock": ("clock", "its clock steps, and is now {1} ms off"),
    "slow": ("trouble", "reads slowly from now on"),
    "disk": ("trouble", "its disk is nearly full"),
    "locked": ("trouble", "another program holds the file in a transaction"),
    "roam": ("trouble", "goes to {1}"),
    "second": ("trouble", "its file is synced a second time, with {1}"),
    "reload": ("trouble", "loads everything once more"),
    "rejected": ("rejected", "rejected, {1}: {2}"),
}

# What ends a node, with the reason in words.
_ENDS: Final[Mapping[str, str]] = {
    "died": "crash",
    "power": "power loss",
    "backup": "backup restored",
    "lost": "machine lost",
    "rolled": "rolled over",
}

_Link: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a moment is: a world's seconds, and how many moments a lane has room for."""

    end: float
    moments: int

    def share(self, at: float) -> float:
        """From 0 to 1."""
        return min(max(at / self.end, 0.0), 1.0)

    def percent(self, at: float) -> str:
        """For a style."""
        return f"{100 * self.share(at):.2f}%"

    def moment(self, at: float) -> int:
        """The place of the moment that a time is in."""
        return min(int(self.share(at) * self.moments), self.moments - 1)

    def since(self, moment: float) -> float:
        """When a moment begins."""
        return self.end * moment / self.moments


@dataclass(slots=True)
class Moment:
    """What a node did in one moment."""

    transactions: int = 0
    rows: int = 0
    received: int = 0
    waiting: int = 0
    acknowledged: int = 0
    sent: list[int] = field(default_factory=lambda: [0, 0])
    got: list[int] = field(default_factory=lambda: [0, 0])
    others: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """In words."""
        if self.transactions:
            many = counted(self.transactions, "transaction")
            yield f"wrote {counted(self.rows, 'row')} in {many}"
        if self.received:
            yield f"took in {counted(self.received, 'row')} from the relay"
        if self.waiting:
            yield f"{counted(self.waiting, 'row')} arrived and wait for the rest"
        if self.acknowledged:
            yield f"{counted(self.acknowledged, 'changeset')} acknowledged"
        for verb, (frames, size) in (("sent", self.sent), ("was sent", self.got)):
            if frames:
                yield f"{verb} {counted(frames, 'frame')}, {size:,} bytes"
        for said, times in self.others.items():
            yield said if times == 1 else f"{said} ({times} times)"


@dataclass(frozen=True, slots=True)
class Span:
    """A while in which something lasted. `strip` is which part of a lane's height it takes, and of
    how many."""

    since: float
    until: float
    kind: str
    said: str
    strip: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something worth a sign of its own; `lines` are what happened there, one each."""

    at: float
    kind: str
    lines: Sequence[str]


def scale_of(report: Report) -> Scale:
    """A page's scale, by how much there is to show."""
    end = max((happening.at for happening in report.happenings), default=0.0)
    lane_count = max(len(node_names(report.happenings)), 1)
    return Scale(end or 1.0, max(min(MOMENTS_OF_LANE_MAX, MOMENTS_MAX // lane_count), 1))


def node_names(happenings: Iterable[Happening]) -> Sequence[str]:
    """All nodes that ever started: relays first, numbers in order."""
    names = {str(happening.facts[0]) for happening in happenings if happening.kind == "started"}
    return sorted(
        names,
        key=lambda name: (
            not name.startswith("relay"),
            [int(part) for part in re.findall(r"\d+", name)],
            name,
        ),
    )


def moments(report: Report, names: Sequence[str], scale: Scale) -> dict[tuple[str, int], Moment]:
    """What each node did, by its name and the place of the moment."""
    made: dict[tuple[str, int], Moment] = {}

    def moment(name: str, at: float) -> Moment:
        return made.setdefault((name, scale.moment(at)), Moment())

    known = frozenset(names)
    for happening in report.happenings:
        name = str(happening.facts[0]) if happening.facts else ""
        if name in known:
            _take(moment(name, happening.at), happening.kind, happening.facts)
    for (sender, receiver, tenth), (frames, size) in report.traffic.items():
        at = tenth / 10
        for count in (moment(sender, at).sent, moment(receiver, at).got):
            count[0] += frames
            count[1] += size
    return {place: each for place, each in made.items() if any(True for _ in each.lines())}


def _take(moment: Moment, kind: str, facts: Sequence[object]) -> None:
    match kind, facts:
        case "wrote", (_, _, int(rows), _):
            moment.transactions += 1
            moment.rows += rows
        case "received", (_, int(rows), bool(applied)):
            moment.received += rows if applied else 0
            moment.waiting += 0 if applied else rows
        case "acknowledged", (_, int(count)):
            moment.acknowledged += count
        case "refused", (_, str(error)):
            moment.others[f"a transaction was refused: {error}"] += 1
        case "connect", (_, str(relay), _):
            moment.others[f"connected to {relay}"] += 1
        case "gave up", (_, str(peer)):
            moment.others[f"took {peer} for gone"] += 1
        case "live", _:
            moment.others["had all that the relay had"] += 1
        case "replay", _:
            moment.others["a frame to the relay came twice"] += 1
        case "started", _:
            moment.others["started"] += 1


def lives(happenings: Sequence[Happening], name: str, scale: Scale) -> Sequence[Span]:
    """From the first start on a node is up, but for some whiles."""
    spans: list[Span] = []
    began: float | None = None
    down: tuple[float, str] | None = None
    for happening in happenings:
        if happening.kind not in _ENDS and happening.kind != "started":
            continue
        if happening.facts[0] != name:
            continue
        if happening.kind != "started":
            down = down or (happening.at, _ENDS[happening.kind])
            continue
        began = happening.at if began is None else began
        if down is not None:
            spans.append(Span(down[0], happening.at, "dead", f"{name} is down: {down[1]}"))
            down = None
    if down is not None:
        spans.append(Span(down[0], scale.end, "dead", f"{name} is down: {down[1]}"))
    return [] if began is None else [Span(began, scale.end, "up", ""), *_apart(spans, scale)]


def cuts(
    happenings: Sequence[Happening], client: str, relays: Sequence[str], scale: Scale
) -> Iterator[Span]:
    """A client's partitions, each in the strip of its relay."""
    parting = [each for each in happenings if each.kind in ("cut", "mend", "healed")]
    for place, relay in enumerate(relays):
        for span in _apart(_cuts_between(parting, client, relay, scale), scale):
            yield replace(span, strip=(place, len(relays)))


def _cuts_between(
    happenings: Iterable[Happening], client: str, relay: str, scale: Scale
) -> Iterator[Span]:
    since, silent = 0.0, frozenset[_Link]()
    for happening in happenings:
        now = silent
        if happening.kind == "healed":
            now = frozenset()
        elif {client, relay} == set(happening.facts[:2]):
            one, other = str(happening.facts[0]), str(happening.facts[1])
            now = frozenset()
            if happening.kind == "cut":
                back = [(other, one)] if happening.facts[2] else []
                now = silent | {(one, other), *back}
        if now != silent:
            if silent:
                yield _cut(client, relay, silent, since, happening.at)
            since, silent = happening.at, now
    if silent:
        yield _cut(client, relay, silent, since, scale.end)


def _cut(client: str, relay: str, silent: frozenset[_Link], since: float, until: float) -> Span:
    if len(silent) == 2:
        return Span(since, until, "cut both", f"{client} and {relay} do not reach each other")
    if (client, relay) in silent:
        said = f"{client} does not reach {relay}, which reaches it"
        return Span(since, until, "cut mute", said)
    return Span(since, until, "cut deaf", f"{relay} does not reach {client}, which reaches it")


def _apart(spans: Iterable[Span], scale: Scale) -> Iterable[Span]:
    """Of spans that would be drawn over one another, one."""
    drawn: dict[tuple[int, int, str], Span] = {}
    for span in spans:
        drawn.setdefault((scale.moment(span.since), scale.moment(span.until), span.kind), span)
    return drawn.values()


def marks(report: Report, names: Sequence[str], scale: Scale) -> Mapping[str, Sequence[Mark]]:
    """What each node's lane has a sign for."""
    known = frozenset(names)
    together: dict[tuple[str, str, int], tuple[float, list[str]]] = {}
    for at, name, kind, said in (*_life_marks(report, names), *_edit_marks(report)):
        if name in known:
            place = scale.moment(at) // MOMENTS_OF_MARK
            _, lines = together.setdefault((name, kind, place), (at, []))
            lines.append(f"{clock(at)}: {said}")
    made: dict[str, list[Mark]] = {}
    for (name, kind, _), (at, lines) in together.items():
        made.setdefault(name, []).append(Mark(at, kind, lines))
    return made


def _life_marks(report: Report, names: Sequence[str]) -> Iterator[tuple[float, str, str, str]]:
    ended_at: dict[str, float] = {}
    for happening in report.happenings:
        name = str(happening.facts[0]) if happening.facts else ""
        if happening.kind in _SAID:
            kind, said = _SAID[happening.kind]
            facts = [short(str(fact)) for fact in happening.facts]
            yield happening.at, name, kind, said.format(*facts)
        if happening.kind in ("power", "backup", "lost"):
            ended_at[name] = happening.at
        elif happening.kind == "died" and ended_at.get(name) != happening.at:
            yield happening.at, name, "crash", "the process dies"
        elif happening.kind == "restored":
            for relay in names:
                if relay.startswith("relay"):
                    said = "the relays' database is replaced by a backup"
                    yield happening.at, relay, "backup", said
        elif happening.kind == "copied":
            name, said = str(happening.facts[1]), f"begins as a copy of {happening.facts[0]}"
            yield happening.at, name, "copied", said


def _edit_marks(report: Report) -> Iterator[tuple[float, str, str, str]]:
    for each in report.conflicts.merged:
        for own, other in ((each.first, each.second), (each.second, each.first)):
            yield own.at, own.client, "merged", _merge_said(each, own, other)
    for lost in report.conflicts.overwritten:
        row = row_name(lost.table, lost.key)
        value = value_text(lost.loser.cells[lost.column])
        winner = f"{lost.winner.client} at {clock(lost.winner.at)}"
        said = f"its {lost.column} = {value} of {row} gave way to {winner}"
        yield lost.loser.at, lost.loser.client, "lost", said


def _merge_said(merged: Merged, own: Side, other: Side) -> str:
    return (
        f"its {', '.join(own.cells)} of {row_name(merged.table, merged.key)} and"
        f" {', '.join(other.cells)} of {other.client} at {clock(other.at)} are both kept"
    )


def clock(at: float) -> str:
    """A time as people read it."""
    minutes, seconds = divmod(round(at, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"


def row_name(table: str, key: Key) -> str:
    """A row, in words."""
    return short(f"{table} {', '.join(map(value_text, key))}")


def value_text(value: object) -> str:
    """A cell's value, in one line."""
    if value is None:
        return "NULL"
    return short(f"x'{value.hex()}'" if isinstance(value, bytes) else str(value), 48)


def short(text: str, most: int = TEXT_MAX) -> str:
    """Text with a bounded length."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
