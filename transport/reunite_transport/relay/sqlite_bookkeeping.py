"""The relay's own tables in a realm's SQLite file: what each holds, and making them once.

All names start with `_reunite_`, and mean what they mean on Postgres. Times are milliseconds since
1970 UTC. Format 1 of these tables; a newer one is refused.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from reunite.cells.register import Value
from reunite.clock import RELAYS_FROM
from reunite_transport.messages import REALM_BYTES
from reunite_transport.relay.store import StoreError

FORMAT: Final = 1

# SQLite's default ceiling for bound variables was 999 until 3.32; a batch of 900 costs no more.
_VARIABLES_MAX: Final = 900
_REPLICA_BYTES: Final = 8

# What commits overwrote, the newest of each row: a document of the cells that gave way, the stamp
# of what took their place, and the commit. place counts within a row, a large document by its size,
# so that a row can end its history. Of a later release of this format: made in files that lack it.
_HISTORY: Final = """CREATE TABLE IF NOT EXISTS _reunite_history (
    tbl INTEGER NOT NULL, key BLOB NOT NULL, place INTEGER NOT NULL, seq INTEGER NOT NULL,
    replaced_by BLOB NOT NULL, document BLOB NOT NULL, PRIMARY KEY (tbl, key, place)
) WITHOUT ROWID"""

# What other programs wrote to the app's tables and no commit has folded yet, see `sqlite_capture`,
# and the flag that says who writes: one row, set only within the relay's own transactions. Of a
# later release of this format, too.
_CAPTURED: Final = (
    """CREATE TABLE IF NOT EXISTS _reunite_captured (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tbl INTEGER NOT NULL, at INTEGER NOT NULL,
        had INTEGER NOT NULL, has INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS _reunite_captured_values (
        write INTEGER NOT NULL, col INTEGER NOT NULL, before, after, PRIMARY KEY (write, col)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS _reunite_relay (
        one INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1), writes INTEGER NOT NULL)""",
    "INSERT OR IGNORE INTO _reunite_relay (one, writes) VALUES (1, 0)",
)

_DDL: Final = (
    # Which realm this file is, and the format of these tables. One row.
    """CREATE TABLE _reunite_meta (
        one INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1), realm BLOB NOT NULL,
        format INTEGER NOT NULL)""",
    # The last commit, and how often the registry has grown. One row.
    """CREATE TABLE _reunite_head (
        one INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1), seq INTEGER NOT NULL,
        token BLOB NOT NULL, registry INTEGER NOT NULL)""",
    # The schema registry. columns_used is the highest column id ever given, so that none is given
    # twice.
    """CREATE TABLE _reunite_tables (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, columns_used INTEGER NOT NULL,
        description TEXT NOT NULL)""",
    # The CRDT document of every row, the dead ones too, and the commit that changed it last. Scope
    # 0 is that of rows that no rule puts elsewhere.
    """CREATE TABLE _reunite_documents (
        tbl INTEGER NOT NULL, key BLOB NOT NULL, scope INTEGER NOT NULL DEFAULT 0,
        seq INTEGER NOT NULL, document BLOB NOT NULL, PRIMARY KEY (tbl, key)
    ) WITHOUT ROWID""",
    # The feed reads in this order: pages of one commit can end anywhere.
    "CREATE INDEX _reunite_documents_feed ON _reunite_documents (seq, tbl, key)",
    # Every commit. A client's cursor is a (seq, token): one that is not here belongs to another
    # history, so this file was restored or wiped.
    """CREATE TABLE _reunite_commits (
        seq INTEGER PRIMARY KEY, token BLOB NOT NULL, at INTEGER NOT NULL,
        relay INTEGER NOT NULL)""",
    # Clients: the term of the newest session, which fences off older ones, and the number of the
    # last accepted changeset.
    """CREATE TABLE _reunite_replicas (
        replica INTEGER PRIMARY KEY, term INTEGER NOT NULL, last INTEGER NOT NULL,
        seen_at INTEGER NOT NULL)""",
    # Accepted changesets, so that a client that reconnects learns which of its own are in, and a
    # copied file is told from its twin.
    """CREATE TABLE _reunite_changesets (
        replica INTEGER NOT NULL, number INTEGER NOT NULL, nonce BLOB NOT NULL,
        seq INTEGER NOT NULL, PRIMARY KEY (replica, number)
    ) WITHOUT ROWID""",
    # A copied file pushes what the other has pushed, under another replica id.
    "CREATE INDEX _reunite_changesets_nonce ON _reunite_changesets (nonce)",
)


class Head(NamedTuple):
    """The head's row."""

    seq: int
    token: bytes
    registry: int


