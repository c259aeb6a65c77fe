"""The schema registry: numbers the tables and columns that clients describe.

Names are SQLite's: two that differ only in case are one. Ids are small integers from 1 in order of
declaration and are never used again, so the cells of a dropped column do not come back under a
new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from reunite.errors import TableError
from reunite.schema import (
    COLUMNS_MAX,
    OWN_PREFIX,
    TABLES_MAX,
    Column,
    Table,
    ascii_lower,
    default_value,
    parents_first,
)
from reunite_transport.codec import schema_size
from reunite_transport.reader import SCHEMA_VALUES_MAX
from reunite_transport.relay.description import check_description

_RESERVED_NAMES: Final = frozenset({"reunite_rows", "reunite_rejected"})
_RESERVED_PREFIXES: Final = (OWN_PREFIX, "sqlite_")
# Every Welcome holds all descriptions in one frame, beside what the client has pending: a fifth
# of a frame. 2,000 tables of 30 columns take half of it.
REGISTRY_BYTES_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Registered:
    """A table of the registry and the highest column id that it ever used."""

    table: Table
    columns_used: int


@dataclass(frozen=True, slots=True)
class Growth:
    """What a description adds: whole tables, and columns of tables that exist. `registered` are
    the rows of the registry that are new or changed."""

    registered: tuple[Registered, ...]
    created: tuple[Table, ...]
    added: tuple[tuple[Table, Column], ...]


def grow(
    registry: Sequence[Registered], described: Sequence[Table], *, highest_id: int = 0
) -> Growth:
    """What `described` adds to the registry. Of tables that left it the highest id is known.

    The client's ids are its own numbering and are not read. Raises TableError for a reserved or
    repeated name, another primary key, a column that would be a new part of the key, a table that
    some side cannot have, and a registry that no Welcome could hold.
    """
    last_id = max((entry.table.id for entry in registry), default=0)
    last_id = max(last_id, highest_id)
    by_name = {ascii_lower(entry.table.name): entry for entry in registry}
    registered: list[Registered] = []
    created: list[Table] = []
    added: list[tuple[Table, Column]] = []
    seen: set[str] = set()
    for table in described:
        folded = ascii_lower(table.name)
        if folded in seen or folded in _RESERVED_NAMES or folded.startswith(_RESERVED_PREFIXES):
            raise TableError(table.name, "is described twice, or its name is reserved; rename it")
        seen.add(folded)
        known = by_name.get(folded)
        if known is None:
            check_description(table)
            if len(by_name) + len(created) >= TABLES_MAX:
                raise TableError(table.name, f"the realm has its {TABLES_MAX} tables already")
            last_id += 1
            numbered = _numbered(table, last_id)
            created.append(numbered)
            registered.append(Registered(numbered, len(numbered.columns)))
            continue
        _check_key(known.table, table)
        new = [column for column in table.columns if known.table.column(column.name) is None]
        if new:
            check_description(replace(known.table, columns=(*known.table.columns, *new)))
            columns = tuple(
                _addable(column, known.columns_used + place) for place, column in enumerate(new, 1)
            )
            grown = replace(known.table, columns=known.table.columns + columns)
            if len(grown.columns) > COLUMNS_MAX:
                raise TableError(table.name, f"has over {COLUMNS_MAX} columns")
            registered.append(Registered(grown, known.columns_used + len(columns)))
            added += [(grown, column) for column in columns]
    if registered:
        by_id = {entry.table.id: entry.table for entry in (*registry, *registered)}
        _check_names(tuple(by_id.values()), created)
        _check_size(tuple(by_id.values()), registered[-1].table)
    return Growth(tuple(registered), tuple(created), tuple(added))


def ordered(registry: Sequence[Registered]) -> tuple[Table, ...]:
    """The registry's tables, parents before children."""
    return tuple(parents_first([entry.table for entry in registry]))


def _check_names(tables: Sequence[Table], created: Sequence[Table]) -> None:
    """Refuse an index of a table's name: SQLite has one space of names for both, and clients
    create the tables in any order."""
    new_names = {ascii_lower(table.name) for table in created}
    names = {ascii_lower(table.name) for table in tables}
    for table in tables:
        taken = names if ascii_lower(table.name) in new_names else new_names
        for index in table.indexes:
            if ascii_lower(index.name) in taken:
                raise TableError(
                    table.name,
                    f"its index {index.name!r} has the name of a table; rename one of them",
                )


def _check_size(tables: Sequence[Table], grown: Table) -> None:
    size, values = schema_size(tables)
    if size > REGISTRY_BYTES_MAX or values > SCHEMA_VALUES_MAX:
        raise TableError(
            grown.name,
            f"it takes {values} words and {size} bytes to describe the realm's tables with it, over"
            f" {SCHEMA_VALUES_MAX} and {REGISTRY_BYTES_MAX}; shorten defaults and names, or track"
            " fewer tables",
        )


def _numbered(table: Table, table_id: int) -> Table:
    ids = {column.name: place for place, column in enumerate(table.columns, 1)}
    return replace(table.renumbered(ids), id=table_id)


def _addable(column: Column, column_id: int) -> Column:
    """Rows that exist have no value for a new column, so NOT NULL needs a constant default."""
    constant = default_value(column) is not None
    return replace(column, id=column_id, notnull=column.notnull and constant)


def _check_key(known: Table, described: Table) -> None:
    ours, theirs = known.key, described.key
    if [ascii_lower(column.name) for column in ours] != [ascii_lower(c.name) for c in theirs]:
        raise TableError(
            described.name,
            f"the realm has it with the primary key ({', '.join(c.name for c in ours)}), this file"
            f" with ({', '.join(c.name for c in theirs)}); rename one of the tables",
        )
    for own, other in zip(ours, theirs, strict=True):
        # One declaration may hold other values in each file, and so have another logical type.
        if own.type != other.type and ascii_lower(own.declared) != ascii_lower(other.declared):
            raise TableError(
                described.name,
                f"key column {own.name!r} is {own.type} in the realm and {other.type} in this file;"
                " rename one of the tables",
            )
