"""Sequences behind integer keys: they go past the keys that files hand out, so that the next one
that a backend takes is free.

A file takes the next free integer, as SQLite does, and Postgres's sequence knows nothing of it. It
is only ever moved forward, by taking numbers from it: set to a value, it could go behind numbers
that a backend takes at the same moment.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from reunite.schema import Table
from reunite_transport.relay.postgres_bookkeeping import Connection, Reader

# A key that is further ahead is no file's next one, and the sequence is not moved for it.
GAP_MAX: Final = 10_000

# Of the key alone, counting up by one, and where this role may take numbers.
_SEQUENCES: Final = """
SELECT t.name, format('%I.%I', sn.nspname, s.relname) AS sequence
FROM unnest($2::text[], $3::text[]) AS t (name, key)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = $1
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.name
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = t.key
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.refobjid = c.oid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i')
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = s.oid AND q.seqincrement = 1
WHERE pg_catalog.has_sequence_privilege(s.oid, 'USAGE')
"""
_ADVANCE: Final = """
SELECT count(pg_catalog.nextval(at.sequence)) FROM (
    SELECT $1::text::regclass AS sequence,
        coalesce(pg_catalog.pg_sequence_last_value($1::text::regclass), 0) AS last
) AS at, pg_catalog.generate_series(at.last + 1, (
    SELECT max(given.key) FROM pg_catalog.unnest($2::bigint[]) AS given (key)
    WHERE given.key <= at.last + $3::bigint
))
"""


async def read_sequences(reader: Reader, schema: str, tables: Iterable[Table]) -> dict[int, str]:
    """The sequences of keys that are one integer, by table id, as SQL names them."""
    by_name = {
        table.name: table
        for table in tables
        if len(table.key) == 1 and table.key[0].type == "integer"
    }
    rows = await reader.fetch(
        _SEQUENCES, schema, list(by_name), [table.key[0].name for table in by_name.values()]
    )
    return {by_name[row["name"]].id: row["sequence"] for row in rows}


async def advance(connection: Connection, sequence: str, keys: Sequence[int]) -> None:
    """Let a sequence go past those of these keys that are near."""
    await connection.execute(_ADVANCE, sequence, keys, GAP_MAX)
