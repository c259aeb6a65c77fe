"""Fixtures of the whole suite: an empty Postgres database for a test, and the Chinook file."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import settings

from reunite_transport.relay.embedded import EmbeddedPostgres

# How long an example takes says how busy the machine is.
settings.register_profile("reunite", deadline=None)
settings.load_profile("reunite")

REPOSITORY = Path(__file__).resolve().parent.parent
# The data is thrown away: no test crashes this server's machine.
THROW_AWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "400",  # every worker of a run shares the server
}


@pytest.fixture(scope="session")
def _postgres_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """The DSN of the run's one server: workers share its folder, and the last one stops it."""
    own = tmp_path_factory.getbasetemp()
    run = own if worker_id == "master" else own.parent
    server = EmbeddedPostgres(run / "postgres", settings=THROW_AWAY)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def postgres_url(_postgres_server: str) -> Iterator[str]:
    """The DSN of a fresh, empty database, dropped after the test whoever is still connected."""
    with fresh_database(_postgres_server) as url:
        yield url


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """The DSN of a database of its own, on the server with this DSN."""
    name = f"test_{uuid4().hex}"
    asyncio.run(_execute(server, f"CREATE DATABASE {name} TEMPLATE template0"))
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def chinook_script() -> str:
    """The statements that make and fill the Chinook tables in a database that is there."""
    path = REPOSITORY.parent / "shared" / "data" / "chinook_postgres.sql"
    if not path.exists():
        pytest.skip(f"the Chinook script is absent: put it at ../shared/data/{path.name}")
    text = path.read_text(encoding="utf-8")
    return text[text.index("CREATE TABLE") :]


@pytest.fixture
def chinook() -> Path:
    """The Chinook sample database. It is shared: copy it before writing to it."""
    path = REPOSITORY.parent / "shared" / "data" / "chinook.sqlite"
    if not path.exists():
        pytest.skip("the Chinook sample is absent: put it at ../shared/data/chinook.sqlite")
    return path


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
