"""The statements that write rows of one table: each takes one text array a column and casts it.

`given` is the rows as they came: `v0`, `v1`, ... are the key's and then the cells' values, cast;
`place` is the row's number in the arrays, from 1. Casts are without bounds, so that a value which
the column rounded differs from the one given. Columns of types that a relay does not make have
expressions of their own (see `postgres_columns`).

`insert` and `update` answer with one record of counts, and after it one for each row in which
Postgres made a value different: `d0`, `d1`, ... hold [the value's text] where it did.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from reunite.columns import Columns
from reunite.schema import Column, Table, quoted, through_affinity
from reunite_transport.relay.postgres_columns import ColumnSql
from reunite_transport.relay.postgres_schema import cast_type

_ORDINARY: Final[Mapping[str, ColumnSql]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Shape:
    """What writing a table needs of its description. `numeric_keys` name key columns of text that
    SQLite keeps numbers in where they look so; `special` holds the SQL of columns, by name, that
    are not of the type their logical type is cast to."""

    table: Table
    name: str
    keys: tuple[Column, ...]
    numeric_keys: frozenset[str]
    cells: tuple[Column, ...]
    columns: Columns
    special: Mapping[str, ColumnSql]


def shape_of(schema: str, table: Table, special: Mapping[str, ColumnSql] = _ORDINARY) -> Shape:
    """Work a table's shape out, once for each version of the registry."""
    return Shape(
        table=table,
        name=f"{quoted(schema)}.{quoted(table.name)}",
        keys=table.key,
        numeric_keys=numeric_keys(table),
        cells=table.cells,
        columns=Columns(table.cells),
        special=special,
    )


def numeric_keys(table: Table) -> frozenset[str]:
    """The key columns of text that SQLite keeps numbers in where a text looks like one."""
    return frozenset(c.name for c in table.key if _takes_numbers(c) and not table.strict)


def _takes_numbers(column: Column) -> bool:
    return column.type in ("text", "any") and through_affinity(column.declared, ["1"]) != ["1"]


def update_sql(shape: Shape, changed: Sequence[int], compared: Sequence[int]) -> str:
    """Set the cells at the places `changed`; report differences of all `compared`."""
    first = len(shape.keys)
    value_by_place = {place: f"given.v{first + at}" for at, place in enumerate(compared)}
    sets = ", ".join(
        f"{quoted(shape.cells[place].name)} = {value_by_place[place]}" for place in changed
    )
    given = _given(shape, [*shape.keys, *(shape.cells[place] for place in compared)], 1)
    return (
        f"WITH {given}, compared AS (UPDATE {shape.name} AS t SET {sets} FROM given"
        f" WHERE {_matches('t', shape.keys)}"
        f" RETURNING given.place{_differences('t', shape, compared)})"
        " SELECT count(*) AS written, NULL::bigint AS matched, NULL::bigint AS misspelt"
        f"{_reported(compared, 'compared')}"
    )


def insert_sql(shape: Shape) -> str:
    """Insert rows whose keys are free. Counts: `written` rows, `matched` ones of them whose key
    came out as given, `misspelt` keys."""
    columns = (*shape.keys, *shape.cells)
    names = ", ".join(quoted(column.name) for column in columns)
    values = ", ".join(f"given.v{at}" for at in range(len(columns)))
    conflict = ", ".join(quoted(column.name) for column in shape.keys)
    # Most types read one value from several texts. A key must be the one that Postgres writes, or
    # two documents would name one row.
    misspelt = " OR ".join(
        f"{_text(shape, column, f'v{at}')} <> t{at}" for at, column in enumerate(shape.keys)
    )
    overriding = " OVERRIDING SYSTEM VALUE" if _generates(shape, columns) else ""
    places = range(len(shape.cells))
    return (
        f"WITH {_given(shape, columns, 1)}, written AS (INSERT INTO {shape.name} ({names})"
        f"{overriding} SELECT {values} FROM given ON CONFLICT ({conflict}) DO NOTHING"
        f" RETURNING {names}),"
        f" compared AS (SELECT given.place{_differences('w', shape, places)}"
        f" FROM written AS w JOIN given ON {_matches('w', shape.keys)})"
        " SELECT (SELECT count(*) FROM written) AS written, count(*) AS matched,"
        f" (SELECT count(*) FROM given WHERE {misspelt}) AS misspelt"
        f"{_reported(places, 'compared')}"
    )


def delete_sql(shape: Shape) -> str:
    """Delete rows by key. Answers with the places of rows that are there all the same, as a trigger
    keeps them."""
    matches = _matches("t", shape.keys)
    return (
        f"WITH {_given(shape, shape.keys, 1)}, gone AS (DELETE FROM {shape.name} AS t USING given"
        f" WHERE {matches} RETURNING given.place)"
        f" SELECT given.place FROM given JOIN {shape.name} AS t ON {matches}"
        " EXCEPT SELECT place FROM gone"
    )


