"""Canaries: engines that are broken on purpose, each in one way that has lost data somewhere.

A checker that has never failed proves nothing. Every canary must be caught by some checker within
`SEEDS_MAX` seeds; the tests pin a seed that catches each. The last is the engine as it was before a
world found what was wrong with it. Those of what backends write are in `backend_canaries`.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias
from unittest.mock import patch

from reunite import columns, document, fold, inbox, outbox, rebase, replica, verdicts
from reunite.cells import counter, yjs
from reunite.cells.kinds import Author, Edit
from reunite.cells.text_edit import Replacement
from reunite.document import KIND_MASK, Document, decode
from reunite.payload import Entry, StatedRows, Statement
from reunite.replica import Replica
from reunite.shape import Shape
from reunite.state import State, StateCache
from reunite_simulations.backend_canaries import BACKEND_CANARIES
from reunite_transport.messages import Verdict
from reunite_transport.relay import service, sqlite_store
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.commit import Outcome, commit_batch
from reunite_transport.relay.flusher import Flusher
from reunite_transport.relay.hub import Hub
from reunite_transport.relay.sqlite_bookkeeping import Head, read_head
from reunite_transport.relay.sqlite_store import SqliteStore
from reunite_transport.relay.store import FeedPage, Greeting, Store, StoreError

SEEDS_MAX: Final = 200

Canary: TypeAlias = Callable[[], AbstractContextManager[object]]


@contextmanager
def acknowledges_before_commit() -> Iterator[None]:
    """The relay says that a batch is in, and then the commit fails."""
    count = 0

    async def commit(
        store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
    ) -> Outcome:
        nonlocal count
        count += 1
        if count % 25:
            return await commit_batch(store, batch, token, patiently=patiently)
        real = type(store).begin

        def begin(self: Store) -> Any:
            return _undone(real(self))

        with patch.object(type(store), "begin", begin):
            return await commit_batch(store, batch, token, patiently=patiently)

    class Hasty(Flusher):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **(named | {"commit": commit}))

    with patch.object(service, "Flusher", Hasty):
        yield


class _undone:
    """A transaction whose block ends as if all were well, and is rolled back."""

    def __init__(self, real: Any) -> None:
        self._real = real

    async def __aenter__(self) -> Any:
        return await self._real.__aenter__()

    async def __aexit__(self, *_error: object) -> bool:
        error = StoreError("lost")
        with suppress(StoreError):
            await self._real.__aexit__(StoreError, error, None)
        return True


def forgets_what_is_in() -> AbstractContextManager[object]:
    """A reconnect does not hear which of its changesets are in."""
    real = SqliteStore.greet

    async def greet(self: SqliteStore, *arguments: Any) -> Greeting:
        return replace(await real(self, *arguments), known=())

    return patch.object(SqliteStore, "greet", greet)


def drops_a_row() -> AbstractContextManager[object]:
    """One row in some hundred that the relay states is not taken in."""
    count = 0
    real = Replica.receive

    def receive(self: Replica, statement: Statement, **named: Any) -> bool:
        nonlocal count
        rows = []
        for section in statement.rows:
            count += len(section.keys)
            if count > 150:
                count = 0
                section = StatedRows(section.table, section.keys[1:], section.documents[1:])
            rows.append(section)
        return real(self, statement._replace(rows=rows), **named)

    return patch.object(Replica, "receive", receive)


def moves_the_cursor_past_the_head() -> AbstractContextManager[object]:
    """A complete page says that it holds a commit more than it does."""
    real = SqliteStore.page

    async def page(self: SqliteStore, *arguments: Any, **named: Any) -> FeedPage:
        found = await real(self, *arguments, **named)
        ahead = found.complete and found.seq % 7 == 6
        return replace(found, seq=found.seq + 1) if ahead else found

    return patch.object(SqliteStore, "page", page)


def applies_half_of_a_commit() -> AbstractContextManager[object]:
    """A commit's second half shows with the next one."""
    left: dict[int, list[StatedRows]] = {}
    real = Replica.receive

    def receive(self: Replica, statement: Statement, **named: Any) -> bool:
        rows = [*left.pop(id(self), []), *statement.rows]
        if statement.complete and len(rows) == 1 and len(rows[0].keys) > 1:
            (section,) = rows
            half = len(section.keys) // 2
            left[id(self)] = [
                StatedRows(section.table, section.keys[half:], section.documents[half:])
            ]
            rows = [StatedRows(section.table, section.keys[:half], section.documents[:half])]
        return real(self, statement._replace(rows=rows), **named)

    return patch.object(Replica, "receive", receive)


