"""What SQLite could not do, said so that a user can act on it: which file, and what may help."""

import sqlite3
from pathlib import Path
from typing import Final

_PERMISSIONS: Final = "check the permissions of the file and its folder"
_HINT_BY_CODE: Final = {
    sqlite3.SQLITE_BUSY: "another program holds a write transaction on it; let it finish first",
    sqlite3.SQLITE_READONLY: _PERMISSIONS,
    sqlite3.SQLITE_CANTOPEN: _PERMISSIONS,
    sqlite3.SQLITE_PERM: _PERMISSIONS,
    sqlite3.SQLITE_FULL: "make room on the disk",
}


def file_trouble(path: Path, error: sqlite3.Error) -> str:
    """One line on an error that SQLite raised on a file."""
    # Errors of the Python module itself have no code. The upper bits only say more of the same.
    hint = _HINT_BY_CODE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    return f"{path}: {error}; {hint}" if hint else f"{path}: {error}"
