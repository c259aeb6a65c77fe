"""What an outside observer reads in files: rows, documents, queues. Nothing is changed."""

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias

from reunite.cells import KINDS
from reunite.cells.register import Value
from reunite.cells.yjs import Yjs
from reunite.document import KIND_MASK, decode
from reunite.keys import key_values, pack_key
from reunite.schema import Table, quoted

RowName: TypeAlias = tuple[str, bytes]
Documents: TypeAlias = Mapping[RowName, bytes]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a client's file stands."""

    seq: int
    token: bytes
    loaded: bool
    queued: int
    waiting: int
    blocked: int


def standing(conn: sqlite3.Connection) -> Standing:
    """Read it in one statement, so of one moment."""
    row = conn.execute(
        "SELECT (SELECT value FROM _reunite_meta WHERE name = 'seq'),"
        " (SELECT value FROM _reunite_meta WHERE name = 'token'),"
        " (SELECT value FROM _reunite_meta WHERE name = 'loaded')"
        " AND NOT (SELECT value FROM _reunite_meta WHERE name = 'reloading'),"
        " (SELECT count(*) FROM _reunite_changesets) + (SELECT count(*) FROM _reunite_log),"
        " (SELECT count(*) FROM _reunite_inbox),"
        " (SELECT count(*) FROM _reunite_rows WHERE mark = 'blocked')"
    ).fetchone()
    return Standing(row[0], row[1], bool(row[2]), *row[3:])


def bases(conn: sqlite3.Connection) -> Documents:
    """The documents that the relay stated to a client."""
    keys = {
        table: (name, len(conn.execute(_KEYS, (name,)).fetchall()))
        for table, name in conn.execute("SELECT id, name FROM _reunite_tables").fetchall()
    }
    found = {}
    for table, key, base in conn.execute(
        "SELECT tbl, key, base FROM _reunite_rows WHERE base IS NOT NULL"
    ):
        name, parts = keys[table]
        found[name, pack_key(key_values(key, parts or 1))] = base
    return found


_KEYS = "SELECT 1 FROM pragma_table_info(?) WHERE pk > 0"


def stated(conn: sqlite3.Connection) -> Documents:
    """The documents of a relay's store."""
    return {
        (name, bytes(key)): bytes(document)
        for name, key, document in conn.execute(
            "SELECT t.name, d.key, d.document FROM _reunite_documents AS d"
            " JOIN _reunite_tables AS t ON t.id = d.tbl"
        )
    }


# Documents of up to so many bytes are remembered in their normal form, and so many of them.
_REMEMBERED_BYTES_MAX: Final = 4_000
_REMEMBERED_MAX: Final = 50_000


def normal(document: bytes) -> object:
    """A document in a form that equal ones share. Yjs writes one state in several ways."""
    if len(document) > _REMEMBERED_BYTES_MAX:
        return _normal.__wrapped__(document)
    return _normal(document)


@lru_cache(maxsize=_REMEMBERED_MAX)
def _normal(document: bytes) -> object:
    found = decode(document)
    if not any(isinstance(KINDS.get(key & KIND_MASK), Yjs) for key in found.cells):
        return document
    cells = []
    for key, (stamp, value) in sorted(found.cells.items()):
        kind = KINDS.get(key & KIND_MASK)
        said: object = value
        if isinstance(kind, Yjs):
            assert isinstance(value, bytes)
            said = kind.value(value), tuple(sorted(kind.state(value).items()))
        cells.append((key, stamp, said))
    return (*found[:3], tuple(cells))


def has_table(conn: sqlite3.Connection, table: str) -> bool:
    """Whether a file has a table yet."""
    found = conn.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).fetchone()
    return found is not None


def shape_is_known(conn: sqlite3.Connection) -> bool:
    """Whether the engine has looked at a file since its schema changed."""
    (seen,) = conn.execute(
        "SELECT value FROM _reunite_meta WHERE name = 'schema_version'"
    ).fetchone()
    (now,) = conn.execute("PRAGMA schema_version").fetchone()
    return bool(seen == now)


def is_captured(conn: sqlite3.Connection, table: str) -> bool:
    """Whether a table has the triggers that note when it is written."""
    found = conn.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
        " AND name GLOB '_reunite_*'",
        (table,),
    ).fetchone()
    return found is not None


