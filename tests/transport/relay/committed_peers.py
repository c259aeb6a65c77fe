"""The engine's peers against a relay's own arbitration over SQLite, without a network."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

from reunite.cells.register import Value
from reunite.clock import NEVER, stamp
from reunite.document import Document, encode
from reunite.keys import pack_key
from reunite.payload import StatedRows, Statement
from reunite.replica import Outgoing
from reunite_transport.messages import Entries, EntryKind, Verdict
from reunite_transport.relay.admission import Changeset, Refused
from reunite_transport.relay.commit import Outcome, Repeated, Taken, commit_batch
from reunite_transport.relay.sqlite_store import open_sqlite
from tests.engine.peer import START_MS, Peer

# Far more than any test needs: beyond it something goes in a circle.
ROUNDS_MAX = 200
# The relay's clock stands still, this much ahead of the peers' start.
NOW_MS = START_MS + 10_000
BATCH_MAX = 100
BYTES_MAX = 1 << 20

T = TypeVar("T")


@dataclass
class Link:
    """A peer's connection. `queue` holds what was committed and has not been delivered."""

    relay: "Relay"
    peer: Peer
    number: int
    term: int
    sent: int = 0
    queue: list[Statement] = field(default_factory=list)

    def ready(self) -> list[Changeset]:
        """What the peer sends now; on its way until `Relay.commit` takes it."""
        replica = self.peer.replica
        if replica.undescribed():
            self.relay.describe(self.peer)
        sent = replica.unanswered(self.sent, changesets_max=BATCH_MAX)
        sent = sent or replica.outgoing(changesets_max=BATCH_MAX, bytes_max=BYTES_MAX)
        return [self._changeset(outgoing) for outgoing in sent]

    def push(self) -> bool:
        """Send what is pending until a refusal; True when anything was sent."""
        batch = self.ready()
        if batch:
            self.relay.commit(self, batch)
        return bool(batch)

    def deliver(self) -> bool:
        """Hand over what was committed; True when there was any."""
        statements, self.queue = self.queue, []
        for statement in statements:
            self.peer.replica.receive(statement)
        return bool(statements)

    def pull(self) -> None:
        """Catch up to the head."""
        self.queue.clear()
        self.relay.catch_up(self.peer)

    def close(self) -> None:
        """Lose the connection and all that was under way to the peer."""
        self.relay.links.remove(self)

    def _changeset(self, outgoing: Outgoing) -> Changeset:
        sections = tuple(
            Entries(
                rows.table,
                tuple(rows.keys),
                tuple(rows.documents),
                tuple(rows.kinds),
                tuple(rows.derived),
            )
            for rows in outgoing.rows
        )
        return Changeset(
            self.number, self.term, outgoing.number, outgoing.nonce, outgoing.loose, sections
        )


