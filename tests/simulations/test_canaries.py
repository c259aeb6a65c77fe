"""Every engine that is broken on purpose is caught by a checker, in a seed that is pinned."""

from dataclasses import dataclass, field, replace

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
    schema: str = own_schema()
    mix: Mix = field(default_factory=Mix)
    writes_per_minute: float = 8.0
    backends: int | None = None


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

PINS = {
    "acknowledges-before-commit": Pin("durability", 1),
    "forgets-what-is-in": Pin("liveness", 1),
    "drops-a-row": Pin("convergence", 1),
    "moves-the-cursor-past-the-head": Pin("causal order", 2),
    "applies-half-of-a-commit": Pin("atomic visibility", 2),
    "stamps-by-the-wall-clock": Pin("no lost update", 1),
    # Worlds with all faults catch it, too, and take much longer.
    "keeps-its-replica-id": Pin("convergence", 1, faults="copy"),
    "shows-without-merging": Pin("causal order", 1),
    "reverts-by-merging": Pin("convergence", 2),
    "knows-duplicates-by-number": Pin("durability", 4),
    "fences-nobody": Pin("no lost update", 3, faults="power", backends=0),
    "folds-against-the-document": Pin("no lost update", 12),
    "shows-page-by-page": Pin("atomic visibility", 2),
    "goes-on-in-a-lost-history": Pin("durability", 6),
    "keeps-no-trace": Pin("constraints hold", 2),
    "counts-from-the-document": Pin("counters add up", 2),
    "counts-the-whole-number": Pin("counters add up", 1),
    # These need many that cannot send for a while.
    "keeps-what-was-refused-counted": Pin(
        "counters add up", 17, faults="partition,island", minutes=4.0
    ),
    "counts-in-every-copy": Pin(
        "counters add up", 13, faults="copied,island,partition", minutes=4.0
    ),
    "keeps-the-last-set": Pin("sets keep what was added", 2),
    "types-the-whole-text": Pin("texts keep what was typed", 2),
    "writes-objects-whole": Pin("lists and JSON merge by their parts", 2),
    "writes-lists-whole": Pin("lists and JSON merge by their parts", 2),
    # What was lost with the file and what is typed then have to be in one text.
    "types-under-one-id": Pin(
        "texts keep what was typed",
        1,
        faults="power,island,partition,crash",
        minutes=3.0,
        schema=TYPING,
        mix=Mix(insert=0.3, delete=0.1, merge=60.0, strangers=0.0),
        writes_per_minute=20.0,
        backends=0,
    ),
    "loses-what-a-backend-wrote": Pin("convergence", 1, faults="none", backends=2),
    "folds-a-part-of-a-transaction": Pin("atomic visibility", 2, faults="none", backends=2),
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
    "counts-what-a-backend-saw": Pin("counters add up", 1, faults="none", backends=2),
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
    "captures-what-the-relay-writes": Pin("counters add up", 1, faults="none", backends=2),
    "refuses-large-documents": Pin("table == document", 2),
}


@pytest.mark.parametrize(("name", "pin"), PINS.items())
def test_a_broken_engine_is_caught(name: str, pin: Pin) -> None:
    settings = Settings(
        seed=pin.seed,
        schema=pin.schema,
        replicas=pin.replicas,
        minutes=pin.minutes,
        rest_seconds=60.0,
        faults=faults.named(pin.faults),
        swarm=pin.faults == "all",
        promises=(pin.promise,),
        workload=pin.mix,
        writes_per_minute=pin.writes_per_minute,
        backends=pin.backends,
    )
    with CANARIES[name]():
        assert {violation.promise for violation in run_seed(settings).violations} == {pin.promise}
    assert run_seed(replace(settings, promises=())).violations == []


def test_every_canary_has_a_seed() -> None:
    assert PINS.keys() == CANARIES.keys()
