"""Which transaction replaced which value of a cell: what nobody may see beside what else it wrote.

A transaction had read a value and wrote another in its place, so whoever sees the transaction does
not see that value any more. Only values that were in a cell once say so much: those that were
written once, and neither there from the beginning nor by default.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from reunite.cells.register import Value
from reunite.schema import default_value
from reunite_simulations.contents import merges
from reunite_simulations.history import Key, Outcome, Transaction, Verb, may_come_again, net

if TYPE_CHECKING:
    from reunite_simulations.checkers import Observed

# A cell and its value, with the value's type: 1 is not 1.0.
Seen: TypeAlias = tuple[str, Key, str, type, Value]
Rows: TypeAlias = Mapping[str, Mapping[Key, Mapping[str, Value]]]


@dataclass
class Replaced:
    """An index of a history, which `take` carries on to what has happened since."""

    _taken: int = -1
    _written: Counter[Seen] = field(default_factory=Counter)
    _author: dict[Seen, Transaction] = field(default_factory=dict)
    _by_value: dict[Seen, list[tuple[Transaction, Sequence[Seen]]]] = field(default_factory=dict)
    # When a client last deleted a row. Other programs' edits of it before are no edits if they were
    # captured together.
    _deleted: dict[tuple[str, Key, str], float] = field(default_factory=dict)

    def take(self, world: "Observed") -> None:
        """Index the transactions that are new."""
        history = world.history
        if self._taken < 0:
            self._taken = 0
            for table in world.tables():
                names = [column.name for column in table.cells]
                for key, values in world.initial.get(table.name, {}).items():
                    for column, value in zip(names, values, strict=False):
                        self._written[table.name, key, column, type(value), value] += 1
        defaults = {
            (table.name, column.name): default_value(column)
            for table in world.tables()
            for column in table.cells
            if not merges(column)
        }
        for made in history.transactions[self._taken :]:
            if made.outcome is Outcome.REFUSED:
                continue
            cells: list[Seen] = []
            befores: list[Seen] = []
            for write in net(made):
                if write.verb is Verb.DELETE:
                    self._deleted[write.table, write.key, made.client] = made.at
                for column, value in write.cells.items():
                    if (write.table, column) not in defaults:
                        # What merges is no value that one transaction wrote.
                        continue
                    cell = write.table, write.key, column
                    self._written[(*cell, type(value), value)] += 1
                    self._author[(*cell, type(value), value)] = made
                    before = write.before.get(column)
                    default = defaults[write.table, column]
                    if value not in (None, default):
                        cells.append((*cell, type(value), value))
                    if before not in (None, default):
                        befores.append((*cell, type(before), before))
            for seen in befores:
                self._by_value.setdefault(seen, []).append((made, cells))
        self._taken = len(history.transactions)

    def found(
        self, rows: Rows, twins: Set[str]
    ) -> Iterator[tuple[Seen, Transaction, Sequence[Seen]]]:
        """The values in these rows that a transaction replaced, with what it wrote. `twins` are
        clients whose file was copied."""
        for table, held in rows.items():
            for key, cells in held.items():
                for column, value in cells.items():
                    seen = table, key, column, type(value), value
                    author = self._author.get(seen)
                    again = author is not None and may_come_again(author, twins)
                    if seen in self._by_value and self._written[seen] <= 1 and not again:
                        for made, wrote in self._by_value[seen]:
                            deleted_at = self._deleted.get((table, key, made.client), -1.0)
                            if not made.own and deleted_at >= made.at:
                                continue
                            yield seen, made, [each for each in wrote if self._written[each] == 1]


def shows(rows: Rows, seen: Seen) -> bool:
    """Whether a cell of these rows has this value."""
    table, key, column, kind, value = seen
    cells = rows.get(table, {}).get(key, {})
    return column in cells and type(cells[column]) is kind and cells[column] == value
