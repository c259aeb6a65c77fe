"""The embedded Postgres: shared, taken over and recovered, whoever was killed before."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import asyncpg
import pytest

from reunite_transport.relay import embedded
from reunite_transport.relay.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    embedded_postgres,
)

# Uses the server in the folder it is given until its input ends; then leaves by the front door.
ANOTHER_PROCESS = """
import sys
from pathlib import Path
from reunite_transport.relay.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.start(), flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for a server."""
    return tmp_path / "data"


class Use(Protocol):
    """One use of the server in a folder; it ends with the test, if not before."""

    def __call__(
        self, data: Path, *, settings: Mapping[str, str] | None = None
    ) -> EmbeddedPostgres: ...


@pytest.fixture
def use() -> Iterator[Use]:
    with ExitStack() as uses:

        def begin(data: Path, *, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
            server = EmbeddedPostgres(data, settings=settings)
            uses.callback(server.stop)
            return server

        yield begin


@contextmanager
def another_process(data: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER_PROCESS, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("postgresql://")
        try:
            yield process
        finally:
            process.kill()


def ask(dsn: str, *statements: str) -> object:
    """Run statements on one connection; the first value of the last one's answer."""

    async def talk() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(talk())


def postmaster(data: Path) -> int:
    return int((data / "cluster/postmaster.pid").read_text().split()[0])


def test_it_yields_a_server_that_keeps_utf8_in_byte_order_and_syncs(data: Path) -> None:
    async def look() -> list[object]:
        async with embedded_postgres(data) as dsn:
            connection = await asyncpg.connect(dsn)
            try:
                row = await connection.fetchrow(
                    "SELECT current_setting('server_encoding'), 'a' > 'B', lower('Ä'),"
                    " current_setting('fsync'), current_setting('listen_addresses')"
                )
            finally:
                await connection.close()
        assert row is not None
        return list(row)

    assert asyncio.run(look()) == ["UTF8", True, "ä", "on", ""]
    assert not (data / "cluster/postmaster.pid").exists()


def test_a_restart_keeps_the_data(data: Path, use: Use) -> None:
    first = use(data)
    ask(first.start(), "CREATE TABLE kept AS SELECT 7 AS value", "SELECT 1")
    first.stop()
    second = use(data)
    assert ask(second.start(), "SELECT value FROM kept") == 7


def test_the_last_of_two_uses_in_one_process_stops_the_server(data: Path, use: Use) -> None:
    first, second = use(data), use(data)
    first.start()
    dsn = second.start()
    first.stop()
    first.stop()
    assert ask(dsn, "SELECT 1") == 1
    second.stop()
    assert not (data / "cluster/postmaster.pid").exists()


def test_the_server_stays_while_another_process_uses_it(data: Path, use: Use) -> None:
    ours = use(data)
    dsn = ours.start()
    before = postmaster(data)
    with another_process(data) as other:
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait() == 0
    assert ask(dsn, "SELECT 1") == 1
    assert postmaster(data) == before


def test_the_server_of_a_killed_process_is_taken_over_and_then_stopped(
    data: Path, use: Use
) -> None:
    with another_process(data) as other:
        before = postmaster(data)
        other.kill()
    ours = use(data)
    assert ask(ours.start(), "SELECT 1") == 1
    assert postmaster(data) == before
    ours.stop()
    assert not (data / "cluster/postmaster.pid").exists()


def test_a_killed_postmaster_is_replaced_and_committed_rows_are_there(data: Path, use: Use) -> None:
    with another_process(data) as other:
        ours = use(data)
        ask(ours.start(), "CREATE TABLE kept AS SELECT 7 AS value", "SELECT 1")
        before = postmaster(data)
        os.kill(before, signal.SIGKILL)
        other.kill()
    ours.stop()
    again = use(data)
    assert ask(again.start(), "SELECT value FROM kept") == 7
    assert postmaster(data) != before


