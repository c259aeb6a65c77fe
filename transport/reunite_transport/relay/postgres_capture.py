"""Capture on Postgres: triggers that note what backends write, and reading what they noted.

Each row trigger of a tracked table appends the row before and after, as JSON, to
`_reunite_captured`, in the backend's own transaction: what is rolled back was never noted. The
function runs as its owner, so that backends need no right to our tables, and fixes every setting
that the form of a value depends on. What the relay itself writes it leaves out, by a setting that
lasts for the relay's transaction, but not what triggers and foreign keys do because of that: those
run at a greater depth. Nobody is notified from within, which would make backends wait for each
other at their commits.

JSON has one null where a column of JSON has two. The names of columns that hold JSON's own are
noted beside the row; the trigger is told which columns are of JSON. It is also told of types that
have a form of their own in JSON (composites, types of extensions): their text is captured instead.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Final

import asyncpg

from reunite.cells.register import Value
from reunite.schema import Column, Table, quoted, through_affinity
from reunite.types import plain_type
from reunite_transport.relay.postgres_bookkeeping import Connection, OwnTables, Reader
from reunite_transport.relay.postgres_catalog import read_columns
from reunite_transport.relay.postgres_columns import ColumnSql, value_of
from reunite_transport.relay.postgres_row_sql import numeric_keys
from reunite_transport.relay.postgres_schema import register_value
from reunite_transport.relay.store import Busy, Written

RELAY_SETTING: Final = "reunite.relay"
# A new column is noticed within seconds, unless a long transaction has written to its table; then
# nobody waits for that, and what the column holds comes once it is noticed.
UNNOTICED_US_MAX: Final = 5_000_000
# Rows that are read and folded at a time.
PART_ROWS: Final = 5_000

_TRIGGER: Final = "_reunite_capture"
_EMPTIED_TRIGGER: Final = "_reunite_emptied"
# In the name, so that a later release's function takes the place of this one.
_FUNCTION: Final = "_reunite_capture_1"

_FUNCTION_SQL: Final = """
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD'
SET "IntervalStyle" = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
AS $function$
DECLARE
    before json;
    after json;
    before_nulls text[];
    after_nulls text[];
    is_there boolean;
    said text;
    column_name text;
    escaped boolean;
