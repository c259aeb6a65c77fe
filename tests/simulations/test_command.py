"""`reunite simulate`: what it prints, writes and refuses."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

CHINOOK = Path(__file__).parents[3] / "shared" / "data" / "chinook.sqlite"


def simulate(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "reunite_transport", "simulate", *map(str, arguments)],
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
    assert html.count("<svg") == 2
    assert "http" not in html.replace("http://www.w3.org", "")


def test_one_seed_is_run_again_the_same(tmp_path: Path) -> None:
    told = [simulate("--seed", "7", "--replicas", "3", "--minutes", "1", "--json") for _ in "ab"]
    assert told[0].stdout == told[1].stdout != ""


@pytest.mark.skipif(not CHINOOK.exists(), reason="the Chinook sample database is not here")
def test_a_database_that_nobody_wrote_for_it_is_simulated_and_left_alone() -> None:
    before = CHINOOK.read_bytes()
    ran = simulate("--database", CHINOOK, "--replicas", "3", "--minutes", "0.5", "--json")
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
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: list[str], code: int, said: str) -> None:
    ran = simulate(*arguments)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_file_that_is_tracked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tracked.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE _reunite_meta (name)")
    conn.close()
    ran = simulate("--database", path)
    assert ran.returncode == 1
    assert "tracked already" in ran.stderr
