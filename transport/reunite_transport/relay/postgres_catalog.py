"""What Postgres's catalogs say of the tables of one schema, whoever made them: plain facts, read in
one query a kind and for all tables at once, by any role that can connect.

Knows nothing of SQLite or of documents: `postgres_reflect` makes descriptions of these facts, and
`postgres_columns` the SQL that writes such columns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from reunite.sqlalchemy_types import DOMAIN_SCHEMA
from reunite.types import MERGING
from reunite_transport.relay.postgres_bookkeeping import Reader
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.postgres_schema import domain_type

_MERGING_BY_DOMAIN: Final = {domain_type(kind).rpartition(".")[2]: kind for kind in MERGING}


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, or what may be taken for one. `kind` and `persistence` are the catalog's letters
    (relkind, relpersistence); `grant` is the statement that this role lacks to read, write and
    capture all of it, None where it may."""

    oid: int
    name: str
    kind: str
    persistence: str
    partition: bool
    inherits: bool
    extension: str | None
    hides_rows: bool
    grant: str | None


@dataclass(frozen=True, slots=True)
class RealType:
    """A column's type without its domains. `name` is the base type's own, `qualified` that with its
    schema, for SQL; `said` is the declared type in words; `modifier` is the catalog's typmod with
    the domains' bounds; `merging` is the logical type of the domain that merges, if it is of one;
    `folds` says that it takes different texts for equal.
    """

    name: str
    qualified: str
    said: str
    modifier: int
    builtin: bool
    array: bool
    enum: bool
    composite: bool
    merging: str | None
    folds: bool

    @property
    def has_own_json(self) -> bool:
        """True where JSON may have another form of it than its text: as composites have, and what
        an extension brings along."""
        foreign = not (self.builtin or self.enum or self.name == "citext")
        return not self.array and (self.composite or foreign)


@dataclass(frozen=True, slots=True)
class RealColumn:
    """A column as it stands in Postgres. `identity` is "a" (always), "d" (by default) or "";
    `default` is an expression as Postgres writes it out again."""

    table: str
    name: str
    type: RealType
    notnull: bool
    generated: bool
    identity: str
    default: str | None


@dataclass(frozen=True, slots=True)
class PrimaryKey:
    """A primary key, its columns in key order. `temporal`: WITHOUT OVERLAPS."""

    table: str
    columns: tuple[str, ...]
    deferrable: bool
    temporal: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key to a table of the same schema; the actions are the catalog's letters."""

    table: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str
    on_update: str


@dataclass(frozen=True, slots=True)
class PlainIndex:
    """An index over whole columns, all rows and, if unique, with every NULL like no other."""

    table: str
    name: str
    columns: tuple[str, ...]
    unique: bool


_RELATIONS: Final = """
SELECT c.oid, c.relname::text AS name, c.relkind::text AS kind,
    c.relpersistence::text AS persistence, c.relispartition AS partition,
    EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i WHERE c.oid IN (i.inhrelid, i.inhparent)
    ) AS inherits,
    (
        SELECT e.extname::text FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
            AND d.refclassid = 'pg_catalog.pg_extension'::regclass
        LIMIT 1
    ) AS extension,
    pg_catalog.row_security_active(c.oid) AS hides_rows,
    (
        SELECT pg_catalog.format(
            'GRANT %s ON %I.%I TO %I',
            string_agg(p.name, ', ' ORDER BY p.place), n.nspname, c.relname, current_user
        )
        FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRIGGER}'::text[]) WITH ORDINALITY
            AS p (name, place)
        WHERE NOT pg_catalog.has_table_privilege(c.oid, p.name) HAVING count(*) > 0
    ) AS "grant"
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY c.oid
"""

# `chain` follows each column's type through its domains to the base type.
_COLUMNS: Final = """
WITH RECURSIVE own AS (
    SELECT c.relname, a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull,
        a.attidentity, a.attgenerated, a.attcollation
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
    WHERE n.nspname = $1 AND c.relname::text = ANY ($2::text[]) AND c.relkind = 'r'
        AND a.attnum > 0 AND NOT a.attisdropped
), chain AS (
    SELECT DISTINCT atttypid AS declared, atttypid AS base, 0 AS depth, -1 AS modifier,
        false AS required, NULL::text COLLATE "C" AS made, NULL::text COLLATE "C" AS merging
    FROM own
    UNION ALL
    SELECT s.declared, t.typbasetype, s.depth + 1, greatest(s.modifier, t.typtypmod),
        s.required OR t.typnotnull,
        coalesce(s.made, pg_catalog.pg_get_expr(t.typdefaultbin, 0)),
        coalesce(s.merging, CASE WHEN tn.nspname = $3 THEN t.typname::text END)
    FROM chain AS s
    JOIN pg_catalog.pg_type AS t ON t.oid = s.base AND t.typtype = 'd'
    JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.typnamespace
), resolved AS (
    SELECT DISTINCT ON (declared) declared, base, modifier, required, made, merging
    FROM chain ORDER BY declared, depth DESC
)
SELECT o.relname::text AS table, o.attname::text AS column, b.typname::text AS type,
    pg_catalog.quote_ident(bn.nspname) || '.' || pg_catalog.quote_ident(b.typname) AS qualified,
    pg_catalog.format_type(o.atttypid, o.atttypmod) AS said,
    greatest(o.atttypmod, r.modifier) AS modifier,
    bn.nspname = 'pg_catalog' AS builtin, b.typcategory = 'A' AS array, b.typtype = 'e' AS enum,
    b.typtype = 'c' AS composite,
    r.merging, NOT coalesce(l.collisdeterministic, true) AS folds,
    o.attnotnull OR r.required AS required, o.attgenerated <> '' AS generated,
    o.attidentity::text AS identity,
    CASE WHEN o.attgenerated = ''
        THEN coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), r.made)
    END AS made
FROM own AS o
JOIN resolved AS r ON r.declared = o.atttypid
JOIN pg_catalog.pg_type AS b ON b.oid = r.base
JOIN pg_catalog.pg_namespace AS bn ON bn.oid = b.typnamespace
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = o.attrelid AND d.adnum = o.attnum
LEFT JOIN pg_catalog.pg_collation AS l ON l.oid = o.attcollation
ORDER BY o.attrelid, o.attnum
"""

