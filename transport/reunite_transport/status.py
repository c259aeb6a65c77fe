"""How sync stands, in the words that an app shows, and a stream of it.

connecting -> loading 43 % -> live          while there is a connection
offline: ..., next try in 3 s               while there is none, until the next try
disconnected                                because the program wants none
stopped: ...                                for good; a person has to act
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from reunite.errors import SyncError
from reunite_transport.wakeup import Wakeup

State: TypeAlias = Literal["disconnected", "offline", "connecting", "loading", "live", "stopped"]

# States in which something is wrong, or was at the last try.
_TROUBLED: Final = frozenset({"offline", "connecting", "stopped"})


@dataclass(frozen=True, slots=True)
class Progress:
    """A load: rows that have arrived, and about how many there are (0 where nobody knows)."""

    rows: int
    total: int


@dataclass(frozen=True, slots=True, repr=False)
class SyncStatus:
    """How sync stands; `str(status)` is one line to show.

    `queued` counts changesets that the relay has not resolved. `retry_in` is the wait before the
    next connection, in seconds from when this was said, and `retry_at_ms` its end, in milliseconds
    since 1970 by the database's clock; both only while offline. `last_error` is the last thing
    that went wrong since the relay welcomed this file, a rejection among them. `left_alone` are
    tables of the realm that the file has under the same name and does not track. `working` is True
    while what the relay sent is taken into the file: then it is not the relay that is waited for.
    """

    state: State = "connecting"
    queued: int = 0
    last_error: SyncError | None = None
    progress: Progress | None = None
    retry_in: float | None = None
    retry_at_ms: int | None = None
    left_alone: tuple[str, ...] = ()
    working: bool = False

    @property
    def percent(self) -> int | None:
        """How much of a load has arrived, from 0 to 100; None unless loading a known amount."""
        if self.state != "loading" or self.progress is None or not self.progress.total:
            return None
        return min(100, 100 * self.progress.rows // self.progress.total)

    @property
    def reason(self) -> str | None:
        """Why there is no connection, in one line; None when all is well."""
        if self.state not in _TROUBLED or self.last_error is None:
            return None
        return " ".join(str(self.last_error).split())

    def __str__(self) -> str:
        said = str(self.state)
        if self.percent is not None:
            said += f" {self.percent} %"
        if self.reason is not None:
            said += f": {self.reason}"
        if self.retry_in is not None:
            said += f", next try in {math.ceil(self.retry_in)} s"
        if self.queued:
            said += f", {self.queued} queued"
        return said

    def __repr__(self) -> str:
        return f"<SyncStatus {self}>"


class Statuses:
    """The status now, and then whenever it has become another, for a `Watch`: the latest, however
    many there were meanwhile. Ends after what it is when `ended`."""

    def __init__(
        self, status: Callable[[], SyncStatus], wakeup: Wakeup, ended: Callable[[], bool]
    ) -> None:
        """`wakeup` is rung when either may have changed."""
        self._status, self._wakeup, self._ended = status, wakeup, ended
        self._seen = -1
        self._told: SyncStatus | None = None

    def listen(self) -> "asyncio.Future[None]":
        """See `Source`."""
        # Nothing rings any more for who was told the last status, and not that it was the last.
        return self._wakeup.listen(-1 if self._ended() else self._seen)

    def leave(self, waiter: "asyncio.Future[None]") -> None:
        """See `Source`."""
        self._wakeup.leave(waiter)

    def take(self) -> Sequence[SyncStatus] | None:
        """See `Source`."""
        self._seen = self._wakeup.count
        before, self._told = self._told, replace(self._status(), working=False)
        if self._told != before:
            return (self._told,)
        return None if self._ended() else ()
