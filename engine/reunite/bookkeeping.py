"""Our own tables in the app's file: their DDL, versions and the state kept in them. File format 1.

Everything is prefixed `_reunite_`, but for the two that are made for the app to read:
`reunite_rows` (the sync state of each row) and `reunite_rejected` (what could not be synced).
"""

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from reunite.cells.register import Value
from reunite.errors import FileError
from reunite.payload import RowRef, pack_table, unpack_table
from reunite.schema import PROVISIONAL_ID, Table

FILE_FORMAT: Final = 1

# What merges overwrote, as far as this file saw it: documents of the cells that gave way, and the
# stamp of what took their place (see `reunite.overwritten`). place counts within a row, a large
# document by its size, so that a row's history can end. Files of the first releases lack it.
_HISTORY: Final = """CREATE TABLE IF NOT EXISTS _reunite_history (
    tbl INTEGER NOT NULL, key NOT NULL, place INTEGER NOT NULL, replaced_by BLOB NOT NULL,
    document BLOB NOT NULL, PRIMARY KEY (tbl, key, place)
) WITHOUT ROWID"""

# What changed of each row since when, for an app that follows it; see `changes`.
_CHANGES: Final = (
    """CREATE TABLE IF NOT EXISTS _reunite_changes (
        tbl INTEGER NOT NULL, key NOT NULL, turn INTEGER NOT NULL, born INTEGER NOT NULL,
        author TEXT, edits TEXT NOT NULL, PRIMARY KEY (tbl, key)) WITHOUT ROWID""",
    # Who follows reads what is newer than what it was told.
    "CREATE INDEX IF NOT EXISTS _reunite_changes_turn ON _reunite_changes (turn)",
)

# Changesets that were refused, or a part of them: an app may ask long after it has dealt with what
# `reunite_rejected` told it. Files of the first releases lack it.
_REFUSED: Final = """CREATE TABLE IF NOT EXISTS _reunite_refused (changeset INTEGER PRIMARY KEY)"""

_DDL: Final = (
    # Single facts about this replica: its identity, cursor and clock offset.
    """CREATE TABLE _reunite_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID""",
    # The realm's tables. state: 'tracked' here, or 'remote' (its documents are kept, no table).
    """CREATE TABLE _reunite_tables (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL,
        description BLOB NOT NULL, remote BLOB, sql TEXT)""",
    # Captured keys. No constraint and no index: an app's OR ABORT would make it fail the app.
    """CREATE TABLE _reunite_log (id INTEGER PRIMARY KEY, tbl, at, k0)""",
    # One line a row: base as the relay stated it, visible = base joined with pending (NULL when
    # nothing is), image where the table differs, the last pending changeset, and a mark.
    """CREATE TABLE _reunite_rows (
        tbl INTEGER NOT NULL, key NOT NULL, base BLOB, visible BLOB, image BLOB,
        changeset INTEGER, alive INTEGER NOT NULL, mark TEXT, PRIMARY KEY (tbl, key)
    ) WITHOUT ROWID""",
    # Marked rows are retried and counted; there are few.
    """CREATE INDEX _reunite_rows_marked ON _reunite_rows (mark) WHERE mark IS NOT NULL""",
    # The outbox, in order of id. number: given at the first send, the payload is frozen from then
    # on. seq: the relay has it, and it goes when the cursor reaches that commit. An id is never
    # used again, as it marks how far a caller wants the outbox to be resolved.
    """CREATE TABLE _reunite_changesets (
        id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER, nonce BLOB NOT NULL,
        loose INTEGER NOT NULL, adopting INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        seq INTEGER, rows INTEGER NOT NULL, payload BLOB NOT NULL)""",
    # What has arrived but must not show before its snapshot is whole.
    """CREATE TABLE _reunite_inbox (
        id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, message BLOB NOT NULL)""",
    _HISTORY,
    *_CHANGES,
    _REFUSED,
    """CREATE TABLE reunite_rejected (
        id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, "table" TEXT NOT NULL, key,
        kind TEXT NOT NULL,
        reason TEXT NOT NULL, message TEXT NOT NULL, "values" TEXT NOT NULL)""",
    """CREATE VIEW reunite_rows AS
        SELECT t.name AS "table", r.key AS key,
            CASE WHEN r.mark IS NOT NULL THEN r.mark
                 WHEN r.changeset IS NULL THEN 'synced'
                 WHEN c.number IS NULL THEN 'pending' ELSE 'sent' END AS state
        FROM _reunite_rows AS r JOIN _reunite_tables AS t ON t.id = r.tbl
            LEFT JOIN _reunite_changesets AS c ON c.id = r.changeset
        WHERE t.state = 'tracked' AND (r.alive OR r.changeset IS NOT NULL OR r.mark IS NOT NULL)""",
)

