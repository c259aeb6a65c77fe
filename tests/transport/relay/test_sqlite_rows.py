"""What the SQLite store makes of tables, keys, values and foreign keys."""

from dataclasses import replace
from pathlib import Path

import pytest

from reunite.cells.register import Value, same
from reunite.document import EMPTY, encode, merge
from reunite.errors import TableError
from reunite.schema import Column, ForeignKey, Table
from reunite_transport.relay.commit import commit_batch
from reunite_transport.relay.sqlite_store import SqliteStore
from reunite_transport.relay.store import Busy, RowChange, Violation
from tests.contracts.pushes import (
    PERSON,
    A,
    at,
    changeset,
    column,
    deleted,
    edited,
    entries,
    inserted,
    row,
    table,
)
from tests.contracts.store_contract import write
from tests.transport.relay.test_sqlite_store import NOW, run, sql


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


# Values and keys.

MIXED = table(
    "mixed",
    column("any", "any"),
    column("integer", "integer"),
    column("real", "real"),
    column("text", "text"),
    column("blob", "blob"),
    column("day", "date"),
    column("price", "numeric(10,2)"),
)
MIXED = replace(
    MIXED,
    columns=tuple(
        replace(c, declared="" if c.name == "any" else c.declared) for c in MIXED.columns
    ),
)


@pytest.mark.parametrize(
    ("column_id", "given", "made"),
    [
        pytest.param(2, -0.0, -0.0, id="minus zero"),
        pytest.param(2, "1", "1", id="text that writes a number"),
        pytest.param(2, 1.0, 1.0, id="a whole float"),
        pytest.param(3, -(1 << 63), -(1 << 63), id="the least integer"),
        pytest.param(3, (1 << 63) - 1, (1 << 63) - 1, id="the greatest integer"),
        pytest.param(3, "12", 12, id="a number as text"),
        pytest.param(3, "twelve", "twelve", id="text in an integer"),
        pytest.param(4, 1, 1.0, id="an integer in a real"),
        pytest.param(4, -0.0, 0.0, id="minus zero in a real"),
        pytest.param(4, float("inf"), float("inf"), id="infinity"),
        pytest.param(5, "a\0b", "a\0b", id="NUL"),
        pytest.param(5, "\\x00 %s 'ü😀", "\\x00 %s 'ü😀", id="text"),
        pytest.param(5, 7, "7", id="an integer in a text"),
        pytest.param(6, b"\x00\xff", b"\x00\xff", id="bytes"),
        pytest.param(6, b"", b"", id="no bytes"),
        pytest.param(7, "2024-02-29", "2024-02-29", id="a date"),
        pytest.param(8, "1.10", 1.1, id="a price"),
    ],
)
def test_a_value_is_kept_exactly_or_what_became_of_it_comes_back(
    path: Path, column_id: int, given: Value, made: Value
) -> None:
    expected = {} if same(given, made) else {column_id: made}

    async def scenario(store: SqliteStore) -> None:
        async with store.begin() as transaction:
            new = inserted(at(NOW, A), {column_id: given})
            found = await transaction.write_rows([RowChange(row(1), EMPTY, new)])
            assert dict(found.get(row(1), {})) == expected
            empty = inserted(at(NOW, A), {})
            await transaction.write_rows([RowChange(row(2), EMPTY, empty)])
            later = merge(empty, edited(at(NOW + 1, A), {column_id: given}))
            found = await transaction.write_rows([RowChange(row(2), empty, later)])
            assert dict(found.get(row(2), {})) == expected
            await transaction.finish(b"token...", {row(1): encode(new), row(2): encode(later)}, [])
        name = MIXED.columns[column_id - 1].name
        for (held,) in sql(path, f'SELECT "{name}" FROM mixed'):
            assert same(held, made)

    run(path, scenario, MIXED)


