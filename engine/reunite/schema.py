"""The shape of a table as it travels: columns, keys, constraints. Owns reading it from SQLite and
checking it when a peer sends it; knows nothing of how a relay stores it.

Schema travels as structured data. A peer's DDL text is never executed: declared types, defaults
and names are checked by the rules here and quoted by whoever writes DDL from them.
"""

import re
import sqlite3
import zlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Final

from reunite.cells.register import Value
from reunite.document import COLUMN_ID_MAX
from reunite.errors import FormatError, TableError
from reunite.types import MERGING, logical_type

# Postgres ends names at 63 bytes and would cut a longer one silently.
NAME_BYTES_MAX: Final = 63
# Postgres holds 1,600 columns a table.
COLUMNS_MAX: Final = 1_600
TABLES_MAX: Final = 2_000
KEY_COLUMNS_MAX: Final = 16
# Ids from here on are a file's own numbering for columns that the registry has not numbered yet.
PROVISIONAL_ID: Final = 1 << 20

_LOWER: Final = str.maketrans(ascii_uppercase, ascii_lowercase)
ACTIONS: Final = frozenset({"NO ACTION", "RESTRICT", "SET NULL", "SET DEFAULT", "CASCADE"})
_DECLARED: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9_ ]{0,60}(\( *[+-]?\d{1,9} *(, *[+-]?\d{1,9} *)?\))?|", re.ASCII
)
_KIND: Final = re.compile(r"[a-z][a-z_]{0,19}(\(\d{1,4},\d{1,4}\))?", re.ASCII)
# Words that SQLite takes for something other than a part of a type's name: "INT CHECK (0)" has the
# form of a type and is a constraint.
_NO_TYPE_WORDS: Final = frozenset(
    "ADD ALL ALTER ALWAYS AND AS AUTOINCREMENT BETWEEN CASE CHECK COLLATE COMMIT CONSTRAINT CREATE"
    " CROSS DEFAULT DEFERRABLE DELETE DISTINCT DROP ELSE ESCAPE EXCEPT EXISTS FOREIGN FROM FULL"
    " GROUP HAVING IN INDEX INDEXED INNER INSERT INTERSECT INTO IS ISNULL JOIN LEFT LIMIT NATURAL"
    " NOT NOTHING NOTNULL NULL ON OR ORDER OUTER PRIMARY REFERENCES RETURNING RIGHT SELECT SET"
    " TABLE THEN TO TRANSACTION UNION UNIQUE UPDATE USING VALUES WHEN WHERE".split()
)
_LITERAL: Final = re.compile(
    r"NULL|TRUE|FALSE|CURRENT_(TIMESTAMP|DATE|TIME)"
    r"|[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|'([^'\0]|'')*'|[xX]'([0-9a-fA-F]{2})*'",
    re.IGNORECASE | re.ASCII,
)
_REFUSED_KEY_TYPES: Final = frozenset({"real", "numeric"})
OWN_PREFIX: Final = "_reunite_"
# Every table of Postgres has these; it refuses others of the name.
_POSTGRES_COLUMNS: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
_OWN_NAMES: Final = frozenset({"reunite_rows", "reunite_rejected"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `id` names its cells; `declared` is SQLite's type text, `type` the logical type
    (see `reunite.types`); `default` a SQL literal or None; `key` its place in the primary key,
    from 1, or 0."""

    name: str
    id: int
    declared: str
    type: str
    notnull: bool = False
    default: str | None = None
    key: int = 0


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """`columns` refer to `parent`'s `parent_columns`; the actions are SQL's words."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str = "NO ACTION"
    on_update: str = "NO ACTION"


@dataclass(frozen=True, slots=True)
class Index:
    """A plain index over columns. Partial, expression and non-binary ones stay where they are."""

    name: str
    columns: tuple[str, ...]
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it travels between replicas. `id` is the registry's, 0 while unregistered."""

    name: str
    columns: tuple[Column, ...]
    id: int = 0
    foreign_keys: tuple[ForeignKey, ...] = ()
    indexes: tuple[Index, ...] = ()
    without_rowid: bool = False
    strict: bool = False
    autoincrement: bool = False
    # It was in the relay's database before: whoever made it there changes its shape. Not shown, as
    # what peers of the first protocol say has no word of it.
    adopted: bool = field(default=False, repr=False)

    @property
    def key(self) -> tuple[Column, ...]:
        """The primary key's columns in key order."""
        return tuple(sorted((c for c in self.columns if c.key), key=lambda c: c.key))

    @property
    def cells(self) -> tuple[Column, ...]:
        """The columns whose values are cells of the row document: all but the key."""
        return tuple(c for c in self.columns if not c.key)

    def column(self, name: str) -> Column | None:
        """The column of this name, compared as SQLite does, or None."""
        folded = ascii_lower(name)
        return next((c for c in self.columns if ascii_lower(c.name) == folded), None)

    def renumbered(self, ids: dict[str, int]) -> "Table":
        """The same table with column ids by name."""
        return replace(self, columns=tuple(replace(c, id=ids[c.name]) for c in self.columns))


def quoted(name: str) -> str:
    """A name as an SQL identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def ascii_lower(name: str) -> str:
    """The form in which SQLite compares names: letters beyond ASCII keep their case."""
    return name.translate(_LOWER)


def read_table(conn: sqlite3.Connection, name: str) -> Table:
    """Read a table's shape from an SQLite database, its columns numbered from 1.

    Raises TableError, which says what to do, for what cannot be tracked: an unknown table, a
    view, a virtual or internal table, no primary key, a generated or NOCASE or floating key.
    """
    found = conn.execute(
        "SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view')"
        " AND name = ? COLLATE NOCASE",
        (name,),
    ).fetchone()
    if found is None:
        raise TableError(name, "there is no such table in this file; check its name")
    name, kind, sql = found
    _refuse_kind(name, kind, sql or "")
    described = conn.execute(
        'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (name,)
    ).fetchall()
    listed = conn.execute(
        "SELECT name, wr, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?", (name,)
    ).fetchone()
    without_rowid, strict = bool(listed[1]), bool(listed[2])
    columns: list[Column] = []
    for column, declared, notnull, default, pk, hidden in described:
        if hidden and pk:
            raise TableError(
                name, f"key column {column!r} is generated; track a table with a stored key"
            )
        if hidden:
            continue
        columns.append(
            Column(
                name=column,
                id=len(columns) + 1,
                declared=declared if _is_type_name(declared) else "",
                type=logical_type(declared),
                notnull=bool(notnull),
                default=_literal(default),
                key=pk,
            )
        )
    stored = {ascii_lower(column.name) for column in columns}
    table = Table(
        name=name,
        columns=tuple(columns),
        foreign_keys=_foreign_keys(conn, name, stored),
        indexes=_indexes(conn, name, stored),
        without_rowid=without_rowid,
        strict=strict,
        # The word may also stand in a comment, where it means nothing.
        autoincrement=[c.declared.upper() for c in columns if c.key] == ["INTEGER"]
        and re.search(r"\bAUTOINCREMENT\b", sql or "", re.IGNORECASE) is not None,
    )
    _check_key(conn, table)
    _check_names(table)
    return table


def table_names(conn: sqlite3.Connection) -> list[str]:
    """The names of the user's own tables, in order of creation."""
    return [
        name
        for name, sql in conn.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
        )
        if not _is_internal(name) and not _is_virtual(sql or "") and not _is_shadow(conn, name)
    ]


def parents_first(tables: Sequence[Table]) -> list[Table]:
    """Tables so ordered that a table comes after those it refers to, where there is no cycle."""
    by_name = {ascii_lower(table.name): table for table in tables}
    ordered: dict[str, Table] = {}
    visiting: set[str] = set()

    def visit(table: Table) -> None:
        name = ascii_lower(table.name)
        if name in ordered or name in visiting:
            return
        visiting.add(name)
        for foreign_key in table.foreign_keys:
            parent = by_name.get(ascii_lower(foreign_key.parent))
            if parent is not None:
                visit(parent)
        ordered[name] = table

    for table in tables:
        visit(table)
    return list(ordered.values())


def to_wire(table: Table) -> list[object]:
    """The table as plain lists, for the codecs. `from_wire` reads it back and checks it."""
    return [
        table.name,
        table.id,
        [[c.name, c.id, c.declared, c.type, c.notnull, c.default, c.key] for c in table.columns],
        [
            [list(f.columns), f.parent, list(f.parent_columns), f.on_delete, f.on_update]
            for f in table.foreign_keys
        ],
        [[i.name, list(i.columns), i.unique] for i in table.indexes],
        [table.without_rowid, table.strict, table.autoincrement, *([True] * table.adopted)],
    ]


def from_wire(fields: Any) -> Table:
    """The table that a peer described. Raises FormatError for anything out of rule."""
    try:
        name, table_id, columns, foreign_keys, indexes, flags = fields
        if len(columns) > COLUMNS_MAX:
            raise FormatError(f"table {name!r} has over {COLUMNS_MAX} columns")
        without_rowid, strict, autoincrement, *adopted = map(_boolean, flags)
        if adopted not in ([], [True]):
            raise FormatError("a table has flags that are not known here")
        table = Table(
            name=_name(name),
            id=_integer(table_id, 0, COLUMN_ID_MAX),
            columns=tuple(_column(*column) for column in columns),
            foreign_keys=tuple(
                ForeignKey(
                    _names(own), _name(parent), _names(theirs), _action(delete), _action(update)
                )
                for own, parent, theirs, delete, update in foreign_keys
            ),
            indexes=tuple(
                Index(_name(i), _names(over), _boolean(unique)) for i, over, unique in indexes
            ),
            without_rowid=without_rowid,
            strict=strict,
            autoincrement=autoincrement,
            adopted=bool(adopted),
        )
        _check_consistent(table)
    except (TypeError, ValueError) as error:
        raise FormatError(f"not a table's description: {error}") from error
    return table


def default_value(column: Column) -> Value:
    """The constant that a row has in this column when nobody gave one; None where it is no
    constant (CURRENT_TIMESTAMP)."""
    if column.default is None or column.default.upper().startswith("CURRENT_"):
        return None
    return through_affinity(column.declared, literal=column.default)[0]


def through_affinity(
    declared: str, values: Sequence[Value] = (), *, literal: str = ""
) -> list[Value]:
    """What SQLite holds after storing `values` (or one SQL literal) in a column of this type."""
    with sqlite3.connect(":memory:") as scratch:
        scratch.execute(f"CREATE TABLE scratch (value {declared})")
        if literal:
            scratch.execute(f"INSERT INTO scratch VALUES ({literal})")
        scratch.executemany("INSERT INTO scratch VALUES (?)", ((value,) for value in values))
        stored = [row[0] for row in scratch.execute("SELECT value FROM scratch ORDER BY rowid")]
    scratch.close()
    return stored


def _refuse_kind(name: str, kind: str, sql: str) -> None:
    if kind == "view":
        raise TableError(name, "is a view; track the tables that it reads instead")
    if _is_internal(name):
        raise TableError(name, "is internal bookkeeping and is never synced")
    if _is_virtual(sql):
        raise TableError(name, "is a virtual table; track the ordinary table that it indexes")


def _is_internal(name: str) -> bool:
    folded = ascii_lower(name)
    return folded.startswith(("sqlite_", OWN_PREFIX)) or folded in _OWN_NAMES


def _is_virtual(sql: str) -> bool:
    return re.match(r"\s*CREATE\s+VIRTUAL\b", sql, re.IGNORECASE) is not None


def _is_shadow(conn: sqlite3.Connection, name: str) -> bool:
    found = conn.execute(
        "SELECT type FROM pragma_table_list WHERE schema = 'main' AND name = ?", (name,)
    ).fetchone()
    return found is not None and found[0] == "shadow"


def _is_type_name(declared: str) -> bool:
    """True for a type that is safe to write into DDL as it is, and for none."""
    if not _DECLARED.fullmatch(declared):
        return False
    return _NO_TYPE_WORDS.isdisjoint(declared.partition("(")[0].upper().split())


def _literal(default: str | None) -> str | None:
    """The default when it is a literal that may travel; an expression stays in its own file."""
    if default is None:
        return None
    text = default.strip()
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    # SQLite takes "text" in double quotes as a string where it is no name.
    if re.fullmatch(r'"[^"]*"', text):
        text = "'" + text[1:-1].replace("'", "''") + "'"
    return text if _LITERAL.fullmatch(text) else None


def _foreign_keys(conn: sqlite3.Connection, name: str, stored: Set[str]) -> tuple[ForeignKey, ...]:
    """Those over stored columns: generated ones do not travel."""
    rows = conn.execute(
        'SELECT id, "table", "from", "to", on_update, on_delete FROM pragma_foreign_key_list(?)'
        " ORDER BY id DESC, seq",
        (name,),
    ).fetchall()
    found = []
    for number in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == number]
        parent = mine[0][1]
        theirs = [row[3] for row in mine]
        if None in theirs:
            keys = conn.execute(
                "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (parent,)
            ).fetchall()
            theirs = [key[0] for key in keys]
        if len(theirs) != len(mine):
            continue  # refers to a table or a key that does not exist: it constrains nothing
        foreign_key = ForeignKey(
            tuple(row[2] for row in mine), parent, tuple(theirs), mine[0][5], mine[0][4]
        )
        if {ascii_lower(column) for column in foreign_key.columns} <= stored:
            found.append(foreign_key)
    return tuple(found)


