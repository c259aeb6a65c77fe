"""What became of edits that did not know of each other: both kept, or one replaced by the other.

Read from the history and the relay's rows in the end, as the checkers do; nothing of stamps or
documents. A workload writes a value only once, so the value that a write replaced names the write
that it had seen, and two writes that replaced one value are a fork. What cannot be told so for
certain (NULL that many wrote, a file that went back in time) is left out. A column that merges is
told by its parts: two writes of one value, and what each put into it that is there together later.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

from reunite.cells.register import Value
from reunite.keys import stored_key
from reunite.schema import Column, Table
from reunite_simulations import observe
from reunite_simulations.checkers import Observed, rejections
from reunite_simulations.contents import content, means_the_same, merges
from reunite_simulations.history import Cells, Key, Outcome, Transaction, Verb, Write
from reunite_simulations.rows import is_free
from reunite_simulations.trees import parts_of
from reunite_simulations.values import occurs_once

# A write is compared with so many later ones of its row: who has not seen it by then is rare.
LATER_WRITES_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Side:
    """One client's edit, with the cells of it that count."""

    client: str
    at: float
    cells: Cells


@dataclass(frozen=True, slots=True)
class Merged:
    """Two edits of one row, neither of which had seen the other, that are both kept."""

    table: str
    key: Key
    first: Side
    second: Side


@dataclass(frozen=True, slots=True)
class Overwritten:
    """An edit of one cell that gave way to another, which had not seen it. `winner` has no cells
    when it deleted the row."""

    table: str
    key: Key
    column: str
    loser: Side
    winner: Side


@dataclass(frozen=True, slots=True)
class Conflicts:
    """All that could be told for certain, in the order of the later edits."""

    merged: Sequence[Merged] = ()
    overwritten: Sequence[Overwritten] = ()


_Step: TypeAlias = tuple[Transaction, Write]


@dataclass(frozen=True, slots=True)
class _Edit:
    """One write of one cell. `had` is False when the row was new; `certain` when nobody may have
    lost it."""

    client: str
    at: float
    value: Value
    before: Value
    had: bool
    certain: bool


@dataclass(frozen=True, slots=True)
class _Register:
    """One cell's edits by value, how often each value was written, and the edits whose sequence
    ends in what the cell holds, the first one first. `kept` are the values of these."""

    edits: Mapping[Value, _Edit]
    times: Mapping[Value, int]
    chain: Sequence[_Edit]
    kept: frozenset[Value]


def found(world: Observed) -> Conflicts:
    """Compare what clients wrote with what the relay has."""
    if not all(observe.has_table(world.store, name) for name in world.initial):
        return Conflicts()
    table_by_name = {table.name: table for table in world.tables()}
    held = {table.name: observe.rows(world.store, table) for table in table_by_name.values()}
    merged: list[Merged] = []
    overwritten: list[Overwritten] = []
    for (name, key), steps in _contended(world).items():
        table = table_by_name[name]
        row = held[name].get(key)
        first = world.initial[name].get(key)
        registers = _registers(table, row, first, steps)
        for column, register in registers.items():
            overwritten += _lost(name, key, column, register, steps, gone=row is None)
        names = [column.name for column in table.cells]
        final = dict(zip(names, row, strict=True)) if row is not None else {}
        merged += _kept(name, key, registers, steps, final)
        for merging in filter(merges, table.cells):
            merged += _kept_inside(name, key, merging, steps, final)
    return Conflicts(
        sorted(merged, key=attrgetter("second.at")),
        sorted(overwritten, key=lambda each: max(each.loser.at, each.winner.at)),
    )


def _contended(world: Observed) -> Mapping[tuple[str, Key], Sequence[_Step]]:
    """The writes of rows that several clients wrote, in true order."""
    rejected = {(table, str(key)) for table, key, _, _ in rejections(world)}
    by_row: dict[tuple[str, Key], list[_Step]] = {}
    for transaction in world.history.transactions:
        if transaction.outcome is not Outcome.REFUSED:
            for write in transaction.writes:
                by_row.setdefault((write.table, write.key), []).append((transaction, write))
    return {
        row: steps
        for row, steps in by_row.items()
        if len({transaction.client for transaction, _ in steps}) > 1
        and (row[0], str(stored_key(row[1]))) not in rejected
    }


def _registers(
    table: Table, row: Sequence[Value] | None, first: Sequence[Value] | None, steps: Sequence[_Step]
) -> dict[str, _Register]:
    registers = {}
    for place, column in enumerate(table.cells):
        if not (occurs_once(column) and is_free(table, column)):
            continue
        name = column.name
        edits = [
            _Edit(
                step.client,
                step.at,
                write.cells[name],
                write.before.get(name),
                had=bool(write.before),
                certain=_certain(step),
            )
            for step, write in steps
            if name in write.cells
        ]
        times = Counter(edit.value for edit in edits)
        if first is not None and place < len(first):
            times[first[place]] += 1
        by_value = {edit.value: edit for edit in edits if times[edit.value] == 1}
        by_value.pop(None, None)
        last = by_value.get(row[place]) if row is not None else None
        chain = _back_to_the_first(by_value, last)
        kept = frozenset(edit.value for edit in chain)
        registers[name] = _Register(by_value, times, chain, kept)
    return registers


