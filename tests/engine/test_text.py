"""Open texts: edits at places, kept and merged with what others do."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from reunite import Database, UsageError
from reunite.cells.text_edit import Replacement
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Refusal, Relay
from tests.engine.peer import Clock, connect

NOTE = "CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, body CRDT_TEXT)"
BODY = "SELECT body FROM note WHERE id = 1"

Work = Callable[[Database], Awaitable[None]]


@pytest.fixture
def use(tmp_path: Path) -> Callable[[Work], None]:
    """Runs a coroutine with an open database that has one note."""

    def run(work: Work) -> None:
        async def whole() -> None:
            async with Database(tmp_path / "app.db", clock=Clock()) as db:
                await db.execute(NOTE)
                await db.track("note")
                await db.execute("INSERT INTO note VALUES (1, 't', 'hello world')")
                await work(db)
                assert await db.verify() == []

        asyncio.run(whole())

    return run


Use = Callable[[Work], None]


async def body(db: Database) -> object:
    row = await db.fetch_one(BODY)
    return row["body"] if row else None


def test_what_is_typed_shows_at_once_and_is_kept_at_the_end(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.text("note", 1, "body") as text:
            text.insert(5, ", 🙂")
            text.delete(0, 1)
            text.insert(0, "H")
            assert (str(text), len(text)) == ("Hello, 🙂 world", 14)
            assert await body(db) == "hello world"
        assert await body(db) == "Hello, 🙂 world"

    use(work)


def test_places_are_code_points(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.text("note", 1, "body") as text:
            text.replace(0, len(text), "a👩‍👩‍👧é\u0301z")
            text.insert(len(text) - 1, "!")
            text.delete(1, 5)
            assert str(text) == "aé\u0301!z"
        assert await body(db) == "aé\u0301!z"

    use(work)


def test_an_edit_that_is_saved_is_one_changeset(use: Use) -> None:
    async def work(db: Database) -> None:
        before = db.replica.queued()
        async with db.text("note", 1, "body") as text:
            for letter in "abc":
                text.insert(0, letter)
            changeset = await text.save()
            assert await text.save() is None
        assert await db.on_engine(db.replica.queued) == before + 1
        (last,) = await db.fetch_all("SELECT max(id) FROM _reunite_changesets")
        assert changeset == last[0]
        assert await body(db) == "cbahello world"

    use(work)


def test_nothing_is_kept_of_a_block_that_raises(use: Use) -> None:
    async def work(db: Database) -> None:
        async def fail() -> None:
            async with db.text("note", 1, "body") as text:
                text.insert(0, "lost ")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await body(db) == "hello world"

    use(work)


def test_what_others_write_arrives_and_is_told(use: Use) -> None:
    async def work(db: Database) -> None:
        told: asyncio.Queue[list[Replacement]] = asyncio.Queue()
        async with db.text("note", 1, "body") as text:
            text.observe(told.put_nowait)
            text.insert(0, "unsaved: ")
            with closing(connect(db.path)) as other:
                other.execute("UPDATE note SET body = 'hello wide world'")
            changes = await asyncio.wait_for(told.get(), 10)
            assert changes == [Replacement(15, 15, "wide ")]
            assert str(text) == "unsaved: hello wide world"
        assert await body(db) == "unsaved: hello wide world"

    use(work)


def test_two_open_texts_of_one_cell_meet(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.text("note", 1, "body") as one, db.text("note", 1, "body") as two:
            one.insert(5, " one")
            two.insert(11, " two")
            await one.save()
            await two.save()
            await one.refresh()
            assert str(one) == "hello one world two"
        assert await body(db) == "hello one world two"

    use(work)


def test_a_text_that_was_null_begins_empty(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("INSERT INTO note (id) VALUES (2)")
        async with db.text("note", 2, "body") as text:
            assert str(text) == ""
            text.insert(0, "new")
        row = await db.fetch_one("SELECT body FROM note WHERE id = 2")
        assert row is not None
        assert row["body"] == "new"

    use(work)


def test_a_text_that_null_replaced_is_empty_until_something_is_typed(use: Use) -> None:
    async def work(db: Database) -> None:
        await db.execute("UPDATE note SET body = NULL")
        async with db.text("note", 1, "body") as text:
            assert str(text) == ""
        assert await body(db) is None
        async with db.text("note", 1, "body") as text:
            text.insert(0, "anew")
            await text.save()
            assert await body(db) == "anew"
            await db.execute("UPDATE note SET body = NULL")
            await text.refresh()
            assert str(text) == ""
            text.insert(0, "again")
        assert await body(db) == "again"

    use(work)


@pytest.mark.parametrize(
    ("table", "key", "column", "words"),
    [
        ("note", 9, "body", "no row"),
        ("note", 1, "title", "CRDT_TEXT"),
        ("note", 1, "nothing", "no column"),
        ("nowhere", 1, "body", "not tracked"),
        ("note", (1, 2), "body", "1 parts"),
    ],
)
def test_what_is_no_open_text_is_said(
    use: Use, table: str, key: object, column: str, words: str
) -> None:
    async def work(db: Database) -> None:
        with pytest.raises(UsageError, match=words):
            async with db.text(table, key, column):  # type: ignore[arg-type]
                pass

    use(work)


def test_places_outside_the_text_are_refused(use: Use) -> None:
    async def work(db: Database) -> None:
        async with db.text("note", 1, "body") as text:
            for at, length in ((12, 0), (-1, 1), (5, 7), (3, -1)):
                with pytest.raises(IndexError):
                    text.delete(at, length)
            with pytest.raises(UsageError, match="Unicode"):
                text.insert(0, "\ud800")

    use(work)


def test_saving_into_a_row_that_is_gone_says_so(use: Use) -> None:
    async def work(db: Database) -> None:
        async def write_into_nothing() -> None:
            async with db.text("note", 1, "body") as text:
                text.insert(0, "x")
                await db.execute("DELETE FROM note")

        with pytest.raises(UsageError, match="no row"):
            await write_into_nothing()

    use(work)


def test_what_was_refused_leaves_an_open_text(make_peer: MakePeer, relay: Relay) -> None:
    peer = make_peer(NOTE)
    peer.track("note")
    peer.write("INSERT INTO note VALUES (1, 't', 'hello world')")
    relay.sync(peer)

    async def work() -> None:
        async with Database(peer.path, clock=peer.clock) as db:
            async with db.text("note", 1, "body") as text:
                text.insert(0, "refused ")
                await text.save()
                text.insert(len(text), " kept")
                relay.refuse = lambda _changeset, _after: Refusal()
                relay.sync(peer)
                relay.refuse = lambda _changeset, _after: None
                await text.refresh()
                assert str(text) == "hello world kept"
                text.insert(5, ",")
            assert await body(db) == "hello, world kept"
            assert await db.verify() == []

    asyncio.run(work())
    relay.sync(peer)
    assert peer.rows(BODY) == [("hello, world kept",)]


def test_a_row_that_is_blocked_is_not_opened(make_peer: MakePeer, relay: Relay) -> None:
    strict = NOTE.replace("title TEXT", "title TEXT CHECK (title <> 'x')")
    peer, other = make_peer(NOTE), make_peer(strict)
    for each in (peer, other):
        each.track("note")
        relay.sync(each)
    peer.commit("INSERT INTO note VALUES (1, 'x', 'abc')")
    relay.sync(peer, other)
    assert other.states("note") == {1: "blocked"}

    async def work() -> None:
        async with Database(other.path, clock=other.clock) as db:
            with pytest.raises(UsageError, match="blocked"):
                async with db.text("note", 1, "body"):
                    pass

    asyncio.run(work())
    assert other.states("note") == {1: "blocked"}
