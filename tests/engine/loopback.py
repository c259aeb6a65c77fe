"""A relay in memory, without a network: merges what replicas push and states it to the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from reunite.adopt import Choice
from reunite.cells.register import Register, Value
from reunite.clock import NEVER, RELAYS_FROM, stamp, time_of
from reunite.document import EMPTY, Document, cell_key, decode, encode, merge
from reunite.keys import pack_key, unpack_key
from reunite.payload import Kind, StatedRows, Statement
from reunite.replica import Outgoing, Replica
from reunite.schema import Table
from reunite.verdicts import Rejection
from tests.engine.peer import START_MS, Peer

REALM = b"a realm in memory"
# The replica id of what the realm's own backends write.
BACKEND = RELAYS_FROM | 1

# Far more than any test needs: beyond it something goes in a circle.
ROUNDS_MAX = 500

# A table's registry id and a packed key.
RowId: TypeAlias = tuple[int, bytes]


@dataclass(frozen=True)
class Refusal:
    """A verdict against a changeset."""

    reason: str = "constraint"
    message: str = "refused"
    rows: tuple[RowId, ...] = ()


@dataclass
class Link:
    """A replica's connection. `queue` holds what was committed and has not been delivered."""

    relay: "Relay"
    replica: Replica
    number: int
    choice: Choice | None = None
    sent: int = 0
    queue: list[Statement] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)

    def push(self, changesets_max: int = 100) -> bool:
        """Send what is pending until a refusal; True when anything was sent."""
        ready = self.replica.unanswered(self.sent, changesets_max=changesets_max)
        if not ready:
            ready = self.replica.outgoing(changesets_max=changesets_max, bytes_max=1 << 20)
        for changeset in ready:
            self.sent = changeset.number
            refusal = self.relay.take(self, changeset)
            if refusal is not None:
                # What was committed before the refusal arrives before it.
                self.deliver()
                self.rejections += self.replica.reject(
                    changeset.number,
                    changeset.nonce,
                    refusal.reason,
                    refusal.message,
                    refusal.rows,
                )
                self.sent = changeset.number - 1
                if refusal.reason == "clock-ahead":
                    # Only another greeting measures the clocks.
                    self.close()
                break
        return bool(ready)

    def deliver(self) -> bool:
        """Hand over what was committed; True when there was any."""
        statements, self.queue = self.queue, []
        for statement in statements:
            self.replica.receive(statement, choice=self.choice)
        return bool(statements)

    def close(self) -> None:
        """Lose the connection and all that was under way to the replica."""
        self.relay.links.remove(self)


