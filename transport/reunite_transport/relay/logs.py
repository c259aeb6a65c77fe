"""What a relay writes to its log, and how: as text or as JSON lines, and never a value of a row.

A log goes where the data may not. Messages of a database may quote rows: Postgres's of a
constraint, a trigger's of anything. So an error is logged by `told` or `trace`, whatever handler
its record meets, and the formatters here do the same with errors that other packages log.
"""

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, TextIO, TypeAlias

from reunite_transport.relay.store import StoreError, Violation

_OWN: Final = ("reunite", "reunite_transport")
# What every record has; all else was given with it as `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


def set_up(stream: TextIO, *, as_json: bool, level: str) -> None:
    """Log to a stream from a level on, such as INFO, in a process that is a relay and nothing else.
    Other packages are heard from WARNING on; asyncpg not at all, as the relay says itself when the
    database is away."""
    root = logging.getLogger()
    root.addHandler(handler(stream, as_json=as_json))
    root.setLevel("ERROR" if level == "ERROR" else "WARNING")
    for name in _OWN:
        logging.getLogger(name).setLevel(level)
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)


def handler(stream: TextIO, *, as_json: bool) -> logging.Handler:
    """What `set_up` adds: writes records to a stream."""
    made = logging.StreamHandler(stream)
    made.setFormatter(_Json() if as_json else _Text())
    return made


def told(error: Exception) -> str:
    """What may be logged of an error: its words where they are the relay's or about the database,
    else its kind."""
    if isinstance(error, Violation):
        place = "".join(f", {each!r}" for each in (error.table, error.constraint) if each)
        return f"the database refuses a row{place}"
    if isinstance(error, StoreError):
        return str(error)
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def trace(error: BaseException) -> str:
    """Where an error was raised, and those that it comes of: places and kinds, without words."""
    parts: list[str] = []
    seen: set[int] = set()
    next_one: BaseException | None = error
    while next_one is not None and id(next_one) not in seen:
        seen.add(id(next_one))
        kind = f"{type(next_one).__module__}.{type(next_one).__qualname__}"
        parts.append("".join(traceback.format_tb(next_one.__traceback__)) + kind)
        hidden = None if next_one.__suppress_context__ else next_one.__context__
        next_one = next_one.__cause__ or hidden
    return "\nwhich led to:\n".join(reversed(parts))


class _Text(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("reunite relay: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return f"reunite relay: {_message(record)}"

    def formatException(self, ei: _ExcInfo) -> str:
        return "" if ei[1] is None else trace(ei[1])


class _Json(logging.Formatter):
    """A JSON object on a line: time, level, logger, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                fields.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            fields["trace"] = trace(record.exc_info[1])
        return json.dumps(fields, default=lambda value: type(value).__name__)


def _message(record: logging.LogRecord) -> str:
    """The message; asyncio's shows from its second line on what failed, the error's words too."""
    said = record.getMessage()
    ours = record.name.partition(".")[0] in _OWN
    return said if ours or not record.exc_info else said.partition("\n")[0]