def test_a_stale_pid_file_that_names_a_living_process_does_not_matter(data: Path, use: Use) -> None:
    server = use(data)
    server.start()
    stale = (data / "cluster/postmaster.pid").read_text()
    server.stop()
    lines = [str(os.getpid()), *stale.splitlines()[1:]]
    (data / "cluster/postmaster.pid").write_text("\n".join(lines) + "\n")
    again = use(data)
    assert ask(again.start(), "SELECT 1") == 1


def test_a_cluster_that_was_half_made_is_made_again(data: Path, use: Use) -> None:
    (data / "cluster.new/base").mkdir(parents=True)
    (data / "cluster.new/PG_VERSION").write_text("18\n")
    server = use(data)
    assert ask(server.start(), "SELECT 1") == 1


@pytest.mark.parametrize("name", ["a b, c 'd' %e", "long" * 30])
def test_any_path_will_do(tmp_path: Path, use: Use, name: str) -> None:
    server = use(tmp_path / name)
    assert ask(server.start(), "SELECT 1") == 1


def test_postgres_is_out_of_reach_of_the_terminal(data: Path, use: Use) -> None:
    server = use(data)
    server.start()
    assert os.getsid(postmaster(data)) != os.getsid(0)


def test_settings_reach_the_server(data: Path, use: Use) -> None:
    server = use(data, settings={"fsync": "off", "DateStyle": "SQL, DMY"})
    dsn = server.start()
    assert ask(dsn, "SELECT current_setting('fsync')") == "off"
    assert ask(dsn, "SELECT current_setting('DateStyle')") == "SQL, DMY"


def test_a_cancelled_start_leaves_no_server_behind(data: Path) -> None:
    async def cancel_at_once() -> None:
        async def begin() -> None:
            async with embedded_postgres(data):
                pytest.fail("the start was cancelled")

        task = asyncio.create_task(begin())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_at_once())
    assert (data / "cluster").exists()
    assert not (data / "cluster/postmaster.pid").exists()


def test_a_cluster_of_another_version_says_what_to_do(data: Path, use: Use) -> None:
    (data / "cluster").mkdir(parents=True)
    (data / "cluster/PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by Postgres 9, .*--postgres URL"):
        use(data).start()


def test_a_missing_wheel_says_what_to_install(
    data: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_WHEEL", "no-such-wheel")
    with pytest.raises(EmbeddedPostgresError, match=r'pip install "reunite\[embedded\]"'):
        use(data).start()


def test_a_setting_that_postgres_refuses_shows_what_it_said(data: Path, use: Use) -> None:
    with pytest.raises(EmbeddedPostgresError, match='"fsync" requires a Boolean'):
        use(data, settings={"fsync": "perhaps"}).start()


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path, use: Use) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=r"Cannot keep Postgres in .*--postgres URL"):
        use(tmp_path / "file/data").start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_says_so(tmp_path: Path, use: Use) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EmbeddedPostgresError, match=r"Cannot keep Postgres in .*--postgres URL"):
        use(tmp_path / "data").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another account")
def test_root_changes_no_permission_of_a_folder_above(data: Path, use: Use, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    server = use(data)
    server.start()
    assert (data / "cluster").stat().st_uid != 0
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert data.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another account")
def test_binaries_that_the_account_cannot_reach_are_copied(
    data: Path, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = embedded._installed(None)
    hidden = tmp_path / "hidden" / installed.parent.name / installed.name
    shutil.copytree(installed, hidden, symlinks=True)
    libraries = installed.parent.with_name(f"{installed.parent.name}.libs")
    shutil.copytree(libraries, tmp_path / "hidden" / libraries.name)
    (tmp_path / "hidden").chmod(0o700)
    monkeypatch.setattr(embedded, "_installed", lambda version: hidden)
    reachable = Path("/var/tmp") / f"reunite-test-{os.getpid()}"
    monkeypatch.setattr(embedded, "_CACHE", reachable)
    server = use(data)
    try:
        assert ask(server.start(), "SELECT 1") == 1
        server.stop()
    finally:
        shutil.rmtree(reachable, ignore_errors=True)
