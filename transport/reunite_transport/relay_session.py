"""The relay's end of one connection: the order of steps, the windows, the live stream. No I/O.

A driver feeds it and does what its events ask for:

    session.receive(frame)      a frame came in
    session.tick(now)           time passed; `now` counts seconds from any origin
    session.events()            what happened: the driver answers each with a verb below
    session.data_to_send()      frames to send, in order

| event | the driver answers with |
|---|---|
| Greeted          | `welcome`, or `error` |
| Described        | `registry`, or `error` |
| PushReady        | later, from the commit that decided: `own_commit`, `known`, `rejected` |
| PullRequested    | `page`, and then whatever the hub has after it by `commit` |
| BarrierRequested | `reached` |
| RecallRequested  | `recalled`, or nothing |
| Closed           | nothing: send what `data_to_send` still has and close the socket |

It asks for one Hello first, and after every Hello starts anew: a client whose history forked says
Hello again on the same connection under its new replica id. After `rejected` all pushes are
dropped until the client's Resume. What breaks the protocol ends in an Error frame and Closed;
the verbs may be called on a closed session and then do nothing.

Live: once a page was complete at seq H, `live_at` is H, and `commit` of H + 1 is sent and moves it
on. A gap, or a queue over its limit, ends it with Behind, and the client pulls again: so a slow
reader costs memory up to the limit and not beyond. A Known names own changesets that came in
while the client was not live.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from reunite.errors import ProtocolError
from reunite.overwritten import Loss
from reunite.schema import Table
from reunite_transport.codec import decode, encode
from reunite_transport.messages import (
    CHANGESET_BYTES_MAX,
    CHANGESET_ROWS_MAX,
    FRAME_BYTES_MAX,
    HISTORY,
    MESSAGE_CHARS_MAX,
    NAMED_ROWS_MAX,
    VERSION,
    Barrier,
    Behind,
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
    Verdict,
    Welcome,
)
from reunite_transport.relay.store import FeedPage, Greeting

# Long enough for a phone's first round trips, short enough that idle sockets do not pile up.
HELLO_SECONDS_MAX: Final = 10.0
# Pushes that wait for their verdict: one changeset of the largest size behind another. A client
# keeps its own window far below; over this it does not wait for answers at all.
UNANSWERED_BYTES_MAX: Final = 2 * CHANGESET_BYTES_MAX
# Changesets of one small row each are some hundred bytes of bookkeeping.
UNANSWERED_MAX: Final = 65_536
# Live commits that wait to be sent. Shared among sessions, so it bounds the age, too: beyond it
# pulling the latest state of each row is less work than every step on the way.
LIVE_BYTES_MAX: Final = 8 << 20
LIVE_FRAMES_MAX: Final = 2_000
# All else that waits to be sent was asked for, one frame a request; a client that asks and does
# not read is cut off here. One page of the largest frame, and its neighbours.
UNSENT_BYTES_MAX: Final = 64 << 20
# What a frame costs beside its bytes, so that many tiny ones count, too.
FRAME_OVERHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class Greeted:
    """The client said Hello, for the first time or anew."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Described:
    """The client has tables or columns that the registry lacks."""

    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class PushReady:
    """A changeset arrived whole; `size` counts the bytes of its keys and documents."""

    number: int
    nonce: bytes
    loose: bool
    sections: tuple[Entries, ...]
    rows: int
    size: int


@dataclass(frozen=True, slots=True)
class PullRequested:
    """The client asks for the rows after a position."""

    seq: int
    within: bytes


@dataclass(frozen=True, slots=True)
class BarrierRequested:
    """The client asks which seq holds everything committed up to now."""

    id: int


@dataclass(frozen=True, slots=True)
class RecallRequested:
    """The client asks what merges overwrote of a row."""

    id: int
    table: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; `code` is the protocol's word, `message` says why."""

    code: str
    message: str


Event: TypeAlias = (
    Greeted | Described | PushReady | PullRequested | BarrierRequested | RecallRequested | Closed
)


