"""Run worlds: one seed, one report."""

import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from reunite_simulations.loop import run
from reunite_simulations.world import Report, Settings, World


def own_schema() -> str:
    """The schema for those who bring none."""
    return files("reunite_simulations").joinpath("schema.sql").read_text(encoding="utf-8")


def run_seed(settings: Settings, on_look: Callable[[World], None] = lambda _: None) -> Report:
    """Run one seed's world to its end. Its files are in a temporary folder meanwhile; `on_look` is
    called every ten virtual seconds."""
    with tempfile.TemporaryDirectory(prefix="reunite-world-") as folder:
        return run(World(settings, Path(folder), on_look).live())
