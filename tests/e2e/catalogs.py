"""What a Postgres database consists of, as its catalogs say, to be compared."""

from typing import Any

import asyncpg

from reunite.schema import quoted

_OURS = "NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
# `relhastriggers` is left out: Postgres sets it for good.
QUERIES = {
    "schemas": "SELECT oid, nspname, nspowner, nspacl::text FROM pg_namespace",
    "relations": "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relowner, c.relacl::text,"
    " c.reloptions, c.relrowsecurity, c.relreplident, c.relnatts FROM pg_class AS c"
    " JOIN pg_namespace AS n ON n.oid = c.relnamespace",
    "columns": "SELECT a.attrelid, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),"
    " a.attnotnull, a.attidentity, a.attgenerated, a.attacl::text, pg_get_expr(d.adbin, d.adrelid)"
    " FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
    " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum",
    "triggers": "SELECT t.oid, t.tgname, t.tgenabled, pg_get_triggerdef(t.oid) FROM pg_trigger AS t"
    " JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace",
    "functions": "SELECT p.oid, p.proname, p.prosrc FROM pg_proc AS p"
    " JOIN pg_namespace AS n ON n.oid = p.pronamespace",
    "types": "SELECT t.oid, t.typname, t.typtype FROM pg_type AS t"
    " JOIN pg_namespace AS n ON n.oid = t.typnamespace",
    "constraints": "SELECT c.oid, c.conname, c.convalidated, pg_get_constraintdef(c.oid)"
    " FROM pg_constraint AS c JOIN pg_namespace AS n ON n.oid = c.connamespace",
    "indexes": "SELECT i.indexrelid, i.indisvalid, pg_get_indexdef(i.indexrelid)"
    " FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid"
    " JOIN pg_namespace AS n ON n.oid = c.relnamespace",
    "comments": "SELECT d.objoid, d.objsubid, d.description FROM pg_description AS d"
    " JOIN pg_class AS c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass"
    " JOIN pg_namespace AS n ON n.oid = c.relnamespace",
}


async def catalogs(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, list[Any]]:
    """All objects of a database that are not Postgres's own, by kind, and how many rows each table
    has."""
    found: dict[str, list[Any]] = {}
    for kind, query in QUERIES.items():
        rows = await connection.fetch(f"{query} WHERE nspname {_OURS} ORDER BY 1, 2, 3")
        found[kind] = list(map(tuple, rows))
    found["rows"] = [
        (
            schema,
            name,
            await connection.fetchval(f"SELECT count(*) FROM {quoted(schema)}.{quoted(name)}"),
        )
        for _, schema, name, kind, *_ in found["relations"]
        if kind == b"r"
    ]
    return found
