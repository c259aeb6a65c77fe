"""Opening files: new ones, old ones, damaged ones, and ones that are no database."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from reunite import Database, FileError, UsageError
from reunite.replica import Replica
from tests.engine.peer import Clock, chance, connect

NOBODY = 65_534


def open_and_close(path: Path) -> None:
    async def run() -> None:
        async with Database(path):
            pass

    asyncio.run(run())


@pytest.fixture
def readonly_folder() -> Iterator[Path]:
    """A folder that this process may read and not write, whoever runs it."""
    folder = Path(mkdtemp())
    conn = sqlite3.connect(folder / "app.db")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    conn.close()
    (folder / "app.db").chmod(0o644)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield folder
    os.seteuid(user)
    folder.chmod(stat.S_IRWXU)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_a_new_file_is_made(tmp_path: Path) -> None:
    open_and_close(tmp_path / "new.db")
    assert (tmp_path / "new.db").exists()


def test_opening_changes_nothing_about_the_apps_tables(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    conn = connect(path)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    conn.execute("INSERT INTO t VALUES (1, 'x')")
    open_and_close(path)
    open_and_close(path)
    assert conn.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 't'").fetchall() == [
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, v)",)
    ]
    assert conn.execute("SELECT id, v FROM t").fetchall() == [(1, "x")]
    conn.close()


@pytest.mark.parametrize(
    "content", [b"not a database at all\n" * 100, b"SQLite format 3\0" + b"x" * 4_096]
)
def test_a_file_that_is_no_database_says_so_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "app.db"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"app\.db"):
        open_and_close(path)
    assert path.read_bytes() == content


def test_a_path_in_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nowhere"):
        open_and_close(tmp_path / "nowhere" / "app.db")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        open_and_close(tmp_path)


@pytest.mark.parametrize("name", ["app.db", "new.db"])
def test_a_folder_that_cannot_be_written_says_so(readonly_folder: Path, name: str) -> None:
    with pytest.raises(FileError, match=name.replace(".", r"\.")):
        open_and_close(readonly_folder / name)


def later_format(path: Path) -> None:
    conn = connect(path)
    conn.execute("UPDATE _reunite_meta SET value = 2 WHERE name = 'format'")
    conn.execute("INSERT INTO _reunite_meta VALUES ('a_fact_of_later', 1)")
    conn.close()


def test_a_file_of_a_later_format_says_to_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    open_and_close(path)
    later_format(path)
    with pytest.raises(FileError, match="upgrade"):
        open_and_close(path)


def test_a_replica_refuses_a_file_of_a_later_format_too(tmp_path: Path) -> None:
    conn = connect(tmp_path / "app.db")
    Replica(conn, chance=chance(1), clock=Clock()).prepare()
    later_format(tmp_path / "app.db")
    with pytest.raises(FileError, match="upgrade"):
        Replica(conn, chance=chance(1), clock=Clock()).prepare()
    assert not conn.in_transaction
    conn.close()


def test_a_database_that_is_not_open_says_so(tmp_path: Path) -> None:
    db = Database(tmp_path / "app.db")
    with pytest.raises(UsageError, match="not open"):
        asyncio.run(db.execute("SELECT 1"))


def test_a_database_that_was_closed_opens_again(tmp_path: Path) -> None:
    async def run() -> None:
        db = Database(tmp_path / "app.db")
        async with db:
            await db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        with pytest.raises(UsageError, match="not open"):
            await db.execute("SELECT 1")
        async with db:
            assert await db.fetch_all("SELECT id FROM t") == []

    asyncio.run(run())


def test_a_database_is_opened_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with Database(tmp_path / "app.db") as db:
            with pytest.raises(UsageError, match="open already"):
                await db.open()

    asyncio.run(run())
