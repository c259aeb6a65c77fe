"""Changes: what transactions did to each cell that merges, and how often each may count.

A change is what one transaction made of what it had read: of 5 it made 8, of a text another. That
is all that an outside observer knows of it, so it is what an independent model adds up (see
`checkers.counters` and those beside it). Where somebody wrote a value without having read one (a
row that had been deleted, NULL that covered a number), what his file held underneath is hidden.

How often a change counts follows from what can be seen. What was written beside an element of the
append-only lists counts once where the relay has the element in the end; through the engine's API
it does not count at all where the relay has not. Of the rest that which returned counts once,
unless it was refused, or its file is gone or went back: then nobody can say. Writes of other
programs may count more than once when a file that has not sent them goes back or is copied.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from reunite.cells.register import Value
from reunite.keys import stored_key
from reunite.schema import Column, default_value
from reunite_simulations import observe
from reunite_simulations.contents import Content, content, key_of
from reunite_simulations.history import Key, Outcome, Transaction, Verb, Write, net
from reunite_simulations.workload import APPEND_TABLE

if TYPE_CHECKING:
    from reunite_simulations.checkers import Observed

_Row: TypeAlias = tuple[str, Key]


class Count(Enum):
    """How often what a transaction did may count."""

    NEVER = "never"
    PERHAPS = "once or never"
    ONCE = "once"
    ANY = "any number of times"


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction made of a cell: `before`, or of what was `hidden` from it. `after` is None
    where it put a value there that the type does not promise."""

    made: Transaction
    before: Content | None
    after: Content | None
    hidden: bool
    # It may have been noticed as one edit with a change that was made of something hidden.
    over_hidden: bool
    # It made the row.
    inserts: bool
    count: Count
    # Changes of other programs that may have been noticed as one have a number in common.
    run: int | None = None

    @property
    def said(self) -> str:
        """Who made it, and when."""
        return f"{self.made.client} at {self.made.at:.1f} s"


@dataclass(slots=True)
class Cell:
    """A cell that merges, with all that was done to it in true order. `started` is what the world
    began with, `default` what a row has that nobody said more of, `final` what the relay shows in
    the end; None for values that the type does not promise, and for no row."""

    table: str
    key: Key
    column: Column
    started: Content | None
    default: Content | None
    in_first: bool
    final: Content | None
    changes: list[Change] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.table} {self.key} {self.column.name}"

    @property
    def began(self) -> Sequence[Content]:
        """What was there before anybody wrote."""
        return [each for each in (self.started, self.default) if each is not None]

    def wholes(self) -> Iterator[tuple[Content, Content]]:
        """What a file may have noticed as one edit: (before, after) of changes, and of runs of
        them. What was hidden is left out."""
        for change in self.changes:
            if change.before is not None and change.after is not None:
                yield change.before, change.after
        for run in self._runs():
            for place, first in enumerate(run):
                for last in run[place + 1 :]:
                    if first.before is not None and last.after is not None:
                        yield first.before, last.after

    def _runs(self) -> Iterator[Sequence[Change]]:
        by_run: dict[int, list[Change]] = {}
        for change in self.changes:
            if change.run is not None:
                by_run.setdefault(change.run, []).append(change)
        yield from by_run.values()

    def last_hidden(self) -> int:
        """The place of the last change that may have taken away what it had not read; -2 for none,
        which is before the beginning at -1."""
        places = [place for place, c in enumerate(self.changes) if c.over_hidden and _may(c)]
        return max(places, default=-2)


def _may(change: Change) -> bool:
    return change.count is not Count.NEVER


def cells(world: "Observed", kind: str, shape: type) -> Iterator[Cell]:
    """The cells of a type that anybody wrote and that show a content of this shape in the end. JSON
    has two: an array and an object of one column are told apart."""
    concerned = {
        table.name: [column for column in table.cells if column.type == kind]
        for table in world.tables()
    }
    if any(concerned.values()):
        for cell in _Reading(world, concerned, shape).cells.values():
            if cell.final is not None:
                yield cell


