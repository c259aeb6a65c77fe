"""The journals of mixed clients: what an app did and was told, a line each, whenever it dies.

A client writes one journal a life. A transaction is noted before it commits and again when it has
returned, so one that is noted once has an outcome that nobody knows. Lines are JSON; bytes stand as
{"hex": ...}. Times are seconds of the machine's monotonic clock, which all processes share.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from reunite.errors import SyncError
from reunite_simulations.history import Outcome, Read, Transaction, Verb, Write
from reunite_transport.client_session import Event, GaveUp

# A process that was stopped in the middle of a transaction: what time its edits carry is not known.
SLOW_SECONDS: Final = 1.0


class Journal:
    """Writes one life's lines. Each is handed to the system whole, before the caller goes on."""

    def __init__(self, path: Path) -> None:
        """`path` must not be there yet."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def begun(self, made: Transaction, since: float) -> None:
        """A transaction has done its work, began at `since` and is about to commit."""
        self._write(
            "begun",
            event=made.event,
            since=since,
            at=made.at,
            own=made.own,
            writes=[
                [write.verb, write.table, write.key, write.cells, write.before]
                for write in made.writes
            ],
            appended=made.appended,
            read=sorted(made.read),
        )

    def ended(self, event: str, outcome: Outcome) -> None:
        """A transaction has returned, or was refused."""
        self._write("ended", event=event, outcome=outcome, at=time.monotonic())

    def read(self, seen: frozenset[str]) -> None:
        """What is in the append-only lists now."""
        self._write("read", at=time.monotonic(), seen=sorted(seen))

    def quiet(self) -> None:
        """Nothing will be written any more, and nothing is being written."""
        self._write("quiet")

    def heard(self, event: Event) -> None:
        """What sync says; rejections are kept."""
        if isinstance(event, GaveUp):
            self._write("gave up", reason=event.reason, message=event.message, rows=event.rows)

    def stopped(self, error: SyncError) -> None:
        """Sync has stopped for good."""
        self._write("stopped", code=error.code, message=str(error))

    def _write(self, kind: str, **facts: object) -> None:
        line = json.dumps({"kind": kind, **facts}, default=_packed)
        os.write(self._file, f"{line}\n".encode())


@dataclass
class Account:
    """What the journals of a client's lives say together."""

    transactions: list[Transaction] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stopped: SyncError | None = None


def read_journals(client: str, paths: Sequence[Path]) -> Account:
    """Read what a client's lives have left."""
    account = Account()
    for path in paths:
        open_by_event: dict[str, tuple[Transaction, float]] = {}
        for line in _lines(path):
            match line["kind"]:
                case "begun":
                    made = _transaction(client, line)
                    account.transactions.append(made)
                    open_by_event[made.event] = made, line["since"]
                case "ended" if line["event"] in open_by_event:
                    made, since = open_by_event.pop(line["event"])
                    made.outcome = Outcome(line["outcome"])
                    made.mistimed = line["at"] - since > SLOW_SECONDS
                case "read":
                    account.reads.append(Read(client, 0, line["at"], frozenset(line["seen"])))
                case "gave up":
                    rows = tuple((table, key) for table, key in line["rows"])
                    account.events.append(GaveUp(line["reason"], line["message"], rows))
                case "stopped":
                    account.stopped = SyncError(line["message"], line["code"])
    return account


def count_returned(paths: Sequence[Path]) -> int:
    """How many transactions have returned by now."""
    return sum(line.get("outcome") == Outcome.RETURNED for path in paths for line in _lines(path))


def is_quiet(path: Path) -> bool:
    """Whether a life has come to the end of its writing."""
    return any(line["kind"] == "quiet" for line in _lines(path))


def _transaction(client: str, line: Mapping[str, Any]) -> Transaction:
    # One session through all lives: a killed process takes back nothing that its user saw.
    return Transaction(
        event=line["event"],
        client=client,
        life=0,
        at=line["at"],
        own=line["own"],
        writes=[
            Write(Verb(verb), table, tuple(key), cells, before)
            for verb, table, key, cells, before in line["writes"]
        ],
        appended=line["appended"],
        read=frozenset(line["read"]),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """All whole lines: the last one was begun when the process died, if it has no end. A process
    may have died before it wrote any."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line, object_hook=_unpacked)


def _packed(value: object) -> dict[str, str]:
    assert isinstance(value, bytes), f"{value!r} is in no journal"
    return {"hex": value.hex()}


def _unpacked(found: dict[str, Any]) -> object:
    return bytes.fromhex(found["hex"]) if found.keys() == {"hex"} else found
