"""Tables become DDL, and values become text that casts to what they were."""

import math
from dataclasses import replace

import pytest

from reunite.cells.register import Value
from reunite.schema import Column, ForeignKey, Index, Table
from reunite_transport.relay.postgres_schema import (
    add_column_statement,
    constraint_name,
    create_statements,
    foreign_key_statements,
    holds_default,
    pg_text,
    register_value,
)
from reunite_transport.relay.sqlite_references import references
from tests.contracts.pushes import PERSON, column, table


def created(made: Table) -> str:
    return "\n".join(create_statements("realm", made))


@pytest.mark.parametrize(
    ("logical", "postgres"),
    [
        ("integer", "BIGINT"),
        ("boolean", "BOOLEAN"),
        ("real", "DOUBLE PRECISION"),
        ("numeric", "NUMERIC"),
        ("numeric(10,2)", "NUMERIC(10, 2)"),
        ("text", "TEXT"),
        ("any", "TEXT"),
        ("blob", "BYTEA"),
        ("date", "DATE"),
        ("time", "TIME WITHOUT TIME ZONE"),
        ("timestamp", "TIMESTAMP WITHOUT TIME ZONE"),
        ("timestamptz", "TIMESTAMP WITH TIME ZONE"),
        ("uuid", "UUID"),
        ("json", "JSONB"),
        ("counter", "reunite.counter"),
        ("crdt_text", "reunite.crdt_text"),
        ("crdt_set", "reunite.crdt_set_text"),
        ("crdt_list", "reunite.crdt_list_text"),
        ("crdt_json", "reunite.crdt_json_text"),
    ],
)
def test_a_logical_type_has_its_postgres_type(logical: str, postgres: str) -> None:
    assert f'"x" {postgres}\n' in created(table("t", column("x", logical))).replace(", \n", "\n")


def test_the_key_is_immediate_and_unique_columns_are_deferrable() -> None:
    statement = created(PERSON)
    assert 'CREATE TABLE "realm"."person"' in statement
    assert 'PRIMARY KEY ("id")\n' in statement.replace(", \n", "\n")
    assert 'UNIQUE ("email") DEFERRABLE INITIALLY IMMEDIATE' in statement


def test_a_plain_index_comes_along_once() -> None:
    indexed = Table(
        "t", PERSON.columns, indexes=(Index("a", ("name", "age")), Index("b", ("NAME", "age")))
    )
    assert created(indexed).count("CREATE INDEX") == 1
    assert '("name", "age")' in created(indexed)


@pytest.mark.parametrize(
    ("kind", "default", "expected"),
    [
        ("integer", "5", "E'5'::BIGINT"),
        ("integer", "'five'", None),
        ("boolean", "1", "E'true'::BOOLEAN"),
        ("boolean", "TRUE", "E'true'::BOOLEAN"),
        ("text", r"'it''s \ 5'", r"E'it''s \\ 5'::TEXT"),
        ("text", "NULL", None),
        ("blob", "x'00ff'", r"E'\\x00ff'::BYTEA"),
        ("blob", "'text'", None),
        ("timestamp", "CURRENT_TIMESTAMP", "(now() AT TIME ZONE 'utc')"),
        ("timestamp", "current_timestamp", "(now() AT TIME ZONE 'utc')"),
        ("timestamptz", "CURRENT_TIMESTAMP", "now()"),
        ("date", "CURRENT_DATE", "((now() AT TIME ZONE 'utc')::date)"),
        ("integer", "CURRENT_TIMESTAMP", None),
        ("json", "'{}'", "E'{}'::JSONB"),
        ("json", "'{'", None),
        ("numeric(4,2)", "1.5", "E'1.5'::NUMERIC"),
        ("numeric(4,2)", "1.005", None),
        ("counter", "0", "E'0'::BIGINT"),
        ("counter", "'x'", None),
        ("crdt_text", "''", "E''::TEXT"),
        ("crdt_set", "'[]'", "E'[]'::JSONB"),
        ("crdt_set", "''", None),
        ("crdt_list", """'["it''s"]'""", """E'["it''s"]'::JSONB"""),
        ("crdt_json", "'{}'", "E'{}'::JSONB"),
    ],
)
def test_a_default_comes_along_where_it_fits(kind: str, default: str, expected: str | None) -> None:
    made = column("x", kind, default)
    assert holds_default(made) == (expected is not None)
    statement = add_column_statement("realm", PERSON, made)
    if expected is None:
        assert "DEFAULT" not in statement
    else:
        assert statement.endswith(f"DEFAULT {expected}")


def test_a_column_is_added_to_the_table_that_is_there() -> None:
    statement = add_column_statement("my realm", PERSON, column('a "b" %', "real"))
    assert statement == 'ALTER TABLE "my realm"."person" ADD COLUMN "a ""b"" %" DOUBLE PRECISION'


def test_a_foreign_key_is_deferrable_and_does_on_delete_what_was_declared() -> None:
    child = table(
        "child",
        column("person", "integer"),
        foreign_keys=[ForeignKey(("PERSON",), "Person", ("ID",), "SET NULL", "CASCADE")],
    )
    ((name, statements),) = foreign_key_statements(
        "realm", child, {"person": PERSON, "child": child}, validated=True
    )
    assert statements == [
        f'ALTER TABLE "realm"."child" ADD CONSTRAINT "{name}" FOREIGN KEY("person")'
        ' REFERENCES "realm"."person" ("id") ON DELETE SET NULL DEFERRABLE INITIALLY IMMEDIATE'
    ]


