"""Replicas that go offline, write apart, and meet again: what all of them and Postgres hold then.

Each case has a row of its own in a table of its columns' types, so that one relay and three files
serve all cases at once. A writes first, then B, then C: A and C as apps, by `Database`, and B as
any other program.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, TypeAlias

from reunite import Database
from tests.e2e.world import (
    assert_quiet,
    contents,
    fetch,
    make,
    plain,
    read,
    relay_on,
    sync_once,
    track_and_sync,
)

# The two columns of a row, `v` and `note`.
Row: TypeAlias = tuple[Any, Any]
Statement: TypeAlias = tuple[str, dict[str, int]]


@dataclass(frozen=True)
class Case:
    """One row of a table `t`, whose columns are `id`, `v` and `note`: what everybody has of it at
    first, what A, B and C write apart, and what all show then, one of `rows`. Statements name the
    row by `:id`; UPDATE and DELETE concern it alone, and do not say so."""

    name: str
    declared: str
    begun: Sequence[str]
    writes: Sequence[Sequence[str]]
    rows: Sequence[Sequence[Row]]

    @property
    def is_json(self) -> bool:
        """True when Postgres spells the values in its own way."""
        return self.declared.startswith(("JSON", "CRDT_SET", "CRDT_LIST", "CRDT_JSON"))


def cell(name: str, declared: str, begun: str | None, *writes: str | None, shows: Any) -> Case:
    """A row that all have, with `begun` in `v` (None for its default), and what A, B and C set it
    to. `shows` is the value then; a list when it may be any of these, but the same for all."""
    first = "INSERT INTO t (id) VALUES (:id)"
    if begun is not None:
        first = f"INSERT INTO t (id, v) VALUES (:id, {begun})"
    return Case(
        name,
        declared,
        [first],
        [[] if value is None else [f"UPDATE t SET v = {value}"] for value in writes],
        [[(value, None)] for value in (shows if isinstance(shows, list) else [shows])],
    )


def row(name: str, declared: str, begun: str | None, *writes: str, rows: Sequence[Row]) -> Case:
    """Statements, some separated by semicolons, that A, B and C run after everybody has `begun` in
    `v` and `note`, or no row; `rows` are left."""
    first = [] if begun is None else [f"INSERT INTO t (id, v, note) VALUES (:id, {begun})"]
    return Case(name, declared, first, [write.split("; ") for write in writes], [rows])


def any_order(before: str, parts: tuple[str, ...], behind: str, *, between: str = "") -> list[str]:
    """What stands together when parts are put to one place in an order that is nobody's choice."""
    return [before + between.join(order) + behind for order in permutations(parts)]


@dataclass(frozen=True)
class Outcome:
    """What is left of a case: in a file, the same in all, and in Postgres."""

    rows: list[Row]
    postgres: list[Row]


async def write_apart(
    cases: Sequence[Case], folder: Path, postgres_url: str, order: str
) -> Mapping[str, Outcome]:
    """Run cases; the files sync in this order, such as "abc", until all have caught up."""
    assert len({case.name for case in cases}) == len(cases), "two cases of one name"
    declared = dict.fromkeys(case.declared for case in cases)
    table_by_type = {of: f"t{number}" for number, of in enumerate(declared)}
    work = [_Work(table_by_type[case.declared], number, case) for number, case in enumerate(cases)]
    files = {name: folder / f"{name}.db" for name in "abc"}
    for file in files.values():
        make(
            file,
            *(
                f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, v {of}, note TEXT)"
                for of, table in table_by_type.items()
            ),
        )
    with plain(files["a"]) as conn:
        for each in work:
            for statement in each.case.begun:
                conn.execute(*each.named(statement))
    async with relay_on(postgres_url) as relay:
        for file in files.values():
            await track_and_sync(file, relay.url)
        for place, file in enumerate(files.values()):
            await asyncio.sleep(0.01)  # another millisecond
            statements = [
                each.named(statement)
                for each in work
                for statement in (each.case.writes[place] if place < len(each.case.writes) else ())
            ]
            await (_by_others if file is files["b"] else _by_the_app)(file, statements)
        for name in order * 2:
            await sync_once(files[name], relay.url)
    await assert_quiet(postgres_url, *files.values())
    held = [contents(file) for file in files.values()]
    assert held[1:] == held[:-1]
    return {
        each.case.name: Outcome(
            read(files["a"], f"SELECT v, note FROM {each.table} WHERE id = ?", each.id),
            [
                (found["v"], found["note"])
                for found in await fetch(
                    postgres_url, f"SELECT v, note FROM {each.table} WHERE id = $1", each.id
                )
            ],
        )
        for each in work
    }


def assert_outcome(case: Case, outcome: Outcome) -> None:
    """The rows are those that the case says, and Postgres has them in its own spelling."""
    assert list(map(_exact, outcome.rows)) in [list(map(_exact, rows)) for rows in case.rows]
    if case.is_json:
        assert list(map(_as_json, outcome.postgres)) == list(map(_as_json, outcome.rows))
    else:
        assert list(map(_exact, outcome.postgres)) == list(map(_exact, outcome.rows))


@dataclass(frozen=True)
class _Work:
    table: str
    id: int
    case: Case

    def named(self, statement: str) -> Statement:
        if statement.startswith(("UPDATE", "DELETE")):
            statement += " WHERE id = :id"
        return re.sub(r"\b(UPDATE|INTO|FROM) t\b", rf"\1 {self.table}", statement), {"id": self.id}


async def _by_the_app(file: Path, statements: Sequence[Statement]) -> None:
    async with Database(file) as db:
        for statement in statements:
            await db.execute(*statement)


async def _by_others(file: Path, statements: Sequence[Statement]) -> None:
    with plain(file) as conn:
        for statement in statements:
            conn.execute(*statement)


def _exact(row: Row) -> list[tuple[str, Any]]:
    return [(type(value).__name__, value) for value in row]


def _as_json(row: Row) -> tuple[object, Any]:
    """A row whose JSON is compared by what it says: 1 is not 1.0, and an integer has no limit."""
    return row[0] and json.dumps(json.loads(row[0]), sort_keys=True), row[1]
