"""The order in which loose rows leave: parents first, also within a table that refers to itself."""

import random
from collections.abc import Iterator

import pytest

from reunite.cells.register import Value
from reunite.outbox import LOOSE_ROWS_MAX, pending
from tests.engine.conftest import MakePeer
from tests.engine.peer import Peer

STAFF = "CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, boss INTEGER REFERENCES staff (id))"


def leaving(peer: Peer) -> list[Value]:
    """The keys in the order in which they will be sent."""
    return [entry.row.key for changeset in pending(peer.engine) for entry in changeset.entries()]


def bosses(count: int) -> Iterator[tuple[int, int | None]]:
    """A tree in which most bosses come later than those they lead."""
    yield count, None
    chance = random.Random(1)
    for number in range(count - 1, 0, -1):
        yield number, chance.randint(number + 1, count)


def write(peer: Peer, boss_by_id: dict[int, int | None]) -> None:
    """One transaction whose rows come in the order of their keys, children first."""
    peer.write("BEGIN", "PRAGMA defer_foreign_keys = 1")
    peer.app.executemany(
        "INSERT INTO staff VALUES (?, 'one', ?)",
        [(number, boss_by_id[number]) for number in sorted(boss_by_id)],
    )
    peer.write("COMMIT")


@pytest.mark.parametrize("adopted", [True, False])
def test_rows_of_a_table_that_refers_to_itself_leave_after_those_they_refer_to(
    make_peer: MakePeer, adopted: bool
) -> None:
    boss_by_id = dict(bosses(3 * LOOSE_ROWS_MAX))
    peer = make_peer(STAFF)
    if adopted:
        write(peer, boss_by_id)
        peer.track("staff")
    else:
        peer.track("staff")
        write(peer, boss_by_id)
        peer.fold()
    order = {key: place for place, key in enumerate(leaving(peer))}
    assert order.keys() == boss_by_id.keys()
    assert all(boss is None or order[boss] < order[key] for key, boss in boss_by_id.items())


def test_a_chain_may_be_long_and_a_circle_has_no_first(make_peer: MakePeer) -> None:
    peer = make_peer(STAFF)
    chain: dict[int, int | None] = {number: number + 1 for number in range(1, 5_000)}
    write(peer, {**chain, 5_000: 4_999, 6_000: 6_000, 7_000: None})
    peer.track("staff")
    assert sorted(leaving(peer), key=str) == sorted([*chain, 5_000, 6_000, 7_000], key=str)


def test_deleted_rows_leave_before_those_they_referred_to(make_peer: MakePeer) -> None:
    boss_by_id = dict(bosses(LOOSE_ROWS_MAX + 500))
    peer = make_peer(STAFF)
    peer.track("staff")
    write(peer, boss_by_id)
    peer.fold()
    sent = {changeset.id for changeset in pending(peer.engine)}
    for changeset in sent:
        # As if the relay had them, so that what follows is a deletion of known rows.
        peer.engine.execute("DELETE FROM _reunite_changesets WHERE id = ?", (changeset,))
    peer.engine.execute("UPDATE _reunite_rows SET base = visible, visible = NULL, changeset = NULL")
    peer.write("BEGIN", "PRAGMA defer_foreign_keys = 1", "DELETE FROM staff", "COMMIT")
    assert len(peer.fold()) == len(boss_by_id)
    order = {key: place for place, key in enumerate(leaving(peer))}
    assert all(boss is None or order[boss] > order[key] for key, boss in boss_by_id.items())


def test_a_composite_key_is_found_again_in_the_columns_that_refer_to_it(
    make_peer: MakePeer,
) -> None:
    peer = make_peer(
        "CREATE TABLE node (tree TEXT, id INT, up INT, PRIMARY KEY (tree, id),"
        " FOREIGN KEY (tree, up) REFERENCES node (tree, id))",
        "BEGIN",
        "PRAGMA defer_foreign_keys = 1",
        "INSERT INTO node VALUES ('a', 1, 2), ('a', 2, 3), ('a', 3, NULL), ('b', 1, 1)",
        "COMMIT",
    )
    peer.track("node")
    order = leaving(peer)
    assert order.index("'a',3") < order.index("'a',2") < order.index("'a',1")
