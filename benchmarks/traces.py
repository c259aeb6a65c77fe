"""Replay what people really typed, key by key, through SQL on several replicas and a relay.

    .venv/bin/python -m benchmarks.traces [FOLDER] [--only NAME] [--txns N] [--swapped]

The recordings are of the editing-traces collection (github.com/josephg/editing-traces): texts of
which every keystroke is known, with what its author had seen by then. Each is an UPDATE in a
transaction of its own on its author's file, and what its author had seen of others goes through
the relay's arbitration, on an SQLite store, before it. At the end all files, one that joins late
and the relay's own table have to hold the recorded text. The cell's size is compared with that of
the Yjs document that pycrdt makes of the same keystrokes by itself.
"""

import argparse
import asyncio
import gzip
import json
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

from pycrdt import Doc, Text, TransactionEvent

from reunite.bookkeeping import load_rows
from reunite.cells.register import Value
from reunite.cells.yjs import TEXT_KIND
from reunite.changeset import fold_own, fold_strangers
from reunite.document import cell_key, decode
from reunite.payload import StatedRows, Statement
from reunite.replica import Replica
from reunite.state import Chance
from reunite_transport.messages import Entries
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.commit import Outcome, Taken, commit_batch
from reunite_transport.relay.sqlite_store import SqliteStore, open_sqlite

FOLDER: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES: Final = ("sveltecomponent", "friendsforever")

TABLE: Final = "CREATE TABLE note (id INTEGER PRIMARY KEY, body CRDT_TEXT NOT NULL DEFAULT '')"
# Where nobody waits for anything, its author's file sends after so many transactions.
CHANGESETS_MAX: Final = 50
START_MS: Final = 1_700_000_000_000
# Of 53 bits, as they are drawn. Who is lower decides where two begin to type at one place; in the
# recording of two authors it is the first.
SESSIONS: Final = (0x1A_2B3C_4D5E_6F70, 0x1B_2B3C_4D5E_6F70)


class Txn(NamedTuple):
    """Keystrokes of one moment, (place, deleted, inserted) each, in the text that is made of the
    first `seen` transactions of each author."""

    author: int
    seen: tuple[int, ...]
    patches: tuple[tuple[int, int, str], ...]


class Trace(NamedTuple):
    """A recording; `end` is the text at its end, None for a part of one."""

    authors: int
    txns: tuple[Txn, ...]
    end: str | None

    def first(self, txns: int) -> "Trace":
        """The beginning of it."""
        return self if txns >= len(self.txns) else self._replace(txns=self.txns[:txns], end=None)


class Replayed(NamedTuple):
    """What a replay came to: the one text of all replicas, the bytes of its cell, how often a file
    received what another had written, and seconds."""

    text: str
    cell_bytes: int
    receives: int
    seconds: float


def load(path: Path) -> Trace:
    """Read a recording: of one author, or of several with parents."""
    with gzip.open(path) as file:
        found = json.load(file)
    assert not found.get("startContent"), "these recordings begin with nothing"
    authors = found.get("numAgents", 1)
    # Of each transaction, how many of each author are in the text after it.
    after: list[tuple[int, ...]] = []
    txns = []
    for number, txn in enumerate(found["txns"]):
        author = txn.get("agent", 0)
        parents = txn.get("parents", [number - 1] if number else [])
        seen = tuple(max((after[p][other] for p in parents), default=0) for other in range(authors))
        after.append(tuple(many + (other == author) for other, many in enumerate(seen)))
        txns.append(Txn(author, seen, tuple((at, gone, text) for at, gone, text in txn["patches"])))
    return Trace(authors, tuple(txns), found["endContent"])


def patched(text: str, txn: Txn) -> str:
    """The text after these keystrokes."""
    for at, gone, inserted in txn.patches:
        text = text[:at] + inserted + text[at + gone :]
    return text


