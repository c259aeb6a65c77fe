"""Tables that stay in this file: what `track_all` leaves out, remembered by name."""

import json
from collections.abc import Iterable, Sequence

from reunite.bookkeeping import Meta
from reunite.errors import TableError
from reunite.schema import ascii_lower, read_table
from reunite.state import State


def names(meta: Meta) -> list[str]:
    """The tables, as they were named."""
    found: list[str] = json.loads(meta.local_only)
    return found


def keep(state: State, tables: Sequence[str]) -> None:
    """Note tables. Raises TableError for one that is not there, or that is tracked."""
    tracked = {ascii_lower(t.table.name) for t in state.tables.values() if t.tracked}
    kept = {ascii_lower(name): name for name in names(state.meta)}
    for name in tables:
        if ascii_lower(name) in tracked:
            raise TableError(name, "is tracked already, and others may have its rows")
        kept.setdefault(ascii_lower(name), read_table(state.conn, name).name)
    _save(state, kept.values())


def let_go(state: State, tables: Iterable[str]) -> None:
    """Forget tables that are tracked now, as somebody said so by name."""
    gone = {ascii_lower(name) for name in tables}
    kept = names(state.meta)
    left = [name for name in kept if ascii_lower(name) not in gone]
    if left != kept:
        _save(state, left)


def _save(state: State, tables: Iterable[str]) -> None:
    state.meta.local_only = json.dumps(list(tables))
    state.save("local_only")