def shared(conn: sqlite3.Connection, table: Table) -> Table:
    """The table with those of its columns that a file has."""
    found = conn.execute("SELECT name FROM pragma_table_info(?)", (table.name,)).fetchall()
    names = {name for (name,) in found}
    return replace(table, columns=tuple(c for c in table.columns if c.name in names))


def rows(conn: sqlite3.Connection, table: Table) -> dict[tuple[Value, ...], tuple[Value, ...]]:
    """A table's rows by key."""
    names = ", ".join(quoted(column.name) for column in (*table.key, *table.cells))
    parts = len(table.key)
    return {
        tuple(row[:parts]): tuple(row[parts:])
        for row in conn.execute(f"SELECT {names} FROM {quoted(table.name)}")
    }


def count_rows(conn: sqlite3.Connection) -> int:
    """How many rows a client has, the dead ones too."""
    (count,) = conn.execute("SELECT count(*) FROM _reunite_rows").fetchone()
    return int(count)


def fingerprint(conn: sqlite3.Connection) -> int:
    """A short name for all that the relay stated to a client, in this process only."""
    stated = conn.execute(
        "SELECT t.name, r.key, r.base FROM _reunite_rows AS r JOIN _reunite_tables AS t"
        " ON t.id = r.tbl WHERE r.base IS NOT NULL"
    )
    found = frozenset(stated)
    name = hash(found)
    if name not in _fingerprints:
        if len(_fingerprints) >= _FINGERPRINTS_MAX:
            _fingerprints.clear()
        _fingerprints[name] = hash(frozenset((t, key, normal(base)) for t, key, base in found))
    return _fingerprints[name]


# Of all that was seen lately, by its bytes: several clients hold the same.
_FINGERPRINTS_MAX: Final = 1_000
_fingerprints: dict[int, int] = {}


def is_marked(conn: sqlite3.Connection) -> bool:
    """Whether any row of a client is blocked, or has what could not leave its file."""
    found = conn.execute("SELECT 1 FROM _reunite_rows WHERE mark IS NOT NULL LIMIT 1").fetchone()
    return found is not None


def blocked_tables(conn: sqlite3.Connection) -> set[str]:
    """The tables in which a client has rows blocked."""
    return {
        name
        for (name,) in conn.execute(
            "SELECT DISTINCT t.name FROM _reunite_rows AS r JOIN _reunite_tables AS t"
            " ON t.id = r.tbl WHERE r.mark = 'blocked'"
        )
    }


def tables_with_rules(conn: sqlite3.Connection) -> set[str]:
    """The tables that have rules which do not travel with a schema: CHECK, triggers that abort,
    UNIQUE over expressions, over some rows, or by another collation."""
    ruled = {
        name
        for name, sql in conn.execute(
            "SELECT tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        )
        if _RULE.search(sql)
    }
    unique = conn.execute(
        "SELECT m.name, i.partial, x.cid, x.coll FROM sqlite_master AS m"
        " JOIN pragma_index_list(m.name) AS i JOIN pragma_index_xinfo(i.name) AS x"
        " WHERE m.type = 'table' AND i.\"unique\" AND x.key"
    )
    return ruled | {
        name for name, partial, place, coll in unique if partial or place == -2 or coll != "BINARY"
    }


_RULE = re.compile(r"\bCHECK\s*\(|\bRAISE\s*\(", re.IGNORECASE)


def imaged(conn: sqlite3.Connection, table: Table) -> set[tuple[Value, ...]]:
    """The keys of a client's rows that the app shows otherwise than their documents say."""
    return {
        tuple(key_values(key, len(table.key)))
        for (key,) in conn.execute(
            "SELECT r.key FROM _reunite_rows AS r JOIN _reunite_tables AS t ON t.id = r.tbl"
            " WHERE t.name = ? AND r.image IS NOT NULL",
            (table.name,),
        )
    }


def living(documents: Documents) -> set[RowName]:
    """The rows that are alive by their documents."""
    return {name for name, document in documents.items() if decode(document).alive}


def elements(conn: sqlite3.Connection, table: str) -> frozenset[str]:
    """The ids in the append-only lists."""
    return frozenset(row[0] for row in conn.execute(f"SELECT id FROM {quoted(table)}"))


def rejected(conn: sqlite3.Connection) -> Sequence[tuple[str, Value, str, str]]:
    """What a client could not sync: (table, key, reason, values)."""
    return conn.execute(
        'SELECT "table", key, reason, "values" FROM reunite_rejected ORDER BY id'
    ).fetchall()
