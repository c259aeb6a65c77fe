"""What becomes of pushed changesets: verdicts, merged rows, and who is told what."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg

from reunite.clock import FLOOR, NEVER, replica_of, time_of
from reunite.document import Document, decode, merge
from reunite.keys import unpack_key
from reunite.schema import ForeignKey, Table
from reunite_transport.messages import EntryKind
from reunite_transport.messages import Verdict as History
from reunite_transport.relay.admission import Changeset, Refused
from reunite_transport.relay.commit import (
    Ignored,
    Outcome,
    Postponed,
    Repeated,
    Taken,
    commit_batch,
)
from reunite_transport.relay.postgres_store import POOL_MAX, PostgresStore, open_postgres
from tests.contracts.pushes import (
    PERSON,
    A,
    B,
    at,
    changeset,
    column,
    deleted,
    edited,
    entries,
    inserted,
    nonce_of,
    row,
    table,
)

TOKEN = b"token..."


class Realm:
    """A store with tables, two greeted clients, and the time of its opening."""

    def __init__(self, store: PostgresStore, now_ms: int, url: str) -> None:
        self.store = store
        self.now = now_ms
        self.url = url

    async def commit(self, *batch: Changeset) -> Outcome:
        return await commit_batch(self.store, batch, TOKEN)

    async def sql(self, statement: str) -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(found) for found in await connection.fetch(statement)]
        finally:
            await connection.close()


@asynccontextmanager
async def realm(url: str, *tables: Table) -> AsyncIterator[Realm]:
    store = await open_postgres(url)
    try:
        await store.describe(tables or [PERSON], create=True)
        for replica in (A, B):
            greeting = await store.greet(replica, 0, (), 0, b"")
        yield Realm(store, greeting.now_ms, url)
    finally:
        await store.close()


Scenario = Callable[[Realm], Awaitable[None]]


def run(url: str, scenario: Scenario, *tables: Table) -> None:
    async def opened() -> None:
        async with realm(url, *tables) as a_realm:
            await scenario(a_realm)

    asyncio.run(opened())


def person(made: bytes, email: str | None = None, **cells: object) -> Document:
    return inserted(made, {2: email, 3: str(cells.get("name", "")), 4: 0})


def test_a_changeset_is_taken_and_its_rows_are_its_authors(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        new = person(at(r.now, A), "a@x")
        outcome = await r.commit(changeset(A, 1, entries((1, new))))
        assert (outcome.seq, outcome.token, outcome.verdicts) == (1, TOKEN, (Taken(),))
        (stated,) = outcome.rows
        assert (stated.row, stated.author, decode(stated.document)) == (row(1), A, new)
        assert await r.sql("SELECT id, email FROM person") == [(1, "a@x")]

    run(postgres_url, scenario)


def test_edits_of_different_cells_by_two_replicas_merge_and_have_no_one_author(
    postgres_url: str,
) -> None:
    async def scenario(r: Realm) -> None:
        new = person(at(r.now, A), "a@x")
        await r.commit(changeset(A, 1, entries((1, new))))
        outcome = await r.commit(
            changeset(A, 2, entries((1, edited(at(r.now + 1, A), {3: "Ann"})))),
            changeset(B, 1, entries((1, edited(at(r.now + 2, B), {4: 7})))),
        )
        assert outcome.verdicts == (Taken(), Taken())
        (stated,) = outcome.rows
        assert stated.author is None
        assert await r.sql("SELECT email, name, age FROM person") == [("a@x", "Ann", 7)]

    run(postgres_url, scenario)


def test_an_entry_that_changes_nothing_is_not_stated_but_accepted(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        late = person(at(r.now, B), "b@x")
        await r.commit(changeset(B, 1, entries((1, late))))
        early = edited(at(r.now - 5, A), {2: "a@x"})
        outcome = await r.commit(changeset(A, 1, entries((1, early))))
        assert (outcome.seq, outcome.rows, outcome.verdicts) == (2, (), (Taken(),))
        assert await r.store.head() == (2, TOKEN)
        greeting = await r.store.greet(A, 0, [nonce_of(A, 1)], 0, b"")
        assert greeting.known == ((1, 2),)

    run(postgres_url, scenario)


def test_the_later_edit_wins_and_the_earlier_author_is_told(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A), "a@x")))))
        await r.commit(changeset(B, 1, entries((1, edited(at(r.now + 9, B), {3: "later"})))))
        outcome = await r.commit(
            changeset(A, 2, entries((1, edited(at(r.now + 5, A), {3: "earlier", 4: 3}))))
        )
        (stated,) = outcome.rows
        # A joins its own entry with what it has been told: the same document.
        assert stated.author == A
        assert await r.sql("SELECT name, age FROM person") == [("later", 3)]

    run(postgres_url, scenario)


def test_equal_stamps_with_different_values_come_out_the_same_in_any_order(
    postgres_url: str,
) -> None:
    """Schedule 32."""

    async def scenario(r: Realm) -> None:
        made = at(r.now, A)
        documents = [inserted(made, {3: name}) for name in ("Ann", "Bob")]
        await r.commit(
            changeset(A, 1, entries((1, documents[0]), (2, documents[1]))),
            changeset(A, 2, entries((1, documents[1]), (2, documents[0]))),
        )
        assert await r.sql("SELECT name FROM person") == [("Bob",), ("Bob",)]

    run(postgres_url, scenario)


def test_an_older_sessions_changeset_is_ignored(postgres_url: str) -> None:
    """Schedule 3: the half-open twin still holds number 1."""

    async def scenario(r: Realm) -> None:
        twin = changeset(A, 1, entries((1, person(at(r.now, A), "twin@x"))))
        greeting = await r.store.greet(A, 0, (), 0, b"")
        again = changeset(A, 1, entries((2, person(at(r.now, A), "a@x"))), term=greeting.term)
        assert (await r.commit(twin)).verdicts == (Ignored(),)
        outcome = await r.commit(twin, again)
        assert outcome.verdicts == (Ignored(), Taken())
        assert await r.sql("SELECT email FROM person") == [("a@x",)]

    run(postgres_url, scenario)


def test_duplicates_and_gaps_are_ignored_and_commit_nothing(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        first = changeset(A, 1, entries((1, person(at(r.now, A)))))
        third = changeset(A, 3, entries((3, person(at(r.now, A)))))
        stranger = changeset(999, 1, entries((9, person(at(r.now, 999)))))
        assert (await r.commit(first, third, stranger)).verdicts == (Taken(), Ignored(), Ignored())
        assert await r.commit(first, third) == Outcome(None, b"", (), (Ignored(), Ignored()))
        assert await r.store.head() == (1, TOKEN)

    run(postgres_url, scenario)


def test_one_bad_changeset_is_refused_alone_and_its_clients_later_ones_are_ignored(
    postgres_url: str,
) -> None:
    async def scenario(r: Realm) -> None:
        await r.commit(changeset(B, 1, entries((1, person(at(r.now, B), "taken@x")))))
        batch = []
        for number in range(1, 9):
            email = "taken@x" if number == 5 else f"a{number}@x"
            batch.append(changeset(A, number, entries((100 + number, person(at(r.now, A), email)))))
            b = person(at(r.now, B), f"b{number}@x")
            batch.append(changeset(B, number + 1, entries((200 + number, b))))
        outcome = await r.commit(*batch)
        assert all(verdict == Taken() for verdict in outcome.verdicts[1::2])
        of_a = outcome.verdicts[::2]
        assert of_a[:4] == (Taken(),) * 4
        assert isinstance(of_a[4], Refused)
        assert of_a[4].reason == "constraint"
        assert "email" in of_a[4].message
        assert "taken@x" not in of_a[4].message
        assert of_a[5:] == (Ignored(),) * 3
        assert await r.sql("SELECT count(*) FROM person") == [(13,)]
        assert {stated.row for stated in outcome.rows} == {
            *(row(100 + number) for number in range(1, 5)),
            *(row(200 + number) for number in range(1, 9)),
        }

    run(postgres_url, scenario)


def test_a_refused_changeset_leaves_no_trace_in_what_others_merged(postgres_url: str) -> None:
    """Schedules 1 and 2: what follows a refused insert does not make a row that nobody wrote."""

    async def scenario(r: Realm) -> None:
        await r.commit(changeset(B, 1, entries((1, person(at(r.now, B), "taken@x")))))
        outcome = await r.commit(
            changeset(A, 1, entries((2, person(at(r.now, A), "taken@x")))),
            changeset(A, 2, entries((2, edited(at(r.now + 1, A), {3: "Ann"})))),
            changeset(B, 2, entries((1, edited(at(r.now + 1, B), {3: "Bob"})))),
        )
        assert [type(verdict) for verdict in outcome.verdicts] == [Refused, Ignored, Taken]
        assert await r.sql("SELECT id, name FROM person") == [(1, "Bob")]
        assert [stated.row for stated in outcome.rows] == [row(1)]

    run(postgres_url, scenario)


def test_a_merge_of_two_valid_rows_can_be_refused(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        await r.sql("ALTER TABLE person ADD CHECK (name <> 'minor' OR age < 18)")
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A))))))
        outcome = await r.commit(
            changeset(A, 2, entries((1, edited(at(r.now + 1, A), {3: "minor"})))),
            changeset(B, 1, entries((1, edited(at(r.now + 2, B), {4: 30})))),
        )
        assert outcome.verdicts[0] == Taken()
        assert isinstance(outcome.verdicts[1], Refused)
        assert outcome.rows[0].author == A

    run(postgres_url, scenario)


def test_a_commit_does_not_wait_for_a_pooled_connection(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        taken = [await r.store._pool.acquire() for _ in range(POOL_MAX)]
        try:
            async with asyncio.timeout(20):
                outcome = await r.commit(changeset(A, 1, entries((1, person(at(r.now, A))))))
        finally:
            for connection in taken:
                await r.store._pool.release(connection)
        assert outcome.verdicts == (Taken(),)

    run(postgres_url, scenario)


def test_two_clients_swap_unique_values_in_one_commit(postgres_url: str) -> None:
    """Schedule 43."""

    async def scenario(r: Realm) -> None:
        made = at(r.now, A)
        both = entries((1, person(made, "a@x")), (2, person(made, "b@x")))
        await r.commit(changeset(A, 1, both))
        swap = entries(
            (1, edited(at(r.now + 1, A), {2: "b@x"})), (2, edited(at(r.now + 1, A), {2: "a@x"}))
        )
        assert (await r.commit(changeset(A, 2, swap))).verdicts == (Taken(),)
        assert await r.sql("SELECT email FROM person ORDER BY id") == [("b@x",), ("a@x",)]

    run(postgres_url, scenario)


def test_a_partial_entry_of_an_unknown_row_needs_the_whole(postgres_url: str) -> None:
    """Schedule 29."""

    async def scenario(r: Realm) -> None:
        delta = edited(at(r.now, A), {3: "half"})
        outcome = await r.commit(
            changeset(A, 1, entries((1, delta))),
            changeset(B, 1, entries((2, person(at(r.now, B))))),
        )
        assert isinstance(outcome.verdicts[0], Refused)
        assert outcome.verdicts[0].reason == "need-whole"
        assert [unpack_key(row.key) for row in outcome.verdicts[0].rows] == [(1,)]
        assert outcome.verdicts[1] == Taken()
        whole = await r.commit(changeset(A, 1, entries((1, delta), kind=EntryKind.WHOLE)))
        assert whole.verdicts == (Taken(),)

    run(postgres_url, scenario)


def test_a_changeset_of_a_copied_file_is_in_once_whoever_sends_it(postgres_url: str) -> None:
    """Schedule 47, and its twin that becomes another replica before the first has pushed."""

    async def scenario(r: Realm) -> None:
        same = nonce_of(A, 1)
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A), "a@x")))))
        twin = changeset(B, 1, entries((1, person(at(r.now + 5, B), "a@x"))), nonce=same)
        after = changeset(B, 2, entries((2, person(at(r.now + 5, B), "b@x"))))
        outcome = await r.commit(twin, after)
        assert outcome.verdicts == (Repeated(), Taken())
        assert [unpack_key(stated.row.key) for stated in outcome.rows] == [(2,)]
        alone = await r.commit(changeset(B, 3, nonce=same))
        assert (alone.verdicts, alone.rows) == ((Repeated(),), ())
        # Its number counts.
        more = await r.commit(changeset(B, 4, entries((3, person(at(r.now, B), "c@x")))))
        assert more.verdicts == (Taken(),)

    run(postgres_url, scenario)


def test_of_two_copies_in_one_batch_the_second_waits(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        one, two = (
            changeset(who, 1, entries((1, person(at(r.now, who), "a@x"))), nonce=b"the same")
            for who in (A, B)
        )
        outcome = await r.commit(one, two)
        assert outcome.verdicts == (Taken(), Postponed())
        assert (await r.commit(two)).verdicts == (Repeated(),)

    run(postgres_url, scenario)


def test_a_partial_entry_may_follow_its_row_in_one_batch(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        outcome = await r.commit(
            changeset(A, 1, entries((1, person(at(r.now, A))))),
            changeset(A, 2, entries((1, edited(at(r.now + 1, A), {3: "Ann"})))),
            changeset(A, 3, entries((1, deleted(at(r.now + 2, A))))),
        )
        assert outcome.verdicts == (Taken(),) * 3
        assert [stated.author for stated in outcome.rows] == [A]
        assert not decode(outcome.rows[0].document).alive
        assert await r.sql("SELECT * FROM person") == []

    run(postgres_url, scenario)


def test_an_edit_later_than_a_delete_brings_the_whole_row_back(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A), "a@x")))))
        await r.commit(changeset(A, 2, entries((1, deleted(at(r.now + 1, A))))))
        await r.commit(changeset(B, 1, entries((1, edited(at(r.now + 2, B), {3: "Bob"})))))
        assert await r.sql("SELECT email, name FROM person") == [("a@x", "Bob")]

    run(postgres_url, scenario)


def test_adopted_rows_never_replace_an_edit(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        adopted = inserted(FLOOR, {2: "old@x", 3: "old", 4: 5})
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A), "a@x", name="new")))))
        outcome = await r.commit(
            changeset(B, 1, entries((1, adopted), (2, adopted), kind=EntryKind.ADOPTED))
        )
        assert outcome.verdicts == (Taken(),)
        assert await r.sql("SELECT id, email, name FROM person ORDER BY id") == [
            (1, "a@x", "new"),
            (2, "old@x", "old"),
        ]
        assert decode(next(s.document for s in outcome.rows if s.row == row(2))).born == FLOOR

    run(postgres_url, scenario)


def test_a_row_that_a_backend_holds_postpones_its_changeset_alone(postgres_url: str) -> None:
    """Schedules 33 and 37: neither overwritten nor refused."""

    async def scenario(r: Realm) -> None:
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A))))))
        connection = await asyncpg.connect(r.url)
        try:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("UPDATE person SET name = 'theirs' WHERE id = 1")
            await connection.execute("INSERT INTO person (id) VALUES (50)")
            batch = (
                changeset(A, 2, entries((2, person(at(r.now, A))))),
                changeset(A, 3, entries((1, edited(at(r.now + 1, A), {3: "ours"})))),
                changeset(A, 4, entries((4, person(at(r.now, A))))),
                changeset(B, 1, entries((5, person(at(r.now, B))))),
                changeset(B, 2, entries((50, person(at(r.now, B))))),
            )
            outcome = await r.commit(*batch)
            assert outcome.verdicts == (Taken(), Postponed(), Postponed(), Taken(), Postponed())
            await transaction.rollback()
            again = await r.commit(batch[1], batch[2], batch[4])
            assert again.verdicts == (Taken(),) * 3
        finally:
            await connection.close()
        assert await r.sql("SELECT id, name FROM person ORDER BY id") == [
            (1, "ours"),
            (2, ""),
            (4, ""),
            (5, ""),
            (50, ""),
        ]

    run(postgres_url, scenario)


def test_what_postgres_rounds_is_the_relays_edit_and_stated_to_its_author(
    postgres_url: str,
) -> None:
    priced = table("priced", column("price", "numeric(10,2)"), column("name"))

    async def scenario(r: Realm) -> None:
        made = at(r.now + 30_000, A)
        new = inserted(made, {2: 1.005, 3: "x"})
        outcome = await r.commit(changeset(A, 1, entries((1, new))))
        (stated,) = outcome.rows
        assert stated.author is None
        document = decode(stated.document)
        found, value = document.cells[16]
        assert value == 1.01
        assert replica_of(found) == r.store.replica
        assert time_of(found) == time_of(made) + 1
        assert (document.edited, document.cells[24]) == (made, (made, "x"))

    run(postgres_url, scenario, priced)


LIST = table("list", column("title"))
TODO = table(
    "todo",
    column("list_id", "integer"),
    column("title"),
    foreign_keys=[ForeignKey(("list_id",), "list", ("id",), "CASCADE")],
)


def test_a_derived_delete_is_dropped_when_the_child_has_moved_and_its_author_is_told(
    postgres_url: str,
) -> None:
    """Schedules 7 and 21: A deleted the list, B had moved the todo to another one."""

    async def scenario(r: Realm) -> None:
        made = at(r.now, A)
        lists = entries((1, inserted(made, {2: "L"})), (2, inserted(made, {2: "M"})))
        todos = entries(
            (5, inserted(made, {2: 1, 3: "stays"})),
            (6, inserted(made, {2: 1, 3: "goes"})),
            table_id=2,
        )
        await r.commit(changeset(A, 1, lists, todos))
        moved = edited(at(r.now + 1, B), {2: 2})
        await r.commit(changeset(B, 1, entries((5, moved), table_id=2)))
        gone = deleted(at(r.now + 2, A))
        parent = row(1).key
        outcome = await r.commit(
            changeset(
                A,
                2,
                entries((1, gone)),
                entries((5, gone), (6, gone), table_id=2, derived=((0, 1, parent), (1, 1, parent))),
            )
        )
        assert outcome.verdicts == (Taken(),)
        author_by_row = {stated.row: stated.author for stated in outcome.rows}
        # Stated though it did not change: A must not join its own delete.
        assert author_by_row == {row(1): A, row(5, 2): None, row(6, 2): A}
        assert await r.sql("SELECT id, list_id FROM todo") == [(5, 2)]
        page = await r.store.page(2, b"", rows_max=10, bytes_max=1 << 20)
        assert {key for section in page.sections for key in section.keys} == {
            row(1).key,
            row(6).key,
        }

    run(postgres_url, scenario, LIST, TODO)


def test_a_row_that_is_sent_whole_is_taken_whatever_it_is_derived_from(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        made = at(r.now, A)
        await r.commit(changeset(A, 1, entries((1, inserted(made, {2: "L"})))))
        parent = row(1).key
        whole = inserted(at(r.now + 1, A), {2: None, 3: "lost its list"})
        gone = deleted(at(r.now + 1, A))
        outcome = await r.commit(
            changeset(
                A,
                2,
                entries((1, gone)),
                entries((5, whole), table_id=2, derived=((0, 1, parent),)),
            )
        )
        assert outcome.verdicts == (Taken(),)
        # Its author takes it for the relay's from here on.
        assert await r.sql("SELECT id, title FROM todo") == [(5, "lost its list")]

    run(postgres_url, scenario, LIST, TODO)


def test_a_parent_is_not_deleted_while_anothers_child_is_in_it(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        made = at(r.now, A)
        await r.commit(changeset(A, 1, entries((1, inserted(made, {2: "L"})))))
        child = inserted(at(r.now, B), {2: 1, 3: "unseen"})
        await r.commit(changeset(B, 1, entries((5, child), table_id=2)))
        outcome = await r.commit(changeset(A, 2, entries((1, deleted(at(r.now + 1, A))))))
        (verdict,) = outcome.verdicts
        assert isinstance(verdict, Refused)
        assert verdict.reason == "constraint"
        assert await r.sql("SELECT count(*) FROM todo") == [(1,)]

    run(postgres_url, scenario, LIST, TODO)


def test_a_commit_of_many_rows_has_one_seq_and_is_paged(postgres_url: str) -> None:
    """Schedule 42."""

    async def scenario(r: Realm) -> None:
        rows = [(key, person(at(r.now, A), f"{key}@x")) for key in range(2_500)]
        outcome = await r.commit(changeset(A, 1, entries(*rows)))
        assert len(outcome.rows) == 2_500
        seq, within, seen, pages = 0, b"", set[bytes](), 0
        while True:
            page = await r.store.page(seq, within, rows_max=1_000, bytes_max=1 << 20)
            seen.update(key for section in page.sections for key in section.keys)
            seq, within, pages = page.seq, page.within, pages + 1
            if page.complete:
                break
        assert (len(seen), pages, seq) == (2_500, 3, 1)

    run(postgres_url, scenario)


def test_what_a_twin_pushed_is_known_to_both_copies_of_a_file(postgres_url: str) -> None:
    """Schedules 46 and 47: an increment that both hold unsent is in once."""

    async def scenario(r: Realm) -> None:
        await r.commit(changeset(A, 1, entries((1, person(at(r.now, A))))))
        shared = changeset(A, 2, entries((1, edited(at(r.now + 1, A), {4: 1}))), nonce=b"shared..")
        first = changeset(A, 3, entries((1, edited(at(r.now + 2, A), {3: "1"}))), nonce=b"first...")
        await r.commit(shared, first)
        greeting = await r.store.greet(A, 1, [b"shared..", b"second.."], 0, b"")
        assert greeting.verdict == History.FORK
        assert greeting.known == ((2, 2),)

    run(postgres_url, scenario)


def test_the_stored_document_is_the_merge_of_all_that_was_taken(postgres_url: str) -> None:
    async def scenario(r: Realm) -> None:
        new = person(at(r.now, A), "a@x")
        deltas = [edited(at(r.now + n, A, n), {3: str(n), 4: n}) for n in (3, 1, 2)]
        expected = new
        for number, delta in enumerate([new, *deltas], 1):
            await r.commit(changeset(A, number, entries((1, delta))))
            expected = merge(expected, delta)
        async with r.store.begin() as transaction:
            data = (await transaction.documents([row(1)]))[row(1)]
        assert decode(data) == expected
        assert expected.deleted == NEVER

    run(postgres_url, scenario)
