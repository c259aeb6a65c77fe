"""Every promise holds for real processes while clients, relays, Postgres and the network fail.

The simulator's checkers judge what is left. REUNITE_MIX_SEED sets the seed; `make soak` runs many
for longer.
"""

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.judge import Remains, judge
from tests.e2e.mix import Settings, run_mix
from tests.e2e.world import write

SEED = int(os.environ.get("REUNITE_MIX_SEED", "1"))


def test_every_promise_holds_under_a_mix_of_faults(tmp_path: Path) -> None:
    print(f"for another such run: REUNITE_MIX_SEED={SEED} python -m pytest {__file__}")
    report = asyncio.run(run_mix(Settings(seed=SEED), tmp_path))
    print(report.told())
    assert not report.violations, f"seed {SEED}, files in {tmp_path}"
    assert len(report.faults) > 5


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Remains:
    """What a short time without faults leaves."""
    settings = Settings(seed=SEED, seconds=3.0, clients=2, relays=1, at_once=0)
    report = asyncio.run(run_mix(settings, tmp_path_factory.mktemp("mix")))
    assert not report.violations
    return report.remains


@pytest.mark.parametrize(
    ("promise", "wrong"),
    {
        "liveness": "UPDATE _reunite_head SET seq = seq + 1",
        "convergence": "DELETE FROM _reunite_documents WHERE tbl = 1",
        "durability": "DELETE FROM simulated_append WHERE part = 0",
        "no lost update": "UPDATE list SET name = 'x'; UPDATE todo SET title = 'x';"
        " UPDATE person SET name = 'x'; UPDATE \"event log\" SET what = 'x'",
        "exactly-once effect": "INSERT INTO _reunite_changesets SELECT replica, number + 1, nonce"
        " FROM _reunite_changesets",
        "table == document": "INSERT INTO list (id, name) VALUES (-1, 'x')",
        "constraints hold": "INSERT INTO todo (id, list_id, title) VALUES (-1, -1, 'x')",
    }.items(),
)
def test_what_is_wrong_at_the_relay_is_seen(
    promise: str, wrong: str, remains: Remains, tmp_path: Path
) -> None:
    store = tmp_path / "store.db"
    shutil.copyfile(remains.store, store)
    for statement in wrong.split(";"):
        write(store, statement)
    found = judge(replace(remains, store=store)).violations
    assert any(said.startswith(f"{promise}: ") for said in found), found


def test_what_is_wrong_in_a_file_is_seen(remains: Remains, tmp_path: Path) -> None:
    (name, file), *_ = remains.files.items()
    copy = tmp_path / file.name
    shutil.copyfile(file, copy)
    write(copy, "DELETE FROM simulated_append WHERE part = 0")
    found = judge(replace(remains, files={**remains.files, name: copy})).violations
    for promise in ("convergence", "durability", "atomic visibility"):
        assert any(said.startswith(f"{promise}: ") for said in found), found
