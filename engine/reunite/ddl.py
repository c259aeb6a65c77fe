"""SQLite DDL for a table that a relay described: names quoted, types and defaults only as checked.

Written by hand because SQLite's own words (declared types kept as text, AUTOINCREMENT, STRICT,
WITHOUT ROWID) are what has to survive, and a SQL toolkit would translate them.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

from reunite.schema import Column, ForeignKey, Table, ascii_lower, default_value, quoted


def create_statements(table: Table, taken: Collection[str] = ()) -> list[str]:
    """The statements that create a table and its indexes. `taken` are the names, in lower case,
    that the database has: an index of such a name is called after its table as well."""
    # SQLite takes AUTOINCREMENT only in the column's own definition.
    inline = table.autoincrement and len(table.key) == 1 and not table.without_rowid
    parts = [_column(column, inline) for column in table.columns]
    if not inline:
        parts.append(f"PRIMARY KEY ({_names(column.name for column in table.key)})")
    # SQLite names the indexes of UNIQUE constraints itself and keeps such names for itself.
    own = [index for index in table.indexes if index.name.startswith("sqlite_")]
    parts += [f"UNIQUE ({_names(index.columns)})" for index in own]
    parts += [_foreign_key(foreign_key) for foreign_key in table.foreign_keys]
    options = ", ".join(
        word
        for word, wanted in (("WITHOUT ROWID", table.without_rowid), ("STRICT", table.strict))
        if wanted
    )
    body = ",\n    ".join(parts)
    statements = [f"CREATE TABLE {quoted(table.name)} (\n    {body}\n) {options}".rstrip()]
    for index in table.indexes:
        if index not in own:
            free = ascii_lower(index.name) not in taken
            name = index.name if free else f"{table.name}_{index.name}"
            unique = "UNIQUE " if index.unique else ""
            statements.append(
                f"CREATE {unique}INDEX {quoted(name)} ON {quoted(table.name)}"
                f" ({_names(index.columns)})"
            )
    return statements


def add_column_statement(table: Table, column: Column) -> str:
    """The statement that adds a column. SQLite takes no moving default for a table that has rows,
    so such a column gets none."""
    if default_value(column) is None:
        column = replace(column, default=None, notnull=False)
    return f"ALTER TABLE {quoted(table.name)} ADD COLUMN {_column(column, False)}"


def _column(column: Column, inline_key: bool) -> str:
    words = [quoted(column.name), column.declared]
    if column.key and inline_key:
        words.append("PRIMARY KEY AUTOINCREMENT")
    if column.notnull:
        words.append("NOT NULL")
    if column.default is not None:
        words.append(f"DEFAULT {column.default}")
    return " ".join(word for word in words if word)


def _foreign_key(foreign_key: ForeignKey) -> str:
    return (
        f"FOREIGN KEY ({_names(foreign_key.columns)})"
        f" REFERENCES {quoted(foreign_key.parent)} ({_names(foreign_key.parent_columns)})"
        f" ON DELETE {foreign_key.on_delete} ON UPDATE {foreign_key.on_update}"
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(quoted, names))
