"""SQLAlchemy's types for columns that merge, for apps that declare their tables with it:

    from reunite.sqlalchemy_types import Counter, CrdtSet

    class Post(Base):
        likes: Mapped[int] = mapped_column(Counter, default=0)
        tags: Mapped[set[str]] = mapped_column(CrdtSet, default=set)

| type | SQLite | Postgres | Python |
|---|---|---|---|
| Counter | COUNTER | reunite.counter | int |
| CrdtText | CRDT_TEXT | reunite.crdt_text | str |
| CrdtSet | CRDT_SET_TEXT | reunite.crdt_set_text | set; see below |
| CrdtList | CRDT_LIST_TEXT | reunite.crdt_list_text | list |
| CrdtJSON | CRDT_JSON_TEXT | reunite.crdt_json_text | dict, or what else JSON has |

SQLite knows types by the name that a column is declared with, and so does `reunite.types`. On
Postgres they are domains, which a relay makes when it opens a realm of the database, and
`metadata.create_all` before the first table that has one.

None is SQL's NULL, in the JSON types as well. A set, list or dict of a mapped object that is
changed in place is saved; what is changed further inside it is not noticed: assign the whole value
again. Arrays in a set come as tuples; a set with elements that Python cannot tell apart or put into
a set (1 beside true, objects) comes as a sorted list, and a list is always taken for a set.

A counter that is read, raised and written back counts as the difference to what the row holds by
then, as any value does: `post.likes = Post.likes + 1` says what is meant.

Nothing else of reunite imports this module but what goes with SQLAlchemy and the relay, so it is
loaded only by who uses it.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final, TypeAlias

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Dialect,
    String,
    Table,
    Text,
    bindparam,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.mutable import Mutable, MutableDict, MutableList, MutableSet
from sqlalchemy.orm import InstanceState, Mapper, QueryableAttribute
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.compiler import TypeCompiler
from sqlalchemy.sql.operators import OperatorType, json_getitem_op, json_path_getitem_op
from sqlalchemy.types import TypeDecorator, TypeEngine

# The schema of Postgres that holds the domains: one for all realms of a database.
DOMAIN_SCHEMA: Final = "reunite"

# What JSON has, as Python has it.
_Json: TypeAlias = Any


class Counter(TypeDecorator[int]):
    """An integer to which everybody's increments are added up."""

    impl = BigInteger
    cache_ok = True
    declared: ClassVar[str] = "COUNTER"


class CrdtText(TypeDecorator[str]):
    """A text in which edits of different places both stay."""

    impl = Text
    cache_ok = True
    declared: ClassVar[str] = "CRDT_TEXT"


class _JsonText(TypeDecorator[_Json]):
    """JSON that SQLite has as text and Postgres as jsonb."""

    impl = JSON
    cache_ok = True
    declared: ClassVar[str]

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Postgres's own JSONB there, which its drivers read and write; else text."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> TypeEngine[Any]:
        """What is looked up in a value (`column["name"]`) is a key or place, and no JSON itself."""
        if op in (json_getitem_op, json_path_getitem_op):
            return self.impl_instance.coerce_compared_value(op, value)
        return self

    def process_bind_param(self, value: _Json, dialect: Dialect) -> _Json:
        """JSON's text for SQLite. Raises ValueError for what JSON has no word for (NaN)."""
        if value is None or dialect.name == "postgresql":
            return value
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: _Json, dialect: Dialect) -> _Json:
        """The value that the text writes; a driver of Postgres has read it already. A value of
        another class that somebody wrote comes as it is."""
        if not isinstance(value, str) or dialect.name == "postgresql":
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value


class CrdtSet(_JsonText):
    """A set of JSON values in which additions all stay."""

    cache_ok = True
    declared = "CRDT_SET_TEXT"

    def process_bind_param(self, value: _Json, dialect: Dialect) -> _Json:
        """As JSON, which has no sets: a list in their place, the same for equal sets."""
        if isinstance(value, set | frozenset):
            value = sorted(value, key=_place)
        return super().process_bind_param(value, dialect)

    def process_result_value(self, value: _Json, dialect: Dialect) -> _Json:
        """The elements as a set, or as a sorted list where Python has no such set."""
        found = super().process_result_value(value, dialect)
        return _as_set(found) if isinstance(found, list) else found


class CrdtList(_JsonText):
    """A list in which insertions and removals by different people merge."""

    cache_ok = True
    declared = "CRDT_LIST_TEXT"


class CrdtJSON(_JsonText):
    """A JSON value that merges by its members."""

    cache_ok = True
    declared = "CRDT_JSON_TEXT"


MERGING_TYPES: Final = (Counter, CrdtText, CrdtSet, CrdtList, CrdtJSON)


def include_name(name: str | None, kind: str, parents: Mapping[str, Any]) -> bool:
    """Leaves reunite's own tables to it: for Alembic's `context.configure(include_name=...)`, or
    to be called by a hook of your own."""
    table = name if kind == "table" else parents.get("table_name")
    own = ("reunite_rows", "reunite_rejected")
    return table is None or not (table.startswith("_reunite_") or table in own)


