"""One browser, one relay and two devices of the to-do app for all tests of a module."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.conftest import fresh_database
from tests.web.stage import Stage, open_stage


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser: what CHROMIUM names, or the system's."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.skip("there is no Chromium: install it (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="module")
def stage(
    chromium: str, _postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """Two devices, a relay, and a browser. Whoever needs a list to itself makes one."""
    folder = tmp_path_factory.mktemp("web")
    with fresh_database(_postgres_server) as postgres, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(open_stage(stack, runner, chromium, postgres, folder))
        finally:
            runner.run(stack.aclose())
