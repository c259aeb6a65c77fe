"""Arbitration: turns a batch of pushed changesets into one commit. Knows no database.

Every changeset is taken whole or not at all, in the order of its client's numbers. All are merged
in memory and written in one piece; when the database refuses that, the batch is halved and merged
again on what was taken so far, until the one bad changeset stands alone.

What backends wrote comes first. Then the rows of the batch are held, and what backends wrote until
then is folded, too: so whatever a backend did to one of them is either folded, and merged with, or
not done yet. That is little, as most was folded while nobody waited for these rows. A changeset
with a row that a backend is at waits, and with it its client's later ones.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from reunite.cells.kinds import Author
from reunite.cells.register import Value, same
from reunite.clock import NEVER, stamp, time_of
from reunite.columns import columns_of
from reunite.document import (
    CELLS_MAX,
    DOCUMENT_BYTES_MAX,
    EMPTY,
    KIND_MASK,
    Document,
    cell_key,
    decode,
    encode,
    fits_onto,
    heavy_cells,
    merge,
)
from reunite.errors import FormatError
from reunite.keys import unpack_key
from reunite.overwritten import Loss, losses
from reunite.schema import ForeignKey, Table, ascii_lower
from reunite_transport.messages import MESSAGE_CHARS_MAX
from reunite_transport.relay.admission import (
    Changeset,
    Entry,
    Refusal,
    Refused,
    checked,
    is_delta,
    size_bound,
)
from reunite_transport.relay.backend import Edits, Folded, fold
from reunite_transport.relay.store import (
    Accepted,
    Busy,
    RowChange,
    RowId,
    Standing,
    Store,
    StoreTransaction,
    Violation,
)
from reunite_transport.relay.trial import Trials


@dataclass(frozen=True, slots=True)
class Taken:
    """The changeset is in this commit."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """A lock stood in the way: push it again later, as it is, and what follows after it."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """It is in under this nonce already, from a file that this one is a copy of, or that is a copy
    of this one. Its number counts as accepted."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing to say: a duplicate, a gap, an older session's, or after a refused one."""


Verdict: TypeAlias = Taken | Repeated | Refused | Postponed | Ignored