def there_sql(shape: Shape) -> str:
    """How many of the rows are there."""
    return (
        f"WITH {_given(shape, shape.keys, 1)} SELECT count(*) FROM {shape.name} AS t JOIN given"
        f" ON {_matches('t', shape.keys)}"
    )


def lock_sql(shape: Shape) -> str:
    """Lock rows against children that refer to them."""
    return (
        f"WITH {_given(shape, shape.keys, 1)} SELECT FROM {shape.name} AS t JOIN given"
        f" ON {_matches('t', shape.keys)} FOR UPDATE OF t"
    )


def hold_sql(shape: Shape, *, patiently: bool) -> str:
    """Lock rows against writers, as far as they can be had at once, or `patiently` all that are
    there. Answers with the places of rows that are there and were not had."""
    given, join = _given(shape, shape.keys, 1), f"{shape.name} AS t ON {_matches('t', shape.keys)}"
    how = "" if patiently else " SKIP LOCKED"
    return (
        f"WITH {given}, held AS MATERIALIZED (SELECT given.place FROM given JOIN {join}"
        f" FOR NO KEY UPDATE OF t{how})"
        f" SELECT given.place FROM given JOIN {join} EXCEPT SELECT place FROM held"
    )


def referring_sql(parent: Shape, child: Shape, sides: Sequence[tuple[str, str]]) -> str:
    """True when a row of `child` refers to one of the given rows of `parent` and is not itself
    among the rows to delete, whose keys are the parameters after the parent's. `sides` pairs the
    child's columns with the parent's."""
    refers = " AND ".join(f"c.{quoted(own)} = t.{quoted(theirs)}" for own, theirs in sides)
    going = _given(child, child.keys, 1 + len(parent.keys), name="going")
    return (
        f"WITH {_given(parent, parent.keys, 1)}, {going} SELECT EXISTS ("
        f"SELECT FROM given JOIN {parent.name} AS t ON {_matches('t', parent.keys)}"
        f" JOIN {child.name} AS c ON {refers}"
        f" WHERE NOT EXISTS (SELECT FROM going WHERE {_matches('c', child.keys, 'going')}))"
    )


def _generates(shape: Shape, columns: Iterable[Column]) -> bool:
    special = (shape.special.get(column.name) for column in columns)
    return any(sql is not None and sql.generates for sql in special)


def _given(shape: Shape, columns: Sequence[Column], first: int, *, name: str = "given") -> str:
    arrays = ", ".join(f"${first + at}::text[]" for at in range(len(columns)))
    texts = ", ".join(f"t{at}" for at in range(len(columns)))
    casts = "".join(
        f", {_value(shape, column, f'raw.t{at}')} AS v{at}"
        + (f", raw.t{at}" if column.key or _compares_text(shape, column) else "")
        for at, column in enumerate(columns)
    )
    return (
        f"{name} AS (SELECT raw.place{casts}"
        f" FROM unnest({arrays}) WITH ORDINALITY AS raw ({texts}, place))"
    )


def _value(shape: Shape, column: Column, text: str) -> str:
    special = shape.special.get(column.name)
    return special.value(text) if special else f"CAST({text} AS {cast_type(column.type)})"


def _text(shape: Shape, column: Column, value: str) -> str:
    special = shape.special.get(column.name)
    return special.text(value) if special else f"{value}::text"


def _compares_text(shape: Shape, column: Column) -> bool:
    special = shape.special.get(column.name)
    return special is not None and special.compares_text


def _matches(alias: str, keys: Sequence[Column], name: str = "given") -> str:
    return " AND ".join(
        f"{alias}.{quoted(column.name)} = {name}.v{at}" for at, column in enumerate(keys)
    )


def _differences(alias: str, shape: Shape, compared: Sequence[int]) -> str:
    cases = []
    for place, index in enumerate(compared):
        at = place + len(shape.keys)
        cell = shape.cells[index]
        column, value = f"{alias}.{quoted(cell.name)}", f"given.v{at}"
        special = shape.special.get(cell.name)
        if special is None:
            differs = f"{column} IS DISTINCT FROM {value}"
        else:
            differs = special.differs(column, value, f"given.t{at}")
        read = _text(shape, cell, column)
        cases.append(f", CASE WHEN {differs} THEN ARRAY[{read}] END AS d{place}")
    return "".join(cases)


def _reported(compared: Sequence[int], source: str) -> str:
    """The end of the statement: the record of counts, then the rows in which something differs."""
    names = [f"d{at}" for at in range(len(compared))]
    nothing = "".join(f", NULL::text[] AS {name}" for name in names)
    listed = "".join(f", {name}" for name in names)
    differs = " OR ".join(f"{name} IS NOT NULL" for name in names) or "false"
    return (
        f", NULL::bigint AS place{nothing} FROM {source}"
        f" UNION ALL SELECT NULL, NULL, NULL, place{listed} FROM {source} WHERE {differs}"
        " ORDER BY place NULLS FIRST"
    )
