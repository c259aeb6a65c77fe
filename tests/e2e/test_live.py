"""Live queries beside a relay: what other files and backends write is told, and whose it was."""

import asyncio
from pathlib import Path

from tests.e2e.backends import shared

TODO = ("CREATE TABLE todo (id text PRIMARY KEY, title text, done boolean NOT NULL DEFAULT false)",)
TITLES = "SELECT title FROM todo ORDER BY id"


def test_what_backends_and_other_files_write_is_told_at_once_with_its_origin(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with shared(postgres_url, tmp_path, *TODO) as here:
            one, two, _ = here.clients
            rows, changes = one.db.watch(TITLES), one.db.watch_changes()
            assert await anext(rows) == []
            token = (await anext(changes)).token

            async def told() -> list[tuple[str, object, str]]:
                await anext(rows)
                return [(c.kind, c.key, c.origin) for c in await anext(changes)]

            await here.backend.execute("INSERT INTO todo VALUES ('a', 'by the backend')")
            assert await told() == [("inserted", "a", "backend")]
            await here.settle()
            await two.execute("UPDATE todo SET title = 'by a file' WHERE id = 'a'")
            assert await told() == [("updated", "a", "replica")]
            await one.execute("INSERT INTO todo (id, title) VALUES ('b', 'by itself')")
            assert await told() == [("inserted", "b", "here")]
            await here.settle()
            async with one.away():
                await two.execute("DELETE FROM todo WHERE id = 'a'")
                await here.backend.execute("UPDATE todo SET done = true WHERE id = 'b'")
                await one.execute("UPDATE todo SET title = 'offline' WHERE id = 'b'")
                assert await told() == [("updated", "b", "here")]
            await here.settle()
            since = await one.db.changes(after=token)
            assert {(c.kind, c.key, c.origin, *sorted(c.columns)) for c in since} == {
                ("inserted", "b", "here", "done", "title"),
                ("updated", "b", "backend", "done"),
                ("deleted", "a", "replica"),
            }

    asyncio.run(scenario())
