"""`reunite simulate`: what it prints, writes and refuses."""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CHINOOK = Path(__file__).parents[3] / "shared" / "data" / "chinook.sqlite"


COMMAND = [sys.executable, "-m", "reunite_transport", "simulate"]
# The same command with an engine that is broken on purpose.
BROKEN = """
import sys
from reunite_simulations.canaries import CANARIES
from reunite_transport.__main__ import main
sys.argv[0] = "reunite"
with CANARIES["knows-duplicates-by-number"]():
    main()
"""


def simulate(
    *arguments: str | Path, command: Sequence[str] = COMMAND
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )


def test_a_schema_of_the_users_own_is_simulated_and_reported(tmp_path: Path) -> None:
    schema, page = tmp_path / "my schema.sql", tmp_path / "out.html"
    schema.write_text(
        'CREATE TABLE "my table" (id TEXT PRIMARY KEY, "a column" INTEGER, price DECIMAL(10,2));'
    )
    ran = simulate(
        *("--schema", schema, "--replicas", "3", "--minutes", "1", "--seeds", "2"),
        *("--report", page, "--json"),
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["seeds"] == [1, 2]
    assert found["violations"] == []
    assert found["simulated_hours"] > 0
    assert len(found["trace_hash"]) == 64
    assert found["checks"]["convergence"] > 4
    html = page.read_text()
    assert "Every promise was kept" in html
    assert "--schema" in html


def test_one_seed_is_run_again_the_same(tmp_path: Path) -> None:
    told = [simulate("--seed", "7", "--replicas", "3", "--minutes", "1", "--json") for _ in "ab"]
    assert told[0].stdout == told[1].stdout != ""


@pytest.mark.skipif(not CHINOOK.exists(), reason="the Chinook sample database is not here")
def test_a_database_that_nobody_wrote_for_it_is_simulated_and_left_alone() -> None:
    before = CHINOOK.read_bytes()
    ran = simulate(
        "--database", CHINOOK, "--replicas", "3", "--minutes", "0.5", "--seeds", "1", "--json"
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["violations"] == []
    assert CHINOOK.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--faults", "rain"], 2, "'rain' is no fault"),
        (["--schema", "a.sql", "--database", "b.db"], 2, "two ways"),
        (["--schema", "absent.sql"], 1, "absent.sql cannot be used"),
        (["--database", "absent.db"], 1, "absent.db cannot be read"),
        (["--replicas", "0"], 2, "replicas"),
        (["--only", "crash:1"], 2, "give --seed too"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: list[str], code: int, said: str) -> None:
    ran = simulate(*arguments)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_violation_is_told_with_its_seed_commit_history_and_what_replays_it() -> None:
    broken = [sys.executable, "-c", BROKEN, "simulate"]
    arguments = ["--replicas", "5", "--minutes", "2", "--faults", "copy,crash,clock"]
    ran = simulate(*arguments, "--shrink-seconds", "8", "--seeds", "30", "--json", command=broken)
    assert ran.returncode == 1, ran.stderr
    found = json.loads(ran.stdout)
    violation, failure = found["violations"][0], found["failure"]
    assert violation["seed"] == found["seeds"][-1]
    assert violation.keys() == {"seed", "promise", "at", "message"}
    assert failure["commit"]
    assert f"commit {failure['commit']}" in ran.stderr
    assert failure["history"]
    assert failure["replay"] in ran.stderr
    reunite, simulates, *again = shlex.split(failure["replay"])
    assert (reunite, simulates) == ("reunite", "simulate")
    replayed = simulate(*again, "--shrink-seconds", "0", command=broken)
    assert replayed.returncode == 1
    told, retold = (text.partition("run it again:")[0] for text in (ran.stderr, replayed.stderr))
    assert told.endswith(retold)
    assert simulate(*again).returncode == 0


def test_an_interrupted_run_says_what_was_done() -> None:
    with subprocess.Popen(
        [*COMMAND, "--minutes", "1", "--replicas", "2", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "of 100 seeds done" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate()
    assert process.returncode == 130
    assert json.loads(told)["seeds"] == list(range(1, len(json.loads(told)["seeds"]) + 1))


def test_a_file_that_is_tracked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tracked.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE _reunite_meta (name)")
    conn.close()
    ran = simulate("--database", path)
    assert ran.returncode == 1
    assert "tracked already" in ran.stderr
