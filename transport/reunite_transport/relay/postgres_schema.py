"""A table's shape as Postgres DDL, and a register's value as the text that Postgres casts.

Owns the map from logical types (see `reunite.types`) to Postgres types, the constraints that a
synced table gets and their names. Runs nothing: it returns statements.

| logical type | Postgres | logical type | Postgres |
|---|---|---|---|
| integer | bigint | date | date |
| boolean | boolean | time | time |
| real | double precision | timestamp | timestamp |
| numeric, numeric(p,s) | numeric, numeric(p,s) | timestamptz | timestamptz |
| text, any | text | uuid | uuid |
| blob | bytea | json | jsonb |
| counter | reunite.counter | crdt_text | reunite.crdt_text |
| crdt_set | reunite.crdt_set_text | crdt_list | reunite.crdt_list_text |
| crdt_json | reunite.crdt_json_text | | |

The types of columns that merge are domains over bigint, text and jsonb (see `postgres_domains`),
named when a column is made: so a backend sees in its database what merges. Values are cast to the
base type, and so are compared and referred to like others of it.

UNIQUE constraints and foreign keys are DEFERRABLE, so that one commit can swap two unique values
or bring a child before its parent. Postgres lets no foreign key refer to a deferrable constraint,
so unique columns that a foreign key refers to get an immediate unique index as well: those cannot
be swapped in one commit.

A foreign key is left out where its parent is not in the registry, the columns it refers to are
neither the parent's key nor UNIQUE, or the two sides have different types, which SQLite allows and
Postgres does not. A parent that arrives later brings the foreign key with it, NOT VALID: rows that
were there before are not checked.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2s
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.schema import (
    AddConstraint,
    CreateColumn,
    CreateIndex,
    CreateTable,
    ExecutableDDLElement,
)
from sqlalchemy.types import TypeEngine

from reunite.cells.register import Value
from reunite.schema import NAME_BYTES_MAX, Column, ForeignKey, Table, ascii_lower, default_value
from reunite.sqlalchemy_types import Counter, CrdtJSON, CrdtList, CrdtSet, CrdtText
from reunite.types import MERGING_TAKES, fitting_type, plain_type

# SQLAlchemy's types are generic in the Python class that they convert to: of no matter here.
_Type: TypeAlias = TypeEngine[Any]

_TYPES: Final[Mapping[str, _Type]] = {
    "integer": sa.BigInteger(),
    "boolean": sa.Boolean(),
    "real": postgresql.DOUBLE_PRECISION(),
    "numeric": sa.Numeric(),
    "text": sa.Text(),
    "any": sa.Text(),
    "blob": postgresql.BYTEA(),
    "date": sa.Date(),
    "time": postgresql.TIME(),
    "timestamp": postgresql.TIMESTAMP(),
    "timestamptz": postgresql.TIMESTAMP(timezone=True),
    "uuid": postgresql.UUID(),
    "json": postgresql.JSONB(),
}
_DOMAINS: Final[Mapping[str, _Type]] = {
    "counter": Counter(),
    "crdt_text": CrdtText(),
    "crdt_set": CrdtSet(),
    "crdt_list": CrdtList(),
    "crdt_json": CrdtJSON(),
}

# What SQLite writes for its three moving defaults, by the type of the column.
_UTC: Final = "(now() AT TIME ZONE 'utc')"
_MOVING_DEFAULTS: Final[Mapping[tuple[str, str], str]] = {
    ("CURRENT_TIMESTAMP", "timestamp"): _UTC,
    ("CURRENT_TIMESTAMP", "timestamptz"): "now()",
    ("CURRENT_TIMESTAMP", "text"): f"to_char({_UTC}, 'YYYY-MM-DD HH24:MI:SS')",
    ("CURRENT_DATE", "date"): f"({_UTC}::date)",
    ("CURRENT_DATE", "text"): f"to_char({_UTC}, 'YYYY-MM-DD')",
    ("CURRENT_TIME", "time"): f"({_UTC}::time)",
    ("CURRENT_TIME", "text"): f"to_char({_UTC}, 'HH24:MI:SS')",
}

_DIALECT: Final = asyncpg_dialect()  # type: ignore[no-untyped-call]


def cast_type(logical: str) -> str:
    """The Postgres type that a value of this logical type is cast to, without bounds: a bounded
    column rounds on assignment, and the cast value shows what it was asked to hold. The base type
    of a domain."""
    return str(_TYPES[plain_type(logical)].compile(_DIALECT))


def domain_type(merging: str) -> str:
    """The domain that a column of this merging type is of, with its schema."""
    return str(_DOMAINS[merging].compile(_DIALECT))


def create_statements(schema: str, table: Table) -> list[str]:
    """Create the table with its key, its UNIQUE constraints and its indexes, no foreign keys."""
    made = _sql_table(schema, table)
    statements = [_compiled(CreateTable(made))]
    for index in made.indexes:
        statements.append(_compiled(CreateIndex(index)))
    return statements


def add_column_statement(schema: str, table: Table, column: Column) -> str:
    """Add one column to a table that exists. A NOT NULL column needs a default that fits; without
    one it must come as nullable (see `holds_default`)."""
    made = sa.Table(_name(table.name), sa.MetaData(schema=_name(schema)), _sql_column(column))
    (added,) = made.columns
    return (
        f"ALTER TABLE {_DIALECT.identifier_preparer.format_table(made)}"
        f" ADD COLUMN {_compiled(CreateColumn(added))}"
    )


def foreign_key_statements(
    schema: str, child: Table, parents: Mapping[str, Table], *, validated: bool
) -> Iterator[tuple[str, list[str]]]:
    """For each foreign key of `child` that Postgres can hold: its name, and the statements that
    add it. `parents` are the registry's tables by name in lower case."""
    for foreign_key, parent in enforceable_keys(child, parents):
        name = constraint_name(child.name, foreign_key.columns, f"{parent.name}_fkey")
        metadata = sa.MetaData()
        made = _sql_table(schema, child, metadata)
        target = made if parent.name == child.name else _sql_table(schema, parent, metadata)
        referred = [_exact(parent, column) for column in foreign_key.parent_columns]
        statements = []
        if set(referred) != {column.name for column in parent.key}:
            index = sa.Index(
                _name(constraint_name(parent.name, sorted(referred), "ref")),
                *(target.columns[column] for column in sorted(referred)),
                unique=True,
            )
            statements.append(_compiled(CreateIndex(index, if_not_exists=True)))
        constraint = sa.ForeignKeyConstraint(
            [made.columns[_exact(child, column)] for column in foreign_key.columns],
            [target.columns[column] for column in referred],
            name=_name(name),
            ondelete=None if foreign_key.on_delete == "NO ACTION" else foreign_key.on_delete,
            deferrable=True,
            initially="IMMEDIATE",
            postgresql_not_valid=not validated,
        )
        made.append_constraint(constraint)
        statements.append(_compiled(AddConstraint(constraint)))
        yield name, statements


