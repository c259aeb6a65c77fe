"""What a relay needs of a database: the contract that every store keeps (Postgres, SQLite).

A store holds one realm: the app's tables, the row documents that they mirror, and the record of
commits and replicas. `commit.py` decides, a store only reads and writes; everything between
`begin` and its end is one transaction under the head lock, so commits have one order.

Backends write the app's tables, too. The database captures what they did, and a commit takes it
out and folds it into the documents (see `backend`): whole transactions, in order, each write once.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from reunite.cells.register import Value
from reunite.document import Document
from reunite.errors import ReuniteError
from reunite.overwritten import Loss
from reunite.schema import Table
from reunite_transport.messages import Section, Verdict

# Counting ends here: a number for people, and what is too much to fold while rows are locked.
BACKLOG_MAX: Final = 2_000


class RowId(NamedTuple):
    """A row anywhere in the realm: the registry's table id and the packed key."""

    table: int
    key: bytes


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row's document before and after. The store derives from it what to write: an insert when
    it comes alive, a delete when it dies, else an update of just the cells that differ."""

    row: RowId
    before: Document
    after: Document


class Written(NamedTuple):
    """What a backend did to one row: the values before and after by column id, the key's too, as
    documents hold them. Without `before` the row was inserted, without `after` deleted; without
    both the whole table was emptied. A column that the table did not have then is missing.

    `at` is the 64-bit time of it (see `clock`), None for a row that came with its table. What one
    transaction did to a row counts as one edit: `transaction` is its number, where it has one."""

    table: int
    transaction: int
    at: int | None
    before: Mapping[int, Value] | None
    after: Mapping[int, Value] | None


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica as the store knows it: its session's term and its last accepted number."""

    term: int
    last: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A changeset that this commit holds, for the duplicate check."""

    replica: int
    number: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Greeting:
    """The store's answer to a Hello: the term, which pending changesets are already in, and about
    how many rows lie after the client's cursor."""

    term: int
    verdict: Verdict
    known: tuple[tuple[int, int], ...]
    head: int
    now_ms: int
    rows: int


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Rows after a position, with where to go on; see `messages.Page`."""

    sections: tuple[Section, ...]
    seq: int
    within: bytes
    complete: bool
    token: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """The last commit's number and token, how many writes of backends wait to be folded (counted up
    to BACKLOG_MAX), and for how long the first of them has."""

    seq: int
    token: bytes
    waiting: int
    lag_seconds: float


class StoreError(ReuniteError):
    """The database refused or failed."""


class Violation(StoreError):
    """A constraint, type or size rule of the database refuses these rows; `message` may be shown
    to the author of the change, and to nobody else: it may quote a value. `table` and `constraint`
    are names, where the database says them."""

    def __init__(
        self, message: str, *, table: str | None = None, constraint: str | None = None
    ) -> None:
        super().__init__(message)
        self.table = table
        self.constraint = constraint


class Busy(StoreError):
    """A lock, deadlock or serialisation failure: the same work may succeed later."""


class Unfoldable(StoreError):
    """What backends wrote cannot be folded, by an error of ours. Nothing else is committed before
    it is, as it would be written over."""


class WentBack(StoreError):
    """The database is not in the history that this store has seen: it was restored from a backup.
    Every call raises it until `forget`."""

    def __init__(self) -> None:
        super().__init__(
            "the database went back to an earlier state or is not whole: let its restore finish"
        )


class StoreTransaction(Protocol):
    """One commit in the making, under the head lock."""

    seq: int
    """The number that this commit will have."""
    now_ms: int
    """The database's clock, in milliseconds since 1970 UTC."""
    tables: tuple[Table, ...]
    """All tables, as this commit finds them."""

    async def hold(self, rows: Sequence[RowId], *, patiently: bool = False) -> Collection[RowId]:
        """Keep backends from these rows until the commit ends. Returns those that a backend keeps
        from us; `patiently` the others are waited for, for a moment, and then it is Busy. What was
        captured before this is visible to `captured` after it. Raises Violation, Busy."""
        ...

    def captured(self) -> AsyncIterator[Sequence[Written]]:
        """What backends wrote and no commit has folded, in order and in parts. It is taken out:
        whole transactions, once all parts are. Asked again, it is what they wrote since."""
        ...

    async def consequences(self) -> Sequence[Written]:
        """What the app's triggers and foreign keys did because of `write_rows`, since this was
        asked last. It is taken out."""
        ...

    async def standings(self, replicas: Sequence[int]) -> Mapping[int, Standing]:
        """The known ones among these replicas."""
        ...

    async def accepted_nonces(self, nonces: Sequence[bytes]) -> Collection[bytes]:
        """Those of these nonces under which a changeset is in, from whomever: a copied file has
        the same work pending as the file that it was copied from."""
        ...

    async def documents(self, rows: Sequence[RowId]) -> Mapping[RowId, bytes]:
        """The documents of the rows that have one."""
        ...

    def documents_of(self, table: int) -> AsyncIterator[Mapping[RowId, bytes]]:
        """All documents of a table, in parts."""
        ...

    async def keep(
        self, documents: Mapping[RowId, bytes], losses: Mapping[RowId, Sequence[Loss]] = {}
    ) -> None:
        """Record documents at `seq`, and what it overwrote, ahead of `finish`."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Roll back what was written inside when the block raises, and only that."""
        ...

    async def write_rows(
        self, changes: Sequence[RowChange]
    ) -> Mapping[RowId, Mapping[int, object]]:
        """Write the app's tables and check every constraint. Returns what the database made
        different of the written cells: {row: {column id: value as a register holds it}}; a row
        that a trigger kept from being deleted is among them, without a column.
        Raises Violation or Busy; the caller's savepoint undoes."""
        ...

    async def finish(
        self,
        token: bytes,
        documents: Mapping[RowId, bytes],
        accepted: Sequence[Accepted],
        losses: Mapping[RowId, Sequence[Loss]] = {},
    ) -> None:
        """Record the documents at `seq`, the commit and its changesets, and what it overwrote, in
        order; advance the head. Of each row's losses the newest stay that ROW_PLACES_MAX places
        hold. The transaction commits when its block ends."""
        ...


