"""SQLite as SQLAlchemy sees it in reunite: values that mean the same in a file and in Postgres.

SQLAlchemy's own SQLite dialect writes a UUID as 32 digits without dashes and a moment without its
zone, which Postgres's columns of the same models do not hold. Here they are what Postgres has:

| type | declared in SQLite | stored |
|---|---|---|
| Uuid | UUID | the text with dashes |
| DateTime(timezone=True) | TIMESTAMPTZ | UTC, as Postgres writes it: 2026-11-23 18:04:07.5+00 |
| Numeric | NUMERIC(p, s) | a number where it is one exactly, else text |

All others are as SQLAlchemy has them. The URL `sqlite+reunite:///app.db` is for tools that connect
by themselves, such as Alembic: each transaction there begins with BEGIN IMMEDIATE and holds its
DDL, too. Without that, a table that is being rebuilt would be seen as dropped, and a dropped table
is no longer tracked.
"""

from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Dialect as AnyDialect
from sqlalchemy import types
from sqlalchemy.dialects.sqlite.base import DATETIME, SQLiteTypeCompiler
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine.interfaces import DBAPIConnection

from reunite.sqlalchemy_types import MERGING_TYPES

_INTEGER_MAX: Final = 2**63 - 1
# More digits than Postgres gives a numeric that has places.
_WIDE: Final = Context(prec=2_000)


class _Uuid(types.Uuid[Any]):
    """A UUID as text with dashes."""

    def bind_processor(self, dialect: AnyDialect) -> Any:
        """Texts are brought to the one form that Postgres writes."""
        if not self.native_uuid:
            return super().bind_processor(dialect)
        return lambda value: None if value is None else str(UUID(str(value)))

    def result_processor(self, dialect: AnyDialect, coltype: object) -> Any:
        """Whatever form was stored is read."""
        made = UUID if self.as_uuid else lambda value: str(UUID(value))
        return lambda value: None if value is None else made(value)

    def literal_processor(self, dialect: AnyDialect) -> Any:
        """As it is bound."""
        if not self.native_uuid:
            return lambda value: f"'{UUID(str(value)).hex}'"
        return lambda value: f"'{UUID(str(value))}'"


class _DateTime(DATETIME):
    """A moment in UTC, or, without a zone, what SQLAlchemy's SQLite has."""

    def bind_processor(self, dialect: AnyDialect) -> Any:
        """A moment is written as Postgres does, so that equal ones are equal texts."""
        return _moment_text if self.timezone else super().bind_processor(dialect)

    def result_processor(self, dialect: AnyDialect, coltype: object) -> Any:
        """What says no zone, such as CURRENT_TIMESTAMP, is in UTC."""
        return _moment if self.timezone else super().result_processor(dialect, coltype)

    def literal_processor(self, dialect: AnyDialect) -> Any:
        """As it is bound."""
        if not self.timezone:
            return super().literal_processor(dialect)  # type: ignore[no-untyped-call]
        return lambda value: f"'{_moment_text(value)}'"


class _Moment(types.DateTime):
    """What a column is found to be that is declared TIMESTAMPTZ."""

    def __init__(self) -> None:
        super().__init__(timezone=True)


def _moment_text(value: datetime | None) -> str | None:
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError(
            f"{value!r} has no time zone and its column has one; give it a tzinfo, such as UTC"
        )
    text = value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    return f"{text.rstrip('0') if '.' in text else text}+00"


def _moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class _Numeric(types.Numeric[Any]):
    """A decimal number, which SQLite holds as an integer or float of up to 15 digits."""

    def bind_processor(self, dialect: AnyDialect) -> Any:
        """As a number, by which SQLite compares, where one is exactly it."""
        return _number

    def result_processor(self, dialect: AnyDialect, coltype: object) -> Any:
        """The number that is written, with the places of the column, as Postgres gives it."""
        if not self.asdecimal:
            return lambda value: None if value is None else float(value)
        places = None if self.scale is None else Decimal(1).scaleb(-self.scale)

        def decimal(value: Any) -> Decimal | None:
            if value is None:
                return None
            number = Decimal(repr(value) if isinstance(value, float) else value)
            if places is None or not number.is_finite():
                return number
            rounded = number.quantize(places, context=_WIDE)
            return rounded if rounded == number else number

        return decimal


def _number(value: Any) -> Any:
    if not isinstance(value, Decimal):
        return value
    if value.is_finite():
        if value == value.to_integral_value() and abs(value) <= _INTEGER_MAX:
            return int(value)
        if Decimal(repr(float(value))) == value:
            return float(value)
    return str(value)


class _TypeCompiler(SQLiteTypeCompiler):
    def visit_DATETIME(self, type_: types.DateTime, **kw: Any) -> str:
        if type_.timezone:
            return "TIMESTAMPTZ"
        declared: str = super().visit_DATETIME(type_, **kw)  # type: ignore[no-untyped-call]
        return declared

    def visit_TIMESTAMP(self, type_: types.TIMESTAMP, **kw: Any) -> str:
        return "TIMESTAMPTZ" if type_.timezone else super().visit_TIMESTAMP(type_, **kw)


class ValueDialect(SQLiteDialect_pysqlite):
    """The values; connections and transactions are its subclasses'."""

    supports_statement_cache = True
    supports_native_uuid = True
    supports_native_decimal = True
    type_compiler_cls = _TypeCompiler
    colspecs = {  # noqa: RUF012 - SQLAlchemy's own way of saying it
        **SQLiteDialect_pysqlite.colspecs,
        types.DateTime: _DateTime,
        types.TIMESTAMP: _DateTime,
        types.Float: types.Float,
        types.Numeric: _Numeric,
        types.Uuid: _Uuid,
    }
    ischema_names = {  # noqa: RUF012
        **SQLiteDialect_pysqlite.ischema_names,
        **{kind.declared: kind for kind in MERGING_TYPES},
        "TIMESTAMPTZ": _Moment,
        "UUID": types.Uuid,
    }

    def get_isolation_level_values(self, dbapi_connection: DBAPIConnection) -> list[Any]:
        """The one there is: transactions are begun and ended in one way."""
        return ["SERIALIZABLE"]

    def get_isolation_level(self, dbapi_connection: DBAPIConnection) -> Any:
        """As above."""
        return "SERIALIZABLE"

    def set_isolation_level(self, dbapi_connection: DBAPIConnection, level: Any) -> None:
        """Nothing to set."""

    def detect_autocommit_setting(self, dbapi_conn: DBAPIConnection) -> bool:
        """Never, though the driver is told to leave transactions alone."""
        return False


class Dialect(ValueDialect):
    """What `sqlite+reunite:///app.db` names: transactions that hold DDL, too."""

    supports_statement_cache = True
    driver = "reunite"

    def connect(self, *arguments: Any, **options: Any) -> DBAPIConnection:
        """A connection that begins no transaction by itself."""
        return super().connect(*arguments, **{**options, "isolation_level": None})

    def do_begin(self, dbapi_connection: Any) -> None:
        """Take the file for a write, as it may become one."""
        dbapi_connection.execute("BEGIN IMMEDIATE")
