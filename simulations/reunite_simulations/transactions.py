"""What an app does in one transaction. Owns how a workload becomes a transaction of the history.

Whatever the workload writes, the transaction reads the append-only lists and now and then adds to
them: what it reads and adds there is what the consistency checkers know of it.
"""

import random
import sqlite3
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final, TypeAlias

from reunite.errors import ReuniteError
from reunite.schema import Table
from reunite_simulations import observe
from reunite_simulations.chance import EventChance
from reunite_simulations.history import History, Outcome, Transaction
from reunite_simulations.nodes import Client
from reunite_simulations.workload import APPEND_TABLE, Mix, RandomWrites

# A transaction of the user's own: SQL on the connection, all choices from the generator, neither
# BEGIN nor COMMIT. An sqlite3.Error that it lets out rolls all back, and nobody minds.
OwnTransaction: TypeAlias = Callable[[sqlite3.Connection, random.Random], object]
Workload: TypeAlias = Mix | OwnTransaction | Sequence[OwnTransaction | tuple[OwnTransaction, float]]

# So many values are one transaction's own, and one client's.
VALUES_OF_TRANSACTION: Final = 100_000
VALUES_OF_CLIENT: Final = 1_000_000_000
# So much of a statement is remembered, and so many of a transaction of a mix: some are very large.
STATEMENT_CHARS_MAX: Final = 1_000
STATEMENTS_MAX: Final = 30
# A transaction that writes to the lists writes other rows in so many of all cases.
BOTH: Final = 0.3
_WRITING: Final = ("insert", "update", "delete", "replace", "with")


def transact(
    client: Client,
    chance: EventChance,
    workload: Workload,
    tables: Sequence[Table],
    history: History,
) -> Transaction:
    """Run a client's next transaction and note it. Raises Crashed when the process dies in it."""
    mix = workload if isinstance(workload, Mix) else Mix()
    values = client.place * VALUES_OF_CLIENT + chance.number * VALUES_OF_TRANSACTION
    writes = RandomWrites(tables, chance, mix, values, at_first=client.place == 1)
    made = history.begin(
        chance.event,
        client.name,
        client.session,
        client.world.now(),
        own=chance.random() >= mix.strangers,
    )
    appends = chance.random() < mix.appends

    def work(conn: sqlite3.Connection) -> None:
        made.read = history.keep(observe.elements(conn, APPEND_TABLE))
        with client.overheard() as statements:
            try:
                if appends:
                    made.appended = writes.append(conn)
                if not isinstance(workload, Mix):
                    _drawn(workload, chance)(conn, chance)
                elif not appends or chance.random() < BOTH:
                    made.writes = writes.some(conn)
            finally:
                # What runs in a trigger is told as the statement that set it off, once more.
                made.statements = [
                    each[:STATEMENT_CHARS_MAX]
                    for each, _ in groupby(statements)
                    if each[:10].lower().startswith(_WRITING)
                ]
                if made.writes:
                    made.statements = made.statements[:STATEMENTS_MAX]

    try:
        client.write(work, own=made.own)
    except (sqlite3.Error, ReuniteError) as error:
        made.outcome, made.refusal = Outcome.REFUSED, type(error).__name__
    else:
        made.outcome = Outcome.RETURNED
    return made


def _drawn(
    workload: OwnTransaction | Sequence[OwnTransaction | tuple[OwnTransaction, float]],
    chance: random.Random,
) -> OwnTransaction:
    if callable(workload):
        return workload
    weighted = [each if isinstance(each, tuple) else (each, 1.0) for each in workload]
    (found,) = chance.choices([own for own, _ in weighted], [weight for _, weight in weighted])
    return found
