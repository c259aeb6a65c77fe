"""Clients that try again sooner than in earnest, so that a fault costs a test little time; and a
database on either Postgres."""

from collections.abc import Iterator

import pytest

from reunite_transport import sync
from tests.conftest import fresh_database
from tests.e2e.system_postgres import newest_install, system_postgres


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "BACK_OFF_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(sync, "FENCED_SECONDS", 0.2)


@pytest.fixture(scope="session")
def _system_server() -> Iterator[str]:
    """The DSN of a server of the system's version."""
    programs = newest_install()
    if programs is None:
        pytest.skip("the system has no Postgres of its own below /usr/lib/postgresql")
    with system_postgres(programs) as dsn:
        yield dsn


@pytest.fixture(params=["embedded", "system"])
def either_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of a fresh database, once on the Postgres that the relay brings and once on the
    system's, which is an older one."""
    name = "_postgres_server" if request.param == "embedded" else "_system_server"
    with fresh_database(request.getfixturevalue(name)) as url:
        yield url
