"""Plain queries on a realm's tables, as any program with a Postgres client would make them."""

import asyncpg

from reunite.cells.register import Value
from reunite_transport.relay.postgres_errors import translated


async def fetch_rows(url: str, query: str) -> list[tuple[Value, ...]]:
    """The rows of one query, on a connection of its own. Raises StoreError."""
    with translated():
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row.values()) for row in await connection.fetch(query)]
        finally:
            await connection.close()
