"""The sessions of this relay process, and what each must hear of a commit. Owns the fan-out.

A commit is encoded once for all who get the same; only its authors get a frame of their own, which
acknowledges their changesets and leaves out the rows that joined just as they pushed them. The last
commits are kept for a while: a session that has read its last page at seq H is live from there,
and what was committed since H follows from memory.

Other relays commit to the same database: `observe` is told of the head whenever somebody looked,
and sessions that miss something are told to pull. Nothing here waits or touches a socket; a
member's `wake` says that its session has something to send.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reunite.schema import Table
from reunite_transport.codec import encode
from reunite_transport.messages import FRAME_BYTES_GOAL, FRAME_ROWS_MAX, Commit, Section
from reunite_transport.relay.commit import CommittedRow
from reunite_transport.relay_session import RelaySession

# A commit over this size is pulled: it would hold up everybody's queue, and pages are bounded.
LIVE_COMMIT_BYTES_MAX: Final = 4 * FRAME_BYTES_GOAL
# What a session may miss between the snapshot of its last page and the page's way through here.
RECENT_MAX: Final = 512
RECENT_BYTES_MAX: Final = 32 << 20


@dataclass(slots=True, eq=False)
class Member:
    """One client's connection since its last Hello: the session, its replica id and term, and a
    function that has the session's frames sent."""

    session: RelaySession
    replica: int
    term: int
    wake: Callable[[], None]


@dataclass(slots=True)
class _Recent:
    """One commit, as rows until somebody wants its frame."""

    seq: int
    token: bytes
    rows: Sequence[CommittedRow]
    size: int
    # False when there are more rows than these: then nobody can be sent it.
    all_rows: bool = True
    _frame: bytes | None = None

    def shared(self) -> bytes | None:
        """The frame for all but the authors; None when the commit is too large to stream."""
        if self._frame is None and self._streams(self.rows, self.size):
            self._frame = _frame(self.seq, self.token, (), self.rows)
        return self._frame

    def personal(self, replica: int, numbers: Sequence[int]) -> bytes | None:
        """The frame for the author of `numbers`, without the rows it knows by itself."""
        others = [row for row in self.rows if row.author != replica]
        if not self._streams(others, sum(map(_size, others))):
            return None
        return _frame(self.seq, self.token, tuple(numbers), others)

    def _streams(self, rows: Sequence[CommittedRow], size: int) -> bool:
        return self.all_rows and size <= LIVE_COMMIT_BYTES_MAX and len(rows) <= FRAME_ROWS_MAX


