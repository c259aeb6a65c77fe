"""The blocking API: the same verbs from any thread, interrupted, forked, forgotten."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from reunite import BlockingDatabase, Database, FileError, Row, UsageError

TODO = "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, n COUNTER, body CRDT_TEXT)"
INSERT = "INSERT INTO todo (title) VALUES (?)"
TITLES = "SELECT title FROM todo ORDER BY id"
SECONDS_MAX = 30.0


@pytest.fixture
def db(tmp_path: Path) -> Iterator[BlockingDatabase]:
    """A database with a tracked table."""
    with BlockingDatabase(tmp_path / "app.db") as db:
        db.execute(TODO)
        assert db.track_all() == ["todo"]
        yield db
        if not db.closed:
            assert db.verify() == []


def titles(db: BlockingDatabase) -> list[str]:
    return [row["title"] for row in db.fetch_all(TITLES)]


def run(program: str, *arguments: object) -> str:
    """What a Python program of its own prints; it must end well, and without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_verbs_are_those_of_the_async_api(db: BlockingDatabase) -> None:
    first = db.execute(INSERT, ("milk",))
    many = db.executemany(INSERT, [("oats",), ("tea",)])
    assert (first.rowcount, many.rowcount) == (1, 2)
    assert first.changeset is not None
    assert many.changeset is not None
    with db.transaction() as tx:
        tx.execute("UPDATE todo SET title = 'coffee' WHERE title = 'tea'")
        tx.executemany(INSERT, [("rum",)])
        assert len(tx.fetch_all(TITLES)) == 4
        assert tx.fetch_one(TITLES) is not None
    assert tx.changeset is not None
    assert titles(db) == ["milk", "oats", "coffee", "rum"]
    with db.text("todo", 1, "body") as text:
        text.insert(0, "heed")
        text.replace(3, 1, "p")
        text.delete(0, 0)
        assert (str(text), len(text), repr(text)) == ("heep", 4, "Editor('heep')")
        saved = text.save()
        assert saved is not None
    row = db.fetch_one("SELECT body FROM todo WHERE id = 1")
    assert row is not None
    assert row["body"] == "heep"
    (lost,) = db.history("todo", 3)
    restored = db.restore(lost)
    assert restored is not None
    assert tx.changeset < saved < restored
    assert "tea" in titles(db)
    assert db.rejected() == []
    assert db.synced(None)
    assert db.run(lambda inner: inner.on_engine(inner.replica.queued)) == 5


def test_what_a_notebook_shows_of_it_can_be_read(db: BlockingDatabase) -> None:
    result = db.execute("INSERT INTO todo (id, title) VALUES (1, 'milk') RETURNING id, title")
    assert repr(result.rows) == "[Row(id=1, title='milk')]"
    assert isinstance(db.fetch_one("SELECT 1"), Row)
    assert repr(db.fetch_all("SELECT 1 AS a, x'00' AS \"b c\"")) == r"[Row(a=1, b c=b'\x00')]"
    with db.transaction() as tx:
        assert repr(tx) == "<Transaction: open>"
    assert repr(tx) == "<Transaction: ended, changeset None>"
    assert repr(db).endswith("app.db', open)")
    with db.watch("SELECT 1") as rows:
        assert repr(rows) == "BlockingIterator(Watch('SELECT 1'))"
    db.close()
    assert repr(db).endswith("app.db', closed)")


def test_eight_threads_share_one(db: BlockingDatabase) -> None:
    db.execute("INSERT INTO todo (id, title, n) VALUES (1, 'count', 0)")

    def work(number: int) -> None:
        for place in range(10):
            with db.transaction() as tx:
                # Two statements, so that another thread's in between would show.
                row = tx.fetch_one("SELECT n FROM todo WHERE id = 1")
                assert row is not None
                tx.execute("UPDATE todo SET n = ? WHERE id = 1", (row["n"] + 1,))
            db.execute(INSERT, (f"{number} {place}",))
            assert db.fetch_all(TITLES)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    row = db.fetch_one("SELECT n, (SELECT count(*) FROM todo) AS rows FROM todo WHERE id = 1")
    assert row is not None
    assert tuple(row) == (80, 81)


