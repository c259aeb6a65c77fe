"""The worlds that `make worlds` runs: each has a test here that tells what was wrong in it."""

import ast

import pytest

from reunite_simulations.canaries import CANARIES
from tests.conftest import REPOSITORY
from tests.simulations.long_worlds import LONG_WORLDS, LongWorld, live, tell


@pytest.mark.parametrize("world", LONG_WORLDS, ids=[world.was_wrong for world in LONG_WORLDS])
def test_what_a_long_world_found_has_a_test_of_its_own(world: LongWorld) -> None:
    path, _, name = world.test.partition("::")
    module = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    assert name in {each.name for each in module.body if isinstance(each, ast.FunctionDef)}
    assert name.startswith("test_")


def test_no_long_world_is_there_twice() -> None:
    worlds = {(world.seed, world.replicas) for world in LONG_WORLDS}
    assert len(worlds) == len(LONG_WORLDS) == 11


def test_a_promise_that_a_long_world_breaks_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    world = LongWorld(1, 3, "", "", minutes=1.0)
    assert tell([live(world)]) == 0
    assert capsys.readouterr().out.startswith("seed 1 of 3 replicas: every promise was kept\n")
    with CANARIES["shows-without-merging"]():
        assert tell([live(world)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("seed 1 of 3 replicas: at ")
    assert told.endswith("\n1 of 1 worlds broke a promise\n")
