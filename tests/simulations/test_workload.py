"""What the random writes say they did is what they did, on any schema."""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import fields, replace
from random import Random

import pytest

from reunite.cells.register import Value, same
from reunite.schema import Table, read_table, table_names
from reunite_simulations import observe
from reunite_simulations.history import Key, Verb, Write
from reunite_simulations.rows import is_free, read
from reunite_simulations.seeds import own_schema
from reunite_simulations.values import occurs_once
from reunite_simulations.workload import APPEND_SQL, Mix, RandomWrites

# Names that need quotes, generated columns, no key that is one column, and children everywhere.
ODD_SCHEMA = '''
CREATE TABLE "a ""table""" (
    "key one" TEXT, "select" INTEGER, "x""y" TEXT, b BLOB UNIQUE,
    twice TEXT GENERATED ALWAYS AS ("x""y" || "x""y") STORED UNIQUE,
    PRIMARY KEY ("key one", "select")
);
CREATE TABLE parent (
    id INTEGER PRIMARY KEY AUTOINCREMENT, code TEXT NOT NULL UNIQUE, v ANY
) STRICT;
CREATE TABLE child (
    id BLOB PRIMARY KEY, of TEXT REFERENCES parent (code) ON DELETE CASCADE ON UPDATE CASCADE,
    on_shelf INTEGER UNIQUE REFERENCES parent (id) ON DELETE SET NULL, n REAL, day DATE
);
CREATE TABLE grandchild (
    child BLOB REFERENCES child (id) ON DELETE CASCADE, no INTEGER, PRIMARY KEY (child, no)
);
CREATE UNIQUE INDEX low ON parent (lower(code));
INSERT INTO parent VALUES (1, 'one', 1), (2, 'two', 'x');
'''
KINDS = [
    field.name
    for field in fields(Mix)
    if field.name not in ("rows_max", "large", "strangers", "appends")
]

Rows = Mapping[tuple[str, Key], Mapping[str, Value]]


def only(kind: str) -> Mix:
    """A mix of one kind of write, with enough inserts that there are rows."""
    mix = Mix(large=0.0)
    for name in KINDS:
        setattr(mix, name, 0.0)
    mix.insert = 1.0
    setattr(mix, kind, 3.0)
    return mix


