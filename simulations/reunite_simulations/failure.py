"""What is said of a failure: what broke, in which commit, the history, and how to see it again."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from reunite_simulations.faults import FAULTS
from reunite_simulations.history import Outcome, Transaction
from reunite_simulations.outcome import Report, Settings
from reunite_transport.console import counted, plain

# A longer statement or message is cut.
WORDS_MAX: Final = 300
_DIFFERS: Final = re.compile(r"^table .* differs on (\S+): \[", re.DOTALL)


class Broken(AssertionError):
    """A promise was broken; `report` is about the smallest world in which it is."""

    def __init__(
        self, report: Report, again: str, *, shrunk: bool = True, repeatable: bool = True
    ) -> None:
        """`again` is what to do to see it again."""
        super().__init__("\n".join(told(report, again, shrunk=shrunk, repeatable=repeatable)))
        self.report = report


def told(
    report: Report, again: str, *, shrunk: bool = True, repeatable: bool = True
) -> Iterator[str]:
    """The lines about a failure. `shrunk` says that a shorter history was looked for, `repeatable`
    that running it again made the same one."""
    for violation in report.violations[:20]:
        yield _cut(
            f"seed {report.seed} at {violation.at:.1f} s, {violation.promise}: {violation.message}"
        )
        if note := sides(violation.message):
            yield note
    yield f"reunite {commit()}"
    if not repeatable:
        yield ("not repeatable: something besides `chance` decides; what follows may not replay")
    which = "the shortest history that was found" if shrunk else "its history"
    yield f"{which}, {counted(len(report.history.events), 'event')}:"
    yield from history(report)
    yield f"run it again: {again}"


def sides(message: str) -> str:
    """Which side is which in a message about a table that differs; else empty."""
    found = _DIFFERS.search(message)
    return f"(of each row: its key, what {found[1]} has, what the relay has)" if found else ""


def history(report: Report) -> Sequence[str]:
    """Transactions and faults, a line each."""
    lines = []
    for each in report.history.events:
        if isinstance(each, Transaction):
            lines.append(f"{each.at:8.2f} s  {each.event:14} {_transaction(each)}")
        else:
            what = (FAULTS[each.kind][0].__doc__ or "").strip().partition("\n")[0]
            whom = ", ".join(each.picked)
            lines.append(
                _cut(f"{each.at:8.2f} s  {each.event:14} {whom + ': ' * bool(whom)}{what}")
            )
    return lines


def _transaction(made: Transaction) -> str:
    who = "the app" if made.own else "another program"
    ended = {
        Outcome.RETURNED: "",
        Outcome.REFUSED: f", refused ({made.refusal})",
        Outcome.UNKNOWN: ", and its process dies",
    }
    words = [_cut(" ".join(each.split())) for each in made.statements]
    return f"{who}{ended[made.outcome]}: {'; '.join(words) or 'nothing'}"


def command_line(settings: Settings, schema: Path | None = None) -> str:
    """The command that runs a world again. `schema` is the file that its schema is of."""
    words = ["reunite", "simulate"]
    if settings.database is not None:
        words += ["--database", str(settings.database.absolute())]
    elif schema is not None:
        words += ["--schema", str(schema.absolute())]
    words += ["--seed", str(settings.seed), "--replicas", str(settings.replicas)]
    if settings.backends is not None:
        words += ["--backends", str(settings.backends)]
    words += ["--relays", str(settings.relays), "--minutes", f"{settings.minutes:.10g}"]
    words += ["--faults", ",".join(settings.faults) or "none"]
    if settings.only is not None:
        words += ["--only", _events(settings)]
    return shlex.join(words)


def call(settings: Settings) -> str:
    """The Python call that does, for a test's own schema and workload."""
    return (
        f"simulate(schema, workload, {','.join(settings.faults) or 'none'!r}, {settings.seed},"
        f" replicas={settings.replicas}, relays={settings.relays}, backends={settings.backends},"
        f" minutes={settings.minutes:.10g},"
        f" only={_events(settings)!r})"
    )


def commit() -> str:
    """The commit of this code, with a mark if it was changed since; or its version."""
    here = Path(__file__).parent
    try:
        # Code that was installed below somebody's checkout is not of that checkout.
        _git(here, "ls-files", "--error-unmatch", __file__)
        return _git(here, "describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return f"version {version('reunite')}"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def _events(settings: Settings) -> str:
    return ",".join(sorted(settings.only or ())) or "none"


def _cut(words: str) -> str:
    words = plain(words)
    return words if len(words) <= WORDS_MAX else words[: WORDS_MAX - 3] + "..."
