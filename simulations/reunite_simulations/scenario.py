"""A scenario for a test of the user's own: their schema, their transactions, our faults."""

from collections.abc import Sequence
from pathlib import Path

from reunite_simulations import failure
from reunite_simulations.chance import named_events
from reunite_simulations.faults import named
from reunite_simulations.seeds import run_seed
from reunite_simulations.shrink import shrink
from reunite_simulations.transactions import Workload
from reunite_simulations.workload import Mix
from reunite_simulations.world import Report, Settings


def simulate(
    schema: str | Path,
    workload: Workload | None = None,
    faults: str | Sequence[str] = "all",
    seed: int = 1,
    *,
    replicas: int = 5,
    relays: int = 2,
    minutes: float = 5.0,
    only: str | None = None,
    check: bool = True,
    shrink_seconds: float = 60.0,
) -> Report:
    """Run one seed's world on a schema, and check every promise.

    `schema` is SQL, or the path of an SQLite file whose schema and rows the world begins with.
    `workload` is a `Mix` of random writes, a transaction of the user's own, or a list of such, each
    alone or with its weight. A transaction is a function of an `sqlite3.Connection` and a
    `random.Random`, from which it must take all that it chooses. It runs SQL, and neither begins
    nor commits; an `sqlite3.Error` that it lets out rolls it back and is no failure.

    `faults` are kinds or groups of faults, or "all" or "none". `only` names the events that
    happen, as a failure tells them.

    Raises Broken, an AssertionError, when a promise is broken: with the seed, the commit, the
    shortest history that was found in `shrink_seconds`, and the call that replays it. With
    `check=False` the report is returned whatever it says.
    """
    words = faults if isinstance(faults, str) else ",".join(faults)
    report = run_seed(
        Settings(
            seed=seed,
            schema=schema if isinstance(schema, str) else "",
            database=None if isinstance(schema, str) else schema,
            replicas=replicas,
            relays=relays,
            minutes=minutes,
            faults=named(words),
            only=None if only is None else named_events(only),
            workload=Mix() if workload is None else workload,
        )
    )
    if check and report.violations:
        small = shrink(report, seconds=shrink_seconds)
        raise failure.Broken(small, failure.call(small.settings))
    return report
