"""Watching: the verbs of a database that follow its file. `live` says how."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from reunite import board
from reunite.board import Found, Query
from reunite.changes import Changes
from reunite.connection import Parameters, made
from reunite.live import LiveQueries, Watch, watch_changes
from reunite.row import Row

if TYPE_CHECKING:
    from sqlalchemy import Executable
    from sqlalchemy.sql.selectable import TypedReturnsRows

T = TypeVar("T")


class Watchable(Protocol):
    """A part of `Database`."""

    @property
    def live(self) -> LiveQueries:
        """Who listens. Raises UsageError while the database is not open."""
        ...

    @overload
    def watch(self, query: str, parameters: Parameters = ()) -> Watch[list[Row]]: ...
    @overload
    def watch(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> Watch[list[T]]: ...
    @overload
    def watch(self, query: "TypedReturnsRows[tuple[T]]") -> Watch[list[T]]: ...
    @overload
    def watch(self, query: "Executable") -> Watch[list[Any]]: ...
    def watch(
        self,
        query: "str | Executable",
        parameters: Parameters = (),
        *,
        into: Callable[..., Any] | None = None,
    ) -> Watch[list[Any]]:
        """Follow the rows of a query: `async for rows in db.watch(sql, parameters)`.

        The present rows come at once, then new ones after each commit that changed them, whoever
        made it: this program, a merge, or another process. Who is slow gets the latest. Each row is
        made `into` an object as by `fetch_all`. An error is raised by one `anext` and does not end
        it. See `Watch`.

        A select() of SQLAlchemy gives what `session.scalars(query).all()` would, or of several
        columns `session.execute(query).all()`: objects of the caller's own, detached, with what the
        query's options load.
        """
        if not isinstance(query, str):
            return self._selected(query, lambda found: list(found.told))
        found = self._watched(query, parameters, board.rows_of)
        if into is None:
            return Watch(self.live, found, lambda found: list(found.told), shown=query)
        return Watch(self.live, found, lambda found: made(found.told, into), shown=query)

    @overload
    def watch_one(self, query: str, parameters: Parameters = ()) -> Watch[Row | None]: ...
    @overload
    def watch_one(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> Watch[T | None]: ...
    @overload
    def watch_one(self, query: "TypedReturnsRows[tuple[T]]") -> Watch[T | None]: ...
    @overload
    def watch_one(self, query: "Executable") -> Watch[Any]: ...
    def watch_one(
        self,
        query: "str | Executable",
        parameters: Parameters = (),
        *,
        into: Callable[..., Any] | None = None,
    ) -> Watch[Any]:
        """Follow the first row of a query, None where it has none; see `watch`."""
        if not isinstance(query, str):
            return self._selected(query, lambda found: next(iter(found.told), None), only=1)
        found = self._watched(query, parameters, board.first_of)
        if into is None:
            return Watch(self.live, found, lambda found: next(iter(found.told), None), shown=query)
        return Watch(
            self.live, found, lambda found: next(iter(made(found.told, into)), None), shown=query
        )

    def watch_changes(self, *tables: str, after: str | None = None) -> Watch[Changes]:
        """Follow the rows of tracked tables, or of these, as differences.

        Each `Changes` holds what was inserted, updated and deleted since the one before it, with
        the present values of the rows and the origin of each change, and a token: with `after` it
        goes on from there, also in another run of the program. Without, it begins with all rows as
        inserted. Several changes of a row are told as one. Raises UsageError for a token of another
        file.
        """
        return watch_changes(self.live, tables, after)

    def _selected(
        self, query: "Executable", make: Callable[[Found], T], *, only: int | None = None
    ) -> Watch[T]:
        from reunite import orm

        asked = orm.compiled(query)
        # Nobody else gets the objects, which each is free to change; so it has a run of its own.
        run = Query(lambda reader: reader.select(lambda conn: orm.run_select(conn, query), only))
        return Watch(self.live, self.live.add(run), make, shown=asked.sql)

    def _watched(self, query: str, parameters: Parameters, run: board.Run) -> Query:
        bound, key = board.keyed(query, parameters)
        return self.live.add(Query(lambda reader: run(reader, query, bound)), key and (run, *key))
