"""Workloads: plain SQL as apps write it, over any schema. Owns what is written and what is noted.

A workload knows a schema only by reading it. It writes values that occur once into columns that are
free, keys of rows that exist into those that refer, and now and then what collides: a key that
somebody else may use, a value of a small set into a UNIQUE column.
"""

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from reunite.cells.register import Value
from reunite.schema import Column, ForeignKey, Table, ascii_lower, quoted
from reunite_simulations.history import Cells, Key, Verb, Write

# Rows that several replicas make under the same keys, to see them merged.
SHARED_KEYS: Final = 30
# A value of this many occurs in UNIQUE columns again and again.
SHARED_VALUES: Final = 6

# The append-only lists of the consistency checkers; every element's id occurs once.
APPEND_TABLE: Final = "simulated_append"
APPEND_SQL: Final = (
    f"CREATE TABLE {APPEND_TABLE} (id TEXT PRIMARY KEY, list INTEGER NOT NULL, part INTEGER)"
)


@dataclass
class Mix:
    """How often each kind of write occurs, by weight, and how many rows a transaction writes."""

    insert: float = 4.0
    update: float = 8.0
    delete: float = 1.5
    replace: float = 1.0
    upsert: float = 1.0
    move_key: float = 0.3
    write_back: float = 1.0
    rows_max: int = 5
    # Of all transactions: those of other programs, and those that append to a list.
    strangers: float = 0.3
    appends: float = 0.3


