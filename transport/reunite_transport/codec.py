"""Frames: turns messages into bytes and back. Owns the only place where a peer's bytes are checked.

A frame is one byte, 0 for plain and 1 for zstd, then one msgpack array (see `messages`). Behind
`decode` every field has its type and its range; documents and keys pass through as bytes, and
whoever opens them checks them (`reunite.document`, `reunite.keys`).

Nothing is given memory before its size is known to be allowed. Each array's header is read and
compared with its limit, then its scalars are read one by one by an unpacker that refuses every
container: a nest of arrays, or a megabyte of empty maps, ends at the first one. So a frame costs
at most its own bytes, unpacked, plus some hundred bytes for each row or value that the limits
allow.
"""

import re
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Literal, TypeAlias, TypeVar, overload

import msgpack
import zstandard

from reunite.document import COLUMN_ID_MAX, DOCUMENT_BYTES_MAX
from reunite.errors import FormatError, ProtocolError
from reunite.keys import KEY_BYTES_MAX
from reunite.schema import COLUMNS_MAX, KEY_COLUMNS_MAX, TABLES_MAX, Table, from_wire, to_wire
from reunite_transport.messages import (
    CAPABILITIES_MAX,
    FRAME_BYTES_MAX,
    FRAME_ROWS_MAX,
    MESSAGE_CHARS_MAX,
    NONCE_BYTES,
    NONCES_MAX,
    REALM_BYTES,
    TOKEN_BYTES,
    VERSION,
    Barrier,
    Behind,
    ClientMessage,
    Commit,
    Describe,
    Entries,
    EntryKind,
    Error,
    Hello,
    Known,
    Message,
    Page,
    Pull,
    Push,
    Reached,
    Registry,
    Rejected,
    RelayMessage,
    Resume,
    Section,
    Verdict,
    Welcome,
)

Side: TypeAlias = Literal["client", "relay"]

PLAIN: Final = b"\0"
ZSTD: Final = b"\1"

# Below this, zstd's own header and the two calls cost more than they save.
ZSTD_BYTES_MIN: Final = 1 << 10
# Level 1 packs a page of rows at several hundred MB/s, and the next levels save a few percent.
ZSTD_LEVEL: Final = 1
# Compressed frames must be this much smaller, or the other side unpacks them for nothing.
_HELPS: Final = 7 / 8

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
_INTEGER_MIN: Final = -(1 << 63)
_INTEGER_MAX: Final = (1 << 63) - 1
# A type of this range that nobody here knows is skipped.
_OPTIONAL: Final = range(64, 128)

_T = TypeVar("_T")


def encode(message: Message) -> bytes:
    """The frame of a message. Raises ProtocolError `too-large` for what no frame holds."""
    number, fields = _ENCODERS[type(message)]
    body = _pack((number, *fields(message)))
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(
            f"a {type(message).__name__} of {len(body)} bytes is over the {FRAME_BYTES_MAX} of a"
            " frame; split it",
            "too-large",
        )
    if len(body) >= ZSTD_BYTES_MIN:
        packed = _zstd().compressor.compress(body)
        if len(packed) < len(body) * _HELPS:
            return ZSTD + packed
    return PLAIN + body


def schema_size(tables: Iterable[Table]) -> tuple[int, int]:
    """How many bytes and how many values describe these tables in a frame."""
    described = _tables(tables)
    return len(_pack(described)), _count(described)


@overload
def decode(frame: bytes, side: Literal["relay"]) -> ClientMessage | None: ...
@overload
def decode(frame: bytes, side: Literal["client"]) -> RelayMessage | None: ...
def decode(frame: bytes, side: Side) -> Message | None:
    """The message of a frame that arrived at `side`; None for an optional type to be skipped.

    Raises ProtocolError, `malformed` for bytes that `encode` could not have written for this
    side, `too-large` for those over a limit, `version` for a Hello or Welcome of another version.
    """
    body = _body(frame)
    reader = _Reader(body)
    try:
        count = reader.array("the message", 1, 16)
        kind = reader.integer("the message's type", 0, _INTEGER_MAX)
        shape = _DECODERS[side].get(kind)
        if shape is None:
            if kind in _OPTIONAL:
                return None
            raise ProtocolError(f"type {kind} is no message to the {side}", "malformed")
        fields, read = shape
        if kind in _VERSIONED and count > 1:
            reader.version()
        if count != fields + 1:
            raise ProtocolError(f"a message of type {kind} has {count - 1} fields", "malformed")
        message = read(reader)
        reader.end()
    except FormatError as error:
        raise ProtocolError(str(error), "malformed") from error
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(
            f"not a message: {error or type(error).__name__}", "malformed"
        ) from error
    return message


