"""The command line: `reunite relay | track | sync | status | verify | reload | demo | untrack`.

Owns arguments, output and exit codes: 0 it is so, 1 it is not or it failed, 2 a wrong call. What a
program may read goes to stdout, with --json as one object; everything else, one line each, to
stderr. Names and values from files are shown as they are, never as markup or control codes.

`status` and `verify` read a file through a connection of their own, which creates and changes
nothing; all else goes through `Database`. What only some commands need is imported by them.
"""

import asyncio
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, cast
from urllib.parse import urlsplit

import typer

from reunite import Database, FileError, ReuniteError, UsageError
from reunite.adopt import Choice
from reunite.bookkeeping import FILE_FORMAT, is_prepared, load_meta
from reunite.driver import real_chance, real_clock
from reunite.local_only import names as local_names
from reunite.replica import Replica
from reunite.schema import ascii_lower, quoted, read_table, table_names
from reunite.verify import verify as differences_of
from reunite_transport.console import (
    Json,
    complain,
    console,
    counted,
    plain,
    print_json,
    shown_key,
)
from reunite_transport.interrupt import ending_at_once
from reunite_transport.relay_commands import relay, untrack
from reunite_transport.trouble import file_trouble

# Nobody scrolls through more; the number of all is stated.
DIFFERENCES_SHOWN_MAX: Final = 1_000
# What the facts of `status` that are about trouble mean.
STATUS_NOTES: Final = {
    "unfolded": " (writes by other programs, to be looked at in the next sync)",
    "rejected": " (rows in the table reunite_rejected)",
    "blocked": " (rows that the tables did not take; tried again at each sync)",
    "left_alone": " (tables that the relay has too: `reunite track` takes them in)",
    "local_only": " (tables that are kept in this file)",
    "untracked": " (tables that stay in this file)",
}
# What the command line itself raises for arguments that it cannot take.
WRONG_CALL: Final = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

TABLES_HELP: Final = "The tables to take in."
EXCEPT_HELP: Final = "With --all: a table that stays in this file, also later. May be repeated."
URL_HELP: Final = "The relay's address, such as ws://127.0.0.1:8800."
ONCE_HELP: Final = "Stop when all is sent and received."
ADOPT_HELP: Final = (
    "Where tracked tables of the file and of the relay hold different rows under the same keys:"
    " take the relay's (theirs) or the file's (ours)."
)
TIMEOUT_HELP: Final = "With --once: how long to try to reach the relay."
WEB_HELP: Final = "A to-do app on three devices side by side, in a browser."
PORT_HELP: Final = "With --web: where the page is; 0 for any free port."
NO_OPEN_HELP: Final = "With --web: only print the page's address."
app = typer.Typer(
    help="""Your data drifts apart offline. reunite merges it.

    \b
    To see it:
      reunite demo
    To sync an SQLite file, with the relay in another terminal:
      reunite relay
      reunite track music.db --all
      reunite sync music.db ws://127.0.0.1:8800
    """,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: the same on every terminal and in a file.
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="An SQLite file.", show_default=False)]


# Whose rows count where this file and the relay brought different ones.
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
        _add_commands(sys.argv[1:])
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
    except (ReuniteError, OSError, sqlite3.Error, UnicodeError) as error:
        complain(str(error) or type(error).__name__)
        code = 1
    except WRONG_CALL as error:
        complain(error.format_message())
        code = 2
    sys.exit(code or 0)


def _add_commands(arguments: list[str]) -> None:
    """Take in the commands of other packages, unless it is one of our own that is wanted."""
    own = {command.callback.__name__ for command in app.registered_commands if command.callback}
    if arguments and arguments[0] in own:
        return
    # Imported here: it reads mail headers, and most commands need none.
    from importlib.metadata import entry_points

    for each in entry_points(group="reunite.commands"):
        app.command(each.name)(each.load())