class Relay:
    """One realm in a file; `refuse` may say no to a changeset before the relay sees it."""

    def __init__(self, path: Path) -> None:
        self.links: list[Link] = []
        self.refuse: Callable[[Changeset], Refused | None] = lambda _changeset: None
        self._path = path
        self._backup = path.with_suffix(".backup")
        self._chance = Random(1)
        self._loop = asyncio.new_event_loop()
        opening = open_sqlite(
            path, clock=lambda: NOW_MS, chance=self._chance.randbytes, durable=False
        )
        self.store = self._run(opening)

    def close(self) -> None:
        """Close the store."""
        self._run(self.store.close())
        self._loop.close()

    # Connections.

    def connect(self, peer: Peer) -> Link:
        """Greet, register, and catch up to the head; nothing is pushed yet."""
        number, term = self._greet(peer)
        self.describe(peer)
        self.catch_up(peer)
        peer.replica.reconcile()
        link = Link(self, peer, number, term, sent=peer.replica.acknowledged())
        self.links.append(link)
        return link

    def sync(self, *peers: Peer) -> None:
        """Connect these, let all go through, and disconnect."""
        links = [self.connect(peer) for peer in peers]
        self.settle()
        for link in links:
            link.close()

    def settle(self) -> None:
        """Push and deliver on all connections until nothing moves."""
        rounds, moved = 0, True
        while moved:
            rounds, moved = rounds + 1, False
            assert rounds < ROUNDS_MAX, "the peers and the relay never come to rest"
            for link in list(self.links):
                moved |= link.push()
                moved |= link.deliver()

    def describe(self, peer: Peer) -> None:
        """Take a peer's tables into the registry and tell all."""
        missing = peer.replica.take_registry(self._run(self.store.registry()))
        if missing:
            tables = self._run(self.store.describe(missing, create=True))
            for other in [peer, *(link.peer for link in self.links)]:
                other.replica.take_registry(tables)

    def catch_up(self, peer: Peer) -> None:
        """Hand over the pages up to the head."""
        complete = False
        while not complete:
            at = peer.replica.position()
            page = self._run(
                self.store.page(at.seq, at.within, rows_max=1_000, bytes_max=BYTES_MAX)
            )
            rows = [StatedRows(s.table, s.keys, s.documents) for s in page.sections]
            complete = page.complete
            statement = Statement(rows, page.seq, page.token, complete)
            peer.replica.receive(statement, within=page.within)

    def _greet(self, peer: Peer) -> tuple[int, int]:
        """The handshake, again when the replica has to become another, or the relay was restored.
        Returns the replica's id and the term."""
        mine = peer.replica.greeting()
        greeting = self._run(
            self.store.greet(mine.replica, mine.acknowledged, mine.nonces, mine.seq, mine.token)
        )
        if greeting.verdict == Verdict.LOST:
            tables = self._run(self.store.registry())
            peer.replica.refill(realm=self.store.realm, tables=tables)
            return self._greet(peer)
        fork = greeting.verdict == Verdict.FORK
        peer.replica.welcome(realm=self.store.realm, offset_ms=0, fork=fork, known=greeting.known)
        return self._greet(peer) if fork else (mine.replica, greeting.term)

    # Commits.

    def commit(self, link: Link, batch: list[Changeset]) -> None:
        """Commit what a peer sent, up to the first that is refused, and give the verdicts."""
        refusals = ((changeset, self.refuse(changeset)) for changeset in batch)
        refused = next(((c, verdict) for c, verdict in refusals if verdict), None)
        if refused:
            batch = batch[: batch.index(refused[0])]
        if batch:
            refused = self._arbitrate(link, batch) or refused
        if refused:
            changeset, verdict = refused
            # What was committed before the refusal arrives before it.
            link.deliver()
            rows = [(row.table, row.key) for row in verdict.rows]
            link.peer.replica.reject(
                changeset.number, changeset.nonce, verdict.reason, verdict.message, rows
            )
            link.sent = changeset.number - 1

    def commit_cells(
        self, replica: int, cells: Mapping[int, Value], *, ahead_ms: int = 0
    ) -> Outcome:
        """Commit an edit of row 1 of table 1 by a replica that is none of the peers; its clock is
        ahead of the relay's."""
        made = stamp((NOW_MS + ahead_ms) << 16, replica)
        document = Document(
            NEVER, made, NEVER, {key: (made, value) for key, value in cells.items()}
        )
        section = Entries(1, (pack_key((1,)),), (encode(document),), (EntryKind.PARTIAL,))
        term = self._run(self.store.greet(replica, 0, (), 0, b"")).term
        return self._commit([Changeset(replica, term, 1, b"a nonce.", False, (section,))])

    def _arbitrate(self, link: Link, batch: list[Changeset]) -> tuple[Changeset, Refused] | None:
        outcome = self._commit(batch)
        refused: tuple[Changeset, Refused] | None = None
        taken: list[int] = []
        for changeset, verdict in zip(batch, outcome.verdicts, strict=True):
            link.sent = changeset.number
            if isinstance(verdict, Refused):
                refused = changeset, verdict
                break
            assert isinstance(verdict, Taken | Repeated)
            taken.append(changeset.number)
        if outcome.seq is None:
            return refused
        repeated = Repeated() in outcome.verdicts
        for other in self.links:
            mine = other is link
            if mine and repeated:
                link.peer.replica.know([(number, outcome.seq) for number in taken])
                link.pull()
                continue
            rows = [
                StatedRows(found.row.table, [found.row.key], [found.document])
                for found in outcome.rows
                if not (mine and found.author == link.number)
            ]
            acknowledged = tuple(taken) if mine else ()
            other.queue.append(Statement(rows, outcome.seq, outcome.token, True, acknowledged))
        return refused

    def _commit(self, batch: list[Changeset]) -> Outcome:
        return self._run(commit_batch(self.store, batch, self._chance.randbytes(8)))

    # The realm's database, as its owner sees it.

    def execute(self, statement: str) -> list[tuple[Value, ...]]:
        """Run a statement in the realm's database."""
        with closing(sqlite3.connect(self._path, isolation_level=None)) as conn:
            return conn.execute(statement).fetchall()

    def back_up(self) -> None:
        """Keep the realm's database as it is now, for `restore`."""
        self._copy(self._path, self._backup)

    def restore(self) -> None:
        """Put the backup in the place of the realm's database."""
        self._copy(self._backup, self._path)
        self.store.forget()

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as found, closing(sqlite3.connect(target)) as made:
            found.backup(made)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    """A relay that takes everything that its arbitration takes."""
    found = Relay(tmp_path / "relay.db")
    yield found
    found.close()
