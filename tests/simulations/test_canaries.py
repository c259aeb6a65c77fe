"""Every engine that is broken on purpose is caught by a checker, in a seed that is pinned."""

import pytest

from reunite_simulations import faults
from reunite_simulations.canaries import CANARIES
from reunite_simulations.seeds import own_schema, run_seed
from reunite_simulations.world import Settings

SEED_BY_CANARY = {
    "acknowledges-before-commit": 1,
    "forgets-what-is-in": 2,
    "drops-a-row": 1,
    "moves-the-cursor-past-the-head": 1,
    "applies-half-of-a-commit": 1,
    "stamps-by-the-wall-clock": 2,
    "keeps-its-replica-id": 1,
    "shows-without-merging": 1,
    "reverts-by-merging": 1,
    "knows-duplicates-by-number": 4,
    "fences-nobody": 31,
    "folds-against-the-document": 1,
    "shows-page-by-page": 3,
    "goes-on-in-a-lost-history": 1,
}
# Worlds with all faults catch these too, but are slower.
FAULTS_BY_CANARY = {
    "fences-nobody": "power",
    "keeps-its-replica-id": "copy",
    "goes-on-in-a-lost-history": "relay-restore",
}


@pytest.mark.parametrize(("name", "seed"), SEED_BY_CANARY.items())
def test_a_broken_engine_is_caught(name: str, seed: int) -> None:
    words = FAULTS_BY_CANARY.get(name, "all")
    settings = Settings(
        seed=seed,
        schema=own_schema(),
        minutes=2.0,
        rest_seconds=60.0,
        faults=faults.named(words),
        swarm=words == "all",
    )
    with CANARIES[name]():
        assert run_seed(settings).violations
    assert run_seed(settings).violations == []


def test_every_canary_has_a_seed() -> None:
    assert SEED_BY_CANARY.keys() == CANARIES.keys()