@contextmanager
def stamps_by_the_wall_clock() -> Iterator[None]:
    """An edit's stamp is what the clock said, whatever it had seen and however wrong it is."""

    def edit_time(recorded_ms: int, _offset_ms: int, _seen: int) -> int:
        return max(recorded_ms << 16, 1)

    with patch.object(fold, "edit_time", edit_time), patch.object(outbox, "edit_time", edit_time):
        yield


def keeps_its_replica_id() -> AbstractContextManager[object]:
    """A copied file goes on under the id of its original."""
    real = verdicts.rejoin

    def rejoin(state: State, known: Sequence[tuple[int, int]]) -> None:
        replica = state.meta.replica
        real(state, known)
        state.meta.replica = replica
        state.save("replica")

    return patch.object(verdicts, "rejoin", rejoin)


def shows_without_merging() -> AbstractContextManager[object]:
    """What arrives replaces what is pending in the tables."""

    def merge(stated: Document, _pending: Document) -> Document:
        return stated

    return patch.object(inbox, "merge", merge)


def reverts_by_merging() -> AbstractContextManager[object]:
    """A refused change is merged with the base instead of taken back."""

    def keep(_state: State, _rows: object, _adopted: object) -> None:
        return None

    return patch.object(verdicts, "_revert", keep)


def knows_duplicates_by_number() -> AbstractContextManager[object]:
    """A reconnect's changesets are in if their numbers are, whatever they hold."""

    def compared(
        acknowledged: int,
        _last: int,
        nonces: Sequence[bytes],
        accepted: Sequence[tuple[int, bytes, int]],
    ) -> tuple[Verdict, tuple[tuple[int, int], ...]]:
        numbers = range(acknowledged + 1, acknowledged + 1 + len(nonces))
        return Verdict.CONTINUE, tuple((n, seq) for n, _, seq in accepted if n in numbers)

    return patch.object(sqlite_store, "compared", compared)


@contextmanager
def fences_nobody() -> Iterator[None]:
    """A Hello does not raise its replica's term: what older connections bring counts as well."""
    real = SqliteStore.greet

    async def greet(self: SqliteStore, replica: int, *arguments: Any) -> Greeting:
        greeting = await real(self, replica, *arguments)
        if greeting.verdict is not Verdict.CONTINUE:
            return greeting
        self._connection.execute(
            "UPDATE _reunite_replicas SET term = 1 WHERE replica = ?", (replica,)
        )
        return replace(greeting, term=1)

    with patch.object(SqliteStore, "greet", greet), patch.object(Hub, "fence", Hub.leave):
        yield


def folds_against_the_document() -> AbstractContextManager[object]:
    """What an app shows in a form of its own is taken for an edit."""
    real = fold._changed

    def changed(shape: Shape, document: Document, _image: object, *rest: Any) -> Any:
        return real(shape, document, None, *rest)

    return patch.object(fold, "_changed", changed)


def shows_page_by_page() -> AbstractContextManager[object]:
    """A page is in the tables before the rest of its snapshot has come, also after the first
    load."""
    real = inbox.receive

    def receive(state: State, statements: Sequence[Statement], *, within: bytes = b"") -> bool:
        loaded, state.meta.loaded = state.meta.loaded, 0
        try:
            return real(state, statements, within=within)
        finally:
            state.meta.loaded = loaded or state.meta.loaded
            state.save("loaded")

    return patch.object(inbox, "receive", receive)


def goes_on_in_a_lost_history() -> AbstractContextManager[object]:
    """A relay does not notice that its database went back to a backup."""

    def head_in(_memory: object, connection: sqlite3.Connection) -> Head:
        return read_head(connection)

    return patch.object(sqlite_store, "_head_in", head_in)


def heeds_older_sessions() -> AbstractContextManager[object]:
    """A session goes on when another one of its file has greeted since."""
    return patch.object(replica, "check_latest", lambda *_: None)


def keeps_no_trace() -> AbstractContextManager[object]:
    """What is given up is told of, and not kept in the file."""

    def forget(*_arguments: object, **_named: object) -> None:
        return None

    return patch.object(verdicts, "record_entry", forget)


# Columns that merge.


def counts_from_the_document() -> AbstractContextManager[object]:
    """A number that an app shows in a form of its own is counted from what the document says."""
    real = fold._changed

    def changed(shape: Shape, document: Document, image: Any, *rest: Any) -> Any:
        counted = {
            key for key, kinds in shape.columns.kinds_by_key.items() if counter.KIND in kinds
        }
        kept = image and {key: value for key, value in image.items() if key not in counted}
        return real(shape, document, kept or None, *rest)

    return patch.object(fold, "_changed", changed)