def _as_set(elements: Collection[_Json]) -> set[_Json] | list[_Json]:
    try:
        found = {tuple(e) if isinstance(e, list) else e for e in elements}
    except TypeError:
        found = set()
    spelled = {_spelling(element) for element in elements}
    return found if len(found) == len(spelled) else sorted(elements, key=_place)


def _spelling(element: _Json) -> str:
    return json.dumps(element, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _place(element: _Json) -> tuple[int, float, str]:
    """Where a JSON value stands among others: null, false, true, numbers by size, text, then arrays
    and objects by what they are written as."""
    if element is None or isinstance(element, bool):
        return (0 if element is None else 1 + element, 0.0, "")
    if isinstance(element, int | float):
        return (3, element, "")
    if isinstance(element, str):
        return (4, 0.0, element)
    return (6 if isinstance(element, dict) else 5, 0.0, _spelling(element))


# Changes in place.


def _watched(value: _Json, kind: TypeEngine[Any]) -> _Json:
    """The value as one that tells when it is changed, where Python can change it at all."""
    if isinstance(value, Mutable) or value is None:
        return value
    if isinstance(kind, CrdtSet) and isinstance(value, list | tuple):
        value = _as_set(value)
    if isinstance(value, set | frozenset):
        return MutableSet[Any](value)
    if isinstance(value, list | tuple):
        return MutableList[Any](value)
    return MutableDict[str, Any](value) if isinstance(value, dict) else value


# `Mutable.associate_with` takes no column whose value may be a scalar, as JSON's may.
@event.listens_for(Mapper, "mapper_configured")
def _watch_columns(mapper: Mapper[Any], class_: type) -> None:
    for found in mapper.column_attrs:
        kind = getattr(found.columns[0], "type", None)
        if isinstance(kind, _JsonText):
            attribute = getattr(class_, found.key)
            # A subclass inherits the listeners of the class that has the column.
            if attribute.class_ is class_ and not _is_inherited(mapper, found.key):
                _watch(attribute, kind)


def _is_inherited(mapper: Mapper[Any], key: str) -> bool:
    return mapper.inherits is not None and mapper.inherits.has_property(key)


def _watch(attribute: QueryableAttribute[Any], kind: _JsonText) -> None:
    key = attribute.key

    def load(state: InstanceState[Any], *_: object) -> None:
        if state.dict.get(key) is not None:
            value = state.dict[key] = _watched(state.dict[key], kind)
            if isinstance(value, Mutable):
                value._parents[state] = key

    def refresh(state: InstanceState[Any], _: object, names: Collection[str] | None) -> None:
        if not names or key in names:
            load(state)

    def assign(state: InstanceState[Any], value: _Json, before: _Json, _: object) -> _Json:
        if value is before:
            return value
        value = _watched(value, kind)
        if isinstance(value, Mutable):
            value._parents[state] = key
        if isinstance(before, Mutable):
            before._parents.pop(state, None)
        return value

    event.listen(attribute.class_, "load", load, raw=True, propagate=True)
    event.listen(attribute.class_, "refresh", refresh, raw=True, propagate=True)
    event.listen(attribute.class_, "refresh_flush", refresh, raw=True, propagate=True)
    event.listen(attribute, "set", assign, raw=True, retval=True, propagate=True)


# What databases call the types.


def _declared(element: Any, compiler: TypeCompiler, **_options: object) -> str:
    name: str = element.declared
    return name


def _domain(element: Any, compiler: TypeCompiler, **_options: object) -> str:
    return f"{DOMAIN_SCHEMA}.{element.declared.lower()}"


for _type in MERGING_TYPES:
    compiles(_type)(_declared)
    compiles(_type, "postgresql")(_domain)

# A relay may be making them at this moment.
_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('reunite domains', 0))")
_THERE: Final = text(
    "SELECT t.typname FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n"
    " ON n.oid = t.typnamespace WHERE n.nspname = :schema AND t.typname = ANY(:names)"
).bindparams(bindparam("names", type_=ARRAY(String())))
_SCHEMA: Final = text("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = :schema")


@event.listens_for(Table, "before_create")
def _make_domains(table: SchemaItem, connection: Connection, **_options: object) -> None:
    """Make the domains that a table's columns are of, where Postgres has none of them yet."""
    assert isinstance(table, Table)
    kinds = {type(column.type) for column in table.columns} & {*MERGING_TYPES}
    if not kinds or connection.dialect.name != "postgresql":
        return
    names = sorted(kind.declared.lower() for kind in kinds)
    asked = {"schema": DOMAIN_SCHEMA, "names": names}
    if len(connection.scalars(_THERE, asked).all()) == len(names):
        return
    connection.execute(_LOCK)
    if connection.execute(_SCHEMA, {"schema": DOMAIN_SCHEMA}).first() is None:
        connection.execute(text(f"CREATE SCHEMA {DOMAIN_SCHEMA}"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA {DOMAIN_SCHEMA} TO PUBLIC"))
    there = set(connection.scalars(_THERE, asked))
    for kind in sorted(kinds, key=lambda each: each.declared):
        if kind.declared.lower() not in there:
            made = kind()
            assert isinstance(made, TypeDecorator)
            base = made.load_dialect_impl(connection.dialect).compile(connection.dialect)
            domain = made.compile(connection.dialect)
            connection.execute(text(f"CREATE DOMAIN {domain} AS {base}"))
