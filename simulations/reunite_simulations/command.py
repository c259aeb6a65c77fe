"""The command `reunite simulate`: worlds on the user's own schema, as many seeds as wanted."""

import json
import logging
import sqlite3
import sys
import time
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Self

import typer
from rich.console import Console
from rich.table import Table

from reunite.errors import FileError, UsageError
from reunite_simulations import faults
from reunite_simulations.chance import named_events
from reunite_simulations.failure import command_line, commit, history, told
from reunite_simulations.report import page
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.shrink import shrink
from reunite_simulations.world import Report, Settings, World
from reunite_transport.console import counted

FAULTS_HELP: Final = f"Which may happen, with commas: {', '.join(faults.GROUPS)}, all, none."

# How often the progress is told: at a terminal, and where lines stay.
EVERY_SECONDS: Final = 0.2
EVERY_SECONDS_ELSEWHERE: Final = 5.0


def simulate(
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE.sql", help="SQL that makes the tables and rows.")
    ] = None,
    database: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An SQLite file to begin with; not changed.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=100, help="Clients in each world.")] = 10,
    relays: Annotated[int, typer.Option(min=1, max=20, help="Relays that share a store.")] = 2,
    minutes: Annotated[float, typer.Option(min=0.1, help="Virtual minutes until all heals.")] = 60,
    seed: Annotated[int | None, typer.Option(help="Run this seed only.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run seeds 1 to this one.")] = 100,
    fault_names: Annotated[str, typer.Option("--faults", metavar="LIST", help=FAULTS_HELP)] = "all",
    only: Annotated[
        str | None, typer.Option(metavar="EVENTS", help="Let only these happen; needs --seed.")
    ] = None,
    shrink_seconds: Annotated[
        float, typer.Option(min=0, help="How long to look for a shorter history of a failure.")
    ] = 120,
    report: Annotated[
        Path | None, typer.Option(metavar="out.html", help="Write a page about the last seed.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for a program.")
    ] = False,
) -> None:
    """Run your schema through partitions, crashes and wrong clocks, in virtual time.

    Everything is production's code; one seed decides all. Exits with 1 when a promise was broken,
    with the seed, the commit, the shortest history that was found and the command that replays it.
    Ctrl-C ends it with what was done so far. Nothing outside a temporary folder is written.

    \b
    Examples:
      reunite simulate --minutes 5 --seeds 20
      reunite simulate --database music.db --faults partition,crash --report out.html
    """
    if schema is not None and database is not None:
        raise UsageError("--schema and --database are two ways to say what a world begins with")
    try:
        drawn = faults.named(fault_names)
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings = Settings(
        seed=0,
        schema=_schema(schema) if database is None else "",
        database=_checked(database),
        replicas=replicas,
        relays=relays,
        minutes=minutes,
        faults=drawn,
    )
    if only is not None:
        if seed is None:
            raise UsageError("--only names events of one seed: give --seed too")
        settings = replace(settings, only=named_events(only))
    numbers = [seed] if seed is not None else list(range(1, seeds + 1))
    # What relays log would come between the lines of the progress.
    logging.getLogger("reunite_transport").addHandler(logging.NullHandler())
    total = _Total()
    interrupted = False
    try:
        with _Progress(total, len(numbers)) as progress:
            for number in numbers:
                total.add(run_seed(replace(settings, seed=number), progress.show))
                if total.violations:
                    break
            if total.last is not None and total.violations and shrink_seconds:
                broken = total.last.seed
                progress.say(f"seed {broken} broke a promise; looking for a shorter history")
                total.small = shrink(total.last, seconds=shrink_seconds)
    except KeyboardInterrupt:
        interrupted = True
    if report is not None and total.last is not None:
        shown = total.small or total.last
        again = command_line(shown.settings, schema)
        report.write_text(page(shown, again), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(total.facts(schema)))
    else:
        _print(total, report)
    if total.violations:
        made = total.small or total.last
        assert made is not None
        for line in told(made, command_line(made.settings, schema)):
            typer.echo(line, err=True)
        raise typer.Exit(1)
    if interrupted:
        raise typer.Exit(130)


