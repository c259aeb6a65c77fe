"""Clients that try again sooner than in earnest, so that a fault costs a test little time."""

import pytest

from reunite_transport import sync


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "BACK_OFF_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(sync, "FENCED_SECONDS", 0.2)