@dataclass(frozen=True, slots=True)
class CommittedRow:
    """A row to state to clients. `author` is the one replica whose entries, joined with what was
    there, are exactly this document, so that it may join them itself; else None."""

    row: RowId
    document: bytes
    author: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch. `seq` is None when nothing was taken and nothing committed;
    `verdicts` stand in the order of the batch. Where `rows` are not all of the commit's, as there
    are too many of them, it can only be read from the feed. `folded` counts writes of backends."""

    seq: int | None
    token: bytes
    rows: tuple[CommittedRow, ...]
    verdicts: tuple[Verdict, ...]
    all_rows: bool = True
    folded: int = 0


# While rows are held, no more than about so many writes should be left to fold: milliseconds. Where
# backends write faster than they are folded that is never so, hence the end.
_FEW_WRITES: Final = 50
_FOLDS_MAX: Final = 4


async def commit_batch(
    store: Store,
    batch: Sequence[Changeset],
    token: bytes,
    *,
    refill: bool = True,
    history: bool = True,
    patiently: bool = False,
) -> Outcome:
    """Commit what backends wrote and what can be taken of a batch, as one commit with this token.
    With `refill` false what is offered after a restore is refused; with `history` what is
    overwritten is kept; `patiently` rows of the first changeset that a backend is at are waited
    for, for a moment.

    Raises StoreError when the database fails. It may then be committed all the same; clients that
    connect again learn which of their changesets are in.
    """
    async with Trials() as trials, store.begin() as transaction:
        standings = await transaction.standings(sorted({c.replica for c in batch}))
        tables = {table.id: table for table in transaction.tables}
        commit = _Commit(transaction, trials, store.replica, tables, refill=refill)
        repeated = await transaction.accepted_nonces([c.nonce for c in batch])
        candidates = commit.admit(batch, standings, repeated)
        folded = Folded()
        for _ in range(_FOLDS_MAX if candidates else 1):
            known = folded.count
            await fold(transaction, store.replica, folded, history=history)
            if folded.count - known <= _FEW_WRITES:
                break
        if candidates:
            await commit.hold(candidates, patiently=patiently)
            await fold(transaction, store.replica, folded, history=history)
        rows = dict.fromkeys(entry.row for c in candidates for entry in c.entries)
        commit.load(await transaction.documents(list(rows)), folded)
        await commit.attempt(candidates)
        verdicts = tuple(commit.verdicts)
        if Taken() not in verdicts and Repeated() not in verdicts and not folded.count:
            return Outcome(None, b"", (), verdicts)
        changed, stated = commit.result()
        accepted = [
            Accepted(changeset.replica, changeset.number, changeset.nonce)
            for changeset, verdict in zip(batch, verdicts, strict=True)
            if isinstance(verdict, Taken | Repeated)
        ]
        await transaction.finish(token, changed, accepted, commit.losses if history else {})
    all_rows = folded.rows is not None
    return Outcome(transaction.seq, token, stated, verdicts, all_rows, folded.count)


@dataclass(frozen=True, slots=True)
class _Candidate:
    place: int
    replica: int
    entries: Sequence[Entry]


@dataclass(slots=True)
class _Draft:
    """What taking some candidates would do to the documents, before the database agreed."""

    documents: dict[RowId, Document] = field(default_factory=dict)
    # At most the bytes of each of them.
    sizes: dict[RowId, int] = field(default_factory=dict)
    # Who changed a row; None stands for the relay, and for an entry that was not applied as sent.
    authors: dict[RowId, set[int | None]] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    # What was overwritten of rows that were there, in order.
    losses: list[tuple[RowId, Loss]] = field(default_factory=list)

    def add_author(self, row: RowId, author: int | None) -> None:
        authors = self.authors.get(row)
        if authors is None:
            self.authors[row] = {author}
        else:
            authors.add(author)


class _Commit:
    """The state of one arbitration."""

    def __init__(
        self,
        transaction: StoreTransaction,
        trials: Trials,
        replica: int,
        tables: Mapping[int, Table],
        *,
        refill: bool,
    ) -> None:
        self.verdicts: list[Verdict] = []
        self.losses: dict[RowId, list[Loss]] = {}
        self._transaction = transaction
        self._trials = trials
        self._replica = replica
        # Its id is new at every start, so it numbers this run of the process as well.
        self._author = Author(replica, replica)
        self._tables = tables
        self._refill = refill
        self._now = transaction.now_ms << 16
        self._stored: dict[RowId, bytes] = {}
        self._documents: dict[RowId, Document] = {}
        self._sizes: dict[RowId, int] = {}
        self._authors: dict[RowId, set[int | None]] = {}
        # What backends wrote, as this commit recorded it.
        self._folded: dict[RowId, bytes] = {}
        # Replicas of which a changeset was not taken, and what that means for their later ones.
        self._halted: dict[int, Verdict] = {}

    def admit(
        self,
        batch: Sequence[Changeset],
        standings: Mapping[int, Standing],
        repeated: Collection[bytes],
    ) -> list[_Candidate]:
        """Check what needs no document: terms, numbers, nonces, form and stamps. `repeated` are
        the nonces under which changesets are in already."""
        seen: set[bytes] = set()
        expected = {replica: standing.last + 1 for replica, standing in standings.items()}
        candidates = []
        for place, changeset in enumerate(batch):
            self.verdicts.append(Ignored())
            standing = standings.get(changeset.replica)
            if standing is None or changeset.term != standing.term:
                continue
            if changeset.number != expected[changeset.replica]:
                continue
            twice = changeset.nonce in seen
            if twice or changeset.nonce in repeated:
                # Of two copies in one batch the second waits, as the first may be refused yet.
                self.verdicts[place] = Postponed() if twice else Repeated()
                expected[changeset.replica] += 1
                candidates.append(_Candidate(place, changeset.replica, ()))
                continue
            seen.add(changeset.nonce)
            try:
                entries = checked(
                    changeset, self._tables, self._transaction.now_ms, refill=self._refill
                )
            except Refusal as refusal:
                self.verdicts[place] = refusal.verdict
                # No later number fits any more. Whether this verdict stands depends on the
                # earlier ones: see `_conclude`.
                expected[changeset.replica] = 0
                candidates.append(_Candidate(place, changeset.replica, ()))
            else:
                expected[changeset.replica] += 1
                candidates.append(_Candidate(place, changeset.replica, entries))
        return candidates

    async def hold(self, candidates: Sequence[_Candidate], *, patiently: bool) -> None:
        """Keep backends from the rows of these candidates, and postpone those of which a backend
        keeps one from us."""
        if patiently and len(candidates) > 1:
            # Of the first one only: whoever waits for a row that is held waits for all of this.
            await self.hold(candidates[:1], patiently=True)
            candidates, patiently = candidates[1:], False
        rows = sorted({entry.row for c in candidates for entry in c.entries})
        if not rows:
            return
        try:
            async with self._transaction.savepoint():
                held = set(await self._transaction.hold(rows, patiently=patiently))
        except (Violation, Busy) as error:
            if len(candidates) > 1:
                for candidate in candidates:
                    await self.hold([candidate], patiently=False)
            else:
                self.verdicts[candidates[0].place] = _meaning(error)
            return
        for candidate in candidates if held else ():
            if not held.isdisjoint(entry.row for entry in candidate.entries):
                self.verdicts[candidate.place] = Postponed()

    def load(self, documents: Mapping[RowId, bytes], folded: Folded) -> None:
        """Take the documents as they are before the batch, and what was folded before them."""
        self._folded = folded.rows or {}
        # A row that a backend changed as well is not just its author's.
        self._authors = {row: {None} for row in documents if row in self._folded}
        self._stored = dict(documents)
        self._documents = {row: decode(data) for row, data in documents.items()}
        self._sizes = {
            row: size_bound(data, self._documents[row]) for row, data in documents.items()
        }

    async def attempt(self, candidates: Sequence[_Candidate]) -> None:
        """Take as many as the database lets in, in order."""
        draft = await self._draft(candidates)
        changes = [
            RowChange(row, self._documents.get(row, EMPTY), document)
            for row, document in draft.documents.items()
        ]
        try:
            if changes:
                async with self._transaction.savepoint():
                    made = await self._transaction.write_rows(changes)
                    self._edit(draft, made)
                    await self._follow(draft)
        except (Violation, Busy, FormatError, Refusal) as error:
            if len(candidates) > 1:
                half = len(candidates) // 2
                await self.attempt(candidates[:half])
                await self.attempt(candidates[half:])
                return
            self._conclude({candidates[0].place: _meaning(error)}, candidates)
            return
        self._documents.update(draft.documents)
        self._sizes.update(draft.sizes)
        for row, authors in draft.authors.items():
            self._authors.setdefault(row, set()).update(authors)
        for row, loss in draft.losses:
            self.losses.setdefault(row, []).append(loss)
        self._conclude(draft.verdicts, candidates)

    def result(self) -> tuple[dict[RowId, bytes], tuple[CommittedRow, ...]]:
        """The documents that changed, and all rows to state."""
        changed: dict[RowId, bytes] = {}
        stated = []
        for row, authors in self._authors.items():
            document = self._documents.get(row)
            if document is None:
                continue  # an entry was dropped for a row that nobody has
            data = encode(document)
            author = next(iter(authors)) if len(authors) == 1 else None
            if data != self._stored.get(row):
                changed[row] = data
            elif author is not None:
                continue
            stated.append(CommittedRow(row, data, author))
        stated += [
            CommittedRow(row, data, None)
            for row, data in self._folded.items()
            if row not in self._authors
        ]
        return changed, tuple(stated)

    async def _draft(self, candidates: Iterable[_Candidate]) -> _Draft:
        draft = _Draft()
        halted = dict(self._halted)
        for candidate in candidates:
            verdict = halted.get(candidate.replica)
            if verdict is None:
                verdict = self.verdicts[candidate.place]
                if not isinstance(verdict, Refused | Repeated | Postponed):
                    verdict = await self._merged(candidate, draft)
                after = _after(verdict)
                if after is not None:
                    halted[candidate.replica] = after
            draft.verdicts[candidate.place] = verdict
        return draft

    async def _merged(self, candidate: _Candidate, draft: _Draft) -> Verdict:
        """Merge a changeset into the draft, or leave the draft as it was and say why not."""
        try:
            await self._merge(candidate, draft)
        except (FormatError, Refusal) as error:
            return _meaning(error)
        return Taken()

    async def _merge(self, candidate: _Candidate, draft: _Draft) -> None:
        merged: dict[RowId, Document] = {}
        sizes: dict[RowId, int] = {}
        authors: list[tuple[RowId, int | None]] = []
        lost: list[tuple[RowId, Loss]] = []
        known, drafted = self._documents, draft.documents
        for row, entry, kind, size, derived, merging in candidate.entries:
            before = merged.get(row) or drafted.get(row) or known.get(row)
            if before is None and is_delta(kind, entry):
                partial = [e.row for e in candidate.entries if is_delta(e.kind, e.document)]
                raise Refusal(
                    "need-whole",
                    f"{self._row_name(row)} is not known here",
                    dict.fromkeys(r for r in partial if r not in known and r not in drafted),
                )
            # A row that nobody has is new, whatever made its author's database write it.
            if derived and before is not None and not self._still_refers(row, before, derived):
                authors.append((row, None))
                continue
            if merging:
                if not fits_onto(before, entry):
                    lacking = f"{self._row_name(row)} lacks here what an edit builds on"
                    raise Refusal("need-whole", lacking, [row])
                await self._trials.hold(heavy_cells(before, entry))
            if before is not None:
                lost += [(row, loss) for loss in losses(before, entry)]
            after = entry if before is None else merge(before, entry)
            # `merge` hands the same cells back when none was replaced.
            if before is None or after.cells is not before.cells or after[:3] != before[:3]:
                if before is not None:
                    size += sizes.get(row) or draft.sizes.get(row) or self._sizes[row]
                merged[row] = after
                sizes[row] = self._size(row, after, size)
                authors.append((row, candidate.replica))
        drafted.update(merged)
        draft.sizes.update(sizes)
        draft.losses += lost
        for row, author in authors:
            draft.add_author(row, author)

    def _size(self, row: RowId, document: Document, bound: int) -> int:
        """`bound`, or a closer one where it says too little. Raises Refusal for a document that
        nobody would take: two of an allowed size can join to one that is over it."""
        if bound <= DOCUMENT_BYTES_MAX and len(document.cells) <= CELLS_MAX:
            return bound
        data = encode(document)
        if len(data) > DOCUMENT_BYTES_MAX or len(document.cells) > CELLS_MAX:
            raise Refusal(
                "too-large",
                f"{self._row_name(row)} would have {len(document.cells)} cells and {len(data)}"
                f" bytes, over the {CELLS_MAX} cells or {DOCUMENT_BYTES_MAX} bytes of a row",
            )
        return size_bound(data, document)

    def _still_refers(
        self, row: RowId, before: Document, derived: Sequence[tuple[int, bytes]]
    ) -> bool:
        """Whether the child, as merged so far, still points at one of the parents by whose
        deletion its author's database changed it."""
        child = self._tables[row.table]
        return any(
            _refers(foreign_key, child, before, self._tables[parent], unpack_key(key))
            for parent, key in derived
            for foreign_key in child.foreign_keys
            if ascii_lower(foreign_key.parent) == ascii_lower(self._tables[parent].name)
        )

    def _edit(self, draft: _Draft, made: Mapping[RowId, Mapping[int, object]]) -> None:
        """What the database made different is an edit by the relay."""
        for row, values in made.items():
            document = draft.documents[row]
            if not document.alive:
                # The database kept it.
                revived = stamp(max(self._now, time_of(document.deleted) + 1), self._replica)
                document = document._replace(edited=revived)
            cells = document.cells.copy()
            size = draft.sizes[row]
            for column, value in values.items():
                assert value is None or isinstance(value, int | float | str | bytes)
                columns = columns_of(self._tables[row.table].cells)
                edit = columns.edit(document, cell_key(column), value, self._author)
                # Above all cells of the column, or another of them would go on showing.
                marks = [cells[k][0] for k in cells if k & ~KIND_MASK == edit.key & ~KIND_MASK]
                seen = time_of(max(marks, default=NEVER))
                cells[edit.key] = (stamp(max(self._now, seen + 1), self._replica), edit.after)
                size += _VALUE_OVERHEAD + (4 * len(value) if isinstance(value, str | bytes) else 0)
            draft.documents[row] = document._replace(cells=cells)
            draft.sizes[row] = self._size(row, draft.documents[row], size)
            draft.add_author(row, None)

    async def _follow(self, draft: _Draft) -> None:
        """What triggers and foreign keys did to other rows because of this is an edit by the relay,
        as what a backend does is."""
        found = await self._transaction.consequences()
        if not found:
            return
        edits = Edits(self._tables, self._replica, self._transaction.now_ms)
        steps = edits.steps(found)
        rows = dict.fromkeys(row for row, _ in steps)
        unknown = [row for row in rows if row not in draft.documents and row not in self._documents]
        for row, data in (await self._transaction.documents(unknown)).items():
            self._stored[row] = data
            self._documents[row] = decode(data)
        known = {
            row: document
            for row in rows
            if (document := draft.documents.get(row) or self._documents.get(row)) is not None
        }
        made, lost = edits.applied(steps, known)
        for row, document in made.items():
            draft.documents[row] = document
            draft.sizes[row] = self._size(row, document, DOCUMENT_BYTES_MAX + 1)
            draft.add_author(row, None)
        draft.losses += [(row, loss) for row, some in lost.items() for loss in some]

    def _conclude(self, verdicts: Mapping[int, Verdict], candidates: Sequence[_Candidate]) -> None:
        for candidate in candidates:
            verdict = verdicts[candidate.place]
            self.verdicts[candidate.place] = verdict
            after = _after(verdict)
            if after is not None:
                self._halted.setdefault(candidate.replica, after)

    def _row_name(self, row: RowId) -> str:
        return f"a row of {self._tables[row.table].name!r}"


