"""The client's end of one connection, without I/O of its own but the replica's SQLite file.

Four verbs. `receive(frames)` takes in what the relay sent, `tick(now_ms)` lets time and local
writes be noticed, `data_to_send()` empties what is to be written to the socket, `events()` what the
app may want to know. After every `receive` and `tick` the driver calls the other two. A session
lives as long as its connection; what must survive is in the replica.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from reunite.adopt import Choice
from reunite.clock import OFFSET_MS_MIN
from reunite.document import decode as decode_document
from reunite.errors import FormatError, ProtocolError, SyncError, TableError
from reunite.overwritten import Loss
from reunite.payload import StatedRows, Statement
from reunite.replica import Outgoing, OutgoingRows, Replica
from reunite.schema import Table
from reunite_transport import codec
from reunite_transport.messages import (
    FRAME_BYTES_GOAL,
    FRAME_ROWS_MAX,
    HISTORY,
    VERSION,
    Barrier,
    Behind,
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
    Resume,
    Section,
    Verdict,
    Welcome,
)

# How much may be on its way without an answer: enough to keep a relay's batches full, and little
# enough to be sent again after a lost connection.
WINDOW_CHANGESETS: Final = 256
WINDOW_BYTES: Final = 4 << 20

# A relay whose database is away answers late; one that is gone does not at all.
WELCOME_MS_MAX: Final = 30_000

# Answers after which trying again by itself cannot help: a person has to act.
FATAL_CODES: Final = frozenset({"version", "realm", "unknown-table", "schema", "adoption"})


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The relay knows us. `rows` is about how many rows a first load will bring."""

    rows: int


@dataclass(frozen=True, slots=True)
class Refilling:
    """The relay was restored from a backup. Of these `rows` it gets those that it lost."""

    rows: int


@dataclass(frozen=True, slots=True)
class TablesChanged:
    """The realm's tables became others. `left_alone` are those that the file has under the same
    name and does not track."""

    left_alone: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Received:
    """Rows have arrived; `applied` when they are in the tables."""

    rows: int
    applied: bool


@dataclass(frozen=True, slots=True)
class Live:
    """Everything that the relay had has arrived; from here on commits come as they happen."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Changesets of ours are committed at the relay."""

    count: int


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The relay refused rows, which were reverted and kept in `reunite_rejected`."""

    reason: str
    message: str
    rows: tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class BarrierReached:
    """The barrier's answer: all that was committed before it is at or below `seq`."""

    id: int
    seq: int


