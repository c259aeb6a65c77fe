"""Reading a table's shape from SQLite, and refusing what cannot sync with words that help."""

import sqlite3
from collections.abc import Iterator

import pytest

from reunite.errors import TableError
from reunite.schema import (
    ForeignKey,
    Index,
    default_value,
    parents_first,
    read_table,
    table_names,
    through_affinity,
)


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    yield conn
    conn.close()


def test_a_table_is_read_as_it_was_declared(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE list (id INTEGER PRIMARY KEY)")
    conn.execute(
        "CREATE TABLE todo (id INTEGER PRIMARY KEY AUTOINCREMENT, list_id INTEGER NOT NULL"
        " REFERENCES list ON DELETE CASCADE, title VARCHAR(20) DEFAULT 'new', code TEXT UNIQUE,"
        " price DECIMAL(10, 2) DEFAULT 1.5)"
    )
    conn.execute("CREATE INDEX by_title ON todo (title, code)")
    table = read_table(conn, "TODO")
    assert table.name == "todo"
    assert [(c.name, c.id, c.declared, c.type, c.notnull, c.default) for c in table.columns] == [
        ("id", 1, "INTEGER", "integer", False, None),
        ("list_id", 2, "INTEGER", "integer", True, None),
        ("title", 3, "VARCHAR(20)", "text", False, "'new'"),
        ("code", 4, "TEXT", "text", False, None),
        ("price", 5, "DECIMAL(10, 2)", "numeric(10,2)", False, "1.5"),
    ]
    assert [column.name for column in table.key] == ["id"]
    assert table.foreign_keys == (ForeignKey(("list_id",), "list", ("id",), "CASCADE"),)
    assert set(table.indexes) == {
        Index("by_title", ("title", "code")),
        Index("sqlite_autoindex_todo_1", ("code",), True),
    }
    assert table.autoincrement
    assert not table.without_rowid
    assert not table.strict


def test_columns_that_merge_are_declared_by_the_names_of_their_types(
    conn: sqlite3.Connection,
) -> None:
    conn.execute(
        "CREATE TABLE post (id INTEGER PRIMARY KEY, likes counter NOT NULL DEFAULT 0,"
        " body CRDT_TEXT DEFAULT '', tags CRDT_SET_TEXT DEFAULT '[]', steps CRDT_LIST_TEXT,"
        " meta CRDT_JSON_TEXT DEFAULT '{}')"
    )
    columns = read_table(conn, "post").cells
    assert [(c.declared, c.type, default_value(c)) for c in columns] == [
        ("counter", "counter", 0),
        ("CRDT_TEXT", "crdt_text", ""),
        ("CRDT_SET_TEXT", "crdt_set", "[]"),
        ("CRDT_LIST_TEXT", "crdt_list", None),
        ("CRDT_JSON_TEXT", "crdt_json", "{}"),
    ]


@pytest.mark.parametrize(
    "declared", ["COUNTER", "CRDT_TEXT", "CRDT_SET_TEXT", "CRDT_LIST_TEXT", "CRDT_JSON_TEXT"]
)
def test_a_column_that_merges_is_no_part_of_a_key(conn: sqlite3.Connection, declared: str) -> None:
    conn.execute(f"CREATE TABLE t (a INT, k {declared}, PRIMARY KEY (a, k))")
    with pytest.raises(TableError, match=f"'k' is {declared}.*cannot merge"):
        read_table(conn, "t")


def test_a_composite_key_is_in_key_order(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (b TEXT, v ANY, a INT, PRIMARY KEY (a, b)) WITHOUT ROWID, STRICT")
    table = read_table(conn, "t")
    assert [column.name for column in table.key] == ["a", "b"]
    assert [column.name for column in table.cells] == ["v"]
    assert table.without_rowid
    assert table.strict


def test_generated_columns_are_left_out(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, twice AS (a * 2), b AS (a) STORED)")
    assert [column.name for column in read_table(conn, "t").columns] == ["id", "a"]


def test_partial_expression_and_nocase_indexes_stay_where_they_are(
    conn: sqlite3.Connection,
) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)")
    conn.execute("CREATE UNIQUE INDEX partial ON t (a) WHERE b")
    conn.execute("CREATE UNIQUE INDEX expression ON t (lower(a))")
    conn.execute("CREATE UNIQUE INDEX nocase ON t (a COLLATE NOCASE)")
    assert read_table(conn, "t").indexes == ()


@pytest.mark.parametrize(
    ("setup", "name", "words"),
    [
        ("SELECT 1", "nowhere", "no such table"),
        ("CREATE TABLE t (a, b)", "t", "no primary key"),
        ("CREATE VIEW t AS SELECT 1", "t", "is a view"),
        ("CREATE VIRTUAL TABLE t USING fts5(a)", "t", "virtual table"),
        ("CREATE TABLE t (a TEXT, k AS (a), PRIMARY KEY (a))", "T2", "no such table"),
        ("CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY)", "t", "NOCASE"),
        ("CREATE TABLE t (a INT, k TEXT COLLATE RTRIM, PRIMARY KEY (a, k))", "t", "RTRIM"),
        ("CREATE TABLE t (k REAL PRIMARY KEY)", "t", "REAL"),
        ("CREATE TABLE t (k DECIMAL(10,2) PRIMARY KEY)", "t", "DECIMAL"),
        ("CREATE TABLE t (k FLOAT, a, PRIMARY KEY (a, k)) WITHOUT ROWID", "t", "FLOAT"),
        (f'CREATE TABLE "{"n" * 64}" (k INTEGER PRIMARY KEY)', "n" * 64, "63 bytes"),
        (f'CREATE TABLE t (k INTEGER PRIMARY KEY, "{"é" * 32}")', "t", "63 bytes"),
        ("CREATE TABLE _reunite_x (k INTEGER PRIMARY KEY)", "_reunite_x", "never synced"),
        ("CREATE TABLE reunite_rejected (k INTEGER PRIMARY KEY)", "reunite_rejected", "never"),
        ("CREATE TABLE t (k INTEGER PRIMARY KEY AUTOINCREMENT)", "sqlite_sequence", "never"),
    ],
    ids=lambda value: value[:50],
)
def test_a_table_that_cannot_sync_is_refused_by_name(
    conn: sqlite3.Connection, setup: str, name: str, words: str
) -> None:
    conn.execute(setup)
    with pytest.raises(TableError, match=words) as caught:
        read_table(conn, name)
    assert caught.value.table == name


def test_names_of_63_bytes_fit(conn: sqlite3.Connection) -> None:
    name = "é" * 31 + "n"
    conn.execute(f'CREATE TABLE "{name}" (k INTEGER PRIMARY KEY, "{name}")')
    assert read_table(conn, name).columns[1].name == name


def test_a_column_that_is_a_generated_key_is_refused(conn: sqlite3.Connection) -> None:
    # SQLite refuses such a table today; a file may be written by a later one.
    with pytest.raises(sqlite3.OperationalError, match="generated"):
        conn.execute("CREATE TABLE t (a TEXT, k TEXT AS (a) STORED PRIMARY KEY)")


@pytest.mark.parametrize(
    ("declared", "default", "kept", "value"),
    [
        ("INTEGER", "5", "5", 5),
        ("TEXT", "5", "5", "5"),
        ("INTEGER", "'5'", "'5'", 5),
        ("INTEGER", "-5", "-5", -5),
        ("REAL", "(1)", "1", 1.0),
        ("TEXT", "'it''s'", "'it''s'", "it's"),
        ("TEXT", '"word"', "'word'", "word"),
        ("BLOB", "x'00ff'", "x'00ff'", b"\0\xff"),
        ("INTEGER", "TRUE", "TRUE", 1),
        ("TEXT", "NULL", "NULL", None),
        ("TEXT", "CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP", None),
        ("TEXT", "(lower('A'))", None, None),
        ("INTEGER", "(1 + 1)", None, None),
        ("INTEGER", "((1) + (1))", None, None),
    ],
)
def test_a_default_travels_when_it_is_a_literal(
    conn: sqlite3.Connection, declared: str, default: str, kept: str | None, value: object
) -> None:
    conn.execute(f"CREATE TABLE t (k INTEGER PRIMARY KEY, v {declared} DEFAULT {default})")
    column = read_table(conn, "t").columns[1]
    assert column.default == kept
    assert (default_value(column), type(default_value(column))) == (value, type(value))


def test_values_go_through_a_columns_affinity() -> None:
    assert through_affinity("COUNTER", ["5", 5.0, 1.5]) == [5, 5, 1.5]
    assert through_affinity("CRDT_JSON_TEXT", [5, "[1]"]) == ["5", "[1]"]
    assert through_affinity("INTEGER", ["5", "x", 5.0, b"5", None]) == [5, "x", 5, b"5", None]
    assert through_affinity("TEXT", [5, 1.5]) == ["5", "1.5"]
    assert through_affinity("", ["5", 5]) == ["5", 5]


def test_internal_virtual_and_shadow_tables_are_not_the_users(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (k INTEGER PRIMARY KEY AUTOINCREMENT)")
    conn.execute("CREATE VIRTUAL TABLE words USING fts5(a)")
    conn.execute("CREATE TABLE _reunite_x (a)")
    conn.execute("CREATE TABLE reunite_rejected (a)")
    assert table_names(conn) == ["t"]


def test_parents_come_first_and_cycles_end(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE c (id INTEGER PRIMARY KEY, b REFERENCES b)")
    conn.execute("CREATE TABLE b (id INTEGER PRIMARY KEY, a REFERENCES A, b REFERENCES b)")
    conn.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, c REFERENCES c)")
    conn.execute("CREATE TABLE d (id INTEGER PRIMARY KEY, e REFERENCES e)")
    conn.execute("CREATE TABLE e (id INTEGER PRIMARY KEY)")
    tables = [read_table(conn, name) for name in "cbade"]
    names = [table.name for table in parents_first(tables)]
    assert sorted(names) == list("abcde")
    assert names.index("e") < names.index("d")
    assert names.index("b") < names.index("c")


def test_a_foreign_key_to_a_table_that_does_not_exist_constrains_nothing(
    conn: sqlite3.Connection,
) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x REFERENCES nowhere)")
    assert read_table(conn, "t").foreign_keys == ()