def connect(path: Path | str, *, durable: bool, reading: bool = False) -> sqlite3.Connection:
    """A connection that begins no transaction by itself and waits for no lock. Foreign keys are
    the store's to hold, see `sqlite_references`."""
    # Absolute, so that no name means a database in memory, which two connections cannot share.
    connection = sqlite3.connect(Path(path).absolute(), isolation_level=None, timeout=0)
    try:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        connection.execute(f"PRAGMA query_only = {int(reading)}")
    except BaseException:
        connection.close()
        raise
    return connection


def bootstrap(
    connection: sqlite3.Connection, path: Path | str, chance: Callable[[int], bytes]
) -> bytes:
    """Make the tables where the file is empty, and return the realm's identity. Of two that do so
    at once one gets SQLite's busy error and tries again.

    Raises StoreError for a file of something else, which is left as it is, and for a newer format.
    """
    _refuse_others(connection, path)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"{path} cannot be in WAL mode, as on a network's disk; put it on one of this machine"
        )
    with transaction(connection):
        _refuse_others(connection, path)
        if not _names(connection):
            for statement in _DDL:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO _reunite_meta (realm, format) VALUES (?, ?)",
                (chance(REALM_BYTES), FORMAT),
            )
            connection.execute(
                "INSERT INTO _reunite_head (seq, token, registry) VALUES (0, x'', 0)"
            )
        for statement in (_HISTORY, *_CAPTURED):
            connection.execute(statement)
        found = connection.execute("SELECT realm, format FROM _reunite_meta").fetchone()
    if found is None:
        raise StoreError(f"{path}: _reunite_meta is empty; restore this file")
    realm: bytes = found[0]
    if found[1] > FORMAT:
        raise StoreError(
            f"{path} was written by a newer reunite (format {found[1]}, this one knows {FORMAT});"
            " upgrade the relay"
        )
    return realm


def new_replica_id(chance: Callable[[int], bytes]) -> int:
    """A replica id of a relay; see `reunite.clock`."""
    return int.from_bytes(chance(_REPLICA_BYTES), "big") >> 1 | RELAYS_FROM


def read_head(connection: sqlite3.Connection) -> Head:
    """The head, as the open transaction sees it."""
    row = connection.execute("SELECT seq, token, registry FROM _reunite_head").fetchone()
    if row is None:
        raise StoreError("_reunite_head is empty; restore this file")
    return Head(*row)


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """A transaction that is committed when the block ends, and rolled back when it raises. An
    IMMEDIATE one holds the head, as it may write; a DEFERRED one is a snapshot to read."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has rolled back already, and a closed connection cannot.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def in_batches(rows: Sequence[Sequence[Value]]) -> Iterator[tuple[str, list[Value]]]:
    """The rows as a few `VALUES (?, ?), (?, ?)` and their parameters."""
    if not rows:
        return
    width = len(rows[0])
    step = _VARIABLES_MAX // width
    marks = f"({', '.join('?' * width)})"
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        yield (
            f"VALUES {', '.join([marks] * len(some))}",
            [value for row in some for value in row],
        )


def _refuse_others(connection: sqlite3.Connection, path: Path | str) -> None:
    names = _names(connection)
    # A client's file has a _reunite_meta, too.
    if names and "_reunite_head" not in names:
        raise StoreError(
            f"{path} is an SQLite file, but not of a relay; give the relay a file of its own"
        )


def _names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
