"""What a file itself knows of a row's past, and writing it back."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reunite import Database, Overwritten, SyncError, UsageError, history
from reunite.cells.register import Register, Value
from reunite.clock import NEVER, stamp
from reunite.document import Document, cell_key, encode
from reunite.overwritten import ROW_PLACES_MAX, Loss
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Refusal, Relay
from tests.engine.peer import START_MS, Clock, Peer, connect

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, note TEXT DEFAULT '-')"


def overwritten(peer: Peer, key: Value = 1) -> list[Overwritten]:
    with peer.replica.transaction() as state:
        return history.of_row(state, "todo", key).listed()


def values(peer: Peer, column: str = "title") -> list[Value]:
    return [each.value for each in overwritten(peer) if each.column == column]


def at(ms: int) -> datetime:
    return datetime.fromtimestamp((START_MS + ms) / 1000, UTC)


@pytest.fixture
def pair(make_peer: MakePeer, relay: Relay) -> tuple[Peer, Peer]:
    """Two files that have synced one row, written by the first."""
    a, b = make_peer(TODO), make_peer()
    a.track("todo")
    a.commit("INSERT INTO todo (id, title) VALUES (1, 'first')", at=0)
    relay.sync(a, b)
    return a, b


def test_what_others_overwrote_is_known_with_its_time_and_replica(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    b.commit("UPDATE todo SET title = 'by b', note = 'x'", at=100)
    relay.sync(b, a)
    (note, title) = sorted(overwritten(a), key=lambda each: each.column)
    of_a, of_b = (peer.replica.standing().replica for peer in (a, b))
    assert title == Overwritten("todo", 1, "title", "first", at(0), of_a, at(100), of_b)
    # A default is as old as its row.
    assert note == Overwritten("todo", 1, "note", "-", at(0), of_a, at(100), of_b)
    # The author of the edit saw the same.
    assert overwritten(b) == overwritten(a)


def test_an_edit_that_waits_and_loses_is_known_before_its_verdict_and_after(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("UPDATE todo SET title = 'early'", at=100)
    b.commit("UPDATE todo SET title = 'late'", at=200)
    relay.sync(b)
    link = relay.connect(a)
    assert a.rows("SELECT title FROM todo") == [("late",)]
    assert values(a) == ["early", "first"]
    relay.settle()
    link.close()
    assert values(a) == ["early", "first"]
    assert a.replica.queued() == 0


def test_an_edit_that_was_committed_and_overwritten_while_the_file_was_away_is_known(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("UPDATE todo SET title = 'by a'", at=100)
    link = relay.connect(a)
    assert link.push()
    link.close()  # before the acknowledgement
    relay.sync(b)
    b.commit("UPDATE todo SET title = 'by b'", at=200)
    relay.sync(b)
    assert values(a) == ["first"]
    relay.sync(a)
    assert values(a) == ["by a", "first"]


def test_what_waiting_edits_overwrite_is_known_until_they_are_refused(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, _ = pair
    a.commit("UPDATE todo SET title = 'second'", at=100)
    a.commit("UPDATE todo SET title = 'third'", at=200)
    assert values(a) == ["second", "first"]
    relay.refuse = lambda _changeset, _after: Refusal()
    relay.sync(a)
    assert a.rows("SELECT title FROM todo") == [("first",)]
    assert values(a) == []


def test_a_delete_overwrites_nothing_and_a_deleted_row_has_its_history(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    a.commit("UPDATE todo SET title = 'second'", at=100)
    relay.sync(a, b)
    b.commit("DELETE FROM todo", at=200)
    relay.sync(b, a)
    assert values(a) == values(b) == ["first"]


def test_of_a_row_the_newest_are_kept(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.commit("INSERT INTO todo (id, title) VALUES (2, 'other')", "UPDATE todo SET title = 'x'")
    for number in range(ROW_PLACES_MAX + 20):
        a.commit(f"UPDATE todo SET title = '{number}' WHERE id = 1", at=number + 1)
        if number % 7 == 0:
            relay.sync(a, b)
    relay.sync(a, b)
    assert len(values(a)) == ROW_PLACES_MAX
    assert values(a)[0] == str(ROW_PLACES_MAX + 18)
    assert values(b) == values(a)


def test_columns_that_get_other_numbers_keep_their_history(
    pair: tuple[Peer, Peer], relay: Relay
) -> None:
    a, b = pair
    b.commit("UPDATE todo SET title = 'by b'", at=100)
    relay.sync(b, a)
    empty = Relay(first_column=40)
    a.replica.refill(realm=b"a realm in memory", tables=[])
    assert values(a) == ["first"]
    empty.sync(a)
    assert values(a) == ["first"]


def test_a_file_of_an_earlier_release_gets_the_table(pair: tuple[Peer, Peer], relay: Relay) -> None:
    a, b = pair
    a.app.execute("DROP TABLE _reunite_history")
    a.replica.prepare()
    b.commit("UPDATE todo SET title = 'by b'", at=100)
    relay.sync(b, a)
    assert values(a) == ["first"]
    assert a.differences() == []


# The app's side.

Work = Callable[[Database], Awaitable[None]]


@pytest.fixture
def use(tmp_path: Path) -> Callable[[Work], None]:
    """Runs a coroutine with an open database: one row, whose title was edited."""

    def run(work: Work) -> None:
        async def whole() -> None:
            async with Database(tmp_path / "app.db", clock=Clock()) as db:
                await db.execute(TODO)
                await db.execute("CREATE TABLE pair (a TEXT, b BLOB, c REAL, PRIMARY KEY (a, b))")
                await db.track("todo", "pair")
                await db.execute("INSERT INTO todo (id, title) VALUES (1, 'first')")
                await db.execute("UPDATE todo SET title = 'second'")
                await work(db)
                assert await db.verify() == []

        asyncio.run(whole())

    return run


Use = Callable[[Work], None]


async def titles(db: Database) -> list[Value]:
    return [row[0] for row in await db.fetch_all("SELECT title FROM todo ORDER BY id")]


def test_a_value_is_written_back_as_an_edit_made_now(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("DELETE FROM pair")
        queued = await db.on_engine(db.replica.queued)
        (first,) = await db.history("todo", 1)
        assert first.value == "first"
        changeset = await db.restore(first)
        assert await titles(db) == ["first"]
        assert await db.on_engine(db.replica.queued) == queued + 1
        (last,) = await db.fetch_all("SELECT max(id) FROM _reunite_changesets")
        assert changeset == last[0]
        assert await db.restore(first) is None
        # And what gave way to it can be written back in turn.
        second, *_ = await db.history("TODO", (1,))
        await db.restore(second)
        assert await titles(db) == ["second"]

    use(work)


def test_a_key_of_several_columns_is_a_tuple(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO pair VALUES ('k', x'00', 0.5)")
        await db.execute("UPDATE pair SET c = 1.5")
        (found,) = await db.history("pair", ("k", b"\0"))
        assert (found.key, found.value) == (("k", b"\0"), 0.5)
        await db.restore(found)
        assert [tuple(row) for row in await db.fetch_all("SELECT c FROM pair")] == [(0.5,)]

    use(work)


@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ("nothing", 1, "'nothing' is not tracked"),
        ("pair", "k", "has 2 parts"),
        ("todo", None, "key is NULL"),
        ("todo", 1.0, "floating"),
    ],
)
def test_what_can_be_no_row_is_a_usage_error(use: Use, table: str, key: Value, words: str) -> None:
    async def work(db: Database) -> None:
        with pytest.raises(UsageError, match=words):
            await db.history(table, key)

    use(work)


def test_a_row_that_nobody_knows_has_no_history(use: Use) -> None:
    async def work(db: Database) -> None:
        assert await db.history("todo", 99) == []
        assert await db.history("todo", "1") == []

    use(work)


def test_what_has_no_place_is_not_written_back(use: Use) -> None:
    async def work(db: Database) -> None:
        (first,) = await db.history("todo", 1)
        for wrong, words in (
            (replace(first, column="gone"), "no column 'gone' any more"),
            (replace(first, column="id"), "no column 'id'"),
            (replace(first, table="gone"), "'gone' is not tracked"),
            (replace(first, key=2), "key 2 is not here"),
        ):
            with pytest.raises(UsageError, match=words):
                await db.restore(wrong)
        await db.execute("DELETE FROM todo")
        with pytest.raises(UsageError, match="key 1 was deleted; insert it first"):
            await db.restore(first)

    use(work)


def test_a_restore_that_a_constraint_forbids_changes_nothing(use: Use) -> None:
    async def work(db: Database) -> None:
        (first,) = await db.history("todo", 1)
        await db.execute("INSERT INTO todo (id, title) VALUES (2, 'first')")
        await db.execute("CREATE UNIQUE INDEX one_of_each ON todo (title)")
        with pytest.raises(sqlite3.IntegrityError):
            await db.restore(first)
        assert await titles(db) == ["second", "first"]

    use(work)


def test_inside_a_transaction_there_is_no_history(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.transaction():
            with pytest.raises(UsageError, match="tx"):
                await db.history("todo", 1)

    use(work)


def test_a_relay_is_asked_too_and_silence_is_no_error(
    make_peer: MakePeer, relay: Relay, tmp_path: Path
) -> None:
    title = cell_key(2)

    def told(ms: int, value: str) -> Loss:
        cells: dict[int, Register] = {title: (stamp((START_MS + ms) << 16, 5), value)}
        lost = Document(NEVER, NEVER, NEVER, cells)
        return Loss(encode(lost), stamp((START_MS + 900) << 16, 6))

    asked: list[tuple[int, bytes]] = []

    async def knows(table: int, key: bytes) -> Sequence[Loss]:
        asked.append((table, key))
        return [told(300, "between"), told(500, "later")]

    async def is_silent(table: int, key: bytes) -> Sequence[Loss]:
        asked.append((table, key))
        raise SyncError("no answer", "offline")

    async def scenario(path: Path) -> None:
        async with Database(path, clock=Clock()) as db:
            leave = db.add_history_source(is_silent)
            assert [each.value for each in await db.history("todo", 1)] == ["first"]
            stop = db.add_history_source(knows)
            found = await db.history("todo", 1)
            assert [each.value for each in found] == ["later", "between", "first"]
            assert found[0].replaced_at == at(900)
            assert asked == [(1, b"\x91\x01")] * 3
            leave()
            stop()
            assert [each.value for each in await db.history("todo", 1)] == ["first"]

    a = make_peer(TODO)
    a.track("todo")
    a.commit("INSERT INTO todo (id, title) VALUES (1, 'first')", at=0)
    relay.sync(a)
    a.commit("UPDATE todo SET title = 'second'", at=100)
    asyncio.run(scenario(a.path))


def test_a_table_that_no_relay_knows_is_asked_of_none(use: Use) -> None:
    async def never(table: int, key: bytes) -> Sequence[Loss]:
        raise AssertionError("it has no number there")

    async def work(db: Database) -> None:
        db.add_history_source(never)
        assert len(await db.history("todo", 1)) == 1

    use(work)


def test_a_value_that_another_program_overwrote_just_now_is_known(use: Use, tmp_path: Path) -> None:
    async def work(db: Database) -> None:
        conn = connect(tmp_path / "app.db")
        conn.execute("UPDATE todo SET title = 'third'")
        conn.close()
        assert [each.value for each in await db.history("todo", 1)] == ["second", "first"]

    use(work)
