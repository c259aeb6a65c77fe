"""Rows of an app's tables, by what is known of a table: how to find, read and write them, and
which others refer to them.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from reunite.cells.register import Value
from reunite.schema import Column, ForeignKey, Table, ascii_lower, quoted
from reunite_simulations.edits import Expression
from reunite_simulations.history import Cells, Key


def is_free(table: Table, column: Column) -> bool:
    """Whether any value fits a column: it refers to nothing, and need not be unique."""
    return parent_of(table, column) is None and column.name not in unique_columns(table)


def read(conn: sqlite3.Connection, table: Table, key: Key) -> dict[str, Value] | None:
    """The cells of one row by column name; None when it is not there."""
    names = [column.name for column in table.cells]
    columns = ", ".join(map(quoted, names)) or "1"
    found = conn.execute(
        f"SELECT {columns} FROM {quoted(table.name)} WHERE {is_key(table)}", key
    ).fetchone()
    return None if found is None else dict(zip(names, found, strict=False))


def run(
    conn: sqlite3.Connection,
    statement: str,
    cells: Cells,
    behind: str = "",
    given: Sequence[Value] = (),
) -> sqlite3.Cursor:
    """Run a statement that gives these cells; `given` are the values of what stands behind."""
    names = ", ".join(map(quoted, cells))
    marks = ", ".join("?" * len(cells))
    sql = f"{statement} ({names}) VALUES ({marks}){behind}"
    return conn.execute(sql, (*cells.values(), *given))


def update(
    conn: sqlite3.Connection, table: Table, key: Key, cells: Cells, verb: str = "UPDATE"
) -> None:
    change(conn, table, key, {name: Expression("?", [cells[name]]) for name in cells}, verb)


def change(
    conn: sqlite3.Connection,
    table: Table,
    key: Key,
    cells: Mapping[str, Expression],
    verb: str = "UPDATE",
) -> None:
    """Set cells of one row to what expressions make of it."""
    sets = ", ".join(f"{quoted(name)} = {each.sql}" for name, each in cells.items())
    given = [value for each in cells.values() for value in each.given]
    sql = f"{verb} {quoted(table.name)} SET {sets} WHERE {is_key(table)}"
    conn.execute(sql, (*given, *key))


def is_key(table: Table) -> str:
    return " AND ".join(f"{quoted(column.name)} IS ?" for column in table.key)


def keys(
    conn: sqlite3.Connection,
    table: Table,
    where: str,
    given: Sequence[Value],
    *,
    limit: int = -1,
    offset: int = 0,
) -> list[Key]:
    """The keys of the rows that a condition is true of, in order."""
    names = ", ".join(quoted(column.name) for column in table.key)
    rows = conn.execute(
        f"SELECT {names} FROM {quoted(table.name)} WHERE {where} ORDER BY {names} LIMIT ? OFFSET ?",
        (*given, limit, offset),
    )
    return [tuple(row) for row in rows.fetchall()]


def count(conn: sqlite3.Connection, table: Table) -> int:
    (count,) = conn.execute(f"SELECT count(*) FROM {quoted(table.name)}").fetchone()
    return int(count)


def unique_indexes(conn: sqlite3.Connection, table: Table) -> int:
    """How many a file has beside the key's, those too that stay there."""
    (count,) = conn.execute(
        "SELECT count(*) FROM pragma_index_list(?) WHERE \"unique\" AND origin <> 'pk'",
        (table.name,),
    ).fetchone()
    return int(count)


def by_name(table: Table, key: Key) -> dict[str, Value]:
    return dict(zip((column.name for column in table.key), key, strict=True))


def parent_of(table: Table, column: Column) -> ForeignKey | None:
    for foreign_key in table.foreign_keys:
        if column.name in foreign_key.columns:
            return foreign_key
    return None


def column(table: Table, name: str) -> Column:
    found = table.column(name)
    assert found is not None
    return found


def _named(row: Cells, name: str) -> Value:
    return next(value for each, value in row.items() if ascii_lower(each) == ascii_lower(name))


def unique_columns(table: Table) -> set[str]:
    return {name for index in table.indexes if index.unique for name in index.columns}


def children(tables: Sequence[Table], table: Table) -> list[tuple[Table, ForeignKey]]:
    """The tables among some that refer to a table, and by which keys."""
    return [
        (child, foreign_key)
        for child in tables
        for foreign_key in child.foreign_keys
        if ascii_lower(foreign_key.parent) == ascii_lower(table.name)
    ]


def referring(
    conn: sqlite3.Connection, tables: Sequence[Table], table: Table, key: Key
) -> Iterator[tuple[Table, ForeignKey, Key]]:
    """The rows that refer to a row."""
    found = read(conn, table, key)
    if found is None:
        return
    row = found | by_name(table, key)
    for child, foreign_key in children(tables, table):
        referred = [_named(row, name) for name in foreign_key.parent_columns]
        where = " AND ".join(f"{quoted(name)} = ?" for name in foreign_key.columns)
        for below in keys(conn, child, where, referred):
            yield child, foreign_key, below


def changed_with(
    conn: sqlite3.Connection,
    tables: Sequence[Table],
    table: Table,
    key: Key,
    known: set[tuple[str, Key]] | None = None,
) -> Iterator[tuple[Table, Key]]:
    """The rows that the deletion of a row would change, by foreign keys' actions."""
    known = {(table.name, key)} if known is None else known
    for child, foreign_key, below in list(referring(conn, tables, table, key)):
        acts = foreign_key.on_delete not in ("NO ACTION", "RESTRICT")
        if acts and (child.name, below) not in known:
            known.add((child.name, below))
            yield child, below
            if foreign_key.on_delete == "CASCADE":
                yield from changed_with(conn, tables, child, below, known)
