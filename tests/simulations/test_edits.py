"""Edits of columns that merge are plain SQL that says what apps mean, whatever a column holds."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from random import Random

import pytest

from reunite.cells.register import Value, same
from reunite.schema import Column, Table, read_table
from reunite_simulations.contents import content, means_the_same
from reunite_simulations.edits import edit, edit_of_all, respelt
from reunite_simulations.rows import change, read
from reunite_simulations.trees import parts_of
from tests.simulations.told import POST, POST_SQL


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute(POST_SQL)
        values = tuple(POST.values())
        conn.execute("INSERT INTO post VALUES (1, ?, ?, ?, ?, ?)", values)
        conn.execute("INSERT INTO post VALUES (2, NULL, NULL, NULL, NULL, NULL)")
        conn.execute("INSERT INTO post VALUES (3, 'x', x'ff', 'x', x'ff', '5')")
        yield conn


def held(conn: sqlite3.Connection, table: Table, number: int) -> dict[str, Value]:
    found = read(conn, table, (number,))
    assert found is not None
    return found


@pytest.mark.parametrize("name", POST)
def test_an_edit_changes_a_little_of_what_was_read(conn: sqlite3.Connection, name: str) -> None:
    table, chance, numbers = read_table(conn, "post"), Random(name), count(1_000)
    column = table.column(name)
    assert column is not None
    changed = small = 0
    for _ in range(300):
        before = held(conn, table, 1)[name]
        change(
            conn, table, (1,), {name: edit(column, before, lambda: next(numbers), chance)}, "UPDATE"
        )
        after = held(conn, table, 1)[name]
        old, new = parts_of(content(column, before)), parts_of(content(column, after))
        changed += not means_the_same(column, before, after)
        small += len(old - new) <= 2 and len(new - old) <= 2
    assert changed > 250
    assert small > 150


@pytest.mark.parametrize("name", POST)
def test_one_expression_fits_all_rows(conn: sqlite3.Connection, name: str) -> None:
    table, chance, numbers = read_table(conn, "post"), Random(name), count(1_000)
    column = table.column(name)
    assert column is not None
    for _ in range(30):
        before = [held(conn, table, number)[name] for number in (1, 2, 3)]
        sql, given = edit_of_all(column, lambda: next(numbers), chance)
        conn.execute(f"UPDATE post SET {name} = {sql}", given)
        after = [held(conn, table, number)[name] for number in (1, 2, 3)]
        assert not same(before[0], after[0])
        assert content(column, after[0]) is not None
        assert after[1] is None
        assert same(before[2], after[2]) or column.type == "counter"


@pytest.mark.parametrize("name", POST)
def test_what_another_program_writes_back_is_written_otherwise(
    conn: sqlite3.Connection, name: str
) -> None:
    table, chance = read_table(conn, "post"), Random(1)
    column = table.column(name)
    assert column is not None
    conn.execute('UPDATE post SET tags = \'["home","shop"]\'')
    value = held(conn, table, 1)[name]
    found = {respelt(column, value, chance) for _ in range(10)}
    assert all(means_the_same(column, value, each) for each in found)
    assert (found == {value}) is (column.type in ("counter", "crdt_text"))


def test_a_number_is_exact_and_1_is_not_1_0() -> None:
    column = Column("meta", 1, "CRDT_JSON_TEXT", "crdt_json")
    assert not means_the_same(column, '{"a":1}', '{"a":1.0}')
    assert means_the_same(column, '{"a":1,"b":[]}', '{ "b": [], "a": 1 }')
    large = f'{{"a":{1 << 70}}}'
    found = content(column, large)
    assert isinstance(found, dict)
    assert found["a"] == 1 << 70
    assert json.loads(large) == found