@dataclass(slots=True)
class _Parts:
    """A changeset that has not arrived whole. Over a limit its sections are let go."""

    number: int
    nonce: bytes
    loose: bool
    sections: list[Entries]
    rows: int = 0
    size: int = 0
    too_large: bool = False


class RelaySession:
    """One connection's state at the relay; see the module's docstring."""

    live_at: int | None
    """The seq that the client has, or will have once all is sent; None while it is not live."""

    def __init__(
        self, now: float, *, hello_seconds: float = HELLO_SECONDS_MAX, history: bool = False
    ) -> None:
        """Start waiting for a Hello, which must come within `hello_seconds` of `now`. With
        `history` the relay answers Recall; else it skips it, as one that does not know it."""
        self._capabilities = (HISTORY,) if history else ()
        self.closed = False
        self.unsent_bytes = 0
        self.unanswered_bytes = 0
        self._hello_until: float | None = now + hello_seconds
        self._events: list[Event] = []
        self._unsent: deque[bytes] = deque()
        self._live_bytes = 0
        self._live_frames = 0
        self._begin(None)

    def _begin(self, hello: Hello | None) -> None:
        """Forget all that the last Hello began."""
        self.live_at = None
        self._hello = hello
        self._open = False
        self._pulling = False
        # Where the next Pull goes on; None when it may begin anywhere.
        self._place: tuple[int, bytes] | None = None
        self._parts: _Parts | None = None
        self._next_number: int | None = None
        self._size_by_number: dict[int, int] = {}
        self.unanswered_bytes = 0
        # A changeset over the limits, to be rejected once all before it are answered.
        self._too_large: Rejected | None = None
        self._resume_at: int | None = None

    # What the socket and the clock say

    def receive(self, frame: bytes) -> None:
        """Take in one frame. Its effects are in `events` and `data_to_send`."""
        if self.closed:
            return
        try:
            message = decode(frame, "relay")
            if message is not None:
                self._take(message)
        except ProtocolError as error:
            self.error(error.code, str(error))

    def tick(self, now: float) -> None:
        """Let time pass: a connection without a Hello ends."""
        if self._hello_until is not None and now >= self._hello_until:
            self.error("unexpected", "no Hello came in time")

    def events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> list[bytes]:
        """The frames to send, in order. They count as sent from here on: hold no second queue."""
        frames = list(self._unsent)
        self._unsent.clear()
        self.unsent_bytes = self._live_bytes = self._live_frames = 0
        return frames

    # What the driver answers

    def welcome(self, greeting: Greeting, *, realm: bytes, registry: Sequence[Table]) -> None:
        """Answer a Hello. After another verdict than `continue` only another Hello may
        follow."""
        if self.closed or self._hello is None:
            return
        self._open = greeting.verdict is Verdict.CONTINUE
        self._send(
            Welcome(
                version=VERSION,
                capabilities=self._capabilities,
                realm=realm,
                now_ms=greeting.now_ms,
                sent_ms=self._hello.sent_ms,
                verdict=greeting.verdict,
                known=greeting.known,
                head=greeting.head,
                rows=greeting.rows,
                tables=tuple(registry),
            )
        )

    def registry(self, tables: Sequence[Table]) -> None:
        """Send the registry, asked for or grown."""
        if self._open:
            self._send(Registry(tuple(tables)))

    def page(self, page: FeedPage) -> None:
        """Answer a Pull. A complete page makes the client live at its seq."""
        if not self._open or not self._pulling:
            return
        self._pulling = False
        self._place = None if page.complete else (page.seq, page.within)
        self._send(Page(page.sections, page.seq, page.within, page.complete, page.token))
        if page.complete:
            self.live_at = page.seq

    def _awaits(self, seq: int, within: bytes) -> bool:
        """Whether a Pull is one that the client has to make: the first, the one that goes on where
        the last page ended, or the first after Behind. Any other is a copy that the network made;
        answered, it would have the client ask for more, and each copy of that too."""
        follows = self._place in (None, (seq, within))
        return follows and not self._pulling and self.live_at is None

    def commit(self, seq: int, frame: bytes | None, head: int) -> None:
        """State one commit. `frame` is its Commit, encoded once for all who get the same, or None
        when it is too large to stream; `head` is the last commit known by now, for Behind."""
        if self.live_at is None or seq <= self.live_at:
            return
        if seq == self.live_at + 1 and frame is not None and self._has_room(frame):
            self._live_bytes += len(frame)
            self._live_frames += 1
            self._enqueue(frame)
            self.live_at = seq
        else:
            self.behind(max(seq, head))

    def own_commit(self, seq: int, numbers: Sequence[int], frame: bytes | None, head: int) -> None:
        """State a commit that holds changesets of this client. `frame` is a Commit that
        acknowledges them; where it cannot be sent, a Known does it."""
        streams = self.live_at is not None and seq == self.live_at + 1
        if streams and frame is not None and self._has_room(frame):
            self.commit(seq, frame, head)
            self._answered(numbers)
            return
        self.known([(number, seq) for number in numbers])
        self.commit(seq, None, head)

    def known(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Say that changesets of this client are in, each at or below its seq."""
        if self._open and pairs:
            self._send(Known(tuple(pairs)))
            self._answered([number for number, _ in pairs])

    def behind(self, seq: int) -> None:
        """End the live stream: there is more up to `seq` than it carries."""
        if self.live_at is not None and seq > self.live_at:
            self.live_at = None
            self._send(Behind(seq))

    def rejected(
        self,
        number: int,
        nonce: bytes,
        reason: str,
        message: str,
        rows: Sequence[tuple[int, bytes]] = (),
    ) -> None:
        """State that a changeset is not in, and which rows the reason concerns. Pushes are dropped
        from now on until Resume."""
        if not self._open or self._resume_at is not None:
            return
        self._parts = self._too_large = None
        self._size_by_number.clear()
        self.unanswered_bytes = 0
        self._resume_at = number
        self._send(Rejected(number, nonce, reason, _shown(message), tuple(rows[:NAMED_ROWS_MAX])))

    def reached(self, barrier_id: int, seq: int) -> None:
        """Answer a Barrier."""
        if self._open:
            self._send(Reached(barrier_id, seq))

    def recalled(self, recall_id: int, losses: Sequence[Loss]) -> None:
        """Answer a Recall with a row's losses, the newest first, as far as a frame holds them."""
        room = FRAME_BYTES_MAX - FRAME_OVERHEAD
        told = []
        for loss in losses:
            room -= len(loss.document) + FRAME_OVERHEAD
            if room < 0:
                break
            told.append(loss)
        if self._open:
            self._send(Recalled(recall_id, tuple(told)))

    def error(self, code: str, message: str) -> None:
        """End the connection and say why."""
        if self.closed:
            return
        # What was on its way is taken up again after the next Hello; the reason is not.
        self._drop_unsent()
        self._enqueue(encode(Error(code, _shown(message))))
        self.close(code, message)

    def close(self, code: str = "closed", message: str = "the connection ended") -> None:
        """End the connection without a word: the socket is gone, or the relay stops."""
        if self.closed:
            return
        self._begin(None)
        self.closed = True
        self._hello_until = None
        self._events.append(Closed(code, message))

    # What the client says

    def _take(self, message: Message) -> None:
        match message:
            case Hello():
                self._begin(message)
                self._drop_unsent()
                self._hello_until = None
                self._events.append(Greeted(message))
            case Error(code, text):
                self.close(code, text)
            case _ if not self._open:
                raise _unexpected(f"a {type(message).__name__} before its Welcome")
            case Push():
                self._take_push(message)
            case Resume(number):
                self._take_resume(number)
            case Pull(seq, within):
                if self._awaits(seq, within):
                    self._pulling = True
                    self._events.append(PullRequested(seq, within))
            case Describe(tables):
                self._events.append(Described(tables))
            case Barrier(barrier_id):
                self._events.append(BarrierRequested(barrier_id))
            case Recall(recall_id, table, key):
                if self._capabilities:
                    self._events.append(RecallRequested(recall_id, table, key))

    def _take_push(self, push: Push) -> None:
        if self._resume_at is not None or self._too_large is not None:
            return
        parts = self._parts
        if parts is None:
            assert self._hello is not None
            first = self._next_number
            if first is None and push.number <= self._hello.acknowledged:
                raise _unexpected(f"changeset {push.number} was acknowledged before")
            if first is not None and push.number != first:
                raise _unexpected(f"changeset {push.number} where {first} follows")
            parts = self._parts = _Parts(push.number, push.nonce, push.loose, [])
        elif (push.number, push.nonce, push.loose) != (parts.number, parts.nonce, parts.loose):
            raise _unexpected(f"changeset {push.number} inside {parts.number}")
        self._add_part(parts, push.sections)
        if push.last:
            self._parts = None
            self._next_number = push.number + 1
            self._end_push(parts)

    def _add_part(self, parts: _Parts, sections: tuple[Entries, ...]) -> None:
        size = sum(sum(map(len, each.keys)) + sum(map(len, each.documents)) for each in sections)
        parts.rows += sum(len(each.keys) for each in sections)
        parts.size += size
        if parts.size > CHANGESET_BYTES_MAX or parts.rows > CHANGESET_ROWS_MAX:
            parts.too_large = True
            self.unanswered_bytes -= self._size_by_number.pop(parts.number, 0)
            parts.sections.clear()
            return
        parts.sections.extend(sections)
        self.unanswered_bytes += size
        self._size_by_number[parts.number] = parts.size
        if (
            self.unanswered_bytes > UNANSWERED_BYTES_MAX
            or len(self._size_by_number) > UNANSWERED_MAX
        ):
            raise ProtocolError(
                "too many pushes without waiting for their answers; connect again", "overloaded"
            )

    def _end_push(self, parts: _Parts) -> None:
        if parts.too_large:
            self._too_large = Rejected(
                parts.number,
                parts.nonce,
                "too-large",
                f"a changeset of {parts.rows} rows and {parts.size} bytes is over the"
                f" {CHANGESET_ROWS_MAX} rows or {CHANGESET_BYTES_MAX} bytes that one commit holds",
            )
            self._reject_too_large()
            return
        self._events.append(
            PushReady(
                number=parts.number,
                nonce=parts.nonce,
                loose=parts.loose,
                sections=tuple(parts.sections),
                rows=parts.rows,
                size=parts.size,
            )
        )

    def _take_resume(self, number: int) -> None:
        if number != self._resume_at:
            raise _unexpected(f"a Resume of {number}, which is not the one rejected")
        self._resume_at = None
        self._next_number = number

    def _answered(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.unanswered_bytes -= self._size_by_number.pop(number, 0)
        self._reject_too_large()

    def _reject_too_large(self) -> None:
        """Reject the changeset over the limits in its turn: an earlier one may be rejected yet,
        and then this one is pushed again behind it."""
        refused = self._too_large
        if refused is not None and not self._size_by_number:
            self.rejected(refused.number, refused.nonce, refused.reason, refused.message)

    # The queue

    def _has_room(self, frame: bytes) -> bool:
        return (
            self._live_bytes + len(frame) <= LIVE_BYTES_MAX and self._live_frames < LIVE_FRAMES_MAX
        )

    def _send(self, message: Message) -> None:
        if not self.closed:
            self._enqueue(encode(message))

    def _enqueue(self, frame: bytes) -> None:
        self._unsent.append(frame)
        self.unsent_bytes += len(frame) + FRAME_OVERHEAD
        if self.unsent_bytes > UNSENT_BYTES_MAX:
            self.error("overloaded", "answers pile up unread; connect again")

    def _drop_unsent(self) -> None:
        self.data_to_send()


def _unexpected(what: str) -> ProtocolError:
    return ProtocolError(f"{what} is against the protocol's order", "unexpected")


def _shown(message: str) -> str:
    """A message as a frame may carry it: valid UTF-8, and not longer than allowed."""
    return message.encode("utf-8", "replace").decode()[:MESSAGE_CHARS_MAX]
