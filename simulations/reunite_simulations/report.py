"""The report: one HTML page about one seed, which needs nothing beside itself.

A lane for each client and relay, partitions shaded, what happened as marks that say more when the
pointer rests on them; below, how many different contents there were, and how much was queued.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from reunite_simulations.world import Happening, Report, Settings

WIDTH: Final = 1400
LANE: Final = 26
LEFT: Final = 130
# Marks by kind: a colour, and how far from the lane's middle.
MARKS: Final = {
    "wrote": ("#2a7", -5),
    "refused": ("#a80", -5),
    "received": ("#37c", 5),
    "rejected": ("#c22", 0),
    "died": ("#000", 0),
    "started": ("#888", 0),
    "live": ("#9cf", 8),
    "replay": ("#c6c", 8),
    "copied": ("#a0a", 0),
    "stopped": ("#f00", 0),
}


def page(report: Report, settings: Settings) -> str:
    """The page's HTML."""
    names = _names(report.happenings)
    end = max((happening.at for happening in report.happenings), default=1.0) or 1.0
    height = LANE * len(names) + 30
    broken = "".join(
        f"<li>{v.at:.1f} s, <b>{escape(v.promise)}</b>: {escape(v.message)}</li>"
        for v in report.violations
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>reunite simulate, seed {report.seed}</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 24px; color: #222 }}
table {{ border-collapse: collapse; margin-right: 40px; display: inline-table }}
td, th {{ padding: 2px 10px 2px 0; text-align: left; vertical-align: top }}
svg {{ background: #fafafa; border: 1px solid #ddd; max-width: 100%; height: auto }}
.bad {{ color: #b00 }} h2 {{ font-size: 16px; margin-top: 28px }}
</style>
<h1>Seed {report.seed}</h1>
<p>{len(names)} nodes, {report.simulated_hours:.2f} simulated hours of a replica,
{report.transactions:,} transactions, {report.rows_written:,} rows written; trace
<code>{report.trace_hash[:16]}</code>.
{'<b class="bad">A promise was broken.</b>' if broken else "Every promise was kept."}</p>
<ul class="bad">{broken}</ul>
<h2>What happened</h2>
<p>{" ".join(_legend())} shaded: cut off from a relay</p>
<svg viewBox="0 0 {WIDTH} {height}" role="img">
{"".join(_lanes(names))}{"".join(_cuts(report.happenings, names, end))}
{"".join(_marks(report.happenings, names, end))}{"".join(_axis(end, height))}
</svg>
<h2>Different contents, and changesets queued, over time</h2>
<svg viewBox="0 0 {WIDTH} 150" role="img">{"".join(_curves(report.happenings, end))}
{"".join(_axis(end, 150))}</svg>
<h2>Counts</h2>
{_table("fault", report.faults)}{_table("promise checked", report.checks)}
<h2>Rejected</h2>
<table><tr><th>at</th><th>client</th><th>reason</th><th>rows</th></tr>
{"".join(_rejected(report.happenings))}</table>
<p>Run it again: <code>reunite simulate --seed {report.seed} --replicas {settings.replicas}
--relays {settings.relays} --minutes {settings.minutes:g}
--faults {",".join(settings.faults)}</code> with the same schema.</p></html>
"""


def _names(happenings: Sequence[Happening]) -> dict[str, int]:
    found = {
        str(fact)
        for happening in happenings
        for fact in happening.facts[:2]
        if isinstance(fact, str) and fact.startswith(("client", "relay")) and "-" not in fact[:7]
        if happening.kind not in ("fault", "violation")
    }
    return {name: place for place, name in enumerate(sorted(found))}


def _x(at: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - 20) * at / end


def _lanes(names: dict[str, int]) -> Iterator[str]:
    for name, place in names.items():
        y = LANE * place + LANE / 2 + 4
        yield f'<text x="8" y="{y + 4}" font-size="12">{escape(name)}</text>'
        yield f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y}" y2="{y}" stroke="#ddd"/>'


def _cuts(happenings: Sequence[Happening], names: dict[str, int], end: float) -> Iterator[str]:
    open_since: dict[tuple[object, object], float] = {}
    for happening in happenings:
        if happening.kind == "cut":
            open_since.setdefault((happening.facts[0], happening.facts[1]), happening.at)
        elif happening.kind in ("mend", "healed"):
            wanted = {happening.facts[:2], happening.facts[1::-1]}
            for pair in list(open_since):
                if happening.kind == "healed" or pair in wanted:
                    since = open_since.pop(pair)
                    yield from _shade(pair, since, happening.at, names, end)


def _shade(
    pair: tuple[object, object], since: float, until: float, names: dict[str, int], end: float
) -> Iterator[str]:
    for name in map(str, pair):
        if name.startswith("client") and name in names:
            left, right = _x(since, end), _x(until, end)
            yield (
                f'<rect x="{left:.1f}" y="{LANE * names[name] + 6}" width="{right - left:.1f}"'
                f' height="{LANE - 4}" fill="#fc9" opacity="0.35">'
                f"<title>{escape(str(pair[0]))} does not reach {escape(str(pair[1]))},"
                f" {since:.1f} to {until:.1f} s</title></rect>"
            )


def _marks(happenings: Sequence[Happening], names: dict[str, int], end: float) -> Iterator[str]:
    for happening in happenings:
        if happening.kind in MARKS and happening.facts and str(happening.facts[0]) in names:
            colour, up = MARKS[happening.kind]
            y = LANE * names[str(happening.facts[0])] + LANE / 2 + 4 + up
            said = escape(f"{happening.at:.2f} s {happening.kind} {happening.facts}"[:400])
            yield (
                f'<circle cx="{_x(happening.at, end):.1f}" cy="{y}" r="2.5" fill="{colour}">'
                f"<title>{said}</title></circle>"
            )


def _axis(end: float, height: float) -> Iterator[str]:
    for part in range(11):
        at = end * part / 10
        yield (
            f'<text x="{_x(at, end):.0f}" y="{height - 6}" font-size="10" fill="#888"'
            f' text-anchor="middle">{at:.0f} s</text>'
        )


def _curves(happenings: Sequence[Happening], end: float) -> Iterator[str]:
    looks = [happening for happening in happenings if happening.kind == "look"]
    for place, (name, colour) in enumerate((("different", "#c22"), ("queued", "#37c"))):
        values = [(look.at, float(str(look.facts[place]))) for look in looks]
        most = max((value for _, value in values), default=0) or 1
        points = " ".join(
            f"{_x(at, end):.1f},{125 - 110 * value / most:.1f}" for at, value in values
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colour}"/>'
        yield (
            f'<text x="8" y="{20 + 18 * place}" font-size="12" fill="{colour}">{name}:'
            f" up to {most:.0f}</text>"
        )


def _legend() -> Iterator[str]:
    for name, (colour, _) in MARKS.items():
        yield f'<span style="color:{colour}">&#9679;</span> {name}'


def _table(title: str, counts: object) -> str:
    assert isinstance(counts, dict)
    lines = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{count:,}</td></tr>"
        for name, count in sorted(counts.items())
    )
    return f"<table><tr><th>{escape(title)}</th><th>times</th></tr>{lines}</table>"


def _rejected(happenings: Sequence[Happening]) -> Iterator[str]:
    for happening in happenings:
        if happening.kind == "rejected":
            client, reason, rows = happening.facts
            yield (
                f"<tr><td>{happening.at:.1f} s</td><td>{escape(str(client))}</td>"
                f"<td>{escape(str(reason))}</td><td>{escape(str(rows)[:300])}</td></tr>"
            )
