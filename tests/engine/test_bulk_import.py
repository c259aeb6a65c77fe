"""What other programs write in one large transaction: it leaves in an order that foreign keys
allow, whatever its size."""

from collections.abc import Iterator

from reunite.capture import WINDOW
from reunite.cells.register import Value
from reunite.outbox import LOOSE_ROWS_MAX, pending
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

PARENT = "CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT)"
CHILD = "CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER NOT NULL REFERENCES p (id))"
PARENTS, CHILDREN = 20_500, 3_000
IMPORT = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    " INSERT INTO {} SELECT i, {} FROM n"
)


def in_one_transaction(peer: Peer, *statements: str) -> None:
    peer.write("BEGIN", *statements, "COMMIT")


def leaving(peer: Peer) -> Iterator[str]:
    """The table of each entry in the order in which changesets and entries leave."""
    peer.replica.outbox_mark()
    name_by_id = {tracked.id: tracked.table.name for tracked in peer.replica.tables()}
    for changeset in pending(peer.engine):
        entries = changeset.entries()
        assert len(entries) <= LOOSE_ROWS_MAX
        yield from (name_by_id[entry.row.table] for entry in entries)


def left(peer: Peer) -> list[Value]:
    """The keys in the order in which they leave."""
    peer.replica.outbox_mark()
    return [entry.row.key for changeset in pending(peer.engine) for entry in changeset.entries()]


def test_a_bulk_import_leaves_parents_first_and_a_bulk_delete_children_first(
    make_peer: MakePeer, relay: Relay
) -> None:
    assert PARENTS > WINDOW
    # The child is tracked first, and has the lower number.
    peer = make_peer(CHILD, PARENT)
    peer.track("c")
    peer.track("p")
    relay.sync(peer)
    in_one_transaction(
        peer, IMPORT.format(PARENTS, "p", "'x'"), IMPORT.format(CHILDREN, "c", "i % 20500 + 1")
    )
    assert list(leaving(peer)) == ["p"] * PARENTS + ["c"] * CHILDREN
    relay.sync(peer)
    assert peer.replica.queued() == 0
    in_one_transaction(peer, "DELETE FROM c", "DELETE FROM p")
    assert list(leaving(peer)) == ["c"] * CHILDREN + ["p"] * PARENTS


def test_a_program_that_minds_no_foreign_keys_may_write_children_first(
    make_peer: MakePeer, relay: Relay
) -> None:
    peer = make_peer(PARENT, CHILD)
    peer.track("p", "c")
    peer.write("PRAGMA foreign_keys = OFF")
    in_one_transaction(peer, IMPORT.format(CHILDREN, "c", "i"), IMPORT.format(CHILDREN, "p", "'x'"))
    assert list(leaving(peer)) == ["p"] * CHILDREN + ["c"] * CHILDREN
    relay.sync(peer)
    in_one_transaction(peer, "DELETE FROM p", "DELETE FROM c")
    assert list(leaving(peer)) == ["c"] * CHILDREN + ["p"] * CHILDREN


def test_rows_that_refer_to_their_own_table_leave_as_they_were_written(
    make_peer: MakePeer, relay: Relay
) -> None:
    peer = make_peer("CREATE TABLE node (id TEXT PRIMARY KEY, up TEXT REFERENCES node (id))")
    peer.track("node")
    # Keys that do not grow, each node below the one before it.
    keys = [f"{number * 7_919 % 10_007:05}" for number in range(3 * LOOSE_ROWS_MAX)]
    with peer.app:
        peer.app.execute("BEGIN")
        peer.app.executemany(
            "INSERT INTO node VALUES (?, ?)", zip(keys, [None, *keys], strict=False)
        )
    assert left(peer) == keys
    relay.sync(peer)
    with peer.app:
        peer.app.execute("BEGIN")
        peer.app.executemany("DELETE FROM node WHERE id = ?", [(key,) for key in reversed(keys)])
    assert left(peer) == keys[::-1]