def _meaning(error: Violation | Busy | FormatError | Refusal) -> Verdict:
    """What a changeset that failed by itself gets."""
    if isinstance(error, Refusal):
        return error.verdict
    if isinstance(error, FormatError):
        return Refused("invalid", str(error)[:MESSAGE_CHARS_MAX])
    if isinstance(error, Violation):
        return Refused(
            "constraint",
            str(error)[:MESSAGE_CHARS_MAX],
            table=error.table,
            constraint=error.constraint,
        )
    return Postponed()


# What a cell can cost beside its value: a stamp, the stamp's number, the key, a head.
_VALUE_OVERHEAD: Final = 16 + 3 + 5 + 9


def _after(verdict: Verdict) -> Verdict | None:
    """What the later changesets of the same replica get."""
    if isinstance(verdict, Refused):
        return Ignored()
    return verdict if isinstance(verdict, Postponed) else None


def _refers(
    foreign_key: ForeignKey,
    child: Table,
    document: Document,
    parent: Table,
    parent_key: Sequence[Value],
) -> bool:
    """Whether the child's foreign key holds the parent's key. A part of the child's own key never
    changes, so it does; a reference to other columns than the key is taken to hold."""
    value_by_column = dict(zip((c.name for c in parent.key), parent_key, strict=True))
    for own_name, parent_name in zip(foreign_key.columns, foreign_key.parent_columns, strict=True):
        own, referred = child.column(own_name), parent.column(parent_name)
        if own is None or referred is None or own.key or not referred.key:
            continue
        cell = document.cells.get(cell_key(own.id))
        if cell is None or not same(cell[1], value_by_column[referred.name]):
            return False
    return True
