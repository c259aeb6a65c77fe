"""What happened in a world, as an outside observer saw it: the raw material of the checkers.

Nothing here knows stamps, documents or the protocol. A transaction says what the app wrote and what
it had read there before; every value that a workload writes into a free column occurs once, so a
value that is seen anywhere tells which write it came from.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from reunite.cells.register import Value, same
from reunite_simulations.elements import Elements, Index

Key: TypeAlias = tuple[Value, ...]
Cells: TypeAlias = Mapping[str, Value]


class Outcome(StrEnum):
    """What the app was told of a transaction."""

    RETURNED = "returned"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """The process died before it said."""


class Verb(StrEnum):
    """What a write did to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Write:
    """One row's part of a transaction: what it has now, and what it had, by column. A deleted row
    has no cells, one that was not there none before."""

    verb: Verb
    table: str
    key: Key
    cells: Cells
    before: Cells


@dataclass(slots=True)
class Transaction:
    """One transaction of an app, and the event that it was. `own` went through the engine's API, as
    one changeset; others are writes of a program that knows nothing of it. `appended` are the
    elements it added to the append-only lists, `read` what it saw there before. `statements` are
    the SQL of what it wrote, `refusal` the error when it was refused."""

    event: str
    client: str
    life: int
    at: float
    own: bool
    writes: Sequence[Write] = ()
    appended: Sequence[str] = ()
    read: Set[str] = frozenset()
    statements: Sequence[str] = ()
    outcome: Outcome = Outcome.UNKNOWN
    refusal: str = ""
    # Each statement is an edit by itself: what was written on the relays' database.
    apart: bool = False
    # Written before a loss of power or a restored backup that may have taken it back.
    doubtful: bool = False
    # While the file had not loaded all rows yet, which show as they come.
    loading: bool = False
    # Written after this machine's clock had been changed under a running app, or by another program
    # into a table that had lost its triggers: when it says that it was written is anybody's guess.
    mistimed: bool = False
    # A copy of its file went back to before it, and may notice it once more as an edit of its own.
    returns: bool = False
    # Written as another program, and not sent yet in a file that went back or was copied: it may be
    # noticed or sent once more, as other work.
    repeats: bool = False
    # The same of its own work: it is sent again under its name, which a relay that was restored
    # meanwhile does not know any more.
    resent: bool = False

    @property
    def rows_written(self) -> int:
        """As far as it is known: a user's own transaction says only what SQL it ran."""
        return len(self.writes) + len(self.appended) or len(self.statements)


@dataclass(slots=True)
class Read:
    """What one client had in the append-only lists at one moment."""

    client: str
    life: int
    at: float
    seen: Set[str]


@dataclass(slots=True)
class Strike:
    """One fault, the event that it was, and the names of those whom it befell."""

    event: str
    kind: str
    at: float
    picked: Sequence[str]


@dataclass(slots=True)
class History:
    """All transactions, reads and faults, in true order."""

    transactions: list[Transaction] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    # When the relays' database went back to a backup, and when each client heard of it.
    restores: list[float] = field(default_factory=list)
    refills: dict[str, list[float]] = field(default_factory=dict)
    # Clients whose clock has stepped, or drifts.
    wrong_clocks: set[str] = field(default_factory=set)
    _index: Index = field(default_factory=lambda: Index({}, []))

    @property
    def events(self) -> Sequence[Transaction | Strike]:
        """What could be left out of this history, in true order."""
        return sorted([*self.transactions, *self.strikes], key=lambda each: each.at)

    def epoch(self, at: float) -> int:
        """How often the relays' database had gone back by then."""
        return bisect_left(self.restores, at)

    def comes_back_by_row(self, made: Transaction) -> bool:
        """Whether a relay that was restored before this may have got it row by row, and not as a
        whole: its client may have sent it when it had not heard yet."""
        epoch = self.epoch(made.at)
        heard = self.refills.get(made.client, [])
        return any(at >= made.at and self.epoch(at) == epoch for at in heard)

    def keep(self, elements: Iterable[str]) -> Set[str]:
        """The same set in little room: reads are many, and most elements are in most of them."""
        return Elements.of(elements, self._index)

    def begin(self, event: str, client: str, life: int, at: float, *, own: bool) -> Transaction:
        """A new transaction, whose outcome is not known yet."""
        made = Transaction(event, client, life, at, own, mistimed=client in self.wrong_clocks)
        self.transactions.append(made)
        return made

    def doubt(self, client: str, since: float) -> None:
        """What this client wrote after a moment may be gone, and nobody is to blame."""
        for transaction in self.transactions:
            if transaction.at >= since:
                transaction.doubtful |= transaction.client == client
                transaction.returns |= client.startswith(f"{transaction.client}-copy")

    def fold_again(self, backend: str, since: float) -> None:
        """The relays' database went back to when what this backend wrote was captured and not
        folded yet: who has it from the lost history has it once more."""
        for transaction in self.transactions:
            if transaction.client == backend and transaction.at >= since - 0.001:
                transaction.repeats = True

    def repeat(self, client: str) -> None:
        """This client's file went back, or is a copy, and holds work that it has not sent."""
        for transaction in self.transactions:
            mine = f"{client}-".startswith((f"{transaction.client}-", f"{transaction.client}-copy"))
            transaction.repeats |= mine and not transaction.own
            transaction.resent |= mine and transaction.own

    def mistime(self, client: str, since: float) -> None:
        """This client's clock is wrong from now on, and dates what it has not sent yet anew."""
        self.wrong_clocks.add(client)
        for transaction in self.transactions:
            if transaction.client == client and transaction.at >= since:
                transaction.mistimed = True

    def retire(self, client: str, file: str) -> None:
        """A client goes on with a new file: what it wrote into the one before was written by
        `file`, as far as anybody may look for it."""
        for transaction in self.transactions:
            if transaction.client == client:
                transaction.client = file


def may_come_again(made: Transaction, twins: Set[str]) -> bool:
    """Whether what this wrote may be noticed once more, as a later edit: its file went back, or was
    copied (`twins` are such clients) before it was sent and has another clock now."""
    return made.doubtful or made.returns or (made.mistimed and made.client in twins)


def net(made: Transaction) -> Iterator[Write]:
    """A transaction's writes with the successive edits of a row as one, where they are not apart,
    and without what is none: of a cell what it had before, of a row what came before it was
    deleted, or all of it when the row came and went."""
    found: list[Write] = list(made.writes) if made.apart else []
    place_by_row: dict[tuple[str, Key], int] = {}
    for write in () if made.apart else made.writes:
        place = place_by_row.get((write.table, write.key))
        earlier = None if place is None else found[place]
        if write.verb is Verb.UPDATE and earlier is not None and earlier.verb is not Verb.DELETE:
            assert place is not None
            found[place] = replace(earlier, cells={**earlier.cells, **write.cells})
            continue
        if write.verb is Verb.DELETE and earlier is not None:
            assert place is not None
            found[place] = replace(earlier, verb=Verb.UPDATE, cells={})
            if earlier.verb is Verb.INSERT and not earlier.before:
                continue
        place_by_row[write.table, write.key] = len(found)
        found.append(write)
    for write in found:
        cells = {
            column: value
            for column, value in write.cells.items()
            if column not in write.before or not same(value, write.before[column])
        }
        if cells or write.verb is not Verb.UPDATE:
            yield replace(write, cells=cells)
