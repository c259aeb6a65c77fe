"""A failing world is made small, and what is left fails again in the same way."""

from dataclasses import replace

from reunite_simulations import faults
from reunite_simulations.canaries import CANARIES
from reunite_simulations.failure import command_line, told
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.shrink import shrink
from reunite_simulations.world import Settings

ALL = Settings(seed=5, schema=own_schema(), replicas=4, minutes=2.0, faults=faults.named("all"))


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
    settings = Settings(seed=4, schema=own_schema(), minutes=2.0, faults=faults.named("all"))
    with CANARIES["knows-duplicates-by-number"]():
        report = run_seed(settings)
        small = shrink(report, seconds=600, runs=40)
        again = run_seed(small.settings)
    assert small.violations[0].promise == report.violations[0].promise
    assert len(small.history.events) < len(report.history.events) / 4
    assert (again.trace_hash, again.violations) == (small.trace_hash, small.violations)
    assert run_seed(small.settings).violations == []
    line = command_line(small.settings)
    assert line.startswith("reunite simulate --seed 4 --replicas")
    lines = "\n".join(told(small, line))
    for part in ("seed 4 at", "commit ", "copied:1", "INSERT INTO", f"run it again: {line}"):
        assert part in lines


def test_nothing_is_spent_that_was_not_given() -> None:
    with CANARIES["shows-without-merging"]():
        report = run_seed(replace(ALL, seed=1))
        small = shrink(report, runs=0)
    assert small.history is report.history
    assert small.settings.only == frozenset(each.event for each in report.history.events)
