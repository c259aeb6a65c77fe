"""A replica whose work ends at any point, and files that cannot be written: nothing is lost."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from shutil import copy

import pytest

from tests.engine.conftest import MakePeer
from tests.engine.loopback import REALM, Refusal, Relay
from tests.engine.peer import Peer, connect

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT UNIQUE, n INTEGER)"


def contents(conn: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """All that a file holds."""
    names = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {
        name: conn.execute(f"SELECT * FROM {name}").fetchall() for name in (*names, "sqlite_master")
    }


Verb = Callable[[Peer, Relay], object]


def fold(peer: Peer, _: Relay) -> object:
    return peer.fold()


def greet(peer: Peer, _: Relay) -> object:
    return peer.replica.greeting()


def rejoin(peer: Peer, _: Relay) -> object:
    peer.replica.welcome(realm=REALM, offset_ms=9_000, fork=True, known=[])
    return None


def take_registry(peer: Peer, relay: Relay) -> object:
    return peer.replica.take_registry(list(relay.tables.values()))


def receive(peer: Peer, relay: Relay) -> object:
    return [peer.replica.receive(page, within=within) for page, within in relay.pages(peer.replica)]


def send(peer: Peer, _: Relay) -> object:
    return peer.replica.outgoing(changesets_max=9, bytes_max=1 << 20)


def reject(peer: Peer, _: Relay) -> object:
    (first, *_rest) = peer.replica.unanswered(0, changesets_max=9)
    return peer.replica.reject(first.number, first.nonce, "constraint", "no")


def track(peer: Peer, _: Relay) -> object:
    return peer.track("more")


@pytest.fixture
def busy(make_peer: MakePeer, relay: Relay) -> Peer:
    """A replica with something to do for every verb."""
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.write("INSERT INTO todo VALUES (1, 'milk', 1), (2, 'oats', 2)")
    relay.sync(a, b)
    a.write("CREATE TABLE more (id INTEGER PRIMARY KEY, v)", "INSERT INTO more VALUES (1, 'x')")
    b.write("UPDATE todo SET n = 3 WHERE id = 1", "ALTER TABLE todo ADD COLUMN note TEXT")
    b.write("UPDATE todo SET note = 'new' WHERE id = 2")
    relay.sync(b)
    a.commit("UPDATE todo SET title = 'ours' WHERE id = 1", "INSERT INTO todo VALUES (5, 'x', 0)")
    a.commit("UPDATE todo SET n = 1 WHERE id = 5")
    relay.greet(a.replica)
    a.replica.outgoing(changesets_max=1, bytes_max=1)
    a.write("DELETE FROM todo WHERE id = 2", "ALTER TABLE todo ADD COLUMN note TEXT")
    return a


def end_at_step(peer: Peer, step: int, verb: Callable[[], object]) -> bool:
    """Run a verb that ends at this step of SQLite's machine; False when it was done before."""
    left = step

    def end_once() -> int:
        nonlocal left
        left -= 1
        return left == 0

    version = peer.rows("PRAGMA data_version")
    peer.engine.set_progress_handler(end_once, 1)
    try:
        verb()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        # After its last step a COMMIT can be ended, too, and has committed.
        return peer.rows("PRAGMA data_version") == version
    finally:
        peer.engine.set_progress_handler(None, 1)
    return False


@pytest.mark.parametrize(
    "verb",
    [fold, greet, rejoin, take_registry, receive, send, reject, track],
    ids=lambda v: v.__name__,
)
def test_a_verb_that_ends_at_any_statement_has_done_nothing_and_can_be_done_again(
    busy: Peer, relay: Relay, verb: Verb
) -> None:
    before = contents(busy.app)
    step, ended = 1, 0
    while end_at_step(busy, step, lambda: verb(busy, relay)):
        assert not busy.engine.in_transaction
        assert contents(busy.app) == before
        step, ended = step + 1 + step // 8, ended + 1
    assert ended > 20
    relay.sync(busy)
    assert busy.rows("SELECT id, title, n, note FROM todo ORDER BY id")[0][2:] == (3, None)
    assert busy.differences() == []


def test_a_file_copied_in_the_middle_of_anything_opens_and_goes_on(
    busy: Peer, relay: Relay, tmp_path: Path
) -> None:
    copies: list[Path] = []

    def keep(_sql: str) -> None:
        # What a kill -9 leaves: the file and its log as they are on the disk.
        path = tmp_path / f"crash-{len(copies)}.db"
        copy(busy.path, path)
        wal = Path(f"{busy.path}-wal")
        if wal.exists():
            copy(wal, f"{path}-wal")
        copies.append(path)

    busy.engine.set_trace_callback(keep)
    receive(busy, relay)
    busy.engine.set_trace_callback(None)
    assert len(copies) > 10
    seen = set()
    for path in copies:
        conn = connect(path)
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        seen.add(conn.execute("SELECT value FROM _reunite_meta WHERE name = 'seq'").fetchone()[0])
        assert conn.execute("SELECT count(*) FROM _reunite_changesets").fetchone()[0] >= 2
        conn.close()
    assert len(seen) == 1


def test_a_full_disk_loses_nothing(busy: Peer, relay: Relay) -> None:
    busy.write("UPDATE todo SET title = hex(zeroblob(3000)) || id")
    pages = busy.engine.execute("PRAGMA page_count").fetchone()[0]
    busy.engine.execute(f"PRAGMA max_page_count = {pages}")
    before = contents(busy.engine)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        busy.fold()
    assert contents(busy.engine) == before
    busy.engine.execute("PRAGMA max_page_count = 1000000")
    relay.sync(busy)
    assert busy.replica.queued() == 0
    assert busy.differences() == []


def test_a_full_disk_during_an_apply_blocks_no_row(busy: Peer, relay: Relay) -> None:
    relay.sync(busy)
    relay.edit("todo", (8,), at=9, title="large", note="x" * 300_000)
    pages = busy.engine.execute("PRAGMA page_count").fetchone()[0]
    busy.engine.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        relay.sync(busy)
    busy.engine.execute("PRAGMA max_page_count = 1000000")
    relay.sync(busy)
    assert busy.states("todo")[8] == "synced"


def test_two_processes_on_one_file_lose_nothing(busy: Peer, relay: Relay) -> None:
    other = connect(busy.path)
    other.execute("PRAGMA busy_timeout = 5000")
    twin = Peer(busy.path, 9)
    link = relay.connect(busy)
    for number in range(100, 130):
        other.execute("INSERT INTO todo (id, title) VALUES (?, ?)", (number, f"t{number}"))
        (twin if number % 2 else busy).fold()
        link.push()
        link.deliver()
        twin.commit(f"UPDATE todo SET n = {number} WHERE id = {number}")
    relay.settle()
    twin.close()
    other.close()
    assert busy.replica.queued() == 0
    assert all(relay.stated("todo", number)["n"] == number for number in range(100, 130))
    assert busy.differences() == []


def test_a_refused_changeset_is_forgotten_only_with_its_note(busy: Peer, relay: Relay) -> None:
    relay.refuse = lambda _changeset, _after: Refusal()
    relay.sync(busy)
    assert busy.replica.queued() == 0
    assert {line[1] for line in busy.rejected()} >= {1, 5}
