"""Watching: the verbs of a database that follow its file. `live` says how."""

from collections.abc import Callable
from typing import Protocol, TypeVar, overload

from reunite import board
from reunite.board import Query
from reunite.changes import Changes
from reunite.connection import Parameters, made
from reunite.live import LiveQueries, Watch, watch_changes
from reunite.row import Row

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
    def watch(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T] | None = None
    ) -> Watch[list[Row]] | Watch[list[T]]:
        """Follow the rows of a query: `async for rows in db.watch(sql, parameters)`.

        The present rows come at once, then new ones after each commit that changed them, whoever
        made it: this program, a merge, or another process. Who is slow gets the latest. Each row is
        made `into` an object as by `fetch_all`. An error is raised by one `anext` and does not end
        it. See `Watch`.
        """
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
    def watch_one(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T] | None = None
    ) -> Watch[Row | None] | Watch[T | None]:
        """Follow the first row of a query, None where it has none; see `watch`."""
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

    def _watched(self, query: str, parameters: Parameters, run: board.Run) -> Query:
        bound, key = board.keyed(query, parameters)
        return self.live.add(Query(lambda reader: run(reader, query, bound)), key and (run, *key))
