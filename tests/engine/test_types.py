"""Logical types: what a declared type promises, and which values keep the promise."""

from decimal import Decimal

import pytest

from reunite.cells.register import Value
from reunite.types import (
    MERGING,
    MERGING_TAKES,
    decimal_of,
    fits,
    fitting_type,
    key_type,
    logical_type,
    plain_type,
)


@pytest.mark.parametrize(
    ("declared", "logical"),
    [
        ("", "any"),
        ("ANY", "any"),
        ("INTEGER", "integer"),
        ("unsigned big int", "integer"),
        ("BOOLEAN", "boolean"),
        ("bool", "boolean"),
        ("VARCHAR(255)", "text"),
        ("NATIONAL VARYING CHARACTER(10)", "text"),
        ("TEXT", "text"),
        ("BLOB", "blob"),
        ("BYTEA", "blob"),
        ("DOUBLE PRECISION", "real"),
        ("FLOAT", "real"),
        ("DECIMAL", "numeric"),
        ("DECIMAL(10)", "numeric(10,0)"),
        ("numeric ( 10 , 2 )", "numeric(10,2)"),
        ("NUMERIC(2,10)", "numeric"),
        ("NUMERIC(9999,2)", "numeric"),
        ("DATE", "date"),
        ("TIME", "time"),
        ("DATETIME", "timestamp"),
        ("TIMESTAMP", "timestamp"),
        ("TIMESTAMPTZ", "timestamptz"),
        ("TIMESTAMP WITH TIME ZONE", "timestamptz"),
        ("UUID", "uuid"),
        ("JSON", "json"),
        ("GEOMETRY", "text"),
        ("COUNTER", "counter"),
        ("crdt_text", "crdt_text"),
        ("CRDT_SET_TEXT", "crdt_set"),
        ("Crdt_List_Text", "crdt_list"),
        ("CRDT_JSON_TEXT", "crdt_json"),
        ("MY COUNTER", "text"),
        ("COUNTERS", "text"),
        ("CRDT_SET", "text"),
        ("CRDT_SET_TEXT_2", "text"),
    ],
)
def test_a_declared_type_promises_a_logical_one(declared: str, logical: str) -> None:
    assert logical_type(declared) == logical


@pytest.mark.parametrize(
    ("wanted", "values", "kept"),
    [
        ("integer", [1, None, -5], "integer"),
        ("integer", [1, "one"], "text"),
        ("integer", [1, 1.5], "text"),
        ("boolean", [0, 1], "boolean"),
        ("boolean", [2], "text"),
        ("real", [1.5, 2], "real"),
        ("real", ["x"], "text"),
        ("numeric(4,2)", [12.34, 1, None], "numeric(4,2)"),
        ("numeric(4,2)", [123], "numeric"),
        ("numeric(4,2)", [1.234], "numeric"),
        ("numeric(4,2)", ["n/a"], "text"),
        ("numeric", [1, "1.10", 2.5], "numeric"),
        ("numeric", [float("inf")], "text"),
        ("blob", [b"x"], "blob"),
        ("blob", ["x"], "text"),
        ("date", ["2026-02-28"], "date"),
        ("date", ["2026-02-30"], "text"),
        ("date", ["20260228"], "text"),
        ("time", ["23:59", "23:59:58.123456"], "time"),
        ("timestamp", ["2026-02-28 10:00:00", "2026-02-28T10:00", "2026-02-28"], "timestamp"),
        ("timestamp", [1_700_000_000], "text"),
        ("timestamptz", ["2026-02-28 10:00:00Z", "2026-02-28T10:00+01:00"], "timestamptz"),
        ("timestamptz", ["2026-02-28 10:00:00"], "text"),
        ("uuid", ["6f1e1f2c-0d53-4f0a-9a51-2b8c3f3c9a10"], "uuid"),
        ("uuid", ["6F1E1F2C-0D53-4F0A-9A51-2B8C3F3C9A10"], "text"),
        ("uuid", [123], "text"),
        ("json", ['{"a": [1]}', "1"], "json"),
        ("json", ["{"], "text"),
        ("text", [1, b"x"], "text"),
        ("any", [1, b"x"], "any"),
        ("counter", [1, None, -5], "counter"),
        ("counter", [1.5], "text"),
        ("counter", ["1"], "text"),
        ("crdt_text", ["", "héllo", None], "crdt_text"),
        ("crdt_text", [1], "text"),
        ("crdt_text", [b"x"], "text"),
        ("crdt_set", ["[]", ' [1, "a", {"b": null}] ', None], "crdt_set"),
        ("crdt_set", ["{}"], "text"),
        ("crdt_set", [""], "text"),
        ("crdt_set", [5], "text"),
        ("crdt_list", ["[[]]"], "crdt_list"),
        ("crdt_list", ['"a"'], "text"),
        ("crdt_list", [b"[]"], "text"),
        ("crdt_json", ['{"a": [1]}', "1", '""', "null", None], "crdt_json"),
        ("crdt_json", ["{"], "text"),
        ("crdt_json", ["a"], "text"),
    ],
)
def test_a_type_is_kept_where_all_values_fit(wanted: str, values: list[Value], kept: str) -> None:
    assert fitting_type(wanted, values) == kept


def test_an_untyped_key_has_the_type_of_its_values() -> None:
    assert key_type([1, 2]) == "integer"
    assert key_type([b"1", None]) == "blob"
    assert key_type([1, "2"]) == key_type([]) == "text"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, Decimal(1)),
        (1.1, Decimal("1.1")),
        ("12345678901234567.89", Decimal("12345678901234567.89")),
        ("x", None),
        ("nan", None),
        (b"1", None),
        (None, None),
        (float("inf"), None),
    ],
)
def test_a_value_writes_an_exact_number_or_none(value: Value, number: Decimal | None) -> None:
    assert decimal_of(value) == number


@pytest.mark.parametrize("kind", ["crdt_set", "crdt_list", "crdt_json"])
@pytest.mark.parametrize(
    "element",
    ["NaN", "Infinity", "-Infinity", "1e400", "01", "'a'", r'"\ud800"', "1" * 5_000],
    ids=lambda element: element[:10],
)
def test_json_that_only_python_reads_does_not_merge(kind: str, element: str) -> None:
    assert fits(kind, "[1]")
    assert not fits(kind, f"[{element}]")


@pytest.mark.parametrize("kind", ["crdt_set", "crdt_list", "crdt_json"])
def test_json_of_any_depth_is_a_question_and_no_error(kind: str) -> None:
    assert fits(kind, "[" * 50 + "]" * 50)
    assert not fits(kind, "[" * 100_000 + "]" * 100_000)


def test_halves_of_a_character_that_make_one_fit() -> None:
    assert fits("crdt_json", r'"\ud83d\ude80"')


@pytest.mark.parametrize("kind", sorted(MERGING))
def test_null_fits_every_merging_column(kind: str) -> None:
    assert fits(kind, None)
    assert MERGING_TAKES[kind]


def test_a_merging_columns_values_are_of_a_plain_type() -> None:
    assert {kind: plain_type(kind) for kind in sorted(MERGING)} == {
        "counter": "integer",
        "crdt_json": "json",
        "crdt_list": "json",
        "crdt_set": "json",
        "crdt_text": "text",
    }
    assert plain_type("numeric(4,2)") == "numeric"
    assert plain_type("any") == "any"