class _Reading:
    """One reading of a history."""

    def __init__(
        self, world: "Observed", columns: Mapping[str, Sequence[Column]], shape: type
    ) -> None:
        self._world = world
        self._shape = shape
        self._columns = columns
        self._tables = {table.name: table for table in world.tables()}
        self._counts = _Counts(world)
        self._places = {
            name: {column.name: place for place, column in enumerate(table.cells)}
            for name, table in self._tables.items()
        }
        self._defaults = {
            (name, column.name): self._content(column, default_value(column))
            for name, some in columns.items()
            for column in some
        }
        self._held = {
            name: observe.rows(world.store, self._tables[name])
            for name, some in columns.items()
            if some
        }
        self.cells: dict[tuple[str, Key, str], Cell] = {}
        # Rows that were deleted, and cells that were covered, by anybody until now.
        self._deleted: set[_Row] = set()
        self._covered: set[tuple[str, Key, str]] = set()
        self._runs: dict[tuple[str, Key, str, str], int] = {}
        self._hidden_runs: set[int | None] = set()
        self._read()

    def _read(self) -> None:
        own_by_client: dict[str, int] = {}
        for made in self._world.history.transactions:
            if made.outcome is Outcome.REFUSED:
                continue
            if made.own:
                own_by_client[made.client] = own_by_client.get(made.client, 0) + 1
            era = own_by_client.get(made.client, 0)
            gone: dict[_Row, Write] = {}
            for write in net(made):
                row = write.table, write.key
                if write.verb is Verb.DELETE:
                    gone[row] = write
                    self._deleted.add(row)
                    continue
                for column in self._columns.get(write.table, ()):
                    if column.name in write.cells:
                        self._note(made, write, column, gone.get(row), era)

    def _note(
        self, made: Transaction, write: Write, column: Column, gone: Write | None, era: int
    ) -> None:
        cell = self._cell(write.table, write.key, column)
        place = write.table, write.key, column.name
        # Deleted and made again in one transaction, a row was changed.
        as_one = made.own and not made.apart
        was = write.before or (gone.before if gone is not None and as_one else {})
        had = bool(was)
        before = self._content(column, was.get(column.name)) if had else None
        after = self._content(column, write.cells[column.name])
        if had and key_of(before) == key_of(after):
            return
        hidden = False
        if after is not None and before is None:
            unique = any(index.unique for index in self._tables[write.table].indexes)
            seen_before = (write.table, write.key) in self._deleted or place in self._covered
            hidden = seen_before or (unique and bool(cell.changes or cell.in_first))
            if not hidden and not had:
                before = cell.default
        if after is None:
            self._covered.add(place)
        run = None
        if not made.own:
            run = self._runs.setdefault((*place, f"{made.client} {era}"), len(self._runs))
            if hidden:
                self._hidden_runs.add(run)
        over = hidden or run in self._hidden_runs
        count = self._counts.of(made, write)
        cell.changes.append(Change(made, before, after, hidden, over, not had, count, run))

    def _content(self, column: Column, value: Value) -> Content | None:
        found = content(column, value)
        return found if isinstance(found, self._shape) else None

    def _cell(self, table: str, key: Key, column: Column) -> Cell:
        name = table, key, column.name
        if name not in self.cells:
            place = self._places[table][column.name]
            initial = self._world.initial.get(table, {}).get(key)
            default = self._defaults[table, column.name]
            started = None
            if initial is not None:
                # A column that was added later had its default.
                started = default
                if place < len(initial):
                    started = self._content(column, initial[place])
            row = self._held[table].get(key)
            final = self._content(column, row[place]) if row is not None else None
            self.cells[name] = Cell(
                table, key, column, started, default, initial is not None, final
            )
        return self.cells[name]


class _Counts:
    """How often each transaction counts."""

    def __init__(self, world: "Observed") -> None:
        from reunite_simulations.checkers import rejected_rows

        self._world = world
        self._rejected = rejected_rows(world)
        has_lists = observe.has_table(world.store, APPEND_TABLE)
        self._elements = observe.elements(world.store, APPEND_TABLE) if has_lists else frozenset()
        self._deleted = _deleted_by_strangers(world)

    def of(self, made: Transaction, write: Write) -> Count:
        """How often this write of a transaction counts."""
        there = self._there(made)
        if made.own and there is not None:
            return there
        again = made.repeats or (made.resent and self._went_back_since(made))
        if again or (made.doubtful and there is None):
            return Count.ANY
        row = write.table, write.key
        rejected = (write.table, str(stored_key(write.key))) in self._rejected
        # What is noticed together with a row's deletion was never done to it.
        gone = not made.own and self._deleted.get((*row, made.client), -1.0) >= made.at
        if rejected or gone or there is Count.NEVER:
            return Count.PERHAPS
        known = made.outcome is Outcome.RETURNED and not made.doubtful
        return there or (Count.ONCE if known else Count.PERHAPS)

    def _there(self, made: Transaction) -> Count | None:
        """What the elements beside it say, which the relay got with it or not at all."""
        if not made.appended or self._went_back_since(made):
            return None
        there = [element in self._elements for element in made.appended]
        return Count.ONCE if all(there) else Count.PERHAPS if any(there) else Count.NEVER

    def _went_back_since(self, made: Transaction) -> bool:
        """Whether the relays' database may have lost it, and got it back by other ways."""
        history = self._world.history
        whole = history.epoch(made.at) == len(history.restores)
        return not whole or history.comes_back_by_row(made)


def _deleted_by_strangers(world: "Observed") -> Mapping[tuple[str, Key, str], float]:
    """When another program on a client's file last deleted a row."""
    return {
        (write.table, write.key, made.client): made.at
        for made in world.history.transactions
        if not made.own and made.outcome is not Outcome.REFUSED
        for write in made.writes
        if write.verb is Verb.DELETE
    }
