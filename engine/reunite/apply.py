"""Apply: writing what documents say into the app's tables. Owns the image and blocked rows.

A write during an apply is never an edit. After the rows are written, everything that was captured
meanwhile (our own writes and what the app's triggers did to tracked rows) is read back: rows that
an app trigger changed are set to their documents once more, and what then still differs is kept as
the image, so that no fold takes it for an edit. The captures are dropped.

Foreign keys are off on the connection that this runs on. Rows that collide on a UNIQUE index are
tried again as delete-then-insert, which a swap of two values needs; then row by row. A row that
still fails is `blocked`: its document is kept, the table is left as it is, and every later apply
tries again. An incoming row that collides with a pending local one raises `PendingCollision`
instead: the relay's verdict on that changeset decides, so the whole apply has to wait for it.

A row marked `rejected` can hold an edit that no document has, as it cannot leave this file; what
such an edit says stays in the table, and the rest of the row is written.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from reunite import changes
from reunite.bookkeeping import Row, forget_rows, lines_of, load_rows, save_rows
from reunite.capture import captured_tables, clear, fetch_text, last_captured, unique_indexes
from reunite.cells.register import Value, same
from reunite.clock import FLOOR
from reunite.document import EMPTY, Document, decode
from reunite.keys import key_problem, key_values, stored_key
from reunite.payload import ABSENT, RowRef, pack_image, unpack_image
from reunite.schema import quoted
from reunite.shape import Shape, expected
from reunite.state import State


class PendingCollision(Exception):
    """An incoming row needs a unique value that a pending local row holds."""


class Failure(NamedTuple):
    """A row that the table would not take, and the database's words for why."""

    ref: RowRef
    message: str


def apply_rows(state: State, rows: Mapping[RowRef, Row], *, may_wait: bool = False) -> None:
    """Write these rows' visible documents into the tables and save their lines; blocked rows are
    tried again beside them.

    The log must be empty: the caller has folded in this transaction. Rows of tables that are not
    tracked here only have their lines saved. With `may_wait` raises PendingCollision, with nothing
    to keep; without it a row that collides with a pending one is blocked.
    """
    assert not last_captured(state.conn), "writes of others would be taken for the apply's own"
    lines = {**_blocked(state.conn), **rows}
    documents = {
        ref: decode(data) if (data := row.document) else EMPTY for ref, row in lines.items()
    }
    local = _local_edits(state, lines, documents)
    for ref in lines:
        mark = "rejected" if ref in local else None
        lines[ref] = lines[ref]._replace(image=None, mark=mark, alive=documents[ref].alive)
    written = {ref: documents[ref] for ref in lines if ref.table in state.shapes}
    follows = state.meta.feed != 0
    before = _held(state, written, lines_of(state.conn, written)) if follows else {}
    failures: dict[RowRef, Failure] = {}
    if written:
        with _without_triggers_that_roll_back(state):
            failures = {f.ref: f for f in _write(state, written, lines, local, may_wait)}
            has_triggers = _has_app_triggers(state)
            differing = _read_back(state, written, documents, lines, local, failures, has_triggers)
            if differing and has_triggers:
                again = {ref: documents[ref] for ref in differing}
                _write(state, again, lines, local, may_wait)
                differing = _read_back(
                    state, again, documents, lines, local, failures, has_triggers
                )
        for ref, image in differing.items():
            lines[ref] = lines[ref]._replace(image=pack_image(image))
    if follows:
        changes.note_merge(state, before, _held(state, written, lines))
    for ref in failures:
        shape = state.shapes[ref.table]
        held = _difference(shape, documents[ref], read_row(state.conn, shape, ref.key))
        lines[ref] = lines[ref]._replace(
            image=pack_image(held), mark="blocked" if held is not None else None
        )
    nowhere = [
        ref
        for ref, row in lines.items()
        if row.base is None and row.visible is None and row.image is None and row.mark is None
    ]
    forget_rows(state.conn, nowhere)
    for ref in nowhere:
        del lines[ref]
    save_rows(state.conn, lines.items())


def _held(
    state: State, refs: Iterable[RowRef], lines: Mapping[RowRef, Row]
) -> dict[RowRef, changes.Held]:
    """What the tables hold of these rows, with their lines."""
    return {
        ref: changes.Held(read_row(state.conn, state.shapes[ref.table], ref.key), lines[ref])
        for ref in refs
    }


