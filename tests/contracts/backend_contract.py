"""What every relay store keeps of what backends write to the realm's tables, as tests."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import pytest

from reunite.cells.register import Value
from reunite.clock import FLOOR, replica_of, time_of
from reunite.columns import columns_of
from reunite.document import Document, decode
from reunite.keys import unpack_key
from reunite.overwritten import listed
from reunite.schema import Table
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.commit import Outcome, Taken, commit_batch
from reunite_transport.relay.store import BACKLOG_MAX, Store
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
    row,
    table,
)
from tests.contracts.restore_contract import Outside
from tests.contracts.store_contract import ALL, LIST, TODO, Opener

TALLY = table("tally", column("n", "counter"), column("note"))
# Values by column name; None for a row that is dead.
Shown: TypeAlias = dict[tuple[Value, ...], dict[str, Value] | None]


class BackendContract:
    """Subclass it with fixtures `opener` and `outside`, of the same realm."""

    def test_what_a_backend_inserts_updates_and_deletes_is_in_the_documents(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            await backend(outside, "INSERT INTO person VALUES (1, 'a@x', 'Ann', 7)")
            await folded(store)
            assert await shown(store) == {(1,): {"email": "a@x", "name": "Ann", "age": 7}}
            await backend(outside, "UPDATE person SET age = 8, name = NULL WHERE id = 1")
            await folded(store)
            assert await shown(store) == {(1,): {"email": "a@x", "name": None, "age": 8}}
            await backend(outside, "DELETE FROM person")
            await folded(store)
            assert await shown(store) == {(1,): None}
            assert await store.head() == (3, b"token003")

        run(opener, scenario)

    def test_what_is_rolled_back_never_was(self, opener: Opener, outside: Outside) -> None:
        async def scenario(store: Store) -> None:
            async def fails() -> None:
                async with outside() as execute:
                    await execute("INSERT INTO person VALUES (1, 'a@x', 'Ann', 7)")
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fails()
            assert (await folded(store)).seq is None
            assert await store.head() == (0, b"")

        run(opener, scenario)

    def test_a_transaction_over_several_tables_is_one_commit_and_folded_once(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            await backend(
                outside,
                "INSERT INTO list VALUES (1, 'home')",
                "INSERT INTO todo VALUES (1, 1, 'milk'), (2, 1, 'bread')",
                "UPDATE todo SET title = 'rye' WHERE id = 2",
                "DELETE FROM todo WHERE id = 1",
            )
            assert (await store.look()).waiting == 5
            outcome = await folded(store)
            assert (outcome.seq, outcome.folded) == (1, 5)
            # What came and went is not stated where transactions can be told, or as gone.
            told = {(r.row.table, unpack_key(r.row.key)) for r in outcome.rows}
            assert told - {(2, (1,))} == {(1, (1,)), (2, (2,))}
            found = await shown(store, 2)
            assert found.pop((1,), None) is None
            assert found == {(2,): {"list_id": 1, "title": "rye"}}
            assert (await store.look()).waiting == 0
            assert (await folded(store)).seq is None

        run(opener, scenario, LIST, TODO)

    def test_what_the_relay_writes_is_not_captured(self, opener: Opener, outside: Outside) -> None:
        async def scenario(store: Store) -> None:
            now = await time_there(store)
            new = inserted(at(now, A), {2: "a@x", 3: "Ann", 4: 7})
            await pushed(store, changeset(A, 1, entries((1, new))))
            changed = edited(at(now + 1, A), {4: 8})
            await pushed(store, changeset(A, 2, entries((1, changed))))
            await pushed(store, changeset(A, 3, entries((1, deleted(at(now + 2, A))))))
            assert (await store.look()).waiting == 0

        run(opener, scenario)

    def test_edits_of_a_client_and_of_a_backend_in_other_columns_both_stay(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            now = await one_person(store)
            await backend(outside, "UPDATE person SET age = 8")
            offline = edited(at(now + 1, B), {3: "Bea"})
            outcome = await pushed(store, changeset(B, 1, entries((1, offline))))
            assert outcome.folded == 1
            # Not just what the author has: so it is told.
            (stated,) = outcome.rows
            assert stated.author is None
            assert await shown(store) == {(1,): {"email": "a@x", "name": "Bea", "age": 8}}
            assert await in_table(outside, "SELECT age FROM person WHERE name = 'Bea'") == [(8,)]

        run(opener, scenario)

    def test_a_backend_beats_what_it_saw_whatever_the_clocks_say(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            now = await one_person(store)
            ahead = edited(at(now + 50_000, B), {3: "Bea"})
            await pushed(store, changeset(B, 1, entries((1, ahead))))
            await backend(outside, "UPDATE person SET name = 'Cid', age = 9")
            await folded(store)
            assert await shown(store) == {(1,): {"email": "a@x", "name": "Cid", "age": 9}}
            (document,) = (await documents(store)).values()
            # Only the column that it had to be later in is stamped ahead of the clock.
            ahead_ms = [(time_of(document.cells[k << 3][0]) >> 16) - now for k in (3, 4)]
            assert ahead_ms[0] == 50_000
            assert ahead_ms[1] < 50_000
            # A later edit than the backend's true time wins where nobody had seen a later one.
            later = edited(at(now + 40_000, B), {4: 10})
            await pushed(store, changeset(B, 2, entries((1, later))))
            assert (await shown(store))[1,] == {"email": "a@x", "name": "Cid", "age": 10}

        run(opener, scenario)

    def test_a_counter_gets_what_each_side_added(self, opener: Opener, outside: Outside) -> None:
        async def scenario(store: Store) -> None:
            await backend(outside, "INSERT INTO tally VALUES (1, 5, 'x')")
            await folded(store)
            await backend(outside, "UPDATE tally SET n = n + 3", "UPDATE tally SET n = n - 1")
            await backend(outside, "UPDATE tally SET note = 'y', n = n")
            await folded(store)
            assert await shown(store) == {(1,): {"n": 7, "note": "y"}}
            await backend(outside, "UPDATE tally SET n = NULL")
            await folded(store)
            assert (await shown(store))[1,] == {"n": None, "note": "y"}

        run(opener, scenario, TALLY)

    def test_a_column_that_is_set_to_what_it_holds_is_no_edit(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            await one_person(store)
            before = await documents(store)
            await backend(outside, "UPDATE person SET email = email, name = 'Ann'")
            outcome = await folded(store)
            assert outcome.rows == ()
            assert await documents(store) == before

        run(opener, scenario)

    def test_a_row_over_a_deleted_one_has_nothing_of_it(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            now = await one_person(store)
            gone = deleted(at(now + 50_000, B))
            await pushed(store, changeset(B, 1, entries((1, gone))))
            await backend(outside, "INSERT INTO person (id, name) VALUES (1, 'Zoe')")
            await folded(store)
            assert await shown(store) == {(1,): {"email": None, "name": "Zoe", "age": None}}

        run(opener, scenario)

    def test_a_row_that_gets_another_key_is_another_row(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            await one_person(store)
            await backend(outside, "UPDATE person SET id = 2, age = 8")
            await folded(store)
            assert await shown(store) == {
                (1,): None,
                (2,): {"email": "a@x", "name": "Ann", "age": 8},
            }

        run(opener, scenario)

    def test_a_backends_delete_gives_way_to_a_later_edit_and_the_row_comes_back(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            now = await one_person(store)
            await backend(outside, "DELETE FROM person")
            later = edited(at(now + 50_000, B), {4: 8})
            await pushed(store, changeset(B, 1, entries((1, later))))
            assert await in_table(outside, "SELECT email, age FROM person") == [("a@x", 8)]
            # And to an older one it does not.
            await backend(outside, "DELETE FROM person")
            older = edited(at(now + 1, B), {4: 9})
            await pushed(store, changeset(B, 2, entries((1, older))))
            assert await in_table(outside, "SELECT email, age FROM person") == []
            assert await shown(store) == {(1,): None}

        run(opener, scenario)

    def test_a_row_that_both_insert_merges(self, opener: Opener, outside: Outside) -> None:
        async def scenario(store: Store) -> None:
            now = await time_there(store)
            await backend(outside, "INSERT INTO person VALUES (1, 'b@x', NULL, 3)")
            new = inserted(at(now + 50_000, A), {2: "a@x"})
            new = new._replace(cells={**new.cells, 3 << 3: (FLOOR, None), 4 << 3: (FLOOR, None)})
            await pushed(store, changeset(A, 1, entries((1, new))))
            assert await shown(store) == {(1,): {"email": "a@x", "name": None, "age": 3}}
            assert await in_table(outside, "SELECT * FROM person") == [(1, "a@x", None, 3)]

        run(opener, scenario)

    def test_what_a_backend_overwrote_is_in_the_history(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            await one_person(store)
            await backend(outside, "UPDATE person SET name = 'Bea'")
            await folded(store)
            found = await store.losses(row(1))
            (lost,) = listed("person", 1, {3 << 3: "name"}, found)
            assert (lost.value, lost.replica, lost.replaced_by) == ("Ann", A, store.replica)

        run(opener, scenario)

    def test_more_than_can_be_read_in_one_part_is_one_commit(
        self, opener: Opener, outside: Outside, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts = "reunite_transport.relay"
        monkeypatch.setattr(f"{parts}.postgres_capture.PART_ROWS", 7)
        monkeypatch.setattr(f"{parts}.sqlite_capture.PART_WRITES", 7)
        monkeypatch.setattr(f"{parts}.backend.STATED_ROWS_MAX", 20)

        async def scenario(store: Store) -> None:
            values = ", ".join(f"({key}, 'm{key}@x', 'n', {key})" for key in range(1, 41))
            await backend(outside, f"INSERT INTO person VALUES {values}")
            await backend(outside, "UPDATE person SET age = age + 1 WHERE id % 2 = 0")
            outcome = await folded(store)
            assert (outcome.seq, outcome.folded) == (1, 60)
            # Too many to be told one by one.
            assert not outcome.all_rows
            ages = {key[0]: cells["age"] for key, cells in (await shown(store)).items() if cells}
            assert ages == {key: key + (key % 2 == 0) for key in range(1, 41)}

        run(opener, scenario)

    def test_waiting_writes_are_counted_up_to_a_limit(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            values = ", ".join(f"({key}, 'm{key}@x')" for key in range(BACKLOG_MAX + 5))
            await backend(outside, f"INSERT INTO person (id, email) VALUES {values}")
            look = await store.look()
            assert look.waiting == BACKLOG_MAX
            assert look.lag_seconds >= 0

        run(opener, scenario)

    def test_a_commit_that_fails_leaves_what_was_captured(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario(store: Store) -> None:
            await backend(outside, "INSERT INTO person (id) VALUES (1)")

            async def fails() -> None:
                async with store.begin() as transaction:
                    taken = [w async for part in transaction.captured() for w in part]
                    assert len(taken) == 1
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fails()
            assert (await store.look()).waiting == 1
            await folded(store)
            assert await shown(store) == {(1,): {"email": None, "name": None, "age": None}}

        run(opener, scenario)

    def test_a_relay_that_comes_later_folds_what_was_written_while_none_ran(
        self, opener: Opener, outside: Outside
    ) -> None:
        async def scenario() -> None:
            async with opener() as store:
                await store.describe([PERSON], create=True)
            await backend(outside, "INSERT INTO person (id) VALUES (1)")
            async with opener() as store:
                outcome = await folded(store)
                assert outcome.folded == 1
                (document,) = (await documents(store)).values()
                assert replica_of(document.born) == store.replica

        asyncio.run(scenario())


def run(opener: Opener, scenario: Callable[[Store], Awaitable[None]], *tables: Table) -> None:
    """Run a scenario on a realm of these tables, or of PERSON."""

    async def opened() -> None:
        async with opener() as store:
            await store.describe(tables or [PERSON], create=True)
            for replica in (A, B):
                await store.greet(replica, 0, (), 0, b"")
            await scenario(store)

    asyncio.run(opened())


async def backend(outside: Outside, *statements: str) -> None:
    """One transaction of a backend."""
    async with outside() as execute:
        for statement in statements:
            await execute(statement)


async def in_table(outside: Outside, query: str) -> list[tuple[object, ...]]:
    """The rows of a query."""
    async with outside() as execute:
        found = await execute(query)
    assert isinstance(found, list)
    return [tuple(each) for each in found]


async def folded(store: Store) -> Outcome:
    """Fold what is captured, as a commit without pushes does."""
    seq = (await store.head())[0] + 1
    return await commit_batch(store, [], b"token%03d" % seq)


async def pushed(store: Store, *batch: Changeset) -> Outcome:
    """Commit a batch that is taken."""
    seq = (await store.head())[0] + 1
    outcome = await commit_batch(store, batch, b"token%03d" % seq)
    assert set(outcome.verdicts) == {Taken()}
    return outcome


async def time_there(store: Store) -> int:
    """The database's clock."""
    greeting = await store.greet(1 << 40, 0, (), 0, b"")
    return greeting.now_ms


async def one_person(store: Store) -> int:
    """Row 1 by A, at a time that is returned."""
    now = await time_there(store)
    new = inserted(at(now, A), {2: "a@x", 3: "Ann", 4: 7})
    await pushed(store, changeset(A, 1, entries((1, new))))
    return now


async def documents(store: Store, table_id: int = 1) -> Mapping[tuple[Value, ...], Document]:
    """The documents of a table by key, as the feed has them."""
    page = await store.page(0, b"", rows_max=10_000, bytes_max=ALL)
    found = {}
    for section in page.sections:
        if section.table == table_id:
            for key, data in zip(section.keys, section.documents, strict=True):
                found[unpack_key(key)] = decode(data)
    return found


async def shown(store: Store, table_id: int = 1) -> Shown:
    """What the documents of a table show."""
    tables = {each.id: each for each in await store.registry()}
    columns = columns_of(tables[table_id].cells)
    names = [each.name for each in columns.columns]
    return {
        key: dict(zip(names, columns.values(document), strict=True)) if document.alive else None
        for key, document in (await documents(store, table_id)).items()
    }
