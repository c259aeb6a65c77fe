"""What an error of Postgres means to a relay: refused rows, try again, or a broken database.

Messages of a Violation may be shown to the author of the refused rows, so they name the table, the
constraint and the column, and never hold Postgres's DETAIL, which quotes other rows. All others are
logged, so they hold no words of a function of the app, which may quote anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from reunite_transport.messages import MESSAGE_CHARS_MAX
from reunite_transport.relay.store import Busy, StoreError, Violation

# lock_not_available, deadlock_detected, serialization_failure, query_canceled (a timeout).
_BUSY: Final = frozenset({"55P03", "40P01", "40001", "57014"})
# Data and integrity errors, WITH CHECK, limits of the program, and what PL/pgSQL raises.
_VIOLATION_CLASSES: Final = frozenset({"22", "23", "44", "54", "P0"})
# datatype_mismatch and cannot_coerce: a value that does not fit its column.
_VIOLATIONS: Final = frozenset({"42804", "42846"})
# Connection, resources, operator, system, internal: never the fault of a row.
_DATABASE_CLASSES: Final = frozenset({"08", "53", "57", "58", "XX"})

# The driver calls it an internal error when the server goes while nobody asked it anything.
CONNECTION_ERRORS: Final = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class ConnectionLost(StoreError):
    """The connection to Postgres is gone, or does not answer: do not use it any more."""


@contextmanager
def translated(table: str | None = None) -> Iterator[None]:
    """Raise what the block's Postgres errors mean: Busy, Violation, ConnectionLost or StoreError.
    `table` is named where Postgres names none."""
    try:
        yield
    except asyncpg.InvalidCachedStatementError as error:
        raise Busy("a table was altered meanwhile") from error
    except asyncpg.PostgresError as error:
        raise _meaning(error, table) from error
    except CONNECTION_ERRORS as error:
        said = str(error) or "no answer in time"
        raise ConnectionLost(f"the connection to Postgres failed: {said}") from error


def _meaning(error: asyncpg.PostgresError, table: str | None) -> StoreError:
    state = error.sqlstate or ""
    # One that the driver raised has no message; its text quotes the parameters.
    said = error.message or type(error).__name__
    # A trigger of the app may fail with any code; its context names the function.
    in_function = "PL/" in (error.context or "")
    # It may give the names as it likes, too.
    named = table if in_function else error.table_name or table
    unsaid = "raised by a function in the database; Postgres's log says why"
    if state in _BUSY:
        return Busy(f"{_of(named)}{unsaid if in_function else said}")
    raised_by_function = in_function and state[:2] not in _DATABASE_CLASSES
    if state[:2] in _VIOLATION_CLASSES or state in _VIOLATIONS or raised_by_function:
        if error.constraint_name and error.constraint_name not in said:
            said += f" (constraint {error.constraint_name!r})"
        return Violation(
            f"{_of(error.table_name or table)}{said}"[:MESSAGE_CHARS_MAX],
            table=named,
            constraint=None if in_function else error.constraint_name,
        )
    return StoreError(f"Postgres refused with {state}: {unsaid if in_function else said}")


def _of(table: str | None) -> str:
    return f"table {table!r}: " if table else ""
