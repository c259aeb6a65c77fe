"""Tables and columns with any names that SQLite takes."""

import pytest

from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay

NAMES = [
    "select",
    "Order",
    "two words",
    'a "quoted" one',
    "it's",
    "100%",
    "%s",
    "{}",
    "?1",
    ":name",
    "semi;colon",
    "dash--dash",
    "[square]",
    "back`tick",
    "naïve ☕ 数据",
    "rowid",
    "OLD",
    "NEW",
    "key",
    "k0",
    "tbl",
    "at",
    "line\nbreak",
    "Mixed_Case",
    "t.dot",
    "_",
    "1",
]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("name", NAMES)
def test_a_row_syncs_whatever_its_table_and_columns_are_called(
    make_peer: MakePeer, relay: Relay, name: str
) -> None:
    table, column = quoted(name), quoted(name)
    a, b = make_peer(), make_peer()
    a.write(f"CREATE TABLE {table} ({column} TEXT PRIMARY KEY, {quoted(name + '2')} TEXT UNIQUE)")
    a.track(name)
    a.write(f"INSERT INTO {table} VALUES ('k', 'one')")
    relay.sync(a, b)
    b.write(f"UPDATE {table} SET {quoted(name + '2')} = 'two'")
    relay.sync(a, b)
    b.write(f"INSERT OR REPLACE INTO {table} VALUES ('m', 'two')")
    relay.sync(b, a)
    assert a.rows(f"SELECT * FROM {table}") == b.rows(f"SELECT * FROM {table}") == [("m", "two")]
    assert a.differences() == b.differences() == []


def test_names_that_differ_for_sqlite_are_different_tables(make_peer: MakePeer) -> None:
    a = make_peer('CREATE TABLE "straße" (id INTEGER PRIMARY KEY)')
    a.write('CREATE TABLE "STRASSE" (id INTEGER PRIMARY KEY, "É", "é")')
    assert a.track("straße", "STRASSE") == ["straße", "STRASSE"]
    a.write('INSERT INTO "STRASSE" VALUES (1, 2, 3)')
    a.fold()
    assert a.values("STRASSE", 1) == {"É": 2, "é": 3}


def test_a_table_is_found_whatever_the_case_of_its_name(make_peer: MakePeer) -> None:
    a = make_peer("CREATE TABLE Todo (Id INTEGER PRIMARY KEY, Title)")
    assert a.track("TODO") == ["Todo"]
    a.write("INSERT INTO todo (ID, TITLE) VALUES (1, 'x')")
    a.fold()
    assert a.values("Todo", 1) == {"Title": "x"}