def counts_the_whole_number() -> AbstractContextManager[object]:
    """An increment says what the number is, as if its author had counted all of it."""
    real = counter.edit

    def edit(before: bytes, wanted: Any, author: Author) -> Edit | None:
        found = real(before, wanted, author)
        whole = real(counter.EMPTY, wanted, author)
        return found and whole and Edit(whole.delta, found.after)

    return patch.object(counter, "edit", edit)


def keeps_what_was_refused_counted() -> AbstractContextManager[object]:
    """An increment that follows a refused one is sent as it was made, on top of it."""
    real = rebase._made_anew

    def made_anew(state: State, entry: Entry, *rest: Any, **named: Any) -> Entry:
        made, old = decode(real(state, entry, *rest, **named).document), decode(entry.document)
        cells = {
            key: old.cells[key] if key & KIND_MASK == counter.KIND and key in old.cells else cell
            for key, cell in made.cells.items()
        }
        return entry._replace(document=document.encode(made._replace(cells=cells)))

    return patch.object(rebase, "_made_anew", made_anew)


def counts_in_every_copy() -> AbstractContextManager[object]:
    """A copied file sends what it had pending as work of its own, whatever is in already."""
    real = verdicts.rejoin

    def rejoin(state: State, _known: object) -> None:
        real(state, ())
        for changeset in list(outbox.pending(state.conn)):
            fresh = changeset._replace(nonce=state.chance.nonce())
            outbox.replace_entries(state, fresh, changeset.entries())

    return patch.object(verdicts, "rejoin", rejoin)


@contextmanager
def keeps_the_last_set() -> Iterator[None]:
    """A set is a value of which the later wins."""
    with patch.dict(columns.KINDS_OF_TYPE, {"crdt_set": ()}):
        columns.columns_of.cache_clear()
        yield
    columns.columns_of.cache_clear()


def types_the_whole_text() -> AbstractContextManager[object]:
    """Whatever was typed, all of the text is deleted and typed again."""

    def text_edit(old: str, new: str) -> list[Replacement]:
        return [Replacement(0, len(old), new)]

    return patch.object(yjs, "text_edit", text_edit)


def writes_objects_whole() -> AbstractContextManager[object]:
    """All members of a JSON object are set when one was."""

    def write(shared: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for key in sorted(old.keys() - new.keys()):
            del shared[key]
        for key in sorted(new):
            shared[key] = yjs._shared(new[key])

    return patch.object(yjs, "_write_map", write)


def writes_lists_whole() -> AbstractContextManager[object]:
    """All items of a list are taken out and put in again when one was."""

    def write(array: Any, old: Sequence[Any], new: Sequence[Any]) -> None:
        if old:
            del array[0 : len(old)]
        for place, item in enumerate(new):
            array.insert(place, yjs._shared(item))

    return patch.object(yjs, "_write_list", write)


def types_under_one_id() -> AbstractContextManager[object]:
    """All that a file ever writes into texts is numbered by one client id of Yjs, also after it
    went back to before what it had sent."""
    real = StateCache.load

    def load(self: StateCache, *arguments: Any) -> State:
        state = real(self, *arguments)
        state.session = state.meta.replica
        return state

    return patch.object(StateCache, "load", load)


# As the engine was.


def refuses_large_documents() -> AbstractContextManager[object]:
    """A document over 64 KiB with cells of several stamps cannot be read."""
    return patch.object(document, "_is_array", lambda first: first >= 0x80)


CANARIES: Final[Mapping[str, Canary]] = {
    canary.__name__.replace("_", "-"): canary
    for canary in (
        acknowledges_before_commit,
        forgets_what_is_in,
        drops_a_row,
        moves_the_cursor_past_the_head,
        applies_half_of_a_commit,
        stamps_by_the_wall_clock,
        keeps_its_replica_id,
        shows_without_merging,
        reverts_by_merging,
        knows_duplicates_by_number,
        fences_nobody,
        folds_against_the_document,
        shows_page_by_page,
        goes_on_in_a_lost_history,
        heeds_older_sessions,
        keeps_no_trace,
        counts_from_the_document,
        counts_the_whole_number,
        keeps_what_was_refused_counted,
        counts_in_every_copy,
        keeps_the_last_set,
        types_the_whole_text,
        writes_objects_whole,
        writes_lists_whole,
        types_under_one_id,
        *BACKEND_CANARIES,
        refuses_large_documents,
    )
}
