"""Alembic's migrations of a file that is tracked, closed or open, and opened again."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from alembic import autogenerate, command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from reunite import Database
from reunite.document import decode
from reunite.sqlalchemy_types import Counter, CrdtText, include_name

ENV = """
from alembic import context
from sqlalchemy import engine_from_config
from reunite.sqlalchemy_types import include_name

engine = engine_from_config(context.config.get_section("alembic"), prefix="sqlalchemy.")
with engine.connect() as connection:
    context.configure(connection=connection, render_as_batch=True, include_name=include_name)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
REVISION = """
import sqlalchemy as sa
from alembic import op
from reunite.sqlalchemy_types import Counter, CrdtText

revision = "one"
down_revision = None


def upgrade():
{upgrade}


def downgrade():
    pass
"""
ADD_COLUMN = """
op.add_column("todo", sa.Column("done", sa.Boolean(), server_default="0", nullable=False))
op.execute("UPDATE todo SET done = 1 WHERE title = 'milk'")
"""
REBUILD = """
with op.batch_alter_table("todo", recreate="always") as batch:
    batch.add_column(sa.Column("stars", Counter(), server_default="0", nullable=False))
    batch.alter_column("title", type_=sa.Text(), nullable=False)
    batch.create_unique_constraint("titles", ["title"])
"""
RENAME = """
with op.batch_alter_table("todo", recreate="always") as batch:
    batch.alter_column("title", new_column_name="name")
"""
RENAME_IN_PLACE = """
op.execute("ALTER TABLE todo RENAME COLUMN title TO name")
"""
DROP = """
with op.batch_alter_table("todo") as batch:
    batch.drop_column("body")
"""
NEW_TABLE = """
op.create_table("extra", sa.Column("id", sa.Uuid(), primary_key=True), sa.Column("n", Counter()))
op.create_index("by_n", "extra", ["n"])
"""
FAILS = """
with op.batch_alter_table("todo", recreate="always") as batch:
    batch.add_column(sa.Column("stars", sa.Integer()))
op.execute("INSERT INTO nowhere VALUES (1)")
"""


class Base(DeclarativeBase):
    pass


class Todo(Base):
    __tablename__ = "todo"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    title: Mapped[str]
    body: Mapped[str | None] = mapped_column(CrdtText)
    likes: Mapped[int] = mapped_column(Counter, default=0)


def migrations(folder: Path, upgrade: str) -> Config:
    """A folder of one migration for the file app.db, as `alembic init` would lay it out."""
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / "migrations" / "env.py").write_text(ENV)
    body = "\n".join(f"    {line}" for line in upgrade.strip().splitlines())
    (versions / "one.py").write_text(REVISION.replace("{upgrade}", body))
    config = Config()
    config.set_main_option("script_location", str(folder / "migrations"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", f"sqlite+reunite:///{folder / 'app.db'}")
    return config


async def make(db: Database) -> None:
    await db.create_all(Base.metadata)
    async with db.session() as session, session.begin():
        session.add_all([Todo(title="milk", body="two litres", likes=3), Todo(title="oats")])


async def cells(db: Database) -> list[int]:
    """How many cells each row's document has."""
    rows = await db.fetch_all("SELECT visible FROM _reunite_rows ORDER BY key")
    return [len(decode(row[0]).cells) for row in rows]


CHANGES = {
    "add column": ADD_COLUMN,
    "rebuild": REBUILD,
    "rename": RENAME,
    "rename in place": RENAME_IN_PLACE,
    "drop column": DROP,
    "new table": NEW_TABLE,
}


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("upgrade", CHANGES.values(), ids=CHANGES)
def test_a_tracked_file_is_migrated(tmp_path: Path, upgrade: str, is_open: bool) -> None:
    config = migrations(tmp_path, upgrade)
    title = "name" if upgrade in (RENAME, RENAME_IN_PLACE) else "title"

    async def after(db: Database) -> None:
        found = await db.fetch_all(f"SELECT {title} FROM todo ORDER BY {title}")
        assert [row[0] for row in found] == ["milk", "oats"]
        queued = await db.on_engine(db.replica.queued)
        await db.execute(f"UPDATE todo SET {title} = 'salt' WHERE {title} = 'oats'")
        assert await db.verify() == []
        # The table is tracked still, and what is written to it is sent.
        assert (
            await db.on_engine(db.replica.untracked)
            == [
                *(["extra"] if upgrade == NEW_TABLE else []),
                "alembic_version",
            ][::-1]
        )
        assert await db.on_engine(db.replica.queued) > queued
        assert len(await db.rejected()) == 0
        assert len(await cells(db)) == 2

    async def scenario() -> None:
        async with Database(tmp_path / "app.db") as db:
            await make(db)
            if is_open:
                await asyncio.to_thread(command.upgrade, config, "head")
                await after(db)
                return
        await asyncio.to_thread(command.upgrade, config, "head")
        async with Database(tmp_path / "app.db") as db:
            await after(db)

    asyncio.run(scenario())


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    config = migrations(tmp_path, FAILS)

    async def scenario() -> None:
        async with Database(tmp_path / "app.db") as db:
            await make(db)
            with pytest.raises(OperationalError, match="nowhere"):
                await asyncio.to_thread(command.upgrade, config, "head")
            columns = await db.fetch_all("SELECT name FROM pragma_table_info('todo')")
            assert [row[0] for row in columns] == ["id", "title", "body", "likes"]
            async with db.session() as session, session.begin():
                session.add(Todo(title="salt"))
            assert await db.verify() == []
            assert await db.on_engine(db.replica.queued) == 2

    asyncio.run(scenario())


def test_a_table_that_is_being_rebuilt_is_at_no_moment_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine looks at the file after every statement of the migration, as a sync may."""
    config = migrations(tmp_path, REBUILD)

    async def scenario() -> None:
        async with Database(tmp_path / "app.db") as db:
            await make(db)
            loop = asyncio.get_running_loop()

            def look(*_: object) -> None:
                asyncio.run_coroutine_threadsafe(db.on_engine(db.replica.poll), loop).result()

            event.listen(sa.Engine, "after_cursor_execute", look)
            try:
                await asyncio.to_thread(command.upgrade, config, "head")
            finally:
                event.remove(sa.Engine, "after_cursor_execute", look)
            assert await db.on_engine(db.replica.untracked) == ["alembic_version"]
            await db.execute("UPDATE todo SET stars = 5")
            assert await db.verify() == []

    asyncio.run(scenario())


def test_a_new_table_is_tracked_when_its_model_is_there(tmp_path: Path) -> None:
    config = migrations(tmp_path, NEW_TABLE)

    async def scenario() -> None:
        async with Database(tmp_path / "app.db") as db:
            await make(db)
        await asyncio.to_thread(command.upgrade, config, "head")
        metadata = sa.MetaData()
        sa.Table("extra", metadata, sa.Column("id", sa.Uuid(), primary_key=True))
        async with Database(tmp_path / "app.db") as db:
            assert await db.create_all(metadata) == ["extra"]

    asyncio.run(scenario())


def test_autogenerate_finds_no_difference_where_there_is_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Database(tmp_path / "app.db") as db:
            await make(db)

    asyncio.run(scenario())
    engine = sa.create_engine(f"sqlite+reunite:///{tmp_path / 'app.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": include_name})
        assert autogenerate.compare_metadata(context, Base.metadata) == []
    engine.dispose()
