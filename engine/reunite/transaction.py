"""A transaction of the app, as it is given to the block that runs in it."""

from collections.abc import Callable, Iterable
from typing import TypeVar, overload

from reunite import changes
from reunite.changes import Changes
from reunite.connection import Parameters, Result, execute, executemany, made
from reunite.driver import ThreadDriver
from reunite.errors import UsageError
from reunite.row import Row

T = TypeVar("T")


class Transaction:
    """One transaction of the app, as given by `Database.transaction()`."""

    def __init__(self, driver: ThreadDriver, check_open: Callable[[], None]) -> None:
        """`check_open` raises UsageError where the database was closed meanwhile."""
        self._driver = driver
        self._check_open = check_open
        self._open = True
        self.changeset: int | None = None
        """What is to be sent, for `Database.synced`: known when the block has ended; None when it
        edited no tracked row."""

    def __repr__(self) -> str:
        if self._open:
            return "<Transaction: open>"
        return f"<Transaction: ended, changeset {self.changeset}>"

    async def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """Run a statement inside the transaction."""
        return await self._run(execute, sql, parameters)

    async def executemany(self, sql: str, parameters: Iterable[Parameters]) -> Result:
        """Run a statement once for each set of parameters; `rowcount` is the rows changed."""
        return await self._run(executemany, sql, list(parameters))

    @overload
    async def fetch_all(self, sql: str, parameters: Parameters = ()) -> list[Row]: ...
    @overload
    async def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> list[T]: ...
    async def fetch_all(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T] | None = None
    ) -> list[Row] | list[T]:
        """The rows of a query, as this transaction sees them."""
        rows = (await self.execute(sql, parameters)).rows
        return rows if into is None else made(rows, into)

    @overload
    async def fetch_one(self, sql: str, parameters: Parameters = ()) -> Row | None: ...
    @overload
    async def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T]
    ) -> T | None: ...
    async def fetch_one(
        self, sql: str, parameters: Parameters = (), *, into: Callable[..., T] | None = None
    ) -> Row | T | None:
        """The first row of a query, or None."""
        rows = (await self.execute(sql, parameters)).rows
        if not rows:
            return None
        return rows[0] if into is None else made(rows[:1], into)[0]

    async def changes(self, *tables: str, after: str | None = None) -> Changes:
        """What was committed after a token, as by `Database.changes`. While the transaction lasts
        nobody adds to it."""
        return await self._run(changes.since, tables, after)

    def end(self, changeset: int | None = None) -> None:
        """Let nothing more be run in it."""
        self._open, self.changeset = False, changeset

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        if not self._open:
            raise UsageError("this transaction has ended; begin another with db.transaction()")
        self._check_open()
        return await self._driver.run(function, self._driver.conn, *args)