def enforceable_keys(
    child: Table, parents: Mapping[str, Table]
) -> Iterator[tuple[ForeignKey, Table]]:
    """The foreign keys that Postgres holds, once each, with their parents."""
    seen = set()
    for foreign_key in child.foreign_keys:
        parent = parents.get(ascii_lower(foreign_key.parent))
        if parent is None or not _has_unique(parent, foreign_key.parent_columns):
            continue
        identity = (_folded(foreign_key.columns), parent.name)
        if identity in seen or not all(
            cast_type(_column(child, own).type) == cast_type(_column(parent, theirs).type)
            for own, theirs in zip(foreign_key.columns, foreign_key.parent_columns, strict=True)
        ):
            continue
        seen.add(identity)
        yield foreign_key, parent


def holds_default(column: Column) -> bool:
    """True when Postgres itself fills the column as SQLite would."""
    return _default(column) is not None


def constraint_name(table: str, columns: Iterable[str], kind: str) -> str:
    """A name that says what it is about and, by its digest, is like no other in the schema."""
    parts = [table, *columns, kind]
    digest = blake2s("\0".join(parts).encode(), digest_size=4).hexdigest()
    readable = "_".join(parts).encode()[: NAME_BYTES_MAX - len(digest) - 1]
    return f"{readable.decode(errors='ignore')}_{digest}"


def pg_text(value: Value, logical: str) -> str | None:
    """The text that Postgres casts to the column's type; None for NULL.

    Raises ValueError where Postgres would take the text for something else: bytea reads any text.
    """
    return _TEXT_OF.get(logical, _plain_text)(value)


def text_function(logical: str) -> Callable[[Value], str | None]:
    """`pg_text` for one type, to map over a column."""
    return _TEXT_OF.get(logical, _plain_text)


def register_value(text: str | None, logical: str) -> Value:
    """A backend's value as a document holds it, from its text under our settings (bytea_output
    hex, DateStyle ISO, TimeZone UTC): boolean and bigint are integers, double precision is a
    float (NaN is None, as SQLite has it), bytea is bytes, all else stays text."""
    if text is None:
        return None
    if logical in ("integer", "counter"):
        return int(text)
    if logical == "real":
        number = float(text)
        return None if math.isnan(number) else number
    if logical == "boolean":
        return int(text in ("true", "t"))
    if logical == "blob":
        return bytes.fromhex(text.removeprefix("\\x"))
    return text