# Changeset ids leave room between neighbours, so that one can be split in its place.
CHANGESET_ID_STEP: Final = 1 << 32


@dataclass(slots=True)
class Meta:
    """The single facts of a replica, as kept in `_reunite_meta`."""

    format: int = FILE_FORMAT
    replica: int = 0
    # The realm's identity; None until the file first met a relay.
    realm: bytes | None = None
    # The highest changeset number that the relay has resolved.
    acknowledged: int = 0
    # The cursor: everything up to commit `seq` is integrated.
    seq: int = 0
    token: bytes = b""
    # 1 when a first load has been completed.
    loaded: int = 0
    # Where a load goes on, after some rows of the commit that the token names; None when there is
    # none under way.
    load_seq: int | None = None
    load_within: bytes | None = None
    load_token: bytes | None = None
    # How far this machine's clock is ahead of the relay's, as last measured.
    offset_ms: int = 0
    # The last id given to a column that the registry had not numbered.
    provisional: int = PROVISIONAL_ID
    # Changes whenever `_reunite_tables` does.
    catalog: int = 0
    # How often work of this file was given up, or became another replica's.
    refusals: int = 0
    # Changesets up to this id may be in another file as well, which this one is a copy of, or that
    # is a copy of this one.
    shared: int = 0
    # The tables that were made from the relay's description, and are no app's own: ids with commas.
    made: str = ""
    # Counts commits of engines that touched rows of tracked tables; see `turns`.
    turn: int = 0
    # Names the log of changes that the app follows; 0 while it follows none. See `changes`.
    feed: int = 0
    # How often a session has greeted a relay: the last one alone speaks for the file. Negative when
    # that one is to end, too, as everything is to be loaded again; and that is 1 until it has been.
    greetings: int = 0
    reloading: int = 0
    # The tables that stay in this file: a JSON array of names.
    local_only: str = "[]"
    # SQLite's own schema counter when the tables were last looked at.
    schema_version: int = -1
    last_sync_ms: int | None = None


_META_NAMES: Final = tuple(field.name for field in dataclasses.fields(Meta))


class Row(NamedTuple):
    """A line of `_reunite_rows`."""

    base: bytes | None = None
    visible: bytes | None = None
    image: bytes | None = None
    changeset: int | None = None
    alive: bool = False
    mark: str | None = None

    @property
    def document(self) -> bytes | None:
        """The visible document: base joined with pending."""
        return self.base if self.visible is None else self.visible


NO_ROW: Final = Row()


@dataclass(frozen=True, slots=True)
class Tracked:
    """A table of the realm in this file. `table`'s column ids name cells in this file's
    documents; `remote` is the table as the relay's registry has it, None before they met; `sql`
    is SQLite's own text of it, whose change calls for a `rescan`."""

    id: int
    table: Table
    tracked: bool
    remote: Table | None = None
    sql: str | None = None

    @property
    def registry(self) -> int | None:
        """The relay's id for the table."""
        return self.remote.id if self.remote else None


def is_prepared(conn: sqlite3.Connection) -> bool:
    """True when the file has our tables."""
    found = conn.execute("SELECT 1 FROM sqlite_master WHERE name = '_reunite_meta'").fetchone()
    return found is not None


def prepare(conn: sqlite3.Connection, new_replica: Callable[[], int]) -> None:
    """Make our tables in a file that has none. Raises FileError for one of a newer format."""
    if not is_prepared(conn):
        for statement in _DDL:
            conn.execute(statement)
        save_meta(conn, Meta(replica=new_replica()))
    load_meta(conn)


def complete(conn: sqlite3.Connection) -> None:
    """Make the tables that a file of this format was made without, by an earlier release."""
    for statement in (_HISTORY, _REFUSED, *_CHANGES):
        conn.execute(statement)


def load_meta(conn: sqlite3.Connection) -> Meta:
    """The replica's facts. Raises FileError for a file of a newer format."""
    facts = dict(conn.execute("SELECT name, value FROM _reunite_meta").fetchall())
    if facts.get("format") != FILE_FORMAT:
        raise FileError(
            f"this file was written in format {facts.get('format')}, and this reunite knows"
            f" {FILE_FORMAT}; upgrade reunite"
        )
    # A fact of a later release that kept the format is its own business.
    return Meta(**{name: facts[name] for name in _META_NAMES if name in facts})