def _indexes(conn: sqlite3.Connection, name: str, stored: Set[str]) -> tuple[Index, ...]:
    """Plain ones over stored columns. A name that Postgres would cut becomes another."""
    found = []
    for index, unique, origin, partial in conn.execute(
        'SELECT name, "unique", origin, partial FROM pragma_index_list(?) ORDER BY seq DESC',
        (name,),
    ).fetchall():
        if origin == "pk" or partial:
            continue
        over = conn.execute(
            "SELECT name, cid, coll FROM pragma_index_xinfo(?) WHERE key = 1 ORDER BY seqno",
            (index,),
        ).fetchall()
        if all(
            cid >= 0 and collation == "BINARY" and ascii_lower(column) in stored
            for column, cid, collation in over
        ):
            if len(index.encode()) > NAME_BYTES_MAX:
                index = f"index_{zlib.crc32(index.encode()):08x}"
            found.append(Index(index, tuple(column for column, _, _ in over), bool(unique)))
    return tuple(found)


def _check_key(conn: sqlite3.Connection, table: Table) -> None:
    key = table.key
    if not key:
        raise TableError(
            table.name,
            "has no primary key, so its rows cannot be told apart; add one, then track it",
        )
    if len(key) > KEY_COLUMNS_MAX:
        raise TableError(table.name, f"has over {KEY_COLUMNS_MAX} key columns")
    for column in key:
        if column.type in MERGING:
            raise TableError(
                table.name,
                f"key column {column.name!r} is {column.declared}: a row is found by its key, so"
                " a key cannot merge; use INTEGER, TEXT or BLOB",
            )
        if column.type.partition("(")[0] in _REFUSED_KEY_TYPES:
            raise TableError(
                table.name,
                f"key column {column.name!r} is {column.declared}: such values change between"
                " databases; use INTEGER, TEXT or BLOB",
            )
    collations = conn.execute(
        "SELECT x.name, x.coll FROM pragma_index_list(?) AS i, pragma_index_xinfo(i.name) AS x"
        " WHERE i.origin = 'pk' AND x.key = 1",
        (table.name,),
    ).fetchall()
    for name, collation in collations:
        if collation != "BINARY":
            raise TableError(
                table.name,
                f"key column {name!r} compares by {collation}, so other replicas could hold two"
                " rows for one; declare it without COLLATE",
            )