BEGIN
    IF pg_trigger_depth() = 1 AND current_setting('{setting}', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        before := row_to_json(OLD);
    END IF;
    IF TG_OP IN ('UPDATE', 'INSERT') THEN
        after := row_to_json(NEW);
    END IF;
    -- To look into it fails where a column of json has an escape that no text can hold: then not.
    escaped := TG_NARGS > 1 AND strpos(concat(before, after), chr(92) || 'u') > 0;
    FOR place IN 1 .. TG_NARGS - 1 LOOP
        column_name := substr(TG_ARGV[place], 2);
        IF escaped THEN
            CONTINUE WHEN NOT EXISTS (
                SELECT FROM pg_attribute WHERE attrelid = TG_RELID AND attname = column_name
            );
        ELSE
            CONTINUE WHEN coalesce(after, before) -> column_name IS NULL;
        END IF;
        IF left(TG_ARGV[place], 1) = 't' THEN
            -- Of a name that is there twice the last counts.
            IF before IS NOT NULL THEN
                EXECUTE format('SELECT ($1).%I::text', column_name) INTO said USING OLD;
                before := concat(
                    left(before::text, -1), ',', to_json(column_name), ':',
                    coalesce(to_json(said)::text, 'null'), '}}'
                )::json;
            END IF;
            IF after IS NOT NULL THEN
                EXECUTE format('SELECT ($1).%I::text', column_name) INTO said USING NEW;
                after := concat(
                    left(after::text, -1), ',', to_json(column_name), ':',
                    coalesce(to_json(said)::text, 'null'), '}}'
                )::json;
            END IF;
            CONTINUE;
        END IF;
        IF before IS NOT NULL AND (
            CASE WHEN escaped THEN true ELSE json_typeof(before -> column_name) = 'null' END
        ) THEN
            EXECUTE format('SELECT json_typeof(to_json(($1).%I)) = ''null''', column_name)
                INTO is_there USING OLD;
            IF is_there THEN before_nulls := before_nulls || column_name; END IF;
        END IF;
        IF after IS NOT NULL AND (
            CASE WHEN escaped THEN true ELSE json_typeof(after -> column_name) = 'null' END
        ) THEN
            EXECUTE format('SELECT json_typeof(to_json(($1).%I)) = ''null''', column_name)
                INTO is_there USING NEW;
            IF is_there THEN after_nulls := after_nulls || column_name; END IF;
        END IF;
    END LOOP;
    INSERT INTO {captured} (tx, tbl, at, before, after, before_nulls, after_nulls)
    VALUES (
        pg_current_xact_id(), TG_ARGV[0]::integer, clock_timestamp(),
        before, after, before_nulls, after_nulls
    );
    RETURN NULL;
END
$function$
"""

# In the order of their numbers a row's writes stand as they were made: each took the row's lock.
# What is visible in one snapshot is whole transactions, however many statements read it.
_TAKE: Final = """
DELETE FROM {captured} WHERE id IN (
    SELECT id FROM {captured}
    WHERE id > $2 AND pg_visible_in_snapshot(tx, $1::text::pg_snapshot) ORDER BY id LIMIT $3
)
RETURNING id, tx::text::bigint AS tx, tbl, (extract(epoch FROM at) * 1000000)::bigint AS at_us,
    before, after, before_nulls, after_nulls
"""
_OTHERS: Final = """
SELECT id, tx::text::bigint AS tx, tbl, (extract(epoch FROM at) * 1000000)::bigint AS at_us,
    before, after, before_nulls, after_nulls
FROM {captured} WHERE tx <> pg_current_xact_id() AND tbl = ANY ($1::integer[]) LIMIT $2
"""
_IS_NEW: Final = f"""
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - $1 < {UNNOTICED_US_MAX}
"""
_CONSEQUENCES: Final = """
DELETE FROM {captured} WHERE tx = pg_current_xact_id() AND (before IS NOT NULL OR after IS NOT NULL)
RETURNING id, tx::text::bigint AS tx, tbl, (extract(epoch FROM at) * 1000000)::bigint AS at_us,
    before, after, before_nulls, after_nulls
"""


async def install_function(connection: Connection, own: OwnTables) -> None:
    """Make the triggers' function where it is missing."""
    function = f"{quoted(own.schema)}.{quoted(_FUNCTION)}"
    if await connection.fetchval("SELECT to_regproc($1)", function) is None:
        await connection.execute(
            _FUNCTION_SQL.format(function=function, captured=own.captured, setting=RELAY_SETTING)
        )


async def install_triggers(connection: Connection, own: OwnTables, tables: Iterable[Table]) -> None:
    """Capture what is written to these tables from now on. Writers are waited for, and wait;
    readers are not in the way."""
    tables = list(tables)
    by_name = {table.name: table for table in tables}
    own_form: dict[str, list[str]] = {}
    for real in await read_columns(connection, own.schema, by_name) if tables else ():
        if real.type.has_own_json and by_name[real.table].column(real.name) is not None:
            own_form.setdefault(real.table, []).append(real.name)
    for table in tables:
        name = f"{quoted(own.schema)}.{quoted(table.name)}"
        arguments = [str(table.id)]
        arguments += [f"n{c.name}" for c in table.columns if plain_type(c.type) == "json"]
        arguments += [f"t{column}" for column in own_form.get(table.name, ())]
        listed = ", ".join(literal(argument) for argument in arguments)
        call = f"EXECUTE FUNCTION {quoted(own.schema)}.{quoted(_FUNCTION)}({listed})"
        await connection.execute(
            f"CREATE OR REPLACE TRIGGER {_TRIGGER} AFTER INSERT OR UPDATE OR DELETE ON {name}"
            f" FOR EACH ROW {call}"
        )
        # Replaced and never dropped: only the table's owner may do that.
        await connection.execute(
            f"CREATE OR REPLACE TRIGGER {_EMPTIED_TRIGGER} AFTER TRUNCATE ON {name}"
            f" FOR EACH STATEMENT {call}"
        )


async def drop_triggers(connection: Connection, own: OwnTables, tables: Iterable[Table]) -> None:
    """Capture nothing any more of these tables, as far as they are there."""
    for table in tables:
        name = f"{quoted(own.schema)}.{quoted(table.name)}"
        for trigger in (_TRIGGER, _EMPTIED_TRIGGER):
            if await connection.fetchval("SELECT to_regclass($1)", name) is not None:
                await connection.execute(f"DROP TRIGGER IF EXISTS {trigger} ON {name}")


async def drop_function(connection: Connection, own: OwnTables) -> None:
    """Drop the triggers' function, which no trigger calls any more."""
    await connection.execute(f"DROP FUNCTION IF EXISTS {quoted(own.schema)}.{quoted(_FUNCTION)}()")


async def uncaptured(reader: Reader, own: OwnTables, tables: Sequence[Table]) -> list[Table]:
    """Those of these tables that lack a trigger, or have one that is disabled."""
    rows = await reader.fetch(
        "SELECT c.relname FROM pg_catalog.pg_class AS c"
        " JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = c.oid"
        " WHERE c.relnamespace = to_regnamespace($1) AND t.tgname = ANY ($2::text[])"
        " AND t.tgenabled IN ('O', 'A') GROUP BY c.relname HAVING count(*) = 2",
        quoted(own.schema),
        [_TRIGGER, _EMPTIED_TRIGGER],
    )
    captured = {row["relname"] for row in rows}
    return [table for table in tables if table.name not in captured]


class Captured:
    """Reads what was captured, in one transaction of the relay's."""

    def __init__(self, connection: Connection, own: OwnTables, decoders: "Decoders") -> None:
        self._connection = connection
        self._own = own
        self._decoders = decoders
        self._snapshot = ""
        self._last = 0
        # Columns that went after something of them was captured, by table.
        self._gone: dict[str, Set[str]] = {}

    async def look(self) -> bool:
        """True when anything is there; `part` is of what was committed before this."""
        found = await self._connection.fetchrow(
            "SELECT pg_current_snapshot()::text AS snapshot,"
            f" (SELECT id FROM {self._own.captured} ORDER BY id LIMIT 1) AS first"
        )
        assert found is not None, "a query without a table has one row"
        if found["first"] is None:
            return False
        self._snapshot, self._last = found["snapshot"], found["first"] - 1
        return True

    async def part(self) -> list[Written] | None:
        """The next of it, in order; None at the end."""
        rows = await self._connection.fetch(
            _TAKE.format(captured=self._own.captured), self._snapshot, self._last, PART_ROWS
        )
        return await self._written(rows) if rows else None

    async def consequences(self) -> list[Written]:
        """What this transaction itself has caused."""
        rows = await self._connection.fetch(_CONSEQUENCES.format(captured=self._own.captured))
        return await self._written(rows)

    async def has_other(self, found: Sequence[Written]) -> bool:
        """True when backends wrote, since the parts were read, to rows that these are of; or so
        much to their tables that nobody should look through it."""
        rows = await self._connection.fetch(
            _OTHERS.format(captured=self._own.captured),
            list({written.table for written in found}),
            PART_ROWS,
        )
        mine = set(self._decoders.keys(found))
        return len(rows) >= PART_ROWS or not mine.isdisjoint(
            self._decoders.keys(await self._read(rows))
        )

    async def _written(self, rows: Sequence[asyncpg.Record]) -> list[Written]:
        ordered = sorted(rows, key=lambda row: row["id"])
        if ordered:
            self._last = max(self._last, ordered[-1]["id"])
        return await self._read(ordered)

    async def _read(self, rows: Sequence[asyncpg.Record]) -> list[Written]:
        """The writes that these lines hold. Raises Busy when a column was just added that is not
        noticed yet; what one held that is not there any more is nobody's loss."""
        while True:
            try:
                return self._decoders.read(rows, self._gone)
            except _UnknownColumns as unknown:
                real = await read_columns(self._connection, self._own.schema, [unknown.table])
                added = not unknown.names.isdisjoint(column.name for column in real)
                if added and await self._connection.fetchval(_IS_NEW, unknown.at_us):
                    raise Busy(
                        f"table {unknown.table!r} was altered, which is not noticed yet"
                    ) from unknown
                gone = self._gone.get(unknown.table, frozenset[str]())
                self._gone[unknown.table] = gone | unknown.names


class Decoders:
    """What reads captured rows, of one version of the registry and of the real tables."""

    def __init__(
        self,
        tables: Sequence[Table],
        special: Mapping[int, Mapping[str, ColumnSql]],
        names: Mapping[str, Set[str]],
    ) -> None:
        """`special` as in `RowWriter`; `names` are the real columns by table."""
        self._by_table = {
            table.id: _Decoder(
                table,
                special.get(table.id, {}),
                names.get(table.name, {column.name for column in table.columns}),
            )
            for table in tables
        }

    def read(self, rows: Iterable[asyncpg.Record], gone: Mapping[str, Set[str]]) -> list[Written]:
        """The writes that these lines hold, but for those of tables that are not tracked. Raises
        _UnknownColumns when a table has others than it is known to have or those `gone`."""
        return [
            self._by_table[row["tbl"]].written(row, gone)
            for row in rows
            if row["tbl"] in self._by_table
        ]

    def keys(self, found: Iterable[Written]) -> Iterator[tuple[int, tuple[Value, ...]]]:
        """The rows that these writes are of, by table and key."""
        for written in found:
            yield from self._by_table[written.table].keys(written)


class _UnknownColumns(Exception):
    """A captured row has columns that its table is not known to have."""

    def __init__(self, table: str, names: Set[str], at_us: int) -> None:
        super().__init__(f"table {table!r}: columns {sorted(names)}")
        self.table = table
        self.names = names
        self.at_us = at_us


class _AsWritten(str):
    """A part of JSON's text as it was written."""

    __slots__ = ()


_JSON: Final = json.JSONDecoder(
    parse_float=_AsWritten, parse_int=_AsWritten, parse_constant=_AsWritten
)
# What stands between values, and what says where one ends.
_GAP: Final = re.compile(r"[\s:,]*")
_MARK: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]', re.DOTALL)


