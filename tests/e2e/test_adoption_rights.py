"""A relay with an ordinary role of its own: the rights that it needs, and what it says without one
of them."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from reunite.errors import ReuniteError
from reunite_transport.relay.postgres_store import open_postgres
from tests.conftest import REPOSITORY
from tests.e2e.backends import (
    Connection,
    health,
    shared,
    until_told,
)
from tests.e2e.processes import reunite
from tests.e2e.world import read

TABLE_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRIGGER")
TABLES = (
    "CREATE TABLE place (id integer PRIMARY KEY, name varchar(20))",
    "CREATE TABLE visit (id serial PRIMARY KEY, place integer REFERENCES place (id), note text)",
    "INSERT INTO place VALUES (1, 'here'), (2, 'there')",
    "INSERT INTO visit (place, note) VALUES (1, 'first')",
)


@dataclass(frozen=True)
class Ordinary:
    """A role that owns nothing and has what the README says, and no more. `owner` is the owner's
    connection."""

    url: str
    name: str
    database: str
    owner: Connection

    def rights(self) -> dict[str, str]:
        """What each of its rights is on."""
        on_tables = dict.fromkeys(TABLE_RIGHTS, "TABLE place, visit")
        return {
            "CONNECT": f"DATABASE {self.database}",
            "USAGE": "SCHEMA public",
            "CREATE": "SCHEMA public",
            **on_tables,
        }

    async def grant(self, right: str) -> None:
        """Let it have a right."""
        await self.owner.execute(f"GRANT {right} ON {self.rights()[right]} TO {self.name}")

    async def revoke(self, right: str) -> None:
        """Take a right away."""
        await self.owner.execute(f"REVOKE {right} ON {self.rights()[right]} FROM {self.name}")


@asynccontextmanager
async def ordinary(url: str) -> AsyncIterator[Ordinary]:
    """Tables of an owner, and a role for a relay beside it."""
    name = f"relay_{uuid4().hex}"
    parts = urlsplit(url)
    owner: Connection = await asyncpg.connect(url)
    try:
        for statement in TABLES:
            await owner.execute(statement)
        role = Ordinary(
            parts._replace(netloc=f"{name}@").geturl(), name, parts.path.removeprefix("/"), owner
        )
        await owner.execute(f"CREATE ROLE {name} LOGIN")
        try:
            await owner.execute(f"REVOKE ALL ON DATABASE {role.database} FROM PUBLIC")
            await owner.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            for right in role.rights():
                await role.grant(right)
            yield role
        finally:
            await owner.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")
    finally:
        await owner.close()


async def taken_in(url: str) -> None:
    """Open the realm and take the tables in, as a relay does when it starts."""
    store = await open_postgres(url)
    try:
        await store.track(["place", "visit"])
    finally:
        await store.close()


def test_the_readme_documents_these_rights() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = text[text.index("GRANT CONNECT") :]
    granted = re.findall(r"^GRANT (.+) ON", block[: block.index("```")], re.MULTILINE)
    assert granted == ["CONNECT", "USAGE, CREATE", ", ".join(TABLE_RIGHTS)]


def test_the_documented_rights_are_enough_and_each_is_asked_for_by_name(either_url: str) -> None:
    async def scenario() -> None:
        async with ordinary(either_url) as role:
            for right in role.rights():
                await role.revoke(right)
                with pytest.raises(ReuniteError) as caught:
                    await taken_in(role.url)
                said = str(caught.value)
                assert "GRANT" in said, right
                assert right in said
                assert all(other not in said for other in role.rights() if other != right), said
                await role.grant(right)
            await taken_in(role.url)

    asyncio.run(scenario())


def test_a_relay_of_an_ordinary_role_serves_and_follows_tables_of_another(
    either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with ordinary(either_url) as role:
            async with shared(role.url, tmp_path, backend_url=either_url) as here:
                await here.backend.execute("INSERT INTO place VALUES (3, 'far')")
                await here.clients[0].execute("UPDATE place SET name = 'near' WHERE id = 1")
                await here.clients[1].execute("INSERT INTO visit VALUES (2, 2, 'second')")
                await here.settle()
                names = "SELECT name FROM place ORDER BY id"
                assert here.everywhere(names) == [("near",), ("there",), ("far",)]
                # A migration of the owner.
                await here.backend.execute(
                    "ALTER TABLE visit ADD COLUMN stars integer NOT NULL DEFAULT 3"
                )
                await here.until_all_have("visit", "stars")
                await here.backend.execute("UPDATE visit SET stars = 5 WHERE id = 1")
                await here.settle()
                assert here.everywhere("SELECT stars FROM visit ORDER BY id") == [(5,), (3,)]
                await here.backend.execute("TRUNCATE visit")
                await here.settle()
                assert here.everywhere("SELECT id FROM visit") == []
            code, said, complained = await reunite("untrack", "--postgres", role.url, "--all")
            assert (code, said) == (1, "")
            assert "only the owners of the tables" in complained
            code, _, complained = await reunite("untrack", "--postgres", either_url, "--all")
            assert (code, complained) == (0, "")

    asyncio.run(scenario())


def test_a_table_that_the_role_may_not_use_any_more_is_told_and_others_go_on(
    either_url: str, tmp_path: Path
) -> None:
    """As after a migration that made the table anew and forgot the rights."""

    async def scenario() -> None:
        async with (
            ordinary(either_url) as role,
            shared(role.url, tmp_path, backend_url=either_url) as here,
        ):
            await here.backend.execute(
                "DROP TABLE visit; CREATE TABLE visit (id integer PRIMARY KEY, place integer,"
                " note text)"
            )
            told = await until_told(here.relays[0], "visit")
            assert "GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON public.visit" in told
            assert (await health(here.relays[0]))["status"] == "ok"
            await here.clients[0].execute("UPDATE place SET name = 'new' WHERE id = 1")
            await here.clients[0].sync.caught_up(30)
            await here.clients[1].sync.caught_up(30)
            assert read(here.clients[1].file, "SELECT name FROM place WHERE id = 1") == [("new",)]
            await here.backend.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON visit TO {role.name}"
            )
            for relay in here.relays:
                await until_told(relay, None)
            await here.backend.execute("INSERT INTO visit VALUES (7, 1, 'anew')")
            await here.settle()
            assert (7, 1, "anew") in here.everywhere("SELECT id, place, note FROM visit")
            await here.backend.execute("TRUNCATE visit")

    asyncio.run(scenario())


def test_with_create_on_the_database_the_role_makes_the_types_that_merge(
    either_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with ordinary(either_url) as role:
            await role.owner.execute(f"GRANT CREATE ON DATABASE {role.database} TO {role.name}")
            async with shared(role.url, tmp_path, backend_url=either_url) as here:
                # The owner of the tables uses what is the relay's.
                await here.backend.execute(
                    "ALTER TABLE place ADD COLUMN likes reunite.counter NOT NULL DEFAULT 0"
                )
                await here.until_all_have("place", "likes")
                add = "UPDATE place SET likes = likes + 1 WHERE id = 1"
                async with here.clients[0].away(), here.clients[1].away():
                    for client in here.clients:
                        await client.execute(add)
                    await here.backend.execute(add)
                await here.settle()
                assert here.everywhere("SELECT likes FROM place ORDER BY id") == [(4,), (0,)]

    asyncio.run(scenario())
