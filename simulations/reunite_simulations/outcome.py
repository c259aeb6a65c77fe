"""What a world is asked for, and what comes of it: a seed's settings and its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reunite_simulations import faults
from reunite_simulations.conflicts import Conflicts
from reunite_simulations.history import History
from reunite_simulations.transactions import Workload
from reunite_simulations.workload import Mix


@dataclass(frozen=True, slots=True)
class Settings:
    """What a world is like. `faults` are those that its seed may draw from."""

    seed: int
    schema: str = ""
    database: Path | None = None
    replicas: int = 5
    relays: int = 2
    # Programs that write the relays' database; None lets the seed say how many.
    backends: int | None = None
    minutes: float = 5.0
    faults: tuple[str, ...] = tuple(faults.FAULTS)
    swarm: bool = True
    # The events that happen, as `client1:5` and `crash:2`; None for all.
    only: frozenset[str] | None = None
    writes_per_minute: float = 8.0
    # How long a healed world may take to come to rest.
    rest_seconds: float = 400.0
    workload: Workload = field(default_factory=Mix)
    # The promises that are looked at; none for all of them.
    promises: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, when, and how."""

    promise: str
    at: float
    message: str


@dataclass(frozen=True, slots=True)
class Happening:
    """One event of the trace: virtual seconds, a kind, and facts."""

    at: float
    kind: str
    facts: tuple[object, ...]


@dataclass
class Report:
    """What came of a seed. `history` is all that an outside observer saw."""

    settings: Settings
    seed: int
    trace_hash: str
    simulated_hours: float
    transactions: int
    rows_written: int
    faults: Mapping[str, int]
    checks: Mapping[str, int]
    violations: Sequence[Violation]
    happenings: Sequence[Happening]
    history: History
    # Frames and bytes by sender, receiver and tenth of a second.
    traffic: Mapping[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    conflicts: Conflicts = field(default_factory=Conflicts)
    # Tables that cannot be synced, and why.
    left_out: Mapping[str, str] = field(default_factory=dict)
