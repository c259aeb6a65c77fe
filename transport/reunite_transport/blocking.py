"""Sync for programs without an event loop: the verbs of `Sync`, without await.

    with BlockingDatabase("app.db") as db, BlockingSync(db, "ws://127.0.0.1:8800") as sync:
        sync.caught_up(timeout=10)

It runs in the database's background thread. In a notebook use `start()` and `stop()`.
"""

from collections.abc import Callable
from types import TracebackType

from reunite.adopt import Choice
from reunite.blocking import BlockingDatabase, BlockingIterator
from reunite.database import Database
from reunite.errors import UsageError
from reunite_transport.client_session import Event
from reunite_transport.status import SyncStatus
from reunite_transport.sync import Sync


class BlockingSync:
    """Sync between a database and a relay, from `start()` to `stop()`, or for a block."""

    def __init__(
        self,
        db: BlockingDatabase,
        url: str,
        *,
        adopt: Choice | None = None,
        on_event: Callable[[Event], None] | None = None,
        connected: bool = True,
    ) -> None:
        """See `Sync`. `on_event` is called in the database's thread, and must not call it."""
        self._db = db
        self._started = False

        async def make(inner: Database) -> Sync:
            return Sync(inner, url, adopt=adopt, on_event=on_event, connected=connected)

        self._sync = db.run(make)

    def __repr__(self) -> str:
        return f"Blocking{repr(self._sync)[1:-1]}".join("<>")

    def __enter__(self) -> "BlockingSync":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> "BlockingSync":
        """Begin to sync; returns this. Once: to pause, use `disconnect` and `connect`."""
        if self._started:
            raise UsageError("this sync was started before; make another")
        self._started = True
        self._db.run(lambda _: self._sync.__aenter__())
        return self

    def stop(self) -> None:
        """End it. What was not sent stays in the file."""
        if self._started and not self._db.closed:
            self._db.run(lambda _: self._sync.__aexit__(None, None, None))

    @property
    def status(self) -> SyncStatus:
        """How sync stands now."""
        return self._sync.status

    def watch_status(self) -> BlockingIterator[SyncStatus]:
        """See `Sync.watch_status`."""
        return self._db.iterate(lambda _: self._sync.watch_status())

    def caught_up(self, timeout: float | None = None) -> None:
        """See `Sync.caught_up`."""
        self._db.run(lambda _: self._sync.caught_up(timeout))

    def connect(self) -> None:
        """See `Sync.connect`."""
        self._db.run(lambda _: self._sync.connect())

    def disconnect(self) -> None:
        """See `Sync.disconnect`."""
        self._db.run(lambda _: self._sync.disconnect())

    def ended(self) -> None:
        """See `Sync.ended`."""
        self._db.run(lambda _: self._sync.ended())
