"""The command `reunite simulate`: worlds on the user's own schema, as many seeds as wanted."""

import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Self, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from reunite.errors import FileError, ReuniteError, UsageError
from reunite_simulations import faults
from reunite_simulations.asked import (
    BACKENDS_MAX,
    MINUTES_MIN,
    RELAYS_MAX,
    REPLICAS_MAX,
    asked_seconds,
    asked_settings,
)
from reunite_simulations.failure import command_line, commit, history, told
from reunite_simulations.origin import check_database, check_schema, read_schema
from reunite_simulations.outcome import Report, Settings
from reunite_simulations.report import page
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.shrink import Smallest, look_into
from reunite_simulations.world import World
from reunite_transport.console import counted, plain

# How many seeds a run has when nobody says.
SEEDS: Final = 100
# So much of a file tells whether it is an HTML page.
PAGE_START_BYTES: Final = 200
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
    replicas: Annotated[
        int, typer.Option(min=1, max=REPLICAS_MAX, help="Clients in each world.")
    ] = 10,
    relays: Annotated[
        int, typer.Option(min=1, max=RELAYS_MAX, help="Relays that share a store.")
    ] = 2,
    backends: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=BACKENDS_MAX,
            help="Programs that write the relays' database.",
            show_default="the seed says",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=MINUTES_MIN, help="Virtual minutes until all heals.")
    ] = 60,
    seed: Annotated[int | None, typer.Option(help="Run this seed only.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Run seeds 1 to this one.", show_default=str(SEEDS)),
    ] = None,
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
    Ctrl-C ends it with what was done so far. Nothing is written but temporary files and the page.

    \b
    Examples:
      reunite simulate --minutes 5 --seeds 20
      reunite simulate --database music.db --minutes 5 --seeds 5 --report out.html
    """
    if schema is not None and database is not None:
        raise UsageError("--schema and --database are two ways to say what a world begins with")
    if seed is not None and seeds is not None:
        raise UsageError("--seed runs one seed and --seeds several; give one of them")
    if only is not None and seed is None:
        raise UsageError("--only names events of one seed: give --seed too")
    seconds = asked_seconds(shrink_seconds)
    if report is not None:
        check_target(report, [each for each in (schema, database) if each is not None])
    sql, left_out = _origin(schema, database)
    settings = asked_settings(
        sql,
        database,
        seed=seed or 0,
        replicas=replicas,
        relays=relays,
        backends=backends,
        minutes=minutes,
        faults=fault_names,
        only=only,
    )
    for table, reason in left_out.items():
        typer.echo(f"left out: {plain(table)}: {plain(reason)}", err=True)
    numbers = [seed] if seed is not None else list(range(1, (seeds or SEEDS) + 1))
    typer.echo(
        f"{counted(len(numbers), 'seed')} of {counted(replicas, 'replica')} and"
        f" {counted(relays, 'relay')}, {minutes:g} virtual minutes each",
        err=True,
    )
    # What relays log would come between the lines of the progress.
    logging.getLogger("reunite_transport").addHandler(logging.NullHandler())
    total = _Total(left_out)
    _run(settings, numbers, seconds, total)
    unwritten = _write(report, total, schema)
    if as_json:
        typer.echo(json.dumps(total.facts(schema)))
    else:
        _print(total)
    if report is not None and unwritten is None:
        typer.echo(f"the page about seed {total.seeds[-1]} is {report}", err=as_json)
    if total.small is not None:
        small = total.small
        again = command_line(small.report.settings, schema)
        for line in told(small.report, again, shrunk=small.shrunk, repeatable=small.repeatable):
            typer.echo(line, err=True)
    if total.violations and len(total.seeds) < len(numbers):
        left = counted(len(numbers) - len(total.seeds), "seed")
        typer.echo(f"{left} not run: the first that fails ends it", err=True)
    if unwritten:
        typer.echo(f"reunite: {unwritten}", err=True)
    if total.violations or (unwritten and not total.interrupted):
        raise typer.Exit(1)
    if total.interrupted:
        raise typer.Exit(130)


def _origin(schema: Path | None, database: Path | None) -> tuple[str, Mapping[str, str]]:
    """The SQL to begin with, and the tables that are left out."""
    if database is not None:
        return "", check_database(database)
    if schema is None:
        return own_schema(), {}
    sql = read_schema(schema)
    return sql, check_schema(sql, str(schema))


def _run(settings: Settings, numbers: Sequence[int], seconds: float, total: "_Total") -> None:
    """Run seeds until one fails, and look into that one; Ctrl-C ends it early."""
    number = 0
    try:
        with _Progress(total, len(numbers)) as progress:
            for number in numbers:
                total.add(run_seed(replace(settings, seed=number), progress.show))
                if total.violations:
                    break
            if total.last is not None and total.violations:
                if seconds:
                    progress.say(f"seed {number} broke a promise; looking for a shorter history")
                total.small = Smallest(total.last)
                total.small = look_into(total.last, seconds=seconds)
    except KeyboardInterrupt:
        total.interrupted = True
    except ReuniteError:
        raise
    except Exception as error:
        if _is_of_interrupt(error):
            total.interrupted = True
            return
        # Its last line names the seed.
        typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        typer.echo(f"reunite: seed {number} could not be run: {plain(repr(error))}", err=True)
        raise typer.Exit(1) from error


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first, and what was torn down then failed."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def check_target(path: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError or FileError when a page cannot or should not be written there."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {folder}"
        raise FileError(f"{path} cannot be written: {why}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise FileError(f"{path} cannot be written: permission denied")
    if not path.exists():
        return
    if any(each.exists() and each.samefile(path) for each in inputs):
        raise UsageError(f"--report {path} is what the worlds begin with; name another file")
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(PAGE_START_BYTES).lstrip().lower()
    if start and not start.startswith((b"<!doctype html", b"<html")):
        raise UsageError(f"--report {path} exists and is no HTML page; name another file")


def _write(path: Path | None, total: "_Total", schema: Path | None) -> str | None:
    """Write the page about the last seed. Returns why there is none, empty if nobody wants one."""
    if path is None:
        return ""
    shown = total.small.report if total.small is not None else total.last
    if shown is None:
        return f"{path} was not written: no seed was finished"
    try:
        path.write_text(page(shown, command_line(shown.settings, schema)), encoding="utf-8")
    except Exception as error:  # Whatever it is, what the seeds came to is not lost for it.
        return f"{path} was not written: {error}"
    return None


# Hours of a replica, rows, faults and checks by kind.
_Sum: TypeAlias = tuple[float, int, Mapping[str, int], Mapping[str, int]]


class _Total:
    """The sum of several seeds."""

    def __init__(self, left_out: Mapping[str, str]) -> None:
        self.left_out = left_out
        self.interrupted = False
        self.seeds: list[int] = []
        self.hours = 0.0
        self.rows = 0
        self.faults: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.violations: list[dict[str, object]] = []
        self.last: Report | None = None
        # Of the last, when it failed.
        self.small: Smallest | None = None
        # Of the world that runs: hours, rows, faults and checks so far.
        self.running: _Sum | None = None
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
        self.running = None

    def so_far(self) -> "_Sum":
        """With what the running world has done."""
        now = self.running or (0.0, 0, {}, {})
        return (
            self.hours + now[0],
            self.rows + now[1],
            self.faults + Counter(now[2]),
            self.checks + Counter(now[3]),
        )

    def facts(self, schema: Path | None) -> dict[str, object]:
        """For a program."""
        hours, rows, struck, checked = self.so_far()
        facts: dict[str, object] = {
            "seeds": self.seeds,
            "simulated_hours": round(hours, 3),
            "rows_written": rows,
            "trace_hash": self._hash.hexdigest(),
            "faults": dict(struck),
            "checks": dict(checked),
            "violations": self.violations,
            "left_out": dict(self.left_out),
        }
        if self.small is not None:
            facts["failure"] = {
                "commit": commit(),
                "history": history(self.small.report),
                "replay": command_line(self.small.report.settings, schema),
                "repeatable": self.small.repeatable,
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
        total.running = (world.simulated_hours, world.rows_written, world.faults, world.checks)
        every = EVERY_SECONDS if self._console.is_terminal else EVERY_SECONDS_ELSEWHERE
        if now - self._shown < every:
            return
        self._shown = now
        hours, _, struck, checked = total.so_far()
        self.say(
            f"{len(total.seeds)} of {counted(self._of, 'seed')} done,"
            f" {hours:.1f} simulated hours, {counted(sum(struck.values()), 'fault')},"
            f" {counted(sum(checked.values()), 'check')}, {now - self._began:.0f} s"
        )

    def say(self, line: str) -> None:
        """Put a line where the last one was, or below it."""
        if self._console.is_terminal:
            self._status.update(line)
        else:
            typer.echo(line, err=True)


def _print(total: _Total) -> None:
    console = Console(highlight=False, markup=False)
    hours, rows, struck, checked = total.so_far()
    for title, counts in (("fault", struck), ("promise checked", checked)):
        table = Table(title, box=None, pad_edge=False)
        table.add_column("times", justify="right")
        for name, count in sorted(counts.items()):
            table.add_row(name, f"{count:,}")
        console.print(table)
        console.print()
    done = counted(len(total.seeds), "seed")
    if total.interrupted and total.running is not None:
        done += " and a part of another"
    typer.echo(f"{done}, {hours:.1f} simulated hours of a replica, {counted(rows, 'row')} written")
    sys.stdout.flush()
