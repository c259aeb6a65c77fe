"""Backends of a world write the relays' database, and relays fold what they write."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

from reunite.cells.register import Value
from reunite.columns import Columns
from reunite.document import decode
from reunite.keys import unpack_key
from reunite.schema import Table
from reunite_simulations import observe
from reunite_simulations.contents import shown
from reunite_simulations.history import Key, Outcome
from reunite_simulations.loop import run
from reunite_simulations.outcome import Settings
from reunite_simulations.seeds import own_schema
from reunite_simulations.workload import APPEND_TABLE
from reunite_simulations.world import World
from reunite_transport.relay.sqlite_registry import read_registry


def test_relays_fold_what_backends_write(tmp_path: Path) -> None:
    settings = Settings(seed=1, schema=own_schema(), minutes=1.0, backends=2, faults=())
    report = run(World(settings, tmp_path).live())
    assert report.violations == []
    returned = [
        made
        for made in report.history.transactions
        if made.client.startswith("backend") and made.outcome is Outcome.RETURNED
    ]
    assert {made.client for made in returned} == {"backend1", "backend2"}
    stated, held = contents(tmp_path / "relay.db")
    assert stated == held
    appended = {element for made in returned for element in made.appended}
    assert appended
    assert appended <= {str(id) for (id,) in stated[APPEND_TABLE]}
    written = {
        (write.table, column, value)
        for made in returned
        for write in made.writes
        for column, value in write.cells.items()
        if isinstance(value, str) and value.startswith("v2")
    }
    assert written & {
        (table, column, value)
        for table, rows in stated.items()
        for cells in rows.values()
        for column, value in cells.items()
    }


Rows: TypeAlias = dict[str, dict[Key, dict[str, object]]]


def contents(path: Path) -> tuple[Rows, Rows]:
    """What a relay's documents say, and what its tables hold."""
    stated: Rows = {}
    held: Rows = {}
    with closing(sqlite3.connect(path)) as conn:
        documents = observe.stated(conn)
        for table in (entry.table for entry in read_registry(conn)):
            columns = Columns(table.cells)
            held[table.name] = {
                key: cells(table, values) for key, values in observe.rows(conn, table).items()
            }
            stated[table.name] = {
                unpack_key(key): cells(table, columns.values(document))
                for (name, key), data in documents.items()
                if name == table.name and (document := decode(data)).alive
            }
    return stated, held


def cells(table: Table, values: Sequence[Value]) -> dict[str, object]:
    """A row's values by column, with JSON that merges in one form."""
    return {
        column.name: shown(column, value) for column, value in zip(table.cells, values, strict=True)
    }
