"""The kinds of cells: what the CRDT state of one column is, and how two states of it merge.

A cell's key in a document is `column_id << 3 | kind`, so that a register and a later counter of one
column coexist. Kind 0 is the register; 1 to 5 merge inside their value (see `reunite.cells.kinds`);
6 and 7 are free.
"""

from collections.abc import Mapping
from typing import Final

from reunite.cells import counter, set, yjs
from reunite.cells.kinds import Kind, Naming

KINDS: Final[Mapping[int, Kind]] = {
    counter.KIND: counter,
    set.KIND: set,
    yjs.TEXT_KIND: yjs.TEXT,
    yjs.LIST_KIND: yjs.LIST,
    yjs.JSON_KIND: yjs.JSON,
}
"""The kinds that merge inside their value, by number."""

NAMING: Final[Mapping[int, Naming]] = {counter.KIND: counter, set.KIND: set}
"""Those of them whose states name the replicas that made them."""

EMPTY_STATE: Final[Mapping[int, bytes]] = {
    counter.KIND: counter.EMPTY,
    set.KIND: set.EMPTY,
    **{kind: yjs.EMPTY for kind in (yjs.TEXT_KIND, yjs.LIST_KIND, yjs.JSON_KIND)},
}
"""The state of each that nothing was ever done to."""