def _plain_text(value: Value) -> str | None:
    kind = type(value)
    if value is None or kind is str:
        return value  # type: ignore[return-value]
    if kind is bytes:
        return "\\x" + value.hex()  # type: ignore[union-attr]
    return repr(value)


def _boolean_text(value: Value) -> str | None:
    if type(value) is int and value in (0, 1):
        return "true" if value else "false"
    return _plain_text(value)


def _blob_text(value: Value) -> str | None:
    if value is not None and type(value) is not bytes:
        raise ValueError("a blob column holds bytes only")
    return _plain_text(value)


def _merging_text(logical: str) -> Callable[[Value], str | None]:
    """Postgres reads jsonb in 5, and an integer in '5': other values than those."""
    wanted = int if logical == "counter" else str

    def text(value: Value) -> str | None:
        if value is not None and type(value) is not wanted:
            raise ValueError(f"a column of the type {logical} holds {MERGING_TAKES[logical]} only")
        return _plain_text(value)

    return text


_TEXT_OF: Final[Mapping[str, Callable[[Value], str | None]]] = {
    "boolean": _boolean_text,
    "blob": _blob_text,
    **{logical: _merging_text(logical) for logical in _DOMAINS},
}


def _sql_table(schema: str, table: Table, metadata: sa.MetaData | None = None) -> sa.Table:
    made = sa.Table(
        _name(table.name),
        metadata if metadata is not None else sa.MetaData(),
        *map(_sql_column, table.columns),
        schema=_name(schema),
    )
    key = [column.name for column in table.key]
    made.append_constraint(
        sa.PrimaryKeyConstraint(*key, name=_name(constraint_name(table.name, (), "pkey")))
    )
    seen = set()
    for index in table.indexes:
        over = [_exact(table, column) for column in index.columns]
        if (index.unique, *over) in seen:
            continue
        seen.add((index.unique, *over))
        if index.unique:
            name = constraint_name(table.name, over, "key")
            made.append_constraint(
                sa.UniqueConstraint(*over, name=_name(name), deferrable=True, initially="IMMEDIATE")
            )
        else:
            name = constraint_name(table.name, over, "idx")
            sa.Index(_name(name), *(made.columns[column] for column in over))
    return made


def _sql_column(column: Column) -> sa.Column[Any]:
    kind, _, bounds = column.type.partition("(")
    made = _DOMAINS.get(kind) or _TYPES[kind]
    if bounds:
        precision, scale = map(int, bounds.rstrip(")").split(","))
        made = sa.Numeric(precision, scale)
    default = _default(column)
    return sa.Column(
        _name(column.name),
        made,
        autoincrement=False,
        nullable=not (column.notnull or column.key),
        server_default=None if default is None else sa.literal_column(default),
    )


def _default(column: Column) -> str | None:
    """The column's default as a Postgres expression, or None where it has none that fits."""
    if column.default is None:
        return None
    kind = plain_type(column.type).replace("any", "text")
    moving = _MOVING_DEFAULTS.get((column.default.upper(), kind))
    if moving is not None or column.default.upper().startswith("CURRENT_"):
        return moving
    value = default_value(column)
    if value is None or fitting_type(column.type, [value]) != column.type:
        return None
    text = pg_text(value, column.type)
    if text is None or "\0" in text:
        return None
    # Quotes are doubled, and E'' makes backslashes mean the same under every setting.
    literal = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{literal}'::{cast_type(column.type)}"


def _has_unique(table: Table, columns: tuple[str, ...]) -> bool:
    wanted = set(_folded(columns))
    keys = [tuple(column.name for column in table.key)]
    keys += [index.columns for index in table.indexes if index.unique]
    return len(wanted) == len(columns) and any(set(_folded(key)) == wanted for key in keys)


def _folded(columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(ascii_lower(column) for column in columns)


def _column(table: Table, name: str) -> Column:
    found = table.column(name)
    assert found is not None, "descriptions are checked where they arrive"
    return found


def _exact(table: Table, name: str) -> str:
    return _column(table, name).name


def _name(name: str) -> sa.sql.quoted_name:
    return sa.sql.quoted_name(name, True)


def _compiled(element: ExecutableDDLElement | CreateColumn) -> str:
    return str(element.compile(dialect=_DIALECT)).strip()