class _Decoder:
    """Reads the JSON of one table's rows as what documents hold. `names` are the columns that the
    table is known to have; with another one it was altered, and is not understood before that is
    noticed: what the column holds would be lost."""

    def __init__(self, table: Table, special: Mapping[str, ColumnSql], names: Set[str]) -> None:
        self._table = table
        self._names = names
        numeric = numeric_keys(table)
        # Each column's id, and how its values are read.
        self._columns = {
            column.name: (
                column.id,
                _reader(column, special.get(column.name), numeric=column.name in numeric),
            )
            for column in table.columns
        }

    def keys(self, written: Written) -> Iterator[tuple[int, tuple[Value, ...]]]:
        for values in (written.before, written.after):
            if values is not None:
                yield self._table.id, tuple(values.get(c.id) for c in self._table.key)

    def written(self, row: asyncpg.Record, gone: Mapping[str, Set[str]]) -> Written:
        at_us = row["at_us"]
        return Written(
            self._table.id,
            row["tx"],
            None if at_us is None else (at_us << 16) // 1000,
            self._row(row["before"], row["before_nulls"], gone, at_us or 0),
            self._row(row["after"], row["after_nulls"], gone, at_us or 0),
        )

    def _row(
        self,
        text: str | None,
        nulls: Sequence[str] | None,
        gone: Mapping[str, Set[str]],
        at_us: int,
    ) -> dict[int, Value] | None:
        if text is None:
            return None
        try:
            return self._values(_JSON.decode(text), nulls, gone, at_us)
        except RecursionError:  # JSON as deep as no parser goes
            return self._values(_shallow(text), nulls, gone, at_us)

    def _values(
        self,
        found: Mapping[str, object],
        nulls: Sequence[str] | None,
        gone: Mapping[str, Set[str]],
        at_us: int,
    ) -> dict[int, Value]:
        columns = self._columns
        if not found.keys() <= self._names:
            unknown = found.keys() - self._names - columns.keys()
            unknown -= gone.get(self._table.name, frozenset[str]())
            if unknown:
                raise _UnknownColumns(self._table.name, unknown, at_us)
        values: dict[int, Value] = {}
        for name, value in found.items():
            if name in columns:
                column, read = columns[name]
                values[column] = None if value is None else read(value)
        for name in nulls or ():
            if name in columns:
                values[columns[name][0]] = "null"
        return values