class Store(Protocol):
    """One realm's database. All calls may raise StoreError; a lost connection is retried by the
    caller with a new transaction.

    Every call that reads or writes history first makes sure, in the same snapshot or transaction,
    that the last commit which this store saw is still there, and else raises WentBack."""

    realm: bytes
    """The realm's identity, 16 random bytes made once."""
    replica: int
    """This relay process's own replica id, new at every start and after `forget`."""

    async def registry(self) -> tuple[Table, ...]:
        """All tables, numbered, parents before children."""
        ...

    async def describe(self, tables: Sequence[Table], *, create: bool) -> tuple[Table, ...]:
        """Register what is new among these tables and their columns, and create it in the
        database; returns the registry. With `create` false anything new is a TableError."""
        ...

    async def follow(self, *, track_new: bool) -> Mapping[str, str]:
        """Notice what migrations by others did to the app's tables: columns that they added join
        the realm, and with `track_new` tables. Returns what is wrong with tables, by name. Raises
        Busy when a table is in use for too long."""
        ...

    async def greet(
        self, replica: int, acknowledged: int, nonces: Sequence[bytes], seq: int, token: bytes
    ) -> Greeting:
        """Compare histories under the head lock and, if they agree, raise the replica's term,
        so that its older connections are fenced off. The history is lost where the client's
        commit or acknowledged changesets are not in this store: it was restored from a backup."""
        ...

    def begin(self) -> AbstractAsyncContextManager[StoreTransaction]:
        """Start a commit; it takes effect when the block ends after `finish`, else nothing does."""
        ...

    async def page(self, seq: int, within: bytes, *, rows_max: int, bytes_max: int) -> FeedPage:
        """The next rows after (seq, within), of one snapshot, with at least one row if any."""
        ...

    async def losses(self, row: RowId) -> tuple[Loss, ...]:
        """What commits overwrote of a row, the newest first."""
        ...

    def forget(self) -> None:
        """Drop what is remembered between calls, as the database went back to an earlier state.
        Calls under way do not go on in the new history: they raise WentBack, or answer of the
        old one."""
        ...

    async def head(self) -> tuple[int, bytes]:
        """The last commit's (seq, token)."""
        ...

    async def look(self) -> Look:
        """The last commit, and what waits to be folded; cheap enough to ask all the time."""
        ...

    async def close(self) -> None:
        """Let go of the database."""
        ...