@dataclass(frozen=True, slots=True)
class HistoryTold:
    """What the relay knows that merges overwrote of a row, the newest first; `id` is of the
    question."""

    id: int
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over. `fatal` when connecting again would end the same way."""

    error: SyncError
    fatal: bool


Event: TypeAlias = (
    Welcomed
    | Refilling
    | TablesChanged
    | Received
    | Live
    | Acknowledged
    | GaveUp
    | BarrierReached
    | HistoryTold
    | Ended
)


class ClientSession:
    """One connection's protocol state."""

    def __init__(self, replica: Replica, now_ms: int, *, choice: Choice | None = None) -> None:
        """Begins by saying Hello. `choice` settles rows that two different files adopted."""
        self._replica = replica
        self._choice: Choice | None = choice
        self._out: deque[bytes] = deque()
        self._events: deque[Event] = deque()
        self._ended = False
        self._welcomed = False
        self._described: set[tuple[str, str]] = set()
        self._pulling = False
        self._live = False
        self._sent = 0
        # The number of its greeting: once another session of the file has greeted, this one ends.
        self._greeting = 0
        # What the replica said when it was asked for news; nothing was yet.
        self._polled = 0
        self._in_flight: dict[int, int] = {}
        # One changeset after a refusal, as all that follows it is sent again after each; doubled by
        # what is taken.
        self._window = WINDOW_CHANGESETS
        self._barriers = 0
        self._recalls = 0
        self._keeps_history = False
        self._now_ms = now_ms
        self._began_ms = now_ms
        self._greeted_ms = now_ms - 1
        self._greet()

    # The four verbs.

    def receive(self, frames: Iterable[bytes], now_ms: int) -> None:
        """Take in frames, in order; commits that come one after the other are one transaction.
        Nothing the relay sends raises: the session ends with an event."""
        self._now_ms = now_ms
        commits: list[Commit] = []
        size = 0
        try:
            for frame in frames:
                if self._ended:
                    return
                message = codec.decode(frame, "client")
                joins = isinstance(message, Commit) and size + len(frame) <= FRAME_BYTES_GOAL
                if commits and not joins:
                    self._on_commits(commits)
                    commits, size = [], 0
                if isinstance(message, Commit) and self._welcomed:
                    commits.append(message)
                    size += len(frame)
                elif message is not None:
                    self._handle(message)
            if commits:
                self._on_commits(commits)
        except FormatError as error:
            self._end(
                ProtocolError(f"the relay sent what is not of our format: {error}", "malformed")
            )
        except TableError as error:
            self._end(SyncError(str(error), "schema"))
        except SyncError as error:
            self._end(error)

    def tick(self, now_ms: int) -> None:
        """Notice local writes and send them. Call every 20 ms or so, and after local commits."""
        self._now_ms = now_ms
        if self._ended:
            return
        try:
            if not self._welcomed and abs(now_ms - self._began_ms) > WELCOME_MS_MAX:
                raise SyncError("the relay did not answer our Hello", "offline")
            before, self._polled = self._polled, self._replica.poll()
            news = self._polled != before
            if news:
                self._replica.check_latest(self._greeting)
            # Asked besides, as what was committed by this connection is no news.
            if self._live and (news or self._replica.unsent()):
                self._describe_or_push()
        except TableError as error:
            self._end(SyncError(str(error), "schema"))
        except SyncError as error:
            self._end(error)

    def data_to_send(self) -> list[bytes]:
        """The frames to write to the socket, in order."""
        frames = list(self._out)
        self._out.clear()
        return frames

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def barrier(self) -> int:
        """Ask the relay what is committed by now; answered by BarrierReached with this id."""
        self._barriers += 1
        self._send(Barrier(self._barriers))
        return self._barriers

    def recall(self, table: int, key: bytes) -> int:
        """Ask what merges overwrote of a row, by the registry's id and its packed key; answered by
        HistoryTold with this id. Only where `keeps_history`."""
        self._recalls += 1
        self._send(Recall(self._recalls, table, key))
        return self._recalls

    def queued(self) -> int:
        """How many changesets the relay has not resolved."""
        return self._replica.queued()

    @property
    def live(self) -> bool:
        """True when commits come as they happen."""
        return self._live and not self._ended

    @property
    def keeps_history(self) -> bool:
        """True when the relay can be asked what merges overwrote."""
        return self._keeps_history and not self._ended

    # Messages.

    def _handle(self, message: Message) -> None:
        if isinstance(message, Error):
            self._end(SyncError(message.message, message.code))
        elif isinstance(message, Welcome):
            self._on_welcome(message)
        elif not self._welcomed:
            raise ProtocolError("the relay spoke before it welcomed us", "unexpected")
        elif isinstance(message, Registry):
            self._on_registry(message.tables)
        elif isinstance(message, Page):
            self._on_page(message)
        elif isinstance(message, Known):
            for number, _ in message.pairs:
                self._in_flight.pop(number, None)
            self._window = min(2 * self._window, WINDOW_CHANGESETS)
            self._replica.know(message.pairs, greeting=self._greeting)
            self._events.append(Acknowledged(len(message.pairs)))
            self._push()
        elif isinstance(message, Behind):
            self._live = False
            self._pull()
        elif isinstance(message, Rejected):
            self._on_rejected(message)
        elif isinstance(message, Reached):
            self._events.append(BarrierReached(message.id, message.seq))
        elif isinstance(message, Recalled):
            for loss in message.losses:
                decode_document(loss.document)
            self._events.append(HistoryTold(message.id, message.losses))

    def _greet(self) -> None:
        mine = self._replica.greeting()
        self._sent, self._greeting = mine.acknowledged, mine.number
        self._reloading_rows = mine.reloading_rows
        self._in_flight.clear()
        # Of its own, so that a Welcome names the Hello that it answers.
        self._greeted_ms = max(self._now_ms, self._greeted_ms + 1)
        self._send(
            Hello(
                VERSION,
                (),
                mine.realm,
                mine.replica,
                mine.acknowledged,
                mine.nonces,
                mine.seq,
                mine.token,
                self._greeted_ms,
            )
        )

    def _on_welcome(self, message: Welcome) -> None:
        if message.sent_ms != self._greeted_ms:
            # To a Hello before the last, which the network doubled: it counts by another replica's
            # numbers, and what it says was done when it was said first.
            return
        offset_ms = _offset_ms(
            message.sent_ms, message.now_ms, self._now_ms, self._replica.offset_ms()
        )
        if message.verdict == Verdict.LOST:
            rows = self._replica.refill(
                realm=message.realm, tables=message.tables, greeting=self._greeting
            )
            self._events.append(Refilling(rows))
            self._greet()
            return
        fork = message.verdict == Verdict.FORK
        self._replica.welcome(
            realm=message.realm,
            offset_ms=offset_ms,
            fork=fork,
            known=message.known,
            greeting=self._greeting,
        )
        if fork:
            self._greet()
            return
        self._sent = self._replica.acknowledged()
        self._welcomed = True
        self._keeps_history = HISTORY in message.capabilities
        # The relay counts from the cursor, which a reload leaves where it is.
        self._events.append(Welcomed(max(message.rows, self._reloading_rows)))
        self._on_registry(message.tables)

    def _on_registry(self, tables: Sequence[Table]) -> None:
        missing = self._replica.take_registry(tables, greeting=self._greeting)
        self._events.append(TablesChanged(self._replica.standing().left_alone))
        if missing:
            self._describe(missing)
        elif self._live:
            self._describe_or_push()
        elif not self._pulling:
            self._pull()

    def _pull(self) -> None:
        self._pulling = True
        self._send(Pull(*self._replica.position()))

    def _on_page(self, message: Page) -> None:
        if not self._pulling:
            raise ProtocolError("the relay sent a page that was not asked for", "unexpected")
        if not message.complete:
            # Asked for before this one is merged, so that the relay reads meanwhile.
            self._send(Pull(message.seq, message.within))
        statement = Statement(
            _stated(message.sections), message.seq, message.token, message.complete
        )
        applied = self._replica.receive(
            statement,
            within=message.within,
            choice=self._choice,
            greeting=self._greeting,
        )
        rows = sum(len(section.keys) for section in message.sections)
        self._events.append(Received(rows, applied))
        if message.complete:
            self._pulling = False
            self._live = True
            self._events.append(Live())
            self._describe_or_push()

    def _on_commits(self, commits: Sequence[Commit]) -> None:
        statements = [
            Statement(_stated(c.sections), c.seq, c.token, True, c.acknowledged) for c in commits
        ]
        applied = self._replica.receive(*statements, choice=self._choice, greeting=self._greeting)
        acknowledged = [number for commit in commits for number in commit.acknowledged]
        for number in acknowledged:
            self._in_flight.pop(number, None)
        if acknowledged:
            self._window = min(2 * self._window, WINDOW_CHANGESETS)
            self._events.append(Acknowledged(len(acknowledged)))
        rows = sum(len(section.keys) for commit in commits for section in commit.sections)
        if rows:
            self._events.append(Received(rows, applied))
        self._push()

    def _on_rejected(self, message: Rejected) -> None:
        given_up = self._replica.reject(
            message.number,
            message.nonce,
            message.reason,
            message.message,
            message.rows,
            greeting=self._greeting,
        )
        self._events.extend(GaveUp(r.reason, r.message, r.rows) for r in given_up)
        if message.reason == "clock-ahead":
            # Only a new Hello measures the clocks again.
            raise SyncError("this machine's clock is ahead of the relay's", "clock-ahead")
        self._in_flight.clear()
        self._window = 1
        self._sent = message.number - 1
        self._send(Resume(message.number))
        self._push()

    # Sending.

    def _describe_or_push(self) -> None:
        missing = self._replica.undescribed()
        if missing:
            self._describe(missing)
        else:
            self._replica.reconcile(self._choice, greeting=self._greeting)
            self._push()

    def _describe(self, tables: Sequence[Table]) -> None:
        """Ask the relay to register what it was not asked for yet. A Registry can come unasked,
        so one that lacks what was asked for is not the answer: that one, or an Error, follows."""
        names = {(table.name, column.name) for table in tables for column in table.columns}
        if not names <= self._described:
            self._described |= names
            self._send(Describe(tuple(tables)))

    def _push(self) -> None:
        if not self._live:
            return
        while len(self._in_flight) < self._window:
            room = WINDOW_BYTES - sum(self._in_flight.values())
            if room <= 0:
                return
            many = self._window - len(self._in_flight)
            ready = self._replica.unanswered(
                self._sent, changesets_max=many, greeting=self._greeting
            )
            if not ready:
                ready = self._replica.outgoing(
                    changesets_max=many, bytes_max=room, greeting=self._greeting
                )
            if not ready:
                return
            for changeset in ready:
                for part in _parts(changeset):
                    self._send(part)
                self._sent = changeset.number
                self._in_flight[changeset.number] = changeset.size

    def _send(self, message: Message) -> None:
        self._out.append(codec.encode(message))

    def _end(self, error: SyncError) -> None:
        self._ended = True
        self._live = False
        self._events.append(Ended(error, error.code in FATAL_CODES))


