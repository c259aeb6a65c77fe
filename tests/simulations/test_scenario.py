"""`simulate` inside a test of the user's own."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from reunite_simulations import Broken, Mix, simulate
from reunite_simulations.canaries import CANARIES

SCHEMA = "CREATE TABLE note (id INTEGER PRIMARY KEY, words TEXT); INSERT INTO note VALUES (1, 'x');"


def write(conn: sqlite3.Connection, chance: Random) -> None:
    conn.execute("INSERT INTO note VALUES (?, ?)", (chance.getrandbits(60), "new"))


def rename(conn: sqlite3.Connection, chance: Random) -> None:
    conn.execute("UPDATE note SET words = ?", (f"w{chance.randrange(1000)}",))


def test_a_users_own_transactions_run_by_their_weights() -> None:
    report = simulate(SCHEMA, [write, (rename, 3.0)], "partition", 1, replicas=2, minutes=2)
    said = [line for made in report.history.transactions for line in made.statements]
    renames = sum(line.startswith("UPDATE note") for line in said)
    assert renames > sum(line.startswith("INSERT INTO note") for line in said) > 0
    assert report.faults.keys() <= {"partition", "island"}


def test_a_transaction_that_is_refused_is_no_failure() -> None:
    def refused(conn: sqlite3.Connection, _chance: Random) -> None:
        conn.execute("INSERT INTO note VALUES (1, 'again')")

    report = simulate(SCHEMA, refused, "none", 2, replicas=2, minutes=1)
    assert {made.refusal for made in report.history.transactions} == {"IntegrityError"}


def test_a_database_and_a_mix_are_a_scenario_too(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as conn:
        conn.executescript(SCHEMA)
    conn.close()
    report = simulate(path, Mix(insert=1, update=1, delete=0), ["crash"], 3, replicas=2, minutes=1)
    assert report.rows_written > 0


def test_a_broken_promise_is_an_assertion_that_says_how_to_see_it_again() -> None:
    with CANARIES["shows-without-merging"]():
        with pytest.raises(Broken, match="seed 1 at ") as caught:
            simulate(SCHEMA, [write, rename], "none", 1, replicas=3, minutes=1, shrink_seconds=0)
        settings = caught.value.report.settings
        said = str(caught.value)
        assert "simulate(schema, workload, 'none', 1, replicas=3" in said
        only = ",".join(sorted(settings.only or ()))
        assert only in said
        again = simulate(
            SCHEMA, [write, rename], "none", 1, replicas=3, minutes=1, only=only, check=False
        )
        assert again.violations == caught.value.report.violations


def test_the_example_runs() -> None:
    example = Path(__file__).parents[2] / "examples" / "test_groceries.py"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(example)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
