"""The replica: what an app's file does as a party to sync, each verb one whole transaction.

Synchronous and without I/O but the SQLite connection it is given; the time and chance it needs
are passed in. Every verb begins with BEGIN IMMEDIATE and folds what other programs wrote, so that
nothing that is in the tables is overwritten unseen.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from reunite import adopt, changes, inbox, local_only, outbox, refill, registry, reload, verdicts
from reunite.bookkeeping import (
    Meta,
    Tracked,
    complete,
    is_prepared,
    prepare,
    save_turn,
    schema_seen,
)
from reunite.capture import last_captured
from reunite.changeset import fold_strangers
from reunite.clock import OFFSET_MS_MIN
from reunite.errors import FormatError, RealmMismatch, SyncError
from reunite.greeting import Greeting, check_latest, greet
from reunite.keys import key_values, pack_key, stored_key, unpack_key
from reunite.payload import RowRef, Statement
from reunite.rebase import merging_rows
from reunite.rescan import notice_schema_changes, schema_version
from reunite.schema import Table, ascii_lower, table_names
from reunite.state import Chance, State, StateCache
from reunite.turns import Turns
from reunite.verdicts import Rejection


class OutgoingRows(NamedTuple):
    """Rows of one table of a changeset, in the registry's numbers; see the protocol's Push."""

    table: int
    keys: list[bytes]
    documents: list[bytes]
    kinds: list[int]
    derived: list[tuple[int, int, bytes]]


class Outgoing(NamedTuple):
    """A frozen changeset, ready to be sent."""

    number: int
    nonce: bytes
    loose: bool
    rows: list[OutgoingRows]
    size: int


class Position(NamedTuple):
    """Where the next page goes on."""

    seq: int
    within: bytes


class Standing(NamedTuple):
    """What a user wants to know of a file: counts and identity."""

    replica: int
    realm: bytes | None
    seq: int
    pending: int
    rejected: int
    blocked: int
    last_sync_ms: int | None
    loaded: bool
    left_alone: tuple[str, ...]
    local_only: tuple[str, ...]


class Replica:
    """The sync state of one SQLite file, over one connection that nobody else uses."""

    def __init__(
        self, conn: sqlite3.Connection, *, chance: Chance, clock: Callable[[], int]
    ) -> None:
        """`clock` returns milliseconds since 1970; `conn` is in autocommit mode."""
        self.conn = conn
        self._chance = chance
        self._clock = clock
        self._cache = StateCache()
        self.turns = Turns()
        self._data_version = -1
        # How often `poll` found the file to be another.
        self._news = 0

    @contextmanager
    def transaction(self, greeting: int | None = None) -> Iterator[State]:
        """One transaction with the replica's state, committed at the end or rolled back whole. One
        that serves a session has the number of its greeting, and raises as `check_latest` does."""
        state = self.begin(self.conn)
        try:
            check_latest(state.meta, greeting)
            yield state
            self.commit(state)
        except BaseException:
            if self.conn.in_transaction:
                self.conn.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Iterator[State]:
        """The replica's state in a read transaction, which waits for nobody."""
        try:
            self.conn.execute("BEGIN")
            yield self._cache.load(self.conn, self._chance, self._clock())
        finally:
            if self.conn.in_transaction:
                self.conn.execute("ROLLBACK")

    def begin(self, conn: sqlite3.Connection) -> State:
        """Begin a transaction on this or another connection of the same file."""
        try:
            # An interrupt can end even this statement after it has begun the transaction.
            conn.execute("BEGIN IMMEDIATE")
            return self._cache.load(conn, self._chance, self._clock())
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise

    def commit(self, state: State) -> None:
        """Commit what `begin` began."""
        if state.written:
            state.meta.turn += 1
            save_turn(state.conn, state.meta.turn)
            written = [t for number, t in state.tables.items() if number in state.written]
            names = frozenset(ascii_lower(tracked.table.name) for tracked in written)
            self.turns.note(state.meta.turn, names)
        try:
            state.conn.execute("COMMIT")
        except BaseException:
            if state.written:
                self.turns.forget(state.meta.turn)
            raise
        self._cache.keep(state)

    def prepare(self) -> None:
        """Make our tables in the file if it has none. Raises FileError."""
        if is_prepared(self.conn):
            with self.transaction() as state:
                complete(state.conn)
                return
        self.conn.execute("BEGIN IMMEDIATE")
        try:
            prepare(self.conn, self._chance.replica)
            self.conn.execute("COMMIT")
        except BaseException:
            if self.conn.in_transaction:
                self.conn.execute("ROLLBACK")
            raise

    # The app's side.

    def track(self, names: Sequence[str]) -> list[str]:
        """Track tables, or none of them; returns those that were not tracked before."""
        with self.transaction() as state:
            fold_strangers(state)
            tracked = adopt.track(state, names)
            local_only.let_go(state, tracked)
            # Its own triggers are no news.
            notice_schema_changes(state)
        # SQLite's counter shows the writes of other connections only, and this was our own.
        self._data_version = -1
        return tracked

    def keep_local(self, names: Sequence[str]) -> None:
        """Note that tables are to stay in this file. Raises TableError for one that is not there,
        or that is tracked."""
        with self.transaction() as state:
            local_only.keep(state, names)

    def untracked(self) -> list[str]:
        """The user's tables that are neither tracked nor to stay here, in order of creation."""
        with self.reading() as state:
            known = {ascii_lower(t.table.name) for t in state.tables.values() if t.tracked}
            known |= {ascii_lower(name) for name in local_only.names(state.meta)}
            return [name for name in table_names(state.conn) if ascii_lower(name) not in known]

    def reload(self) -> None:
        """Have the next session load all that the relay has once more; see `reunite.reload`."""
        with self.transaction() as state:
            fold_strangers(state)
            inbox.forget_waiting(state)
            reload.begin(state)
            fold_strangers(state)
        # SQLite's counter shows the writes of other connections only, and this was our own.
        self._data_version = -1

    def check_latest(self, greeting: int) -> None:
        """Raise SyncError when the session that greeted so no longer speaks for the file: `fenced`
        when another greeted since, `reload` when the file is to be loaded again."""
        with self.reading() as state:
            check_latest(state.meta, greeting)

    def tables(self) -> list[Tracked]:
        """The realm's tables in this file."""
        with self.reading() as state:
            return list(state.tables.values())

    def poll(self) -> int:
        """Fold what other programs wrote. Returns how often the file was found to be another: one
        to whom that is news may have something to send, and has not missed what another one who
        asks was told of. Cheap when nothing happened: one PRAGMA.

        While another connection is writing it returns what it did before, and the next call tries
        again.
        """
        # Read before the fold, so that a write in between is noticed at the next poll.
        version: int = self.conn.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version and (
            not self._has_news() or self._at_once(fold_strangers)
        ):
            self._data_version = version
            self._news += 1
        return self._news

    def follow_changes(self, *, wait: bool = True) -> bool:
        """Keep the log of changes from now on, and note in it what other programs wrote. False when
        it is not kept, as another connection is writing; with `wait` it is waited for."""

        def begin(state: State) -> None:
            fold_strangers(state)
            changes.begin(state)

        with self.reading() as state:
            kept = bool(state.meta.feed)
        if not kept and wait:
            with self.transaction() as state:
                begin(state)
        elif not kept and not self._at_once(begin):
            return False
        self.poll()
        return True

    def unsent(self) -> bool:
        """True when a changeset waits to be sent for the first time."""
        found = self.conn.execute(
            "SELECT 1 FROM _reunite_changesets WHERE number IS NULL AND seq IS NULL LIMIT 1"
        ).fetchone()
        return found is not None

    def standing(self) -> Standing:
        """Counts and identity, as stored; nothing is folded."""
        with self.reading() as state:
            meta = state.meta

            def count(sql: str) -> int:
                found: int = state.conn.execute(sql).fetchone()[0]
                return found

            return Standing(
                meta.replica,
                meta.realm,
                meta.seq,
                count("SELECT count(*) FROM _reunite_changesets"),
                count("SELECT count(*) FROM reunite_rejected"),
                count("SELECT count(*) FROM _reunite_rows WHERE mark = 'blocked'"),
                meta.last_sync_ms,
                bool(meta.loaded),
                tuple(registry.left_alone(state)),
                tuple(local_only.names(meta)),
            )

    def acknowledged(self) -> int:
        """The highest changeset number that the relay has resolved."""
        with self.reading() as state:
            return state.meta.acknowledged

    def offset_ms(self) -> int:
        """How far this machine's clock is ahead of the relay's, as it was last measured."""
        with self.reading() as state:
            return state.meta.offset_ms

    def queued(self) -> int:
        """How many changesets the relay has not resolved."""
        found: int = self.conn.execute("SELECT count(*) FROM _reunite_changesets").fetchone()[0]
        return found

    def outbox_mark(self) -> int:
        """Names all local work up to now, for `has_reached`; folds first."""
        with self.transaction() as state:
            fold_strangers(state)
            return outbox.next_id(state.conn) - 1

    def has_reached(self, seq: int, mark: int) -> bool:
        """True when everything up to commit `seq` is here and all work up to `mark` resolved, with
        what became of it when it was refused."""
        with self.reading() as state:
            left = state.conn.execute(
                "SELECT 1 FROM _reunite_changesets WHERE id <= ? OR attempts <> 0 LIMIT 1", (mark,)
            ).fetchone()
            return state.meta.seq >= seq and left is None and not state.meta.reloading

    # The relay's side.

    def greeting(self) -> Greeting:
        """What to say to a relay; folds first, so that all that is pending is named."""
        with self.transaction() as state:
            fold_strangers(state)
            inbox.forget_waiting(state)
            return greet(state)

    def welcome(
        self,
        *,
        realm: bytes,
        offset_ms: int,
        fork: bool,
        known: Sequence[tuple[int, int]],
        greeting: int | None = None,
    ) -> None:
        """Take in the relay's answer to the greeting. After a `fork` greet again: the replica has
        a new id. Raises RealmMismatch."""
        with self.transaction(greeting) as state:
            fold_strangers(state)
            meta = state.meta
            _check_realm(meta, realm)
            meta.realm = realm
            state.save("realm")
            offset_ms = offset_ms if abs(offset_ms) >= OFFSET_MS_MIN else 0
            if abs(offset_ms - meta.offset_ms) >= OFFSET_MS_MIN or (
                not offset_ms and meta.offset_ms
            ):
                meta.offset_ms = offset_ms
                state.save("offset_ms")
                verdicts.restamp(state)
            if fork:
                outbox.note_offered(state)
                verdicts.rejoin(state, known)
            elif known:
                verdicts.mark_known(state, known, counted_from=meta.acknowledged)
                meta.acknowledged = max(meta.acknowledged, *(number for number, _ in known))
                state.save("acknowledged")

    def refill(self, *, realm: bytes, tables: Sequence[Table], greeting: int | None = None) -> int:
        """The relay was restored from a backup: make ready to offer what it had stated, and greet
        again. Returns the number of rows. Raises RealmMismatch."""
        with self.transaction(greeting) as state:
            fold_strangers(state)
            _check_realm(state.meta, realm)
            return refill.refill(state, tables)

    def take_registry(self, tables: Sequence[Table], *, greeting: int | None = None) -> list[Table]:
        """Take over the realm's tables; returns those that the relay lacks, parents first."""
        with self.transaction(greeting) as state:
            fold_strangers(state)
            registry.take_registry(state, tables)
            notice_schema_changes(state)
            return registry.undescribed(state)

    def undescribed(self) -> list[Table]:
        """The tracked tables that the relay's registry lacks, parents first."""
        with self.reading() as state:
            return registry.undescribed(state)

    def position(self) -> Position:
        """Where to pull from: the middle of a load, or the cursor."""
        with self.reading() as state:
            meta = state.meta
            if meta.load_seq is not None:
                return Position(meta.load_seq, meta.load_within or b"")
            return Position(meta.seq if meta.loaded and not meta.reloading else 0, b"")

    def receive(
        self,
        *statements: Statement,
        within: bytes = b"",
        choice: adopt.Choice | None = None,
        greeting: int | None = None,
    ) -> bool:
        """Take in a page, or live commits in order; True when it is in the tables now. See
        `inbox`."""
        with self.transaction(greeting) as state:
            fold_strangers(state)
            done = inbox.receive(state, statements, within=within)
            if done and statements[-1].complete and inbox.outbox_adopts(state):
                adopt.reconcile(state, choice)
            return done

    def reconcile(self, choice: adopt.Choice | None = None, *, greeting: int | None = None) -> None:
        """Compare what was adopted since the last load with the realm. Raises AdoptionConflict."""
        with self.reading() as state:
            if not state.meta.loaded or not inbox.outbox_adopts(state):
                return
        with self.transaction(greeting) as state:
            fold_strangers(state)
            adopt.reconcile(state, choice)

    def know(self, pairs: Sequence[tuple[int, int]], *, greeting: int | None = None) -> None:
        """These numbers were committed at these seqs while the stream was not live."""
        with self.transaction(greeting) as state:
            fold_strangers(state)
            inbox.know(state, pairs)
            if any(seq <= state.meta.seq for _, seq in pairs):
                inbox.drop_reached(state)
            inbox.retry(state)

    def reject(
        self,
        number: int,
        nonce: bytes,
        reason: str,
        message: str,
        rows: Sequence[tuple[int, bytes]] = (),
        greeting: int | None = None,
    ) -> list[Rejection]:
        """Take in a refusal and revert; the next push has this number. `rows` are those that the
        reason concerns, by the registry's table id and packed key. Raises FormatError."""
        with self.transaction(greeting) as state:
            fold_strangers(state)
            named = [_ref(state, table, key) for table, key in rows]
            # What is taken back is a change of this file's own.
            state.origin = changes.HERE
            rejections = verdicts.reject(state, number, nonce, reason, message, named)
            state.origin = None
            if not inbox.retry(state):
                inbox.retry_blocked(state)
            return rejections

    def outgoing(
        self, *, changesets_max: int, bytes_max: int, greeting: int | None = None
    ) -> list[Outgoing]:
        """Freeze and return the next changesets to send, in order; none while a first load is
        under way or the registry lacks a table."""
        if not self.unsent() and not self._has_news():
            return []
        with self.transaction(greeting) as state:
            fold_strangers(state)
            if not state.meta.loaded or registry.undescribed(state) or inbox.outbox_adopts(state):
                return []
            if outbox.shares(state) and merging_rows(state):
                # What is made on work that another file may have sent depends on whose it became.
                if outbox.is_under_way(state.conn):
                    return []
                changesets_max = 1
            taken = outbox.freeze(state, changesets_max=changesets_max, bytes_max=bytes_max)
            return [_outgoing(state, changeset) for changeset in taken]

    def unanswered(
        self, after: int, *, changesets_max: int, greeting: int | None = None
    ) -> list[Outgoing]:
        """Changesets that were sent before above this number and have no verdict."""
        with self.reading() as state:
            check_latest(state.meta, greeting)
            sent = outbox.sent(state.conn, after, changesets_max=changesets_max)
            return [_outgoing(state, changeset) for changeset in sent]

    def _at_once(self, work: Callable[[State], object]) -> bool:
        """Do something in a transaction, unless another connection is writing; False then."""
        patience: int = self.conn.execute("PRAGMA busy_timeout").fetchone()[0]
        self.conn.execute("PRAGMA busy_timeout = 0")
        try:
            with self.transaction() as state:
                work(state)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        finally:
            self.conn.execute(f"PRAGMA busy_timeout = {patience}")
        return True

    def _has_news(self) -> bool:
        """True when there are captures, or the schema moved."""
        if last_captured(self.conn):
            return True
        return schema_version(self.conn) != schema_seen(self.conn)