def test_a_transaction_is_its_threads_and_others_wait(db: BlockingDatabase) -> None:
    with ThreadPoolExecutor(1) as pool:
        with db.transaction() as tx:
            tx.execute(INSERT, ("first",))
            with pytest.raises(UsageError, match="thread that began it"):
                pool.submit(tx.execute, INSERT, ("other",)).result(SECONDS_MAX)
            waiting = pool.submit(db.execute, INSERT, ("second",))
            assert not waiting.done()
            tx.execute(INSERT, ("first still",))
        waiting.result(SECONDS_MAX)
    assert titles(db) == ["first", "first still", "second"]


def test_inside_a_transaction_the_database_refuses_instead_of_waiting_for_itself(
    db: BlockingDatabase,
) -> None:
    with db.transaction() as tx:
        for wrong in (
            lambda: db.execute(INSERT, ("x",)),
            lambda: db.fetch_all(TITLES),
            lambda: db.track("todo"),
            db.close,
            lambda: db.transaction().__enter__(),
        ):
            with pytest.raises(UsageError, match=r"tx\.execute"):
                wrong()
        tx.execute(INSERT, ("right",))
    with pytest.raises(UsageError, match="ended"):
        tx.execute(INSERT, ("late",))
    assert titles(db) == ["right"]


def test_a_block_that_raises_is_rolled_back(db: BlockingDatabase) -> None:
    db.execute(INSERT, ("a",))

    def fails(error: type[BaseException]) -> None:
        with db.transaction() as tx:
            tx.execute(INSERT, ("b",))
            raise error

    for error in (KeyError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error):
            fails(error)

    def edits() -> None:
        with db.text("todo", 1, "body") as text:
            text.insert(0, "unsaved")
            raise KeyError

    with pytest.raises(KeyError):
        edits()
    row = db.fetch_one("SELECT title, body FROM todo")
    assert row is not None
    assert tuple(row) == ("a", None)


def test_an_event_loop_that_runs_is_no_obstacle(db: BlockingDatabase) -> None:
    async def scenario() -> list[str]:
        db.execute(INSERT, ("from a notebook",))
        return titles(db)

    assert asyncio.run(scenario()) == ["from a notebook"]


def test_a_callback_may_not_wait_for_its_own_thread(db: BlockingDatabase) -> None:
    async def within(_: Database) -> None:
        with pytest.raises(UsageError, match="callback"):
            db.execute(INSERT, ("x",))
        with pytest.raises(UsageError, match="callback"):
            db.close()

    db.run(within)


@pytest.mark.parametrize("by", ["the iterator", "the database"])
def test_an_iterator_that_waits_is_closed_from_another_thread(
    by: str, db: BlockingDatabase
) -> None:
    lines = db.watch_rejected()
    reached = threading.Event()

    def follow() -> list[Row]:
        db.fetch_all(TITLES)
        reached.set()
        return list(lines)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        assert reached.wait(SECONDS_MAX)
        lines.close() if by == "the iterator" else db.close()
        assert following.result(SECONDS_MAX) == []
    assert list(lines) == []
    lines.close()


def test_an_iterator_that_one_thread_closes_shows_it(db: BlockingDatabase) -> None:
    lines = db.watch_rejected()
    assert repr(lines) == "BlockingIterator(Watch('rejected'))"
    with lines:
        pass
    assert repr(lines) == "BlockingIterator(Watch('rejected', closed), closed)"


def test_an_iterator_is_closed_for_all_who_wait_for_it(db: BlockingDatabase) -> None:
    lines = db.watch_rejected()
    with ThreadPoolExecutor(2) as pool:
        following = [pool.submit(list, lines) for _ in range(2)]
        # The source has one at a time, and refuses the other.
        done, _ = wait(following, SECONDS_MAX, FIRST_COMPLETED)
        with pytest.raises(UsageError, match="waits"):
            done.pop().result()
        lines.close()
        done, waiting = wait(following, SECONDS_MAX)
        assert not waiting
        assert [future.result() for future in done if future.exception() is None] == [[]]


def test_closing_ends_the_calls_of_other_threads(db: BlockingDatabase) -> None:
    result = db.execute(INSERT, ("a",))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(db.synced, result.changeset)
        db.close()
        db.close()
        with pytest.raises(UsageError, match="closed"):
            waiting.result(SECONDS_MAX)
    with pytest.raises(UsageError, match="closed"):
        db.execute(INSERT, ("b",))


