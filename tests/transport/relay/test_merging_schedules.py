"""Rare schedules of cells that merge: copies, forks, restored relays, and values at the bounds.

After each of them all have what was written, or are told that it was refused, and go on.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest
from pycrdt import Doc, Map

from reunite import Database, UsageError
from reunite.cells import counter, set, yjs
from reunite.cells.kinds import Author
from reunite.cells.register import Value
from reunite.document import cell_key, decode
from reunite.text import Editor
from reunite_transport.relay.admission import Changeset, Refused
from tests.engine import conftest
from tests.engine.conftest import MakePeer
from tests.engine.peer import START_MS, Peer
from tests.transport.relay import committed_peers
from tests.transport.relay.committed_peers import Relay

NOTE = """CREATE TABLE note (id INTEGER PRIMARY KEY, n COUNTER, body CRDT_TEXT, tags CRDT_SET_TEXT,
    steps CRDT_LIST_TEXT, data CRDT_JSON_TEXT, t TEXT)"""
ROWS = "SELECT * FROM note ORDER BY id"
# The registry's column ids, with the kinds of their cells.
N = cell_key(2, counter.KIND)
TAGS = cell_key(4, set.KIND)
DATA = cell_key(6, yjs.JSON_KIND)

STRANGER = 900
# More than a clock may be ahead of the relay's.
AHEAD_MS = 3_600_000
# More blocks than the fixture `few_blocks` allows; two halves of it are less.
PARTS = [{"a": 1, "b": 2, "c": 3}] * 300
# Deeper than what msgpack and Python's JSON are asked to nest.
DEEP = "[" * 600 + "]" * 600
# For what happens at once, on a machine that is busy with other tests.
SECONDS_MAX = 20.0

# Fixtures of other modules, under the names that pytest finds them by.
make_peer, relay = conftest.make_peer, committed_peers.relay


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of Yjs blocks that a small value reaches."""
    monkeypatch.setattr("reunite.cells.yjs_update.BLOCKS_MAX", 1_000)
    monkeypatch.setattr("reunite.cells.yjs.BLOCKS_MAX", 1_000)


def pair(
    make_peer: MakePeer, relay: Relay, values: str = "0, 'one', '[]', '[]', '{}', 'x'"
) -> tuple[Peer, Peer]:
    """Two peers that have the same note."""
    a, b = make_peer(NOTE), make_peer()
    a.track("note")
    a.write(f"INSERT INTO note VALUES (1, {values})")
    relay.sync(a, b)
    return a, b


def fork(make_peer: MakePeer, relay: Relay, peer: Peer) -> Peer:
    """A copy of the peer, which has sent something since."""
    copy = make_peer(copy_of=peer)
    peer.commit("UPDATE note SET t = 'since'")
    relay.sync(peer)
    return copy


def refuse_all(_changeset: Changeset) -> Refused:
    return Refused("constraint", "no")


def refuse_bad(changeset: Changeset) -> Refused | None:
    """Refuse what sets a column to 'bad'."""
    documents = [decode(data) for rows in changeset.sections for data in rows.documents]
    bad = any(value == "bad" for found in documents for _, value in found.cells.values())
    return Refused("constraint", "no") if bad else None


def first_only(refusal: Refused) -> Callable[[Changeset], Refused | None]:
    """Refuse what comes first, and nothing after it."""
    left = [refusal]
    return lambda _changeset: left.pop() if left else None


def reasons(peer: Peer) -> list[Value]:
    """Why the peer's work was given up."""
    return [reason for _, _, _, reason, _ in peer.rejected()]


# Copies of a file.


