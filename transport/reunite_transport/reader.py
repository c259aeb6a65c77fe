"""Reading a frame's fields. Owns the limits of each kind of field.

Nothing is given memory before its size is known to be allowed. Each array's header is read and
compared with its limit, then its scalars are read one by one by an unpacker that refuses every
container: a nest of arrays, or a megabyte of empty maps, ends at the first one. So a frame costs
at most its own bytes, unpacked, plus some hundred bytes for each row or value that the limits
allow.
"""

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeVar

import msgpack

from reunite.clock import STAMP_BYTES
from reunite.document import COLUMN_ID_MAX, DOCUMENT_BYTES_MAX
from reunite.errors import ProtocolError
from reunite.keys import KEY_BYTES_MAX
from reunite.overwritten import Loss
from reunite.schema import COLUMNS_MAX, KEY_COLUMNS_MAX, TABLES_MAX, Table, from_wire
from reunite_transport.messages import (
    FRAME_ROWS_MAX,
    LOSSES_MAX,
    NAMED_ROWS_MAX,
    NONCE_BYTES,
    NONCES_MAX,
    VERSION,
    Entries,
    EntryKind,
    Section,
)

# Twice what a sender fills a frame up to: a sender that looks at the count only between pieces of
# work may overshoot, and the bound here is for memory, not for manners.
_ROWS_MAX: Final = 2 * FRAME_ROWS_MAX
# Names, types and numbers of all tables in one frame; 2,000 tables of 30 columns have half a
# million, and each costs up to a hundred bytes before it is checked.
SCHEMA_VALUES_MAX: Final = 600_000
# A column's default may be long text; everything else that is text is shorter.
_TEXT_BYTES_MAX: Final = 64 << 10
# What a key's values may hold, and msgpack's heads: five bytes a value, nine for an integer.
_KEY_BYTES_MAX: Final = KEY_BYTES_MAX + 9 * KEY_COLUMNS_MAX + 3
# A page position is the relay's own; it holds a table and a key.
_WITHIN_BYTES_MAX: Final = _KEY_BYTES_MAX + 64
# Words that programs compare: codes, reasons, capabilities.
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# Numbers that both databases keep in a signed 64-bit integer.
INTEGER_MIN: Final = -(1 << 63)
INTEGER_MAX: Final = (1 << 63) - 1

_T = TypeVar("_T")


