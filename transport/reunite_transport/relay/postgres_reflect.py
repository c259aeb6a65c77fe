"""Descriptions of tables that are in a Postgres schema already, made by whatever tool: what a file
has to create to hold their rows.

Owns which tables can be tracked as they stand, and what each type, default, key, index and foreign
key of Postgres is to SQLite. Only reads, and only catalogs. How values of such columns are written
is `postgres_columns`' matter.

| Postgres | declared | logical type |
|---|---|---|
| smallint, integer, bigint | INTEGER | integer |
| boolean | BOOLEAN | boolean |
| real, double precision | REAL, DOUBLE PRECISION | real |
| numeric, numeric(p,s) | NUMERIC, NUMERIC(p,s) | numeric, numeric(p,s) |
| text, varchar(n), char(n) | TEXT, VARCHAR(n), CHAR(n) | text |
| bytea | BLOB | blob |
| date, time, timestamp, timestamptz, uuid | DATE, ... | date, ... |
| json, jsonb, arrays | JSON | json |
| reunite.counter, reunite.crdt_text, ... | COUNTER, CRDT_TEXT, ... | counter, crdt_text, ... |
| enums, interval, inet, composites and all others | TEXT | text |

Other domains are what their base types are. Columns that Postgres alone may write (generated ones,
and identities GENERATED ALWAYS outside the key) are left out, and so is what is over them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from reunite.errors import FormatError, TableError
from reunite.schema import (
    KEY_COLUMNS_MAX,
    NAME_BYTES_MAX,
    OWN_PREFIX,
    Column,
    ForeignKey,
    Index,
    Table,
    ascii_lower,
    from_wire,
    to_wire,
)
from reunite.types import PRECISION_MAX, logical_type
from reunite_transport.relay.description import check_description
from reunite_transport.relay.postgres_bookkeeping import Reader
from reunite_transport.relay.postgres_catalog import (
    PlainIndex,
    PrimaryKey,
    RealColumn,
    RealType,
    Reference,
    Relation,
    read_columns,
    read_indexes,
    read_keys,
    read_references,
    read_relations,
)
from reunite_transport.relay.postgres_defaults import travelling_defaults
from reunite_transport.relay.postgres_schema import constraint_name

_DECLARED: Final[Mapping[str, str]] = {
    "int2": "INTEGER",
    "int4": "INTEGER",
    "int8": "INTEGER",
    "bool": "BOOLEAN",
    "float4": "REAL",
    "float8": "DOUBLE PRECISION",
    "text": "TEXT",
    "bytea": "BLOB",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
    "uuid": "UUID",
    "json": "JSON",
    "jsonb": "JSON",
}
_SIZED: Final[Mapping[str, str]] = {"varchar": "VARCHAR", "bpchar": "CHAR"}
_MERGING_NAMES: Final[Mapping[str, str]] = {
    logical_type(name): name
    for name in ("COUNTER", "CRDT_TEXT", "CRDT_SET_TEXT", "CRDT_LIST_TEXT", "CRDT_JSON_TEXT")
}
# Types, beside enums, of which equal values are written in one way only: by that, documents and
# rows find each other.
_KEY_TYPES: Final = frozenset(
    "int2 int4 int8 bool text varchar bpchar name bytea date time timestamp timestamptz uuid"
    " inet cidr macaddr macaddr8".split()
)
_CHANGING_TYPES: Final = frozenset({"float4", "float8", "numeric"})
_ACTIONS: Final[Mapping[str, str]] = {
    "a": "NO ACTION",
    "r": "RESTRICT",
    "c": "CASCADE",
    "n": "SET NULL",
    "d": "SET DEFAULT",
}
_KINDS: Final[Mapping[str, str]] = {
    "v": "is a view; track the tables that it reads instead",
    "m": "is a materialized view; track the tables that it reads instead",
    "f": "is a foreign table, whose rows are elsewhere; track it where they are",
    "p": "is partitioned, and its rows can move between tables; copy it to an ordinary table",
}
# Typmods of types with a length count four bytes of header.
_HEADER: Final = 4


@dataclass(frozen=True, slots=True)
class Reflected:
    """What a schema holds: the tables that can be tracked, and why others cannot."""

    tables: tuple[Table, ...]
    refused: tuple[TableError, ...]


async def reflect(
    reader: Reader,
    schema: str,
    names: Sequence[str] | None = None,
    *,
    tracked: Collection[str] = (),
) -> Reflected:
    """Describe the tables of these names, in their order, or (None) all tables of the schema, in
    order of creation. Columns are numbered from 1; ids are 0.

    A name may be of other ASCII case where that leaves one table. Raises TableError for the first
    named table that cannot be tracked; where none is named, `refused` holds the errors. A foreign
    key is described where its parent is, too, or is among `tracked`, the tables that sync already:
    SQLite writes no child whose parent's table is missing.
    """
    relations = await read_relations(reader, schema)
    by_name = {relation.name: relation for relation in relations}
    errors: dict[str, TableError] = {}
    if names is None:
        chosen = [relation for relation in relations if _is_candidate(relation)]
        _refuse_twins(chosen, errors)
    else:
        chosen = [by_name[name] for name in dict.fromkeys(_named(by_name, n) for n in names)]
    for relation in chosen:
        reason = _unfit(relation)
        if reason is not None:
            errors.setdefault(relation.name, TableError(relation.name, reason))
    facts = await _read_facts(reader, schema, [r.name for r in chosen if r.name not in errors])
    taken = {ascii_lower(name) for name in (*by_name, *tracked)}
    tables: dict[str, Table] = {}
    for relation in chosen:
        if relation.name not in errors:
            try:
                tables[relation.name] = _described(relation.name, facts, taken)
            except TableError as error:
                errors[relation.name] = error
    if names is not None and errors:
        raise next(errors[relation.name] for relation in chosen if relation.name in errors)
    known = {ascii_lower(name) for name in tracked}
    return Reflected(
        tuple(
            replace(table, foreign_keys=_foreign_keys(table, facts.references, tables, known))
            for table in tables.values()
        ),
        tuple(errors[relation.name] for relation in chosen if relation.name in errors),
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    columns: Mapping[str, Sequence[RealColumn]]
    keys: Mapping[str, PrimaryKey]
    indexes: Mapping[str, Sequence[PlainIndex]]
    references: Mapping[str, Sequence[Reference]]
    defaults: Mapping[tuple[str, str], str | None]


async def _read_facts(reader: Reader, schema: str, tables: Sequence[str]) -> _Facts:
    columns = await read_columns(reader, schema, tables)
    plain = [(_column(real, 1, 0, None), real) for real in columns if not real.generated]
    defaults = await travelling_defaults(reader, plain)
    return _Facts(
        _by_table(columns),
        {key.table: key for key in await read_keys(reader, schema, tables)},
        _by_table(await read_indexes(reader, schema, tables)),
        _by_table(await read_references(reader, schema, tables)),
        {
            (real.table, real.name): default
            for (_, real), default in zip(plain, defaults, strict=True)
        },
    )


class _OfTable(Protocol):
    @property
    def table(self) -> str: ...


_T = TypeVar("_T", bound=_OfTable)


def _by_table(facts: Iterable[_T]) -> dict[str, list[_T]]:
    found: dict[str, list[_T]] = {}
    for fact in facts:
        found.setdefault(fact.table, []).append(fact)
    return found


def _is_candidate(relation: Relation) -> bool:
    """True for what someone who wants all tables may expect to sync."""
    own = relation.name.startswith(OWN_PREFIX)
    return relation.kind in "rpf" and not relation.partition and not own


def _refuse_twins(chosen: Sequence[Relation], errors: dict[str, TableError]) -> None:
    times = Counter(ascii_lower(relation.name) for relation in chosen)
    for relation in chosen:
        if times[ascii_lower(relation.name)] > 1:
            errors[relation.name] = TableError(
                relation.name,
                "has the name of another table but for the case of letters, and to SQLite they are"
                " one; rename one of them",
            )


def _named(by_name: Mapping[str, Relation], name: str) -> str:
    """The relation of this name, or the only one whose name differs in case alone."""
    if name in by_name:
        return name
    alike = [other for other in by_name if ascii_lower(other) == ascii_lower(name)]
    if len(alike) > 1:
        listed = " and ".join(map(repr, alike))
        raise TableError(name, f"the schema has {listed}; write the name as one of them is written")
    if not alike:
        raise TableError(name, "there is no such table in the schema; check the name")
    return alike[0]


def _unfit(relation: Relation) -> str | None:
    """Why a relation as a whole cannot be tracked, and what to do; None when it can."""
    name = ascii_lower(relation.name)
    if name.startswith(OWN_PREFIX):
        return "is internal bookkeeping and is never synced"
    if relation.kind in _KINDS:
        return _KINDS[relation.kind]
    if relation.persistence == "t":
        return "is temporary; track a table that stays"
    if relation.persistence == "u":
        return "is UNLOGGED, so a crash empties it; ALTER TABLE ... SET LOGGED, then track it"
    if relation.partition or relation.inherits:
        return (
            "inherits from another table or is inherited from, so its rows are not its own alone;"
            " track a table that stands for itself"
        )
    if relation.extension is not None:
        return f"belongs to the extension {relation.extension!r}; track a table of your own"
    if relation.grant is not None:
        return (
            "the relay's role may not read, write and put triggers on all of it; let its owner run"
            f" {relation.grant}"
        )
    if relation.hides_rows:
        return (
            "has row security that hides rows from the relay; let the relay's role own the table or"
            " give it BYPASSRLS"
        )
    return None


def _described(name: str, facts: _Facts, taken: set[str]) -> Table:
    """The table without its foreign keys. `taken` are names in lower case that no index may have;
    those of this table's indexes are added. Raises TableError."""
    key = _checked_key(name, facts)
    places = {column: place for place, column in enumerate(key.columns, 1)}
    columns: list[Column] = []
    for real in facts.columns.get(name, ()):
        place = places.get(real.name, 0)
        if place:
            _check_key_column(real)
        if place or not (real.generated or real.identity == "a"):
            default = facts.defaults.get((name, real.name))
            columns.append(_column(real, len(columns) + 1, place, default))
    for word in (name, *(column.name for column in columns)):
        if len(word.encode()) > NAME_BYTES_MAX:
            raise TableError(name, f"the name {word!r} is over {NAME_BYTES_MAX} bytes; rename it")
    times = Counter(ascii_lower(column.name) for column in columns)
    twins = [column.name for column in columns if times[ascii_lower(column.name)] > 1]
    if twins:
        raise TableError(
            name,
            f"columns {' and '.join(map(repr, twins))} differ in the case of letters only, and to"
            " SQLite they are one; rename one of them",
        )
    stored = {column.name for column in columns}
    indexes = [index for index in facts.indexes.get(name, ()) if set(index.columns) <= stored]
    table = Table(name, tuple(columns), indexes=tuple(_indexes(indexes, taken)), adopted=True)
    try:
        from_wire(to_wire(table))
    except FormatError as error:
        said = error.__cause__ or error
        raise TableError(name, f"no file can have it: {said}; rename or change that") from error
    check_description(table)
    return table


