"""Partitions, crashes and wrong clocks in a fake world, with a checker for each promise.

Owns the world (time, chance, network, disks), the workloads that run the production code inside it,
the faults, and one checker for each promise of the design. It is the top layer: it imports the
transport and the engine, and neither may import it.

`simulate` runs a scenario inside a test of the user's own.
"""

from reunite_simulations.failure import Broken
from reunite_simulations.outcome import Report, Violation
from reunite_simulations.scenario import simulate
from reunite_simulations.transactions import OwnTransaction
from reunite_simulations.workload import Mix

__all__ = ["Broken", "Mix", "OwnTransaction", "Report", "Violation", "simulate"]
