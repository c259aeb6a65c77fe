"""Frames: turns messages into bytes and back. Owns the only place where a peer's bytes are checked.

A frame is one byte, 0 for plain and 1 for zstd, then one msgpack array (see `messages`). Behind
`decode` every field has its type and its range; documents and keys pass through as bytes, and
whoever opens them checks them (`reunite.document`, `reunite.keys`). `reader` reads the fields.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias, overload

import msgpack
import zstandard

from reunite.errors import FormatError, ProtocolError
from reunite.schema import Table, to_wire
from reunite_transport.messages import (
    CAPABILITIES_MAX,
    FRAME_BYTES_MAX,
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
    Error,
    Hello,
    Known,
    Message,
    Page,
    Pull,
    Push,
    Reached,
    Recall,
    Recalled,
    Registry,
    Rejected,
    RelayMessage,
    Resume,
    Section,
    Verdict,
    Welcome,
)
from reunite_transport.reader import INTEGER_MAX, INTEGER_MIN, Reader

Side: TypeAlias = Literal["client", "relay"]

PLAIN: Final = b"\0"
ZSTD: Final = b"\1"

# Below this, zstd's own header and the two calls cost more than they save.
ZSTD_BYTES_MIN: Final = 1 << 10
# Level 1 packs a page of rows at several hundred MB/s, and the next levels save a few percent.
ZSTD_LEVEL: Final = 1
# Compressed frames must be this much smaller, or the other side unpacks them for nothing.
_HELPS: Final = 7 / 8

# A type of this range that nobody here knows is skipped.
_OPTIONAL: Final = range(64, 128)


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
    reader = Reader(body)
    try:
        count = reader.array("the message", 1, 16)
        kind = reader.integer("the message's type", 0, INTEGER_MAX)
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


# Decoding: one function a message; `Reader` has one method a kind of field.


def _read_hello(reader: Reader) -> Hello:
    return Hello(
        version=VERSION,
        capabilities=reader.many("capabilities", CAPABILITIES_MAX, lambda: reader.word("one")),
        realm=_optional_realm(reader),
        # Zero is nobody: floor stamps and adopted counters carry it.
        replica=reader.number("a replica's id"),
        acknowledged=reader.integer("acknowledged", 0, INTEGER_MAX - NONCES_MAX),
        nonces=reader.nonces(),
        seq=reader.seq(),
        token=reader.binary("a token", 0, TOKEN_BYTES),
        sent_ms=reader.integer("sent_ms", INTEGER_MIN, INTEGER_MAX),
    )


def _optional_realm(reader: Reader) -> bytes | None:
    (realm,) = reader.scalars(1)
    if realm is None or (type(realm) is bytes and len(realm) == REALM_BYTES):
        return realm
    raise ProtocolError(f"a realm is not {REALM_BYTES} bytes", "malformed")


def _read_push(reader: Reader) -> Push:
    return Push(
        number=reader.number("a changeset's number"),
        nonce=reader.binary("a nonce", NONCE_BYTES),
        loose=reader.boolean("loose"),
        last=reader.boolean("last"),
        sections=reader.entries(),
    )


def _read_welcome(reader: Reader) -> Welcome:
    return Welcome(
        version=VERSION,
        capabilities=reader.many("capabilities", CAPABILITIES_MAX, lambda: reader.word("one")),
        realm=reader.binary("a realm", REALM_BYTES),
        now_ms=reader.integer("now_ms", INTEGER_MIN, INTEGER_MAX),
        sent_ms=reader.integer("sent_ms", INTEGER_MIN, INTEGER_MAX),
        # A ValueError of the enumeration is a malformed message, as all ValueErrors here.
        verdict=Verdict(reader.word("a verdict")),
        known=reader.pairs("known"),
        head=reader.seq(),
        rows=reader.integer("rows", 0, INTEGER_MAX),
        tables=reader.tables(),
    )


def _read_page(reader: Reader) -> Page:
    return Page(
        sections=reader.sections(),
        seq=reader.seq(),
        within=reader.within(),
        complete=reader.boolean("complete"),
        token=reader.binary("a token", 0, TOKEN_BYTES),
    )


def _read_commit(reader: Reader) -> Commit:
    return Commit(
        seq=reader.number("seq"),
        token=reader.binary("a token", TOKEN_BYTES),
        acknowledged=reader.numbers("acknowledged"),
        sections=reader.sections(),
    )


def _read_rejected(reader: Reader) -> Rejected:
    return Rejected(
        number=reader.number("a changeset's number"),
        nonce=reader.binary("a nonce", NONCE_BYTES),
        reason=reader.word("a reason"),
        message=reader.text("a message", MESSAGE_CHARS_MAX),
        rows=reader.named_rows(),
    )


def _read_error(reader: Reader) -> Error:
    return Error(reader.word("a code"), reader.text("a message", MESSAGE_CHARS_MAX))


# The number of fields and their reader, by type. The version of a Hello and a Welcome is read
# before their other fields are counted, as another version may have others.
_VERSIONED: Final = frozenset({1, 16})
_Decoder: TypeAlias = tuple[int, Callable[[Reader], Message]]
_FROM_CLIENT: Final[dict[int, _Decoder]] = {
    1: (9, _read_hello),
    2: (1, lambda reader: Describe(reader.tables())),
    3: (5, _read_push),
    4: (1, lambda reader: Resume(reader.number("a changeset's number"))),
    5: (2, lambda reader: Pull(reader.seq(), reader.within())),
    6: (1, lambda reader: Barrier(reader.integer("id", 0, INTEGER_MAX))),
    24: (2, _read_error),
    64: (3, lambda reader: Recall(reader.integer("id", 0, INTEGER_MAX), *reader.row_name())),
}
_FROM_RELAY: Final[dict[int, _Decoder]] = {
    16: (10, _read_welcome),
    17: (1, lambda reader: Registry(reader.tables())),
    18: (5, _read_page),
    19: (4, _read_commit),
    20: (1, lambda reader: Known(reader.pairs("pairs"))),
    21: (1, lambda reader: Behind(reader.seq())),
    22: (5, _read_rejected),
    23: (2, lambda reader: Reached(reader.integer("id", 0, INTEGER_MAX), reader.seq())),
    24: (2, _read_error),
    96: (2, lambda reader: Recalled(reader.integer("id", 0, INTEGER_MAX), reader.losses())),
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
    Rejected: (22, lambda m: (m.number, m.nonce, m.reason, m.message, m.rows)),
    Reached: (23, lambda m: (m.id, m.seq)),
    Error: (24, lambda m: (m.code, m.message)),
    Recall: (64, lambda m: (m.id, m.table, m.key)),
    Recalled: (96, lambda m: (m.id, m.losses)),
}
