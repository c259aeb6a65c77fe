"""What is read of a realm on Postgres outside commits: its head, pages of the feed, what was
overwritten. Each statement says in its own snapshot whether the history is the one remembered.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg

from reunite_transport.messages import Section
from reunite_transport.relay.store import BACKLOG_MAX

# Whether the head `h` is in the history that a memory has seen: its commit ($1, $2) is there, and
# the registry has grown as often ($3).
KEPT: Final = """
(h.registry >= $3::bigint AND ($1::bigint = 0 OR EXISTS (
    SELECT FROM {own.commits} AS c WHERE c.seq = $1 AND c.token = $2::bytea AND c.seq <= h.seq
)))"""

LOOK: Final = f"""
SELECT h.seq, h.token, {KEPT} AS kept,
    (SELECT count(*) FROM (SELECT FROM {{own.captured}} LIMIT {BACKLOG_MAX}) AS c) AS waiting,
    (SELECT extract(epoch FROM clock_timestamp() - at)::float8
        FROM {{own.captured}} ORDER BY id LIMIT 1) AS lag
FROM {{own.head}} AS h
"""

# One row more than wanted tells whether there is more. The first row always comes, whatever its
# size. The head is of the same snapshot.
PAGE: Final = f"""
SELECT h.seq, h.token, {KEPT} AS kept, r.tbl, r.key, r.seq AS row_seq, r.document, r.found
FROM {{own.head}} AS h LEFT JOIN (
    SELECT f.*, count(*) OVER () AS found, row_number() OVER feed AS n,
        sum(octet_length(f.key) + octet_length(f.document)) OVER feed AS total
    FROM (
        SELECT d.tbl, d.key, d.seq, d.document FROM {{own.documents}} AS d
        WHERE (d.seq, d.tbl, d.key) > ($4, $5, $6)
        ORDER BY d.seq, d.tbl, d.key LIMIT $7::bigint + 1
    ) AS f
    WINDOW feed AS (ORDER BY f.seq, f.tbl, f.key ROWS UNBOUNDED PRECEDING)
) AS r ON r.n = 1 OR (r.n <= $7::bigint AND r.total <= $8::bigint)
ORDER BY r.seq, r.tbl, r.key
"""

# One row without a document where there is nothing.
LOSSES: Final = f"""
SELECT h.seq, h.token, {KEPT} AS kept, r.replaced_by, r.document
FROM {{own.head}} AS h LEFT JOIN {{own.history}} AS r ON r.tbl = $4 AND r.key = $5
ORDER BY r.place DESC
"""


def section(table: int, rows: Sequence[asyncpg.Record]) -> Section:
    """A run of the feed's rows, of one table."""
    return Section(table, tuple(row["key"] for row in rows), tuple(row["document"] for row in rows))
