"""The schema registry on SQLite: reading it, and creating what `registry.grow` decided.

Tables are made as `reunite.ddl` writes them for a client's file, but for two things. An index is
named after its table's id: SQLite has one space of names for tables and indexes, and a client may
describe a table of any name later. And foreign keys have no actions, since an action would change
rows behind their documents; who holds them is `sqlite_references`.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from reunite.ddl import add_column_statement, create_statements
from reunite.errors import TableError
from reunite.schema import (
    OWN_PREFIX,
    Table,
    ascii_lower,
    from_wire,
    to_wire,
)
from reunite_transport.relay.registry import Growth, Registered
from reunite_transport.relay.sqlite_capture import install_triggers

# SQLite names the indexes of UNIQUE constraints itself.
_INTERNAL_PREFIX: Final = "sqlite_"
# A statement that cannot be run, and a default that a STRICT column cannot hold.
_OF_THE_STATEMENT: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT})


def read_registry(connection: sqlite3.Connection) -> list[Registered]:
    """The tables as they are registered, in order of id."""
    return [
        Registered(from_wire(json.loads(description)), columns_used)
        for columns_used, description in connection.execute(
            "SELECT columns_used, description FROM _reunite_tables ORDER BY id"
        )
    ]


def create(connection: sqlite3.Connection, growth: Growth) -> None:
    """Create the new tables and columns and register them, under the head's lock.

    Raises TableError for a name that something unregistered has, and for what SQLite cannot hold.
    """
    _refuse_taken(connection, growth.created)
    for table in growth.created:
        _define(connection, table, create_statements(_held(table)))
    for table, column in growth.added:
        _define(connection, table, [add_column_statement(table, column)])
    grown = {table.id: table for table, _ in growth.added}
    install_triggers(connection, (*growth.created, *grown.values()))
    connection.executemany(
        "INSERT INTO _reunite_tables (id, name, columns_used, description) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE"
        " SET columns_used = excluded.columns_used, description = excluded.description",
        [
            (
                entry.table.id,
                entry.table.name,
                entry.columns_used,
                json.dumps(to_wire(entry.table), ensure_ascii=False),
            )
            for entry in growth.registered
        ],
    )


def _refuse_taken(connection: sqlite3.Connection, created: Sequence[Table]) -> None:
    names = connection.execute("SELECT name FROM sqlite_master").fetchall()
    taken = {ascii_lower(name): name for (name,) in names}
    for table in created:
        if ascii_lower(table.name) in taken:
            raise TableError(
                table.name,
                f"{taken[ascii_lower(table.name)]!r} is in the relay's database already and does"
                " not sync; rename one of them",
            )


def _held(table: Table) -> Table:
    """The table as it is created here."""
    return replace(
        table,
        indexes=tuple(
            index
            if index.name.startswith(_INTERNAL_PREFIX)
            else replace(index, name=f"{OWN_PREFIX}index_{table.id}_{place}")
            for place, index in enumerate(table.indexes, 1)
        ),
        foreign_keys=tuple(
            # What follows an action in SQL says when it is checked.
            replace(
                foreign_key,
                on_delete="NO ACTION",
                on_update="NO ACTION DEFERRABLE INITIALLY DEFERRED",
            )
            for foreign_key in table.foreign_keys
        ),
    )


def _define(connection: sqlite3.Connection, table: Table, statements: Sequence[str]) -> None:
    try:
        for statement in statements:
            connection.execute(statement)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF not in _OF_THE_STATEMENT:
            raise
        raise TableError(table.name, f"SQLite cannot hold it: {error}") from error
