"""Columns as they really are: how a text becomes a value of a column's own Postgres type, and back.

A relay makes its tables of the types in `postgres_schema`. A table that was there before may have
any others; a column is special where its real type is not the one that its logical type is cast
to, and then has a `ColumnSql`. Nothing here decides what a column's logical type is.

| real type | a given text is | it differs when |
|---|---|---|
| real | cast to double precision | its text reads as another number |
| arrays | the elements of a JSON array | as JSON it is not what was given |
| char(n) | taken as text, in a key cast to it | its text without padding is another |
| citext, name, "char", varchar that folds | taken as text | its text is another |
| composites | cast to the type | its text is not what was given |
| json, enums, inet, interval, bit(n), ... | cast to the type | its text is another |

Casts are without bounds, so that what the column cuts or rounds is seen to differ. What does not
fit a varchar(n), char(n) or bit(n) is refused by Postgres when it is assigned.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from reunite.cells.register import INTEGER_MAX, Value
from reunite.schema import Column, Table
from reunite.types import decimal_of, plain_type
from reunite_transport.relay.postgres_bookkeeping import Reader
from reunite_transport.relay.postgres_catalog import RealColumn, RealType, read_columns
from reunite_transport.relay.postgres_schema import cast_type, register_value

# By the logical type: the types whose values and comparison are those of `cast_type`. A domain over
# one of them is compared as it is.
_ORDINARY: Final[Mapping[str, frozenset[str]]] = {
    "integer": frozenset({"int2", "int4", "int8"}),
    "boolean": frozenset({"bool"}),
    "real": frozenset({"float8"}),
    "numeric": frozenset({"numeric"}),
    "text": frozenset({"text", "varchar"}),
    "any": frozenset({"text", "varchar"}),
    "blob": frozenset({"bytea"}),
    "date": frozenset({"date"}),
    "time": frozenset({"time"}),
    "timestamp": frozenset({"timestamp"}),
    "timestamptz": frozenset({"timestamptz"}),
    "uuid": frozenset({"uuid"}),
    "json": frozenset({"jsonb"}),
}
# Types that a logical type other than text stands for.
_TYPED: Final = frozenset[str]().union(
    *(names for kind, names in _ORDINARY.items() if kind not in ("text", "any")), {"float4", "json"}
)
_TEXT: Final = "pg_catalog.text"
# Casts to these would cut or pad in silence, or lose how a text was written.
_CAST_TO: Final[Mapping[str, str]] = {
    "bpchar": _TEXT,
    "varchar": _TEXT,
    "name": _TEXT,
    "char": _TEXT,
    "citext": _TEXT,
}

_Form: TypeAlias = Literal["typed", "text", "output", "real", "array", "composite"]
# Its cast to text says more than it is written as: 10.0.0.1/32.
_UNLIKE_CAST: Final = frozenset({"inet"})


@dataclass(frozen=True, slots=True)
class ColumnSql:
    """The SQL expressions of one special column. `type_name` is what given texts are cast to;
    `padded` says that the type is char(n), `generates` that the column is GENERATED ALWAYS AS
    IDENTITY, so that an insert which names it has to override that."""

    type_name: str
    form: _Form
    padded: bool = False
    generates: bool = False

    @property
    def compares_text(self) -> bool:
        """True when `differs` needs the text as it was given."""
        return self.form in ("array", "composite")

    def value(self, text: str) -> str:
        """The value that the text expression writes, of no bounds."""
        if self.form == "array":
            return (
                f"(SELECT a.v FROM json_to_record(json_build_object('v', {text}::json))"
                f" AS a (v {self.type_name}))"
            )
        return f"CAST({text} AS {self.type_name})"

    def text(self, column: str) -> str:
        """The column as a text that `value_of` reads."""
        if self.form == "output":
            return f"(to_json({column}) #>> '{{}}')"
        return f"to_json({column})::text" if self.form == "array" else f"{column}::text"

    def differs(self, column: str, value: str, text: str) -> str:
        """True when the column holds another value than the one given. Never needs an equality of
        the type's own: some have none, and box's compares areas."""
        if self.form == "array":
            return f"to_jsonb({column}) IS DISTINCT FROM {text}::jsonb"
        if self.form == "composite":
            # Its fields may have bounds, which a cast keeps to.
            return f'{column}::text COLLATE "C" IS DISTINCT FROM {text}'
        if self.form in ("text", "output"):
            return f'{self.text(column)} COLLATE "C" IS DISTINCT FROM {self.text(value)}'
        if self.form == "real":
            return f"{column}::text::double precision IS DISTINCT FROM {value}"
        return f"{column} IS DISTINCT FROM {value}"


async def read_column_sql(
    reader: Reader, schema: str, tables: Iterable[Table]
) -> tuple[dict[int, dict[str, ColumnSql]], dict[str, set[str]]]:
    """The special columns among those of these tables, by table id and column name, where a table
    without one is missing; and the names of all columns that the tables have, by table."""
    by_name = {table.name: table for table in tables}
    found: dict[int, dict[str, ColumnSql]] = {}
    names: dict[str, set[str]] = {}
    for real in await read_columns(reader, schema, by_name):
        names.setdefault(real.table, set()).add(real.name)
        table = by_name[real.table]
        column = table.column(real.name)
        sql = None if column is None else column_sql(column, real)
        if column is not None and sql is not None:
            found.setdefault(table.id, {})[column.name] = sql
    return found, names


def column_sql(column: Column, real: RealColumn) -> ColumnSql | None:
    """How a column is written that is really of this type; None where the logical type says it."""
    generates = real.identity == "a"
    if _is_ordinary(column, real.type):
        return ColumnSql(cast_type(column.type), "typed", generates=True) if generates else None
    kind = real.type.name
    if real.type.array:
        return ColumnSql(real.type.qualified, "array")
    if kind == "float4" and real.type.builtin:
        return ColumnSql(cast_type("real"), "real")
    if real.type.composite:
        return ColumnSql(real.type.qualified, "composite")
    padded = kind == "bpchar" and real.type.builtin
    # A key is looked for by its index, which is one of char(n).
    cast = real.type.qualified if padded and column.key else _cast_to(real.type)
    form: _Form = "output" if real.type.builtin and kind in _UNLIKE_CAST else "text"
    return ColumnSql(cast, form, padded=padded, generates=generates)


def is_of(column: Column, real: RealColumn) -> bool:
    """True when a registered column can be of this real type."""
    kind = plain_type(column.type)
    if real.type.array:
        return kind == "json"
    ordinary = _ORDINARY[kind]
    if real.type.builtin and real.type.name in ordinary:
        return True
    if kind in ("text", "any"):
        return not (real.type.builtin and real.type.name in _TYPED)
    return real.type.builtin and (kind, real.type.name) in {("real", "float4"), ("json", "json")}


def value_of(text: str | None, column: Column, sql: ColumnSql | None = None) -> Value:
    """What a document holds for a value that Postgres wrote: as `ColumnSql.text` or `::text` reads
    it under our settings, or as `any_session_text` does. What `row_to_json(row) ->> 'column'` has
    is the same but in JSON columns, where it takes strings out of their quotes.

    A moment is in UTC, written as `::text` does. What SQLite would make a number in a NUMERIC or
    JSON column is that number, if it is exactly it: `1.50` is 1.5 and `2.00` is 2. Raises
    ValueError for a bytea that is not written in hex.
    """
    if text is None:
        return None
    if sql is not None and sql.padded:
        return text.rstrip(" ")
    kind = plain_type(column.type)
    if kind in ("timestamp", "timestamptz"):
        return _moment(text, zoned=kind == "timestamptz")
    if kind == "numeric" or column.type == "json":
        return _as_number(text)
    if kind == "blob" and not text.startswith("\\x"):
        raise ValueError("a bytea is read in its hex format: SET bytea_output = 'hex'")
    return register_value(text, column.type)


def any_session_text(expression: str, column: Column, sql: ColumnSql | None = None) -> str:
    """The SQL of a text that `value_of` reads, of a value in a session with settings of its own,
    such as a trigger's of the app (DateStyle, TimeZone, bytea_output)."""
    if sql is not None and sql.form != "typed":
        return sql.text(expression)
    kind = plain_type(column.type)
    if kind == "blob":
        return f"'\\x' || encode({expression}, 'hex')"
    if kind in ("date", "timestamp", "timestamptz"):
        return f"(to_json({expression}) #>> '{{}}')"
    return f"{expression}::text"


