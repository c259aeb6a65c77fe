"""A scenario for a test of the user's own: their schema, their transactions, our faults."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reunite.errors import UsageError
from reunite_simulations import failure
from reunite_simulations.asked import asked_seconds, asked_settings
from reunite_simulations.origin import SQLITE_MAGIC, check_database, check_schema, read_schema
from reunite_simulations.outcome import Report
from reunite_simulations.own import guard
from reunite_simulations.seeds import run_seed
from reunite_simulations.shrink import look_into
from reunite_simulations.transactions import Workload

# A longer text is no path.
PATH_MAX: Final = 1_000


def simulate(
    schema: str | Path,
    workload: Workload | None = None,
    faults: str | Sequence[str] = "all",
    seed: int = 1,
    *,
    replicas: int = 5,
    relays: int = 2,
    backends: int | None = None,
    minutes: float = 5.0,
    only: str | None = None,
    check: bool = True,
    shrink_seconds: float = 60.0,
) -> Report:
    """Run one seed's world on a schema, and check every promise.

    `schema` is SQL, or the path of a file: SQL, or an SQLite database whose schema and rows the
    world begins with. The file and its folder are not changed.
    `workload` is a `Mix` of random writes, a transaction of the user's own, or a list of such, each
    alone or with its weight. A transaction is a function of an `sqlite3.Connection` and a
    `random.Random`, from which it must take all that it chooses. It runs SQL, and neither begins
    nor commits; an `sqlite3.Error` that it lets out rolls it back and is no failure.

    `backends` are programs that write the relays' database with a mix's SQL, where there is no
    transaction of the user's own; None lets the seed say how many.

    `faults` are kinds or groups of faults, or "all" or "none". `only` names the events that
    happen, as a failure tells them.

    Raises Broken, an AssertionError, when a promise is broken: with the seed, the commit, the
    shortest history that was found in `shrink_seconds`, and the call that replays it. With
    `check=False` the report is returned whatever it says.

    Raises UsageError or FileError for what cannot be run, and when one of the transactions ended
    the transaction itself, or its SQL was wrong at every call. What else a transaction raises comes
    out as it is, with a note that names the seed and the event.
    """
    _refuse_inside_a_loop()
    seconds = asked_seconds(shrink_seconds)
    guarded, watch = guard(workload)
    settings = asked_settings(
        *_origin(schema),
        seed=seed,
        replicas=replicas,
        relays=relays,
        backends=backends,
        minutes=minutes,
        faults=faults,
        only=only,
        workload=guarded,
    )
    try:
        report = run_seed(settings)
    except Exception:
        watch.check(seed)
        raise
    watch.check(seed)
    if check and report.violations:
        small = look_into(report, seconds=seconds)
        raise failure.Broken(
            small.report,
            failure.call(small.report.settings),
            shrunk=small.shrunk,
            repeatable=small.repeatable,
        )
    if not report.violations:
        watch.check_refusals()
    return report


def _origin(schema: object) -> tuple[str, Path | None]:
    """The SQL or the database that a world begins with, checked."""
    if isinstance(schema, str) and (path := _path(schema)) is not None:
        schema = path
    if isinstance(schema, str):
        check_schema(schema)
        return schema, None
    if not isinstance(schema, Path):
        raise UsageError(f"a schema is SQL or a pathlib.Path, not a {type(schema).__name__}")
    if _is_sql_file(schema):
        sql = read_schema(schema)
        check_schema(sql, str(schema))
        return sql, None
    check_database(schema)
    return "", schema


def _path(text: str) -> Path | None:
    if not text.strip() or len(text) > PATH_MAX or "\n" in text or "\0" in text:
        return None
    try:
        return Path(text) if Path(text).is_file() else None
    except OSError:
        return None


def _is_sql_file(path: Path) -> bool:
    if path.suffix.lower() != ".sql" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC


def _refuse_inside_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise UsageError(
        "simulate runs an event loop of its own; call it from a function that is not async"
    )
