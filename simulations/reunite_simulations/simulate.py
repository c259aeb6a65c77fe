"""Run worlds: one seed, or many, and what came of them."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from reunite_simulations.loop import run
from reunite_simulations.world import Report, Settings, World


def own_schema() -> str:
    """The schema for those who bring none."""
    return files("reunite_simulations").joinpath("schema.sql").read_text(encoding="utf-8")


def run_seed(settings: Settings) -> Report:
    """Run one seed's world to its end. Its files are in a temporary folder meanwhile."""
    with tempfile.TemporaryDirectory(prefix="reunite-world-") as folder:
        return run(World(settings, Path(folder)).live())


def run_seeds(settings: Settings, seeds: Sequence[int]) -> Iterator[Report]:
    """Run several, one after the other."""
    for seed in seeds:
        yield run_seed(replace(settings, seed=seed))
