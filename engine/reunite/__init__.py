"""reunite: an offline-first engine for Python. Your data drifts apart offline; reunite merges it.

from reunite import Database
from reunite_transport import Sync

async with Database("app.db") as db:
    await db.track("todo")
    async with Sync(db, "ws://127.0.0.1:8800") as sync:
        await sync.caught_up(timeout=10)
"""

from reunite.blocking import BlockingDatabase
from reunite.changes import Change, Changes
from reunite.connection import Result
from reunite.database import Database
from reunite.errors import (
    AdoptionConflict,
    CatchUpTimeout,
    FileError,
    FormatError,
    ProtocolError,
    RealmMismatch,
    ReuniteError,
    SyncError,
    TableError,
    UsageError,
)
from reunite.overwritten import Overwritten
from reunite.row import Row
from reunite.transaction import Transaction
from reunite.verify import Difference
from reunite.watch import Watch

__all__ = [
    "AdoptionConflict",
    "BlockingDatabase",
    "CatchUpTimeout",
    "Change",
    "Changes",
    "Database",
    "Difference",
    "FileError",
    "FormatError",
    "Overwritten",
    "ProtocolError",
    "RealmMismatch",
    "Result",
    "ReuniteError",
    "Row",
    "SyncError",
    "TableError",
    "Transaction",
    "UsageError",
    "Watch",
]
