"""The command line: `reunite relay | track | sync | status | verify | demo`.

Owns arguments, output and exit codes: 0 it is so, 1 it is not or it failed, 2 a wrong call. What a
program may read goes to stdout, with --json as one object; everything else, one line each, to
stderr. Names and values from files are shown as they are, never as markup or control codes.

`status` and `verify` read a file through a connection of their own, which creates and changes
nothing; all else goes through `Database`.
"""

import asyncio
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, cast
from urllib.parse import urlsplit

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from reunite import Database, FileError, ReuniteError, SyncError, UsageError
from reunite.adopt import Choice
from reunite.bookkeeping import FILE_FORMAT, is_prepared
from reunite.driver import real_chance, real_clock
from reunite.replica import Replica
from reunite.schema import quoted, read_table, table_names
from reunite.verify import verify as differences_of
from reunite_transport.client_session import Event, GaveUp, Received
from reunite_transport.console import complain, console, counted, plain, print_json, shown_key
from reunite_transport.relay.embedded import EmbeddedPostgresError
from reunite_transport.sync import Sync

# How often `sync` looks at what happened, to print it.
WATCH_SECONDS: Final = 0.1
# A relay gives one commit two minutes; a live connection on which nothing was answered for longer
# waits for something that --once should not wait for.
LIVE_IDLE_SECONDS_MAX: Final = 150.0
# Offline without a time for the next try, and stopped, are for good.
AT_WORK: Final = frozenset({"connecting", "loading", "live"})
# Nobody scrolls through more; the number of all is stated.
DIFFERENCES_SHOWN_MAX: Final = 1_000
# What the facts of `status` that are about trouble mean.
STATUS_NOTES: Final = {
    "unfolded": " (writes by other programs, to be looked at in the next sync)",
    "rejected": " (rows in the table reunite_rejected)",
    "blocked": " (rows that the tables did not take; tried again at each sync)",
    "left_alone": " (tables that the relay has too: `reunite track` takes them in)",
    "untracked": " (tables that stay in this file)",
}
# What the command line itself raises for arguments that it cannot take.
WRONG_CALL: Final = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

POSTGRES_HELP: Final = "Use this Postgres; the variable PGPASSWORD may hold its password."
DATA_HELP: Final = "Where the embedded Postgres lives; default: $XDG_DATA_HOME/reunite-data."
CREATE_HELP: Final = "Whether clients may add tables; default: yes, but no with --postgres."
ADOPT_HELP: Final = "Whose rows count where the file and the relay brought different ones."
TIMEOUT_HELP: Final = "With --once: how long to try to reach the relay."
app = typer.Typer(
    help="Your data drifts apart offline. reunite merges it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: the same on every terminal and in a file.
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="An SQLite file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program.")]


# Whose rows count when this file and the relay brought different ones.
Adopt = StrEnum("Adopt", ["THEIRS", "OURS"])


def main() -> None:
    """The console script: runs a command; every failure is one line on stderr, no traceback."""
    # Started without one of them: what is said goes nowhere, and the work is done.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="reunite", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 128 + signal.SIGINT
    except UsageError as error:
        complain(str(error))
        code = 1 if isinstance(error.__cause__, OSError) else 2
    except (ReuniteError, EmbeddedPostgresError, OSError, sqlite3.Error, UnicodeError) as error:
        complain(str(error) or type(error).__name__)
        code = 1
    except WRONG_CALL as error:
        complain(error.format_message())
        code = 2
    sys.exit(code or 0)


# The relay.


