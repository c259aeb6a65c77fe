"""Run worlds: one seed, one report."""

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from reunite.errors import FileError
from reunite_simulations.loop import run
from reunite_simulations.outcome import Report, Settings
from reunite_simulations.world import World

# With less than this left, what fails may well fail for want of room.
ROOM_MIN: Final = 4 << 20
_OF_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What SQLite says when the system refuses to write; no fault of ours makes it say so.
_DISK_ERROR: Final = "disk I/O error"


def own_schema() -> str:
    """The schema for those who bring none."""
    return files("reunite_simulations").joinpath("schema.sql").read_text(encoding="utf-8")


def run_seed(settings: Settings, on_look: Callable[[World], None] = lambda _: None) -> Report:
    """Run one seed's world to its end. Its files are in a temporary folder meanwhile; `on_look` is
    called every ten virtual seconds. Raises FileError when that folder has no room; whatever else
    is raised has a note that names the seed."""
    seed = settings.seed
    try:
        with tempfile.TemporaryDirectory(prefix="reunite-world-") as folder:
            try:
                report = run(World(settings, Path(folder), on_look).live())
            except (OSError, sqlite3.Error) as error:
                if _is_of_disk(error) or _is_full(folder):
                    raise _no_room(seed, str(error)) from error
                raise
            for violation in report.violations:
                if _DISK_ERROR in violation.message or _is_full(folder):
                    raise _no_room(seed, violation.message)
            return report
    except OSError as error:
        if _is_of_disk(error):
            raise _no_room(seed, str(error)) from error
        error.add_note(f"in the world of seed {seed}")
        raise
    except Exception as error:
        error.add_note(f"in the world of seed {seed}")
        raise


def _is_of_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _OF_DISK
    return _DISK_ERROR in str(error)


def _is_full(folder: str) -> bool:
    return shutil.disk_usage(folder).free < ROOM_MIN


def _no_room(seed: int, said: str) -> FileError:
    return FileError(
        f"seed {seed} ran out of room in {tempfile.gettempdir()}, where worlds keep their files:"
        f" {said}; make room there, or name another folder in TMPDIR"
    )
