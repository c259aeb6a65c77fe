"""Workloads: plain SQL as apps write it, over any schema. Owns what is written and what is noted.

A workload knows a schema only by reading it. It writes values that occur once into columns that are
free, keys of rows that exist into those that refer, and now and then what collides: a key that
somebody else may use, a value of a small set into a UNIQUE column, the values of a row that has to
go for it. What a statement did is noted by reading the rows that it may concern before and after.
"""

import random
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import Final

from reunite.cells.register import Value
from reunite.schema import Table, ascii_lower, quoted
from reunite_simulations import edits, rows, values
from reunite_simulations.contents import merges
from reunite_simulations.drawn import Draw
from reunite_simulations.edits import Expression
from reunite_simulations.history import Cells, Key, Verb, Write

# One statement writes up to so many rows, and deletes fewer, or tables would be empty.
ROWS_AT_ONCE: Final = 12
DELETED_AT_ONCE: Final = 4
# So many of a table's rows are edited by everybody.
HOT_ROWS: Final = 3
# A large transaction has one or the other: rows, or rows of a size. Both are more than one frame or
# page, and some are more than a relay sends live. Most are near the least, as worlds have to stay
# fast; a database beyond some rows gets none.
LARGE_ROWS: Final = (500, 3_000)
HEAVY_ROWS: Final = (10, 60)
HEAVY_BYTES: Final = 100_000
LARGE_DATABASE_ROWS: Final = 4_000

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
    merge: float = 6.0
    move_key: float = 0.3
    write_back: float = 1.0
    update_many: float = 0.7
    delete_many: float = 0.2
    insert_missing: float = 1.0
    swap: float = 1.0
    rows_max: int = 5
    # Of all transactions: those that write very much.
    large: float = 1 / 300
    # Of all transactions: those of other programs, and those that append to a list.
    strangers: float = 0.3
    appends: float = 0.3