@pytest.fixture(params=["own", "odd"])
def conn(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.executescript(own_schema() if request.param == "own" else ODD_SCHEMA)
        conn.execute(APPEND_SQL)
        conn.execute("PRAGMA foreign_keys = 1")
        yield conn


def tables_of(conn: sqlite3.Connection) -> list[Table]:
    return [read_table(conn, name) for name in table_names(conn) if name != "simulated_append"]


def rows_of(conn: sqlite3.Connection) -> Rows:
    return {
        (table.name, key): read(conn, table, key) or {}
        for table in tables_of(conn)
        for key in observe.rows(conn, table)
    }


def check_noted(writes: list[Write], before: Rows, after: Rows, followed: set[str]) -> None:
    """Every row's last write says what it is now, and no row changed that has none."""
    last: dict[tuple[str, Key], Verb] = {}
    noted: dict[tuple[str, Key], dict[str, Value]] = {}
    for write in writes:
        row = write.table, write.key
        last[row] = write.verb
        held = {} if write.verb is Verb.DELETE else noted.get(row, dict(before.get(row, {})))
        noted[row] = {**held, **write.cells}
    for row, verb in last.items():
        assert (row in after) == (verb is not Verb.DELETE), row
        if row in after:
            for name, value in noted[row].items():
                assert name in followed or same(value, after[row][name]), (row, name)
    for row in before.keys() | after.keys():
        changed = row not in before or row not in after
        changed = changed or any(
            not same(value, after[row][name])
            for name, value in before[row].items()
            if name not in followed
        )
        assert not changed or row in last, row


def transactions(
    conn: sqlite3.Connection, mix: Mix, seed: int, count: int, *, apart: bool = False
) -> Iterator[tuple[list[Write], Rows, Rows]]:
    chance = Random(seed)
    for number in range(1, count + 1):
        first = number * 100_000 + 10**9
        writes = RandomWrites(tables_of(conn), chance, mix, first, at_first=True, apart=apart)
        before = rows_of(conn)
        conn.execute("BEGIN")
        try:
            done = writes.some(conn)
        except sqlite3.IntegrityError:
            conn.execute("ROLLBACK")
            continue
        conn.execute("COMMIT")
        yield done, before, rows_of(conn)


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_what_is_noted_is_what_was_done(conn: sqlite3.Connection, kind: str) -> None:
    mix = replace(Mix(), large=0.0) if kind == "all" else only(kind)
    followed = {"shelf", "of"}  # by ON UPDATE CASCADE
    done: list[Write] = []
    for writes, before, after in transactions(conn, mix, 1, 150):
        check_noted(writes, before, after, followed)
        done += writes
    assert len(done) > 40


def test_no_cell_gets_a_value_twice(conn: sqlite3.Connection) -> None:
    given: Counter[tuple[str, Key, str, Value]] = Counter()
    free = {
        (table.name, column.name): column.default
        for table in tables_of(conn)
        for column in table.cells
        if is_free(table, column) and occurs_once(column)
    }
    for seed in range(3):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
            conn.backup(copy)
            given.clear()
            for _, before, after in transactions(copy, replace(Mix(), large=0.0), seed, 300):
                for row, cells in after.items():
                    held = before.get(row)
                    for name, value in cells.items():
                        default = free.get((row[0], name), "none")
                        plain = default is None or str(value) != default.strip("'")
                        if (row[0], name) not in free or value is None or not plain:
                            continue
                        if held is None or not same(held[name], value):
                            given[(*row, name, value)] += 1
            assert {each: times for each, times in given.items() if times > 1} == {}


def test_a_replaced_row_takes_others_with_it(conn: sqlite3.Connection) -> None:
    """Victims of REPLACE are noted as deletes."""
    replaced = 0
    for writes, _, _ in transactions(conn, only("replace"), 2, 150):
        replaced += sum(write.verb is Verb.DELETE for write in writes)
    assert replaced > 10


def test_unique_values_are_swapped(conn: sqlite3.Connection) -> None:
    swapped = 0
    for writes, before, after in transactions(conn, only("swap"), 3, 150):
        for write in writes:
            for name, value in write.cells.items():
                if write.verb is Verb.UPDATE and value is not None:
                    swapped += any(
                        row != (write.table, write.key)
                        and row[0] == write.table
                        and row in after
                        and same(cells[name], value)
                        and not same(after[row][name], value)
                        for row, cells in before.items()
                    )
    assert swapped > 20


def test_what_a_row_held_between_two_statements_is_noted_of_who_writes_apart(
    conn: sqlite3.Connection,
) -> None:
    between = 0
    for writes, before, _ in transactions(conn, only("swap"), 3, 150, apart=True):
        held = dict(before)
        for write in writes:
            row = write.table, write.key
            assert all(same(value, held[row][name]) for name, value in write.before.items())
            between += row in before and held.get(row, {}) != before[row]
            held[row] = {**write.before, **write.cells}
    assert between > 20


def test_a_large_transaction_is_many_rows_or_many_bytes(conn: sqlite3.Connection) -> None:
    rows, sizes = [], []
    for writes, before, after in transactions(conn, replace(Mix(), large=1.0), 4, 20):
        check_noted(writes, before, after, {"shelf", "of"})
        if writes:
            rows.append(len(writes))
            sizes.append(sum(len(str(value)) for w in writes for value in w.cells.values()))
    assert max(rows, default=0) >= 500
    assert max(sizes, default=0) >= 1_000_000 or not any(
        table.name == "todo" for table in tables_of(conn)
    )
