"""The errors of reunite: one tree, each saying whose fault it is and what to do next.

    ReuniteError
    ├── UsageError             the caller's: a wrong call or a database that is not open
    ├── TableError             the schema's: this table cannot be tracked or synced (`.table`)
    ├── FileError              the file's: not SQLite, written by a newer reunite, damaged
    ├── FormatError            the bytes': a document or payload that is not of our format
    └── SyncError              the other side's, or the meeting's (`.code`)
        ├── ProtocolError      the peer broke the protocol
        ├── AdoptionConflict   two different files were adopted into one realm (`.counts`)
        ├── RealmMismatch      the file belongs to another realm
        └── CatchUpTimeout     `caught_up(timeout=...)` ran out of time

Data rides as attributes; the message is one line that a user can act on.
"""

from collections.abc import Mapping


class ReuniteError(Exception):
    """Base of every error that reunite raises on purpose."""


class UsageError(ReuniteError):
    """A call that cannot be carried out as it was made."""


class TableError(ReuniteError):
    """A table that cannot be tracked or synced; `table` names it."""

    def __init__(self, table: str, message: str) -> None:
        super().__init__(f"table {table!r}: {message}")
        self.table = table
        self.reason = message


class FileError(ReuniteError):
    """A database file that cannot be used."""


class FormatError(ReuniteError):
    """Bytes that are not a valid document, payload or schema of this version."""


class SyncError(ReuniteError):
    """Sync stopped; `code` is the protocol's word for why."""

    def __init__(self, message: str, code: str = "sync") -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(SyncError):
    """The peer sent something that the protocol does not allow."""


class AdoptionConflict(SyncError):
    """Rows adopted here and rows of the realm share keys but not values.

    `counts` maps each table to how many rows differ. Nothing was pushed and no table was changed.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        listed = ", ".join(
            f"{count} row{'' if count == 1 else 's'} of {table}"
            for table, count in sorted(counts.items())
        )
        super().__init__(
            f"this file and the relay hold different rows under the same keys ({listed}); "
            "nothing was changed. Sync again with --adopt theirs (yours are kept in "
            "reunite_rejected) or --adopt ours (yours are pushed as edits made now)",
            "adoption",
        )
        self.counts = dict(counts)


class RealmMismatch(SyncError):
    """The file was synced with another realm before."""


class CatchUpTimeout(SyncError):
    """`caught_up` ran out of time; sync itself goes on."""