def _show_version(wanted: bool) -> None:
    if wanted:
        # Imported here: it reads mail headers, and no other command has any.
        from importlib.metadata import version

        typer.echo(f"reunite {version('reunite')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    # What belongs to no command.
    pass


# In the order in which help lists them.
app.command()(relay)


# Tracking.


@app.command()
def track(
    file: File,
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE", help=TABLES_HELP, show_default=False)
    ] = None,
    all_tables: Annotated[bool, typer.Option("--all", help="All tables of the file.")] = False,
    except_: Annotated[
        list[str] | None, typer.Option("--except", metavar="TABLE", help=EXCEPT_HELP)
    ] = None,
    as_json: Json = False,
) -> None:
    """Take tables of an SQLite file into sync, with the rows they have.

    Nothing is sent yet; `reunite sync` does that. The tables themselves are not changed. The file
    gets tables and triggers whose names begin with _reunite_ or reunite_, and is switched to WAL
    mode.

    \b
    Examples:
      reunite track music.db Artist Album
      reunite track music.db --all
      reunite track music.db --all --except draft
    """
    if except_ and not all_tables:
        raise UsageError("--except goes with --all")
    if bool(tables) == all_tables:
        raise UsageError("name the tables to track, or pass --all, and not both")
    with _reading(file) as conn:
        switched = conn.execute("PRAGMA journal_mode").fetchone()[0] != "wal"
        # All are looked at first: a file with a table that is refused is not changed at all.
        stay = [read_table(conn, name).name for name in except_ or ()]
        left_out = {ascii_lower(name) for name in (*stay, *_local_only(conn))}
        wanted = tables or [n for n in table_names(conn) if ascii_lower(n) not in left_out]
        found = [read_table(conn, name).name for name in wanted]
        count_by_name = {name: _count(conn, name) for name in found}
    if not found:
        raise FileError(f"{file} has no tables to track; create one first")

    async def run() -> list[str]:
        async with Database(file) as db:
            await db.keep_local(*stay)
            return await db.track(*count_by_name)

    with _naming(file):
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


# Sync.


@app.command()
def sync(
    file: File,
    url: Annotated[str, typer.Argument(metavar="URL", help=URL_HELP)],
    once: Annotated[bool, typer.Option("--once", help=ONCE_HELP)] = False,
    adopt: Annotated[Adopt | None, typer.Option(help=ADOPT_HELP)] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help=TIMEOUT_HELP)] = 30.0,
    as_json: Json = False,
) -> None:
    """Sync an SQLite file with a relay, until Ctrl-C or once.

    FILE is created when it is not there, with all tables of the relay. A table that the file has
    under the same name without tracking it is left alone: `reunite track` takes it in.

    \b
    Examples:
      reunite sync music.db ws://127.0.0.1:8800
      reunite sync music.db ws://127.0.0.1:8800 --once
      reunite sync copy.db ws://127.0.0.1:8800 --once --adopt theirs
    """
    _check_sync(file, url)
    if as_json and not once:
        raise UsageError("--json tells how a sync ended; it goes with --once")
    with ending_at_once():
        from reunite_transport.watch import sync_file
    choice: dict[Adopt | None, Choice] = {Adopt.THEIRS: "theirs", Adopt.OURS: "ours"}
    patience = timeout if once else None
    with _naming(file), _taken_back(file):
        asyncio.run(
            sync_file(file, url, patience=patience, adopt=choice.get(adopt), as_json=as_json)
        )


def _check_sync(file: Path, url: str) -> None:
    """Refuse what cannot be synced, with a word on what may have been meant."""
    # A path has lost the second slash of an address.
    address = re.match(r"(wss?|https?):/+(.*)", str(file))
    if address:
        meant = f"{plain(url)} {address[1]}://{address[2]}"
        raise UsageError(f"the file comes first: reunite sync {meant}")
    if not _is_relay_url(url):
        meant = re.sub("^http", "ws", url) if "://" in url else f"ws://{url}"
        fits = ":" in url and _is_relay_url(meant)
        hint = f"; write {meant}" if fits else ", as ws://127.0.0.1:8800 is"
        raise UsageError(f"{url!r} is not a relay's address{hint}")
    if file.is_dir():
        raise FileError(f"{file} is a folder; name an SQLite file")
    if not file.parent.is_dir():
        raise FileError(f"{file} cannot be made: there is no folder {file.parent}; make it first")


def _is_relay_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # A name that cannot be looked up raises here.
        name = (parts.hostname or "").encode("idna")
        return parts.scheme in ("ws", "wss") and bool(name) and parts.port != 0
    except ValueError:
        return False


@contextmanager
def _taken_back(file: Path) -> Iterator[None]:
    """Take away again a file that a failing sync has made and no relay has filled."""
    made_here = not file.is_symlink() and not file.exists()
    try:
        yield
    except BaseException:
        if made_here:
            _remove_blank(file)
        raise


def _remove_blank(file: Path) -> None:
    """Remove a file that holds our own tables and nothing in them, unless anybody has it open."""
    uri = f"{file.absolute().as_uri()}?mode=rw"
    with (
        suppress(sqlite3.Error, OSError),
        closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0)) as conn,
    ):
        # Every other connection that has ever read keeps a lock on a file in WAL mode, so that
        # this one fails to read; and while it lasts, no other can begin to.
        conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        realm = conn.execute("SELECT value FROM _reunite_meta WHERE name = 'realm'").fetchall()
        others = conn.execute(
            "SELECT count(*) FROM sqlite_master WHERE name NOT GLOB '_reunite_*'"
            " AND name NOT GLOB 'sqlite_*' AND name NOT IN ('reunite_rejected', 'reunite_rows')"
        ).fetchall()
        if (realm, others) == ([(None,)], [(0,)]):
            # Takes the -wal away, and ours is the only connection that would miss it.
            conn.execute("PRAGMA journal_mode = DELETE")
            file.unlink()


