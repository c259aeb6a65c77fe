"""`reunite sync` as its user follows it: what is said while it goes on, and how it ended.

Owns the lines on stderr, the bar of a first load, the report, and when --once has waited for long
enough. Prints through `console`; the sync itself is `Sync`'s.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from reunite import Database, SyncError
from reunite.adopt import Choice
from reunite_transport.client_session import Acknowledged, Event, GaveUp, Received, Refilling
from reunite_transport.console import complain, console, counted, plain, print_json, shown_key
from reunite_transport.sync import Sync

# How often a watch looks at what happened, to print it.
WATCH_SECONDS: Final = 0.1
# A relay gives one commit two minutes; a connection on which nothing was answered for longer waits
# for something that --once should not wait for.
IDLE_SECONDS_MAX: Final = 150.0
# Offline without a time for the next try, and stopped, are for good.
AT_WORK: Final = frozenset({"connecting", "loading", "live"})
CONNECTED: Final = frozenset({"loading", "live"})


async def sync_file(
    file: Path, url: str, *, patience: float | None, adopt: Choice | None, as_json: bool
) -> None:
    """Sync a file until it has caught up, and report. `patience` is for how many seconds a relay
    may be out of reach; with None the file is kept in sync until the task is cancelled.

    Raises SyncError when sync stops, or gets nowhere.
    """
    async with Database(file) as db:
        # What other programs wrote is taken in first, so that only the relay is waited for.
        await db.on_engine(db.replica.outbox_mark)
        first_load = not (await db.on_engine(db.replica.standing)).loaded
        watch = Watch(patience)
        async with Sync(db, url, adopt=adopt, on_event=watch.on_event) as running:
            try:
                await watch.until_caught_up(running, first_load=first_load)
                await _report(db, watch, as_json=as_json)
                if patience is None:
                    complain("in sync; Ctrl-C ends it")
                    await watch.follow(running)
            except asyncio.CancelledError:
                if not as_json:
                    await _report(db, watch, as_json=False)
                raise


class Watch:
    """Follows a `Sync` for the user: counts what went and came, says what happens, knows when to
    give up."""

    def __init__(
        self, patience: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`patience` is how long to wait for a relay that cannot be reached; None for ever, and
        for anything. `clock` counts seconds."""
        self.sent = 0
        self.received = 0
        self.rejections: list[GaveUp] = []
        self._refilled: int | None = None
        self._patience = patience
        self._clock = clock
        self._printed = 0
        self._said: str | None = None

    def on_event(self, event: Event) -> None:
        """Take in an event of the session; prints nothing, so it cannot fail."""
        if isinstance(event, Received):
            self.received += event.rows
        elif isinstance(event, Acknowledged):
            self.sent += event.count
        elif isinstance(event, GaveUp):
            self.rejections.append(event)
        elif isinstance(event, Refilling):
            self._refilled = event.rows

    async def until_caught_up(self, running: Sync, *, first_load: bool) -> None:
        """Wait for everything up to now. Raises SyncError when sync stops, or gets nowhere."""
        caught_up = asyncio.ensure_future(running.caught_up())
        reached, since = None, self._clock()
        try:
            with _bar(shown=first_load) as show:
                while not caught_up.done():
                    await asyncio.wait([caught_up], timeout=WATCH_SECONDS)
                    show(running)
                    self._say(running)
                    status = running.status
                    now = (self.sent, self.received, len(self.rejections), status.queued)
                    # The relay is not to blame for the time that this file takes.
                    if now != reached or status.working:
                        reached, since = now, self._clock()
                    self._check_patience(running, self._clock() - since)
            await caught_up
        finally:
            caught_up.cancel()

    async def follow(self, running: Sync) -> None:
        """Say what happens until sync stops, and then raise why."""
        while running.status.retry_in is not None or running.status.state in AT_WORK:
            await asyncio.sleep(WATCH_SECONDS)
            self._say(running)
        await running.caught_up()

    def _say(self, running: Sync) -> None:
        """One line on stderr for each changeset that was given up, and, unless that is how it
        will end anyway, one for what keeps sync from going on."""
        if self._refilled is not None:
            complain(
                "the relay was restored from a backup; what it lost of"
                f" {counted(self._refilled, 'row')} is offered to it again"
            )
            self._refilled = None
        for given_up in self.rejections[self._printed :]:
            rows = ", ".join(f"{table} {shown_key(key)}" for table, key in given_up.rows[:3])
            rows += f" and {len(given_up.rows) - 3} more" if len(given_up.rows) > 3 else ""
            what = f"rejected ({given_up.reason}): {rows}: {given_up.message}"
            complain(f"{what}; kept in reunite_rejected")
        self._printed = len(self.rejections)
        status = running.status
        if status.state == "live" and self._said:
            self._said = None
            complain("connected again")
        trouble = str(status.last_error or "")
        if self._patience is None and status.state == "offline" and trouble not in ("", self._said):
            self._said = trouble
            complain(f"{trouble}; trying again")

    def _check_patience(self, running: Sync, idle_seconds: float) -> None:
        if self._patience is None:
            return
        status = running.status
        if status.state not in CONNECTED and idle_seconds > self._patience:
            why = status.last_error or "the relay did not answer"
            raise SyncError(f"{why}; tried for {self._patience:g} s, --timeout tries longer")
        if status.state in CONNECTED and idle_seconds > IDLE_SECONDS_MAX:
            raise SyncError(
                f"the relay answered nothing for {idle_seconds:.0f} s;"
                f" {counted(status.queued, 'changeset')} pending, the next sync goes on from here"
            )


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[Sync], None]]:
    """A bar on stderr for the first load, where there is a terminal to show it."""
    screen = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not (shown and screen.is_terminal)
    with Progress(*columns, console=screen, transient=True, disable=hidden) as progress:
        task = progress.add_task("connecting", total=None)

        def show(running: Sync) -> None:
            loaded = running.status.progress
            if loaded is not None:
                # A relay that did not say how many rows there are leaves the end open.
                total = loaded.total if loaded.total > loaded.rows else None
                progress.update(task, description="rows", completed=loaded.rows, total=total)

        yield show


async def _report(db: Database, watch: Watch, *, as_json: bool) -> None:
    standing = await db.on_engine(db.replica.standing)
    ((local,),) = await db.fetch_all("SELECT count(*) FROM reunite_rejected WHERE reason = 'local'")
    left_alone = list(standing.left_alone)
    if as_json:
        print_json(
            {
                "file": str(db.path),
                "sent": watch.sent,
                "received": watch.received,
                "pending": standing.pending,
                "rejected": [asdict(each) for each in watch.rejections],
                "local": local,
                "left_alone": left_alone,
            }
        )
        return
    for name in left_alone:
        complain(f"table {name!r} is not tracked here and was left alone; see `reunite track`")
    if local:
        stay = "1 row stays" if local == 1 else f"{local:,} rows stay"
        complain(f"{stay} in this file only; see the table reunite_rejected, reason 'local'")
    went, came = counted(watch.sent, "changeset"), counted(watch.received, "row")
    waits = counted(standing.pending, "changeset")
    refused = sum(len(each.rows) for each in watch.rejections)
    refusals = f", {refused:,} rejected" if refused else ""
    kept = f" ({standing.rejected:,} kept in reunite_rejected)" if standing.rejected else ""
    typer.echo(f"{plain(db.path)}: {went} sent, {came} received, {waits} pending{refusals}{kept}")
    sys.stdout.flush()