class _Total:
    """The sum of several seeds."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.hours = 0.0
        self.rows = 0
        self.faults: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.violations: list[dict[str, object]] = []
        self.last: Report | None = None
        # Of the last, when it failed and was shrunk.
        self.small: Report | None = None
        self._hash = sha256()

    def add(self, made: Report) -> None:
        """Take in one seed's report."""
        self.seeds.append(made.seed)
        self.hours += made.simulated_hours
        self.rows += made.rows_written
        self.faults.update(made.faults)
        self.checks.update(made.checks)
        self._hash.update(made.trace_hash.encode())
        self.violations += [
            {"seed": made.seed, "promise": v.promise, "at": v.at, "message": v.message}
            for v in made.violations
        ]
        self.last = made

    def facts(self, schema: Path | None) -> dict[str, object]:
        """For a program."""
        facts: dict[str, object] = {
            "seeds": self.seeds,
            "simulated_hours": round(self.hours, 3),
            "rows_written": self.rows,
            "trace_hash": self._hash.hexdigest(),
            "faults": dict(self.faults),
            "checks": dict(self.checks),
            "violations": self.violations,
        }
        made = self.small or self.last
        if made is not None and made.violations:
            facts["failure"] = {
                "commit": commit(),
                "history": history(made),
                "replay": command_line(made.settings, schema),
            }
        return facts


class _Progress:
    """The line that says how far it is: over and over at a terminal, now and then elsewhere."""

    def __init__(self, total: _Total, of: int) -> None:
        self._total = total
        self._of = of
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._status = self._console.status("")
        self._began = time.monotonic()
        self._shown = self._began

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._status.stop()

    def show(self, world: World) -> None:
        """Say how far it is, while a world runs."""
        now, total = time.monotonic(), self._total
        every = EVERY_SECONDS if self._console.is_terminal else EVERY_SECONDS_ELSEWHERE
        if now - self._shown < every:
            return
        self._shown = now
        struck = sum(total.faults.values()) + sum(world.faults.values())
        checked = sum(total.checks.values()) + sum(world.checks.values())
        self.say(
            f"{len(total.seeds)} of {counted(self._of, 'seed')} done,"
            f" {total.hours + world.simulated_hours:.1f} simulated hours,"
            f" {counted(struck, 'fault')}, {counted(checked, 'check')}, {now - self._began:.0f} s"
        )

    def say(self, line: str) -> None:
        """Put a line where the last one was, or below it."""
        if self._console.is_terminal:
            self._status.update(line)
        else:
            typer.echo(line, err=True)


def _print(total: _Total, report: Path | None) -> None:
    console = Console(highlight=False, markup=False)
    for title, counts in (("fault", total.faults), ("promise checked", total.checks)):
        table = Table(title, box=None, pad_edge=False)
        table.add_column("times", justify="right")
        for name, count in sorted(counts.items()):
            table.add_row(name, f"{count:,}")
        console.print(table)
        console.print()
    typer.echo(
        f"{counted(len(total.seeds), 'seed')}, {total.hours:.1f} simulated hours of a replica,"
        f" {counted(total.rows, 'row')} written"
    )
    if report is not None and total.seeds:
        typer.echo(f"the page about seed {total.seeds[-1]} is {report}")
    sys.stdout.flush()


def _schema(path: Path | None) -> str:
    if path is None:
        return own_schema()
    try:
        text = path.read_text(encoding="utf-8")
        conn = sqlite3.connect(":memory:")
        conn.executescript(text)
        conn.close()
    except (OSError, UnicodeError, sqlite3.Error) as error:
        raise FileError(f"{path} cannot be used as a schema: {error}") from error
    return text


def _checked(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        tracked = conn.execute(
            "SELECT 1 FROM sqlite_master WHERE name = '_reunite_meta'"
        ).fetchone()
        conn.close()
    except sqlite3.Error as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    if tracked:
        raise FileError(f"{path} is tracked already; simulate begins with a file that is not")
    return path
