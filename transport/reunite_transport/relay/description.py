"""Whether every side can have a table as a client describes it. Raises TableError, else nothing.

`reunite.schema.from_wire` has checked the form. What the registry holds goes to every client, so
a table that one file could never have must not get there: SQLite itself is asked, in a database
in memory that is thrown away.
"""

import re
import sqlite3
from contextlib import closing
from typing import Final

from reunite.ddl import create_statements
from reunite.errors import TableError
from reunite.schema import Column, Table, ascii_lower, default_value
from reunite.types import MERGING, MERGING_TAKES, PRECISION_MAX, fits

_TYPES: Final = MERGING | set(
    "integer boolean real numeric text blob date time timestamp timestamptz uuid json any".split()
)
# Values that change between databases, and values that change by themselves.
_NO_KEY_TYPES: Final = MERGING | {"real", "numeric"}
# SQLite names the indexes of its own UNIQUE constraints so.
_INTERNAL_PREFIX: Final = "sqlite_"


def check_description(table: Table) -> None:
    """Check one table, with all its columns. Raises TableError."""
    for column in table.columns:
        _check_type(table, column)
    _check_index_names(table)
    _try_out(table)
    _check_merging_defaults(table)


def _check_type(table: Table, column: Column) -> None:
    kind, _, bounds = column.type.partition("(")
    known = kind in _TYPES and (not bounds or (kind == "numeric" and _are_bounds(bounds)))
    if not known or (column.key and kind in _NO_KEY_TYPES):
        raise TableError(
            table.name,
            f"column {column.name!r} is of the type {column.type!r}, which"
            f" {'no key' if known else 'no realm'} can have",
        )


def _are_bounds(bounds: str) -> bool:
    found = re.fullmatch(r"([0-9]+),([0-9]+)\)", bounds)
    return (
        found is not None and 0 < int(found[1]) <= PRECISION_MAX and int(found[2]) <= int(found[1])
    )


def _check_index_names(table: Table) -> None:
    names = {ascii_lower(table.name)}
    for index in table.indexes:
        name = ascii_lower(index.name)
        # A UNIQUE constraint is declared without its name.
        internal = index.unique and index.name.startswith(_INTERNAL_PREFIX)
        if name in names or (name.startswith(_INTERNAL_PREFIX) and not internal):
            raise TableError(
                table.name,
                f"its index {index.name!r} has the name of the table or of another index, or one"
                " that SQLite keeps for itself; rename it",
            )
        if not internal:
            names.add(name)


def _try_out(table: Table) -> None:
    with closing(sqlite3.connect(":memory:")) as scratch:
        try:
            for statement in create_statements(table):
                scratch.execute(statement)
            for column in table.columns:
                default_value(column)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise TableError(
                table.name, f"SQLite cannot have it as it is described: {error}"
            ) from error


def _check_merging_defaults(table: Table) -> None:
    """Each row that says nothing of the column would be refused for an unfit one."""
    for column in table.columns:
        if column.type in MERGING and not fits(column.type, default_value(column)):
            raise TableError(
                table.name,
                f"column {column.name!r} merges as {column.type}, so it takes"
                f" {MERGING_TAKES[column.type]} or NULL, and its default is another value;"
                " declare another default",
            )
