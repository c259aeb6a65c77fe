"""Backends and clients write the same rows at once, as in `python -m benchmarks.load`, for a short
while: what is measured there is not looked at here, only what is left at the end."""

import asyncio
from pathlib import Path

from benchmarks.load import Load, run

SECONDS = 3.0


def test_backends_and_clients_on_the_same_rows_end_equal_and_no_increment_is_lost(
    tmp_path: Path,
) -> None:
    load = Load(seconds=SECONDS, backends=3, clients=3, rows=100, relays=2)
    report = asyncio.run(run(load, tmp_path, alone=False))
    assert report.problems == []
    assert report.backends.transactions > 0
    assert report.clients.transactions > 0


def test_rows_that_everybody_is_at_end_equal_too(tmp_path: Path) -> None:
    load = Load(seconds=SECONDS, backends=3, clients=3, rows=6, backend_rate=0.0)
    report = asyncio.run(run(load, tmp_path, alone=False))
    assert report.problems == []
    assert report.clients.transactions > 0
