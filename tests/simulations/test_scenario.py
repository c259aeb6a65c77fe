"""`simulate` inside a test of the user's own."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from reunite.errors import FileError, UsageError
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
    def refused_now_and_then(conn: sqlite3.Connection, chance: Random) -> None:
        conn.execute("INSERT INTO note VALUES (?, 'again')", (chance.choice((1, 2, 3)),))

    report = simulate(SCHEMA, refused_now_and_then, "none", 2, replicas=2, minutes=1)
    assert {made.refusal for made in report.history.transactions} == {"IntegrityError", ""}


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
        assert "\nreunite " in said
        assert "its history, " in said
        assert "simulate(schema, workload, 'none', 1, replicas=3" in said
        only = ",".join(sorted(settings.only or ()))
        assert only in said
        again = simulate(
            SCHEMA, [write, rename], "none", 1, replicas=3, minutes=1, only=only, check=False
        )
        assert again.violations == caught.value.report.violations


def fails(conn: sqlite3.Connection, chance: Random) -> None:
    write(conn, chance)
    raise ValueError("a bug of the user's own")


def asserts(_conn: sqlite3.Connection, _chance: Random) -> None:
    raise AssertionError("too many notes")


@pytest.mark.parametrize(("own", "error"), [(fails, ValueError), (asserts, AssertionError)])
def test_an_error_of_a_users_own_transaction_comes_out_as_it_is(
    own: Callable[[sqlite3.Connection, Random], None], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        simulate(SCHEMA, [write, own], "partition,crash", 4, replicas=3, minutes=4)
    assert not isinstance(caught.value, Broken)
    assert caught.traceback[-1].name == own.__name__
    first, second, *_ = caught.value.__notes__
    assert first.startswith(f"in the transaction {own.__name__}, event client")
    assert second == "of reunite's simulation, seed 4"


def commits(conn: sqlite3.Connection, chance: Random) -> None:
    write(conn, chance)
    conn.commit()


def commits_in_sql(conn: sqlite3.Connection, chance: Random) -> None:
    write(conn, chance)
    conn.execute("COMMIT")


def runs_a_script(conn: sqlite3.Connection, _chance: Random) -> None:
    conn.executescript("UPDATE note SET words = 'script'; UPDATE no_such_table SET x = 1")


def uses_with(conn: sqlite3.Connection, chance: Random) -> None:
    with conn:
        write(conn, chance)


def closes(conn: sqlite3.Connection, _chance: Random) -> None:
    conn.close()


@pytest.mark.parametrize("own", [commits, commits_in_sql, runs_a_script, uses_with, closes])
def test_a_transaction_that_ends_itself_is_the_users_mistake(
    own: Callable[[sqlite3.Connection, Random], None],
) -> None:
    with pytest.raises(UsageError, match=f"{own.__name__} ended the transaction"):
        simulate(SCHEMA, [write, own], "none", 1, replicas=2, minutes=1)


def test_a_transaction_that_is_refused_every_time_is_the_users_mistake() -> None:
    def mistyped(conn: sqlite3.Connection, _chance: Random) -> None:
        conn.execute("INSERT INTO nope VALUES (1)")

    with pytest.raises(UsageError, match=r"mistyped was refused at each .* no such table: nope"):
        simulate(SCHEMA, [write, mistyped], "none", 1, replicas=2, minutes=2)


def test_a_row_factory_lasts_for_one_transaction() -> None:
    def by_name(conn: sqlite3.Connection, _chance: Random) -> None:
        conn.row_factory = sqlite3.Row
        conn.execute(
            "UPDATE note SET words = ?", (str(conn.execute("SELECT 1 AS x").fetchone()["x"]),)
        )

    assert simulate(SCHEMA, by_name, "none", 1, replicas=2, minutes=1).rows_written > 0


async def is_async(_conn: sqlite3.Connection, _chance: Random) -> None:
    pass


def generates(_conn: sqlite3.Connection, _chance: Random) -> Any:
    yield


def takes_nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        (is_async, "is_async is async"),
        (generates, "generates is a generator"),
        (takes_nothing, "takes_nothing cannot be called with"),
        (lambda conn, chance: is_async(conn, chance), "returned <coroutine"),
        (lambda conn, chance: generates(conn, chance), "returned <generator"),
        ("write", "'write' is no transaction"),
        ([], "the workload is empty"),
        ((write, 3.0), "stands in a list"),
        ([(write, 0)], "write has the weight 0"),
        ([(write, float("nan"))], "write has the weight nan"),
        ([(write,)], "is no pair"),
        ([Mix()], "is no transaction"),
        (Mix(rows_max=0), "Mix.rows_max is 0"),
        (Mix(insert=-1), "Mix.insert is -1"),
        (Mix(*[0] * 12), "all weights"),
        (Mix(appends=2), "Mix.appends is 2"),
    ],
)
def test_what_is_no_workload_is_refused(workload: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        simulate(SCHEMA, workload, "none", 1, replicas=1, minutes=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"faults": ""}, "no fault is named"),
        ({"faults": "rain"}, "'rain' is no fault"),
        ({"faults": None}, "named by a string"),
        ({"seed": "one"}, "seed is 'one'"),
        ({"replicas": 0}, "replicas is 0"),
        ({"relays": 21}, "relays is 21"),
        ({"minutes": float("nan")}, "minutes are nan"),
        ({"minutes": float("inf")}, "minutes are inf"),
        ({"minutes": -1}, "minutes are -1"),
        ({"only": "client1"}, "'client1' is no event"),
        ({"shrink_seconds": float("nan")}, "nan seconds"),
    ],
)
def test_what_no_world_can_have_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        simulate(SCHEMA, write, **arguments)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("absent.db", "neither SQL nor a file that exists"),
        (Path("absent.db"), "absent.db cannot be read"),
        ("CREATE TABL x (id)", "syntax error"),
        ("CREATE TABLE t (x)", "t: has no primary key"),
        ("", "it has no tables"),
        (3, "not a int"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, said: str) -> None:
    with pytest.raises((UsageError, FileError), match=said):
        simulate(schema, None, "none", 1)


def test_a_file_may_be_named_by_a_string_and_hold_sql(tmp_path: Path) -> None:
    path = tmp_path / "notes.sql"
    path.write_text(SCHEMA)
    for schema in (path, str(path)):
        report = simulate(schema, write, "none", 1, replicas=1, minutes=1)
        assert report.settings.schema == SCHEMA


def test_a_workload_that_cannot_be_repeated_is_called_so_and_not_shrunk() -> None:
    count = 0

    def counts(conn: sqlite3.Connection, chance: Random) -> None:
        nonlocal count
        count += 1
        conn.execute("UPDATE note SET words = ?", (f"{chance.random()} {'x' * count}",))
        if count % 2:
            conn.execute("INSERT INTO note VALUES (?, 'odd')", (count + chance.getrandbits(40),))

    with CANARIES["shows-without-merging"](), pytest.raises(Broken) as caught:
        simulate(SCHEMA, [counts, rename], "none", 1, replicas=3, minutes=1, shrink_seconds=9)
    said = str(caught.value)
    assert "not repeatable: something besides `chance` decides" in said
    assert "its history, " in said


def test_the_example_runs() -> None:
    example = Path(__file__).parents[2] / "examples" / "test_groceries.py"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(example)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