@app.command()
def relay(
    postgres: Annotated[str | None, typer.Option(metavar="URL", help=POSTGRES_HELP)] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help=DATA_HELP)] = None,
    host: Annotated[str, typer.Option(metavar="H", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="P", min=0, max=65535, help="The port; 0 takes a free one.")
    ] = 8800,
    create_tables: Annotated[
        bool | None,
        typer.Option("--create-tables/--no-create-tables", help=CREATE_HELP, show_default=False),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a host that other machines can reach.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a relay until Ctrl-C or SIGTERM.

    Without --postgres it brings its own Postgres. Clients do not sign in yet, so it listens on
    this machine only, unless --insecure says that the network can be trusted.

    \b
    Examples:
      reunite relay
      reunite relay --postgres postgresql://me@localhost/app --create-tables
    """
    if postgres is not None and data is not None:
        raise typer.BadParameter("--data is for the embedded Postgres; leave it or --postgres out")
    # Imported here: who only syncs needs neither Postgres nor its driver.
    from reunite_transport.relay import run

    logging.basicConfig(level=logging.WARNING, format="reunite relay: %(message)s")
    # Its tracebacks add nothing: the relay says itself when the database is away.
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)

    async def serve() -> None:
        async with run.running_relay(
            postgres=postgres,
            data=data,
            host=host,
            port=port,
            create_tables=create_tables,
            insecure=insecure,
        ) as running:
            shown = {"url": running.url, "postgres": run.without_password(running.postgres)}
            if as_json:
                print_json(shown)
            else:
                shown |= {} if running.data is None else {"data": str(running.data)}
                for name, value in shown.items():
                    typer.echo(f"{name:<9} {plain(value)}")
            sys.stdout.flush()
            await asyncio.Event().wait()

    with suppress(run.Stopped):
        run.run_until_stopped(serve())


# Files.


@app.command()
def track(
    file: File,
    tables: Annotated[list[str] | None, typer.Argument(metavar="TABLE...")] = None,
    all_tables: Annotated[bool, typer.Option("--all", help="All tables of the file.")] = False,
    as_json: Json = False,
) -> None:
    """Take tables of an SQLite file into sync, with the rows they have.

    The tables themselves are not changed. The file gets tables and triggers whose names begin
    with _reunite_, and is switched to WAL mode.

    \b
    Examples:
      reunite track music.db Artist Album
      reunite track music.db --all
    """
    if bool(tables) == all_tables:
        raise typer.BadParameter("name the tables to track, or pass --all, and not both")
    with _reading(file) as conn:
        switched = conn.execute("PRAGMA journal_mode").fetchone()[0] != "wal"
        # All are looked at first: a file with a table that is refused is not changed at all.
        found = [read_table(conn, name).name for name in (tables or table_names(conn))]
        count_by_name = {name: _count(conn, name) for name in found}
    if not found:
        raise FileError(f"{file} has no tables to track; create one first")

    async def run() -> list[str]:
        async with Database(file) as db:
            return await db.track(*count_by_name)

    tracked = asyncio.run(run())
    if as_json:
        rows = [{"name": name, "rows": count_by_name[name]} for name in tracked]
        already = [name for name in count_by_name if name not in tracked]
        print_json({"file": str(file), "tracked": rows, "already": already, "wal": switched})
        return
    if switched:
        typer.echo(f"switched {plain(file)} to WAL mode: it has -wal and -shm files while open")
    for name, count in count_by_name.items():
        known = counted(count, "row") if name in tracked else "was tracked before"
        typer.echo(f"tracking {plain(name)}: {known}")


@app.command()
def status(file: File, as_json: Json = False) -> None:
    """Show how a tracked file stands: tables, work to be sent, the last sync.

    \b
    Example:
      reunite status music.db
    """
    with _tracked(file) as replica:
        standing = replica.standing()
        here = table_names(replica.conn)
        tracked = [each.table.name for each in replica.tables() if each.tracked]
        count_by_name = {name: _count(replica.conn, name) for name in tracked if name in here}
        unfolded = _count(replica.conn, "_reunite_log")
    left_alone, synced = list(standing.left_alone), standing.last_sync_ms
    facts: dict[str, object] = {
        # As text: programs that read JSON numbers as floats would round it.
        "replica": f"{standing.replica:016x}",
        "realm": standing.realm.hex() if standing.realm else None,
        "last_sync": synced and f"{datetime.fromtimestamp(synced // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "pending": standing.pending,
        "unfolded": unfolded,
        "rejected": standing.rejected,
        "blocked": standing.blocked,
        "left_alone": left_alone,
        "untracked": [name for name in here if name not in {*tracked, *left_alone}],
    }
    if as_json:
        rows = [{"name": name, "rows": count_by_name.get(name)} for name in tracked]
        print_json({"file": str(file), **facts, "tables": rows})
        return
    for name, fact in facts.items():
        if isinstance(fact, list):
            fact = ", ".join(map(repr, fact))
        note = STATUS_NOTES.get(name, "")
        # What is about trouble is shown when there is any.
        if fact or not note:
            typer.echo(
                f"{name.replace('_', ' '):<10} {'none yet' if fact is None else plain(fact)}{note}"
            )
    listing = Table("table", box=None, pad_edge=False)
    listing.add_column("rows", justify="right")
    for name in tracked:
        # A table that was dropped is let go at the next sync.
        listing.add_row(Text(plain(name)), f"{count_by_name[name]:,}" if name in here else "gone")
    typer.echo()
    console().print(listing)


@app.command()
def verify(file: File, as_json: Json = False) -> None:
    """Check that every row of the tracked tables equals its document.

    Exits with 1 and lists the differences when one does not. Reads only.

    \b
    Example:
      reunite verify music.db
    """
    with _tracked(file) as replica:
        found = differences_of(replica.conn)
        tracked = {each.table.name for each in replica.tables() if each.tracked}
        rows = sum(_count(replica.conn, each) for each in tracked & {*table_names(replica.conn)})
    if as_json:
        listed = [difference._asdict() for difference in found]
        print_json({"file": str(file), "tables": len(tracked), "rows": rows, "differences": listed})
    else:
        for table, key, column, message in found[:DIFFERENCES_SHOWN_MAX]:
            place = [table, None if key is None else shown_key(key), column]
            typer.echo(plain(f"{' '.join(part for part in place if part is not None)}: {message}"))
        outcome = counted(len(found), "difference") if found else "all equal"
        typer.echo(f"{counted(rows, 'row')} in {counted(len(tracked), 'table')}: {outcome}")
    if found:
        raise typer.Exit(1)


# Sync.


@app.command()
def sync(
    file: File,
    url: Annotated[str, typer.Argument(metavar="URL", help="The relay's address.")],
    once: Annotated[bool, typer.Option("--once", help="Stop when caught up.")] = False,
    adopt: Annotated[Adopt | None, typer.Option(help=ADOPT_HELP)] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help=TIMEOUT_HELP)] = 30.0,
    as_json: Json = False,
) -> None:
    """Sync an SQLite file with a relay, until Ctrl-C or once.

    FILE is created when it is not there, with all tables of the relay. A table that the file has
    under the same name without tracking it is left alone.

    \b
    Examples:
      reunite sync music.db ws://127.0.0.1:8800
      reunite sync music.db ws://127.0.0.1:8800 --once
      reunite sync copy.db ws://127.0.0.1:8800 --once --adopt theirs
    """
    _check_relay_url(url)
    if as_json and not once:
        raise typer.BadParameter("--json tells how a sync ended; it goes with --once")
    choice: dict[Adopt | None, Choice] = {Adopt.THEIRS: "theirs", Adopt.OURS: "ours"}

    async def run() -> None:
        async with Database(file) as db:
            # What other programs wrote is taken in first, so that only the relay is waited for.
            await db.on_engine(db.replica.outbox_mark)
            first_load = not (await db.on_engine(db.replica.standing)).loaded
            watch = _Watch(timeout if once else None)
            async with Sync(db, url, adopt=choice.get(adopt), on_event=watch.on_event) as running:
                try:
                    await watch.until_caught_up(running, first_load=first_load)
                    await _report(db, watch, as_json=as_json)
                    if not once:
                        complain("in sync; Ctrl-C ends it")
                        await watch.follow(running)
                except asyncio.CancelledError:
                    if not as_json:
                        await _report(db, watch, as_json=False)
                    raise

    asyncio.run(run())


class _Watch:
    """Follows a `Sync` for the user: counts what came, says what happens, knows when to give up."""

    def __init__(self, timeout: float | None) -> None:
        """`timeout` is how long to wait for a relay that cannot be reached; None for ever."""
        self.received = 0
        self.rejections: list[GaveUp] = []
        self._timeout = timeout
        self._printed = 0
        self._said: str | None = None

    def on_event(self, event: Event) -> None:
        """Take in an event of the session; prints nothing, so it cannot fail."""
        if isinstance(event, Received):
            self.received += event.rows
        elif isinstance(event, GaveUp):
            self.rejections.append(event)

    async def until_caught_up(self, running: Sync, *, first_load: bool) -> None:
        """Wait for everything up to now. Raises SyncError when sync stops, or gets nowhere."""
        caught_up = asyncio.ensure_future(running.caught_up())
        reached, since = None, time.monotonic()
        try:
            with _bar(shown=first_load) as show:
                while not caught_up.done():
                    await asyncio.wait([caught_up], timeout=WATCH_SECONDS)
                    show(running)
                    self._say(running)
                    now = (self.received, len(self.rejections), running.status.queued)
                    if now != reached:
                        reached, since = now, time.monotonic()
                    self._check_patience(running, time.monotonic() - since)
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
        if self._timeout is None and status.state == "offline" and trouble not in ("", self._said):
            self._said = trouble
            complain(f"{trouble}; trying again")

    def _check_patience(self, running: Sync, idle_seconds: float) -> None:
        status = running.status
        if self._timeout is None or status.state == "loading":
            return
        if status.state != "live" and idle_seconds > self._timeout:
            why = status.last_error or "the relay did not answer"
            raise SyncError(f"{why} (tried for {self._timeout:g} s; --timeout tries longer)")
        if status.state == "live" and idle_seconds > LIVE_IDLE_SECONDS_MAX:
            raise SyncError(
                f"the relay answered nothing for {idle_seconds:.0f} s;"
                f" {counted(status.queued, 'changeset')} stay in the file, sync again later"
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


async def _report(db: Database, watch: _Watch, *, as_json: bool) -> None:
    standing = await db.on_engine(db.replica.standing)
    outcome = {"file": str(db.path), "received": watch.received, "pending": standing.pending}
    left_alone = list(standing.left_alone)
    if as_json:
        rejected = [asdict(each) for each in watch.rejections]
        print_json({**outcome, "rejected": rejected, "left_alone": left_alone})
        return
    for name in left_alone:
        complain(f"table {name!r} is not tracked here and was left alone; see `reunite track`")
    came, waits = counted(watch.received, "row"), counted(standing.pending, "changeset")
    refused = f", {standing.rejected:,} rejected" if standing.rejected else ""
    typer.echo(f"{plain(db.path)}: {came} received, {waits} pending{refused}")
    sys.stdout.flush()


def _check_relay_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise typer.BadParameter(f"{url!r} is not a relay's address, as ws://127.0.0.1:8800 is")


# The demo.


@app.command()
def demo(as_json: Json = False) -> None:
    """Watch three replicas drift apart and merge. Needs nothing and leaves nothing behind.

    Exits with 0 only if all three and Postgres end up equal.

    \b
    Example:
      reunite demo
    """
    from reunite_transport.demo import play
    from reunite_transport.relay.run import Stopped, run_until_stopped

    try:
        outcome = run_until_stopped(play(None if as_json else console()))
    except Stopped as stopped:
        raise typer.Exit(128 + stopped.signal) from None
    if as_json:
        print_json(outcome._asdict())
    if not outcome.equal:
        raise typer.Exit(1)


# Reading a file without changing it.


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads. Raises FileError for what is not there or not SQLite."""
    if not file.is_file():
        raise FileError(f"{file} {'is not a file' if file.exists() else 'does not exist'}")
    # Closing a writable connection moves what waits in the -wal into the file, and closing a
    # read-only one leaves -wal and -shm behind where there were none: neither may happen.
    mode = "ro" if Path(f"{file}-wal").exists() else "rw"
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as conn:
            conn.execute("PRAGMA query_only = 1")
            conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield conn
    except sqlite3.DatabaseError as error:
        raise FileError(f"{file} cannot be read: {error}") from error


@contextmanager
def _tracked(file: Path) -> Iterator[Replica]:
    with _reading(file) as conn:
        if not is_prepared(conn):
            raise FileError(f"{file} is not tracked; run `reunite track FILE --all` first")
        found = conn.execute("SELECT value FROM _reunite_meta WHERE name = 'format'").fetchone()
        if found != (FILE_FORMAT,):
            raise FileError(f"{file} was written by a newer reunite; upgrade this one")
        yield Replica(conn, chance=real_chance(), clock=real_clock)


def _count(conn: sqlite3.Connection, table: str) -> int:
    found: int = conn.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0]
    return found
