"""Watching: the verbs of a database that follow its file. `live` says how."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from reunite import board, resolved
from reunite.board import Found, Query
from reunite.changes import Changes
from reunite.connection import Parameters, made
from reunite.errors import CatchUpTimeout
from reunite.live import LiveQueries, Results, watch_changes, watch_results
from reunite.row import Row
from reunite.watch import Watch

if TYPE_CHECKING:
    from sqlalchemy import Executable

    # Of one column it is of a tuple before SQLAlchemy 2.1, and of the column's own type since.
    from sqlalchemy.sql.selectable import TypedReturnsRows

T = TypeVar("T")


class Watchable(Protocol):
    """A part of `Database`."""

    @property
    def live(self) -> LiveQueries:
        """Who listens. Raises UsageError while the database is not open."""
        ...

    def refuse_inside(self) -> None:
        """Raise UsageError where the running task is inside a transaction."""
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
    def watch(self, query: "TypedReturnsRows[T]") -> Watch[list[T]]: ...
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
            return watch_results(self.live, found, lambda found: list(found.told), shown=query)
        return watch_results(self.live, found, lambda found: made(found.told, into), shown=query)

    @overload
    def watch_one(self, query: str, parameters: Parameters = ()) -> Watch[Row | None]: ...
    @overload
    def watch_one(
        self, query: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> Watch[T | None]: ...
    @overload
    def watch_one(self, query: "TypedReturnsRows[tuple[T]]") -> Watch[T | None]: ...
    @overload
    def watch_one(self, query: "TypedReturnsRows[T]") -> Watch[T | None]: ...
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
            return watch_results(
                self.live, found, lambda found: next(iter(found.told), None), shown=query
            )
        return watch_results(
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
        self.refuse_inside()
        return watch_changes(self.live, tables, after)

    def watch_rejected(self) -> Watch[Row]:
        """What could not be synced: `async for line in db.watch_rejected()` gives the lines of
        `reunite_rejected` that are there, oldest first, and then each that comes.

        Nothing is lost on who is slow, or not there yet: what waits, waits in the file. A line that
        the app has dealt with is deleted, or it is told again in the next run. See `Watch`.
        """
        lines = self._watched(resolved.REJECTED, (), board.rows_of)
        return Watch(Results(self.live, lines, resolved.Rejections().fresh), shown="rejected")

    async def synced(
        self,
        changeset: int | None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bool:
        """Wait until the relay has a write: True when it is committed there, False when it was
        refused, or a part of it, and is kept in `reunite_rejected`.

        `changeset` is that of a `Result` or `Transaction`, or what `restore` and a text's `save`
        return, also of an earlier run; None, for what edited nothing, is True at once. Something
        has to sync the file: a `Sync` here, or another process. Raises CatchUpTimeout after
        `timeout` seconds, and UsageError for a number that this file never gave.
        """
        self.refuse_inside()
        if changeset is None:
            return True
        try:
            async with asyncio.timeout(timeout):
                standing = self.watch_one(resolved.STANDING, (changeset,))
                return await resolved.committed(standing, changeset)
        except TimeoutError:
            raise CatchUpTimeout(
                f"the relay did not resolve changeset {changeset} within {timeout:g} s; it waits in"
                " the file and goes with the next sync"
            ) from None

    def _selected(
        self, query: "Executable", make: Callable[[Found], T], *, only: int | None = None
    ) -> Watch[T]:
        from reunite import orm

        asked = orm.compiled(query)
        # Nobody else gets the objects, which each is free to change; so it has a run of its own.
        run = Query(lambda reader: reader.select(lambda conn: orm.run_select(conn, query), only))
        return watch_results(self.live, self.live.add(run), make, shown=asked.sql)

    def _watched(self, query: str, parameters: Parameters, run: board.Run) -> Query:
        bound, key = board.keyed(query, parameters)
        return self.live.add(Query(lambda reader: run(reader, query, bound)), key and (run, *key))
