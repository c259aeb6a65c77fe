"""A failing world is made small, and what is left fails again in the same way."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from reunite_simulations import faults
from reunite_simulations.asked import MINUTES_MIN
from reunite_simulations.canaries import CANARIES
from reunite_simulations.failure import command_line, told
from reunite_simulations.outcome import Report, Settings
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.shrink import look_into, shape, shrink

ALL = Settings(seed=5, schema=own_schema(), replicas=4, minutes=1.0, faults=faults.named("all"))


def test_what_is_left_out_changes_nothing_of_when_and_whom_the_others_befall() -> None:
    whole = run_seed(ALL).history
    strikes = {strike.event: strike for strike in whole.strikes}
    assert len(strikes) > 5
    left = frozenset(list(strikes)[::2])
    part = run_seed(replace(ALL, only=left)).history
    assert {strike.event for strike in part.strikes} == left
    assert part.transactions == []
    for strike in part.strikes:
        assert strike.at == strikes[strike.event].at
    one = next(made for made in whole.transactions if made.writes)
    (alone,) = run_seed(replace(ALL, only=frozenset({one.event}))).history.transactions
    assert (alone.at, alone.own) == (one.at, one.own)


def test_naming_all_events_is_the_same_world() -> None:
    report = run_seed(ALL)
    events = frozenset(each.event for each in report.history.events)
    assert run_seed(replace(ALL, only=events)).trace_hash == report.trace_hash


def test_a_failure_shrinks_to_a_few_events_and_replays_exactly() -> None:
    settings = replace(ALL, seed=9, replicas=3)
    with CANARIES["knows-duplicates-by-number"]():
        report = run_seed(settings)
        small = shrink(report, seconds=600, runs=40)
        again = run_seed(small.settings)
    assert small.violations[0].promise == report.violations[0].promise
    assert len(small.history.events) < len(report.history.events) / 4
    assert (again.trace_hash, again.violations) == (small.trace_hash, small.violations)
    assert run_seed(small.settings).violations == []
    line = command_line(small.settings)
    assert line.startswith("reunite simulate --seed 9 --replicas")
    lines = "\n".join(told(small, line))
    for part in ("seed 9 at", "reunite ", "copied:1", "INSERT INTO", f"run it again: {line}"):
        assert part in lines


def test_a_run_that_fails_in_another_way_or_not_at_all_is_no_smaller_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with CANARIES["shows-without-merging"]():
        report = run_seed(replace(ALL, seed=1))
    first = report.violations[0]
    others = [replace(first, message=f"{first.message} by far"), replace(first, promise="liveness")]

    def another(settings: Settings) -> Report:
        if not others:
            raise LookupError("a run that cannot even be run")
        return replace(report, settings=settings, violations=[others.pop()])

    monkeypatch.setattr("reunite_simulations.shrink.run_seed", another)
    small = shrink(report, runs=5)
    assert others == []
    assert small.violations == report.violations
    assert small.settings.minutes == report.settings.minutes


def test_an_interrupted_search_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with CANARIES["shows-without-merging"]():
        report = run_seed(replace(ALL, seed=1))
    runs = 0

    def interrupted(settings: Settings) -> Report:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise KeyboardInterrupt
        return replace(report, settings=settings)

    monkeypatch.setattr("reunite_simulations.shrink.run_seed", interrupted)
    assert shrink(report).settings.minutes < report.settings.minutes
    runs = 1
    assert look_into(report, seconds=9).report.violations == report.violations


def test_a_message_has_the_same_shape_whomever_it_is_about() -> None:
    one = "client4-copy1 lost ['6000010001.0.1', (1, None, \"it's\")]"
    assert shape(one) == shape("client2 lost []") == "lost"
    two = "todo (1,) title: 'a' is older than 3 of client1, and won"
    assert shape(two, {"todo", "title"}) == "is older than of , and won"
    wedge = shape("client1 is at commit 5, the relay at 9")
    assert wedge != shape("client1 still has 2 changesets queued and 0 pages waiting")


def test_the_smallest_world_that_shrinking_makes_is_accepted_by_the_command() -> None:
    settings = Settings(seed=1, schema=own_schema(), replicas=1, relays=1, minutes=MINUTES_MIN)
    line = command_line(replace(settings, only=frozenset({"client1:1"})))
    ran = subprocess.run(
        [sys.executable, "-m", "reunite_transport", *shlex.split(line)[1:], "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["seeds"] == [1]


def test_nothing_is_spent_that_was_not_given() -> None:
    with CANARIES["shows-without-merging"]():
        report = run_seed(replace(ALL, seed=1))
        small = shrink(report, runs=0)
    assert small.history is report.history
    assert small.settings.only == frozenset(each.event for each in report.history.events)