class Relay:
    """One realm. `refuse` may say no to a changeset, seeing the documents as they would become;
    `page_rows` bounds a page; `ahead_ms` is how far replicas' clocks run ahead of this one."""

    def __init__(self, *, page_rows: int = 1_000, first_column: int = 1) -> None:
        self.tables: dict[int, Table] = {}
        self.documents: dict[RowId, bytes] = {}
        self.links: list[Link] = []
        self.head = 0
        self.page_rows = page_rows
        self.ahead_ms: dict[Replica, int] = {}
        self.now_ms: int | None = None
        self.refuse: Callable[[Outgoing, dict[RowId, Document]], Refusal | None] = (
            lambda _changeset, _after: None
        )
        self.after_next_commit: Callable[[], None] | None = None
        self.pushed: list[Outgoing] = []
        self._first_column = first_column
        self._seqs: dict[RowId, int] = {}
        self._accepted: dict[int, dict[int, tuple[bytes, int]]] = {}

    # Connections.

    def connect(self, peer: Peer, *, choice: Choice | None = None) -> Link:
        """Greet, register, and catch up to the head; nothing is pushed yet."""
        replica = peer.replica
        number = self.greet(replica)
        missing = replica.take_registry(list(self.tables.values()))
        link = Link(self, replica, number, choice, sent=replica.acknowledged())
        if missing:
            self.describe(replica, missing)
        for page in self.pages(replica):
            replica.receive(page[0], within=page[1], choice=choice)
        replica.reconcile(choice)
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
            assert rounds < ROUNDS_MAX, "the replicas and the relay never come to rest"
            for link in list(self.links):
                missing = link.replica.undescribed()
                if missing:
                    self.describe(link.replica, missing)
                moved |= link.push()
                moved |= link.deliver()

    def greet(self, replica: Replica) -> int:
        """The handshake, again when the replica has to become another."""
        mine = replica.greeting()
        accepted = self._accepted.setdefault(mine.replica, {})
        pairs = []
        fork = mine.acknowledged > len(accepted)
        for number, nonce in enumerate(mine.nonces, start=mine.acknowledged + 1):
            if number not in accepted:
                break
            if accepted[number][0] != nonce:
                fork = True
                break
            pairs.append((number, accepted[number][1]))
        fork = fork or len(accepted) > mine.acknowledged + len(mine.nonces)
        replica.welcome(
            realm=REALM, offset_ms=self.ahead_ms.get(replica, 0), fork=fork, known=pairs
        )
        return self.greet(replica) if fork else mine.replica

    def describe(self, replica: Replica, tables: Sequence[Table]) -> None:
        """Take a replica's tables into the registry and tell all."""
        for table in tables:
            self.register(table)
        replica.take_registry(list(self.tables.values()))
        for link in self.links:
            link.replica.take_registry(list(self.tables.values()))

    def register(self, table: Table) -> None:
        """Number a table and its columns."""
        known = next((t for t in self.tables.values() if t.name == table.name), None)
        number = known.id if known else len(self.tables) + 1
        ids = {column.name: column.id for column in known.columns} if known else {}
        for column in table.columns:
            if column.name not in ids:
                ids[column.name] = max([self._first_column - 1, *ids.values()]) + 1
        self.tables[number] = replace(table.renumbered(ids), id=number)

    # The feed.

    def pages(self, replica: Replica) -> list[tuple[Statement, bytes]]:
        """The latest state of all rows that changed since the replica's cursor, in pages; each
        with where the next one goes on."""
        position = replica.position()
        since = int.from_bytes(position.within[:4], "big") if position.within else position.seq
        after = int.from_bytes(position.within[4:], "big")
        news = [row for row, seq in sorted(self._seqs.items()) if seq > since]
        pages = []
        while True:
            some, after = news[after : after + self.page_rows], after + self.page_rows
            done = after >= len(news)
            page = Statement(self._stated(some), self.head, self._token(), done)
            within = since.to_bytes(4, "big") + after.to_bytes(4, "big")
            pages.append((page, b"" if done else within))
            if done:
                return pages

    def stated(self, table: str, *key: Value) -> dict[str, Value]:
        """The cells of a row's document by column name."""
        number = next(t.id for t in self.tables.values() if t.name == table)
        found = [
            decode(data)
            for (owner, packed), data in self.documents.items()
            if owner == number and unpack_key(packed) == key
        ]
        cells = found[0].cells if found and found[0].alive else {}
        return {
            column.name: cells[cell_key(column.id)][1]
            for column in self.tables[number].columns
            if cell_key(column.id) in cells
        }

    def edit(self, table: str, key: Sequence[Value], at: int, **values: Value) -> None:
        """A backend's own commit: it sets these columns of one row, or inserts it."""
        found = next(t for t in self.tables.values() if t.name == table)
        row = (found.id, pack_key(key))
        before = self._document(row) or EMPTY
        mark = stamp(max((START_MS + at) << 16, time_of(before.latest()) + 1), BACKEND)
        ids = {column.name: column.id for column in found.columns}
        cells: dict[int, Register] = {
            cell_key(ids[name]): (mark, value) for name, value in values.items()
        }
        self.state_rows({row: Document(NEVER if before.alive else mark, mark, NEVER, cells)})

    def delete(self, table: str, key: Sequence[Value], at: int) -> None:
        """A backend's own commit: it deletes one row."""
        found = next(t for t in self.tables.values() if t.name == table)
        row = (found.id, pack_key(key))
        before = self._document(row) or EMPTY
        mark = stamp(max((START_MS + at) << 16, time_of(before.latest()) + 1), BACKEND)
        self.state_rows({row: Document(NEVER, NEVER, mark, {})})

    def keep_unique(self, table: str, column: str) -> None:
        """Refuse from now on what a UNIQUE constraint on this column would."""

        def refuse(_changeset: Outgoing, after: dict[RowId, Document]) -> Refusal | None:
            number = next(t.id for t in self.tables.values() if t.name == table)
            documents = {row: decode(data) for row, data in self.documents.items()} | after
            values = [
                self._value(row, document, column)
                for row, document in documents.items()
                if row[0] == number and document.alive
            ]
            present = [value for value in values if value is not None]
            return Refusal(message="UNIQUE") if len(present) != len(set(present)) else None

        self.refuse = refuse

    # Commits.

    def take(self, link: Link, changeset: Outgoing) -> Refusal | None:
        """Commit a changeset or say why not."""
        if any(changeset.number == n for n in self._accepted[link.number]):
            return None
        self.pushed.append(changeset)
        entries = [
            ((section.table, key), decode(document), kind, index, section)
            for section in changeset.rows
            for index, (key, document, kind) in enumerate(
                zip(section.keys, section.documents, section.kinds, strict=True)
            )
        ]
        after: dict[RowId, Document] = {}
        own: set[RowId] = set()
        dropped: set[RowId] = set()
        for row, document, kind, index, section in entries:
            before = after.get(row) or self._document(row)
            if self.now_ms is not None and time_of(document.latest()) >> 16 > self.now_ms + 60_000:
                return Refusal("clock-ahead")
            if before is None and kind == Kind.PARTIAL:
                return Refusal("need-whole", rows=(row,))
            parents = [(table, key) for at, table, key in section.derived if at == index]
            if parents and not self._refers(row, before or EMPTY, parents[0]):
                dropped.add(row)
                after.setdefault(row, before or EMPTY)
                continue
            own.add(row)
            after[row] = merge(before or EMPTY, document)
        refusal = self.refuse(changeset, after)
        if refusal is not None:
            return refusal
        self.head += 1
        self._accepted[link.number][changeset.number] = (changeset.nonce, self.head)
        for row, document in after.items():
            self.documents[row] = encode(document)
            self._seqs[row] = self.head
        for other in self.links:
            mine = other is link
            rows = [row for row in after if not (mine and row in own - dropped)]
            acknowledged = (changeset.number,) if mine else ()
            other.queue.append(
                Statement(self._stated(rows), self.head, self._token(), True, acknowledged)
            )
        then, self.after_next_commit = self.after_next_commit, None
        if then is not None:
            then()
        return None

    def state_rows(self, rows: dict[RowId, Document]) -> None:
        """A commit of the relay's own."""
        self.head += 1
        for row, document in rows.items():
            self.documents[row] = encode(merge(self._document(row) or EMPTY, document))
            self._seqs[row] = self.head
        for link in self.links:
            link.queue.append(Statement(self._stated(rows), self.head, self._token(), True))

    def _document(self, row: RowId) -> Document | None:
        data = self.documents.get(row)
        return decode(data) if data else None

    def _refers(self, row: RowId, child: Document, parent: RowId) -> bool:
        table, parent_table = self.tables[row[0]], self.tables[parent[0]]
        keys = dict(zip((c.name for c in parent_table.key), unpack_key(parent[1]), strict=True))
        for foreign_key in table.foreign_keys:
            if foreign_key.parent != parent_table.name:
                continue
            pairs = zip(foreign_key.columns, foreign_key.parent_columns, strict=True)
            if all(self._value(row, child, own) == keys[theirs] for own, theirs in pairs):
                return True
        return False

    def _value(self, row: RowId, document: Document, name: str) -> Value:
        table = self.tables[row[0]]
        column = table.column(name)
        assert column is not None
        if column.key:
            return unpack_key(row[1])[column.key - 1]
        cell = document.cells.get(cell_key(column.id))
        return cell[1] if cell else None

    def _stated(self, rows: Sequence[RowId] | dict[RowId, Document]) -> list[StatedRows]:
        by_table: dict[int, list[bytes]] = {}
        for table, key in rows:
            by_table.setdefault(table, []).append(key)
        return [
            StatedRows(table, keys, [self.documents[table, key] for key in keys])
            for table, keys in by_table.items()
        ]

    def _token(self) -> bytes:
        return self.head.to_bytes(8, "big")
