"""The timeline of a world's page: a lane for each node, and below how far contents drifted apart.

All is placed by shares of the width, so that the page can be made wider without being drawn anew.
What lies close together is one mark that says all of it: a page has a bounded number of marks,
however long the world.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from reunite_simulations.lanes import (
    Mark,
    Moment,
    Scale,
    Span,
    clock,
    cuts,
    lives,
    marks,
    moments,
    node_names,
    scale_of,
    short,
)
from reunite_simulations.outcome import Happening, Report

# What one mark says, in lines.
LINES_MAX: Final = 6
TICKS_MAX: Final = 12
TICK_SECONDS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)
ZOOMS: Final = (1, 2, 4, 8, 16)

# A mark's shape in a box of 16, and its class, by kind.
MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "crash": ("death", "M3 3L13 13M13 3L3 13"),
    "power": ("death", "M9.5 1L4 9h4l-1.5 6L12 7H8z"),
    "backup": ("file", "M3 8a5 5 0 1 0 2-4M5 1v3.5h3.5"),
    "copied": ("file", "M2 2h8v8H2zM6 10v4h8V6h-4"),
    "rolled": ("file", "M13 8a5 5 0 1 1-2-4M11 1v3.5H7.5"),
    "migrated": ("file", "M2 3h12v10H2zM8 3v10M10 8h3"),
    "stopped": ("stopped", "M3 3h10v10H3z"),
    "clock": ("trouble", "M8 2a6 6 0 1 0 .01 0M8 5v3.5l2.5 1.5"),
    "trouble": ("trouble", "M8 2L15 14H1zM8 6.5v3.5M8 12v.5"),
    "rejected": ("rejected low", "M8 2a6 6 0 1 0 .01 0M4 12L12 4"),
    "merged": ("merge high", "M3 1v3l5 5v6M13 1v3L8 9"),
    "lost": ("lost high", "M3 3h10M3 8h10M3 13h10M1 14L15 2"),
}


def timeline(report: Report) -> str:
    """The lanes and curves, in a box that scrolls."""
    happenings = report.happenings
    names, scale = node_names(happenings), scale_of(report)
    relays = [name for name in names if name.startswith("relay")]
    moments_by_name: dict[str, dict[int, Moment]] = {name: {} for name in names}
    for (name, place), moment in sorted(moments(report, names, scale).items()):
        moments_by_name[name][place] = moment
    most = max(
        (max(m.sent[0], m.got[0]) for each in moments_by_name.values() for m in each.values()),
        default=1,
    )
    marks_by_name = marks(report, names, scale)
    rows = [_row("axis", "", "", _axis(scale))]
    if report.faults or any(happening.kind == "fault" for happening in happenings):
        rows.append(_row("all", "faults", "", _faults(report, scale)))
    for name in names:
        own = moments_by_name[name]
        body = [_grid(scale), _flow(own, scale, most)]
        small = f"{sum(each.sent[0] for each in own.values()):,} frames"
        if name not in relays:
            small = f"{sum(each.rows for each in own.values()):,} rows"
            body += [_box(span, scale) for span in cuts(happenings, name, relays, scale)]
        body += [_box(span, scale) for span in lives(happenings, name, scale)]
        body += [_at(name, place, each, scale) for place, each in own.items()]
        body += [_mark(name, each, scale) for each in marks_by_name.get(name, ())]
        rows.append(_row("relay" if name in relays else "client", name, small, "".join(body)))
    rows += _curves(happenings, scale)
    rows.append(_row("axis", "", "", _axis(scale)))
    return (
        f'<div class="scroll" tabindex="0"><div class="time">{"".join(rows)}'
        f'<div class="rules">{"".join(_rules(happenings, scale))}</div></div></div>'
    )


def legend() -> str:
    """What the marks mean."""
    entries = [
        ('<i class="up" style="top:4px"></i>', "up"),
        ('<i class="dead" style="top:4px"></i>', "down"),
        ('<i class="cut both" style="top:0;bottom:0"></i>', "cut off from a relay"),
        ('<i class="cut mute" style="top:0;bottom:0"></i>', "it hears, and is not heard"),
        ('<i class="cut deaf" style="top:0;bottom:0"></i>', "it is heard, and hears nothing"),
        ('<i class="tick wrote"></i>', "rows written"),
        ('<i class="tick took"></i>', "rows taken in"),
        ('<i class="tick messages"></i>', "messages"),
    ]
    words = {
        "crash": "crash",
        "power": "power loss",
        "backup": "backup restored",
        "copied": "file copied",
        "rolled": "relay rolled over",
        "migrated": "column added",
        "stopped": "stopped for good",
        "clock": "clock step",
        "trouble": "other trouble",
        "merged": "edit merged",
        "lost": "edit overwritten",
        "rejected": "rejected",
    }
    entries += [(_icon(kind, ""), said) for kind, said in words.items()]
    return "".join(f'<li><span class="swatch">{mark}</span>{said}</li>' for mark, said in entries)


def symbols() -> str:
    """The shapes that marks refer to."""
    shapes = "".join(
        f'<symbol id="{kind}" viewBox="0 0 16 16" overflow="visible"><path d="{path}" fill="none"'
        ' stroke="var(--card)" stroke-width="5" stroke-linejoin="round"/>'
        f'<path d="{path}" fill="none" stroke="currentColor" stroke-width="2"'
        ' stroke-linecap="round" stroke-linejoin="round"/></symbol>'
        for kind, (_, path) in MARKS.items()
    )
    return f'<svg width="0" height="0" style="position:absolute" aria-hidden="true">{shapes}</svg>'


def _row(kind: str, name: str, small: str, body: str) -> str:
    return (
        f'<div class="row {kind}"><b>{escape(name)}<small>{escape(small)}</small></b>'
        f'<div class="lane">{body}</div></div>\n'
    )


def _ticks(scale: Scale) -> Iterator[int]:
    step = next((s for s in TICK_SECONDS if scale.end / s <= TICKS_MAX), TICK_SECONDS[-1])
    step *= math.ceil(scale.end / step / TICKS_MAX)
    yield from range(0, int(scale.end) + 1, step)


def _axis(scale: Scale) -> str:
    return "".join(
        f'<span style="left:{scale.percent(at)}">{clock(at).removesuffix(".0")}</span>'
        for at in _ticks(scale)
        if scale.share(at) < 0.98
    )


def _grid(scale: Scale) -> str:
    return "".join(
        f'<i class="grid" style="left:{scale.percent(at)}"></i>' for at in _ticks(scale) if at
    )


def _flow(moments: Mapping[int, Moment], scale: Scale, most: int) -> str:
    """Messages: sent ones above the middle, those that were sent to it below."""
    path = "".join(
        f"M{place} 50v{sign * 50 * math.log1p(count) / math.log1p(most):.0f}h1V50z"
        for place, each in sorted(moments.items())
        for sign, count in ((-1, each.sent[0]), (1, each.got[0]))
        if count
    )
    return (
        f'<svg class="flow" viewBox="0 0 {scale.moments} 100" preserveAspectRatio="none"'
        f' aria-hidden="true"><path d="{path}" fill="currentColor"/></svg>'
    )


def _box(span: Span, scale: Scale) -> str:
    width = 100 * (scale.share(span.until) - scale.share(span.since))
    style = f"left:{scale.percent(span.since)};width:{max(width, 0.1):.2f}%"
    if span.kind.startswith("cut"):
        place, strips = span.strip
        style += f";top:{100 * place / strips:.4g}%;height:{100 / strips:.4g}%"
    title = ""
    if span.said:
        said = f"{span.said}\n{clock(span.since)} to {clock(span.until)}"
        title = f' title="{escape(said)}"'
    return f'<i class="{span.kind}" style="{style}"{title}></i>'


def _at(name: str, place: int, moment: Moment, scale: Scale) -> str:
    style = f"left:{scale.percent(scale.since(place))};width:{100 / scale.moments:.2f}%"
    for letter, count in (("w", moment.rows), ("r", moment.received)):
        if count:
            style += f";--{letter}:{min(2 + 3 * math.log2(1 + count), 16):.0f}px"
    said = f"{name}, {clock(scale.since(place))} to {clock(scale.since(place + 1))}"
    return f'<i class="at" style="{style}" title="{_title(said, list(moment.lines()))}"></i>'


def _mark(name: str, mark: Mark, scale: Scale) -> str:
    said = _title(name, mark.lines)
    return _icon(mark.kind, f' style="left:{scale.percent(mark.at)}" title="{said}"')


def _icon(kind: str, attributes: str) -> str:
    # What holds the drawing is HTML: browsers show no tooltip for an attribute of an SVG.
    return f'<i class="icon {MARKS[kind][0]}"{attributes}><svg><use href="#{kind}"/></svg></i>'


def _title(first: str, lines: Sequence[str]) -> str:
    shown = [first, *(short(line) for line in lines[:LINES_MAX])]
    if len(lines) > LINES_MAX:
        shown.append(f"and {len(lines) - LINES_MAX:,} more")
    return escape("\n".join(shown))


def _faults(report: Report, scale: Scale) -> str:
    together: dict[int, list[str]] = {}
    for happening in report.happenings:
        if happening.kind == "fault":
            said = f"{clock(happening.at)}: {happening.facts[0]}"
            together.setdefault(scale.moment(happening.at), []).append(said)
    return _grid(scale) + "".join(
        f'<i class="at fault" style="left:{scale.percent(scale.since(place))};'
        f'width:{100 / scale.moments:.2f}%;--w:{min(6 + 4 * len(said), 24)}px"'
        f' title="{_title("faults that begin", said)}"></i>'
        for place, said in sorted(together.items())
    )


def _curves(happenings: Sequence[Happening], scale: Scale) -> Iterator[str]:
    looks = [
        (look.at, int(str(look.facts[0])), int(str(look.facts[1])))
        for look in happenings
        if look.kind == "look"
    ]
    if not looks:
        return
    # One content is all equal: so much of each value is the base line.
    for place, name, words, style, base, even in (
        (1, "contents", "different contents", "contents", 1, "all equal"),
        (2, "queued", "changesets queued", "queue", 0, "nothing queued"),
    ):
        values: dict[int, tuple[float, int]] = {}
        for look in looks:
            moment = scale.moment(look[0])
            value = int(look[place])
            if moment not in values or value >= values[moment][1]:
                values[moment] = (look[0], value)
        most = max(value for _, value in values.values())
        # What a look finds is drawn back to the look before.
        line = "".join(
            f"{'V' if number else 'M0 '}"
            f"{98 - 90 * max(value - base, 0) / max(most - base, 1):.1f}"
            f"H{1000 * scale.share(at):.1f}"
            for number, (at, value) in enumerate(values.values())
        )
        wide = max(100 / scale.moments, 0.5)
        hovers = "".join(
            f'<i class="at" style="left:{scale.percent(at)};width:{wide:.2f}%"'
            f' title="{clock(at)}&#10;{even if value <= base else f"{value:,} {words}"}"></i>'
            for at, value in values.values()
        )
        under = f'<path class="under of-{style}" d="{line}V100H0z"/>'
        last = looks[-1][place]
        ended = even if last <= base else f"{last:,}"
        reached = f"{words}: at most {most:,}, in the end {ended}" if most > base else even
        yield _row(
            "curve" if most > base else "curve flat",
            name,
            reached,
            f'{_grid(scale)}<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"'
            f' aria-label="{name} over time">{under}<path class="{style}" d="{line}"/></svg>'
            f'<small class="even">{even}</small>{hovers}',
        )


def _rules(happenings: Sequence[Happening], scale: Scale) -> Iterator[str]:
    for happening in happenings:
        if happening.kind in ("healed", "violation"):
            left = " left" if scale.share(happening.at) > 0.6 else ""
            said = "all heals" if happening.kind == "healed" else f"broken: {happening.facts[0]}"
            bad = "" if happening.kind == "healed" else " bad"
            yield (
                f'<div class="rule{bad}" style="left:{scale.percent(happening.at)}">'
                f'<span class="flag{left}">{escape(said)}</span></div>'
            )
    yield '<div class="rule cursor" hidden></div>'