class Hub:
    """All greeted sessions of this process, by replica."""

    def __init__(self, *, head: int, registry: Sequence[Table]) -> None:
        """Start at the store's head with its registry."""
        self.head = head
        """The last commit known here; the store may be ahead."""
        self.registry = tuple(registry)
        self.history = 0
        """How often the database went back. What was asked before that is not answered after."""
        self._member_by_replica: dict[int, Member] = {}
        self._recent: deque[_Recent] = deque()
        self._recent_bytes = 0

    # Who is here

    def join(self, member: Member) -> bool:
        """Add a greeted session. An older one of the same replica ends as fenced; False when
        `member` itself is the older one, whose Hello was overtaken, and ended."""
        other = self._member_by_replica.get(member.replica)
        if other is not None and other.term > member.term:
            self.fence(member)
            return False
        if other is not None:
            self.fence(other)
        self._member_by_replica[member.replica] = member
        return True

    def leave(self, member: Member) -> None:
        """Forget a session. Harmless when repeated."""
        if self._member_by_replica.get(member.replica) is member:
            del self._member_by_replica[member.replica]

    def fence(self, member: Member) -> None:
        """End a session whose replica said Hello elsewhere."""
        self.leave(member)
        member.session.error(
            "fenced", "this replica connected again; this connection's pushes no longer count"
        )
        member.wake()

    # Commits

    def publish(
        self,
        seq: int,
        token: bytes,
        rows: Sequence[CommittedRow],
        acknowledged: Mapping[Member, Sequence[int]],
        repeated: Collection[Member] = (),
        *,
        all_rows: bool = True,
    ) -> None:
        """Tell everybody of a commit of this process, and its authors which of their changesets
        it holds. Without `all_rows` they all pull it. Those of `repeated` have some that were in
        before: they are told of all of theirs at once, as numbers have to be known in order, and
        pull the rows."""
        commit = _Recent(seq, token, rows, sum(map(_size, rows)), all_rows)
        self._remember(commit)
        for member in self._members():
            session = member.session
            numbers = acknowledged.get(member, ())
            streams = session.live_at == seq - 1
            if numbers:
                streams = streams and member not in repeated
                frame = commit.personal(member.replica, numbers) if streams else None
                session.own_commit(seq, numbers, frame, self.head)
            else:
                session.commit(seq, commit.shared() if streams else None, self.head)
            if session.unsent_bytes:
                member.wake()

    def catch_up(self, member: Member) -> None:
        """Send a session that just became live what was committed since its snapshot."""
        session = member.session
        while session.live_at is not None and session.live_at < self.head:
            oldest = self._recent[0].seq if self._recent else self.head + 1
            at = session.live_at + 1 - oldest
            frame = self._recent[at].shared() if 0 <= at < len(self._recent) else None
            session.commit(session.live_at + 1, frame, self.head)
        member.wake()

    def observe(self, seq: int, token: bytes, *, in_flight: bytes | None) -> bool:
        """Learn what the store said its head is; `in_flight` is the token of this process's own
        commit under way, which `publish` will bring. True when others committed."""
        if token == in_flight:
            seq -= 1
        if seq <= self.head:
            return False
        self._forget_recent()
        self.head = seq
        for member in self._members():
            member.session.behind(seq)
            member.wake()
        return True

    def go_back(self) -> None:
        """The database was restored: all sessions end, and their next Hello tells them what to do.
        Head and registry are unknown until somebody looks."""
        for member in self._members():
            self.leave(member)
            member.session.error("restored", "the relay's database went back to an earlier state")
            member.wake()
        self._forget_recent()
        self.head, self.registry = 0, ()
        self.history += 1

    # All else

    def grow(self, tables: Sequence[Table], besides: Member | None = None) -> None:
        """Take a registry that was read or described; when it has grown, send it to everybody but
        `besides`. An older reading that comes late changes nothing."""
        if _extent(tables) <= _extent(self.registry):
            return
        self.registry = tuple(tables)
        for member in self._members():
            if member is not besides:
                member.session.registry(self.registry)
                member.wake()

    def reject(
        self,
        member: Member,
        number: int,
        nonce: bytes,
        reason: str,
        message: str,
        rows: Sequence[tuple[int, bytes]] = (),
    ) -> None:
        """Tell an author that a changeset is not in, and which rows the reason concerns."""
        if self._is_here(member):
            member.session.rejected(number, nonce, reason, message, rows)
            member.wake()

    def fail(self, member: Member, message: str) -> None:
        """End one session because of an error here."""
        self.leave(member)
        member.session.error("internal", message)
        member.wake()

    def _members(self) -> list[Member]:
        return list(self._member_by_replica.values())

    def _is_here(self, member: Member) -> bool:
        return self._member_by_replica.get(member.replica) is member

    def _remember(self, commit: _Recent) -> None:
        if commit.seq <= self.head:
            return  # a later commit was seen first: sessions are past this one already
        if commit.seq != self.head + 1:
            self._forget_recent()
        self.head = commit.seq
        self._recent.append(commit)
        self._recent_bytes += commit.size
        while len(self._recent) > RECENT_MAX or self._recent_bytes > RECENT_BYTES_MAX:
            self._recent_bytes -= self._recent.popleft().size

    def _forget_recent(self) -> None:
        self._recent.clear()
        self._recent_bytes = 0


def _frame(seq: int, token: bytes, numbers: tuple[int, ...], rows: Iterable[CommittedRow]) -> bytes:
    """The Commit of these rows, grouped by table."""
    rows_by_table: dict[int, list[CommittedRow]] = {}
    for row in rows:
        rows_by_table.setdefault(row.row.table, []).append(row)
    sections = tuple(
        Section(table, tuple(row.row.key for row in own), tuple(row.document for row in own))
        for table, own in rows_by_table.items()
    )
    return encode(Commit(seq, token, numbers, sections))


def _size(row: CommittedRow) -> int:
    return len(row.document) + len(row.row.key)


def _extent(tables: Sequence[Table]) -> tuple[int, int]:
    """How much a registry holds; registries only grow."""
    return len(tables), sum(len(table.columns) for table in tables)