def pycrdt_alone(trace: Trace) -> tuple[str, int]:
    """The text and the bytes of the Yjs document that the keystrokes make by themselves."""
    docs = [Doc[Any](client_id=SESSIONS[author]) for author in range(trace.authors)]
    texts = [doc.get("text", type=Text) for doc in docs]
    updates: list[list[bytes]] = [[] for _ in docs]
    known = [[0] * trace.authors for _ in docs]

    def learn(author: int, seen: tuple[int, ...]) -> None:
        for other, many in enumerate(seen):
            if other != author:
                for update in updates[other][known[author][other] : many]:
                    docs[author].apply_update(update)
                known[author][other] = many

    for txn in trace.txns:
        doc, text = docs[txn.author], texts[txn.author]
        learn(txn.author, txn.seen)
        made: list[bytes] = []

        def note(event: TransactionEvent, made: list[bytes] = made) -> None:
            made.append(event.update)

        subscription = doc.observe(note)
        with doc.transaction():
            for at, gone, inserted in txn.patches:
                if gone:
                    del text[at : at + gone]
                if inserted:
                    text.insert(at, inserted)
        doc.unobserve(subscription)
        updates[txn.author] += made
    learn(0, tuple(map(len, updates)))
    return str(texts[0]), len(docs[0].get_update())


class Site:
    """A file with the table: an app that writes SQL, and its replica."""

    def __init__(self, path: Path, number: int, session: int) -> None:
        self._clock, nonces = count(START_MS), count(1)
        drawn = iter((number, session))
        self.app, self.engine = _connect(path), _connect(path)
        self.replica = Replica(
            self.engine,
            chance=Chance(
                replica=lambda: next(drawn),
                nonce=lambda: number.to_bytes(4, "big") + next(nonces).to_bytes(4, "big"),
            ),
            clock=lambda: next(self._clock),
        )
        self.replica.prepare()
        self.number, self.term = number, 0
        self.text = ""
        """The text in the table, as the app last read or wrote it."""
        self.changesets = [0]
        """How many changesets the first so many keystrokes made: what leaves the text as it was
        makes none."""

    def close(self) -> None:
        """Close both connections."""
        self.app.close()
        self.engine.close()

    def write(self, sql: str, *parameters: Value) -> bool:
        """One transaction of the app; True when it was an edit."""
        state = self.replica.begin(self.app)
        fold_strangers(state)
        self.app.execute(sql, parameters)
        edited = fold_own(state) is not None
        self.replica.commit(state)
        return edited

    def type(self, txn: Txn) -> None:
        """Write what the keystrokes make of the text."""
        self.text = patched(self.text, txn)
        edited = self.write("UPDATE note SET body = ? WHERE id = 1", self.text)
        self.changesets.append(self.changesets[-1] + edited)

    def read(self) -> str:
        """The text in the table."""
        (self.text,) = self.app.execute("SELECT body FROM note WHERE id = 1").fetchone()
        return self.text

    def cell_bytes(self) -> int:
        """The size of the text's cell in the row's document."""
        (tracked,) = self.replica.tables()
        document = load_rows(self.engine, tracked.id, [1])[1].document
        assert document is not None
        state = decode(document).cells[cell_key(tracked.table.cells[0].id, TEXT_KIND)][1]
        assert isinstance(state, bytes)
        return len(state)


