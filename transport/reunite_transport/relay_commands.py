"""The commands of whoever runs a relay: `reunite relay | untrack`."""

import asyncio
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from reunite import UsageError
from reunite_transport.console import Json, complain, plain, print_json
from reunite_transport.interrupt import ending_at_once

POSTGRES_HELP: Final = (
    "A Postgres of yours to keep the tables in; the variable PGPASSWORD may hold its password."
    " Default: one that the relay brings."
)
DATA_HELP: Final = (
    "The folder of the Postgres that the relay brings; default: reunite-data in $XDG_DATA_HOME"
    " or ~/.local/share."
)
HOST_HELP: Final = "The address to listen on."
PORT_HELP: Final = "The port to listen on; 0 takes a free one."
TRACK_HELP: Final = "Tables of the database to take into sync, as they are; names with commas."
TRACK_ALL_HELP: Final = (
    "Take all tables of the database into sync, also those that are made while the relay runs."
)
CREATE_HELP: Final = (
    "Whether files may bring tables that Postgres lacks; default: yes, but no with --postgres."
)
INSECURE_HELP: Final = "Allow a --host that other machines can reach; whoever can may change all."
RESTORE_HELP: Final = (
    "When the database was restored from a backup: take back what files know of later commits, or"
    " not (they keep it in reunite_rejected)."
)
LOG_FORMAT_HELP: Final = "How to write the log, to stderr: lines for people, or JSON objects."
LOG_LEVEL_HELP: Final = "What to log; no level shows what is in a row."
HISTORY_HELP: Final = "Whether to keep values that merges overwrite, the newest of each row."
UNTRACK_POSTGRES_HELP: Final = "The Postgres that the tables are in."
UNTRACK_TABLES_HELP: Final = "The tables to let go of."
UNTRACK_ALL_HELP: Final = "Let go of all tables, and of all that relays made in the database."

AfterRestore = StrEnum("AfterRestore", ["REFILL", "DISCARD"])
LogFormat = StrEnum("LogFormat", ["TEXT", "JSON"])
LogLevel = StrEnum("LogLevel", ["DEBUG", "INFO", "WARNING", "ERROR"])


def relay(
    postgres: Annotated[str | None, typer.Option(metavar="URL", help=POSTGRES_HELP)] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help=DATA_HELP)] = None,
    track: Annotated[str | None, typer.Option(metavar="TABLE,...", help=TRACK_HELP)] = None,
    track_all: Annotated[bool, typer.Option("--track-all", help=TRACK_ALL_HELP)] = False,
    host: Annotated[str, typer.Option(metavar="H", help=HOST_HELP)] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help=PORT_HELP)] = 8800,
    create_tables: Annotated[
        bool | None,
        typer.Option("--create-tables/--no-create-tables", help=CREATE_HELP, show_default=False),
    ] = None,
    after_restore: Annotated[AfterRestore, typer.Option(help=RESTORE_HELP)] = AfterRestore.REFILL,
    history: Annotated[bool, typer.Option("--history/--no-history", help=HISTORY_HELP)] = True,
    insecure: Annotated[bool, typer.Option("--insecure", help=INSECURE_HELP)] = False,
    log_format: Annotated[LogFormat, typer.Option(help=LOG_FORMAT_HELP)] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option(help=LOG_LEVEL_HELP)] = LogLevel.WARNING,
    as_json: Json = False,
) -> None:
    """Run the relay that files sync with, until Ctrl-C or SIGTERM.

    It keeps ordinary Postgres tables equal to the files, and prints the addresses of both. Backends
    may write the tables with SQL of their own. Clients do not sign in yet, so it listens on this
    machine only, unless --insecure says that the network can be trusted.

    \b
    Examples:
      reunite relay
      reunite relay --postgres postgresql://me@localhost/app --create-tables
      reunite relay --postgres postgresql://me@localhost/shop --track customer,invoice
    """
    if postgres is not None and data is not None:
        raise UsageError("--data is for the embedded Postgres; leave it or --postgres out")
    if track is not None and track_all:
        raise UsageError("--track names tables and --track-all takes all; leave one of them out")
    names = None if track is None else [name.strip() for name in track.split(",") if name.strip()]
    if names == []:
        raise UsageError("--track names no table; name some, with commas between")
    with ending_at_once():
        from reunite_transport.relay import logs, run

    logs.set_up(sys.stderr, as_json=log_format is LogFormat.JSON, level=log_level.name)

    async def serve() -> None:
        async with run.running_relay(
            postgres=postgres,
            data=data,
            host=host,
            port=port,
            track=names,
            track_all=track_all,
            create_tables=create_tables,
            refill=after_restore is AfterRestore.REFILL,
            history=history,
            insecure=insecure,
        ) as running:
            for error in running.refused:
                complain(f"{error} (not synced)")
            shown = {"url": running.url, "postgres": run.without_password(running.postgres)}
            data_shown = None if running.data is None else str(running.data)
            tracked = names is not None or track_all
            if as_json:
                tables = {"tables": list(running.tables)} if tracked else {}
                print_json({**shown, "data": data_shown, **tables})
            else:
                shown |= {} if data_shown is None else {"data": data_shown}
                shown |= {"tables": ", ".join(running.tables)} if tracked else {}
                for name, value in shown.items():
                    typer.echo(f"{name:<9} {plain(value)}")
            sys.stdout.flush()
            await asyncio.Event().wait()

    # It takes Ctrl-C over as soon as there is something to stop.
    with ending_at_once(), suppress(run.Stopped):
        run.run_until_stopped(serve())


def untrack(
    postgres: Annotated[
        str, typer.Option(metavar="URL", help=UNTRACK_POSTGRES_HELP, show_default=False)
    ],
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="TABLE", help=UNTRACK_TABLES_HELP, show_default=False),
    ] = None,
    all_tables: Annotated[bool, typer.Option("--all", help=UNTRACK_ALL_HELP)] = False,
    as_json: Json = False,
) -> None:
    """Let go of tables of a Postgres: they stay as they are, with their rows, and sync no more.

    With --all nothing of a relay remains in the database, and files have to start anew if it is
    tracked again. Stop the relays first.

    \b
    Examples:
      reunite untrack --postgres postgresql://me@localhost/shop invoice
      reunite untrack --postgres postgresql://me@localhost/shop --all
    """
    if bool(tables) == all_tables:
        raise UsageError("name the tables to let go of, or pass --all, and not both")
    with ending_at_once():
        from reunite_transport.relay.postgres_untrack import untrack as let_go
        from reunite_transport.relay.run import check_postgres
    check_postgres(postgres)
    gone = asyncio.run(let_go(postgres, None if all_tables else tables))
    if as_json:
        print_json({"untracked": gone})
    else:
        for name in gone:
            typer.echo(f"{plain(name)} syncs no more")
        if all_tables:
            typer.echo("nothing of a relay is left in the database")