def _check_names(table: Table) -> None:
    for name in (table.name, *(column.name for column in table.columns)):
        if len(name.encode()) > NAME_BYTES_MAX or "\0" in name or not name:
            raise TableError(
                table.name,
                f"the name {name!r} does not fit Postgres's {NAME_BYTES_MAX} bytes; rename it",
            )
    for column in table.columns:
        if column.name in _POSTGRES_COLUMNS:
            raise TableError(
                table.name,
                f"Postgres keeps the column name {column.name!r} for itself; rename the column",
            )
    if len(table.columns) > COLUMNS_MAX:
        raise TableError(table.name, f"has over {COLUMNS_MAX} columns, which Postgres cannot hold")


def _check_consistent(table: Table) -> None:
    names = {ascii_lower(column.name) for column in table.columns}
    if _is_internal(table.name):
        raise ValueError(f"{table.name!r} is a name of bookkeeping")
    if len(names) != len(table.columns) or not table.key:
        raise ValueError("columns repeat a name, or no column is a key")
    if len({column.id for column in table.columns}) != len(table.columns):
        raise ValueError("columns repeat an id")
    if [column.key for column in table.key] != list(range(1, len(table.key) + 1)):
        raise ValueError("the key's columns are not numbered from 1")
    for over in (*(f.columns for f in table.foreign_keys), *(i.columns for i in table.indexes)):
        if not {ascii_lower(column) for column in over} <= names or not over:
            raise ValueError("a constraint names a column that is not there")
    if any(len(f.columns) != len(f.parent_columns) for f in table.foreign_keys):
        raise ValueError("a foreign key's sides differ in length")


def _column(name: object, number: object, declared: object, kind: object, *rest: object) -> Column:
    notnull, default, key = rest
    if not isinstance(declared, str) or not _is_type_name(declared):
        raise ValueError(f"type {declared!r} is not a plain type name")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f"logical type {kind!r} is not known")
    if default is not None and (not isinstance(default, str) or not _LITERAL.fullmatch(default)):
        raise ValueError(f"default {default!r} is not a literal")
    return Column(
        _name(name),
        _integer(number, 1, COLUMN_ID_MAX),
        declared,
        kind,
        _boolean(notnull),
        default,
        _integer(key, 0, KEY_COLUMNS_MAX),
    )


def _name(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value
        or "\0" in value
        or len(value.encode()) > NAME_BYTES_MAX
    ):
        raise ValueError(f"{value!r} is not a name")
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError("names are not a list")
    return tuple(map(_name, value))


def _action(value: object) -> str:
    if value not in ACTIONS:
        raise ValueError(f"{value!r} is not a foreign key action")
    return str(value)


def _integer(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is not between {least} and {most}")
    return value


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise TypeError(f"{value!r} is not a boolean")
    return value