@dataclass
class RandomWrites:
    """The random writes of one transaction over tables; `values` and `at_first` as in `Draw`.
    `apart` tells what each statement did to a row, and not only what all did in the end."""

    tables: Sequence[Table]
    chance: random.Random
    mix: Mix
    values: InitVar[int]
    at_first: InitVar[bool] = False
    apart: bool = False

    def __post_init__(self, values: int, at_first: bool) -> None:
        self._draw = Draw(self.chance, values, at_first)

    def some(self, conn: sqlite3.Connection) -> list[Write]:
        """Write some rows on an app's connection, inside its transaction. Raises sqlite3.Error
        where the database refuses; the caller rolls back."""
        if self.chance.random() < self.mix.large and self._is_small(conn):
            return self._large(conn)
        done: list[Write] = []
        for _ in range(self.chance.randint(1, self.mix.rows_max)):
            done += self._one(conn)
        return done

    def append(self, conn: sqlite3.Connection) -> list[str]:
        """Add elements to a list, several in one transaction; returns their ids."""
        parts = self.chance.choice((1, 2, 3))
        group, number = self._draw.next(), self.chance.randrange(4)
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
            self._merge: mix.merge,
            self._move_key: mix.move_key,
            self._write_back: mix.write_back,
            self._update_many: mix.update_many,
            self._delete_many: mix.delete_many,
            self._insert_missing: mix.insert_missing,
            self._swap: mix.swap,
        }
        (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
        return kind(conn, table)

    # Kinds of writes.

    def _insert(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        cells = self._draw.row(conn, table)
        if cells is None:
            return []
        key = tuple(cells[column.name] for column in table.key)
        if rows.read(conn, table, key) is not None:
            return []
        cells |= self._draw.ends(conn, table, cells)
        rows.run(conn, f"INSERT INTO {quoted(table.name)}", cells)
        return self._noted(conn, table, key, Verb.INSERT, {})

    def _insert_missing(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """A row with as little as it needs, and nothing where it or another is there already."""
        cells = self._draw.row(conn, table)
        if cells is None:
            return []
        known = self._draw.key(conn, table) if self.chance.random() < 0.5 else None
        needed = {
            column.name: cells[column.name]
            for column in table.columns
            if column.name in cells and (column.key or (column.notnull and column.default is None))
        }
        if known is not None:
            needed |= rows.by_name(table, known)
        key = tuple(needed[column.name] for column in table.key)
        return self._seen_to_do(
            conn,
            [(table, key)],
            lambda: rows.run(conn, f"INSERT OR IGNORE INTO {quoted(table.name)}", needed),
        )

    def _replace(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """REPLACE, also of a further row, which had a value that only one may have."""
        known = self._draw.key(conn, table)
        cells = self._draw.row(conn, table)
        if known is None or cells is None:
            return []
        new = tuple(cells[column.name] for column in table.key)
        key = known if self.chance.random() < 0.7 else new
        victim = self._draw.key(conn, table) if self.chance.random() < 0.6 else None
        taken = rows.read(conn, table, victim) if victim is not None and victim != key else None
        concerned = self._with_below(conn, table, [key] if taken is None else [key, victim or key])
        # Their children go with them: a little of that is enough.
        if len(concerned) > 2 and self.chance.random() < 0.8:
            return []
        if taken is None:
            for column in map(table.column, sorted(rows.unique_columns(table))):
                assert column is not None
                if rows.parent_of(table, column) is None:
                    cells[column.name] = self._draw.value(column)
        else:
            cells = dict(taken)
        cells |= rows.by_name(table, key)

        def replace() -> None:
            if taken is not None and key == known and self.chance.random() < 0.3:
                index = self.chance.choice([i.columns for i in table.indexes if i.unique] or [()])
                unique = {name: taken[name] for name in index if name in taken}
                if unique:
                    rows.update(conn, table, key, unique, "UPDATE OR REPLACE")
                return
            rows.run(conn, f"INSERT OR REPLACE INTO {quoted(table.name)}", cells)
            fresh = {c.name: self._draw.value(c) for c in table.cells if rows.is_free(table, c)}
            if taken is not None and fresh:
                # What was copied belongs to its write. And an index that others do not have would
                # be broken if the other row came back by an edit of theirs.
                rows.update(conn, table, key, fresh)

        before = rows.count(conn, table)
        writes = self._seen_to_do(conn, concerned, replace)
        verbs = [write.verb for write in writes if write.table == table.name]
        if before + verbs.count(Verb.INSERT) - verbs.count(Verb.DELETE) != rows.count(conn, table):
            raise sqlite3.IntegrityError("another row went than could be foreseen")
        return writes

    def _upsert(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        key = self._draw.key(conn, table)
        free = [column for column in table.cells if rows.is_free(table, column)]
        if key is None or not free:
            return []
        before = rows.read(conn, table, key)
        assert before is not None
        column = self.chance.choice(free)
        cells = dict(before) | rows.by_name(table, key)
        name = quoted(column.name)
        keys = ", ".join(quoted(each.name) for each in table.key)
        to = Expression(f"excluded.{name}")
        if merges(column):
            to = self._draw.edit(conn, table, column, before[column.name])
        else:
            cells[column.name] = self._draw.value(column)
        behind = f" ON CONFLICT ({keys}) DO UPDATE SET {name} = {to.sql}"
        rows.run(conn, f"INSERT INTO {quoted(table.name)}", cells, behind, to.given)
        return self._noted(conn, table, key, Verb.UPDATE, before)

    def _update(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        key = self._draw.key(conn, table)
        if key is None or not table.cells:
            return []
        before = rows.read(conn, table, key)
        assert before is not None
        many = self.chance.randint(1, min(3, len(table.cells)))
        columns = self.chance.sample(list(table.cells), many)
        cells = {c.name: self._draw.edit(conn, table, c, before[c.name]) for c in columns}
        rows.change(conn, table, key, cells)
        return self._noted(conn, table, key, Verb.UPDATE, before)

    def _merge(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """A few edits of a row that everybody edits, where columns merge; else an update."""
        merging = [each for each in self.tables if any(map(merges, each.cells))]
        if not merging:
            return self._update(conn, table)
        table = self.chance.choice(merging)
        key = self._draw.key(conn, table, HOT_ROWS)
        columns = [column for column in table.cells if merges(column)]
        done: list[Write] = []
        for column in self.chance.sample(columns, min(len(columns), self.chance.randint(1, 3))):
            before = rows.read(conn, table, key) if key is not None else None
            if key is None or before is None:
                break
            to = self._draw.edit(conn, table, column, before[column.name])
            rows.change(conn, table, key, {column.name: to})
            done += self._noted(conn, table, key, Verb.UPDATE, before)
        return done

    def _write_back(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """All columns as they mean, as an object mapper saves a row: no edit."""
        key = self._draw.key(conn, table)
        before = rows.read(conn, table, key) if key is not None else None
        if key is None or not before:
            return []
        cells = dict(before)
        for column in filter(merges, table.cells):
            cells[column.name] = edits.respelt(column, cells[column.name], self.chance)
        rows.update(conn, table, key, cells)
        return self._noted(conn, table, key, Verb.UPDATE, before)

    def _update_many(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """One statement, and a value for each row that occurs once."""
        free = [column for column in table.cells if rows.is_free(table, column)]
        if not free:
            return []
        where, given = self._draw.rows(conn, table, ROWS_AT_ONCE)
        keys = rows.keys(conn, table, where, given)
        if not keys:
            return []
        column = self.chance.choice(free)
        name = quoted(column.name)
        key = quoted(table.key[0].name)
        spoken = table.key[0].type in ("integer", "text", "uuid")
        sets: Sequence[Value]
        if merges(column):
            value, sets = edits.edit_of_all(column, self._draw.next, self.chance)
        elif not values.occurs_once(column):
            value, sets = "?", [self._draw.value(column)]
        elif values.takes_any_text(column) and len(table.key) == 1 and spoken:
            value, sets = f"? || {key}", [f"v{self._draw.next()}."]
        else:
            test = rows.is_key(table)
            value = "CASE" + f" WHEN {test} THEN ?" * len(keys) + f" ELSE {name} END"
            sets = [each for key in keys for each in (*key, self._draw.value(column))]
        sql = f"UPDATE {quoted(table.name)} SET {name} = {value} WHERE {where}"
        return self._seen_to_do(
            conn, [(table, key) for key in keys], lambda: conn.execute(sql, (*sets, *given))
        )

    def _swap(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """Two rows exchange what only one may have."""
        referred = {
            ascii_lower(name)
            for _, foreign_key in rows.children(self.tables, table)
            for name in foreign_key.parent_columns
        }
        unique = [
            [rows.column(table, name) for name in index.columns]
            for index in table.indexes
            if index.unique and referred.isdisjoint(map(ascii_lower, index.columns))
        ]
        unique = [columns for columns in unique if not any(column.key for column in columns)]
        one, other = self._draw.key(conn, table), self._draw.key(conn, table)
        if not unique or one is None or other is None or one == other:
            return []
        columns = self.chance.choice(unique)
        had, has = rows.read(conn, table, one), rows.read(conn, table, other)
        assert had is not None
        assert has is not None
        spare: dict[str, Value] = {
            column.name: self._draw.value(column) if column.notnull else None
            for column in columns
            if rows.parent_of(table, column) is None or not column.notnull
        }
        again = not rows.children(self.tables, table) and self.chance.random() < 0.3
        if not spare and not again:
            return []
        mine = {column.name: had[column.name] for column in columns}
        theirs = {column.name: has[column.name] for column in columns}

        into = f"INSERT INTO {quoted(table.name)}"
        gone = f"DELETE FROM {quoted(table.name)} WHERE {rows.is_key(table)}"
        steps: list[Callable[[], object]] = [
            lambda: rows.update(conn, table, one, spare),
            lambda: rows.update(conn, table, other, mine),
            lambda: rows.update(conn, table, one, theirs),
        ]
        if again:
            steps = [
                lambda: conn.executemany(gone, [one, other]),
                lambda: rows.run(conn, into, {**rows.by_name(table, one), **had, **theirs}),
                lambda: rows.run(conn, into, {**rows.by_name(table, other), **has, **mine}),
            ]
        both = [(table, one), (table, other)]
        if self.apart:
            # What a row held between two of them was an edit, too.
            return [write for step in steps for write in self._seen_to_do(conn, both, step)]
        return self._seen_to_do(conn, both, lambda: [step() for step in steps])

    def _delete(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        key = self._draw.key(conn, table)
        return [] if key is None else self._delete_where(conn, table, rows.is_key(table), key)

    def _delete_many(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        return self._delete_where(conn, table, *self._draw.rows(conn, table, DELETED_AT_ONCE))

    def _delete_where(
        self, conn: sqlite3.Connection, table: Table, where: str, given: Sequence[Value]
    ) -> list[Write]:
        keys = rows.keys(conn, table, where, given)
        if not keys:
            return []
        sql = f"DELETE FROM {quoted(table.name)} WHERE {where}"
        return self._seen_to_do(
            conn, self._with_below(conn, table, keys), lambda: conn.execute(sql, tuple(given))
        )

    def _move_key(self, conn: sqlite3.Connection, table: Table) -> list[Write]:
        """A changed primary key, of a row that nobody refers to, or whose children follow it."""
        key = self._draw.key(conn, table)
        follow = all(
            foreign_key.on_update == "CASCADE"
            and not any(rows.column(child, name).key for name in foreign_key.columns)
            for child, foreign_key in rows.children(self.tables, table)
        )
        refers = rows.parent_of(table, table.key[0]) is not None
        if key is None or len(table.key) != 1 or not follow or refers:
            return []
        before = rows.read(conn, table, key)
        following = [
            (child, child_key, rows.read(conn, child, child_key) or {})
            for child, _, child_key in rows.referring(conn, self.tables, table, key)
        ]
        new = (self._draw.key_value(table.key[0]),)
        # Another client's edit may bring the old row back beside the new one, and an index that
        # the relay does not know would be broken if both had the same values.
        fresh = {
            column.name: self._draw.value(column)
            for column in table.cells
            if rows.is_free(table, column)
        }
        rows.update(conn, table, key, {**rows.by_name(table, new), **fresh})
        return [
            Write(Verb.DELETE, table.name, key, {}, before or {}),
            *self._noted(conn, table, new, Verb.INSERT, {}),
            *(
                write
                for child, child_key, had in following
                for write in self._noted(conn, child, child_key, Verb.UPDATE, had)
            ),
        ]

    def _large(self, conn: sqlite3.Connection) -> list[Write]:
        """Very many rows in one transaction, or rows that are very large."""
        table = self.chance.choice(self.tables)
        cells = self._draw.row(conn, table)
        if cells is None:
            return []
        # All have the parents and the NULLs of one, and values of their own.
        own = [
            column
            for column in table.columns
            if cells.get(column.name) is not None and rows.parent_of(table, column) is None
        ]
        if not any(column.key and values.occurs_once(column) for column in own):
            return []
        sizeable = [
            c for c in own if rows.is_free(table, c) and not c.key and values.is_sizeable(c)
        ]
        heavy = self.chance.choice(sizeable) if sizeable and self.chance.random() < 0.6 else None
        made: list[dict[str, Value]] = []
        least, most = LARGE_ROWS if heavy is None else HEAVY_ROWS
        for _ in range(int(least * (most / least) ** self.chance.random() ** 3)):
            made.append(cells | {column.name: self._draw.key_value(column) for column in own})
            if heavy is not None:
                value = values.large(heavy, self._draw.next(), HEAVY_BYTES, self.chance)
                made[-1][heavy.name] = value
        names = ", ".join(map(quoted, cells))
        marks = ", ".join("?" * len(cells))
        conn.executemany(
            f"INSERT INTO {quoted(table.name)} ({names}) VALUES ({marks})",
            [tuple(row.values()) for row in made],
        )
        keys = [tuple(row[column.name] for column in table.key) for row in made]
        return [write for key in keys for write in self._noted(conn, table, key, Verb.INSERT, {})]

    def _is_small(self, conn: sqlite3.Connection) -> bool:
        return sum(rows.count(conn, table) for table in self.tables) < LARGE_DATABASE_ROWS

    # What was done.

    def _with_below(
        self, conn: sqlite3.Connection, table: Table, keys: Iterable[Key]
    ) -> list[tuple[Table, Key]]:
        """Rows, and those that would be changed with them if they went."""
        return [
            row
            for key in keys
            for row in ((table, key), *rows.changed_with(conn, self.tables, table, key))
        ]

    def _seen_to_do(
        self,
        conn: sqlite3.Connection,
        concerned: Iterable[tuple[Table, Key]],
        action: Callable[[], object],
    ) -> list[Write]:
        """Do something, and tell what it did to these rows."""
        before = {
            (table.name, key): (table, rows.read(conn, table, key)) for table, key in concerned
        }
        action()
        writes: list[Write] = []
        for (name, key), (table, cells) in before.items():
            if cells is None:
                writes += self._noted(conn, table, key, Verb.INSERT, {})
            elif rows.read(conn, table, key) is None:
                writes.append(Write(Verb.DELETE, name, key, {}, cells))
            elif cells:
                writes += self._noted(conn, table, key, Verb.UPDATE, cells)
        return writes

    def _noted(
        self, conn: sqlite3.Connection, table: Table, key: Key, verb: Verb, before: Cells
    ) -> list[Write]:
        after = rows.read(conn, table, key)
        if after is None:
            return []
        changed = {name: value for name, value in after.items() if name not in before}
        changed |= {
            name: value
            for name, value in after.items()
            if name in before and (value != before[name] or type(value) is not type(before[name]))
        }
        return [Write(verb, table.name, key, changed, before)] if changed or not before else []
