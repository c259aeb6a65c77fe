"""No lost update: an edit stays until somebody who saw it, or wrote later, replaces it.

An independent model of what a cell may hold in the end. It knows what each transaction wrote and
had read, and when, by true time; nothing of stamps or documents. Workloads write a value only once,
so the value that a cell has in the end names its write.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from reunite.cells.register import Value, same
from reunite.keys import stored_key
from reunite.schema import Table, default_value
from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rejections
from reunite_simulations.history import Key, Outcome, Transaction, Verb, Write
from reunite_simulations.workload import is_free, occurs_once

# Two edits that are closer than this in true time may win in either order: measured clocks differ
# by up to a second without being corrected.
CLOSE_SECONDS: Final = 2.5


@dataclass(slots=True)
class _Edit:
    """One write of one cell. `certain` when nobody may have lost or refused it."""

    value: Value
    before: Value
    had_row: bool
    at: float
    certain: bool
    # The file went back to before it, or to a moment when it was there and not noticed yet.
    doubtful: bool
    client: str


@dataclass(slots=True)
class _Row:
    """All writes of one row."""

    edits: dict[str, list[_Edit]] = field(default_factory=dict)
    deletes: list[tuple[Write, float, bool]] = field(default_factory=list)
    inserted: bool = False
    certain: bool = False


class Registers:
    """The final rows against the history."""

    promise = "no lost update"

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end: whoever has not heard of an edit yet may hold an older one."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every cell holds the value of an edit that no other replaced."""
        rejected = {(table, str(key)) for table, key, _, _ in rejections(world)}
        by_row: dict[tuple[str, Key], _Row] = {}
        # What is captured at once and ends with a row's deletion is a deletion, whatever was edited
        # before: one transaction of the engine's, or several of other programs.
        deleted_by_strangers: set[tuple[str, str, Key]] = set()
        for transaction in reversed(world.history.transactions):
            if transaction.outcome is Outcome.REFUSED:
                continue
            deleted = set() if transaction.own else deleted_by_strangers
            for write in reversed(list(_net(transaction.writes))):
                row = by_row.setdefault((write.table, write.key), _Row())
                captured = transaction.client, write.table, write.key
                certain = transaction.outcome is Outcome.RETURNED and not transaction.doubtful
                certain = certain and (write.table, str(stored_key(write.key))) not in rejected
                certain = certain and captured not in deleted
                if write.verb is Verb.DELETE:
                    deleted.add(captured)
                _note(row, write, transaction, certain)
        for table in world.tables():
            yield from self._table(world, table, by_row)

    def _table(
        self, world: Observed, table: Table, by_row: Mapping[tuple[str, Key], _Row]
    ) -> Iterable[str]:
        held = observe.rows(world.store, table)
        initial = world.initial.get(table.name, {})
        columns = [
            (place, column.name, default_value(column))
            for place, column in enumerate(table.cells)
            if occurs_once(column) and is_free(table, column)
        ]
        for (name, key), row in by_row.items():
            if name != table.name:
                continue
            values = held.get(key)
            if values is None:
                if row.certain and not row.deletes:
                    yield f"{name} {key} is gone, and nobody deleted it"
                continue
            before = initial.get(key)
            for place, column, default in columns:
                # A column that was added later had nothing.
                had = before is not None and place < len(before)
                started = before[place] if before is not None and had else None
                edits = row.edits.get(column, ())
                yield from (
                    f"{name} {key} {column}: {said}"
                    for said in _cell(world, values[place], started, default, edits)
                )


def _net(writes: Sequence[Write]) -> Iterable[Write]:
    """A transaction's writes with the successive edits of a row as one, and without what a cell
    had before: what went back to that is no edit."""
    found: list[Write] = []
    place_by_row: dict[tuple[str, Key], int] = {}
    for write in writes:
        place = place_by_row.get((write.table, write.key))
        earlier = None if place is None else found[place]
        if write.verb is Verb.UPDATE and earlier is not None and earlier.verb is not Verb.DELETE:
            assert place is not None
            found[place] = replace(earlier, cells={**earlier.cells, **write.cells})
        else:
            place_by_row[write.table, write.key] = len(found)
            found.append(write)
    for write in found:
        cells = {
            column: value
            for column, value in write.cells.items()
            if column not in write.before or not same(value, write.before[column])
        }
        yield replace(write, cells=cells)


def _note(row: _Row, write: Write, made: Transaction, certain: bool) -> None:
    if write.verb is Verb.DELETE:
        row.deletes.append((write, made.at, certain))
        return
    row.inserted = row.inserted or write.verb is Verb.INSERT
    row.certain = row.certain or certain
    for column, value in write.cells.items():
        edit = _Edit(
            value,
            write.before.get(column),
            column in write.before,
            made.at,
            # Other programs may write NULL where it was before anybody looked.
            certain and (made.own or value is not None),
            made.doubtful,
            made.client,
        )
        row.edits.setdefault(column, []).append(edit)


def _cell(
    world: Observed, value: Value, started: Value, default: Value, edits: Sequence[_Edit]
) -> Iterable[str]:
    # What many write says nothing of who wrote it.
    if value is None or value == default:
        return
    own = [edit for edit in edits if edit.value == value]
    if not own and value != started:
        yield f"{value!r} was never written there"
        return
    edits = [edit for edit in edits if edit.certain]
    if world.clocks_were_wrong and any(edit.doubtful for edit in own):
        # Noticed for the first time once more, it was another edit, as late as a clock may say.
        return
    for edit in edits:
        if edit.had_row and edit.before == value and edit.value != value:
            yield f"{edit.value!r} of {edit.client} had seen {value!r}, which is still there"
    if own and not world.clocks_were_wrong:
        last = max(edit.at for edit in own)
        for edit in edits:
            if edit.at > last + CLOSE_SECONDS and edit.value != default:
                yield f"{value!r} is older than {edit.value!r} of {edit.client}, and won"
                return
