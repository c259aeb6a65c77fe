"""The codec: every message comes back as it was, and nothing else gets through, at any size."""

import contextlib
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from reunite.errors import ProtocolError
from reunite.overwritten import Loss
from reunite.schema import Column, ForeignKey, Index, Table
from reunite_transport.codec import Side, decode, encode
from reunite_transport.messages import (
    FRAME_BYTES_MAX,
    FRAME_ROWS_MAX,
    LOSSES_MAX,
    NONCES_MAX,
    Barrier,
    Behind,
    ClientMessage,
    Commit,
    Describe,
    Entries,
    Error,
    Hello,
    Known,
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

numbers = st.integers(1, 2**62)
seqs = st.integers(0, 2**63 - 1)
times = st.integers(-(2**63), 2**63 - 1)
blobs = st.binary(min_size=1, max_size=60)
nonces = st.binary(min_size=8, max_size=8)
stamps = st.binary(min_size=16, max_size=16)
words = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
names = texts.filter(lambda text: 0 < len(text.encode()) <= 63 and "\0" not in text)
table_ids = st.integers(1, 2**28 - 1)


@st.composite
def sections(draw: st.DrawFn) -> Section:
    keys = draw(st.lists(blobs, min_size=1, max_size=5))
    documents = draw(st.lists(blobs, min_size=len(keys), max_size=len(keys)))
    return Section(draw(table_ids), tuple(keys), tuple(documents))


@st.composite
def entries(draw: st.DrawFn) -> Entries:
    section = draw(sections())
    count = len(section.keys)
    kinds = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    derived = draw(st.lists(st.tuples(st.integers(0, count - 1), table_ids, blobs), max_size=count))
    return Entries(section.table, section.keys, section.documents, tuple(kinds), tuple(derived))


@st.composite
def tables(draw: st.DrawFn) -> Table:
    own = draw(st.lists(names, min_size=1, max_size=4, unique_by=str.casefold))
    columns = tuple(
        Column(name, place, "TEXT", "text", draw(st.booleans()), "'x'", key=int(place == 1))
        for place, name in enumerate(own, 1)
    )
    return Table(
        name=draw(names),
        columns=columns,
        id=draw(st.integers(0, 2**28 - 1)),
        foreign_keys=(ForeignKey((own[-1],), draw(names), (draw(names),), on_delete="CASCADE"),),
        indexes=(Index(draw(names), (own[0],), draw(st.booleans())),),
        strict=draw(st.booleans()),
    )


def tuples(of: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=4).map(tuple)


pairs = tuples(st.tuples(numbers, seqs))
tokens = st.just(b"") | nonces
errors = st.builds(Error, words, texts)
from_client = st.one_of(
    st.builds(
        Hello,
        version=st.just(1),
        capabilities=tuples(words),
        realm=st.none() | st.binary(min_size=16, max_size=16),
        replica=numbers,
        acknowledged=st.integers(0, 2**62),
        nonces=tuples(nonces),
        seq=seqs,
        token=tokens,
        sent_ms=times,
    ),
    st.builds(Describe, tuples(tables())),
    st.builds(Push, numbers, nonces, st.booleans(), st.booleans(), tuples(entries())),
    st.builds(Resume, numbers),
    st.builds(Pull, seqs, st.binary(max_size=60)),
    st.builds(Barrier, seqs),
    st.builds(Recall, seqs, table_ids, blobs),
    errors,
)
from_relay = st.one_of(
    st.builds(
        Welcome,
        version=st.just(1),
        capabilities=tuples(words),
        realm=st.binary(min_size=16, max_size=16),
        now_ms=times,
        sent_ms=times,
        verdict=st.sampled_from(Verdict),
        known=pairs,
        head=seqs,
        rows=seqs,
        tables=tuples(tables()),
    ),
    st.builds(Registry, tuples(tables())),
    st.builds(Page, tuples(sections()), seqs, st.binary(max_size=60), st.booleans(), tokens),
    st.builds(Commit, numbers, nonces, tuples(numbers), tuples(sections())),
    st.builds(Known, pairs),
    st.builds(Behind, seqs),
    st.builds(
        Rejected,
        numbers,
        nonces,
        words,
        texts,
        tuples(st.tuples(st.integers(1, 99), st.binary(min_size=1, max_size=9))),
    ),
    st.builds(Reached, seqs, seqs),
    st.builds(Recalled, seqs, tuples(st.builds(Loss, blobs, stamps))),
    errors,
)


def refusal(frame: bytes, side: Side = "relay") -> str:
    """The code with which a frame is refused."""
    with pytest.raises(ProtocolError) as caught:
        decode(frame, side)
    return caught.value.code


def understood(frame: bytes, side: Side) -> ClientMessage | RelayMessage | None:
    """The message of a frame that may be one by chance; any error but ours fails the test."""
    with contextlib.suppress(ProtocolError):
        return decode(frame, side)
    return None


def plain(*fields: object) -> bytes:
    return b"\0" + msgpack.packb(fields)


def zstd(body: bytes) -> bytes:
    return b"\1" + zstandard.compress(body)


@given(from_client)
def test_what_a_client_says_arrives_as_it_was(message: ClientMessage) -> None:
    assert decode(encode(message), "relay") == message


@given(from_relay)
def test_what_a_relay_says_arrives_as_it_was(message: RelayMessage) -> None:
    assert decode(encode(message), "client") == message


@given(from_client, from_relay)
def test_a_message_at_the_wrong_end_is_malformed(
    from_client: ClientMessage, from_relay: RelayMessage
) -> None:
    for message, side in ((from_client, "client"), (from_relay, "relay")):
        if isinstance(message, Recall | Recalled):
            # Optional: an end that does not know it skips it.
            assert decode(encode(message), side) is None  # type: ignore[call-overload]
        elif not isinstance(message, Error):
            assert refusal(encode(message), side) == "malformed"  # type: ignore[arg-type]


@given(from_client | from_relay, st.data())
def test_a_damaged_frame_is_refused_or_means_something(
    message: ClientMessage | RelayMessage, data: st.DataObject
) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    sides: tuple[Side, Side] = ("client", "relay")
    for side in sides:
        found = understood(bytes(frame), side)
        assert found is None or decode(encode(found), side) == found


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_is_refused(garbage: bytes) -> None:
    for form in (b"", b"\0", b"\1"):
        message = understood(form + garbage, "relay")
        assert message is None or decode(encode(message), "relay") == message


@given(from_client)
def test_a_frame_cut_short_or_continued_is_malformed(message: ClientMessage) -> None:
    frame = encode(message)
    if frame[:1] == b"\0":
        for end in range(1, len(frame)):
            assert refusal(frame[:end]) in ("malformed", "version")
    assert refusal(frame + b"\0") == "malformed"


def test_large_frames_are_packed_when_it_helps() -> None:
    rows = tuple(b"%04d" % number for number in range(500))
    packed = encode(Page((Section(1, rows, rows),), 1, b"", True, b"8 bytes."))
    assert packed[:1] == b"\1"
    assert len(packed) < 4_000
    noise = zstandard.compress(bytes(range(256)) * 8)
    assert encode(Page((Section(1, (b"k",), (noise,)),), 1, b"", True, b""))[:1] == b"\0"


def test_an_optional_type_that_is_not_known_is_skipped() -> None:
    assert decode(plain(65, {"any": [1, 2]}), "relay") is None
    assert decode(plain(64, {"any": [1, 2]}), "client") is None
    assert decode(plain(127), "client") is None
    assert refusal(plain(63)) == "malformed"
    assert refusal(plain(128)) == "malformed"


def test_another_version_is_told_apart_whatever_its_fields() -> None:
    assert refusal(plain(1, 2, "other", "fields")) == "version"
    assert refusal(plain(16, 2), "client") == "version"
    assert refusal(plain(1, 1, "too", "few")) == "malformed"


HELLO = Hello(1, ("a",), None, 7, 0, (), 0, b"", 0)
PUSH = Push(1, b"nonce 88", False, True, (Entries(1, (b"k",), (b"d",), (1,), ()),))


@pytest.mark.parametrize(
    "message",
    [
        replace(HELLO, replica=0),
        replace(HELLO, replica=2**63),
        replace(HELLO, acknowledged=-1),
        replace(HELLO, realm=b"short"),
        replace(HELLO, token=b"short"),
        replace(HELLO, nonces=(b"short",)),
        replace(HELLO, capabilities=("UPPER",)),
        replace(HELLO, seq=True),
        replace(HELLO, seq=1.0),  # type: ignore[arg-type]
        replace(PUSH, number=0),
        replace(PUSH, loose=1),  # type: ignore[arg-type]
        replace(PUSH, sections=(Entries(0, (b"k",), (b"d",), (1,)),)),
        replace(PUSH, sections=(Entries(1, (), (), ()),)),
        replace(PUSH, sections=(Entries(1, (b"",), (b"d",), (1,)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), (b"",), (1,)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), ("d",), (1,)),)),  # type: ignore[arg-type]
        replace(PUSH, sections=(Entries(1, (b"k",), (b"d", b"e"), (1,)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), (b"d",), (4,)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), (b"d",), (True,)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), (b"d",), (1, 1)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), (b"d",), (1,), ((1, 1, b"p"),)),)),
        replace(PUSH, sections=(Entries(1, (b"k",), (b"d",), (1,), ((0, 0, b"p"),)),)),
        Describe((Table("t", ()),)),
        Describe((Table("t", (Column("id", 1, "x); DROP", "text", key=1),)),)),
        Error("Not A Word", ""),
        Recall(-1, 1, b"k"),
        Recall(1, 0, b"k"),
        Recall(1, 1, b""),
        Recall(1, 1, "k"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_field_out_of_its_range_is_malformed(message: ClientMessage) -> None:
    assert refusal(encode(message)) == "malformed"


@pytest.mark.parametrize(
    "loss", [(b"d", b"short"), (b"", bytes(16)), ("d", bytes(16)), (b"d", None), (b"d",)], ids=str
)
def test_a_loss_is_a_document_and_a_stamp(loss: tuple[object, ...]) -> None:
    assert refusal(plain(96, 1, [loss]), "client") == "malformed"


def test_what_is_over_a_limit_is_too_large() -> None:
    losses = (Loss(b"d", bytes(16)),) * (LOSSES_MAX + 1)
    assert refusal(encode(Recalled(1, losses)), "client") == "too-large"
    assert refusal(encode(Recall(1, 1, b"k" * 4_000))) == "too-large"
    key = (b"k",) * (2 * FRAME_ROWS_MAX + 1)
    assert refusal(encode(Page((Section(1, key, key),), 1, b"", True, b"")), "client") == (
        "too-large"
    )
    halves = (Section(1, key[: len(key) // 2], key[: len(key) // 2]),) * 3
    assert refusal(encode(Page(halves, 1, b"", True, b"")), "client") == "too-large"
    assert refusal(encode(replace(HELLO, nonces=(b"nonce 88",) * (NONCES_MAX + 1)))) == "too-large"
    long_key = Section(1, (b"k" * 4_000,), (b"d",))
    assert refusal(encode(Page((long_key,), 1, b"", True, b"")), "client") == "too-large"
    assert refusal(b"\0" * (FRAME_BYTES_MAX + 2)) == "too-large"
    assert refusal(zstd(bytes(FRAME_BYTES_MAX + 1))) == "too-large"
    with pytest.raises(ProtocolError, match="split it"):
        encode(Page((Section(1, (b"k",), (bytes(FRAME_BYTES_MAX),)),), 1, b"", True, b""))


def test_a_zstd_frame_must_state_its_size_and_keep_to_it() -> None:
    body = msgpack.packb((6, 1))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    assert refusal(b"\1" + unsized) == "malformed"
    assert refusal(b"\1" + zstandard.compress(body) + zstandard.compress(body)) == "malformed"
    assert refusal(zstd(b"")) == "malformed"
    assert decode(zstd(body), "relay") == Barrier(1)


PAGE_OF_ROWS = b"\x96\x12\x91\x93\x01\xdc\x27\x10"
DESCRIBED_TABLES = b"\x92\x02\xdc\x07\xd0"
BOMBS = {
    "maps": b"\x80" * FRAME_BYTES_MAX,
    "arrays": b"\x90" * FRAME_BYTES_MAX,
    "a nest": b"\x91" * FRAME_BYTES_MAX,
    "headers": b"\xdd\xff\xff\xff\xff" * 5_000,
    "nested headers": b"\xdc\xff\xff" * 5_000,
    "maps for messages": b"\xdf\xff\xff\xff\xff" * 5_000,
    "sections of nothing": b"\x96\x12\xdc\x27\x10" + b"\x90" * 20_000,
    "keys of maps": PAGE_OF_ROWS + b"\x80" * (FRAME_BYTES_MAX - 100),
    "keys of arrays": PAGE_OF_ROWS + b"\x90" * (FRAME_BYTES_MAX - 100),
    "keys of nests": PAGE_OF_ROWS + b"\xdc\xff\xff" * 1_000_000,
    "keys of integers": PAGE_OF_ROWS + b"\xcd\xff\xff" * 1_000_000,
    "keys of extensions": PAGE_OF_ROWS + b"\xd4\x01\xff" * 1_000_000,
    "a huge key": PAGE_OF_ROWS + b"\xc6\xff\xff\xff\xff",
    "a huge text": DESCRIBED_TABLES + b"\x96\xdb\xff\xff\xff\xff",
    "tables of maps": DESCRIBED_TABLES + b"\x96\x80\x80\x80" * 1_000_000,
    "columns without end": DESCRIBED_TABLES
    + (b"\x96\xa1t\x00\xdc\x06\x40" + b"\x97\xa1a\x01\xa0\xa1t\xc2\xc0\x00" * 1_600) * 1_300,
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zstd"])
def test_a_bomb_costs_no_more_memory_than_a_frame(bomb: str, packed: bool) -> None:
    body = BOMBS[bomb][:FRAME_BYTES_MAX]
    frame = zstd(body) if packed else b"\0" + body
    sides: tuple[Side, Side] = ("client", "relay")
    for side in sides:
        tracemalloc.start()
        try:
            refusal(frame, side)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The unpacked body, and the copy that the unpacker reads from.
        assert peak < 2 * len(body) + (2 << 20)


def test_a_frame_of_many_small_values_costs_a_hundred_bytes_each() -> None:
    column = [b"a" * 60, 1, "", "text", False, None, 0]
    wide = ["t", 0, [column] * 1_600, [], [], [False] * 3]
    frame = plain(2, [wide] * 100)
    tracemalloc.start()
    try:
        assert refusal(frame) == "malformed"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(frame) + (4 << 20)