@pytest.mark.parametrize(
    ("kind", "parent_kind", "held"),
    [
        ("counter", "integer", True),
        ("crdt_text", "text", True),
        ("crdt_set", "crdt_json", True),
        ("counter", "text", False),
        ("crdt_text", "crdt_list", False),
    ],
)
def test_a_column_that_merges_refers_as_its_plain_type_does(
    kind: str, parent_kind: str, held: bool
) -> None:
    parent = replace(table("parent", column("x", parent_kind), unique=[("x",)]), id=1)
    child = table("child", column("x", kind), foreign_keys=[ForeignKey(("x",), "parent", ("x",))])
    known = {"parent": parent, "child": child}
    assert len(list(foreign_key_statements("realm", child, known, validated=True))) == held
    assert len(references([parent, replace(child, id=2)])) == held


@pytest.mark.parametrize(
    "foreign_key",
    [
        pytest.param(ForeignKey(("person",), "nobody", ("id",)), id="no such parent"),
        pytest.param(ForeignKey(("person",), "person", ("age",)), id="not unique"),
        pytest.param(ForeignKey(("person",), "person", ("email",)), id="another type"),
    ],
)
def test_a_foreign_key_that_postgres_cannot_hold_is_left_out(foreign_key: ForeignKey) -> None:
    child = table("child", column("person", "integer"), foreign_keys=[foreign_key])
    assert not list(foreign_key_statements("realm", child, {"person": PERSON}, validated=True))


def test_constraint_names_fit_and_differ() -> None:
    names = {
        constraint_name("ü" * 31, ("a",), "key"),
        constraint_name("ü" * 31, ("b",), "key"),
        constraint_name("ü" * 31, ("a",), "idx"),
        constraint_name("t", ("a_b",), "key"),
        constraint_name("t_a", ("b",), "key"),
    }
    assert len(names) == 5
    assert all(len(name.encode()) <= 63 for name in names)


@pytest.mark.parametrize(
    ("value", "logical", "text"),
    [
        (None, "integer", None),
        (-(2**63), "integer", "-9223372036854775808"),
        (0, "boolean", "false"),
        (1, "boolean", "true"),
        (0.1, "real", "0.1"),
        (1e16, "numeric", "1e+16"),
        (b"\x00\xff", "blob", "\\x00ff"),
        (b"\x00\xff", "text", "\\x00ff"),
        ("abc", "text", "abc"),
        (7, "text", "7"),
        (7, "counter", "7"),
        ("é", "crdt_text", "é"),
        ("[1]", "crdt_set", "[1]"),
        ("[1]", "crdt_list", "[1]"),
        ("7", "crdt_json", "7"),
        (None, "crdt_json", None),
    ],
)
def test_a_value_is_cast_from_this_text(value: Value, logical: str, text: str | None) -> None:
    assert pg_text(value, logical) == text


@pytest.mark.parametrize("value", ["text", 5, 1.5])
def test_a_blob_column_takes_bytes_only(value: Value) -> None:
    with pytest.raises(ValueError, match="bytes"):
        pg_text(value, "blob")


@pytest.mark.parametrize(
    ("value", "logical"),
    [
        ("7", "counter"),
        (7.0, "counter"),
        (b"7", "crdt_text"),
        (7, "crdt_json"),
        (b"[]", "crdt_set"),
    ],
)
def test_a_column_that_merges_takes_its_own_class_of_values_only(
    value: Value, logical: str
) -> None:
    with pytest.raises(ValueError, match=f"{logical} holds"):
        pg_text(value, logical)


@pytest.mark.parametrize(
    ("text", "logical", "value"),
    [
        (None, "text", None),
        ("7", "integer", 7),
        ("-7", "counter", -7),
        ("7", "crdt_text", "7"),
        ("[1, 2]", "crdt_set", "[1, 2]"),
        ('{"a": 1}', "crdt_json", '{"a": 1}'),
        ("true", "boolean", 1),
        ("false", "boolean", 0),
        ("0.1", "real", 0.1),
        ("Infinity", "real", math.inf),
        ("NaN", "real", None),
        ("1.10", "numeric(10,2)", "1.10"),
        ("\\x00ff", "blob", b"\x00\xff"),
        ("2024-02-29 12:00:00.5", "timestamp", "2024-02-29 12:00:00.5"),
        ("abc", "text", "abc"),
    ],
)
def test_a_backends_value_reads_as_this_register(
    text: str | None, logical: str, value: Value
) -> None:
    read = register_value(text, logical)
    assert (read, type(read)) == (value, type(value))


def test_a_key_of_two_columns_keeps_its_order() -> None:
    pair = Table(
        "pair",
        (
            Column("b", 1, "TEXT", "text", True, None, 2),
            Column("a", 2, "TEXT", "text", True, None, 1),
        ),
    )
    assert 'PRIMARY KEY ("a", "b")' in created(pair)