def _connect(path: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = OFF")
    return conn


class Realm:
    """A relay's store, and the sites that are connected to it."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.sites: list[Site] = []
        self._tokens = count(1)

    async def join(self, site: Site) -> None:
        """Greet, agree on the tables, and load."""
        mine, store = site.replica.greeting(), self.store
        greeting = await store.greet(
            mine.replica, mine.acknowledged, mine.nonces, mine.seq, mine.token
        )
        site.term = greeting.term
        site.replica.welcome(realm=store.realm, offset_ms=0, fork=False, known=greeting.known)
        missing = site.replica.take_registry(await store.registry())
        if missing:
            site.replica.take_registry(await store.describe(missing, create=True))
        page = await store.page(0, b"", rows_max=10, bytes_max=1 << 24)
        rows = [StatedRows(s.table, s.keys, s.documents) for s in page.sections]
        assert site.replica.receive(Statement(rows, page.seq, page.token, page.complete))
        self.sites.append(site)

    async def send(self, site: Site, changesets: int) -> None:
        """Commit the next changesets of a site, and tell everybody."""
        batch = [
            Changeset(
                site.number,
                site.term,
                outgoing.number,
                outgoing.nonce,
                outgoing.loose,
                tuple(
                    Entries(rows.table, tuple(rows.keys), tuple(rows.documents), tuple(rows.kinds))
                    for rows in outgoing.rows
                ),
            )
            for outgoing in site.replica.outgoing(changesets_max=changesets, bytes_max=1 << 24)
        ]
        assert len(batch) == changesets
        token = next(self._tokens).to_bytes(8, "big")
        outcome = await commit_batch(self.store, batch, token)
        assert set(outcome.verdicts) == {Taken()}, outcome.verdicts
        for other in self.sites:
            numbers = [changeset.number for changeset in batch] if other is site else []
            other.replica.receive(_statement(outcome, other.number, numbers))


def _statement(outcome: Outcome, replica: int, acknowledged: list[int]) -> Statement:
    """What the relay says of a commit to one replica: the rows that it does not know by itself."""
    assert outcome.seq is not None
    rows = [
        StatedRows(stated.row.table, [stated.row.key], [stated.document])
        for stated in outcome.rows
        if stated.author != replica
    ]
    return Statement(rows, outcome.seq, outcome.token, True, acknowledged)


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[Realm]:
    store = await open_sqlite(folder / "relay.db", clock=lambda: START_MS, durable=False)
    try:
        yield Realm(store)
    finally:
        await store.close()


async def replay(trace: Trace, folder: Path, *, swapped: bool = False) -> Replayed:
    """Replay a recording on a file for each author, one that only follows, and one that joins at
    the end. With `swapped` the first author's Yjs id is the higher one."""
    sessions = SESSIONS[::-1] if swapped else SESSIONS
    with ExitStack() as stack:

        def site(number: int) -> Site:
            made = Site(folder / f"{number}.db", number, sessions[(number - 1) % len(sessions)])
            return stack.enter_context(closing(made))

        async with _opened(folder) as realm:
            authors = [site(1 + author) for author in range(trace.authors)]
            authors[0].app.execute(TABLE)
            authors[0].replica.track(["note"])
            authors[0].write("INSERT INTO note (id) VALUES (1)")
            follower, late = site(101), site(102)
            for joining in (*authors, follower):
                await realm.join(joining)
            await realm.send(authors[0], authors[0].replica.queued())
            started = time.perf_counter()
            receives = await _typed(realm, authors, trace)
            seconds = time.perf_counter() - started
            await realm.join(late)
            texts = {found.read() for found in (*authors, follower, late)}
            sizes = {found.cell_bytes() for found in (*authors, follower, late)}
    with closing(sqlite3.connect(folder / "relay.db")) as conn:
        texts.update(text for (text,) in conn.execute("SELECT body FROM note"))
    assert len(texts) == 1, "the replicas differ"
    return Replayed(texts.pop(), max(sizes), receives, seconds)


async def _typed(realm: Realm, authors: list[Site], trace: Trace) -> int:
    """Let the authors type, each in the text that it saw; returns how often one had to receive."""
    typed, sent = [0] * len(authors), [0] * len(authors)
    receives = 0

    async def send(author: int, until: int) -> None:
        made = authors[author].changesets
        if made[until] > made[sent[author]]:
            await realm.send(authors[author], made[until] - made[sent[author]])
        sent[author] = until

    for txn in trace.txns:
        writer = authors[txn.author]
        for other, seen in enumerate(txn.seen):
            if other != txn.author and seen > sent[other]:
                await send(other, seen)
                writer.read()
                receives += 1
        assert all(
            seen == (typed if other == txn.author else sent)[other]
            for other, seen in enumerate(txn.seen)
        ), "an author typed in a text that was not there"
        writer.type(txn)
        typed[txn.author] += 1
        if len(authors) == 1 and typed[0] - sent[0] >= CHANGESETS_MAX:
            await send(0, typed[0])
    for author, many in enumerate(typed):
        await send(author, many)
    return receives


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="of the recordings")
    parser.add_argument("--only", choices=NAMES, action="append", help="this recording")
    parser.add_argument("--txns", type=int, default=1 << 30, help="so many transactions of each")
    parser.add_argument("--swapped", action="store_true", help="give the first author a higher id")
    options = parser.parse_args()
    for name in options.only or NAMES:
        trace = load(options.folder / f"{name}.json.gz").first(options.txns)
        text, alone = pycrdt_alone(trace)
        with tempfile.TemporaryDirectory(prefix="reunite-traces-") as folder:
            found = asyncio.run(replay(trace, Path(folder), swapped=options.swapped))
        expected = trace.end if trace.end is not None else text
        print(
            f"{name}: {len(trace.txns)} transactions by {trace.authors} in {found.seconds:.1f} s,"
            f" {len(trace.txns) / found.seconds:.0f}/s, {found.receives} receives;"
            f" text of {len(found.text)} {'as recorded' if found.text == expected else 'DIFFERS'};"
            f" cell {found.cell_bytes} bytes, pycrdt alone {alone},"
            f" {found.cell_bytes / alone:.2f}x"
        )


if __name__ == "__main__":
    main()
