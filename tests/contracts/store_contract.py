"""What every relay store keeps, as tests: a store's own test module subclasses `StoreContract`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TypeAlias

import pytest

from reunite.cells.register import Value
from reunite.document import EMPTY, Document, decode, encode, merge
from reunite.errors import FormatError, TableError
from reunite.schema import Column, ForeignKey
from reunite_transport.messages import Verdict
from reunite_transport.relay.store import (
    Accepted,
    FeedPage,
    RowChange,
    RowId,
    Standing,
    Store,
    Violation,
)
from tests.contracts.pushes import (
    PERSON,
    A,
    B,
    at,
    column,
    deleted,
    edited,
    inserted,
    nonce_of,
    row,
    table,
)

# Opens the same realm each time it is called within a test.
Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
ALL = 1 << 30


LIST = table("list", column("title"))
TODO = table(
    "todo",
    column("list_id", "integer"),
    column("title"),
    foreign_keys=[ForeignKey(("list_id",), "list", ("id",), "CASCADE")],
)


class StoreContract:
    """Subclass it with a fixture `opener`."""

    def test_a_realm_keeps_its_identity_and_a_relay_gets_a_new_one(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                first = store.realm, store.replica
                assert await store.head() == (0, b"")
            async with opener() as store:
                assert store.realm == first[0]
                assert store.replica != first[1]
                assert len(store.realm) == 16
                assert 0 < store.replica < 1 << 63

        asyncio.run(scenario())

    def test_described_tables_are_numbered_from_one_in_order_of_declaration(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                tables = await store.describe([PERSON], create=True)
                assert [(t.name, t.id) for t in tables] == [("person", 1)]
                assert [(c.name, c.id) for c in tables[0].columns] == [
                    ("id", 1),
                    ("email", 2),
                    ("name", 3),
                    ("age", 4),
                ]
                assert await store.describe([PERSON], create=False) == tables
            async with opener() as store:
                assert await store.registry() == tables

        asyncio.run(scenario())

    def test_names_that_differ_in_case_only_are_one_table_and_one_column(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                tables = await store.describe([PERSON], create=True)
                shouted = replace(
                    PERSON,
                    name="PERSON",
                    columns=tuple(replace(c, name=c.name.upper()) for c in PERSON.columns),
                    indexes=(),
                )
                assert await store.describe([shouted], create=False) == tables

        asyncio.run(scenario())

    def test_a_new_column_gets_the_next_id_and_existing_rows_its_default(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                now = await write(store, {row(1): ("insert", {2: "a@x"})})
                grown = replace(
                    PERSON,
                    columns=(PERSON.columns[0], column("score", "integer", "5", notnull=True)),
                )
                (known,) = await store.describe([grown], create=True)
                assert [c.id for c in known.columns] == [1, 2, 3, 4, 5]
                before = inserted(at(now, A), {2: "a@x"})
                # 5 is there already, and nothing said so: only what differs is written.
                await write(store, {row(1): ("update", {5: 6})}, before=before)

        asyncio.run(scenario())

    def test_a_relay_that_creates_no_tables_says_which_one_is_missing(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                with pytest.raises(TableError, match="person"):
                    await store.describe([PERSON], create=False)
                assert await store.registry() == ()

        asyncio.run(scenario())

    def test_a_table_with_another_primary_key_is_refused(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                other = replace(
                    PERSON,
                    columns=(Column("email", 1, "TEXT", "text", True, None, 1), column("name")),
                )
                with pytest.raises(TableError, match="primary key"):
                    await store.describe([other], create=True)

        asyncio.run(scenario())

    @pytest.mark.parametrize(
        "name", ["_reunite_head", "_Reunite_x", "sqlite_master", "Reunite_Rows"]
    )
    def test_a_reserved_name_is_refused(self, opener: Opener, name: str) -> None:
        async def scenario() -> None:
            async with opener() as store:
                with pytest.raises(TableError, match="reserved"):
                    await store.describe([table(name, column("x"))], create=True)

        asyncio.run(scenario())

    def test_parents_stand_before_children_however_they_were_described(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                tables = await store.describe([TODO, LIST], create=True)
                assert [t.name for t in tables] == ["list", "todo"]

        asyncio.run(scenario())

    def test_a_commit_is_in_the_feed_with_its_token(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                await write(store, {row(1): ("insert", {2: "a@x"})}, token=b"12345678")
                assert await store.head() == (1, b"12345678")
                page = await store.page(0, b"", rows_max=10, bytes_max=ALL)
                assert (page.seq, page.within, page.complete, page.token) == (
                    1,
                    b"",
                    True,
                    b"12345678",
                )
                (section,) = page.sections
                assert section.keys == (row(1).key,)
                (document,) = map(decode, section.documents)
                assert document.alive
                nothing = FeedPage((), 1, b"", True, b"12345678")
                assert await store.page(1, b"", rows_max=10, bytes_max=ALL) == nothing

        asyncio.run(scenario())

    def test_nobody_sees_a_commit_before_it_is_one(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store, opener() as other:
                await store.describe([PERSON], create=True)
                async with store.begin() as transaction:
                    await transaction.finish(b"token...", {row(1): encode(EMPTY)}, [])
                    for each in (store, other):
                        assert await each.head() == (0, b"")
                        page = await each.page(0, b"", rows_max=10, bytes_max=ALL)
                        assert page == FeedPage((), 0, b"", True, b"")
                assert await other.head() == (1, b"token...")

        asyncio.run(scenario())

    def test_a_transaction_without_finish_leaves_nothing(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                async with store.begin() as transaction:
                    assert transaction.seq == 1
                    now = transaction.now_ms
                    new = inserted(at(now, A), {2: "a@x"})
                    await transaction.write_rows([RowChange(row(1), EMPTY, new)])
                assert await store.head() == (0, b"")
                # The row is not there, so it can be inserted.
                await write(store, {row(1): ("insert", {2: "a@x"})})

        asyncio.run(scenario())

    def test_an_error_in_the_block_undoes_even_what_was_finished(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)

                async def broken() -> None:
                    async with store.begin() as transaction:
                        await transaction.finish(b"12345678", {row(1): encode(EMPTY)}, [])
                        raise KeyError

                with pytest.raises(KeyError):
                    await broken()
                assert await store.head() == (0, b"")

        asyncio.run(scenario())

    def test_a_savepoint_undoes_what_is_inside_and_no_more(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                async with store.begin() as transaction:
                    made = at(transaction.now_ms, A)
                    one, two = (inserted(made, {2: email}) for email in ("a@x", "b@x"))
                    async with transaction.savepoint():
                        await transaction.write_rows([RowChange(row(1), EMPTY, one)])
                    with pytest.raises(Violation):
                        async with transaction.savepoint():
                            await transaction.write_rows(
                                [RowChange(row(2), EMPTY, two), RowChange(row(3), EMPTY, two)]
                            )
                    async with transaction.savepoint():
                        await transaction.write_rows([RowChange(row(3), EMPTY, two)])
                    documents = {row(1): encode(one), row(3): encode(two)}
                    await transaction.finish(b"12345678", documents, [])
                async with store.begin() as transaction:
                    found = await transaction.documents([row(1), row(2), row(3)])
                    assert found.keys() == {row(1), row(3)}

        asyncio.run(scenario())

    def test_a_violation_names_the_table_and_no_value_of_another_row(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                await write(store, {row(1): ("insert", {2: "secret@x", 3: "Agent"})})
                with pytest.raises(Violation) as caught:
                    await write(store, {row(2): ("insert", {2: "secret@x", 3: "Me"})})
                assert "person" in str(caught.value)
                assert "email" in str(caught.value)
                assert "secret" not in str(caught.value)
                assert "Agent" not in str(caught.value)

        asyncio.run(scenario())

    def test_two_unique_values_are_swapped_in_one_write(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                now = await write(
                    store, {row(1): ("insert", {2: "a@x"}), row(2): ("insert", {2: "b@x"})}
                )
                async with store.begin() as transaction:
                    changes = [
                        RowChange(
                            row(key),
                            inserted(at(now, A), {2: old}),
                            merge(inserted(at(now, A), {2: old}), edited(at(now + 1, A), {2: new})),
                        )
                        for key, old, new in ((1, "a@x", "b@x"), (2, "b@x", "a@x"))
                    ]
                    assert not await transaction.write_rows(changes)

        asyncio.run(scenario())

    def test_unique_values_move_from_row_to_row_in_one_write(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                now = await write(store, {row(k): ("insert", {2: f"{k}@x"}) for k in (1, 2, 3)})
                one, two, three = (inserted(at(now, A), {2: f"{k}@x"}) for k in (1, 2, 3))
                async with store.begin() as transaction:
                    changes = [
                        RowChange(row(4), EMPTY, three),
                        RowChange(row(3), three, merge(three, edited(at(now + 1, A), {2: "2@x"}))),
                        RowChange(row(2), two, merge(two, edited(at(now + 1, A), {2: "1@x"}))),
                        RowChange(row(1), one, merge(one, deleted(at(now + 1, A)))),
                    ]
                    assert not await transaction.write_rows(changes)

        asyncio.run(scenario())

    def test_a_row_that_died_comes_back_whole(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                now = await write(store, {row(1): ("insert", {2: "a@x", 4: 7})})
                alive = inserted(at(now, A), {2: "a@x", 4: 7})
                dead = merge(alive, deleted(at(now + 1, A)))
                back = merge(dead, edited(at(now + 2, B), {4: 8}))
                async with store.begin() as transaction:
                    for before, after in ((alive, dead), (dead, back)):
                        assert not await transaction.write_rows([RowChange(row(1), before, after)])
                    # Still unique: the row is there again with its email.
                    twin = inserted(at(now, A), {2: "a@x"})
                    with pytest.raises(Violation):
                        async with transaction.savepoint():
                            await transaction.write_rows([RowChange(row(2), EMPTY, twin)])

        asyncio.run(scenario())

    def test_cells_of_unknown_columns_are_kept_and_not_written(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                await write(store, {row(1): ("insert", {2: "a@x", 77: "later"})})
                async with store.begin() as transaction:
                    data = (await transaction.documents([row(1)]))[row(1)]
                    assert "later" in {value for _, value in decode(data).cells.values()}

        asyncio.run(scenario())

    def test_a_parent_and_its_child_come_and_go_in_one_write_in_any_order(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                tables = await store.describe([LIST, TODO], create=True)
                lists, todos = (t.id for t in tables)
                async with store.begin() as transaction:
                    made = at(transaction.now_ms, A)
                    child = inserted(made, {2: 1, 3: "milk"})
                    parent = inserted(made, {2: "shop"})
                    both = [(row(5, todos), child), (row(1, lists), parent)]
                    await transaction.write_rows([RowChange(r, EMPTY, d) for r, d in both])
                    gone = deleted(at(transaction.now_ms + 1, A))
                    dead = [RowChange(r, d, merge(d, gone)) for r, d in reversed(both)]
                    await transaction.write_rows(dead)

        asyncio.run(scenario())

    def test_a_parent_is_not_deleted_from_under_a_child_that_the_write_leaves_there(
        self, opener: Opener
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                tables = await store.describe([LIST, TODO], create=True)
                lists, todos = (t.id for t in tables)
                now = await write(
                    store,
                    {
                        row(1, lists): ("insert", {2: "shop"}),
                        row(2, lists): ("insert", {2: "home"}),
                        row(5, todos): ("insert", {2: 1, 3: "milk"}),
                    },
                )
                made = at(now, A)
                parent = inserted(made, {2: "shop"})
                child = inserted(made, {2: 1, 3: "milk"})
                gone = RowChange(row(1, lists), parent, merge(parent, deleted(at(now + 1, A))))
                moved = RowChange(
                    row(5, todos), child, merge(child, edited(at(now + 1, A), {2: 2}))
                )
                async with store.begin() as transaction:
                    with pytest.raises(Violation, match="todo"):
                        async with transaction.savepoint():
                            await transaction.write_rows([gone])
                    async with transaction.savepoint():
                        await transaction.write_rows([gone, moved])
                    # The child is still there: a cascade would have taken it.
                    again = merge(moved.after, edited(at(now + 2, A), {3: "bread"}))
                    await transaction.write_rows([RowChange(row(5, todos), moved.after, again)])

        asyncio.run(scenario())

    def test_a_child_of_nobody_is_a_violation(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                tables = await store.describe([LIST, TODO], create=True)
                with pytest.raises(Violation):
                    await write(store, {row(5, tables[1].id): ("insert", {2: 1})})

        asyncio.run(scenario())

    def test_a_page_ends_inside_one_commit_and_goes_on_there(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                await write(store, {row(key): ("insert", {2: f"{key}@x"}) for key in range(25)})
                seq, within, seen = 0, b"", []
                for expected in (10, 10, 5):
                    page = await store.page(seq, within, rows_max=10, bytes_max=ALL)
                    seen += [key for section in page.sections for key in section.keys]
                    assert sum(len(section.keys) for section in page.sections) == expected
                    assert page.complete == (expected == 5)
                    seq, within = page.seq, page.within
                assert (seq, within, page.token) == (1, b"", b"token...")
                assert sorted(seen) == sorted(row(key).key for key in range(25))

        asyncio.run(scenario())

    def test_a_page_is_bounded_in_bytes_but_never_empty(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
                await write(
                    store, {row(key): ("insert", {2: str(key), 3: "x" * 900}) for key in range(5)}
                )
                small = await store.page(0, b"", rows_max=10, bytes_max=1)
                assert [len(section.keys) for section in small.sections] == [1]
                assert not small.complete
                larger = await store.page(small.seq, small.within, rows_max=10, bytes_max=2_500)
                assert [len(section.keys) for section in larger.sections] == [2]

        asyncio.run(scenario())

    def test_a_place_that_no_page_gave_is_a_format_error(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                for within in (b"x", b"\xff\xff\xff\xff\xff"):
                    with pytest.raises(FormatError):
                        await store.page(0, within, rows_max=10, bytes_max=ALL)

        asyncio.run(scenario())

    def test_each_hello_raises_the_term(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                for term in (1, 2, 3):
                    greeting = await store.greet(A, 0, (), 0, b"")
                    assert (greeting.term, greeting.verdict) == (term, Verdict.CONTINUE)
                async with store.begin() as transaction:
                    assert await transaction.standings([A, B]) == {A: Standing(3, 0)}

        asyncio.run(scenario())

    def test_a_reconnect_learns_which_pending_changesets_are_in(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await accept(store, A, 1, 2)
                await accept(store, A, 3)
                pending = [nonce_of(A, number) for number in (2, 3, 4)]
                greeting = await store.greet(A, 1, pending, 1, b"token...")
                assert greeting.verdict == Verdict.CONTINUE
                assert greeting.known == ((2, 1), (3, 2))
                assert greeting.head == 2

        asyncio.run(scenario())

    def test_a_copied_file_whose_twin_pushed_other_changesets_is_a_fork(
        self, opener: Opener
    ) -> None:
        """Schedule 46: both hold 1..10; one pushed its 11..20, the other wrote its own 11..35."""

        async def scenario() -> None:
            async with opener() as store:
                await accept(store, A, *range(1, 21))
                own = [b"twin" + number.to_bytes(4, "big") for number in range(11, 36)]
                greeting = await store.greet(A, 10, own, 1, b"token...")
                assert (greeting.verdict, greeting.known) == (Verdict.FORK, ())
                # The file that it was copied from goes on under the term that it has.
                assert greeting.term == 1

        asyncio.run(scenario())

    def test_a_fork_knows_what_both_copies_had_pending(self, opener: Opener) -> None:
        """Schedule 47: both hold 11 unsent; one pushed 11 and 12. 11 must not count twice."""

        async def scenario() -> None:
            async with opener() as store:
                await accept(store, A, *range(1, 11))
                await accept(store, A, 11, 12)
                pending = [nonce_of(A, 11), b"twins-12"]
                greeting = await store.greet(A, 10, pending, 1, b"token...")
                assert (greeting.verdict, greeting.known) == (Verdict.FORK, ((11, 2),))

        asyncio.run(scenario())

    def test_a_copy_that_has_less_pending_than_was_accepted_is_a_fork(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await accept(store, A, 1, 2, 3)
                greeting = await store.greet(A, 1, [nonce_of(A, 2)], 1, b"token...")
                assert (greeting.verdict, greeting.known) == (Verdict.FORK, ((2, 1),))

        asyncio.run(scenario())

    def test_a_load_is_named_by_the_commit_that_its_last_page_saw(self, opener: Opener) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await accept(store, A, 1, 2, 3)
                _, token = await store.head()
                assert (await store.greet(B, 0, (), 1, token)).verdict is Verdict.CONTINUE

        asyncio.run(scenario())

    @pytest.mark.parametrize(
        ("replica", "acknowledged", "seq", "token"),
        [
            pytest.param(B, 1, 0, b"", id="an unknown replica that has acknowledged work"),
            pytest.param(A, 4, 0, b"", id="more acknowledged than accepted"),
            pytest.param(A, 3, 2, b"token...", id="a commit that is not there"),
            pytest.param(A, 3, 1, b"restored", id="a commit with another token"),
        ],
    )
    def test_a_history_that_is_not_here_is_lost(
        self, opener: Opener, replica: int, acknowledged: int, seq: int, token: bytes
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await accept(store, A, 1, 2, 3)
                greeting = await store.greet(replica, acknowledged, (), seq, token)
                assert (greeting.verdict, greeting.known) == (Verdict.LOST, ())
                async with store.begin() as transaction:
                    assert await transaction.standings([A, B]) == {A: Standing(1, 3)}

        asyncio.run(scenario())


async def write(
    store: Store,
    edits: Mapping[RowId, tuple[str, Mapping[int, Value]]],
    *,
    before: Document = EMPTY,
    token: bytes = b"token...",
) -> int:
    """Commit edits by A; returns the millisecond of their stamps."""
    async with store.begin() as transaction:
        made = at(transaction.now_ms, A)
        after = {
            name: merge(
                before, inserted(made, values) if verb == "insert" else edited(made, values)
            )
            for name, (verb, values) in edits.items()
        }
        await transaction.documents(list(after))
        made_different = await transaction.write_rows(
            [RowChange(name, before, document) for name, document in after.items()]
        )
        assert not made_different
        encoded = {name: encode(document) for name, document in after.items()}
        await transaction.finish(token, encoded, [])
        return transaction.now_ms


async def accept(store: Store, replica: int, *numbers: int, token: bytes = b"token...") -> None:
    """Commit empty changesets of these numbers."""
    async with store.begin() as transaction:
        known: Awaitable[Mapping[int, Standing]] = transaction.standings([replica])
        greeted = replica in await known
    if not greeted:
        await store.greet(replica, 0, (), 0, b"")
    async with store.begin() as transaction:
        accepted = [Accepted(replica, number, nonce_of(replica, number)) for number in numbers]
        await transaction.finish(token, {}, accepted)