# Looking at a file.


@app.command()
def status(file: File, as_json: Json = False) -> None:
    """Show how a tracked file stands: tables, pending work, last sync.

    Pending are changesets that the relay has not acknowledged. Reads only.

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
        "local_only": list(standing.local_only),
        "untracked": [
            name for name in here if name not in {*tracked, *left_alone, *standing.local_only}
        ],
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
    # Imported here: `reunite --help` and most commands print no table.
    from rich.table import Table
    from rich.text import Text

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

    The document of a row is what is synced. Exits with 1 and lists the differences when one is not
    equal. Reads only.

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


@app.command()
def reload(file: File, as_json: Json = False) -> None:
    """Have the next sync load everything from the relay once more.

    What was not sent is kept, and sent. Until all has arrived the tables stay as they are; then
    rows that the relay no longer has are gone. A sync that runs begins at once.

    \b
    Example:
      reunite reload phone.db
    """
    with _tracked(file):
        pass

    async def run() -> int:
        async with Database(file) as db:
            await db.reload()
            return await db.on_engine(db.replica.queued)

    with _naming(file):
        pending = asyncio.run(run())
    if as_json:
        print_json({"file": str(file), "pending": pending})
        return
    kept = f"{counted(pending, 'changeset')} pending"
    typer.echo(f"{plain(file)}: the next sync loads everything again; {kept}, which will be sent")


# The demo.


@app.command()
def demo(
    web: Annotated[bool, typer.Option("--web", help=WEB_HELP)] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help=PORT_HELP)] = 8080,
    no_open: Annotated[bool, typer.Option("--no-open", help=NO_OPEN_HELP)] = False,
    as_json: Json = False,
) -> None:
    """Watch three files drift apart and merge. Needs nothing and leaves nothing behind.

    Brings a relay and a Postgres of its own. Exits with 0 only if all three files and Postgres end
    up equal. With --web it is a to-do app on three devices, in a browser, until Ctrl-C.

    \b
    Examples:
      reunite demo
      reunite demo --web
    """
    if web:
        if as_json:
            raise UsageError("--json tells how the demo ended; it does not go with --web")
        _demo_in_browser(port, not no_open)
        return
    with ending_at_once():
        from reunite_transport.demo import play
        from reunite_transport.relay.run import Stopped, run_until_stopped

    try:
        with ending_at_once():
            outcome = run_until_stopped(play(None if as_json else console()))
    except Stopped as stopped:
        raise typer.Exit(128 + stopped.signal) from None
    if as_json:
        print_json(outcome._asdict())
    if not outcome.equal:
        raise typer.Exit(1)


def _demo_in_browser(port: int, wants_browser: bool) -> None:
    with ending_at_once():
        import webbrowser

        from reunite_transport.demo_web import running_demo
        from reunite_transport.relay.run import Stopped, run_until_stopped

    async def run() -> None:
        typer.echo("starting a relay and three devices ...")
        async with running_demo(port) as url:
            typer.echo(f"{url} shows them; Ctrl-C ends the demo")
            sys.stdout.flush()
            if wants_browser:
                await asyncio.to_thread(webbrowser.open, url)
            await asyncio.Event().wait()

    try:
        run_until_stopped(run())
    except Stopped as stopped:
        raise typer.Exit(128 + stopped.signal) from None


# Files.


app.command()(untrack)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Have errors of SQLite say which file they are about, and what may help."""
    try:
        yield
    except sqlite3.Error as error:
        raise FileError(file_trouble(file, error)) from error


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads and changes nothing. Raises FileError for what is not there or not
    SQLite."""
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
        raise FileError(file_trouble(file, error)) from error


@contextmanager
def _tracked(file: Path) -> Iterator[Replica]:
    with _reading(file) as conn:
        if not is_prepared(conn):
            raise FileError(f"{file} is not tracked; run `reunite track FILE --all` first")
        found = conn.execute("SELECT value FROM _reunite_meta WHERE name = 'format'").fetchone()
        if found != (FILE_FORMAT,):
            raise FileError(f"{file} was written by a newer reunite; upgrade this one")
        yield Replica(conn, chance=real_chance(), clock=real_clock)


def _local_only(conn: sqlite3.Connection) -> list[str]:
    return local_names(load_meta(conn)) if is_prepared(conn) else []


def _count(conn: sqlite3.Connection, table: str) -> int:
    found: int = conn.execute(f"SELECT count(*) FROM {quoted(table)}").fetchone()[0]
    return found