def _body(frame: bytes) -> bytes:
    """The msgpack bytes of a frame, unpacked within the limit."""
    if len(frame) > FRAME_BYTES_MAX + 1:
        raise ProtocolError(f"a frame of {len(frame)} bytes is over {FRAME_BYTES_MAX}", "too-large")
    form, body = frame[:1], frame[1:]
    if form == PLAIN:
        return body
    if form != ZSTD:
        raise ProtocolError("a frame is neither plain nor zstd", "malformed")
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            raise ProtocolError("a zstd frame does not state its size", "malformed")
        if size > FRAME_BYTES_MAX:
            raise ProtocolError(
                f"a frame of {size} bytes unpacked is over {FRAME_BYTES_MAX}", "too-large"
            )
        # The buffer has the stated size; a frame that holds more or less is an error in zstd.
        return _zstd().decompressor.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"a frame is not zstd: {error}", "malformed") from error


class _Zstd(threading.local):
    """zstd's contexts: slow to make, and each for one thread at a time."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_local = _Zstd()
# Packs tuples, lists and scalars without calling back into Python, so threads can share it.
_pack = msgpack.Packer().pack


def _zstd() -> _Zstd:
    return _local


# Decoding: one method a kind of field, then one function a message.


class _Reader:
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
        return self.integer(what, 1, _INTEGER_MAX)

    def seq(self) -> int:
        return self.integer("seq", 0, _INTEGER_MAX)

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
        table = self.integer("a parent's table", 1, COLUMN_ID_MAX)
        return index, table, self._blobs("a parent's key", 1, _KEY_BYTES_MAX)[0]

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
        flags = self._record("a table's flags", 3)
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


def _read_hello(reader: _Reader) -> Hello:
    return Hello(
        version=VERSION,
        capabilities=reader.many("capabilities", CAPABILITIES_MAX, lambda: reader.word("one")),
        realm=_optional_realm(reader),
        # Zero is nobody: floor stamps and adopted counters carry it.
        replica=reader.number("a replica's id"),
        acknowledged=reader.integer("acknowledged", 0, _INTEGER_MAX - NONCES_MAX),
        nonces=reader.nonces(),
        seq=reader.seq(),
        token=reader.binary("a token", 0, TOKEN_BYTES),
        sent_ms=reader.integer("sent_ms", _INTEGER_MIN, _INTEGER_MAX),
    )


def _optional_realm(reader: _Reader) -> bytes | None:
    (realm,) = reader.scalars(1)
    if realm is None or (type(realm) is bytes and len(realm) == REALM_BYTES):
        return realm
    raise ProtocolError(f"a realm is not {REALM_BYTES} bytes", "malformed")


def _read_push(reader: _Reader) -> Push:
    return Push(
        number=reader.number("a changeset's number"),
        nonce=reader.binary("a nonce", NONCE_BYTES),
        loose=reader.boolean("loose"),
        last=reader.boolean("last"),
        sections=reader.entries(),
    )


def _read_welcome(reader: _Reader) -> Welcome:
    return Welcome(
        version=VERSION,
        capabilities=reader.many("capabilities", CAPABILITIES_MAX, lambda: reader.word("one")),
        realm=reader.binary("a realm", REALM_BYTES),
        now_ms=reader.integer("now_ms", _INTEGER_MIN, _INTEGER_MAX),
        sent_ms=reader.integer("sent_ms", _INTEGER_MIN, _INTEGER_MAX),
        # A ValueError of the enumeration is a malformed message, as all ValueErrors here.
        verdict=Verdict(reader.word("a verdict")),
        known=reader.pairs("known"),
        head=reader.seq(),
        rows=reader.integer("rows", 0, _INTEGER_MAX),
        tables=reader.tables(),
    )


def _read_page(reader: _Reader) -> Page:
    return Page(
        sections=reader.sections(),
        seq=reader.seq(),
        within=reader.within(),
        complete=reader.boolean("complete"),
        token=reader.binary("a token", 0, TOKEN_BYTES),
    )


def _read_commit(reader: _Reader) -> Commit:
    return Commit(
        seq=reader.number("seq"),
        token=reader.binary("a token", TOKEN_BYTES),
        acknowledged=reader.numbers("acknowledged"),
        sections=reader.sections(),
    )


def _read_rejected(reader: _Reader) -> Rejected:
    return Rejected(
        number=reader.number("a changeset's number"),
        nonce=reader.binary("a nonce", NONCE_BYTES),
        reason=reader.word("a reason"),
        message=reader.text("a message", MESSAGE_CHARS_MAX),
    )


def _read_error(reader: _Reader) -> Error:
    return Error(reader.word("a code"), reader.text("a message", MESSAGE_CHARS_MAX))


# The number of fields and their reader, by type. The version of a Hello and a Welcome is read
# before their other fields are counted, as another version may have others.
_VERSIONED: Final = frozenset({1, 16})
_Decoder: TypeAlias = tuple[int, Callable[[_Reader], Message]]
_FROM_CLIENT: Final[dict[int, _Decoder]] = {
    1: (9, _read_hello),
    2: (1, lambda reader: Describe(reader.tables())),
    3: (5, _read_push),
    4: (1, lambda reader: Resume(reader.number("a changeset's number"))),
    5: (2, lambda reader: Pull(reader.seq(), reader.within())),
    6: (1, lambda reader: Barrier(reader.integer("id", 0, _INTEGER_MAX))),
    24: (2, _read_error),
}
_FROM_RELAY: Final[dict[int, _Decoder]] = {
    16: (10, _read_welcome),
    17: (1, lambda reader: Registry(reader.tables())),
    18: (5, _read_page),
    19: (4, _read_commit),
    20: (1, lambda reader: Known(reader.pairs("pairs"))),
    21: (1, lambda reader: Behind(reader.seq())),
    22: (4, _read_rejected),
    23: (2, lambda reader: Reached(reader.integer("id", 0, _INTEGER_MAX), reader.seq())),
    24: (2, _read_error),
}
_DECODERS: Final[dict[Side, dict[int, _Decoder]]] = {"relay": _FROM_CLIENT, "client": _FROM_RELAY}


# Encoding: each message's fields as msgpack takes them.


def _sections(sections: Iterable[Section]) -> list[object]:
    return [(each.table, each.keys, each.documents) for each in sections]


def _entries(sections: Iterable[Entries]) -> list[object]:
    return [(each.table, each.keys, each.documents, each.kinds, each.derived) for each in sections]


def _tables(tables: Iterable[Table]) -> list[object]:
    return [to_wire(table) for table in tables]


def _count(described: object) -> int:
    return sum(map(_count, described)) if isinstance(described, list) else 1


def _hello(m: Hello) -> tuple[object, ...]:
    return (m.version, m.capabilities, m.realm, m.replica, m.acknowledged, m.nonces, m.seq,
            m.token, m.sent_ms)  # fmt: skip


def _welcome(m: Welcome) -> tuple[object, ...]:
    return (m.version, m.capabilities, m.realm, m.now_ms, m.sent_ms, m.verdict.value, m.known,
            m.head, m.rows, _tables(m.tables))  # fmt: skip


_Encoder: TypeAlias = tuple[int, Callable[..., tuple[object, ...]]]
_ENCODERS: Final[dict[type, _Encoder]] = {
    Hello: (1, _hello),
    Describe: (2, lambda m: (_tables(m.tables),)),
    Push: (3, lambda m: (m.number, m.nonce, m.loose, m.last, _entries(m.sections))),
    Resume: (4, lambda m: (m.number,)),
    Pull: (5, lambda m: (m.seq, m.within)),
    Barrier: (6, lambda m: (m.id,)),
    Welcome: (16, _welcome),
    Registry: (17, lambda m: (_tables(m.tables),)),
    Page: (18, lambda m: (_sections(m.sections), m.seq, m.within, m.complete, m.token)),
    Commit: (19, lambda m: (m.seq, m.token, m.acknowledged, _sections(m.sections))),
    Known: (20, lambda m: (m.pairs,)),
    Behind: (21, lambda m: (m.seq,)),
    Rejected: (22, lambda m: (m.number, m.nonce, m.reason, m.message)),
    Reached: (23, lambda m: (m.id, m.seq)),
    Error: (24, lambda m: (m.code, m.message)),
}
