"""SQLAlchemy's types for columns that merge, for apps that declare their tables with it:

    from reunite.sqlalchemy_types import COUNTER, CRDT_SET_TEXT

    likes = mapped_column(COUNTER, server_default="0")

| type | SQLite | Postgres | Python |
|---|---|---|---|
| COUNTER | COUNTER | reunite.counter | int |
| CRDT_TEXT | CRDT_TEXT | reunite.crdt_text | str |
| CRDT_SET_TEXT | CRDT_SET_TEXT | reunite.crdt_set_text | list, sorted; a set is taken, too |
| CRDT_LIST_TEXT | CRDT_LIST_TEXT | reunite.crdt_list_text | list |
| CRDT_JSON_TEXT | CRDT_JSON_TEXT | reunite.crdt_json_text | what JSON has |

SQLite knows types by the name that a column is declared with, and so does `reunite.types`. On
Postgres they are domains, which a relay makes when it opens a realm of the database.

None is SQL's NULL, in the JSON types as well. That a list or dict was changed in place, SQLAlchemy
notices where it is told to look: `MutableList.as_mutable(CRDT_LIST_TEXT)` of
`sqlalchemy.ext.mutable`, which is left to the app. A counter merges what each replica adds, however
it is written: `Post.likes + 1` and a number that was read and raised come to the same.

Nothing else of reunite imports this module, so SQLAlchemy is loaded only by who uses it.
"""

import json
from typing import Any, ClassVar, Final, TypeAlias

from sqlalchemy import JSON, BigInteger, Dialect, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import TypeCompiler
from sqlalchemy.sql.operators import OperatorType, json_getitem_op, json_path_getitem_op
from sqlalchemy.types import TypeDecorator, TypeEngine

# The schema of Postgres that holds the domains: one for all realms of a database.
DOMAIN_SCHEMA: Final = "reunite"

# What JSON has, as Python has it.
_Json: TypeAlias = Any


class COUNTER(TypeDecorator[int]):
    """An integer to which everybody's increments are added up."""

    impl = BigInteger
    cache_ok = True
    domain: ClassVar[str] = "counter"


class CRDT_TEXT(TypeDecorator[str]):
    """A text in which edits of different places both stay."""

    impl = Text
    cache_ok = True
    domain: ClassVar[str] = "crdt_text"


class _JsonText(TypeDecorator[_Json]):
    """JSON that SQLite has as text and Postgres as jsonb."""

    impl = JSON
    cache_ok = True

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
        """The value that the text writes; a driver of Postgres has read it already."""
        return value if value is None or dialect.name == "postgresql" else json.loads(value)


class CRDT_SET_TEXT(_JsonText):
    """A set of JSON values in which additions all stay. It comes back as a sorted list."""

    cache_ok = True
    domain: ClassVar[str] = "crdt_set_text"

    def process_bind_param(self, value: _Json, dialect: Dialect) -> _Json:
        """As JSON, which has no sets: a list in their place, the same for equal sets."""
        if isinstance(value, set | frozenset):
            value = sorted(value, key=_place)
        return super().process_bind_param(value, dialect)

    def process_result_value(self, value: _Json, dialect: Dialect) -> _Json:
        """The elements in order, whoever wrote them."""
        found = super().process_result_value(value, dialect)
        return sorted(found, key=_place) if isinstance(found, list) else found


class CRDT_LIST_TEXT(_JsonText):
    """A list in which insertions and removals by different people merge."""

    cache_ok = True
    domain: ClassVar[str] = "crdt_list_text"


class CRDT_JSON_TEXT(_JsonText):
    """A JSON value that merges by its members."""

    cache_ok = True
    domain: ClassVar[str] = "crdt_json_text"


def _place(element: _Json) -> tuple[int, float, str]:
    """Where a JSON value stands among others: null, false, true, numbers by size, text, then arrays
    and objects by what they are written as."""
    if element is None or isinstance(element, bool):
        return (0 if element is None else 1 + element, 0.0, "")
    if isinstance(element, int | float):
        return (3, element, "")
    if isinstance(element, str):
        return (4, 0.0, element)
    written = json.dumps(element, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return (6 if isinstance(element, dict) else 5, 0.0, written)


@compiles(COUNTER)
@compiles(CRDT_TEXT)
@compiles(CRDT_SET_TEXT)
@compiles(CRDT_LIST_TEXT)
@compiles(CRDT_JSON_TEXT)
def _declared(element: TypeEngine[Any], compiler: TypeCompiler, **_options: object) -> str:
    return type(element).__name__


@compiles(COUNTER, "postgresql")
@compiles(CRDT_TEXT, "postgresql")
@compiles(CRDT_SET_TEXT, "postgresql")
@compiles(CRDT_LIST_TEXT, "postgresql")
@compiles(CRDT_JSON_TEXT, "postgresql")
def _domain(element: Any, compiler: TypeCompiler, **_options: object) -> str:
    return f"{DOMAIN_SCHEMA}.{element.domain}"