@dataclass
class RandomWrites:
    """The random writes of one transaction over tables. Its own values count up from `values`, so
    that they are its own whichever other transactions there are."""

    tables: Sequence[Table]
    chance: random.Random
    mix: Mix
    values: int

    def some(self, conn: sqlite3.Connection) -> list[Write]:
        """Write some rows on an app's connection, inside its transaction. Raises sqlite3.Error
        where the database refuses; the caller rolls back."""
        done: list[Write] = []
        for _ in range(self.chance.randint(1, self.mix.rows_max)):
            done += self._one(conn)
        return done

    def append(self, conn: sqlite3.Connection) -> list[str]:
        """Add elements to a list, several in one transaction; returns their ids."""
        parts = self.chance.choice((1, 2, 3))
        group, number = self._next(), self.chance.randrange(4)
        ids = [f"{group}.{part}.{parts}" for part in range(parts)]
        conn.executemany(
            f"INSERT INTO {APPEND_TABLE} VALUES (?, ?, ?)",
            [(element, number, part) for part, element in enumerate(ids)],
        )
        return ids

    def _one(self, conn: sqlite3.Connection) -> list[Write]:
        table = self.chance.choice(self.tables)
        mix = self.mix
        kinds: dict[Callable[[sqlite3.Connection, Table], list[Write]], float] = {
            self._insert: mix.insert,
            self._update: mix.update,
            self._delete: mix.delete,
            self._replace: mix.replace,
            self._upsert: mix.upsert,
            self._move_key: mix.move_key,
            self._write_back: mix.write_back,
        }
        (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
        return kind(conn, table)

    # Kinds of writes.

    def _insert(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        cells = self._row(conn, table)
        if cells is None:
            return []
        key = tuple(cells[column.name] for column in table.key)
        if read(conn, table, key) is not None:
            return []
        _run(conn, f"INSERT INTO {quoted(table.name)}", cells)
        return self._noted(conn, table, key, Verb.INSERT, {})

    def _replace(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """REPLACE of a row that nobody refers to: another would take its children with it."""
        key = self._some_key(conn, table)
        cells = self._row(conn, table)
        if key is None or cells is None or self._children(table):
            return []
        before = read(conn, table, key)
        cells |= dict(zip((column.name for column in table.key), key, strict=True))
        # Only its own row may go: those that it collides with go without a word in the history.
        for column in sorted(_unique_columns(table)):
            cells[column] = self._value(_column(table, column))
        _run(conn, f"INSERT OR REPLACE INTO {quoted(table.name)}", cells)
        return self._noted(conn, table, key, Verb.UPDATE, before or {})

    def _upsert(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        key = self._some_key(conn, table)
        free = [column for column in table.cells if is_free(table, column)]
        if key is None or not free:
            return []
        before = read(conn, table, key)
        assert before is not None
        column = self.chance.choice(free)
        cells = dict(before) | dict(zip((c.name for c in table.key), key, strict=True))
        name = quoted(column.name)
        keys = ", ".join(quoted(each.name) for each in table.key)
        cells[column.name] = self._value(column)
        _run(
            conn,
            f"INSERT INTO {quoted(table.name)}",
            cells,
            f" ON CONFLICT ({keys}) DO UPDATE SET {name} = excluded.{name}",
        )
        return self._noted(conn, table, key, Verb.UPDATE, before)

    def _update(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        key = self._some_key(conn, table)
        if key is None or not table.cells:
            return []
        before = read(conn, table, key)
        assert before is not None
        many = self.chance.randint(1, min(3, len(table.cells)))
        columns = self.chance.sample(list(table.cells), many)
        values: dict[str, Value] = {}
        for column in columns:
            values[column.name] = self._cell(conn, table, column)
        _update(conn, table, key, values)
        return self._noted(conn, table, key, Verb.UPDATE, before)

    def _write_back(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """All columns as they are, as an object mapper saves a row: no edit."""
        key = self._some_key(conn, table)
        before = read(conn, table, key) if key is not None else None
        if key is None or not before:
            return []
        _update(conn, table, key, dict(before))
        return []

    def _delete(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        key = self._some_key(conn, table)
        if key is None:
            return []
        concerned = [(table, key, read(conn, table, key) or {}), *self._below(conn, table, key)]
        where = " AND ".join(f"{quoted(column.name)} IS ?" for column in table.key)
        conn.execute(f"DELETE FROM {quoted(table.name)} WHERE {where}", key)
        writes = []
        for other, other_key, before in concerned:
            after = read(conn, other, other_key)
            if after is None:
                writes.append(Write(Verb.DELETE, other.name, other_key, {}, before))
            elif after != before:
                writes += self._noted(conn, other, other_key, Verb.UPDATE, before)
        return writes

    def _move_key(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """A changed primary key, of a row that nobody refers to."""
        key = self._some_key(conn, table)
        if key is None or len(table.key) != 1 or self._children(table) or self._refers(table, 0):
            return []
        before = read(conn, table, key)
        new = (self._value(table.key[0]),)
        name = quoted(table.key[0].name)
        conn.execute(f"UPDATE {quoted(table.name)} SET {name} = ? WHERE {name} IS ?", (*new, *key))
        return [
            Write(Verb.DELETE, table.name, key, {}, before or {}),
            *self._noted(conn, table, new, Verb.INSERT, {}),
        ]

    # Values.

    def _row(self, conn: sqlite3.Connection, table: Table) -> dict[str, Value] | None:
        """A new row's cells; None where it would have to refer to what is not there."""
        cells: dict[str, Value] = {}
        for column in table.columns:
            parent = _parent_of(table, column)
            if parent is not None:
                continue
            if column.key and self.chance.random() < 0.15:
                cells[column.name] = _of_affinity(column, self.chance.randrange(SHARED_KEYS) + 1)
            elif not column.key and column.default is not None and self.chance.random() < 0.5:
                continue
            elif not column.key and not column.notnull and self.chance.random() < 0.2:
                cells[column.name] = None
            else:
                cells[column.name] = self._cell(conn, table, column)
        for foreign_key in table.foreign_keys:
            found = self._parent_values(conn, table, foreign_key)
            if found is None:
                return None
            cells |= found
        return cells

    def _cell(self, conn: sqlite3.Connection, table: Table, column: Column) -> Value:
        foreign_key = _parent_of(table, column)
        if foreign_key is not None:
            found = self._parent_values(conn, table, foreign_key)
            return found[column.name] if found is not None else None
        unique = column.name in _unique_columns(table)
        if unique and self.chance.random() < 0.2:
            return _of_affinity(column, self.chance.randrange(SHARED_VALUES) + 1)
        if not (unique or column.notnull or column.key) and self.chance.random() < 0.1:
            return None
        return self._value(column)

    def _parent_values(
        self, conn: sqlite3.Connection, table: Table, foreign_key: ForeignKey
    ) -> dict[str, Value] | None:
        columns = [_column(table, name) for name in foreign_key.columns]
        nullable = not any(column.notnull or column.key for column in columns)
        if nullable and self.chance.random() < 0.2:
            return dict.fromkeys(foreign_key.columns)
        names = ", ".join(quoted(name) for name in foreign_key.parent_columns)
        rows = conn.execute(f"SELECT {names} FROM {quoted(foreign_key.parent)}").fetchall()
        if not rows:
            return dict.fromkeys(foreign_key.columns) if nullable else None
        return dict(
            zip(foreign_key.columns, self.chance.choice(sorted(rows, key=repr)), strict=True)
        )

    def _value(self, column: Column) -> Value:
        """A value that occurs nowhere else."""
        return _of_affinity(column, self._next())

    def _next(self) -> int:
        self.values += 1
        return self.values

    # Rows.

    def _some_key(self, conn: sqlite3.Connection, table: Table) -> Key | None:
        names = ", ".join(quoted(column.name) for column in table.key)
        count = conn.execute(f"SELECT count(*) FROM {quoted(table.name)}").fetchone()[0]
        if not count:
            return None
        # Rows that everybody writes now and then, beside those that few do.
        place = self.chance.randrange(min(count, 8) if self.chance.random() < 0.5 else count)
        found: Key = conn.execute(
            f"SELECT {names} FROM {quoted(table.name)} ORDER BY {names} LIMIT 1 OFFSET ?", (place,)
        ).fetchone()
        return found

    def _noted(
        self, conn: sqlite3.Connection, table: Table, key: Key, verb: Verb, before: Cells
    ) -> list[Write]:
        after = read(conn, table, key)
        if after is None:
            return []
        changed = {name: value for name, value in after.items() if name not in before}
        changed |= {
            name: value
            for name, value in after.items()
            if name in before and (value != before[name] or type(value) is not type(before[name]))
        }
        return [Write(verb, table.name, key, changed, before)] if changed or not before else []

    def _children(self, table: Table) -> list[tuple[Table, ForeignKey]]:
        return [
            (child, foreign_key)
            for child in self.tables
            for foreign_key in child.foreign_keys
            if ascii_lower(foreign_key.parent) == ascii_lower(table.name)
        ]

    def _refers(self, table: Table, place: int) -> bool:
        return _parent_of(table, table.key[place]) is not None

    def _below(
        self, conn: sqlite3.Connection, table: Table, key: Key, depth: int = 4
    ) -> Iterator[tuple[Table, Key, Cells]]:
        """Rows that a deletion would change by a foreign key's action."""
        row = (read(conn, table, key) or {}) | dict(
            zip((column.name for column in table.key), key, strict=True)
        )
        for child, foreign_key in self._children(table):
            if depth == 0 or foreign_key.on_delete in ("NO ACTION", "RESTRICT"):
                continue
            values = [_named(row, name) for name in foreign_key.parent_columns]
            where = " AND ".join(f"{quoted(name)} = ?" for name in foreign_key.columns)
            names = ", ".join(quoted(column.name) for column in child.key)
            for (*found,) in conn.execute(
                f"SELECT {names} FROM {quoted(child.name)} WHERE {where} ORDER BY {names}", values
            ).fetchall():
                below = tuple(found)
                yield child, below, read(conn, child, below) or {}
                if foreign_key.on_delete == "CASCADE":
                    yield from self._below(conn, child, below, depth - 1)


def is_free(table: Table, column: Column) -> bool:
    """Whether any value fits a column: it refers to nothing, and need not be unique."""
    return _parent_of(table, column) is None and column.name not in _unique_columns(table)


def read(conn: sqlite3.Connection, table: Table, key: Key) -> dict[str, Value] | None:
    """The cells of one row by column name; None when it is not there."""
    names = [column.name for column in table.cells]
    where = " AND ".join(f"{quoted(column.name)} IS ?" for column in table.key)
    found = conn.execute(
        f"SELECT {', '.join(map(quoted, names)) or '1'} FROM {quoted(table.name)} WHERE {where}",
        key,
    ).fetchone()
    return None if found is None else dict(zip(names, found, strict=False))


def _run(
    conn: sqlite3.Connection, statement: str, cells: Cells, behind: str = ""
) -> sqlite3.Cursor:
    names = ", ".join(map(quoted, cells))
    marks = ", ".join("?" * len(cells))
    return conn.execute(f"{statement} ({names}) VALUES ({marks}){behind}", tuple(cells.values()))


def _update(conn: sqlite3.Connection, table: Table, key: Key, values: Cells) -> None:
    sets = ", ".join(f"{quoted(name)} = ?" for name in values)
    where = " AND ".join(f"{quoted(column.name)} IS ?" for column in table.key)
    conn.execute(f"UPDATE {quoted(table.name)} SET {sets} WHERE {where}", (*values.values(), *key))


def _parent_of(table: Table, column: Column) -> ForeignKey | None:
    for foreign_key in table.foreign_keys:
        if column.name in foreign_key.columns:
            return foreign_key
    return None


def _column(table: Table, name: str) -> Column:
    found = table.column(name)
    assert found is not None
    return found


def _named(row: Cells, name: str) -> Value:
    return next(value for each, value in row.items() if ascii_lower(each) == ascii_lower(name))


def _unique_columns(table: Table) -> set[str]:
    return {name for index in table.indexes if index.unique for name in index.columns}


def occurs_once(column: Column) -> bool:
    """Whether a workload's values of this column differ, each from all others."""
    return column.type.partition("(")[0] not in ("boolean", "date", "time", "timestamp")


def _of_affinity(column: Column, number: int) -> Value:
    """A number as a value that the column keeps as it is."""
    match column.type.partition("(")[0]:
        case "integer":
            return number
        case "boolean":
            return number % 2
        case "real":
            return number + 0.5
        case "numeric":
            return number / 4
        case "blob":
            return number.to_bytes(5, "big")
        case "date":
            return f"2026-01-{number % 28 + 1:02}"
        case "time":
            return f"{number % 24:02}:00:00"
        case "timestamp" | "timestamptz":
            return f"2026-01-{number % 28 + 1:02} 00:00:00"
        case "uuid":
            return f"00000000-0000-4000-8000-{number:012}"
        case "json":
            return str(number)
        case _:
            return f"v{number}"