# What newer versions of Postgres say beside is asked for by name, as older ones have no such
# column: an absent one is NULL.
_KEYS: Final = """
SELECT c.relname::text AS table, k.condeferrable AS deferrable,
    coalesce((to_jsonb(k) ->> 'conperiod')::boolean, false) AS temporal,
    ARRAY(
        SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (number, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.number
        ORDER BY u.place
    ) AS columns
FROM pg_catalog.pg_constraint AS k
JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname::text = ANY ($2::text[]) AND k.contype = 'p'
"""

_REFERENCES: Final = """
SELECT c.relname::text AS table, p.relname::text AS parent,
    k.confdeltype::text AS on_delete, k.confupdtype::text AS on_update,
    ARRAY(
        SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (number, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.number
        ORDER BY u.place
    ) AS columns,
    ARRAY(
        SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u (number, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.number
        ORDER BY u.place
    ) AS parent_columns
FROM pg_catalog.pg_constraint AS k
JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class AS p ON p.oid = k.confrelid AND p.relnamespace = c.relnamespace
WHERE n.nspname = $1 AND c.relname::text = ANY ($2::text[]) AND k.contype = 'f'
    AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
ORDER BY k.oid
"""

_INDEXES: Final = """
SELECT c.relname::text AS table, x.relname::text AS name, i.indisunique AS unique,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS u (number, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = u.number
        WHERE u.place <= i.indnkeyatts ORDER BY u.place
    ) AS columns
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_am AS m ON m.oid = x.relam
WHERE n.nspname = $1 AND c.relname::text = ANY ($2::text[])
    AND NOT i.indisprimary AND NOT i.indisexclusion AND i.indisvalid
    AND i.indpred IS NULL AND i.indexprs IS NULL AND m.amname IN ('btree', 'hash')
    AND NOT coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false)
ORDER BY x.oid
"""


async def read_relations(reader: Reader, schema: str) -> list[Relation]:
    """All tables, views and the like of the schema, in order of creation."""
    with translated():
        rows = await reader.fetch(_RELATIONS, schema)
    return [
        Relation(
            oid=row["oid"],
            name=row["name"],
            kind=row["kind"],
            persistence=row["persistence"],
            partition=row["partition"],
            inherits=row["inherits"],
            extension=row["extension"],
            hides_rows=row["hides_rows"],
            grant=row["grant"],
        )
        for row in rows
    ]


async def read_columns(reader: Reader, schema: str, tables: Iterable[str]) -> list[RealColumn]:
    """The columns of the ordinary tables of these names, each table's in order."""
    with translated():
        rows = await reader.fetch(_COLUMNS, schema, list(tables), DOMAIN_SCHEMA)
    return [
        RealColumn(
            table=row["table"],
            name=row["column"],
            type=RealType(
                name=row["type"],
                qualified=row["qualified"],
                said=row["said"],
                modifier=row["modifier"],
                builtin=row["builtin"],
                array=row["array"],
                enum=row["enum"],
                composite=row["composite"],
                merging=_MERGING_BY_DOMAIN.get(row["merging"]),
                folds=row["folds"] or row["type"] == "citext",
            ),
            notnull=row["required"],
            generated=row["generated"],
            identity=row["identity"],
            default=row["made"],
        )
        for row in rows
    ]


async def read_keys(reader: Reader, schema: str, tables: Iterable[str]) -> list[PrimaryKey]:
    """The primary keys of these tables."""
    with translated():
        rows = await reader.fetch(_KEYS, schema, list(tables))
    return [
        PrimaryKey(row["table"], _names(row["columns"]), row["deferrable"], row["temporal"])
        for row in rows
    ]


async def read_references(reader: Reader, schema: str, tables: Iterable[str]) -> list[Reference]:
    """The foreign keys of these tables to tables of the same schema, in order of creation."""
    with translated():
        rows = await reader.fetch(_REFERENCES, schema, list(tables))
    return [
        Reference(
            row["table"],
            _names(row["columns"]),
            row["parent"],
            _names(row["parent_columns"]),
            row["on_delete"],
            row["on_update"],
        )
        for row in rows
    ]


async def read_indexes(reader: Reader, schema: str, tables: Iterable[str]) -> list[PlainIndex]:
    """The plain indexes of these tables but for those of primary keys, in order of creation."""
    with translated():
        rows = await reader.fetch(_INDEXES, schema, list(tables))
    return [
        PlainIndex(row["table"], row["name"], _names(row["columns"]), row["unique"]) for row in rows
    ]


def _names(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names)
