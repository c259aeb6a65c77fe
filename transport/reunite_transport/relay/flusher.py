"""The one task of a relay process that commits. Owns the queue of pushed changesets.

It takes what is queued, up to bounds, as one batch, has `commit_batch` decide it in one
transaction, and hands the outcome to the hub. Each client's changesets stay in their order; a
client whose changeset is postponed waits alone, for longer each time, and after a few times the
rows of the first are waited for. A database that fails or goes away is tried again with the same
back-off, and connections stay. One that went back to an earlier state fails, too, until `service`
has noticed and has all that is queued dropped.

What backends wrote is folded with each batch, and by itself where there is none; also before the
batch where it is much, so that nobody waits for the verdict meanwhile.

An attempt that failed may have been committed all the same, its answer lost. Tried again, its
changesets are duplicates then, which `commit_batch` ignores; their authors connect again, and the
answer to their Hello says what is in.

An error of ours, not of the database, ends the session of the client whose changeset runs into
it. One that does so again and again is refused in the end, or its client would come back for ever.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from reunite_transport.messages import TOKEN_BYTES, EntryKind
from reunite_transport.relay.admission import Changeset, Refused
from reunite_transport.relay.commit import (
    Ignored,
    Outcome,
    Postponed,
    Repeated,
    Taken,
    commit_batch,
)
from reunite_transport.relay.hub import Hub, Member
from reunite_transport.relay.logs import told, trace
from reunite_transport.relay.store import BACKLOG_MAX, Store, StoreError, Unfoldable
from reunite_transport.relay.tally import UNCOUNTED, Tally
from reunite_transport.relay_session import PushReady

# Where bigger batches stop being faster; a changeset larger than this is a batch by itself.
BATCH_ROWS_MAX: Final = 5_000
# Of rows that are there already, which backends wait for until the commit: some 100 us for each.
BATCH_EDITS_MAX: Final = 300
BATCH_BYTES_MAX: Final = 16 << 20
# Above this, connections are not read until batches have gone through.
QUEUED_BYTES_MAX: Final = 128 << 20

# A backend holds a row for milliseconds, or for as long as somebody forgot to commit.
DELAY_SECONDS_MIN: Final = 0.05
DELAY_SECONDS_MAX: Final = 5.0

# So often a client is put off because of rows that a backend is at; then they are waited for, until
# a batch has all that it sent: a row that three backends update in a loop is seldom free at any
# moment.
WAITED_MAX: Final = 3

# So often a changeset may end its session by an error of ours; a passing one is over by then.
FAILURES_MAX: Final = 3
# Changesets with failures that are remembered, the latest ones; 100 bytes each.
FAILED_MAX: Final = 1_000


class CommitBatch(Protocol):
    """Decides a batch, and folds what backends wrote; see `commit_batch`."""

    def __call__(
        self, store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
    ) -> Awaitable[Outcome]:
        """Commit what can be taken of the batch."""
        ...


_log = logging.getLogger(__name__)


def random_token() -> bytes:
    """A name for a commit that no other has."""
    return secrets.token_bytes(TOKEN_BYTES)


@dataclass(slots=True)
class _Queued:
    """A changeset that waits for its verdict, with so many rows, of which some are `edits` of rows
    that are there; `unsure` when the outcome of an attempt was lost."""

    changeset: Changeset
    rows: int
    edits: int
    size: int
    unsure: bool = False


@dataclass(slots=True, eq=False)
class _Line:
    """One client's changesets, in order. `alone` keeps a line whose batch failed in batches of
    its own until one succeeds, so that nobody waits for what only this client runs into. `single`
    takes the changesets of such a line one by one, to tell which of them it is. `waited` counts how
    often in a row some were put off because of a lock."""

    member: Member
    queued: deque[_Queued] = field(default_factory=deque)
    size: int = 0
    not_before: float = 0.0
    delay: float = 0.0
    alone: bool = False
    single: bool = False
    waited: int = 0


class Flusher:
    """Commits what members push. `run` is its task; all else is called on the same loop."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        *,
        commit: CommitBatch = commit_batch,
        new_token: Callable[[], bytes] = random_token,
        delay_seconds_min: float = DELAY_SECONDS_MIN,
        delay_seconds_max: float = DELAY_SECONDS_MAX,
        queued_bytes_max: int = QUEUED_BYTES_MAX,
        metrics: Tally = UNCOUNTED,
    ) -> None:
        """Prepare to commit to `store` and to publish at `hub`."""
        self.in_flight: bytes | None = None
        """The token of the commit under way, for whoever sees it at the store's head first."""
        self.in_flight_since: float | None = None
        """When that commit began, on the loop's clock."""
        self.queued_bytes = 0
        self.unfoldable = False
        """True while what backends wrote cannot be folded, and nothing is committed."""
        self._store = store
        self._hub = hub
        self._commit = commit
        self._new_token = new_token
        self._delay_min = delay_seconds_min
        self._delay_max = delay_seconds_max
        self._queued_bytes_max = queued_bytes_max
        self._metrics = metrics
        # In the order in which they are served: who was served goes to the end.
        self._line_by_member: dict[Member, _Line] = {}
        # How often an error of ours ended an attempt at this (replica, nonce) by itself.
        self._failures: OrderedDict[tuple[int, bytes], int] = OrderedDict()
        # What backends wrote waits, so much of it as is known, to be folded from this time on; and
        # who waits for that.
        self._unfolded = 0
        self._fold_not_before = 0.0
        self._fold_delay = 0.0
        self._folds: list[asyncio.Future[None]] = []
        self._changed = asyncio.Event()
        self._shrunk = asyncio.Event()
        self._stopping = False

    @property
    def queued_changesets(self) -> int:
        """How many wait for their verdict, those of the batch under way among them."""
        return sum(len(line.queued) for line in self._line_by_member.values())

    def push(self, member: Member, push: PushReady) -> None:
        """Queue a changeset behind this member's others."""
        changeset = Changeset(
            replica=member.replica,
            term=member.term,
            number=push.number,
            nonce=push.nonce,
            loose=push.loose,
            sections=push.sections,
        )
        line = self._line_by_member.setdefault(member, _Line(member))
        edits = sum(section.kinds.count(EntryKind.PARTIAL) for section in push.sections)
        line.queued.append(_Queued(changeset, push.rows, edits, push.size))
        line.size += push.size
        self.queued_bytes += push.size
        self._changed.set()

    def fold_soon(self, waiting: int) -> None:
        """So many writes of backends wait to be folded."""
        self._unfolded = max(self._unfolded, waiting)
        self._changed.set()

    async def fold(self) -> None:
        """Return once what backends have written until now is folded. Raises StoreError."""
        if self._stopping:
            raise StoreError("the relay stops")
        waiter = asyncio.get_running_loop().create_future()
        self._folds.append(waiter)
        self.fold_soon(1)
        await waiter

    def forget(self, member: Member) -> None:
        """Drop what a member still has queued. What is in a batch already may be committed; the
        client's next Hello finds out."""
        line = self._line_by_member.pop(member, None)
        if line is not None:
            self._shrink(line, line.size)

    def forget_all(self) -> None:
        """Drop what everybody has queued: it was made for another history of the database, in which
        tables may have other numbers."""
        for member in list(self._line_by_member):
            self.forget(member)

    async def wait_for_room(self, member: Member) -> None:
        """Return once this member may push more: the queue is below its limit, or the member's
        part of it is small. So one client, postponed for long, does not hold up the others."""
        while not self._stopping and self.queued_bytes > self._queued_bytes_max:
            line = self._line_by_member.get(member)
            if line is None or line.size <= self._queued_bytes_max / len(self._line_by_member):
                return
            await self._shrunk.wait()

    def stop(self) -> None:
        """Let `run` end after the batch under way. What is still queued is pushed again later."""
        self._stopping = True
        self._changed.set()
        self._shrink_signal()

    async def run(self) -> None:
        """Commit batches until stopped."""
        try:
            while not self._stopping:
                now = asyncio.get_running_loop().time()
                folds = self._unfolded > 0 and self._fold_not_before <= now
                # Much is folded by itself.
                much = folds and self._unfolded >= BACKLOG_MAX
                batch = [] if much else self._take_batch(now)
                if batch or folds:
                    await self._flush(batch)
                else:
                    await self._wait(now)
        finally:
            self._answer_folds(self._folds, StoreError("the relay stops"))

    async def _wait(self, now: float) -> None:
        """Wait for a push or for the end of a back-off."""
        times = [line.not_before for line in self._line_by_member.values()]
        if self._unfolded:
            times.append(self._fold_not_before)
        try:
            async with asyncio.timeout(max(0.0, min(times) - now) if times else None):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    def _take_batch(self, now: float) -> list[tuple[_Line, list[_Queued]]]:
        """What to commit next, in order, from as many lines as the bounds allow. It stays in its
        lines until there is a verdict."""
        batch: list[tuple[_Line, list[_Queued]]] = []
        rows = edits = size = 0
        for line in list(self._line_by_member.values()):
            # Who is waited for stands first, so that nothing is held meanwhile.
            first = line.alone or line.waited > WAITED_MAX
            if line.not_before > now or (first and batch):
                continue
            taken: list[_Queued] = []
            for queued in line.queued:
                full = (
                    rows + queued.rows > BATCH_ROWS_MAX
                    or edits + queued.edits > BATCH_EDITS_MAX
                    or size + queued.size > BATCH_BYTES_MAX
                )
                if full and (batch or taken):
                    break
                taken.append(queued)
                rows += queued.rows
                edits += queued.edits
                size += queued.size
                if line.single:
                    break
            if not taken:
                break
            batch.append((line, taken))
            # To the end, so that one who pushes without pause does not keep the others waiting.
            self._line_by_member[line.member] = self._line_by_member.pop(line.member)
            if line.alone:
                break
        return batch

    async def _flush(self, batch: list[tuple[_Line, list[_Queued]]]) -> None:
        """Commit one batch and what backends wrote, and answer its authors."""
        changesets = [queued.changeset for _, taken in batch for queued in taken]
        self.in_flight = token = self._new_token()
        self.in_flight_since = asyncio.get_running_loop().time()
        history = self._hub.history
        patiently = any(line.waited > WAITED_MAX for line, _ in batch)
        folds, self._folds = self._folds, []
        self._unfolded = 0
        failed: Exception | None = None
        try:
            outcome = await self._commit(self._store, changesets, token, patiently=patiently)
            self._count(outcome, self.in_flight_since)
            # What was committed to a history that is lost meanwhile is lost with it.
            if self._hub.history == history:
                self._deliver(batch, outcome)
        except StoreError as error:
            failed = error
            self._metrics.failed()
            _log.warning(
                "a batch of %d changesets is tried again: %s", len(changesets), told(error)
            )
            if isinstance(error, Unfoldable):
                if not self.unfoldable:
                    _log.error("%s\n%s", error, trace(error))
                self.unfoldable = True
            self._try_again(batch)
        except Exception as error:
            failed = error
            # Ours to repair. The batch is tried in parts, and only the client whose changeset
            # fails by itself is sent away.
            self._metrics.failed()
            _log.error("a batch of %d changesets failed\n%s", len(changesets), trace(error))
            self._try_again(batch)
            if len(batch) == 1:
                line, taken = batch[0]
                line.single = True
                if len(taken) == 1:
                    self._blame(line, taken[0].changeset, error)
        finally:
            self.in_flight = self.in_flight_since = None
            self._answer_folds(folds, failed)
            if failed is not None and not batch:
                self._put_off_folding()
            elif failed is None:
                self.unfoldable = False
                self._fold_delay = self._fold_not_before = 0.0

    def _put_off_folding(self) -> None:
        """Fold what is there a while later; whoever looks says again that something is."""
        self._fold_delay = min(max(2 * self._fold_delay, self._delay_min), self._delay_max)
        self._fold_not_before = asyncio.get_running_loop().time() + self._fold_delay

    def _answer_folds(
        self, folds: Sequence["asyncio.Future[None]"], failed: Exception | None
    ) -> None:
        for waiter in folds:
            if waiter.done():
                continue
            if failed is None:
                waiter.set_result(None)
            else:
                said = failed if isinstance(failed, StoreError) else StoreError(told(failed))
                waiter.set_exception(said)

    def _count(self, outcome: Outcome, since: float) -> None:
        """Count and log what was committed, if anything was."""
        if outcome.seq is None:
            return
        if outcome.folded:
            self._metrics.folded(outcome.folded)
        changesets, rows = outcome.verdicts.count(Taken()), len(outcome.rows)
        seconds = asyncio.get_running_loop().time() - since
        self._metrics.committed(changesets=changesets, rows=rows, seconds=seconds)
        facts = {
            "seq": outcome.seq,
            "changesets": changesets,
            "rows": rows,
            "seconds": round(seconds, 6),
        }
        _log.debug(
            "commit %(seq)d: %(rows)d rows of %(changesets)d changesets in %(seconds).3f s",
            facts,
            extra=facts,
        )

    def _blame(self, line: _Line, changeset: Changeset, error: Exception) -> None:
        """End the session of a changeset that fails by itself, or, when that did not help a few
        times, refuse the changeset."""
        self._end(line)
        name = (changeset.replica, changeset.nonce)
        failures = self._failures.pop(name, 0) + 1
        if failures < FAILURES_MAX:
            self._failures[name] = failures
            while len(self._failures) > FAILED_MAX:
                self._failures.popitem(last=False)
            self._hub.fail(line.member, "the relay failed to commit; connect again")
            return
        message = (
            f"the relay failed {failures} times at this changeset ({type(error).__name__}) and"
            " gives up; whoever runs it finds the cause in its log"
        )
        self._reject(line.member, changeset, Refused("invalid", message))

    def _reject(self, member: Member, changeset: Changeset, refused: Refused) -> None:
        """Tell an author that a changeset is not in, and the log as much as it may know."""
        self._metrics.rejected(refused.reason)
        pushed = {section.table for section in changeset.sections}
        names = [table.name for table in self._hub.registry if table.id in pushed]
        facts = {
            "replica": f"{member.replica:016x}",
            "number": changeset.number,
            "reason": refused.reason,
            "table": refused.table or ", ".join(names),
            "constraint": refused.constraint,
        }
        _log.info(
            "changeset %(number)d of replica %(replica)s is rejected: %(reason)s"
            " (table %(table)r, constraint %(constraint)r)",
            facts,
            extra=facts,
        )
        self._hub.reject(
            member,
            changeset.number,
            changeset.nonce,
            refused.reason,
            refused.message,
            [(row.table, row.key) for row in refused.rows],
        )

    def _deliver(self, batch: list[tuple[_Line, list[_Queued]]], outcome: Outcome) -> None:
        """Settle each changeset of the batch, publish the commit, then state the bad news: an
        author reads that its earlier changesets are in before it reads that a later one is not."""
        acknowledged: dict[Member, list[int]] = {}
        repeated: set[Member] = set()
        refusals: list[tuple[Member, Changeset, Refused]] = []
        ignored: list[tuple[Member, bool]] = []
        verdicts = iter(outcome.verdicts)
        for line, taken in batch:
            verdict_by_queued = [(queued, next(verdicts)) for queued in taken]
            line.alone = line.single
            postponed = any(verdict == Postponed() for _, verdict in verdict_by_queued)
            line.waited = line.waited + 1 if postponed else 0
            if self._line_by_member.get(line.member) is not line:
                continue  # forgotten meanwhile
            for queued, verdict in verdict_by_queued:
                match verdict:
                    case Taken():
                        self._settle(line, queued)
                        acknowledged.setdefault(line.member, []).append(queued.changeset.number)
                    case Repeated():
                        self._settle(line, queued)
                        acknowledged.setdefault(line.member, []).append(queued.changeset.number)
                        repeated.add(line.member)
                    case Refused():
                        refusals.append((line.member, queued.changeset, verdict))
                        self._end(line)
                        break
                    case Postponed():
                        self._metrics.postponed()
                        self._put_off(line)
                        break
                    case Ignored():
                        ignored.append((line.member, queued.unsure))
                        self._end(line)
                        break
            if not line.queued:
                self._end(line)
        if outcome.seq is not None:
            self._hub.publish(
                outcome.seq,
                outcome.token,
                outcome.rows,
                acknowledged,
                repeated,
                all_rows=outcome.all_rows,
            )
        for member, changeset, refused in refusals:
            self._reject(member, changeset, refused)
        for member, unsure in ignored:
            if unsure:
                self._hub.fail(member, "the outcome of a commit was lost; connect again")
            else:
                self._hub.fence(member)

    def _settle(self, line: _Line, queued: _Queued) -> None:
        assert line.queued[0] is queued, "verdicts come in the order of the line"
        line.queued.popleft()
        self._shrink(line, queued.size)
        self._failures.pop((queued.changeset.replica, queued.changeset.nonce), None)
        line.delay = line.not_before = 0.0

    def _try_again(self, batch: list[tuple[_Line, list[_Queued]]]) -> None:
        for line, taken in batch:
            line.alone = True
            self._put_off(line)
            for queued in taken:
                queued.unsure = True

    def _put_off(self, line: _Line) -> None:
        line.delay = min(max(2 * line.delay, self._delay_min), self._delay_max)
        line.not_before = asyncio.get_running_loop().time() + line.delay

    def _end(self, line: _Line) -> None:
        """Let go of a line, if it is still there."""
        if self._line_by_member.get(line.member) is line:
            self.forget(line.member)

    def _shrink(self, line: _Line, size: int) -> None:
        line.size -= size
        self.queued_bytes -= size
        self._shrink_signal()

    def _shrink_signal(self) -> None:
        """Wake who waits now, and nobody who comes to wait later."""
        self._shrunk.set()
        self._shrunk = asyncio.Event()