def tidy(state: State, refs: Iterable[RowRef]) -> None:
    """Write columns that merge, of rows that are folded, as every replica shows them. A row whose
    table does not let it, or whose triggers would do something once more for what the app wrote
    once, keeps what it has, which is its image."""
    for ref, row in lines_of(state.conn, refs).items():
        shape, image = state.shapes[ref.table], unpack_image(row.image)
        if image is None or row.document is None:
            continue
        shown = dict(zip(shape.keys, expected(shape, decode(row.document), None), strict=True))
        names = dict(zip(shape.keys, (c.name for c in shape.columns.columns), strict=True))
        wanted = {
            key: shown[key]
            for key, value in image.items()
            if key in shape.columns.kinds_by_key and shape.columns.is_same(key, value, shown[key])
        }
        table = shape.tracked.table
        sets = ", ".join(f"{quoted(names[key])} = ?" for key in wanted)
        where = " AND ".join(f"{quoted(column.name)} = ?" for column in table.key)
        key = key_values(ref.key, len(table.key))
        # ABORT, whatever the table's own constraints say: nothing is replaced for a spelling.
        sql = f"UPDATE OR ABORT {quoted(table.name)} SET {sets} WHERE {where}"
        if wanted:
            with _without_triggers_that_roll_back(state):
                _respell(state.conn, sql, (*wanted.values(), *key))


def _respell(conn: sqlite3.Connection, sql: str, values: tuple[Value, ...]) -> None:
    """Run this update of one row, unless it changes anything else but our log."""
    changes, logged = conn.total_changes, last_captured(conn)
    conn.execute("SAVEPOINT reunite_respell")
    try:
        _attempt(conn, [(sql, [values])])
        # SQLite counts what triggers write. That tells more than the triggers' text: those that
        # are for other columns, or have nothing to do here, are in nobody's way.
        if conn.total_changes - changes != 1 + last_captured(conn) - logged:
            conn.execute("ROLLBACK TO reunite_respell")
    finally:
        if conn.in_transaction:
            conn.execute("RELEASE reunite_respell")


def read_row(conn: sqlite3.Connection, shape: Shape, key: Value) -> tuple[Value, ...] | None:
    """The cell values of one row of the app's table, or None when it is absent."""
    table = shape.tracked.table
    columns = ", ".join(quoted(column.name) for column in table.cells) or "1"
    where = " AND ".join(f"{quoted(column.name)} = ?" for column in table.key)
    found = fetch_text(
        conn,
        f"SELECT {columns} FROM {quoted(table.name)} WHERE {where}",
        key_values(key, len(table.key)),
    )
    if not found:
        return None
    return found[0] if table.cells else ()


def _local_edits(
    state: State, rows: Mapping[RowRef, Row], documents: Mapping[RowRef, Document]
) -> dict[RowRef, Mapping[int, Value]]:
    """What living rows have in the tables of edits that could not leave this file."""
    found: dict[RowRef, Mapping[int, Value]] = {}
    marked = [
        ref
        for ref, row in rows.items()
        if row.mark == "rejected" and ref.table in state.shapes and documents[ref].alive
    ]
    for ref, before in lines_of(state.conn, marked).items():
        shape = state.shapes[ref.table]
        values = read_row(state.conn, shape, ref.key)
        known = decode(before.document) if before.document else EMPTY
        was = expected(shape, known if known.alive else EMPTY, unpack_image(before.image))
        edits = _differing(shape, values, was) if values is not None else {}
        if edits:
            found[ref] = edits
    return found


def _differing(shape: Shape, values: Sequence[Value], wanted: Sequence[Value]) -> dict[int, Value]:
    return {
        key: value
        for key, value, other in zip(shape.keys, values, wanted, strict=True)
        if not (value is other or same(value, other))
    }


def _difference(
    shape: Shape,
    document: Document,
    values: Sequence[Value] | None,
    local: Mapping[int, Value] | None = None,
) -> Mapping[int, Value] | None:
    """The image: what the table has where the document says otherwise, but for local edits; None
    where they agree."""
    if values is None:
        return ABSENT if document.alive else None
    if not document.alive:
        return dict(zip(shape.keys, values, strict=True))
    return _differing(shape, values, expected(shape, document, local)) or None