def test_a_copy_goes_on_from_work_that_arrived_in_another_form(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    a.commit("UPDATE note SET t = 'bad', body = body || ' bad'")
    a.commit("UPDATE note SET body = body || ' good'")
    copy = make_peer(copy_of=a)
    copy.commit("UPDATE note SET body = body || ' later'")

    relay.refuse = refuse_bad
    relay.sync(a)
    relay.sync(copy)
    relay.sync(a, b)
    assert a.rows(ROWS) == b.rows(ROWS) == copy.rows(ROWS)
    assert b.rows("SELECT body FROM note") == [("one good later",)]


@pytest.mark.parametrize("reason", ["clock-ahead", "constraint"])
def test_work_that_was_refused_and_goes_again_counts_once_though_a_copy_has_it(
    make_peer: MakePeer, relay: Relay, reason: str
) -> None:
    a, _ = pair(make_peer, relay)
    # As another program's, it is tried again after all else.
    a.write("UPDATE note SET n = n + 3")
    a.fold()
    a.commit("INSERT INTO note (id, n) VALUES (2, 0)")
    copy = make_peer(copy_of=a)
    relay.refuse = first_only(Refused(reason, "no"))
    relay.sync(a)
    relay.sync(copy)
    relay.sync(a)
    assert a.rows("SELECT n FROM note") == copy.rows("SELECT n FROM note") == [(3,), (0,)]
    assert (a.rejected(), copy.rejected()) == ([], [])


@pytest.mark.parametrize("sent", [False, True])
def test_what_a_copy_does_in_the_same_name_hides_nothing(
    make_peer: MakePeer, relay: Relay, sent: bool
) -> None:
    a, b = pair(make_peer, relay)
    copy = make_peer(copy_of=a)
    link = relay.connect(a)
    link.close()
    # Nobody knows yet that there are two of it, and it hears of the other's work as of another's.
    copy.commit("UPDATE note SET n = n + 5, tags = '[\"x\"]'")
    relay.sync(copy)
    a.commit('UPDATE note SET n = n + 1, tags = \'["x","y"]\'')
    if sent:
        link.ready()
    relay.catch_up(a)
    assert a.rows("SELECT n FROM note") == [(6,)]
    a.commit("UPDATE note SET n = n + 1")
    for peer in (a, copy, b):
        relay.sync(peer)
    found = [peer.rows("SELECT n, tags FROM note") for peer in (a, copy, b)]
    assert found == [[(7, '["x","y"]')]] * 3


def test_work_that_two_copies_split_alike_counts_once(make_peer: MakePeer, relay: Relay) -> None:
    a, _ = pair(make_peer, relay)
    a.write("UPDATE note SET n = n + 3")
    a.write("INSERT INTO note (id, n, t) VALUES (2, 4, 'bad'), (3, 5, 'good')")
    a.fold()
    copy = make_peer(copy_of=a)
    relay.refuse = refuse_bad
    for peer in (a, copy, a):
        relay.sync(peer)
    assert (
        a.rows("SELECT id, n FROM note") == copy.rows("SELECT id, n FROM note") == [(1, 3), (3, 5)]
    )


def test_counters_that_copies_write_anew_are_made_again_as_they_were(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay, "5, 'one', '[]', '[]', '{}', 'x'")
    copies = [fork(make_peer, relay, a), fork(make_peer, relay, a)]
    for copy in copies:
        for edit in ("NULL", "1", "n + 7"):
            copy.commit(f"UPDATE note SET n = {edit}")
    for _ in range(2):
        b.commit("UPDATE note SET n = n - 2")
        relay.sync(b)
        for copy in copies:
            relay.connect(copy).close()
    links = [relay.connect(copy) for copy in copies]
    while any(batches := [link.ready() for link in links]):
        # Both are on their way before either hears of the other's.
        for link, batch in zip(links, batches, strict=True):
            relay.commit(link, batch)
        for link in links:
            link.deliver()
    for link in links:
        link.close()
    for peer in (a, b, *copies):
        relay.sync(peer)
    # What they had not seen stays, and is not taken for what they wrote.
    assert [peer.rows("SELECT n FROM note") for peer in (a, b, *copies)] == [[(2 * 8 - 4,)]] * 4


def test_two_copies_that_adopted_the_same_rows_merge_their_edits(
    make_peer: MakePeer, relay: Relay
) -> None:
    a = make_peer(NOTE, "INSERT INTO note (id, t) VALUES (1, 'x')")
    b = make_peer(copy_of=a)
    for peer in (a, b):
        peer.track("note")
    a.write("UPDATE note SET body = 'one'")
    relay.sync(a)
    b.write("UPDATE note SET body = 'two'", at=5)
    relay.sync(b, a)
    assert a.rows(ROWS) == b.rows(ROWS)
    assert b.rows("SELECT body FROM note")[0][0] in ("onetwo", "twoone")


@pytest.mark.parametrize(
    ("column", "one", "other", "either"),
    [
        ("n", 3, 4, [7]),
        ("body", "one", "two", ["onetwo", "twoone"]),
        ("tags", '["a"]', '["b"]', ['["a","b"]']),
        ("data", '{"a":1}', '{"b":1}', ['{"a":1,"b":1}']),
    ],
)
def test_what_two_adopted_files_write_over_null_merges(
    column: str,
    one: Value,
    other: Value,
    either: list[Value],
    make_peer: MakePeer,
    relay: Relay,
) -> None:
    a, b = (make_peer(NOTE, "INSERT INTO note (id, t) VALUES (1, 'x')") for _ in range(2))
    for peer in (a, b):
        peer.track("note")
    a.app.execute(f"UPDATE note SET {column} = ?", (one,))
    relay.sync(a)
    b.clock.ms += 5
    b.app.execute(f"UPDATE note SET {column} = ?", (other,))
    relay.sync(b, a)
    assert a.rows(ROWS) == b.rows(ROWS)
    assert a.rows(f"SELECT {column} FROM note")[0][0] in either


def test_a_forks_work_that_is_on_its_way_shows_as_it_arrives(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay, """0, '', '["x"]', '[]', '{}', 'x'""")
    forked = fork(make_peer, relay, a)
    forked.commit("UPDATE note SET tags = '[]'")
    link, other = relay.connect(forked), relay.connect(b)
    on_its_way = link.ready()
    assert on_its_way
    b.commit("UPDATE note SET tags = '[]'")
    b.commit("""UPDATE note SET tags = '["x"]'""")
    while other.push():
        pass
    link.deliver()
    relay.commit(link, on_its_way)
    relay.settle()
    assert forked.rows(ROWS) == b.rows(ROWS)
    assert forked.differences() == []


def test_a_forks_work_on_a_table_that_it_dropped_counts(make_peer: MakePeer, relay: Relay) -> None:
    a, b = pair(make_peer, relay)
    forked = fork(make_peer, relay, a)
    forked.commit("UPDATE note SET n = n + 3")
    forked.write("DROP TABLE note")
    relay.sync(forked)
    relay.sync(b)
    assert b.rows("SELECT n FROM note") == [(3,)]
    assert forked.rejected() == []


# Values at the bounds.


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("UPDATE note SET data = ?", json.dumps({"rows": PARTS})),
        ("INSERT INTO note (id, data) VALUES (2, ?)", json.dumps({"rows": PARTS})),
        ("UPDATE note SET body = ?", "x" * (17 << 20)),
    ],
    ids=["many parts in an update", "many parts in an insert", "long text"],
)
@pytest.mark.usefixtures("few_blocks")
def test_a_value_beyond_what_a_cell_holds_stays_here_and_the_rest_goes_on(
    statement: str, value: str, make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    a.app.execute(statement, (value,))
    relay.sync(a)
    assert reasons(a) == ["local"]
    a.commit("INSERT INTO note (id, t) VALUES (3, 'y')")
    relay.sync(a, b)
    assert (value,) in a.rows("SELECT data FROM note UNION ALL SELECT body FROM note")
    assert b.rows("SELECT id, t FROM note") == [(1, "x"), (3, "y")]
    assert a.replica.queued() == 0


@pytest.mark.usefixtures("few_blocks")
def test_of_two_values_that_are_too_much_together_the_second_is_refused(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    for peer, name in ((a, "a"), (b, "b")):
        peer.app.execute("UPDATE note SET data = ?", (json.dumps({name: PARTS[:150]}),))
        peer.fold()
    relay.sync(a)
    relay.sync(b)
    assert (reasons(a), reasons(b)) == ([], ["invalid"])
    assert a.rows(ROWS) == b.rows(ROWS)
    assert '{"a":[' in str(b.rows("SELECT data FROM note")[0][0])


def test_deep_json_travels(make_peer: MakePeer, relay: Relay) -> None:
    a, b = pair(make_peer, relay)
    a.app.execute("UPDATE note SET data = ?", (DEEP,))
    relay.sync(a)
    relay.sync(b)
    assert b.rows("SELECT data FROM note") == [(DEEP,)]


def test_a_deep_element_of_a_set_is_refused(make_peer: MakePeer, relay: Relay) -> None:
    pair(make_peer, relay)
    cell = msgpack.packb([[STRANGER], DEEP, [0, 1], []])
    (verdict,) = relay.commit_cells(STRANGER, {TAGS: cell}).verdicts
    assert isinstance(verdict, Refused)
    assert verdict.reason == "invalid"


# Tables that are gone, and triggers.


def test_a_refusal_of_work_on_a_dropped_table_is_told(make_peer: MakePeer, relay: Relay) -> None:
    a, _ = pair(make_peer, relay)
    a.commit("UPDATE note SET body = 'one two'")
    a.write("DROP TABLE note")
    relay.refuse = refuse_all
    relay.sync(a)
    assert reasons(a) == ["constraint"]
    assert a.replica.queued() == 0


def test_work_on_a_table_that_is_gone_here_and_from_a_restored_relay_is_told(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    a.commit("UPDATE note SET body = 'one two'")
    a.write("DROP TABLE note")
    a.replica.refill(realm=relay.store.realm, tables=[])
    assert reasons(a) == ["expired", "expired"]
    relay.sync(a, b)
    assert b.rows("SELECT body FROM note") == [("one",)]


def test_a_trigger_that_rolls_back_all_updates_does_not_stop_sync(
    make_peer: MakePeer, relay: Relay
) -> None:
    raising = "SELECT RAISE(ROLLBACK, 'immutable')"
    a = make_peer(NOTE, f"CREATE TRIGGER fixed BEFORE UPDATE ON note BEGIN {raising}; END")
    b = make_peer()
    a.track("note")
    a.write("INSERT INTO note (id, tags) VALUES (1, '[1, 2]')")
    relay.sync(a)
    relay.sync(b)
    assert b.rows("SELECT tags FROM note") == [("[1,2]",)]


def test_the_one_form_of_a_value_replaces_no_other_row(make_peer: MakePeer) -> None:
    a = make_peer(
        "CREATE TABLE s (id INTEGER PRIMARY KEY, tags CRDT_SET_TEXT UNIQUE ON CONFLICT REPLACE)"
    )
    a.track("s")
    a.commit("""INSERT INTO s VALUES (1, '["a","b"]')""")
    a.commit("""INSERT INTO s VALUES (2, '["b", "a"]')""")
    assert a.rows("SELECT id FROM s ORDER BY id") == [(1,), (2,)]


# What the relay and other editors write.


def test_what_a_restored_relay_writes_is_beside_what_it_wrote_before(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    relay.execute(
        "CREATE TRIGGER told AFTER UPDATE OF t ON note BEGIN UPDATE note"
        " SET body = body || ' ' || NEW.t, n = n + length(NEW.t) WHERE id = NEW.id; END"
    )
    relay.back_up()
    a.commit("UPDATE note SET t = 'lost'")
    relay.sync(a)
    relay.restore()
    b.commit("UPDATE note SET t = 'others'")
    for peer in (b, a, b):
        relay.sync(peer)
    assert a.rows(ROWS) == b.rows(ROWS)
    ((n, body),) = b.rows("SELECT n, body FROM note")
    assert n == len("lost") + len("others")
    assert str(body).split()[0] == "one"
    assert sorted(str(body).split()[1:]) == ["lost", "others"]


def test_an_offer_that_was_refused_for_its_time_is_made_in_the_files_new_name(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay)
    relay.back_up()
    a.commit("UPDATE note SET n = n + 2")
    relay.sync(a, b)
    a.commit("UPDATE note SET n = n + 1", at=AHEAD_MS)
    a.commit("""UPDATE note SET n = n + 4, tags = '["milk"]', body = body || ' two'""", at=AHEAD_MS)
    link = relay.connect(a)
    link.ready()
    link.close()
    relay.restore()
    a.clock.ms = START_MS
    for peer in (b, a, b):
        relay.sync(peer)
    assert a.rows(ROWS) == b.rows(ROWS)
    assert b.rows("SELECT n, body, tags FROM note") == [(7, "one two", '["milk"]')]
    assert a.rejected() == []


def test_what_is_offered_on_top_of_what_is_refused_is_made_anew(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay, "0, NULL, '[]', NULL, NULL, 'x'")
    relay.back_up()
    a.commit("UPDATE note SET t = 'lost'")
    relay.sync(a)
    a.commit("""UPDATE note SET t = 'bad', n = 3, body = 'bad', steps = '["bad"]'""")
    a.commit(
        "UPDATE note SET n = n + 4, body = body || ' good',"
        " steps = json_insert(steps, '$[#]', 'good')"
    )
    link = relay.connect(a)
    link.ready()
    link.close()
    relay.restore()
    relay.refuse = refuse_bad
    for peer in (a, b):
        relay.sync(peer)
    assert a.rows(ROWS) == b.rows(ROWS)
    assert b.rows("SELECT t, n, body, steps FROM note") == [("lost", 4, " good", '["good"]')]
    assert reasons(a) == ["constraint"]


def test_what_one_writes_stays_where_another_wrote_the_same_and_took_it_back(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = pair(make_peer, relay, "0, '', '[]', '[]', '{}', 'x'")
    same = """UPDATE note SET body = 'yes', steps = '["milk"]'"""
    a.commit(same, at=100)
    a.commit("UPDATE note SET body = '', steps = '[]'", at=200)
    b.commit(same, at=9_000)
    relay.sync(a)
    relay.sync(b, a)
    assert a.rows(ROWS) == b.rows(ROWS)
    assert b.rows("SELECT body, steps FROM note") == [("yes", '["milk"]')]


def test_a_relays_own_edit_stands_over_a_cell_from_a_clock_ahead(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, _ = pair(make_peer, relay)
    relay.execute(
        "CREATE TRIGGER cap AFTER UPDATE OF n ON note WHEN NEW.n > 6 BEGIN UPDATE note"
        " SET n = NULL WHERE id = NEW.id; END"
    )
    edit = counter.edit(counter.initial(0), 9, Author(STRANGER, 1))
    assert edit is not None
    relay.commit_cells(STRANGER, {N: edit.delta}, ahead_ms=30_000)
    relay.sync(a)
    assert a.rows("SELECT n FROM note") == relay.execute("SELECT n FROM note") == [(None,)]


def test_an_edit_inside_another_editors_plain_object_is_kept(
    make_peer: MakePeer, relay: Relay
) -> None:
    """Other editors put an object into a Yjs map as one value, without maps of its own."""
    a, b = pair(make_peer, relay)
    doc = Doc[Map[object]](client_id=77)
    doc.get("json", type=Map)["k"] = {"a": 1}
    relay.commit_cells(STRANGER, {DATA: doc.get_update()})
    relay.sync(a, b)
    assert a.rows("SELECT data FROM note") == [('{"k":{"a":1}}',)]
    a.commit("UPDATE note SET data = json_set(data, '$.k.a', 2)")
    relay.sync(a)
    relay.sync(b)
    assert a.rows(ROWS) == b.rows(ROWS)
    assert b.rows("SELECT data FROM note") == [('{"k":{"a":2}}',)]


# Open texts.


def test_an_open_text_keeps_the_others_words_when_what_it_saved_is_refused() -> None:
    first = yjs.TEXT.initial("one")
    live = yjs.LiveText(first, 99)
    live.replace(3, 3, " mine")
    edit = yjs.TEXT.edit(first, "zero one", Author(1, 7))
    assert edit is not None
    live.refresh(edit.after, 100)
    assert live.value == "zero one mine"
    live.saved(live.unsaved()[1])
    live.replace(13, 13, " more")
    live.refresh(edit.after, 101)
    assert live.value == "zero one more"


async def with_a_note(db: Database) -> None:
    await db.execute(NOTE)
    await db.track("note")
    await db.execute("INSERT INTO note (id, body) VALUES (1, 'abc')")


def test_a_text_is_not_opened_inside_a_transaction(tmp_path: Path) -> None:
    async def work() -> None:
        async with Database(tmp_path / "app.db") as db:
            await with_a_note(db)
            async with db.transaction():
                with pytest.raises(UsageError):
                    async with db.text("note", 1, "body"):
                        pass

    asyncio.run(asyncio.wait_for(work(), SECONDS_MAX))


def test_an_open_text_follows_on_after_a_transaction_that_it_did_not_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reunite.connection.BUSY_TIMEOUT_MS", 200)
    refresh = Editor.refresh

    async def work() -> str:
        gave_up, followed = asyncio.Event(), asyncio.Event()

        async def watched(editor: Editor) -> None:
            try:
                await refresh(editor)
            except sqlite3.OperationalError:
                gave_up.set()
                raise

        monkeypatch.setattr(Editor, "refresh", watched)
        async with Database(tmp_path / "app.db") as db:
            await with_a_note(db)
            async with db.text("note", 1, "body") as text:
                text.observe(lambda _changes: followed.set())
                # It looks at the file while that is locked, once something was committed.
                while not gave_up.is_set():
                    async with db.transaction() as tx:
                        await tx.execute("UPDATE note SET t = 'y'")
                        with suppress(TimeoutError):
                            await asyncio.wait_for(gave_up.wait(), 1)
                await db.execute("UPDATE note SET body = 'abc def'")
                await followed.wait()
                return str(text)

    assert asyncio.run(asyncio.wait_for(work(), SECONDS_MAX)) == "abc def"