def _ref(state: State, table: int, key: bytes) -> RowRef:
    tracked = state.by_registry().get(table)
    if tracked is None:
        raise FormatError(f"a row of table {table}, which the registry does not have")
    return RowRef(tracked.id, stored_key(unpack_key(key)))


def _check_realm(meta: Meta, realm: bytes) -> None:
    if meta.realm is not None and meta.realm != realm:
        raise RealmMismatch(
            f"this file belongs to realm {meta.realm.hex()} and the relay serves"
            f" {realm.hex()}; sync with the relay it was synced with, or use a new file",
            "realm",
        )


def _outgoing(state: State, changeset: outbox.Changeset) -> Outgoing:
    assert changeset.number is not None
    sections: dict[int, OutgoingRows] = {}
    for entry in changeset.entries():
        tracked = state.tables[entry.row.table]
        if tracked.registry is None:
            raise SyncError(f"table {tracked.table.name!r} is not registered at the relay yet")
        section = sections.get(tracked.registry)
        if section is None:
            section = sections[tracked.registry] = OutgoingRows(tracked.registry, [], [], [], [])
        if entry.derived is not None:
            parent = state.tables[entry.derived.table]
            values = key_values(entry.derived.key, len(parent.table.key))
            if parent.registry is not None:
                section.derived.append((len(section.keys), parent.registry, pack_key(values)))
        section.keys.append(pack_key(key_values(entry.row.key, len(tracked.table.key))))
        section.documents.append(entry.document)
        section.kinds.append(int(entry.kind))
    return Outgoing(
        changeset.number,
        changeset.nonce,
        changeset.loose,
        list(sections.values()),
        len(changeset.payload),
    )