def _checked_key(name: str, facts: _Facts) -> PrimaryKey:
    key = facts.keys.get(name)
    if key is None:
        raise TableError(
            name, "has no primary key, so its rows cannot be told apart; add one, then track it"
        )
    if len(key.columns) > KEY_COLUMNS_MAX:
        raise TableError(name, f"has over {KEY_COLUMNS_MAX} key columns; use a key of fewer")
    if key.temporal:
        raise TableError(
            name, "its primary key is WITHOUT OVERLAPS, which SQLite has not; use a plain key"
        )
    if key.deferrable:
        # ON CONFLICT cannot tell by it that a row is there.
        raise TableError(name, "its primary key is DEFERRABLE; make one that is not")
    return key


def _check_key_column(real: RealColumn) -> None:
    said = f"key column {real.name!r} is {real.type.said}"
    if real.generated:
        reason = f"key column {real.name!r} is generated; track a table with a stored key"
    elif real.type.merging is not None:
        reason = (
            f"{said}: a row is found by its key, so a key cannot merge; use bigint, text or uuid"
        )
    elif real.type.folds:
        reason = (
            f"{said} and does not tell all texts apart, so files could hold two rows for one; use"
            " text with an ordinary collation"
        )
    elif real.type.name in _CHANGING_TYPES and real.type.builtin:
        reason = f"{said}: such values change between databases; use bigint, text or uuid"
    elif not (real.type.enum or (real.type.builtin and real.type.name in _KEY_TYPES)):
        reason = (
            f"{said}, where one value can be written in several ways, so files could hold two rows"
            " for one; use bigint, text or uuid"
        )
    else:
        return
    raise TableError(real.table, reason)


