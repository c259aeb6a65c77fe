"""What a user asks of a world, checked where it comes in: faults, events, numbers and the mix."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from reunite.errors import UsageError
from reunite_simulations import faults
from reunite_simulations.chance import named_events
from reunite_simulations.outcome import Settings
from reunite_simulations.transactions import Workload
from reunite_simulations.workload import Mix

# Limits, so that a slip of the finger does not fill the memory.
REPLICAS_MAX: Final = 100
RELAYS_MAX: Final = 20
BACKENDS_MAX: Final = 20
# As short as shrinking makes a world.
MINUTES_MIN: Final = 0.01

_EVENT: Final = re.compile(r"([a-z][a-z0-9-]*):[1-9][0-9]*", re.ASCII)
_WRITER: Final = re.compile(r"client[1-9][0-9]*(-copy[1-9][0-9]*)*|backend[1-9][0-9]*", re.ASCII)


def asked_settings(
    sql: str,
    database: Path | None,
    *,
    seed: int,
    replicas: int,
    relays: int,
    minutes: float,
    faults: str | Sequence[str],
    only: str | None,
    backends: int | None = None,
    workload: Workload | None = None,
) -> Settings:
    """The settings of a world that begins with SQL or a database. Raises UsageError for what no
    world can be like."""
    check_numbers(seed=seed, replicas=replicas, relays=relays, minutes=minutes, backends=backends)
    return Settings(
        seed=seed,
        schema=sql,
        database=database,
        replicas=replicas,
        relays=relays,
        backends=backends,
        minutes=minutes,
        faults=asked_faults(faults),
        only=asked_events(only),
        workload=Mix() if workload is None else workload,
    )


def asked_seconds(seconds: float) -> float:
    """How long to look for a shorter history. Raises UsageError for no such time."""
    if not _is_number(seconds) or not seconds >= 0:
        raise UsageError(f"{seconds!r} seconds cannot be spent on shrinking; say 0 or more")
    return seconds


def asked_faults(words: str | Sequence[str]) -> tuple[str, ...]:
    """The faults that a list of names stands for. Raises UsageError for none and for others."""
    if not isinstance(words, str):
        try:
            words = ",".join(words)
        except TypeError as error:
            raise UsageError('faults are named by a string such as "partition,crash"') from error
    if not words.strip(" ,"):
        raise UsageError('no fault is named; say "none" for a world without, or "all"')
    try:
        return faults.named(words)
    except ValueError as error:
        raise UsageError(str(error)) from error


def asked_events(words: str | None) -> frozenset[str] | None:
    """The events that a list of names stands for; None for all. Raises UsageError for what is no
    event's name."""
    if words is None:
        return None
    if not words.strip(" ,"):
        raise UsageError('no event is named; say "none" for a world without')
    events = named_events(words)
    for event in sorted(events):
        found = _EVENT.fullmatch(event)
        if found is None or not (found[1] in faults.FAULTS or _WRITER.fullmatch(found[1])):
            raise UsageError(f"{event!r} is no event; they are named as client1:5 or crash:2")
    return events


def check_numbers(
    *, seed: int, replicas: int, relays: int, minutes: float, backends: int | None = None
) -> None:
    """Raise UsageError for a number that no world can have."""
    for name, number, least, most in (
        ("seed", seed, -math.inf, math.inf),
        ("replicas", replicas, 1, REPLICAS_MAX),
        ("relays", relays, 1, RELAYS_MAX),
        ("backends", backends or 0, 0, BACKENDS_MAX),
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise UsageError(f"{name} is {number!r}; it must be a whole number")
        if not least <= number <= most:
            raise UsageError(f"{name} is {number}; it must be from {least} to {most}")
    if not _is_number(minutes) or not MINUTES_MIN <= minutes < math.inf:
        raise UsageError(f"minutes are {minutes!r}; they must be a number from {MINUTES_MIN} on")


def check_mix(mix: Mix) -> None:
    """Raise UsageError for a mix that nothing can be drawn from."""
    weights = asdict(mix)
    rows_max, shares = (
        weights.pop("rows_max"),
        {n: weights.pop(n) for n in ("large", "strangers", "appends")},
    )
    for name, weight in weights.items():
        if not _is_number(weight) or not 0 <= weight < math.inf:
            raise UsageError(f"Mix.{name} is {weight!r}; a weight is a number from 0 on")
    if not any(weights.values()):
        raise UsageError("all weights of the Mix are 0; one kind of write must be possible")
    if not isinstance(rows_max, int) or rows_max < 1:
        raise UsageError(f"Mix.rows_max is {rows_max!r}; a transaction writes 1 row or more")
    for name, share in shares.items():
        if not _is_number(share) or not 0 <= share <= 1:
            raise UsageError(f"Mix.{name} is {share!r}; it is a share, from 0 to 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
