"""A Postgres that the system brings, as an ordinary process for the tests of one worker."""

import asyncio
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from tests.e2e.world import SECONDS_MAX

# Where Debian and its kin put them, by major version.
INSTALLS = Path("/usr/lib/postgresql")
# No variable of the caller; a socket's path is short, which a folder of tests need not be.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
SOCKETS = "/tmp"


def newest_install() -> Path | None:
    """The folder of programs of the newest Postgres of the system; None when there is none."""
    found = {
        int(folder.parent.name): folder
        for folder in INSTALLS.glob("*/bin")
        if re.fullmatch("[0-9]+", folder.parent.name) and (folder / "initdb").exists()
    }
    return found[max(found)] if found else None


@contextmanager
def system_postgres(programs: Path) -> Iterator[str]:
    """Make a cluster, run a server on it, and give its DSN. Nothing of it is left at the end."""
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="reunite-", dir=SOCKETS))
    try:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        _run(
            [
                *(programs / "initdb", "--pgdata", folder / "data", "--username=postgres"),
                *("--auth-local=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            folder,
            account,
        ).wait_for_success()
        server = _run(
            [
                *(programs / "postgres", "-D", folder / "data", "-k", folder),
                *("-c", "listen_addresses=", "-c", "max_connections=400", "-c", "fsync=off"),
                *("-c", "full_page_writes=off", "-c", "synchronous_commit=off"),
            ],
            folder,
            account,
        )
        try:
            dsn = f"postgresql://postgres@/postgres?host={quote(str(folder))}&port=5432"
            asyncio.run(_until_it_answers(dsn, server))
            yield dsn
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


class _Program:
    """A program of Postgres that we started."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    def wait_for_success(self) -> None:
        """Wait for its end."""
        assert self._process.wait(SECONDS_MAX) == 0, self._log.read_text()

    def check(self) -> None:
        """It runs."""
        assert self._process.poll() is None, self._log.read_text()

    def stop(self) -> None:
        """End it and whoever is connected."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(SECONDS_MAX)


def _run(command: list[str | Path], folder: Path, account: "pwd.struct_passwd | None") -> _Program:
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
            start_new_session=True,
        )
    return _Program(process, log)


def _account() -> "pwd.struct_passwd | None":
    """Whom Postgres runs as: not as root, which it refuses."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


async def _until_it_answers(dsn: str, server: _Program) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            server.check()
            with suppress(OSError, asyncpg.CannotConnectNowError):
                connection = await asyncpg.connect(dsn)
                await connection.close()
                return
            await asyncio.sleep(0.02)