def _is_ordinary(column: Column, real: RealType) -> bool:
    if not real.builtin or real.array or real.folds:
        return False
    return real.name in _ORDINARY[plain_type(column.type)]


def _cast_to(real: RealType) -> str:
    by_name = real.builtin or real.name == "citext"
    return _CAST_TO.get(real.name, real.qualified) if by_name else real.qualified


_MOMENT: Final = re.compile(
    r"(\d{4,}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-]\d\d(?::?\d\d){0,2})?", re.ASCII
)


def _moment(text: str, *, zoned: bool) -> str:
    """A timestamp as `::text` writes it in UTC. What has no such form (infinity, a year BC) stays
    as it is."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        return text
    day, clock, zone = found.groups()
    if not zoned or zone is None:
        return f"{day} {clock}"
    if zone.strip("+-0:"):
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(UTC)
        except (ValueError, OverflowError):  # a year of five digits, or one that ends there
            return text
        day, _, rest = moment.replace(tzinfo=None).isoformat(" ").partition(" ")
        whole, _, fraction = rest.partition(".")
        digits = fraction.rstrip("0")
        clock = f"{whole}.{digits}" if digits else whole
    return f"{day} {clock}+00"


def _as_number(text: str) -> Value:
    """The number that SQLite's NUMERIC affinity makes of a text, if it is that very number."""
    number = decimal_of(text)
    if number is None:
        return text
    # `abs` would round, and overflow.
    if -INTEGER_MAX <= number <= INTEGER_MAX and number == number.to_integral_value():
        return int(number)
    approximate = float(text)
    return approximate if Decimal(repr(approximate)) == number else text