def test_what_sqlite_makes_of_a_value_is_the_relays_edit(path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        await store.greet(A, 0, (), 0, b"")
        new = inserted(at(NOW, A), {3: "12", 5: "x"})
        outcome = await commit_batch(store, [changeset(A, 1, entries((1, new)))], b"token...")
        (stated,) = outcome.rows
        assert stated.author is None
        assert sql(path, "SELECT integer, text FROM mixed") == [(12, "x")]

    run(path, scenario, MIXED)


def test_what_triggers_make_of_a_row_comes_back_and_their_errors_are_violations(
    path: Path,
) -> None:
    async def scenario(store: SqliteStore) -> None:
        sql(
            path,
            "CREATE TRIGGER tidy AFTER INSERT ON Person BEGIN"
            " SELECT RAISE(ABORT, 'no such name') WHERE NEW.name = 'bad';"
            " UPDATE person SET email = lower(email), age = 1 WHERE id = NEW.id; END",
        )
        sql(
            path,
            "CREATE TRIGGER count AFTER UPDATE OF name ON person BEGIN"
            " UPDATE person SET age = age + 1 WHERE id = NEW.id; END",
        )
        async with store.begin() as transaction:
            new, bad = (inserted(at(NOW, A), {2: "A@X", 3: name}) for name in ("Ann", "bad"))
            found = await transaction.write_rows([RowChange(row(1), EMPTY, new)])
            assert found == {row(1): {2: "a@x", 4: 1}}
            known = merge(new, edited(at(NOW + 1, A), {2: "a@x", 4: 1}))
            renamed = merge(known, edited(at(NOW + 2, A), {3: "Bob"}))
            # The update wrote the name only; the trigger counted all the same.
            found = await transaction.write_rows([RowChange(row(1), known, renamed)])
            assert found == {row(1): {4: 2}}
            with pytest.raises(Violation, match=r"'person'.*no such name"):
                async with transaction.savepoint():
                    await transaction.write_rows([RowChange(row(2), EMPTY, bad)])

    run(path, scenario, PERSON)


COMPOSITE = (
    Column("b", 1, "BLOB", "blob", True, None, 3),
    Column("title", 2, "TEXT", "text", False, "'none'"),
    Column("a", 3, "TEXT", "text", True, None, 1),
    Column("n", 4, "INTEGER", "integer", True, None, 2),
)


@pytest.mark.parametrize(
    "described",
    [
        Table("pair", COMPOSITE),
        Table("pair", COMPOSITE, without_rowid=True),
        Table("pair", COMPOSITE, strict=True),
    ],
    ids=["plain", "without rowid", "strict"],
)
def test_many_rows_of_a_composite_key_come_change_and_go(path: Path, described: Table) -> None:
    keys = [row((f"k{n}", n, bytes((n % 256, 0)))) for n in range(2_000)]

    async def scenario(store: SqliteStore) -> None:
        now = await write(store, {key: ("insert", {}) for key in keys})
        before = inserted(at(now, A), {})
        await write(store, {key: ("update", {2: "new"}) for key in keys[::2]}, before=before)
        assert sql(path, "SELECT title, count(*) FROM pair GROUP BY title") == [
            ("new", 1_000),
            ("none", 1_000),
        ]
        async with store.begin() as transaction:
            assert len(await transaction.documents(keys)) == 2_000
            assert len(await transaction.standings(range(1, 2_000))) == 0
            gone = merge(before, deleted(at(now + 1, A)))
            await transaction.write_rows([RowChange(key, before, gone) for key in keys[1::2]])
            await transaction.finish(b"token...", {}, [])
        assert sql(path, "SELECT count(*), min(a), max(b) FROM pair") == [
            (1_000, "k0", b"\xfe\x00")
        ]

    run(path, scenario, described)


def keyed(declared: str, kind: str, *, strict: bool = False) -> Table:
    return Table("keyed", (Column("id", 1, declared, kind, True, None, 1),), strict=strict)


@pytest.mark.parametrize(
    ("described", "good", "bad"),
    [
        pytest.param(keyed("TEXT", "text"), "1", 1, id="text"),
        pytest.param(keyed("INTEGER", "integer"), 1, "1", id="integer"),
        pytest.param(keyed("INTEGER", "integer"), 1, b"1", id="a blob in an integer"),
        pytest.param(keyed("DATE", "date"), "2024-01-01", "2024", id="date"),
        pytest.param(keyed("STRING", "text"), "01x", "01", id="a number written in another way"),
        pytest.param(keyed("TEXT", "text", strict=True), "1", b"1", id="strict text"),
    ],
)
def test_a_key_that_sqlite_would_keep_as_another_is_a_violation(
    path: Path, described: Table, good: Value, bad: Value
) -> None:
    async def scenario(store: SqliteStore) -> None:
        await write(store, {row(good): ("insert", {})})
        with pytest.raises(Violation, match="'keyed'"):
            await write(store, {row(bad): ("insert", {})})

    run(path, scenario, described)


@pytest.mark.parametrize("described", [keyed("", "any"), keyed("ANY", "any", strict=True)])
def test_keys_of_every_class_are_told_apart_where_sqlite_does(path: Path, described: Table) -> None:
    async def scenario(store: SqliteStore) -> None:
        await write(store, {row(key): ("insert", {}) for key in (1, "1", b"1", "", "01")})
        assert sql(path, "SELECT count(*) FROM keyed") == [(5,)]

    run(path, scenario, described)


def test_rows_that_somebody_else_put_in_or_took_out_are_busy(path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        now = await write(store, {row(1): ("insert", {2: "a@x"}), row(2): ("insert", {2: "b@x"})})
        sql(path, "DELETE FROM person WHERE id = 1")
        sql(path, "INSERT INTO person (id) VALUES (3)")
        before = inserted(at(now, A), {2: "a@x"})
        with pytest.raises(Busy, match="person"):
            await write(store, {row(1): ("update", {3: "Ann"})}, before=before)
        with pytest.raises(Busy, match="person"):
            await write(store, {row(3): ("insert", {2: "c@x"})})

    run(path, scenario, PERSON)


# Tables.


def test_names_with_anything_in_them_work(path: Path) -> None:
    name = "T%a \"b.c:d'e $1 Ü"
    odd = Table(
        name,
        (
            Column("%s", 1, "TEXT", "text", True, None, 1),
            Column('$1 "x"', 2, "INTEGER", "integer", True, None, 2),
            Column("Mixed Case", 3, "TEXT", "text", False, "'it''s 100% :ok \\'"),
            Column("column1", 4, "INTEGER", "integer"),
        ),
        foreign_keys=(ForeignKey(("mixed case", "column1"), name, ("%s", '$1 "x"'), "SET NULL"),),
    )

    async def scenario(store: SqliteStore) -> None:
        first, second = row(("a", 1)), row(("b", 2))
        await write(store, {first: ("insert", {3: None}), second: ("insert", {3: "a", 4: 1})})
        with pytest.raises(Violation, match="'Mixed Case', 'column1'"):
            await write(store, {row(("c", 3)): ("insert", {3: "a", 4: 7})})

    run(path, scenario, odd)


def test_tables_whose_indexes_have_one_name_are_told_apart(path: Path) -> None:
    other = replace(PERSON, name="other")
    later = table("_unique_email", column("x"))

    async def scenario(store: SqliteStore) -> None:
        await write(store, {row(1): ("insert", {2: "a@x"}), row(1, 2): ("insert", {2: "a@x"})})
        with pytest.raises(Violation, match=r"other\.email"):
            await write(store, {row(2, 2): ("insert", {2: "a@x"})})
        await store.describe([later], create=True)

    run(path, scenario, PERSON, other)


def test_an_unregistered_table_of_the_same_name_is_left_alone_and_named(path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        sql(path, "CREATE TABLE Person (x)")
        with pytest.raises(TableError, match="Person"):
            await store.describe([table("other", column("x")), PERSON], create=True)
        assert await store.registry() == ()
        assert sql(path, "SELECT name FROM sqlite_master WHERE name = 'other'") == []

    run(path, scenario)


def test_columns_of_every_kind_are_added_to_a_table_that_has_rows(path: Path) -> None:
    added = (
        column("at", "timestamp", "CURRENT_TIMESTAMP", notnull=True),
        column("n", "integer", "-1", notnull=True),
        column("t", "text", "'it''s'"),
        column("none", "text", "NULL"),
        column("plain", "blob"),
    )

    async def scenario(store: SqliteStore) -> None:
        await write(store, {row(1): ("insert", {2: "a@x"})})
        grown = replace(PERSON, columns=(*PERSON.columns, *added))
        (known,) = await store.describe([grown], create=True)
        assert [column.notnull for column in known.columns[4:]] == [
            False,
            True,
            False,
            False,
            False,
        ]
        assert await store.describe([grown], create=False) == (known,)
        assert sql(path, "SELECT id, at, n, t, none, plain FROM person") == [
            (1, None, -1, "it's", None, None)
        ]

    run(path, scenario, PERSON)


# Foreign keys.


def test_a_parent_that_is_described_later_brings_the_foreign_key(path: Path) -> None:
    child = table(
        "child",
        column("person", "integer"),
        column("name"),
        foreign_keys=[ForeignKey(("person",), "Person", ("ID",))],
    )

    async def scenario(store: SqliteStore) -> None:
        now = await write(store, {row(1): ("insert", {2: 5}), row(2): ("insert", {2: 6})})
        await store.describe([PERSON], create=True)
        await write(store, {row(5, 2): ("insert", {2: "a@x"})})
        await write(store, {row(3): ("insert", {2: 5})})
        orphan = inserted(at(now, A), {2: 6})
        # It was there before, and only another reference is checked.
        await write(store, {row(2): ("update", {3: "Ann"})}, before=orphan)
        with pytest.raises(Violation, match=r"'child'.*'person'"):
            await write(store, {row(2): ("update", {2: 7})}, before=orphan)

    run(path, scenario, child)


def test_cycles_and_references_to_unique_columns_hold(path: Path) -> None:
    one = table(
        "one", column("two", "integer"), foreign_keys=[ForeignKey(("two",), "two", ("id",))]
    )
    two = table(
        "two",
        column("one", "integer"),
        column("email"),
        foreign_keys=[
            ForeignKey(("one",), "one", ("id",), "CASCADE"),
            ForeignKey(("email",), "person", ("email",), "SET NULL", "CASCADE"),
        ],
    )

    async def scenario(store: SqliteStore) -> None:
        ids = {t.name: t.id for t in await store.registry()}
        values: dict[str, dict[int, Value]] = {
            "one": {2: 1},
            "two": {2: 1, 3: "a@x"},
            "person": {2: "a@x"},
        }
        now = await write(store, {row(1, ids[name]): ("insert", v) for name, v in values.items()})
        alive = {name: inserted(at(now, A), v) for name, v in values.items()}
        with pytest.raises(Violation, match=r"'two'.*'email'"):
            await write(store, {row(2, ids["two"]): ("insert", {3: "nobody@x"})})
        person = row(1, ids["person"])
        with pytest.raises(Violation, match=r"'two'.*'email'"):
            await write(store, {person: ("update", {2: "b@x"})}, before=alive["person"])
        assert sql(path, "SELECT email FROM two") == [("a@x",)]
        async with store.begin() as transaction:
            # Another row takes the value over, so the child still has a parent.
            moved = merge(alive["person"], edited(at(now + 1, A), {2: "b@x"}))
            await transaction.write_rows(
                [
                    RowChange(person, alive["person"], moved),
                    RowChange(row(2, ids["person"]), EMPTY, alive["person"]),
                ]
            )
        async with store.begin() as transaction:
            gone = deleted(at(now + 1, A))
            await transaction.write_rows(
                [RowChange(row(1, ids[n]), a, merge(a, gone)) for n, a in alive.items()]
            )

    run(path, scenario, one, two, PERSON)


def test_a_foreign_key_that_postgres_could_not_hold_is_not_held(path: Path) -> None:
    child = table(
        "child",
        column("name"),
        column("id_as_text"),
        foreign_keys=[
            ForeignKey(("name",), "person", ("name",)),
            ForeignKey(("id_as_text",), "person", ("id",)),
        ],
    )

    async def scenario(store: SqliteStore) -> None:
        await write(store, {row(1, 2): ("insert", {2: "nobody", 3: "none"})})

    run(path, scenario, PERSON, child)


def test_an_untyped_column_refers_by_class_and_value(path: Path) -> None:
    word = Table("word", (Column("w", 1, "TEXT", "text", True, None, 1),))
    use = table(
        "use",
        replace(column("w", "any"), declared=""),
        foreign_keys=[ForeignKey(("w",), "word", ("w",))],
    )

    async def scenario(store: SqliteStore) -> None:
        now = await write(store, {row("1"): ("insert", {}), row(1, 2): ("insert", {2: "1"})})
        with pytest.raises(Violation, match="'use'"):
            await write(store, {row(2, 2): ("insert", {2: 1})})
        before = inserted(at(now, A), {})
        gone = RowChange(row("1"), before, merge(before, deleted(at(now + 1, A))))
        with pytest.raises(Violation, match="'use'"):
            async with store.begin() as transaction:
                await transaction.write_rows([gone])

    run(path, scenario, word, use)
