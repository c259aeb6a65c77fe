"""What a transaction writes and where, drawn by its chance: rows, cells, keys, conditions.

Values occur once where they can, so that a value tells which write it came from; keys of rows that
exist go into columns that refer; and now and then one collides: a key that somebody else may use, a
value of a small set in a UNIQUE column.
"""

import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reunite.cells.register import Value
from reunite.schema import Column, ForeignKey, Table, quoted
from reunite_simulations import edits, rows, values
from reunite_simulations.contents import merges
from reunite_simulations.edits import Expression
from reunite_simulations.history import Cells, Key

# Rows that several replicas make under the same keys, to see them merged.
SHARED_KEYS: Final = 30
# A value of this many occurs in UNIQUE columns again and again.
SHARED_VALUES: Final = 6


@dataclass
class Draw:
    """The draws of one transaction. Its own values count up from `values`, so that they are its own
    whichever other transactions there are. `at_first` when the file is the one that the world began
    with: a constraint that no other knows stops what it forbids there."""

    chance: random.Random
    values: int
    at_first: bool = False

    def row(self, conn: sqlite3.Connection, table: Table) -> dict[str, Value] | None:
        """A new row's cells; None where it would have to refer to what is not there."""
        cells: dict[str, Value] = {}
        for column in table.columns:
            parent = rows.parent_of(table, column)
            if parent is not None:
                continue
            if column.key and self.chance.random() < 0.15:
                cells[column.name] = self.chance.choice(_shared_keys(column))
            elif column.key:
                cells[column.name] = self.key_value(column)
            elif column.default is not None and self.chance.random() < 0.5:
                continue
            elif not column.notnull and self.chance.random() < 0.2:
                cells[column.name] = None
            else:
                cells[column.name] = self.cell(conn, table, column)
        for foreign_key in table.foreign_keys:
            found = self._parent_values(conn, table, foreign_key)
            if found is None:
                return None
            cells |= found
        return cells

    def cell(self, conn: sqlite3.Connection, table: Table, column: Column) -> Value:
        """What one cell may be given."""
        foreign_key = rows.parent_of(table, column)
        if foreign_key is not None:
            found = self._parent_values(conn, table, foreign_key)
            return found[column.name] if found is not None else None
        unique = column.name in rows.unique_columns(table)
        # Of a pair, each is the same more often, or both would hardly ever be.
        alone = any(index.unique and index.columns == (column.name,) for index in table.indexes)
        if unique and self.chance.random() < (0.2 if alone else 0.4):
            return values.plain(column, self.chance.randrange(SHARED_VALUES) + 1)
        if not (unique or column.notnull or column.key) and self.chance.random() < 0.1:
            return None
        return self.value(column)

    def edit(
        self, conn: sqlite3.Connection, table: Table, column: Column, held: Value
    ) -> Expression:
        """What one cell of a row may be set to, which was read before."""
        if merges(column) and rows.is_free(table, column):
            return edits.edit(column, held, self.next, self.chance)
        return Expression("?", [self.cell(conn, table, column)])

    def _parent_values(
        self, conn: sqlite3.Connection, table: Table, foreign_key: ForeignKey
    ) -> dict[str, Value] | None:
        columns = [rows.column(table, name) for name in foreign_key.columns]
        nullable = not any(column.notnull or column.key for column in columns)
        if nullable and self.chance.random() < 0.2:
            return dict.fromkeys(foreign_key.columns)
        names = ", ".join(quoted(name) for name in foreign_key.parent_columns)
        parents = conn.execute(f"SELECT {names} FROM {quoted(foreign_key.parent)}").fetchall()
        if not parents:
            return dict.fromkeys(foreign_key.columns) if nullable else None
        return dict(
            zip(foreign_key.columns, self.chance.choice(sorted(parents, key=repr)), strict=True)
        )

    def ends(self, conn: sqlite3.Connection, table: Table, cells: Cells) -> dict[str, Value]:
        """Now and then the empty or the last value that a type has, for one cell of a row that is
        new to everybody: no other write has it, and the first file has all UNIQUE indexes."""
        fresh = any(
            rows.parent_of(table, column) is None
            and values.occurs_once(column)
            and cells[column.name] not in _shared_keys(column)
            for column in table.key
        )
        if not (self.at_first and fresh and self.chance.random() < 0.3):
            return {}
        known = sum(index.unique for index in table.indexes)
        if rows.unique_indexes(conn, table) != known:
            return {}
        free = [column for column in table.cells if rows.is_free(table, column)]
        column = self.chance.choice(free) if free else None
        value = values.last(column, self.chance) if column is not None else None
        return {} if column is None or value is None else {column.name: value}

    def value(self, column: Column) -> Value:
        """A value that occurs nowhere else."""
        drawn = self.chance.random()
        if self.at_first and drawn < 0.15:
            return values.extreme(column, self.next(), self.chance)
        if drawn < 0.15:
            return values.odd(column, self.next(), self.chance)
        return values.plain(column, self.next())

    def key_value(self, column: Column) -> Value:
        """A key that nobody else has."""
        return values.plain(column, self.next())

    def next(self) -> int:
        """A number that no other write has."""
        self.values += 1
        return self.values

    def key(self, conn: sqlite3.Connection, table: Table, hot: int = 8) -> Key | None:
        """The key of a row that is there; None in an empty table. `hot` rows are written by
        everybody now and then, others by few."""
        count = rows.count(conn, table)
        if not count:
            return None
        place = self.chance.randrange(min(count, hot) if self.chance.random() < 0.5 else count)
        return rows.keys(conn, table, "1", (), limit=1, offset=place)[0]

    def rows(
        self, conn: sqlite3.Connection, table: Table, rows_max: int
    ) -> tuple[str, Sequence[Value]]:
        """A condition that is true of some rows and its values: a range or a list of keys, or what
        one row has in a column, where not too many have it."""
        first = self.key(conn, table)
        if first is None:
            return "0", ()
        keys = ", ".join(quoted(column.name) for column in table.key)
        marks = ", ".join("?" * len(table.key))
        drawn = self.chance.random()
        if drawn < 0.3 and table.cells:
            column = self.chance.choice(table.cells)
            value = (rows.read(conn, table, first) or {})[column.name]
            where = f"{quoted(column.name)} IS ?"
            if len(rows.keys(conn, table, where, (value,), limit=rows_max + 1)) <= rows_max:
                return where, (value,)
        many = self.chance.randint(2, rows_max)
        found = rows.keys(conn, table, f"({keys}) >= ({marks})", first, limit=many)
        if not found:
            return "0", ()
        if drawn < 0.7:
            return f"({keys}) >= ({marks}) AND ({keys}) <= ({marks})", (*found[0], *found[-1])
        given = [value for key in found for value in key]
        return f"({keys}) IN (VALUES {', '.join([f'({marks})'] * len(found))})", given


def _shared_keys(column: Column) -> list[Value]:
    return [values.plain(column, number + 1) for number in range(SHARED_KEYS)]
