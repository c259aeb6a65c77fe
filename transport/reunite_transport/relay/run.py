"""A whole relay: Postgres of its own or a given one, the store on it, the server in front.

Owns the order in which they start and stop, where data lies when nobody says, and which signals
end a program in order.
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from reunite.errors import TableError, UsageError
from reunite_transport.relay.embedded import embedded_postgres
from reunite_transport.relay.postgres_store import open_postgres
from reunite_transport.relay.server import serve

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8800

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunningRelay:
    """Where a relay listens, and its Postgres. `data` is None where that is somebody else's.
    `tables` sync, and `refused` says why others do not, where all were wanted."""

    url: str
    postgres: str
    data: Path | None
    tables: tuple[str, ...]
    refused: tuple[TableError, ...]


@asynccontextmanager
async def running_relay(
    *,
    postgres: str | None = None,
    data: Path | None = None,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    track: Sequence[str] | None = None,
    track_all: bool = False,
    create_tables: bool | None = None,
    refill: bool = True,
    history: bool = True,
    insecure: bool = False,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningRelay]:
    """Run a relay for as long as the block lasts; it listens when the block begins, and it has
    finished the batch under way when the block has ended.

    Tables of the database that `track` names, or with `track_all` all that can be, are taken into
    the realm. Without the URL `postgres` an embedded server runs in the folder `data`, with these
    Postgres `settings`. `create_tables` is then on unless said otherwise, and off on a server of
    yours. With `refill` clients bring back what a restored database has lost, and with `history`
    values that merges overwrite are kept.
    Raises UsageError, StoreError, TableError and EmbeddedPostgresError.
    """
    if postgres is not None:
        check_postgres(postgres)
    async with AsyncExitStack() as stack:
        folder = None
        if postgres is None:
            folder = (data or default_data()).expanduser().absolute()
            postgres = await stack.enter_async_context(embedded_postgres(folder, settings=settings))
        store = await open_postgres(postgres)
        stack.push_async_callback(store.close)
        refused: tuple[TableError, ...] = ()
        if track is not None or track_all:
            refused = await store.track(track)
        relay = await serve(
            store,
            host=host,
            port=port,
            create_tables=folder is not None if create_tables is None else create_tables,
            refill=refill,
            history=history,
            insecure=insecure,
            track_new=track_all,
        )
        stack.push_async_callback(relay.close)
        names = tuple(table.name for table in await store.registry())
        yield RunningRelay(relay.url, postgres, folder, names, refused)


class Stopped(Exception):
    """A signal ended the work, in order; `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


def run_until_stopped(work: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run`, where SIGINT, SIGTERM and SIGHUP cancel the work, so that it can clean up.

    A second signal hurries; one that the program was started to ignore (nohup) stays ignored.
    Raises Stopped.
    """

    async def stoppable() -> _T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        received: list[int] = []

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stop, number)
        try:
            return await task
        except asyncio.CancelledError:
            if not received:
                raise
            raise Stopped(received[0]) from None

    return asyncio.run(stoppable())


def default_data() -> Path:
    """The folder of the embedded Postgres when none is named: `reunite-data` in the user's data."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification of XDG has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local/share") / "reunite-data"


def without_password(url: str) -> str:
    """A Postgres URL that may be shown."""
    parts = urlsplit(url)
    netloc = parts.netloc
    if parts.password is not None:
        account, _, place = netloc.rpartition("@")
        netloc = f"{account.partition(':')[0]}:***@{place}"
    query = re.sub(r"(?<![^&])(password=)[^&]*", r"\1***", parts.query)
    return parts._replace(netloc=netloc, query=query).geturl()


def check_postgres(url: str) -> None:
    """Raises UsageError for what cannot be the URL of a Postgres database."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("postgresql", "postgres") and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(
            "--postgres is not the URL of a Postgres database; it looks like"
            " postgresql://user@host:5432/database"
        )