def _shallow(text: str) -> dict[str, object]:
    """An object of JSON whose arrays and objects are left as they are written."""
    found: dict[str, object] = {}
    at = _past_gap(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _JSON.raw_decode(text, at)
        at = _past_gap(text, at)
        if text[at] in "[{":
            end = _end(text, at)
            found[name] = _AsWritten(text[at:end])
        else:
            found[name], end = _JSON.raw_decode(text, at)
        at = _past_gap(text, end)
    return found


def _past_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    assert gap is not None, "it matches nothing, too"
    return gap.end()


def _end(text: str, at: int) -> int:
    """Where the array or object ends that begins here."""
    depth = 0
    for mark in _MARK.finditer(text, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.end()
    raise ValueError("JSON that does not end")


def _reader(
    column: Column, special: ColumnSql | None, *, numeric: bool
) -> Callable[[object], Value]:
    """Reads a column's values, but NULL, from JSON; `numeric` where it is of text and SQLite keeps
    numbers in it."""
    kind = plain_type(column.type)
    is_json = kind == "json"
    is_text = kind in ("text", "any") and special is None
    plain_kind = kind if kind in ("integer", "real", "boolean") and special is None else None

    def read(found: object) -> Value:
        plain = isinstance(found, str) and not is_json
        text = str(found) if plain else json_text(found)
        if is_text:
            value: Value = text
        elif plain_kind is not None:
            value = register_value(text, plain_kind)
        else:
            value = value_of(text, column, special)
        return through_affinity(column.declared, [value])[0] if numeric else value

    return read


def json_text(found: object) -> str:
    """JSON's text of what was read of it, its numbers as they were."""
    if isinstance(found, dict):
        parts = (f"{_json_string(k)}: {json_text(v)}" for k, v in found.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(found, list):
        return "[" + ", ".join(map(json_text, found)) + "]"
    if isinstance(found, _AsWritten):
        return str(found)
    return _json_string(found)


def _json_string(found: object) -> str:
    text = json.dumps(found, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character: JSON can hold it as an escape only
        return json.dumps(found)
    return text


def literal(text: str) -> str:
    """A text as a literal of SQL, under every setting."""
    return " E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