def _read_back(
    state: State,
    written: Mapping[RowRef, Document],
    documents: dict[RowRef, Document],
    lines: dict[RowRef, Row],
    local: Mapping[RowRef, Mapping[int, Value]],
    failures: Mapping[RowRef, Failure],
    has_triggers: bool,
) -> dict[RowRef, Mapping[int, Value]]:
    """Compare every captured row with its document, drop the captures, and return the images of
    those that differ. Rows that only an app trigger touched join `documents` and `lines`."""
    last = last_captured(state.conn)
    unseen = set(written)
    differing: dict[RowRef, Mapping[int, Value]] = {}
    for table in captured_tables(state.conn, 0, last):
        shape = state.shapes.get(table)
        if shape is None:
            continue
        state.written.add(table)
        for key, _, row, key_parts, values in shape.captured.read(state.conn, 0, last):
            if key_problem(key_parts):
                continue
            ref = RowRef(table, key)
            unseen.discard(ref)
            if ref not in documents:
                row = row or Row()
                documents[ref] = decode(row.document) if row.document else EMPTY
                lines[ref] = row
                before = unpack_image(row.image)
                if before is not None and before == _difference(shape, documents[ref], values):
                    continue
                lines[ref] = row._replace(image=None)
            if ref in failures:
                continue
            image = _difference(shape, documents[ref], values, local.get(ref))
            if image is not None:
                differing[ref] = image
    # What was written and not captured was not written: an app trigger can ignore a statement.
    for ref in unseen.difference(failures):
        if documents[ref].alive or has_triggers:
            shape = state.shapes[ref.table]
            values = read_row(state.conn, shape, ref.key)
            image = _difference(shape, documents[ref], values, local.get(ref))
            if image is not None:
                differing[ref] = image
    clear(state.conn, 0, last)
    return differing


def _blocked(conn: sqlite3.Connection) -> dict[RowRef, Row]:
    return {
        RowRef(table, key): Row(*fields)
        for table, key, *fields in conn.execute(
            "SELECT tbl, key, base, visible, image, changeset, alive, mark FROM _reunite_rows"
            " WHERE mark = 'blocked'"
        ).fetchall()
    }


def _write(
    state: State,
    documents: Mapping[RowRef, Document],
    lines: Mapping[RowRef, Row],
    local: Mapping[RowRef, Mapping[int, Value]],
    may_wait: bool,
) -> list[Failure]:
    """Bring rows of the app's tables to their documents; returns those that failed."""
    by_table: dict[int, list[RowRef]] = {}
    for ref in documents:
        by_table.setdefault(ref.table, []).append(ref)
    failures: list[Failure] = []
    for table, refs in by_table.items():
        shape = state.shapes[table]
        writer = _Writer(shape)
        puts = []
        deletes = []
        for ref in refs:
            key = key_values(ref.key, len(shape.tracked.table.key))
            document = documents[ref]
            if document.alive:
                puts.append((*key, *expected(shape, document, local.get(ref))))
            else:
                deletes.append(key)
        failures += _write_table(state, writer, puts, deletes, lines, may_wait)
    return failures


_SQLITE_ERROR: Final = sqlite3.SQLITE_ERROR
_CONFLICT_CLAUSE: Final = re.compile(r"\bON\s+CONFLICT\b", re.IGNORECASE)


class _Writer:
    """The statements that write one table."""

    def __init__(self, shape: Shape) -> None:
        table = shape.tracked.table
        self.shape = shape
        self.id = shape.tracked.id
        self.name = table.name
        self.key = table.key
        self.columns = (*table.key, *table.cells)
        on = quoted(table.name)
        names = ", ".join(quoted(column.name) for column in self.columns)
        marks = ", ".join("?" * len(self.columns))
        key = ", ".join(quoted(column.name) for column in table.key)
        sets = ", ".join(f"{quoted(c.name)} = excluded.{quoted(c.name)}" for c in table.cells)
        action = f"UPDATE SET {sets}" if sets else "NOTHING"
        # A table whose constraints say what to do on a conflict would replace or skip rows
        # silently. Without need it is not said: it would overrule the app's triggers too.
        abort = " OR ABORT" if _CONFLICT_CLAUSE.search(shape.tracked.sql or "") else ""
        self.insert = f"INSERT{abort} INTO {on} ({names}) VALUES ({marks})"
        # By another name, since in a table that is called `excluded` that word means the table.
        upsert = f"INSERT{abort} INTO {on} AS reunite_target ({names}) VALUES ({marks})"
        self.upsert = f"{upsert} ON CONFLICT ({key}) DO {action}"
        where = " AND ".join(f"{quoted(column.name)} = ?" for column in table.key)
        self.delete = f"DELETE FROM {on} WHERE {where}"


