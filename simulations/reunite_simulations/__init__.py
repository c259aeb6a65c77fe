"""Partitions, crashes and wrong clocks in a fake world, with a checker for each promise.

Owns the world (time, chance, network, disks), the workloads that run the production code inside it,
the faults, and one checker for each promise of the design. It is the top layer: it imports the
transport and the engine, and neither may import it.
"""
