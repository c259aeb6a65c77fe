"""The defaults of Postgres columns that can travel, as literals that SQLite fills in alike.

An expression travels when it is a constant, or the present moment in a column that SQLite can fill
with its own. A constant is a literal with nothing but casts around it; Postgres itself says what a
column would hold for it. Sequences, functions and all else stay in Postgres: there, rows that
backends insert get them, and files have to say the value.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import asyncpg

from reunite.cells.register import Value, same
from reunite.schema import Column, default_value
from reunite_transport.relay.postgres_bookkeeping import Reader
from reunite_transport.relay.postgres_catalog import RealColumn
from reunite_transport.relay.postgres_columns import column_sql, value_of
from reunite_transport.relay.postgres_errors import translated

# As pg_get_expr writes constants: 'x'::text, ('-1'::integer)::bigint, true, NULL::text, 1.5.
_CONSTANT: Final = re.compile(
    r"""\(*
    (?: E?'(?:[^'\\]|''|\\.)*' | [+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)? | true | false | NULL )
    (?: \)* :: (?:"(?:[^"]|"")+"|[\w.]|[ ](?=[a-z]))+ (?:\(\d+(?:,\s*-?\d+)?\))?
        (?:[ ]with(?:out)?[ ]time[ ]zone)? (?:\[\])* )*
    \)*""",
    re.VERBOSE | re.DOTALL,
)
_NOW: Final = (
    r"(?:now|transaction_timestamp|statement_timestamp|clock_timestamp)\(\)"
    r"|(?:CURRENT_TIMESTAMP|LOCALTIMESTAMP)(?:\(\d\))?"
)
# By the logical type: moments, without casts and zones, and SQLite's word for them. It fills in
# UTC, in a timestamptz too, which says no zone then.
_MOMENTS: Final = {
    kind: (re.compile(pattern, re.IGNORECASE), word)
    for kind, pattern, word in (
        ("timestamp", _NOW, "CURRENT_TIMESTAMP"),
        ("timestamptz", _NOW, "CURRENT_TIMESTAMP"),
        ("date", f"{_NOW}|CURRENT_DATE", "CURRENT_DATE"),
        ("time", rf"{_NOW}|(?:CURRENT_TIME|LOCALTIME)(?:\(\d\))?", "CURRENT_TIME"),
    )
}
_UTC: Final = re.compile(
    r"timezone\('utc'::text, (?P<of>.+)\)|(?P<at>.+) AT TIME ZONE 'utc'::text", re.IGNORECASE
)
_CAST: Final = re.compile(
    r"(?P<of>.+)::(?P<to>date|time|timestamp)(?:\(\d\))?(?: with(?:out)? time zone)?", re.DOTALL
)
# A constant that Postgres cannot evaluate fails each row that needs it, and files have none.
_NO_VALUE: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.RaiseError,
)


async def travelling_defaults(
    reader: Reader, columns: Sequence[tuple[Column, RealColumn]]
) -> list[str | None]:
    """For each column the literal that its default is to SQLite, or None where none travels."""
    constants = [
        place
        for place, (_, real) in enumerate(columns)
        if real.default is not None and _CONSTANT.fullmatch(real.default)
    ]
    found: list[str | None] = [_moving(column, real) for column, real in columns]
    texts = await _evaluated(reader, [columns[place][1] for place in constants])
    for place, text in zip(constants, texts, strict=True):
        column, real = columns[place]
        found[place] = _literal(column, value_of(text, column, column_sql(column, real)))
    return found


async def _evaluated(reader: Reader, columns: Sequence[RealColumn]) -> list[str | None]:
    """What each column would hold for its constant, as JSON writes it: no setting of the session
    changes dates then. None for one that Postgres cannot evaluate."""
    if not columns:
        return []
    values = ", ".join(
        f"json_build_object('v', CAST({column.default} AS {column.type.qualified})) ->> 'v'"
        for column in columns
    )
    with translated():
        # Without a transaction around it, the statement is one.
        inside = reader.is_in_transaction()
        if inside:
            await reader.execute("SAVEPOINT constants")
        try:
            found = list(await reader.fetchval(f"SELECT ARRAY[{values}]::text[]"))
        except _NO_VALUE:
            found = None
            if inside:
                await reader.execute("ROLLBACK TO constants")
        if inside:
            await reader.execute("RELEASE constants")
    if found is not None:
        return found
    if len(columns) == 1:
        return [None]
    middle = len(columns) // 2
    first = await _evaluated(reader, columns[:middle])
    return first + await _evaluated(reader, columns[middle:])


def _moving(column: Column, real: RealColumn) -> str | None:
    if real.default is None or column.type not in _MOMENTS:
        return None
    wanted, word = _MOMENTS[column.type]
    return word if wanted.fullmatch(_bare(real.default, column.type)) else None


def _bare(expression: str, kind: str) -> str:
    """A moment without the zone and the casts around it that lose nothing of the type `kind`."""
    while True:
        was = expression
        if expression.startswith("(") and expression.endswith(")"):
            expression = expression[1:-1]
        zoned = _UTC.fullmatch(expression)
        if zoned:
            expression = zoned["of"] or zoned["at"]
        cast = _CAST.fullmatch(expression)
        if cast and cast["to"] in (kind, "timestamp"):
            expression = cast["of"]
        if expression == was:
            return expression


def _literal(column: Column, value: Value) -> str | None:
    """The value as SQL, if SQLite makes the same value of it in this column."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        literal = "'" + value.replace("'", "''") + "'"
    elif isinstance(value, bytes):
        literal = f"X'{value.hex().upper()}'"
    else:
        literal = repr(value)
    made = default_value(replace(column, default=literal))
    return literal if same(made, value) else None