def _write_table(
    state: State,
    writer: _Writer,
    puts: list[tuple[Value, ...]],
    deletes: list[tuple[Value, ...]],
    lines: Mapping[RowRef, Row],
    may_wait: bool,
) -> list[Failure]:
    conn = state.conn
    count = len(writer.key)
    keys = [values[:count] for values in puts]
    if _attempt(conn, [(writer.delete, deletes), (writer.upsert, puts)]) is None:
        return []
    if _attempt(conn, [(writer.delete, deletes + keys), (writer.insert, puts)]) is None:
        return []
    failures = []
    for key in deletes:
        problem = _attempt(conn, [(writer.delete, [key])])
        if problem is not None:
            failures.append(Failure(RowRef(writer.id, stored_key(key)), problem))
    fitting = _fitting(conn, writer, puts)
    moved = [(writer.delete, [values[:count] for values in fitting]), (writer.insert, fitting)]
    done = set(map(id, fitting)) if _attempt(conn, moved) is None else set()
    waiting = [(values, "") for values in puts if id(values) not in done]
    # A row may need what a later one frees, so go round while any succeeds.
    while waiting:
        left = []
        for values, _ in waiting:
            problem = _attempt(conn, [(writer.upsert, [values])])
            if problem is not None:
                left.append((values, problem))
        if len(left) == len(waiting):
            break
        waiting = left
    else:
        return failures
    for values, problem in waiting:
        if may_wait:
            _refuse_pending_collision(state, writer, values, lines)
        failures.append(Failure(RowRef(writer.id, stored_key(values[:count])), problem))
    return failures


def _fitting(
    conn: sqlite3.Connection, writer: _Writer, puts: list[tuple[Value, ...]]
) -> list[tuple[Value, ...]]:
    """The rows that fit beside one another once all of them have let go of what they hold, as
    rows that swap values must."""
    count = len(writer.key)
    conn.execute("SAVEPOINT reunite_fitting")
    try:
        for values in puts:
            _attempt(conn, [(writer.delete, [values[:count]])])
        return [values for values in puts if _attempt(conn, [(writer.insert, [values])]) is None]
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK TO reunite_fitting")
            conn.execute("RELEASE reunite_fitting")


def _attempt(
    conn: sqlite3.Connection, statements: Iterable[tuple[str, list[tuple[Value, ...]]]]
) -> str | None:
    """Run statements in a savepoint; the database's message when it refuses them."""
    conn.execute("SAVEPOINT reunite_write")
    try:
        for sql, rows in statements:
            if rows:
                conn.executemany(sql, rows)
    except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.OperationalError) as error:
        # A trigger may call what only the app's connection has; a full disk is no row's fault.
        refused = not isinstance(error, sqlite3.OperationalError)
        if not conn.in_transaction or not (refused or error.sqlite_errorcode == _SQLITE_ERROR):
            raise
        conn.execute("ROLLBACK TO reunite_write")
        return str(error)
    finally:
        if conn.in_transaction:
            conn.execute("RELEASE reunite_write")
    return None


def _refuse_pending_collision(
    state: State, writer: _Writer, values: Sequence[Value], lines: Mapping[RowRef, Row]
) -> None:
    """Raise PendingCollision when a pending row of the table holds what this row needs.

    Not before the first load is done: nothing is sent until then, so no verdict would come. The
    row is blocked, and the verdict on the pending one retries it.
    """
    if not state.meta.loaded:
        return
    own = stored_key(values[: len(writer.key)])
    by_name = dict(zip((column.name for column in writer.columns), values, strict=True))
    key = ", ".join(quoted(column.name) for column in writer.key)
    for over in unique_indexes(state.conn, writer.name):
        where = " AND ".join(f"{quoted(name)} = ? COLLATE {quoted(coll)}" for name, coll in over)
        holders = state.conn.execute(
            f"SELECT {key} FROM {quoted(writer.name)} WHERE {where}",
            [by_name.get(name) for name, _ in over],
        ).fetchall()
        keys = [stored_key(holder) for holder in holders]
        stored = load_rows(state.conn, writer.id, keys)
        for holder in keys:
            row = lines.get(RowRef(writer.id, holder)) or stored.get(holder)
            if holder != own and row is not None and row.changeset is not None:
                adopted = not row.base and row.visible and decode(row.visible).born == FLOOR
                # An adopted row is compared with what arrives before it is sent: nothing to await.
                if not adopted:
                    raise PendingCollision


_RAISES_ROLLBACK: Final = re.compile(r"RAISE\s*\(\s*ROLLBACK", re.IGNORECASE)


@contextmanager
def _without_triggers_that_roll_back(state: State) -> Iterator[None]:
    """Without the app's triggers that end the whole transaction, RAISE(ROLLBACK): the merge would
    be undone again and again. They are there again before anybody else can write. When the block
    raises, the caller rolls back to where they were."""
    conn = state.conn
    found = [
        (name, sql)
        for name, sql in conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        if _RAISES_ROLLBACK.search(sql)
    ]
    for name, _ in found:
        conn.execute(f"DROP TRIGGER {quoted(name)}")
    yield
    for _, sql in found:
        conn.execute(sql)
    if found:
        state.meta.schema_version = conn.execute("PRAGMA schema_version").fetchone()[0]
        state.save("schema_version")


def _has_app_triggers(state: State) -> bool:
    found = state.conn.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name NOT GLOB '_reunite_*' LIMIT 1"
    ).fetchone()
    return found is not None
