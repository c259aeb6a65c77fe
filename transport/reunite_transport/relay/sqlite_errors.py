"""What an error of SQLite means to a relay: refused rows, try again, or a broken database.

SQLite's own words name the table and the columns, and never a value, so an author may read them.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from reunite_transport.messages import MESSAGE_CHARS_MAX
from reunite_transport.relay.store import Busy, StoreError, Violation

# Extended codes hold the plain one in their lowest byte.
_PLAIN_CODE: Final = 0xFF
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# What whoever runs the relay can do about it; anything else is told in SQLite's words alone.
_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "the disk is full, or the file has its largest size; make room",
    sqlite3.SQLITE_READONLY: "the file or its folder may not be written; check the permissions",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check the folder and the permissions",
    sqlite3.SQLITE_IOERR: "the disk fails; check it before the relay goes on",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database; give the relay one of its own",
}


@contextmanager
def translated(table: str | None = None) -> Iterator[None]:
    """Raise what the block's SQLite errors mean: Busy, Violation or StoreError. `table` is the one
    that is written."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        named = f"table {table!r}: " if table else ""
        raise Violation(f"{named}{error}"[:MESSAGE_CHARS_MAX], table=table) from error
    except sqlite3.Error as error:
        # An error of Python's module, as on a closed connection, has no code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PLAIN_CODE
        if code in _BUSY:
            raise Busy(f"another process is writing to the relay's database: {error}") from error
        advice = f": {_ADVICE[code]}" if code in _ADVICE else ""
        raise StoreError(f"SQLite refused: {error}{advice}") from error
