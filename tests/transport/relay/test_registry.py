"""Only what every side can have, and every Welcome can hold, gets into the registry."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from reunite.errors import TableError
from reunite.schema import Column, Index, Table
from reunite_transport.codec import decode, encode, schema_size
from reunite_transport.messages import FRAME_BYTES_MAX, Registry
from reunite_transport.reader import SCHEMA_VALUES_MAX
from reunite_transport.relay import registry as registry_module
from reunite_transport.relay.registry import REGISTRY_BYTES_MAX, Registered, grow
from tests.contracts.pushes import PERSON, column, table

TEXT_KEY = Column("id", 1, "TEXT", "text", True, None, 1)
INTEGER_KEY = PERSON.columns[0]


def indexed(*names: str, unique: bool = False) -> Table:
    return replace(PERSON, indexes=tuple(Index(name, ("name",), unique) for name in names))


def key_of(kind: str) -> Table:
    return Table("t", (replace(TEXT_KEY, declared=kind.upper(), type=kind),))


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(Table("t", (TEXT_KEY,), autoincrement=True), id="autoincrement of a text key"),
        pytest.param(
            Table("t", (replace(TEXT_KEY, declared="UUID", type="uuid"),), strict=True),
            id="a type that STRICT does not know",
        ),
        pytest.param(
            Table("t", (TEXT_KEY, replace(column("x"), declared="")), strict=True),
            id="a STRICT column without a type",
        ),
        pytest.param(indexed("twice", "Twice"), id="two indexes of one name"),
        pytest.param(indexed("Person"), id="an index named as its table"),
        pytest.param(indexed("SQLITE_x", unique=True), id="an internal name in capitals"),
        pytest.param(indexed("sqlite_x"), id="an internal name of no constraint"),
        pytest.param(table("t", column("x", default="١")), id="a default that is no literal"),  # noqa: RUF001
        pytest.param(table("t", column("x", "money")), id="an unknown type"),
        pytest.param(table("t", column("x", "text(3,1)")), id="a text with a scale"),
        pytest.param(table("t", column("x", "numeric(3,4)")), id="more scale than precision"),
        pytest.param(key_of("real"), id="a floating key"),
        pytest.param(key_of("numeric"), id="a numeric key"),
        pytest.param(key_of("counter"), id="a key that counts"),
        pytest.param(key_of("crdt_text"), id="a key that merges"),
        pytest.param(table("t", column("x", "crdt")), id="no type of those that merge"),
        pytest.param(table("t", column("x", "counter(3,1)")), id="a counter with a scale"),
        pytest.param(table("t", column("x", "counter", "'x'")), id="a counter from a text"),
        pytest.param(table("t", column("x", "crdt_set", "'{}'")), id="a set that is none"),
        pytest.param(
            Table("t", (INTEGER_KEY, column("x", "counter")), strict=True),
            id="a type that merges in a STRICT table",
        ),
    ],
)
def test_what_a_side_cannot_have_is_refused(described: Table) -> None:
    with pytest.raises(TableError, match=described.name):
        grow([], [described])


def test_what_sqlite_has_is_registered() -> None:
    described = [
        PERSON,
        replace(indexed("sqlite_autoindex_a_1", unique=True), name="a"),
        Table("strict", (INTEGER_KEY, column("x", "any", "x'00'")), autoincrement=True),
        table("later", column("at", "timestamp", "CURRENT_TIMESTAMP"), column("n", "numeric(5,2)")),
        table(
            "merging",
            column("n", "counter", "0", notnull=True),
            column("t", "crdt_text", "''"),
            column("s", "crdt_set", "'[]'"),
            column("l", "crdt_list"),
            column("j", "crdt_json", "'null'"),
        ),
    ]
    assert [t.name for t in grow([], described).created] == [t.name for t in described]


def test_a_column_that_sqlite_refuses_is_not_added() -> None:
    known = grow([], [PERSON]).registered
    strict = grow([], [replace(PERSON, strict=True)]).registered
    for registry, new in (
        (known, column("new", default="٣")),
        (known, column("new", "money")),
        (strict, replace(column("new"), declared="STRING")),
    ):
        with pytest.raises(TableError, match="person"):
            grow(registry, [replace(PERSON, columns=(*PERSON.columns, new))])


@pytest.mark.parametrize("order", [1, -1])
def test_an_index_with_the_name_of_another_table_is_refused_whoever_comes_first(order: int) -> None:
    first, second = [indexed("Todo"), table("todo")][::order]
    with pytest.raises(TableError, match="Todo"):
        grow([], [first, second])
    with pytest.raises(TableError, match="Todo"):
        grow(grow([], [first]).registered, [second])


def wide(name: str, defaults: Sequence[str]) -> Table:
    return table(name, *(column(f"c{at}", default=d) for at, d in enumerate(defaults)))


def test_a_registry_that_no_welcome_could_hold_does_not_grow() -> None:
    registry: list[Registered] = []
    long = "'" + 60_000 * "x" + "'"
    for number in range(6):
        registry += grow(registry, [wide(f"t{number}", [long] * 10)]).registered
    with pytest.raises(TableError, match="describe"):
        grow(registry, [wide("one too many", [long] * 10)])
    tables = [entry.table for entry in registry]
    assert REGISTRY_BYTES_MAX / 2 < schema_size(tables)[0] <= REGISTRY_BYTES_MAX < FRAME_BYTES_MAX
    assert decode(encode(Registry(tuple(tables))), "client") == Registry(tuple(tables))
    # One with another table, a small one, still fits.
    assert grow(registry, [table("small")]).created


def test_the_values_of_a_registry_are_counted_as_the_codec_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described = grow([], [indexed("one", "two"), table("todo", column("x"))]).created
    count = schema_size(described)[1]
    assert count < SCHEMA_VALUES_MAX
    monkeypatch.setattr("reunite_transport.reader.SCHEMA_VALUES_MAX", count)
    assert decode(encode(Registry(described)), "client") == Registry(described)
    monkeypatch.setattr(registry_module, "SCHEMA_VALUES_MAX", count - 1)
    with pytest.raises(TableError, match="describe"):
        grow([], described)
