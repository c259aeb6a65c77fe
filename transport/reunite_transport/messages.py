"""The protocol `reunite.1`: its messages, their fields, and who sends what when.

One WebSocket, subprotocol `reunite.1`, binary frames. A frame is one byte, 0 for plain and 1 for
zstd, then one msgpack array `[type, field, ...]`; the fields stand in the order below. `codec`
turns frames into these classes and back, and is the only place where bytes of a peer are checked.

A connection goes through these steps:

    client                                   relay
    Hello              ->
                       <-  Welcome           (or Error, and the end)
    Describe           ->                    only while the registry lacks a table or column
                       <-  Registry          (also unasked, whenever the registry has grown)
    Pull               ->
                       <-  Page              until one says `complete`; from there on, live:
                       <-  Commit            every later commit, in order, none left out,
                       <-  Behind            or: more than the live stream carries, Pull again
    Push               ->                    changesets in order of number, some unanswered
                       <-  Commit, Known     which of them are in, at which seq
                       <-  Rejected          this one is not; all later ones are ignored until
    Resume             ->                    the client, having reverted, goes on with that number
    Barrier            ->
                       <-  Reached           everything committed before is at or below this seq
    Recall             ->                    if the Welcome has the capability `history`
                       <-  Recalled          what merges overwrote of one row

| type | message | fields |
|---|---|---|
| 1  | Hello    | version, capabilities, realm or nil, replica, acknowledged, nonces, seq, token, |
|    |          | sent_ms |
| 2  | Describe | tables |
| 3  | Push     | number, nonce, loose, last, sections |
| 4  | Resume   | number |
| 5  | Pull     | seq, within |
| 6  | Barrier  | id |
| 16 | Welcome  | version, capabilities, realm, now_ms, sent_ms, verdict, known, head, rows, |
|    |          | tables |
| 17 | Registry | tables |
| 18 | Page     | sections, seq, within, complete, token |
| 19 | Commit   | seq, token, acknowledged, sections |
| 20 | Known    | pairs |
| 21 | Behind   | seq |
| 22 | Rejected | number, nonce, reason, message, rows |
| 23 | Reached  | id, seq |
| 24 | Error    | code, message |
| 64 | Recall   | id, table, key |
| 96 | Recalled | id, losses |

Types 64 to 127 are optional, 64 to 95 a client's and 96 to 127 a relay's: a side that does not know
one skips it. Any other unknown type, and a known one with more or fewer fields, is an error, so
later versions add messages, not fields. A capability in Hello or Welcome says that a side
understands optional messages: `history` is a relay's that answers Recall.

A section is the rows of one table, in columns: `[table, keys, documents]`, and in a Push
`[table, keys, documents, kinds, derived]`. `table` is the registry's id, a key is the msgpack
array of the key's values (see `reunite.keys`), a document its bytes (see `reunite.document`);
both pass through untouched. `kinds` says for each row PARTIAL (a delta), WHOLE (a complete
document), ADOPTED (a complete document that came with a table), or OFFERED (what the relay had
before it was restored, with the stamps that it had); `derived` lists `[index, table, key]` for rows
that a foreign key action changed because that parent was deleted.

A loss is `[document, replaced]`: of one edit, the cells that gave way, as a document with the
stamps that they had, and the stamp of what took their place. Losses come newest first, and a relay
keeps only the newest of each row.

Reasons of Rejected: `constraint`, `forbidden`, `clock-ahead`, `need-whole`, `key-taken`,
`expired`, `depends-on`, `too-large`, `invalid`.

Codes of Error: `version`, `malformed`, `too-large`, `unexpected`, `realm`, `unknown-table`,
`schema`, `restored`, `fenced`, `overloaded`, `internal`.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, TypeAlias

from reunite.overwritten import Loss
from reunite.schema import Table

VERSION: Final = 1
SUBPROTOCOL: Final = "reunite.1"

# A frame holds at least one row of the largest size and its key; what is larger is split.
FRAME_BYTES_MAX: Final = 20 << 20
# Frames are filled up to here, so that one connection's work does not hold up the others'.
FRAME_BYTES_GOAL: Final = 1 << 20
# A frame over this many rows costs the other side too long in one piece.
FRAME_ROWS_MAX: Final = 5_000
# A changeset is merged in memory and committed in one transaction.
CHANGESET_BYTES_MAX: Final = 64 << 20
CHANGESET_ROWS_MAX: Final = 200_000
# Enough to tell a copied file's history from one's own; 8 bytes each.
NONCES_MAX: Final = 65_536
NONCE_BYTES: Final = 8
TOKEN_BYTES: Final = 8
REALM_BYTES: Final = 16
CAPABILITIES_MAX: Final = 64
MESSAGE_CHARS_MAX: Final = 2_000
# A refusal names this many rows at most; what else it concerns shows at the next try.
NAMED_ROWS_MAX: Final = 1_000
# A Recalled has at most this many losses; relays keep far fewer of a row.
LOSSES_MAX: Final = 1_000

# The capability of a relay that keeps what merges overwrote, and tells it.
HISTORY: Final = "history"


class EntryKind(IntEnum):
    """What an entry of a changeset holds."""

    PARTIAL = 0
    WHOLE = 1
    ADOPTED = 2
    OFFERED = 3


class Verdict(StrEnum):
    """How the relay reads a client's history at Hello."""

    CONTINUE = "continue"
    # The pending nonces do not fit what the relay has: the file was copied or restored.
    FORK = "fork"
    # The client knows commits that the relay does not: the relay was restored from a backup.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Section:
    """Rows of one table, as a relay states them."""

    table: int
    keys: tuple[bytes, ...]
    documents: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """Rows of one table, as a client pushes them; `derived` holds (index, parent table, key)."""

    table: int
    keys: tuple[bytes, ...]
    documents: tuple[bytes, ...]
    kinds: tuple[int, ...]
    derived: tuple[tuple[int, int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """The client's first word. `acknowledged` is its highest resolved changeset number, `nonces`
    those of its pending changesets in order (numbers follow on), (`seq`, `token`) its cursor
    (0 and no bytes before the first), or in a load its place and the last page's token, `sent_ms`
    its clock."""

    version: int
    capabilities: tuple[str, ...]
    realm: bytes | None
    replica: int
    acknowledged: int
    nonces: tuple[bytes, ...]
    seq: int
    token: bytes
    sent_ms: int


@dataclass(frozen=True, slots=True)
class Describe:
    """Tables and columns that the registry lacks, as the client has them."""

    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Push:
    """A changeset or a part of one; `last` ends it. Parts follow each other unmixed."""

    number: int
    nonce: bytes
    loose: bool
    last: bool
    sections: tuple[Entries, ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """The client has reverted a rejected changeset; the next Push has this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask for the next page after (seq, within); `within` is a Page's, or no bytes."""

    seq: int
    within: bytes


@dataclass(frozen=True, slots=True)
class Barrier:
    """Ask which seq holds everything that was committed up to now."""

    id: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask what merges overwrote of a row."""

    id: int
    table: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """The relay's answer to Hello. `now_ms` is its clock and `sent_ms` the Hello's, for measuring
    the offset. `known` pairs (number, seq) name the client's pending changesets that are in. `rows`
    is about how many rows there are to pull, for a progress bar."""

    version: int
    capabilities: tuple[str, ...]
    realm: bytes
    now_ms: int
    sent_ms: int
    verdict: Verdict
    known: tuple[tuple[int, int], ...]
    head: int
    rows: int
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Registry:
    """All tables of the realm, numbered."""

    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order of (seq, row). (`seq`, `within`) is where the next Pull goes on, and `token` is
    of the last commit that the page saw. `complete` says that nothing was left when it was read:
    then (`seq`, `token`) is the new cursor."""

    sections: tuple[Section, ...]
    seq: int
    within: bytes
    complete: bool
    token: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """One live commit. `acknowledged` numbers of the receiver's own changesets are in it; their
    rows join its base as pushed, but for those in `sections`, which are stated whole."""

    seq: int
    token: bytes
    acknowledged: tuple[int, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """Pairs (number, seq) of the receiver's changesets that were committed while it was not live:
    they are dropped when its cursor reaches that seq."""

    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """The live stream ended; there are commits up to `seq` to pull."""

    seq: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A changeset that is not in. Later ones are ignored until Resume. `rows` are those that the
    reason concerns, as (table, key), where the relay can tell."""

    number: int
    nonce: bytes
    reason: str
    message: str
    rows: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """The answer to a Barrier."""

    id: int
    seq: int


@dataclass(frozen=True, slots=True)
class Recalled:
    """The answer to a Recall."""

    id: int
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Error:
    """Why the sender ends this connection."""

    code: str
    message: str


ClientMessage: TypeAlias = Hello | Describe | Push | Resume | Pull | Barrier | Recall | Error
RelayMessage: TypeAlias = (
    Welcome | Registry | Page | Commit | Known | Behind | Rejected | Reached | Recalled | Error
)
Message: TypeAlias = ClientMessage | RelayMessage