def test_a_file_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(FileError):
        BlockingDatabase(tmp_path / "nowhere" / "app.db")
    # The one that waits for the end of the program may be new.
    assert threading.active_count() <= before + 1


def test_one_that_is_forgotten_warns_and_ends(tmp_path: Path) -> None:
    threads: list[threading.Thread] = []

    def forget() -> None:
        threads.append(BlockingDatabase(tmp_path / "app.db")._thread._thread)
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"unclosed database .*app\.db"):
        forget()
    threads[0].join(SECONDS_MAX)
    assert not threads[0].is_alive()


FORGETS = """
import sys
from reunite import BlockingDatabase
db = BlockingDatabase(sys.argv[1])
db.execute("CREATE TABLE todo (id INTEGER PRIMARY KEY)")
db.execute("INSERT INTO todo VALUES (7)")
lines = db.watch_rejected()
import threading
threading.Thread(target=lambda: list(lines), daemon=True).start()
"""


def test_a_program_that_ends_with_an_open_database_ends(tmp_path: Path) -> None:
    assert run(FORGETS, tmp_path / "app.db") == ""
    with BlockingDatabase(tmp_path / "app.db") as db:
        assert [tuple(row) for row in db.fetch_all("SELECT id FROM todo")] == [(7,)]


LEAVES_A_BLOCK_OPEN = """
import sys
from reunite import BlockingDatabase
db = BlockingDatabase(sys.argv[1])
db.execute("CREATE TABLE todo (id INTEGER PRIMARY KEY)")
def numbers():
    with db.transaction() as tx:
        tx.execute("INSERT INTO todo VALUES (7)")
        yield 7
some = numbers()
print(next(some))
"""


def test_a_program_that_ends_inside_a_transaction_ends_and_takes_it_back(tmp_path: Path) -> None:
    assert run(LEAVES_A_BLOCK_OPEN, tmp_path / "app.db") == "7\n"
    with BlockingDatabase(tmp_path / "app.db") as db:
        assert db.fetch_all("SELECT id FROM todo") == []


INTERRUPTED = """
import signal, sys, threading
from reunite import BlockingDatabase
with BlockingDatabase(sys.argv[1]) as db:
    db.execute("CREATE TABLE todo (id INTEGER PRIMARY KEY)")
    begun, go_on = threading.Event(), threading.Event()
    def hold():
        with db.transaction() as tx:
            tx.execute("INSERT INTO todo VALUES (1)")
            begun.set()
            go_on.wait()
    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait()
    for write in (
        lambda: db.execute("INSERT INTO todo VALUES (2)"),
        lambda: db.transaction().__enter__(),
    ):
        main = threading.main_thread().ident
        try:
            threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
            write()
        except KeyboardInterrupt:
            print("interrupted")
    go_on.set()
    holder.join()
    try:
        with db.transaction() as tx:
            tx.execute("INSERT INTO todo VALUES (3)")
            signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted")
    db.execute("INSERT INTO todo VALUES (4)")
    print([row["id"] for row in db.fetch_all("SELECT id FROM todo")])
"""


def test_ctrl_c_cancels_the_call_that_waits_and_rolls_back(tmp_path: Path) -> None:
    assert run(INTERRUPTED, tmp_path / "app.db").splitlines() == ["interrupted"] * 3 + ["[1, 4]"]


FORKED = """
import os, sys
from reunite import BlockingDatabase, UsageError
with BlockingDatabase(sys.argv[1]) as db:
    db.execute("CREATE TABLE todo (id INTEGER PRIMARY KEY)")
    child = os.fork()
    if not child:
        try:
            db.execute("INSERT INTO todo VALUES (1)")
        except UsageError as error:
            os.write(1, str(error).encode())
        db.close()
        os._exit(0)
    os.waitpid(child, 0)
    db.execute("INSERT INTO todo VALUES (2)")
    print(len(db.fetch_all("SELECT id FROM todo")))
"""


def test_a_forked_process_is_told_to_open_its_own(tmp_path: Path) -> None:
    said = run(FORKED, tmp_path / "app.db")
    assert "before the process was forked" in said
    assert said.endswith("1\n")


def test_what_is_run_inside_a_transaction_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    with (
        BlockingDatabase(tmp_path / "app.db") as db,
        db.transaction(),
        pytest.raises(UsageError, match="transaction"),
    ):
        db.run(lambda db: db.execute("CREATE TABLE t (x)"))