def _back_to_the_first(by_value: Mapping[Value, _Edit], edit: _Edit | None) -> Sequence[_Edit]:
    chain: list[_Edit] = []
    while edit is not None and edit not in chain:
        chain.insert(0, edit)
        edit = by_value.get(edit.before) if edit.had else None
    return chain


def _lost(
    table: str, key: Key, column: str, register: _Register, steps: Sequence[_Step], *, gone: bool
) -> Iterator[Overwritten]:
    """Edits that nobody had seen who replaced them."""
    deletes = [
        (step, write)
        for step, write in steps
        if write.verb is Verb.DELETE and column in write.before
    ]
    seen = {edit.before for edit in register.edits.values()}
    seen |= {write.before[column] for _, write in deletes}
    for edit in register.edits.values():
        if edit.value in register.kept or edit.value in seen or not edit.certain:
            continue
        loser = Side(edit.client, edit.at, {column: edit.value})
        if gone:
            for step, write in deletes:
                apart = write.before[column] == edit.before and _once(register, edit.before)
                other = step.client != edit.client and _certain(step)
                if edit.had and apart and other:
                    winner = Side(step.client, step.at, {})
                    yield Overwritten(table, key, column, loser, winner)
                    break
            continue
        fork = _fork(register, edit)
        later = [each for each in fork if each.client != edit.client and each.certain]
        if later and (edit.had or not deletes):
            by = next((each for each in later if each.at > edit.at), later[0])
            winner = Side(by.client, by.at, {column: by.value})
            yield Overwritten(table, key, column, loser, winner)


def _fork(register: _Register, edit: _Edit) -> Sequence[_Edit]:
    """The edits that won, from where their sequence left that of one that lost."""
    passed = [edit]
    while edit.had and (parent := register.edits.get(edit.before)) is not None:
        if parent.value in register.kept or parent in passed:
            break
        edit = parent
        passed.append(edit)
    if edit.had and not _once(register, edit.before):
        return []
    for place, each in enumerate(register.chain):
        if (each.had, each.before) == (edit.had, edit.before):
            return register.chain[place:]
    return []


def _kept(
    table: str,
    key: Key,
    registers: Mapping[str, _Register],
    steps: Sequence[_Step],
    row: Cells,
) -> Iterator[Merged]:
    """Pairs of edits of different columns of which the later had not seen the earlier, and that
    somebody saw together later, or that are together in the end."""
    for place, (step, write) in enumerate(steps):
        if write.verb is not Verb.UPDATE or not _certain(step):
            continue
        until = place + 1 + LATER_WRITES_MAX
        for number, (later, other) in enumerate(steps[place + 1 : until], place + 1):
            if other.verb is not Verb.UPDATE or not _certain(later) or later.client == step.client:
                continue
            first = _besides(write, other, registers)
            second = _besides(other, write, registers)
            if not second or not any(_unseen(registers[c], c, write, other) for c in first):
                continue
            for seen in (*(each.before for _, each in steps[number + 1 :]), row):
                one, two = _held(first, seen), _held(second, seen)
                if one and two:
                    ours, theirs = (
                        Side(step.client, step.at, one),
                        Side(later.client, later.at, two),
                    )
                    yield Merged(table, key, ours, theirs)
                    break


def _kept_inside(
    table: str, key: Key, column: Column, steps: Sequence[_Step], row: Cells
) -> Iterator[Merged]:
    """Pairs of edits of one value, of which something is there together later."""
    name = column.name
    edits = [
        (number, step, write)
        for number, (step, write) in enumerate(steps)
        if write.verb is Verb.UPDATE and name in write.cells and name in write.before
        if _certain(step)
    ]
    values = [*(write.before.get(name) for _, write in steps), row.get(name)]
    seen = [parts_of(content(column, value)) for value in values]
    for place, (_, step, write) in enumerate(edits):
        mine = _new_parts(column, write)
        for number, later, other in edits[place + 1 : place + 1 + LATER_WRITES_MAX]:
            apart = means_the_same(column, write.before[name], other.before[name])
            if later.client == step.client or not apart or not mine:
                continue
            theirs = _new_parts(column, other) - mine
            for held in seen[number + 1 :]:
                if mine & held and theirs & held:
                    one, two = min(mine & held), min(theirs & held)
                    ours = Side(step.client, step.at, {name: one})
                    yield Merged(table, key, ours, Side(later.client, later.at, {name: two}))
                    break


def _new_parts(column: Column, write: Write) -> Set[str]:
    before, after = (content(column, each[column.name]) for each in (write.before, write.cells))
    return parts_of(after) - parts_of(before)


def _besides(write: Write, other: Write, registers: Mapping[str, _Register]) -> Cells:
    """What one wrote and another did not."""
    return {c: v for c, v in write.cells.items() if c in registers and c not in other.cells}


def _held(cells: Cells, row: Cells) -> Cells:
    """Those cells that a row has."""
    return {c: v for c, v in cells.items() if v is not None and row.get(c) == v}


def _unseen(register: _Register, column: str, write: Write, later: Write) -> bool:
    """Whether the later write found what the earlier one had replaced."""
    before = write.before.get(column)
    return (
        column in later.before
        and column in write.before
        and later.before[column] == before
        and _once(register, before)
    )


def _certain(transaction: Transaction) -> bool:
    return transaction.outcome is Outcome.RETURNED and not transaction.doubtful


def _once(register: _Register, value: Value) -> bool:
    return register.times.get(value, 0) <= 1
