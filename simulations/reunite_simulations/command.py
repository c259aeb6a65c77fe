"""The command `reunite simulate`: worlds on the user's own schema, as many seeds as wanted."""

import json
import sqlite3
import sys
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from reunite.errors import FileError, UsageError
from reunite_simulations import faults
from reunite_simulations.report import page
from reunite_simulations.simulate import own_schema, run_seeds
from reunite_simulations.world import Report, Settings
from reunite_transport.console import counted

FAULTS_HELP: Final = f"Which may happen, with commas: {', '.join(faults.GROUPS)}, all, none."


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
    seeds: Annotated[int, typer.Option(min=1, help="Run seeds 1 to this one.")] = 1,
    fault_names: Annotated[str, typer.Option("--faults", metavar="LIST", help=FAULTS_HELP)] = "all",
    report: Annotated[
        Path | None, typer.Option(metavar="out.html", help="Write a page about the last seed.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for a program.")
    ] = False,
) -> None:
    """Run your schema through partitions, crashes and wrong clocks, in virtual time.

    Everything is production's code; one seed decides all. Exits with 1 when a promise was broken,
    and names the seed, which can be run again. Nothing outside a temporary folder is written.

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
    numbers = [seed] if seed is not None else list(range(1, seeds + 1))
    total = _Total()
    progress = Console(stderr=True)
    began = time.monotonic()
    with progress.status("") as status:
        for made in run_seeds(settings, numbers):
            total.add(made)
            status.update(total.line(len(numbers), time.monotonic() - began))
            if made.violations:
                break
    assert total.last is not None
    if report is not None:
        report.write_text(page(total.last, settings), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(total.facts()))
    else:
        _print(total, report)
    if total.violations:
        raise typer.Exit(1)


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

    def line(self, of: int, seconds: float) -> str:
        """How far it is."""
        return (
            f"seed {len(self.seeds)} of {of}, {self.hours:.1f} simulated hours,"
            f" {counted(sum(self.faults.values()), 'fault')},"
            f" {counted(sum(self.checks.values()), 'check')}, {seconds:.0f} s"
        )

    def facts(self) -> dict[str, object]:
        """For a program."""
        return {
            "seeds": self.seeds,
            "simulated_hours": round(self.hours, 3),
            "rows_written": self.rows,
            "trace_hash": self._hash.hexdigest(),
            "faults": dict(self.faults),
            "checks": dict(self.checks),
            "violations": self.violations,
        }


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
    if report is not None:
        typer.echo(f"the page about seed {total.seeds[-1]} is {report}")
    for violation in total.violations[:20]:
        typer.echo(
            f"seed {violation['seed']} at {violation['at']:.1f} s, {violation['promise']}:"
            f" {violation['message']}",
            err=True,
        )
    if total.violations:
        typer.echo(f"run it again with --seed {total.violations[0]['seed']}", err=True)
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
