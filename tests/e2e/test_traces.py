"""What people really typed, replayed through SQL, files and a relay. The whole recordings are for
`python -m benchmarks.traces`; here the first keys of each."""

import asyncio
from functools import reduce
from pathlib import Path

import pytest

from benchmarks.traces import FOLDER, Trace, load, patched, pycrdt_alone, replay

TXNS = 2_500


def recording(name: str) -> Trace:
    path = FOLDER / f"{name}.json.gz"
    if not path.exists():
        pytest.skip(f"the recording is absent: put it at ../shared/data/{path.name}")
    return load(path).first(TXNS)


def test_what_one_person_typed_is_on_every_replica_as_it_was_typed(tmp_path: Path) -> None:
    trace = recording("sveltecomponent")
    found = asyncio.run(replay(trace, tmp_path))
    assert found.text == reduce(patched, trace.txns, "")
    assert found.cell_bytes < 2 * pycrdt_alone(trace)[1]


def test_what_two_typed_at_once_merges_as_it_did_when_it_was_recorded(tmp_path: Path) -> None:
    trace = recording("friendsforever")
    found = asyncio.run(replay(trace, tmp_path))
    text, size = pycrdt_alone(trace)
    assert found.receives > TXNS / 10
    assert found.text == text
    assert found.cell_bytes < 2 * size


def test_whoever_has_the_lower_id_all_replicas_end_with_one_text(tmp_path: Path) -> None:
    trace = recording("friendsforever")
    # Where both began to type at one place another one comes first, so what was recorded is no
    # measure; `replay` itself compares the replicas.
    found = asyncio.run(replay(trace, tmp_path, swapped=True))
    assert found.receives > TXNS / 10
