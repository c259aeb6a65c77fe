"""Cells that somebody made to harm a relay are refused, whatever they are; all others go on."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import aiohttp
import pytest

from reunite import Database
from reunite.cells import set, yjs
from reunite.cells.kinds import Author
from reunite.cells.register import Value
from reunite.cells.yjs_update import Outline, Shape, Update
from reunite.clock import NEVER
from reunite.columns import Columns
from reunite.document import Document, decode
from reunite.errors import FormatError
from reunite.keys import pack_key
from reunite_transport import Sync
from reunite_transport.messages import (
    FRAME_BYTES_MAX,
    SUBPROTOCOL,
    Behind,
    Commit,
    Known,
    Pull,
    Push,
    Rejected,
    Resume,
)
from reunite_transport.relay.admission import Refused
from reunite_transport.relay.commit import Outcome, Taken, commit_batch
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import Relay, serve
from reunite_transport.relay.sqlite_store import open_sqlite
from reunite_transport.relay.store import Store
from tests.contracts.pushes import A, B, at, changeset, entries
from tests.transport.relay.clients import SECONDS_MAX, hello
from tests.transport.relay.hostile_cells import (
    COLUMNS,
    KEY_OF_KIND,
    KEYS,
    NOTE,
    NOW,
    YJS_KINDS,
    honest_cell,
)
from tests.transport.relay.hostile_updates import KNOWN, SHAPES, Hostile, nested_values
from tests.transport.relay.sockets import QUICK, Socket

UPDATES = 3_000
LIVE_UPDATES = 120
BODY = KEYS["body"] | yjs.TEXT_KIND
TABLE = (
    "CREATE TABLE note (id INTEGER PRIMARY KEY, body CRDT_TEXT DEFAULT '', steps CRDT_LIST_TEXT,"
    " meta CRDT_JSON_TEXT, likes COUNTER DEFAULT 0, tags CRDT_SET_TEXT, plain TEXT)"
)


def test_hostile_cells_neither_end_the_relay_nor_are_stored(tmp_path: Path) -> None:
    # A process of its own, as the worst of them end one without a word.
    command = ("-m", "tests.transport.relay.hostile_cells", "--json", "--updates", str(UPDATES))
    finished = subprocess.run(
        [sys.executable, *command, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    said = f"{finished.stderr[-2_000:]}\nthe last batch is in {tmp_path}"
    assert finished.returncode == 0, said
    found = json.loads(finished.stdout)
    verdicts = Counter[str](found["verdicts"])
    assert verdicts.total() == UPDATES
    assert verdicts["YJS FAILED"] == 0, said
    # Each of the ways is taken: none of them stands before all others.
    kinds = ("refused by itself", "refused at the document", "not ready", "taken")
    assert all(verdicts[kind] > UPDATES / 200 for kind in kinds), verdicts
    assert found["honest"] > 0


# Should Yjs fail all the same.


def text_row(replica: int, *, key: int, cell: bytes, whole: bool) -> tuple[int, Document]:
    mark = at(NOW, replica)
    return key, Document(mark if whole else NEVER, mark, NEVER, {BODY: (mark, cell)})


def without_a_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the parser took what it must not."""

    def parse(data: bytes, shape: Shape) -> Update:
        return Update({}, {}, Outline(shape), 0)

    monkeypatch.setattr(yjs, "parse", parse)


@asynccontextmanager
async def a_store(folder: Path) -> AsyncIterator[Store]:
    store = await open_sqlite(folder / "relay.db", clock=lambda: NOW, durable=False)
    try:
        await store.describe([NOTE], create=True)
        for replica in (A, B):
            await store.greet(replica, 0, (), 0, b"")
        yield store
    finally:
        await store.close()


def test_a_panic_inside_a_merge_refuses_that_changeset_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It builds on an `a` of client 5.
    panics = KNOWN[1]
    letter = bytes.fromhex("0101050004010474657874016100")
    edit = yjs.TEXT.edit(letter, "ab", Author(A, 9))
    assert edit is not None

    async def scenario() -> Outcome:
        async with a_store(tmp_path) as store:
            row = text_row(A, key=1, cell=letter, whole=True)
            await commit_batch(store, [changeset(A, 1, entries(row))], b"token..1")
            without_a_parser(monkeypatch)
            batch = [
                changeset(B, 1, entries(text_row(B, key=1, cell=panics, whole=False))),
                changeset(A, 2, entries(text_row(A, key=1, cell=edit.delta, whole=False))),
            ]
            return await commit_batch(store, batch, b"token..2")

    outcome = asyncio.run(scenario())
    refused, taken = outcome.verdicts
    assert isinstance(refused, Refused)
    assert refused.reason == "invalid"
    assert refused.message.startswith("Yjs fails at a document")
    assert taken == Taken()
    (stated,) = outcome.rows
    state = decode(stated.document).cells[BODY][1]
    assert isinstance(state, bytes)
    assert yjs.TEXT.value(state) == "ab"


def test_a_failure_at_reading_a_new_row_refuses_its_changeset_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = bytes.fromhex(
        "0106050004010474657874016141050001840500026263840503016414960305040161c405000502031c6364010501"
        "0101"
    )

    async def scenario() -> Outcome:
        async with a_store(tmp_path) as store:
            without_a_parser(monkeypatch)
            letter = bytes.fromhex("0101050004010474657874016100")
            batch = [
                changeset(A, 1, entries(text_row(A, key=1, cell=letter, whole=True))),
                changeset(B, 1, entries(text_row(B, key=2, cell=fails, whole=True))),
            ]
            return await commit_batch(store, batch, b"token..1")

    outcome = asyncio.run(scenario())
    assert outcome.verdicts[0] == Taken()
    assert isinstance(outcome.verdicts[1], Refused)
    assert outcome.verdicts[1].reason == "invalid"
    assert [stated.row.key for stated in outcome.rows] == [pack_key((1,))]


