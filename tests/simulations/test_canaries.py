"""Every engine that is broken on purpose is caught by a checker, in a seed that is pinned."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from reunite_simulations import faults
from reunite_simulations.canaries import CANARIES
from reunite_simulations.outcome import Settings
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.workload import Mix


@dataclass(frozen=True)
class Pin:
    """A world in which the checker of one promise alone catches a canary."""

    promise: str
    seed: int
    faults: str = "all"
    replicas: int = 5
    minutes: float = 2.0
    rest_seconds: float = 60.0
    schema: str = own_schema()
    mix: Mix = field(default_factory=Mix)
    writes_per_minute: float = 8.0
    backends: int | None = None

    @property
    def settings(self) -> Settings:
        """The world, in which all promises are looked at."""
        return Settings(
            seed=self.seed,
            schema=self.schema,
            replicas=self.replicas,
            minutes=self.minutes,
            rest_seconds=self.rest_seconds,
            faults=faults.named(self.faults),
            swarm=self.faults == "all",
            workload=self.mix,
            writes_per_minute=self.writes_per_minute,
            backends=self.backends,
        )


# Two texts that everybody types into all the time.
TYPING = """
    CREATE TABLE note (id INTEGER PRIMARY KEY, body CRDT_TEXT NOT NULL DEFAULT '');
    INSERT INTO note VALUES (1, 'one two three'), (2, 'four five six');
"""

# Few rows that everybody writes all the time, backends among them.
BOARD = """
    CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, color TEXT);
    INSERT INTO note VALUES (1, 'one', 'red'), (2, 'two', 'blue');
"""

# A small one in which all but clients and backends is well.
BACKENDS = Pin("", 2, faults="none", replicas=3, minutes=1.0, backends=2)

PINS = {
    "acknowledges-before-commit": Pin("durability", 1),
    "forgets-what-is-in": Pin("liveness", 1),
    "drops-a-row": Pin("convergence", 1),
    "moves-the-cursor-past-the-head": Pin("causal order", 2),
    "applies-half-of-a-commit": Pin("atomic visibility", 2),
    "stamps-by-the-wall-clock": Pin("no lost update", 1),
    # Worlds with all faults catch it, too, and take much longer: file and copy never come to rest.
    "keeps-its-replica-id": Pin(
        "convergence", 9, faults="copied", replicas=2, minutes=0.3, rest_seconds=5.0
    ),
    "shows-without-merging": Pin("causal order", 1),
    "reverts-by-merging": Pin("convergence", 2),
    "knows-duplicates-by-number": Pin("durability", 4),
    "fences-nobody": Pin("no lost update", 3, faults="power", replicas=3, backends=0),
    # A trigger that shows a column otherwise, and somebody whose edit that then seems to replace.
    "folds-against-the-document": Pin(
        "no lost update",
        10,
        faults="schema,partition,clock",
        replicas=3,
        minutes=1.0,
        writes_per_minute=20.0,
        backends=0,
    ),
    "shows-page-by-page": Pin("atomic visibility", 2),
    "goes-on-in-a-lost-history": Pin("durability", 6),
    # The older of two has to hear late what the newer has taken in, or what no longer counts.
    "heeds-older-sessions": Pin(
        "durability",
        45,
        faults="second,reset,weather,slow",
        replicas=3,
        minutes=1.0,
        writes_per_minute=30.0,
        backends=0,
    ),
    "keeps-no-trace": Pin("constraints hold", 2),
    "counts-from-the-document": Pin("counters add up", 2),
    "counts-the-whole-number": Pin("counters add up", 1),
    # These need many that cannot send for a while.
    "keeps-what-was-refused-counted": Pin(
        "counters add up", 13, faults="partition,island", replicas=3, minutes=1.0
    ),
    "counts-in-every-copy": Pin(
        "counters add up", 4, faults="copied,island,partition", replicas=3, minutes=1.0
    ),
    "keeps-the-last-set": Pin("sets keep what was added", 2),
    "types-the-whole-text": Pin("texts keep what was typed", 2),
    "writes-objects-whole": Pin("lists and JSON merge by their parts", 2),
    "writes-lists-whole": Pin("lists and JSON merge by their parts", 2),
    # What was lost with the file and what is typed then have to be in one text.
    "types-under-one-id": Pin(
        "texts keep what was typed",
        27,
        faults="power,island,partition,crash",
        replicas=3,
        minutes=0.5,
        schema=TYPING,
        mix=Mix(insert=0.3, delete=0.1, merge=60.0, strangers=0.0),
        writes_per_minute=20.0,
        backends=0,
    ),
    "loses-what-a-backend-wrote": replace(BACKENDS, promise="convergence"),
    "folds-a-part-of-a-transaction": replace(BACKENDS, promise="atomic visibility"),
    # What is pushed has to meet what a backend wrote within the last half second.
    "writes-over-backends": Pin(
        "no lost update",
        2,
        faults="none",
        minutes=1.0,
        schema=BOARD,
        mix=Mix(insert=0.1, delete=0.0, merge=0.0, strangers=0.0, appends=0.05),
        writes_per_minute=40.0,
        backends=2,
    ),
    "counts-what-a-backend-saw": replace(BACKENDS, promise="counters add up"),
    # A backend has to delete what was just edited by a clock that is ahead.
    "stamps-backends-by-the-clock": Pin(
        "convergence",
        5,
        faults="clock",
        minutes=1.0,
        schema=BOARD,
        mix=Mix(insert=4.0, delete=4.0, merge=0.0, strangers=0.0, appends=0.05),
        writes_per_minute=40.0,
        backends=2,
    ),
    "captures-what-the-relay-writes": replace(BACKENDS, promise="counters add up"),
    "refuses-large-documents": Pin("table == document", 2),
}


def worlds() -> list[Any]:
    """Eight worlds with all faults, and those of the pins; many pins are of one world."""
    found = {f"all {seed}": Pin("", seed).settings for seed in range(1, 9)}
    for name, pin in PINS.items():
        if pin.settings not in found.values():
            found[name] = pin.settings
    return [pytest.param(settings, id=name) for name, settings in found.items()]


@pytest.mark.parametrize(("name", "pin"), PINS.items(), ids=PINS)
def test_a_broken_engine_is_caught(name: str, pin: Pin) -> None:
    with CANARIES[name]():
        report = run_seed(replace(pin.settings, promises=(pin.promise,)))
    assert {violation.promise for violation in report.violations} == {pin.promise}


@pytest.mark.parametrize("settings", worlds())
def test_the_engine_as_it_is_keeps_every_promise_there(settings: Settings) -> None:
    assert run_seed(settings).violations == []


def test_every_canary_has_a_seed() -> None:
    assert PINS.keys() == CANARIES.keys()
