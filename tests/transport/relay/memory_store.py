"""A realm in memory that keeps the store contract, for tests of what stands before a store.

Commits have one order, take effect as a whole or not at all, and histories are compared as the
other stores do. It has no tables of an app behind it, so `write_rows` refuses nothing unless
`check` is set; `failing` and `gate` let a test lose the database and hold a commit up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from reunite.errors import TableError
from reunite.overwritten import Loss, newest
from reunite.schema import Table
from reunite_transport.messages import Section, Verdict
from reunite_transport.relay.history import compared
from reunite_transport.relay.memory import Memory
from reunite_transport.relay.registry import Registered, grow, ordered
from reunite_transport.relay.store import (
    Accepted,
    FeedPage,
    Greeting,
    Look,
    RowChange,
    RowId,
    Standing,
    StoreError,
    WentBack,
    Written,
)

START_MS = 1_700_000_000_000


class MemoryStore:
    """One realm; share it between two relays to test what they see of each other."""

    def __init__(self, *tables: Table, replica: int = 1 << 60) -> None:
        """A realm with these tables, numbered from 1."""
        self.realm = b"a realm in store"
        self.replica = replica
        self.now_ms = START_MS
        self.documents: dict[RowId, tuple[int, bytes]] = {}
        self.overwritten: dict[RowId, list[Loss]] = {}
        self.token_by_seq = {0: b""}
        self.check: Callable[[Sequence[RowChange]], None] = lambda changes: None
        self.failing: StoreError | None = None
        self.lost_answers = 0
        self.held: set[RowId] = set()
        self.captured: list[Written] = []
        # As when a commit that took it fails.
        self.keeps_captured = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()
        self._registered: dict[str, Registered] = {}
        self._standings: dict[int, Standing] = {}
        self._changesets: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._head_lock = asyncio.Lock()
        self._memory = Memory(None)
        self._grow(tables)

    async def registry(self) -> tuple[Table, ...]:
        """All tables."""
        self._fail()
        return ordered(list(self._registered.values()))

    async def describe(self, tables: Sequence[Table], *, create: bool) -> tuple[Table, ...]:
        """Register what is new."""
        self._fail()
        async with self._head_lock:
            growth = grow(list(self._registered.values()), tables)
            if growth.registered and not create:
                raise TableError(growth.registered[0].table.name, "is not in the realm")
            self._grow(tables)
        return await self.registry()

    async def follow(self, *, track_new: bool) -> Mapping[str, str]:
        """There are no tables."""
        return {}

    async def greet(
        self, replica: int, acknowledged: int, nonces: Sequence[bytes], seq: int, token: bytes
    ) -> Greeting:
        """Raise the term and compare histories."""
        self._fail()
        memory = self._memory
        async with self._head_lock:
            self._check(memory)
            standing = self._standings.get(replica, Standing(0, 0))
            known_commit = any(t == token for at, t in self.token_by_seq.items() if at >= seq)
            if not known_commit or acknowledged > standing.last:
                return Greeting(0, Verdict.LOST, (), self._head, self.now_ms, 0)
            accepted = [
                (number, nonce, in_seq)
                for (author, number), (nonce, in_seq) in sorted(self._changesets.items())
                if author == replica and number > acknowledged
            ]
            verdict, known = compared(acknowledged, standing.last, nonces, accepted)
            term = standing.term + (verdict is not Verdict.FORK)
            self._standings[replica] = Standing(term, standing.last)
            return Greeting(term, verdict, known, self._head, self.now_ms, 0)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator["MemoryTransaction"]:
        """Start a commit, under the head lock."""
        self._fail()
        memory = self._memory
        async with self._head_lock:
            self.began.set()
            await self.gate.wait()
            self._check(memory)
            transaction = MemoryTransaction(self, self._head + 1, self.now_ms)
            yield transaction
            self._fail()
            transaction.apply()
            self._check(memory)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreError("the connection went away as the commit was answered")

    async def page(self, seq: int, within: bytes, *, rows_max: int, bytes_max: int) -> FeedPage:
        """The next rows of the feed."""
        self._fail()
        self._check(self._memory)
        after = (seq, int.from_bytes(within[:4], "big"), within[4:]) if within else (seq, 1 << 32)
        places = sorted(
            (place, document)
            for row, (in_seq, document) in self.documents.items()
            if (place := (in_seq, row.table, row.key)) > after
        )
        taken: list[tuple[tuple[int, int, bytes], bytes]] = []
        size = 0
        for place, document in places[:rows_max]:
            size += len(document)
            if taken and size > bytes_max:
                break
            taken.append((place, document))
        sections = tuple(Section(table, (key,), (document,)) for (_, table, key), document in taken)
        if len(taken) == len(places):
            return FeedPage(sections, self._head, b"", True, self.token_by_seq[self._head])
        end, table, key = taken[-1][0]
        mark = table.to_bytes(4, "big") + key
        return FeedPage(sections, end, mark, False, self.token_by_seq[self._head])

    async def losses(self, row: RowId) -> tuple[Loss, ...]:
        """What commits overwrote of a row."""
        self._fail()
        self._check(self._memory)
        return tuple(reversed(self.overwritten.get(row, ())))

    def forget(self) -> None:
        """Remember nothing of the history so far."""
        self._memory = Memory(None)

    async def head(self) -> tuple[int, bytes]:
        """The last commit."""
        self._fail()
        self._check(self._memory)
        return self._head, self.token_by_seq[self._head]

    async def look(self) -> Look:
        """The last commit; nobody else writes."""
        return Look(*await self.head(), waiting=len(self.captured), lag_seconds=0.0)

    async def close(self) -> None:
        """Nothing to let go of."""

    def restore(self, seq: int) -> None:
        """Go back to an earlier state, as a backup does."""
        for later in range(seq + 1, self._head + 1):
            del self.token_by_seq[later]
        self.documents = {row: kept for row, kept in self.documents.items() if kept[0] <= seq}

    def commit_elsewhere(self) -> None:
        """Commit nothing, as another relay."""
        self.token_by_seq[self._head + 1] = b"elsewher"

    def come_back(self) -> None:
        """Stop failing."""
        self.failing = None

    @property
    def _head(self) -> int:
        return max(self.token_by_seq)

    def _fail(self) -> None:
        if self.failing is not None:
            raise self.failing

    def _check(self, memory: Memory[None]) -> None:
        if self.token_by_seq.get(memory.seq) != memory.token:
            raise WentBack
        memory.saw(self._head, self.token_by_seq[self._head])

    def _grow(self, tables: Sequence[Table]) -> None:
        growth = grow(list(self._registered.values()), tables)
        for entry in growth.registered:
            self._registered[entry.table.name] = entry


class MemoryTransaction:
    """One commit in the making; `apply` makes it so."""

    def __init__(self, store: MemoryStore, seq: int, now_ms: int) -> None:
        """Numbered `seq`, at the store's time `now_ms`."""
        self.seq = seq
        self.now_ms = now_ms
        self.tables = ordered(list(store._registered.values()))
        self._store = store
        self._finished: tuple[bytes, Mapping[RowId, bytes], Sequence[Accepted]] | None = None
        self._losses: Mapping[RowId, Sequence[Loss]] = {}
        self._kept: dict[RowId, bytes] = {}

    async def hold(self, rows: Sequence[RowId], *, patiently: bool = False) -> set[RowId]:
        """Those that the test holds."""
        return {row for row in rows if row in self._store.held}

    async def captured(self) -> AsyncIterator[Sequence[Written]]:
        """What the test captured."""
        if self._store.keeps_captured:
            yield list(self._store.captured)
        while self._store.captured and not self._store.keeps_captured:
            taken, self._store.captured = self._store.captured, []
            yield taken

    async def consequences(self) -> Sequence[Written]:
        """There are no triggers."""
        return ()

    async def standings(self, replicas: Sequence[int]) -> Mapping[int, Standing]:
        """The known ones among these replicas."""
        known = self._store._standings
        return {replica: known[replica] for replica in replicas if replica in known}

    async def accepted_nonces(self, nonces: Sequence[bytes]) -> set[bytes]:
        """Those that are in."""
        return {nonce for nonce, _ in self._store._changesets.values()} & set(nonces)

    async def documents(self, rows: Sequence[RowId]) -> Mapping[RowId, bytes]:
        """The documents of the rows that have one."""
        kept = {row: kept[1] for row, kept in self._store.documents.items()} | self._kept
        return {row: kept[row] for row in rows if row in kept}

    async def documents_of(self, table: int) -> AsyncIterator[Mapping[RowId, bytes]]:
        """All documents of a table."""
        kept = self._store.documents
        yield {row: document for row, (_, document) in kept.items() if row.table == table}

    async def keep(
        self, documents: Mapping[RowId, bytes], losses: Mapping[RowId, Sequence[Loss]] = {}
    ) -> None:
        """Keep documents; see `finish`."""
        self._kept.update(documents)
        self._losses = {**self._losses, **losses}

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Nothing is written before `apply`, so there is nothing to undo."""
        yield

    async def write_rows(
        self, changes: Sequence[RowChange]
    ) -> Mapping[RowId, Mapping[int, object]]:
        """Let the test's own check refuse."""
        self._store.check(changes)
        return {}

    async def finish(
        self,
        token: bytes,
        documents: Mapping[RowId, bytes],
        accepted: Sequence[Accepted],
        losses: Mapping[RowId, Sequence[Loss]] = {},
    ) -> None:
        """Keep what the commit holds until its block ends."""
        self._finished = (token, {**self._kept, **documents}, accepted)
        self._losses = {**self._losses, **losses}

    def apply(self) -> None:
        """Take effect, if there was a `finish`."""
        if self._finished is None:
            return
        store = self._store
        token, documents, accepted = self._finished
        store.token_by_seq[self.seq] = token
        store.now_ms += 1
        for row, document in documents.items():
            store.documents[row] = (self.seq, document)
        for row, losses in self._losses.items():
            store.overwritten[row] = newest([*store.overwritten.get(row, ()), *losses])
        for each in accepted:
            store._changesets[each.replica, each.number] = (each.nonce, self.seq)
            term = store._standings[each.replica].term
            store._standings[each.replica] = Standing(term, each.number)