# At the bounds of cells.


def test_a_list_nested_deeper_than_json_may_be_goes_on_as_a_register() -> None:
    ids = {name: number for number, name in enumerate(("id", *COLUMNS), 1)}
    columns = Columns(NOTE.renumbered(ids).cells)
    state, mark = nested_values(60), at(NOW, B)
    assert yjs.LIST.content(yjs.LIST.value(state)) is None
    cells: dict[int, tuple[bytes, Value]] = {KEYS["steps"] | yjs.LIST_KIND: (mark, state)}
    document = Document(mark, mark, NEVER, cells)
    for seen in (None, ("[1]",)):
        edit = columns.edit(document, KEYS["steps"], "[2]", Author(A, 9), seen=seen)
        assert edit == (KEYS["steps"], "[2]", "[2]")


def test_two_sets_of_an_allowed_size_join_to_one_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(set, "ELEMENTS_MAX", 3)
    edits = [
        set.edit(set.EMPTY, frozenset(elements), Author(replica, 9))
        for replica, elements in ((A, ("1", "2", "3")), (B, ("4", "5")))
    ]
    ours, theirs = [edit.after for edit in edits if edit]
    set.check(ours)
    joined = set.merge(ours, theirs)
    assert set.value(joined) == "[1,2,3,4,5]"
    with pytest.raises(FormatError, match="5 elements"):
        set.check(joined)
    # What came and went counts: the column goes on as a register.
    assert set.edit(ours, frozenset({"6"}), Author(A, 9)) is None


# Over sockets.


async def attack(url: str, replica: int, chance: Random) -> Counter[str]:
    """Push hostile cells as one client, in order, and hear a verdict on each."""
    verdicts = Counter[str]()
    hostile = Hostile(chance, 0.05)
    async with aiohttp.ClientSession() as http:
        socket = Socket(
            await http.ws_connect(url, protocols=(SUBPROTOCOL,), max_msg_size=FRAME_BYTES_MAX + 1)
        )
        now = (await socket.greet(hello(replica))).now_ms
        await socket.pull()
        number = 1
        for attempt in range(LIVE_UPDATES):
            shape = chance.choice(SHAPES)
            kind = YJS_KINDS[shape]
            _, honest = honest_cell(chance, shape)
            _, cell = hostile.update(shape, honest, {})
            whole, mark = chance.random() < 0.5, at(now, replica)
            cells: dict[int, tuple[bytes, Value]] = {KEY_OF_KIND[kind] | kind: (mark, cell)}
            document = Document(mark if whole else NEVER, mark, NEVER, cells)
            key = 1 if not whole else 1_000 * replica + attempt
            await socket.say(
                Push(number, attempt.to_bytes(8, "big"), False, True, (entries((key, document)),))
            )
            verdict = await heard(socket, number)
            verdicts[verdict] += 1
            if verdict == "taken":
                number += 1
            else:
                await socket.say(Resume(number))
        await socket.socket.close()
    return verdicts


async def heard(socket: Socket, number: int) -> str:
    """What the relay says of a changeset."""
    while True:
        match await socket.message():
            case Rejected() as rejected:
                assert rejected.number == number
                assert rejected.message
                return rejected.reason
            case Commit(acknowledged=numbers) if number in numbers:
                return "taken"
            case Known(pairs=pairs) if number in [known for known, _ in pairs]:
                return "taken"
            case Behind():
                await socket.say(Pull(0, b""))


async def scenario_over_sockets(store: Store, folder: Path) -> None:
    relay: Relay = await serve(store, limits=QUICK)
    try:
        async with (
            asyncio.timeout(5 * SECONDS_MAX),
            Database(folder / "a.db") as a,
            Database(folder / "b.db") as b,
        ):
            await a.execute(TABLE)
            await a.track("note")
            async with Sync(a, relay.url) as sync_a, Sync(b, relay.url) as sync_b:
                await a.execute("INSERT INTO note (id, body, meta) VALUES (1, 'honest', '{}')")
                await sync_a.caught_up()
                chance = Random(7)
                verdicts = Counter[str]()
                for replica in (71, 72):
                    verdicts += await attack(relay.url, replica, chance)
                refusals = {"invalid", "need-whole", "constraint"}
                assert verdicts.keys() <= {*refusals, "taken"}, verdicts
                assert verdicts["invalid"] > LIVE_UPDATES / 2
                assert verdicts["taken"] > 0
                await a.execute("INSERT INTO note (id, body) VALUES (2, 'still')")
                await a.execute("UPDATE note SET body = 'still here' WHERE id = 2")
                await sync_a.caught_up()
                await sync_b.caught_up()
                for db in (a, b):
                    assert await db.verify() == []
                    found = await db.fetch_one("SELECT body FROM note WHERE id = 2")
                    assert found is not None
                    assert found[0] == "still here"
                everything = f"SELECT id, {', '.join(COLUMNS)} FROM note ORDER BY id"
                assert await a.fetch_all(everything) == await b.fetch_all(everything)
    finally:
        await relay.close()
        await store.close()


def test_over_sockets_each_hostile_cell_gets_a_verdict_and_others_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        await scenario_over_sockets(await open_sqlite(tmp_path / "relay.db"), tmp_path)

    asyncio.run(scenario())


def test_the_same_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    async def scenario() -> None:
        await scenario_over_sockets(await open_postgres(postgres_url), tmp_path)

    asyncio.run(scenario())
