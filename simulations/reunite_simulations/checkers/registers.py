"""No lost update, and the later edit wins: of a cell, and of a row's life.

An independent model of what the relay may hold in the end. It knows what each transaction wrote and
had read, and when, by true time; nothing of stamps or documents. What a cell holds is what its last
edit wrote, or another that may count as later: one that came no more than `CLOSE_SECONDS` before.
And it is nothing that somebody had seen when he replaced it, whatever the clocks said; values that
occur once name the write that they are of. A row is gone if its last deletion may count as later
than its last edit, and is there if it is the other way round.

Of a column that merges only this much is a register: whether it shows what merges, which is one
value here, or another that was put beside it. What it shows then is judged by others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from reunite.cells.register import Value, same
from reunite.keys import stored_key
from reunite.schema import Table, ascii_lower, default_value
from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rejected_rows
from reunite_simulations.contents import means_the_same, merges, stand_in
from reunite_simulations.history import Key, Outcome, Transaction, Verb, Write, may_come_again, net

# Two edits that are closer than this in true time may win in either order: measured clocks differ
# by up to a second without being corrected.
CLOSE_SECONDS: Final = 2.5

_RowName: TypeAlias = tuple[str, Key]


@dataclass(frozen=True, slots=True)
class _Edit:
    """One write of one cell, or of a row's life. `certain` when nobody may have lost or refused
    it."""

    value: Value
    before: Value
    had_row: bool
    at: float
    # How late it may count, with what other programs did to the row before anybody looked.
    until: float
    certain: bool
    # See `may_come_again`.
    again: bool
    client: str


@dataclass(slots=True)
class _Row:
    """All writes of one row. `timed` unless a clock that was wrong dated one of them."""

    edits: dict[str, list[_Edit]] = field(default_factory=dict)
    touches: list[_Edit] = field(default_factory=list)
    deletes: list[_Edit] = field(default_factory=list)
    timed: bool = True


class Registers:
    """The final rows against the history."""

    promise = "no lost update"
    looks = False

    def during(self, world: Observed) -> Iterable[str]:
        """Nothing before the end: whoever has not heard of an edit yet may hold an older one."""
        return ()

    def at_end(self, world: Observed) -> Iterable[str]:
        """Every row lives or not, and every cell holds a value, as the history allows."""
        tables = {table.name: table for table in world.tables()}
        rows = _rows(world, tables)
        for table in tables.values():
            held = observe.rows(world.store, table)
            initial = world.initial.get(table.name, {})
            defaults = [default_value(column) for column in table.cells]
            for (name, key), row in rows.items():
                if name != table.name:
                    continue
                said = _life(row, key in held)
                if said is None and key in held:
                    said = next(_cells(table, row, held[key], initial.get(key), defaults), None)
                if said is not None:
                    yield f"{name} {key}{said}"


def _rows(world: Observed, tables: Mapping[str, Table]) -> Mapping[_RowName, _Row]:
    """What the history says of each row."""
    rejected = rejected_rows(world)
    rows: dict[_RowName, _Row] = {}
    # What is captured at once and ends with a row's deletion is a deletion, whatever was edited
    # before: one transaction of the engine's, or several of other programs.
    deleted_by_strangers: set[tuple[str, str, Key]] = set()
    # And what other programs made and deleted before anybody looked was never there.
    made_by_strangers = {
        (made.client, write.table, write.key)
        for made in world.history.transactions
        if not made.own
        for write in made.writes
        if write.verb is Verb.INSERT
    }
    # All that they do to a row until then is one edit, of the time of the last; the client's next
    # transaction of its own looks at the latest.
    last_by_strangers: dict[str, dict[_RowName, float]] = {}
    for made in reversed(world.history.transactions):
        if made.outcome is Outcome.REFUSED:
            continue
        if made.own and made.outcome is Outcome.RETURNED:
            last_by_strangers.pop(made.client, None)
        deleted = set() if made.own else deleted_by_strangers
        writes = list(net(made))
        gone = {ascii_lower(write.table) for write in writes if write.verb is Verb.DELETE}
        for write in reversed(writes):
            captured = made.client, write.table, write.key
            certain = made.outcome is Outcome.RETURNED and not made.doubtful
            certain = certain and (write.table, str(stored_key(write.key))) not in rejected
            certain = certain and captured not in deleted
            row = rows.setdefault((write.table, write.key), _Row())
            row.timed = row.timed and not made.mistimed
            until = made.at
            if not made.own:
                last = last_by_strangers.setdefault(made.client, {})
                until = last.setdefault((write.table, write.key), made.at)
            if write.verb is Verb.DELETE:
                deleted.add(captured)
                certain = certain and (made.own or captured not in made_by_strangers)
            # What a parent's deletion, or new key, does to a child is dropped when the child had
            # moved on.
            derived = {
                column
                for each in tables[write.table].foreign_keys
                if ascii_lower(each.parent) in gone
                for column in each.columns
            }
            again = may_come_again(made, world.twins)
            _note(row, tables[write.table], write, made, until, certain, derived, again)
    return rows


def _note(
    row: _Row,
    table: Table,
    write: Write,
    made: Transaction,
    until: float,
    certain: bool,
    derived: Set[str],
    again: bool,
) -> None:
    def edit(value: Value, before: Value, had_row: bool, certain: bool) -> _Edit:
        return _Edit(value, before, had_row, made.at, until, certain, again, made.client)

    if write.verb is Verb.DELETE:
        row.deletes.append(edit(None, None, True, certain and not derived))
        return
    touched = write.verb is Verb.INSERT
    for name, value in write.cells.items():
        column = table.column(name)
        was, had = write.before.get(name), name in write.before
        if column is not None and merges(column):
            if had and means_the_same(column, was, value):
                continue
            was, value = stand_in(column, was), stand_in(column, value)
        # Other programs may write NULL where it was before anybody looked.
        known = certain and name not in derived and (made.own or value is not None)
        touched |= known
        row.edits.setdefault(name, []).append(edit(value, was, had, known))
    row.touches.append(edit(None, None, True, certain and touched))


def _life(row: _Row, held: bool) -> str | None:
    """What is wrong with a row that is there, or is not."""
    kept, lost = (row.touches, row.deletes) if held else (row.deletes, row.touches)
    last = _last(lost)
    if last is None or (row.timed and kept and _may_be_later(kept, last)):
        return None
    if not row.timed and kept:
        return None
    if held and not kept:
        # It was there from the beginning, and nobody wrote it.
        return f" is still there, and {last.client} deleted it at {last.at:.1f} s"
    if held:
        return f" is still there, and nobody wrote it after {last.client} deleted it"
    return f" is gone, and nobody deleted it after {last.client} wrote it at {last.at:.1f} s"


def _cells(
    table: Table,
    row: _Row,
    values: Sequence[Value],
    initial: Sequence[Value] | None,
    defaults: Sequence[Value],
) -> Iterator[str]:
    """What is wrong with the cells of a row that is there."""
    for place, column in enumerate(table.cells):
        edits = row.edits.get(column.name, [])
        # A column that was added later had nothing.
        started = initial[place] if initial is not None and place < len(initial) else None
        value, default = values[place], defaults[place]
        if merges(column):
            value, started, default = (stand_in(column, v) for v in (value, started, default))
        said = _cell(row, value, started, default, edits)
        if said is not None:
            yield f" {column.name}: {said}"


def _cell(
    row: _Row, value: Value, started: Value, default: Value, edits: Sequence[_Edit]
) -> str | None:
    own = [edit for edit in edits if same(edit.value, value)]
    known = value is None or any(same(value, each) for each in (started, default))
    if not own and not known:
        return f"{value!r} was never written there"
    if not row.timed and any(edit.again for edit in own):
        # Noticed for the first time once more, it was another edit, as late as a clock may say.
        return None
    # What was there more than once says nothing of when it was.
    if len(own) + known == 1:
        for edit in edits:
            if edit.certain and edit.had_row and same(edit.before, value):
                return f"{edit.value!r} of {edit.client} had seen {value!r}, which is still there"
    # A new row's columns at their default are below any edit, unless the row had been deleted.
    stamped = [edit for edit in edits if edit.had_row or not same(edit.value, default)]
    last = _last(stamped)
    if last is None or not row.timed or same(value, last.value) or _may_be_later(own, last):
        return None
    return f"{value!r} is older than {last.value!r} of {last.client} at {last.at:.1f} s, and won"


def _last(edits: Iterable[_Edit]) -> _Edit | None:
    """The last certain one."""
    return max((edit for edit in edits if edit.certain), key=lambda each: each.at, default=None)


def _may_be_later(some: Iterable[_Edit], other: _Edit) -> bool:
    return any(edit.until > other.at - CLOSE_SECONDS for edit in some)
