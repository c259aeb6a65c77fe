"""What merges overwrote: register values that gave way to others, when, by whom and to what.

A value is overwritten when another value takes its place in its register, or when it comes too late
and loses against what is there. Columns that merge inside their value lose nothing, the same value
with another stamp is no other value, and a delete overwrites nothing.

A *loss* is what one edit overwrote of a row: a document of just the cells that gave way, with the
stamps that they had, and the stamp of what took their place. So it is stored, travels and is
checked as documents are. What is at the floor has no stamp of its own; then the document's `born`
is that of the row, which such a cell is as old as.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from reunite.cells.register import Register, Value, same, wins
from reunite.clock import FLOOR, NEVER, replica_of, time_of
from reunite.document import KIND_MASK, Document, decode, encode

# A row's history holds the newest losses in so many places: enough to see what a few people did to
# it, and to a row that is rewritten all day it costs a fixed price.
ROW_PLACES_MAX: Final = 50
# A loss takes a place for each begun piece of this size. So a row's history ends at about 1 MiB,
# and still the last loss is kept whatever its size: nothing else may have that value.
PLACE_BYTES: Final = 20 << 10

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A peer's stamp can hold any time; Python's calendar ends with the year 9999.
_MS_MAX: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


class Loss(NamedTuple):
    """What one edit overwrote of a row: the encoded document of the cells that gave way, and the
    stamp of what took their place."""

    document: bytes
    replaced_by: bytes

    @property
    def places(self) -> int:
        """How many places of its row's history it takes."""
        return 1 + len(self.document) // PLACE_BYTES


@dataclass(frozen=True, slots=True)
class Overwritten:
    """A value that gave way to another; `Database.restore` writes it back.

    `key` is the row's primary key, a tuple where that has several columns. `at` is when the value
    was written, in UTC by the relay's clock, and `replica` names the file that wrote it; both are
    None for a value that came with its table. `replaced_at` and `replaced_by` say the same of what
    took its place.
    """

    table: str
    key: Value | tuple[Value, ...]
    column: str
    value: Value
    at: datetime | None
    replica: int | None
    replaced_at: datetime | None
    replaced_by: int | None


def losses(before: Document, edit: Document) -> list[Loss]:
    """What merging an edit into a row's document overwrites, of the document or of the edit."""
    lost: dict[tuple[bytes, bytes], dict[int, Register]] = {}
    held = before.cells
    for key, cell in edit.cells.items():
        there = held.get(key)
        if there is None or there is cell or key & KIND_MASK or same(there[1], cell[1]):
            continue
        if wins(cell, there):
            loser, winner, born = there, cell, before.born
        elif cell[0] == FLOOR and edit.born != FLOOR:
            continue  # a column's default, which nobody wrote
        else:
            loser, winner, born = cell, there, edit.born
        named = winner[0], born if loser[0] == FLOOR else NEVER
        lost.setdefault(named, {})[key] = loser
    return [
        Loss(encode(Document(born, NEVER, NEVER, cells)), replaced_by)
        for (replaced_by, born), cells in lost.items()
    ]


def newest(found: Sequence[Loss]) -> list[Loss]:
    """The newest losses of a row, of some in order, as far as its history has places."""
    kept: list[Loss] = []
    room = ROW_PLACES_MAX
    for loss in reversed(found):
        if room <= 0:
            break
        kept.append(loss)
        room -= loss.places
    return kept[::-1]


def listed(
    table: str, key: Value | tuple[Value, ...], names: Mapping[int, str], found: Iterable[Loss]
) -> list[Overwritten]:
    """The values of a row's losses, each once and the newest first. `names` are the columns by
    their registers' keys; what is of another column is left out. Of a value that is in several
    losses the first says what replaced it. Raises FormatError for what is no document."""
    value_by_cell: dict[object, tuple[bytes, Overwritten]] = {}
    for loss in found:
        document = decode(loss.document)
        for cell, (stamp, value) in document.cells.items():
            if cell not in names:
                continue
            written = (stamp if stamp != FLOOR else document.born) or FLOOR
            shown = Overwritten(
                table, key, names[cell], value, *_origin(written), *_origin(loss.replaced_by)
            )
            # Two values at the floor can be of two files.
            value_by_cell.setdefault((cell, stamp, type(value), value), (written, shown))
    ordered = sorted(value_by_cell.values(), key=lambda each: each[0], reverse=True)
    return [shown for _, shown in ordered]


def _origin(stamp: bytes) -> tuple[datetime | None, int | None]:
    """When something was written and by whom; nobody knows of what came with its table."""
    if stamp == FLOOR:
        return None, None
    ms = min(time_of(stamp) >> 16, _MS_MAX)
    return _EPOCH + timedelta(milliseconds=ms), replica_of(stamp)