class Reader:
    """Reads one message, field after field; every method checks what it returns."""

    __slots__ = ("_rows", "_size", "_unpacker", "_values")

    def __init__(self, body: bytes) -> None:
        self._size = len(body)
        self._rows = _ROWS_MAX
        self._values = SCHEMA_VALUES_MAX
        self._unpacker = msgpack.Unpacker(
            use_list=False,
            max_buffer_size=max(len(body), 1),
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
            max_bin_len=DOCUMENT_BYTES_MAX,
            max_str_len=_TEXT_BYTES_MAX,
        )
        self._unpacker.feed(body)

    def array(self, what: str, least: int, most: int) -> int:
        """The length of the array that starts here."""
        count: int = self._unpacker.read_array_header()
        if count > most:
            raise ProtocolError(f"{what} has {count} parts, over {most}", "too-large")
        if count < least:
            raise ProtocolError(f"{what} has {count} parts, under {least}", "malformed")
        return count

    def exactly(self, what: str, count: int) -> None:
        if self._unpacker.read_array_header() != count:
            raise ProtocolError(f"{what} has not {count} parts", "malformed")

    def scalars(self, count: int) -> tuple[object, ...]:
        """The next `count` scalars, of any type; the caller has bounded the count."""
        found = tuple(islice(self._unpacker, count))
        if len(found) != count:
            raise ProtocolError("a frame ends early", "malformed")
        return found

    def integer(self, what: str, least: int, most: int) -> int:
        value = self._unpacker.unpack()
        if type(value) is not int or not least <= value <= most:
            raise ProtocolError(f"{what} is not between {least} and {most}", "malformed")
        return value

    def boolean(self, what: str) -> bool:
        value = self._unpacker.unpack()
        if type(value) is not bool:
            raise ProtocolError(f"{what} is neither true nor false", "malformed")
        return value

    def binary(self, what: str, *sizes: int) -> bytes:
        """Bytes of one of these sizes."""
        value = self._unpacker.unpack()
        if type(value) is not bytes or len(value) not in sizes:
            raise ProtocolError(f"{what} is not {sizes} bytes", "malformed")
        return value

    def text(self, what: str, most: int) -> str:
        value = self._unpacker.unpack()
        if type(value) is not str or len(value) > most:
            raise ProtocolError(f"{what} is not text of up to {most} characters", "malformed")
        return value

    def word(self, what: str) -> str:
        value = self.text(what, 64)
        if not _WORD.fullmatch(value):
            raise ProtocolError(f"{what} is not a word: {value!r}", "malformed")
        return value

    def version(self) -> None:
        value = self._unpacker.unpack()
        if type(value) is not int or value != VERSION:
            raise ProtocolError(
                f"the other side speaks version {value!r:.40} of the protocol, this one {VERSION};"
                " upgrade the older one",
                "version",
            )

    def number(self, what: str) -> int:
        return self.integer(what, 1, INTEGER_MAX)

    def seq(self) -> int:
        return self.integer("seq", 0, INTEGER_MAX)

    def within(self) -> bytes:
        value = self._unpacker.unpack()
        if type(value) is not bytes or len(value) > _WITHIN_BYTES_MAX:
            raise ProtocolError("a page position is not bytes, or too many", "malformed")
        return value

    def many(self, what: str, most: int, read: Callable[[], _T]) -> tuple[_T, ...]:
        return tuple([read() for _ in range(self.array(what, 0, most))])

    def nonces(self) -> tuple[bytes, ...]:
        found = self.scalars(self.array("nonces", 0, NONCES_MAX))
        if not _all_of(found, bytes) or not {*map(len, found)} <= {NONCE_BYTES}:  # type: ignore[arg-type]
            raise ProtocolError(f"a nonce is not {NONCE_BYTES} bytes", "malformed")
        return found  # type: ignore[return-value]

    def numbers(self, what: str) -> tuple[int, ...]:
        return self.many(what, NONCES_MAX, lambda: self.number(what))

    def pairs(self, what: str) -> tuple[tuple[int, int], ...]:
        return self.many(what, NONCES_MAX, self._pair)

    def _pair(self) -> tuple[int, int]:
        self.exactly("a pair", 2)
        return self.number("a changeset's number"), self.seq()

    # Rows

    def sections(self) -> tuple[Section, ...]:
        return self.many("sections", _ROWS_MAX, self._section)

    def entries(self) -> tuple[Entries, ...]:
        return self.many("sections", _ROWS_MAX, self._entries)

    def _section(self) -> Section:
        self.exactly("a section", 3)
        return Section(*self._columns())

    def _entries(self) -> Entries:
        self.exactly("a section", 5)
        table, keys, documents = self._columns()
        self.exactly("kinds", len(keys))
        kinds = self.scalars(len(keys))
        if not _all_of(kinds, int) or not _KINDS.issuperset(kinds):
            raise ProtocolError("a row's kind is not known", "malformed")
        derived = self.many("derived", len(keys), lambda: self._derived(len(keys)))
        return Entries(table, keys, documents, kinds, derived)  # type: ignore[arg-type]

    def _columns(self) -> tuple[int, tuple[bytes, ...], tuple[bytes, ...]]:
        """The fields that all sections have; a section without rows would be free to repeat."""
        table = self.integer("a table's id", 1, COLUMN_ID_MAX)
        count = self.array("a frame's rows", 1, self._rows)
        self._rows -= count
        keys = self._blobs("a key", count, _KEY_BYTES_MAX)
        self.exactly("documents", count)
        return table, keys, self._blobs("a document", count, DOCUMENT_BYTES_MAX)

    def _blobs(self, what: str, count: int, most: int) -> tuple[bytes, ...]:
        blobs = self.scalars(count)
        if not _all_of(blobs, bytes) or not all(blobs):
            raise ProtocolError(f"{what} is not bytes, or has none", "malformed")
        if max(map(len, blobs)) > most:  # type: ignore[arg-type]
            raise ProtocolError(f"{what} is over {most} bytes", "too-large")
        return blobs  # type: ignore[return-value]

    def _derived(self, rows: int) -> tuple[int, int, bytes]:
        self.exactly("a derived row", 3)
        index = self.integer("a derived row", 0, rows - 1)
        return index, *self.row_name()

    def named_rows(self) -> tuple[tuple[int, bytes], ...]:
        def row() -> tuple[int, bytes]:
            self.exactly("a row", 2)
            return self.row_name()

        return self.many("rows", NAMED_ROWS_MAX, row)

    def row_name(self) -> tuple[int, bytes]:
        """A table's id and a key."""
        table = self.integer("a row's table", 1, COLUMN_ID_MAX)
        return table, self._blobs("a row's key", 1, _KEY_BYTES_MAX)[0]

    def losses(self) -> tuple[Loss, ...]:
        return self.many("losses", LOSSES_MAX, self._loss)

    def _loss(self) -> Loss:
        self.exactly("a loss", 2)
        document = self._blobs("a document", 1, DOCUMENT_BYTES_MAX)[0]
        return Loss(document, self.binary("a stamp", STAMP_BYTES))

    # Schema

    def tables(self) -> tuple[Table, ...]:
        return self.many("tables", TABLES_MAX, self._table)

    def _table(self) -> Table:
        """A table in the shape of `schema.to_wire`; `from_wire` checks what the values are."""
        self.exactly("a table", 6)
        name, number = self._values_of(2)
        columns = [
            self._record("a column", 7) for _ in range(self.array("columns", 1, COLUMNS_MAX))
        ]
        foreign_keys = []
        for _ in range(self.array("foreign keys", 0, COLUMNS_MAX)):
            self.exactly("a foreign key", 5)
            own, parent = self._names(), *self._values_of(1)
            foreign_keys.append((own, parent, self._names(), *self._values_of(2)))
        indexes = []
        for _ in range(self.array("indexes", 0, COLUMNS_MAX)):
            self.exactly("an index", 3)
            indexes.append((*self._values_of(1), self._names(), *self._values_of(1)))
        # The fourth is there only where it is true.
        flags = self._values_of(self.array("flags", 3, 4))
        return from_wire((name, number, columns, foreign_keys, indexes, flags))

    def _record(self, what: str, count: int) -> tuple[object, ...]:
        self.exactly(what, count)
        return self._values_of(count)

    def _names(self) -> tuple[object, ...]:
        return self._values_of(self.array("names", 1, COLUMNS_MAX))

    def _values_of(self, count: int) -> tuple[object, ...]:
        self._values -= count
        if self._values < 0:
            raise ProtocolError(
                f"a schema of over {SCHEMA_VALUES_MAX} values does not fit a frame", "too-large"
            )
        return self.scalars(count)

    def end(self) -> None:
        if self._unpacker.tell() != self._size:
            raise ProtocolError("a frame holds more than its message", "malformed")


_KINDS: Final = frozenset(map(int, EntryKind))


def _all_of(values: Iterable[object], kind: type) -> bool:
    return {*map(type, values)} <= {kind}
