"""Running SQLAlchemy's statements on a plain sqlite3 connection, for queries that stay live.

`compiled` says what a statement asks, and so which statements are the same; `run_select` gives
what `session.scalars(statement).all()`, or of several columns `session.execute(statement).all()`,
would give: mapped objects, detached, in the one case and SQLAlchemy's rows in the other.

Everything runs on the connection that is passed in, also what loader options such as
`selectinload` ask afterwards: an authorizer set on it right before sees each table that is read,
because setting one lets SQLite prepare even statements again that sqlite3 has kept. The connection
is left as it is, in a transaction or not. A relationship that was not loaded raises SQLAlchemy's
DetachedInstanceError when it is touched.
"""

import sqlite3
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple, cast

from sqlalchemy import ClauseElement, Engine, Executable, NullPool, TextClause, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from reunite.sqlalchemy_dialect import ValueDialect


class Query(NamedTuple):
    """A statement as SQLite gets it. `loads` tells statements apart that ask the same and load it
    otherwise: as other classes, with other options. Hashable, and equal for equal statements."""

    sql: str
    parameters: tuple[Any, ...]
    loads: Hashable


class Dialect(ValueDialect):
    """On a connection that somebody lends: it is neither begun on, ended, nor closed."""

    supports_statement_cache = True
    driver = "reunite_lent"

    def do_begin(self, dbapi_connection: Any) -> None:
        """The lender's."""

    def do_rollback(self, dbapi_connection: Any) -> None:
        """The lender's."""

    def do_commit(self, dbapi_connection: Any) -> None:
        """The lender's."""

    def do_close(self, dbapi_connection: Any) -> None:
        """The lender's."""

    def on_connect(self) -> Any:
        """`regexp` and `floor`, which SQLAlchemy's operators need."""
        connected = super().on_connect()

        def connect(dbapi_connection: Any) -> None:
            try:
                connected(dbapi_connection)
            except sqlite3.OperationalError:
                # SQLite redefines none while a statement runs; then they are there already.
                return

        return connect


registry.register("sqlite.reunite_lent", __name__, "Dialect")

_lent: ContextVar[sqlite3.Connection] = ContextVar("_lent")


@cache
def _engine() -> Engine:
    """One for all connections, so that each statement is compiled once."""
    return create_engine(
        "sqlite+reunite_lent://",
        poolclass=NullPool,
        creator=lambda: cast(DBAPIConnection, _lent.get()),
    )


@contextmanager
def lent(conn: sqlite3.Connection) -> Iterator[Engine]:
    """An engine that has this connection, for the length of the block."""
    token = _lent.set(conn)
    try:
        yield _engine()
    finally:
        _lent.reset(token)


def compiled(statement: Executable) -> Query:
    """What a statement asks: its SQL, with literal values as parameters in the form that the file
    holds. Raises SQLAlchemy's CompileError and StatementError."""
    assert isinstance(statement, ClauseElement)
    made = statement.compile(dialect=_engine().dialect)
    assert isinstance(made, SQLCompiler)
    expanded = made.construct_expanded_state()
    processors: dict[str, Any] = {**made._bind_processors, **expanded.processors}
    parameters = tuple(
        processors[name](expanded.parameters[name])
        if name in processors
        else expanded.parameters[name]
        for name in expanded.positiontup or ()
    )
    key = statement._generate_cache_key()
    return Query(expanded.statement, parameters, statement if key is None else key.key)


def run_select(
    conn: sqlite3.Connection,
    statement: Executable,
    parameters: Mapping[str, Any] | None = None,
) -> list[Any]:
    """What a statement finds on this connection: mapped objects, or the values of its one column,
    or rows where it has several; text() always gives rows. Objects are detached."""
    with lent(conn) as engine, Session(engine, autoflush=False) as session:
        try:
            return _found(session, statement, parameters, unique=False)
        except InvalidRequestError:
            # Collections that are loaded by a join repeat their parent.
            return _found(session, statement, parameters, unique=True)


def _found(
    session: Session,
    statement: Executable,
    parameters: Mapping[str, Any] | None,
    *,
    unique: bool,
) -> list[Any]:
    result = session.execute(statement, parameters)
    if unique:
        result = result.unique()
    if isinstance(statement, TextClause) or len(result.keys()) != 1:
        return list(result.all())
    return list(result.scalars().all())