def turn_of(conn: sqlite3.Connection) -> int:
    """How many turns the file has seen."""
    found = conn.execute("SELECT value FROM _reunite_meta WHERE name = 'turn'").fetchone()
    return int(found[0]) if found else 0


def schema_seen(conn: sqlite3.Connection) -> int:
    """SQLite's counter of schema changes as the last fold left it."""
    found = conn.execute("SELECT value FROM _reunite_meta WHERE name = 'schema_version'").fetchone()
    return int(found[0]) if found else -1


def save_turn(conn: sqlite3.Connection, turn: int) -> None:
    """Note that this is one more turn; each small write does."""
    found = conn.execute("UPDATE _reunite_meta SET value = ? WHERE name = 'turn'", (turn,))
    if not found.rowcount:
        conn.execute("INSERT INTO _reunite_meta (name, value) VALUES ('turn', ?)", (turn,))


def save_meta(conn: sqlite3.Connection, meta: Meta, *names: str) -> None:
    """Write the named facts, or all of them."""
    conn.executemany(
        "INSERT OR REPLACE INTO _reunite_meta (name, value) VALUES (?, ?)",
        [(name, getattr(meta, name)) for name in names or _META_NAMES],
    )


def load_tables(conn: sqlite3.Connection) -> dict[int, Tracked]:
    """The realm's tables by their id in this file."""
    return {
        number: Tracked(
            number,
            unpack_table(description),
            state == "tracked",
            unpack_table(remote) if remote else None,
            sql,
        )
        for number, state, description, remote, sql in conn.execute(
            "SELECT id, state, description, remote, sql FROM _reunite_tables ORDER BY id"
        )
    }


def save_table(conn: sqlite3.Connection, tracked: Tracked) -> None:
    """Write one table's line."""
    conn.execute(
        "INSERT OR REPLACE INTO _reunite_tables (id, name, state, description, remote, sql)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            tracked.id,
            tracked.table.name,
            "tracked" if tracked.tracked else "remote",
            pack_table(tracked.table),
            pack_table(tracked.remote) if tracked.remote else None,
            tracked.sql,
        ),
    )


# SQLite's default ceiling for bound variables was 999 until 3.32; a batch of 900 costs no more.
_LOOKUP_KEYS: Final = 900


def load_rows(conn: sqlite3.Connection, table: int, keys: Sequence[Value]) -> dict[Value, Row]:
    """The lines of these keys that exist."""
    found: dict[Value, Row] = {}
    for at in range(0, len(keys), _LOOKUP_KEYS):
        some = keys[at : at + _LOOKUP_KEYS]
        marks = ",".join("?" * len(some))
        for key, *fields in conn.execute(
            "SELECT key, base, visible, image, changeset, alive, mark FROM _reunite_rows"
            f" WHERE tbl = ? AND key IN ({marks})",
            (table, *some),
        ):
            found[key] = Row(*fields)
    return found


def lines_of(conn: sqlite3.Connection, refs: Iterable[RowRef]) -> dict[RowRef, Row]:
    """The lines of these rows, of any tables; an empty one for each that does not exist."""
    by_table: dict[int, list[RowRef]] = {}
    for ref in refs:
        by_table.setdefault(ref.table, []).append(ref)
    found: dict[RowRef, Row] = {}
    for table, some in by_table.items():
        rows = load_rows(conn, table, [ref.key for ref in some])
        found.update({ref: rows.get(ref.key, NO_ROW) for ref in some})
    return found


def save_rows(conn: sqlite3.Connection, rows: Iterable[tuple[RowRef, Row]]) -> None:
    """Write lines."""
    conn.executemany(
        "INSERT OR REPLACE INTO _reunite_rows"
        " (tbl, key, base, visible, image, changeset, alive, mark) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(*ref, *row) for ref, row in rows],
    )


def save_new_rows(
    conn: sqlite3.Connection, table: int, changeset: int, rows: Sequence[tuple[Value, bytes]]
) -> None:
    """Write the lines of rows that have none yet: their keys and documents, all pending alone."""
    # What is the same for all stands in the statement: each bound value costs as much as a tenth
    # of an insert.
    conn.executemany(
        "INSERT INTO _reunite_rows (tbl, key, visible, changeset, alive)"
        f" VALUES ({table}, ?, ?, {changeset}, 1)",
        rows,
    )


def forget_rows(conn: sqlite3.Connection, refs: Iterable[RowRef]) -> None:
    """Remove lines: rows that were never anywhere but here, and are gone."""
    conn.executemany("DELETE FROM _reunite_rows WHERE tbl = ? AND key = ?", refs)