def _offset_ms(sent_ms: int, relay_ms: int, received_ms: int, known_ms: int) -> int:
    """How far our clock is ahead of the relay's, which was read between our two readings: about
    halfway, yet near the end where the relay had to wait for its database, and near the beginning
    where the answer was long on its way. So what was known before, or else that the clock is right,
    stands while the waiting and the network's noise explain the difference: an outage would let our
    edits win for seconds. What is new is wrong by half the waiting at most."""
    least_ms, most_ms = sent_ms - relay_ms, received_ms - relay_ms
    if least_ms > most_ms + OFFSET_MS_MIN:
        return known_ms  # our clock was put back meanwhile
    for offset_ms in (known_ms, 0):
        if least_ms - OFFSET_MS_MIN < offset_ms < most_ms + OFFSET_MS_MIN:
            return offset_ms
    return (least_ms + most_ms) // 2


def _stated(sections: Sequence[Section]) -> list[StatedRows]:
    return [StatedRows(section.table, section.keys, section.documents) for section in sections]


def _parts(changeset: Outgoing) -> Iterator[Push]:
    """A changeset as Push messages, none much over a frame's goal."""
    part: list[Entries] = []
    rows = size = 0
    for section in changeset.rows:
        for start, end, weight in _runs(section, rows, size):
            if start == 0 and end == 0:
                yield Push(changeset.number, changeset.nonce, changeset.loose, False, tuple(part))
                part, rows, size = [], 0, 0
                continue
            part.append(_entries(section, start, end))
            rows += end - start
            size += weight
    yield Push(changeset.number, changeset.nonce, changeset.loose, True, tuple(part))


def _runs(section: OutgoingRows, rows: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Runs (start, end, bytes) of a section that fit one frame each; (0, 0, 0) ends a frame."""
    start = weight = 0
    for index, (key, document) in enumerate(zip(section.keys, section.documents, strict=True)):
        more = len(key) + len(document) + 16
        full = rows + index - start >= FRAME_ROWS_MAX or size + weight + more > FRAME_BYTES_GOAL
        if full and (rows or size or index > start):
            if index > start:
                yield start, index, weight
            yield 0, 0, 0
            rows = size = weight = 0
            start = index
        weight += more
    if start < len(section.keys):
        yield start, len(section.keys), weight


def _entries(section: OutgoingRows, start: int, end: int) -> Entries:
    return Entries(
        section.table,
        tuple(section.keys[start:end]),
        tuple(section.documents[start:end]),
        tuple(section.kinds[start:end]),
        tuple(
            (index - start, table, key)
            for index, table, key in section.derived
            if start <= index < end
        ),
    )
