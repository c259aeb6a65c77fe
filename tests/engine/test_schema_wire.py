"""Tables as they travel: back as they were, and refused when a peer means harm."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reunite.ddl import create_statements
from reunite.errors import FormatError
from reunite.payload import pack_table, unpack_table
from reunite.schema import (
    ACTIONS,
    COLUMNS_MAX,
    Column,
    ForeignKey,
    Index,
    Table,
    from_wire,
    read_table,
    to_wire,
)

# Names that reunite and Postgres keep for themselves.
TAKEN = {"reunite_rows", "reunite_rejected", "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}
NAMES = st.one_of(
    st.sampled_from(["id", "ID2", "select", 'a "b"', "it's", "100%", "naïve café", "x y", "--"]),
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=15
    ),
).filter(lambda name: name not in TAKEN and not name.lower().startswith(("_reunite_", "sqlite_")))
GOLDEN = Path(__file__).parent.parent / "golden" / "merging-columns-1.json"
DECLARED = st.sampled_from(
    [
        "",
        "INTEGER",
        "TEXT",
        "DECIMAL(10, 2)",
        "DOUBLE PRECISION",
        "BLOB",
        "COUNTER",
        "CRDT_SET_TEXT",
    ]
)
DEFAULTS = st.sampled_from([None, "NULL", "1.5", "'it''s'", "x'00'", "CURRENT_TIMESTAMP", "-1e3"])


@st.composite
def tables(draw: st.DrawFn) -> Table:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique_by=str.casefold))
    keys = draw(st.integers(1, len(names)))
    ids = draw(
        st.lists(
            st.integers(1, (1 << 28) - 1), min_size=len(names), max_size=len(names), unique=True
        )
    )
    columns = tuple(
        Column(
            name,
            number,
            draw(st.sampled_from(["TEXT", "INT"]) if key else DECLARED),
            "text",
            draw(st.booleans()),
            draw(DEFAULTS),
            key,
        )
        for name, number, key in zip(
            names, ids, [*range(1, keys + 1), *[0] * (len(names) - keys)], strict=True
        )
    )
    some = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True).map(tuple)
    action = st.sampled_from(sorted(ACTIONS))
    foreign_keys = tuple(
        ForeignKey(own, draw(NAMES), own, draw(action), draw(action))
        for own in draw(st.lists(some, max_size=2))
    )
    indexes = tuple(
        Index(f"index {number}", over, draw(st.booleans()))
        for number, over in enumerate(draw(st.lists(some, max_size=2)))
    )
    return Table(draw(NAMES), columns, draw(st.integers(0, 99)), foreign_keys, indexes)


@given(tables())
def test_a_table_comes_back_from_the_wire_as_it_was(table: Table) -> None:
    packed = msgpack.packb(to_wire(table))
    assert from_wire(msgpack.unpackb(packed)) == table
    assert from_wire(msgpack.unpackb(packed, use_list=False)) == table


@given(tables())
def test_a_table_made_from_its_description_reads_the_same(table: Table) -> None:
    table = replace(
        table, foreign_keys=(), indexes=tuple(i for i in table.indexes if i.name != table.name)
    )
    conn = sqlite3.connect(":memory:")
    try:
        for statement in create_statements(table):
            conn.execute(statement)
        again = read_table(conn, table.name)
    finally:
        conn.close()
    assert again.name == table.name
    assert [(c.name, c.declared, c.notnull, c.default, c.key) for c in again.columns] == [
        (c.name, c.declared, c.notnull, c.default, c.key) for c in table.columns
    ]
    assert {(i.columns, i.unique) for i in again.indexes} == {
        (i.columns, i.unique) for i in table.indexes
    }


TODO = Table(
    "todo",
    (
        Column("id", 1, "INTEGER", "integer", True, None, 1),
        Column("title", 2, "TEXT", "text"),
    ),
    7,
    (ForeignKey(("title",), "list", ("name",)),),
    (Index("by_title", ("title",)),),
)


def wire(**parts: Any) -> list[object]:
    return to_wire(replace(TODO, **parts))


def title(**parts: Any) -> list[object]:
    return wire(columns=(TODO.columns[0], replace(TODO.columns[1], **parts)))


POST = Table(
    "post",
    (
        Column("id", 1, "INTEGER", "integer", key=1),
        Column("likes", 2, "COUNTER", "counter", True, "0"),
        Column("body", 3, "CRDT_TEXT", "crdt_text", False, "''"),
        Column("tags", 4, "CRDT_SET_TEXT", "crdt_set", False, "'[]'"),
        Column("steps", 5, "crdt_list_text", "crdt_list"),
        Column("meta", 6, "CRDT_JSON_TEXT", "crdt_json", False, "'{}'"),
    ),
    3,
)


def test_a_table_of_columns_that_merge_is_written_and_made_as_ever() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert pack_table(POST).hex() == golden["hex"]
    assert unpack_table(bytes.fromhex(golden["hex"])) == POST
    assert create_statements(POST) == golden["statements"]
    conn = sqlite3.connect(":memory:")
    try:
        for statement in golden["statements"]:
            conn.execute(statement)
        assert read_table(conn, "post") == replace(POST, id=0)
    finally:
        conn.close()


HOSTILE_TYPES = [
    "TEXT); DROP TABLE todo; --",
    "TEXT, evil TEXT",
    "INTEGER PRIMARY KEY",
    "TEXT NOT NULL",
    "TEXT UNIQUE",
    "INT CHECK (0)",
    "INT GENERATED ALWAYS AS (1)",
    "INT AS (1)",
    "TEXT COLLATE NOCASE",
    "INT REFERENCES list",
    "INT DEFAULT 1",
    "INT CONSTRAINT x CHECK (0)",
    "INT check(0)",
    "SELECT",
    "TABLE",
    'TEXT"',
    "TEXT -- x",
    "TEXT/**/",
    "T" * 70,
    "INT(1,2,3)",
    "INT(x)",
    "1INT",
    "TEXT\n",
    5,
    None,
]


@pytest.mark.parametrize("declared", HOSTILE_TYPES, ids=repr)
def test_a_declared_type_that_is_more_than_a_type_is_refused(declared: object) -> None:
    with pytest.raises(FormatError):
        from_wire(title(declared=declared))


WORDS = st.sampled_from(
    "VARYING character UNSIGNED big INT double REPLACE CASCADE KEY desc ROW GENERATED ALWAYS AS"
    " CHECK NOT NULL UNIQUE primary DEFAULT with TIME zone TABLE LEFT values NO ACTION".split()
)


@given(st.lists(WORDS, min_size=1, max_size=4), st.sampled_from(["", "(10)", "( 10 , -2 )"]))
def test_a_declared_type_that_is_taken_is_a_type_and_no_more(words: list[str], size: str) -> None:
    declared = " ".join(words) + size
    try:
        table = from_wire(title(declared=declared))
    except FormatError:
        return
    conn = sqlite3.connect(":memory:")
    try:
        conn.execute(create_statements(replace(table, foreign_keys=()))[0])
        described = conn.execute("PRAGMA table_xinfo(todo)").fetchall()[1]
    finally:
        conn.close()
    _, name, kind, notnull, default, key, hidden = described
    assert (name, notnull, default, key, hidden) == ("title", 0, None, 0, 0)
    assert kind.replace(" ", "") == declared.replace(" ", "")


@pytest.mark.parametrize(
    "default",
    ["random()", "(SELECT 1)", "1); --", "'a", "'a' || 'b'", "x'0'", '"a"', "1 2", "", 5, "'\0'"],
    ids=repr,
)
def test_a_default_that_is_no_literal_is_refused(default: object) -> None:
    with pytest.raises(FormatError):
        from_wire(title(default=default))


@pytest.mark.parametrize(
    "fields",
    [
        None,
        5,
        [],
        to_wire(TODO)[:5],
        [*to_wire(TODO), 1],
        wire(name=""),
        wire(name="n" * 64),
        wire(name="a\0b"),
        wire(name=5),
        wire(name="sqlite_master"),
        wire(name="_reunite_meta"),
        wire(name="reunite_rows"),
        wire(id=-1),
        wire(id=True),
        wire(id=1 << 28),
        wire(columns=()),
        wire(columns=TODO.columns[1:]),
        wire(columns=(TODO.columns[0], TODO.columns[0])),
        wire(columns=(TODO.columns[0], replace(TODO.columns[1], name="ID"))),
        title(id=1),
        title(id=0),
        title(id="2"),
        title(key=1),
        title(key=3),
        title(type="DROP"),
        title(type="numeric(1,2,3)"),
        title(type="_counter"),
        title(type="crdt-text"),
        title(type="crdt_text\n"),
        title(type="c" * 21),
        title(notnull=1),
        title(name=None),
        wire(foreign_keys=(ForeignKey(("nope",), "list", ("name",)),)),
        wire(foreign_keys=(ForeignKey(("title",), "list", ("a", "b")),)),
        wire(foreign_keys=(ForeignKey((), "list", ()),)),
        wire(foreign_keys=(ForeignKey(("title",), "list", ("name",), "EXPLODE"),)),
        wire(foreign_keys=(ForeignKey(("title",), "", ("name",)),)),
        wire(indexes=(Index("i", ("nope",)),)),
        wire(indexes=(Index("i", ()),)),
        wire(indexes=(Index("", ("title",)),)),
        wire(indexes=(Index("i", ("title",), 1),)),  # type: ignore[arg-type]
        [*to_wire(TODO)[:5], [0, 0, 0]],
        [*to_wire(TODO)[:5], [True]],
        [*to_wire(TODO)[:2], "columns", [], [], [False, False, False]],
        [*to_wire(TODO)[:2], [[1]], [], [], [False, False, False]],
    ],
    ids=lambda fields: repr(fields)[-60:],
)
def test_a_description_out_of_rule_is_refused(fields: object) -> None:
    assert from_wire(to_wire(TODO)) == TODO
    with pytest.raises(FormatError):
        from_wire(fields)


def test_more_columns_than_postgres_holds_are_refused() -> None:
    many = [Column(f"c{n}", n, "TEXT", "text", key=int(n == 1)) for n in range(1, COLUMNS_MAX + 2)]
    fields = to_wire(replace(TODO, columns=tuple(many), foreign_keys=(), indexes=()))
    with pytest.raises(FormatError, match="columns"):
        from_wire(fields)


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.lists(inner, max_size=7),
    max_leaves=30,
)


@given(ANYTHING)
def test_anything_else_is_refused_with_format_error_only(fields: object) -> None:
    with pytest.raises(FormatError):
        from_wire(fields)


@given(tables(), st.data())
def test_a_spoiled_description_is_refused_or_sound(table: Table, data: st.DataObject) -> None:
    fields: Any = to_wire(table)
    spoiled = fields
    while True:
        place = data.draw(st.integers(0, len(spoiled) - 1))
        if isinstance(spoiled[place], list) and spoiled[place] and data.draw(st.booleans()):
            spoiled = spoiled[place]
        else:
            spoiled[place] = data.draw(ANYTHING)
            break
    try:
        read = from_wire(fields)
    except FormatError:
        return
    assert from_wire(to_wire(read)) == read
