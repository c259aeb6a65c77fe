"""Tables of a file from an app's SQLAlchemy models: made where they are missing, and tracked.

One transaction makes all of them and takes them into sync, or none. What is marked with
`info={"local_only": True}` is made and stays in its file.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import MetaData, Table, inspect
from sqlalchemy.engine import Connection
from sqlalchemy.types import Interval, TypeDecorator, TypeEngine, Uuid

from reunite import adopt
from reunite.errors import TableError
from reunite.orm import lent
from reunite.state import State


def create(
    conn: sqlite3.Connection, state: State, metadata: MetaData, tables: Sequence[Table] | None
) -> list[str]:
    """Make the missing ones of these tables, all of `metadata` by default, in the transaction that
    `state` is of, and track those that are not local. Returns the names of those that were not
    tracked before. Raises TableError, and then the transaction must be rolled back."""
    wanted = metadata.sorted_tables if tables is None else tables
    for table in wanted:
        if table.schema is not None:
            raise TableError(
                str(table),
                f"is in the schema {table.schema!r}, and a file has no schemas; leave it out of"
                " the model, and give Postgres's connections a search_path",
            )
        if not table.info.get("local_only"):
            _check_intervals(table)
    with lent(conn) as engine, engine.connect() as connection:
        for table in wanted:
            _check_uuids(connection, table)
        metadata.create_all(connection, tables=wanted)
    synced = [table.name for table in wanted if not table.info.get("local_only")]
    try:
        return adopt.track(state, synced)
    except TableError as error:
        raise TableError(
            error.table,
            f"{error.reason}; or keep it in this file alone, with the table's argument"
            ' info={"local_only": True}',
        ) from error


def _check_intervals(table: Table) -> None:
    """Refuse what Postgres keeps as an interval: a file's is a moment after the epoch, and so would
    be what the relay makes of it, which the model would then read as something else there."""
    for column in table.columns:
        kept_as: TypeEngine[Any] = column.type
        while isinstance(kept_as, TypeDecorator) and not isinstance(kept_as, Interval):
            kept_as = kept_as.impl_instance
        if isinstance(kept_as, Interval) and kept_as.native:
            raise TableError(
                table.name,
                f"column {column.name!r} is an Interval, which is another value in Postgres than in"
                " a file; say Interval(native=False) in the model, which is the same in both",
            )


def _check_uuids(connection: Connection, table: Table) -> None:
    """Refuse a table that was made by SQLAlchemy's own SQLite: its UUIDs are written otherwise, and
    none would be found."""
    inspector = inspect(connection)
    if not inspector.has_table(table.name):
        return
    declared = {column["name"]: column["type"] for column in inspector.get_columns(table.name)}
    for column in table.columns:
        found = declared.get(column.name)
        if (
            isinstance(column.type, Uuid)
            and column.type.native_uuid
            and found is not None
            and not isinstance(found, Uuid)
        ):
            raise TableError(
                table.name,
                f"column {column.name!r} is {found} in this file and a Uuid in the model, so its"
                " UUIDs may be written without dashes; say Uuid(native_uuid=False) in the model",
            )
