"""Transactions of the user's own, guarded: their bugs are told as theirs, not as a broken promise.

A transaction may be refused by SQLite, and that is no failure. Anything else that goes wrong in it
ends the world: an error of another kind, a transaction that it has ended, a result that somebody
would have to await.
"""

import inspect
import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from reunite.errors import UsageError
from reunite_simulations.asked import check_mix
from reunite_simulations.transactions import OwnTransaction, Workload
from reunite_simulations.workload import Mix

# Refused so often and never carried out: that is no bad luck.
CALLS_MIN: Final = 5


class Stopped(Exception):
    """Ends a world in which a user's own transaction went wrong; `Watch` knows how."""


@dataclass
class Watch:
    """What became of the user's own transactions in a run."""

    guarded: list["Guarded"] = field(default_factory=list)
    error: Exception | None = None

    def failed(self, error: Exception, name: str, event: str) -> Stopped:
        """Keep the first error."""
        if self.error is None:
            error.add_note(f"in the transaction {name}, event {event}")
            self.error = error
        return Stopped(f"{name} failed in {event}: {error!r}")

    def check(self, seed: int) -> None:
        """Raise what the user's code raised, with the seed beside it."""
        if self.error is not None:
            self.error.add_note(f"of reunite's simulation, seed {seed}")
            raise self.error

    def check_refusals(self) -> None:
        """Raise UsageError for a transaction whose SQL was wrong at every call. What constraints
        refuse may well be taken another time."""
        for each in self.guarded:
            if each.calls >= CALLS_MIN and each.refusals == each.calls:
                raise UsageError(
                    f"{each.name} was refused at each of its {each.calls} calls, at last by:"
                    f" {each.refusal}"
                )


class Guarded:
    """One of the user's own transactions. Called as it is, on behalf of a world."""

    def __init__(self, own: OwnTransaction, watch: Watch) -> None:
        """`watch` keeps what goes wrong."""
        self.name = _name(own)
        self.calls = 0
        self.refusals = 0
        self.refusal = ""
        self._own = own
        self._watch = watch
        watch.guarded.append(self)

    def __call__(self, conn: sqlite3.Connection, chance: random.Random) -> None:
        """Run it. Raises what SQLite raised in it, or Stopped."""
        event = str(getattr(chance, "event", "unknown"))
        factories = conn.row_factory, conn.text_factory
        self.calls += 1
        try:
            result = self._own(conn, chance)
            if inspect.iscoroutine(result) or inspect.isgenerator(result):
                result.close()
            if inspect.isawaitable(result) or inspect.isgenerator(result):
                raise UsageError(
                    f"{self.name} returned {result!r}; it must do its work when called"
                )
            if not _is_open(conn):
                raise self._has_ended()
        except sqlite3.Error as error:
            if not _is_open(conn) and _is_wrong_sql(error):
                raise self._watch.failed(self._has_ended(), self.name, event) from error
            self.refusals += _is_wrong_sql(error)
            self.refusal = f"{type(error).__name__}: {error}"
            raise
        except Exception as error:
            raise self._watch.failed(error, self.name, event) from error
        finally:
            conn.row_factory, conn.text_factory = factories

    def _has_ended(self) -> UsageError:
        return UsageError(
            f"{self.name} ended the transaction; it must neither begin nor commit (nor use"
            " executescript, or `with` on the connection, which commit)"
        )


def guard(workload: Workload | None) -> tuple[Workload, Watch]:
    """The same workload with the user's own transactions guarded. Raises UsageError for what is no
    workload."""
    watch = Watch()
    if workload is None or isinstance(workload, Mix):
        check_mix(workload or Mix())
        return workload or Mix(), watch
    if not isinstance(workload, Sequence) or isinstance(workload, str | bytes):
        return _guarded(workload, watch), watch
    if not workload:
        raise UsageError("the workload is empty; give a transaction or a Mix")
    if isinstance(workload, tuple) and len(workload) == 2 and not callable(workload[1]):
        raise UsageError("a transaction with its weight stands in a list: [(write, 3.0)]")
    weighted: list[tuple[OwnTransaction, float]] = []
    for each in workload:
        own, weight = (each, 1.0) if not isinstance(each, tuple) else _pair(each)
        weighted.append((_guarded(own, watch), weight))
    return weighted, watch


def _pair(each: tuple[object, ...]) -> tuple[object, float]:
    if len(each) != 2:
        raise UsageError(f"{each!r} is no pair of a transaction and its weight")
    own, weight = each
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
        raise UsageError(f"{_name(own)} has the weight {weight!r}; it must be over 0")
    return own, weight


def _guarded(own: object, watch: Watch) -> Guarded:
    if not callable(own):
        raise UsageError(f"{own!r} is no transaction; give a function, a list of such, or a Mix")
    if inspect.iscoroutinefunction(own) or inspect.isasyncgenfunction(own):
        raise UsageError(f"{_name(own)} is async; a transaction is a plain function")
    if inspect.isgeneratorfunction(own):
        raise UsageError(f"{_name(own)} is a generator; a transaction is a plain function")
    try:
        inspect.signature(own).bind(None, None)
    except TypeError as error:
        raise UsageError(
            f"{_name(own)} cannot be called with a connection and a chance: {error}"
        ) from error
    except ValueError:
        pass  # Python does not know the parameters of all that can be called.
    return Guarded(own, watch)


def _name(own: object) -> str:
    return str(getattr(own, "__name__", None) or repr(own))


def _is_open(conn: sqlite3.Connection) -> bool:
    try:
        return conn.in_transaction
    except sqlite3.ProgrammingError:
        return False  # It is closed.


def _is_wrong_sql(error: sqlite3.Error) -> bool:
    """Whether it is the statement that is wrong. Other errors, of a full disk or of a trigger, may
    roll back all by themselves."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF == sqlite3.SQLITE_ERROR