def _column(real: RealColumn, number: int, key: int, default: str | None) -> Column:
    declared = _declared(real.type)
    return Column(real.name, number, declared, logical_type(declared), real.notnull, default, key)


def _declared(real: RealType) -> str:
    """SQLite's type for a type of Postgres; its name alone says the logical type."""
    if real.merging is not None:
        return _MERGING_NAMES[real.merging]
    if real.array:
        return "JSON"
    if not real.builtin:
        return "TEXT"
    if real.name in _SIZED:
        bounded = real.modifier > _HEADER
        return f"{_SIZED[real.name]}({real.modifier - _HEADER})" if bounded else "TEXT"
    if real.name == "numeric":
        return _numeric(real.modifier)
    return _DECLARED.get(real.name, "TEXT")


def _numeric(modifier: int) -> str:
    if modifier < _HEADER:
        return "NUMERIC"
    precision, scale = (modifier - _HEADER) >> 16, (modifier - _HEADER) & 0xFFFF
    # A scale below zero or above the precision is unknown elsewhere.
    bounded = 0 < precision <= PRECISION_MAX and scale <= precision
    return f"NUMERIC({precision},{scale})" if bounded else "NUMERIC"


def _indexes(found: Sequence[PlainIndex], taken: set[str]) -> Iterator[Index]:
    seen = set()
    for index in found:
        if not index.columns or (index.unique, index.columns) in seen:
            continue
        seen.add((index.unique, index.columns))
        name = index.name
        folded = ascii_lower(name)
        kept = (OWN_PREFIX, "sqlite_")
        if folded in taken or folded.startswith(kept) or len(name.encode()) > NAME_BYTES_MAX:
            kind = "key" if index.unique else "idx"
            name = constraint_name(index.table, index.columns, kind)
        taken.add(ascii_lower(name))
        yield Index(name, index.columns, index.unique)


def _foreign_keys(
    table: Table,
    references: Mapping[str, Sequence[Reference]],
    tables: Mapping[str, Table],
    tracked: Collection[str],
) -> tuple[ForeignKey, ...]:
    stored = {column.name for column in table.columns}
    found: dict[ForeignKey, None] = {}
    for reference in references.get(table.name, ()):
        parent = tables.get(reference.parent)
        if parent is None:
            described = ascii_lower(reference.parent) in tracked
        else:
            described = _has_unique(parent, reference.parent_columns)
        if described and set(reference.columns) <= stored:
            foreign_key = ForeignKey(
                reference.columns,
                reference.parent,
                reference.parent_columns,
                _ACTIONS[reference.on_delete],
                _ACTIONS[reference.on_update],
            )
            found[foreign_key] = None
    return tuple(found)


def _has_unique(parent: Table, columns: Sequence[str]) -> bool:
    """SQLite refuses every write to a child whose parent's columns have no unique index."""
    keys = [{column.name for column in parent.key}]
    keys += [set(index.columns) for index in parent.indexes if index.unique]
    return set(columns) in keys
