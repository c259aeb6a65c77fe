"""Columns that are declared to merge: what they may hold when a table is tracked, and that files
which declare one column differently agree on what it is."""

import pytest

from reunite.adopt import match_ids
from reunite.errors import TableError
from reunite.schema import Column, Table
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

KINDS = {
    "likes": "counter",
    "body": "crdt_text",
    "tags": "crdt_set",
    "steps": "crdt_list",
    "meta": "crdt_json",
}
POST = (
    "CREATE TABLE post (id INTEGER PRIMARY KEY, likes COUNTER NOT NULL DEFAULT 0,"
    " body CRDT_TEXT DEFAULT '', tags CRDT_SET_TEXT DEFAULT '[]', steps CRDT_LIST_TEXT,"
    " meta CRDT_JSON_TEXT)"
)
PLAIN = (
    "CREATE TABLE post (id INTEGER PRIMARY KEY, meta TEXT, steps TEXT, tags TEXT, body TEXT,"
    " likes INT)"
)


def types(peer: Peer) -> dict[str, str]:
    """The logical types of a peer's one table, without the key."""
    (tracked,) = peer.replica.tables()
    return {column.name: column.type for column in tracked.table.cells}


def test_values_that_fit_are_tracked(make_peer: MakePeer) -> None:
    peer = make_peer(
        POST,
        "INSERT INTO post VALUES (1, 5, 'a', '[1]', '[]', '{}')",
        "INSERT INTO post (id) VALUES (2)",
    )
    peer.track("post")
    assert types(peer) == KINDS


@pytest.mark.parametrize(
    ("column", "literal", "words"),
    [
        ("likes", "'many'", "'likes' is declared COUNTER, so it takes integers or NULL;.*'many'"),
        ("likes", "1.5", "COUNTER.*1.5"),
        ("body", "x'00'", r"CRDT_TEXT, so it takes text or NULL;.*b'\\x00'"),
        ("tags", "'a, b'", "CRDT_SET_TEXT, so it takes text that is a JSON array.*'a, b'"),
        ("steps", "'{}'", "CRDT_LIST_TEXT.*JSON array.*'{}'"),
        ("meta", "'[NaN]'", r"CRDT_JSON_TEXT.*JSON.*'\[NaN\]'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_row(
    make_peer: MakePeer, column: str, literal: str, words: str
) -> None:
    peer = make_peer(
        POST,
        "INSERT INTO post (id) VALUES (1)",
        f"INSERT INTO post (id, {column}) VALUES (7, {literal})",
    )
    with pytest.raises(TableError, match=f"'post': column .*{words}") as caught:
        peer.track("post")
    assert "the row with the key 7 holds" in str(caught.value)
    assert "correct such values" in str(caught.value)
    assert peer.replica.tables() == []
    peer.write("DELETE FROM post WHERE id = 7")
    assert peer.track("post") == ["post"]


def test_a_row_is_named_by_its_whole_key_and_long_values_are_cut(make_peer: MakePeer) -> None:
    peer = make_peer(
        "CREATE TABLE t (a TEXT, n COUNTER, b INT, PRIMARY KEY (b, a))",
        f"INSERT INTO t VALUES ('x', '{'y' * 5_000}', 2)",
    )
    with pytest.raises(TableError, match=r"key 2, 'x' holds 'yyy.*\.\.\.") as caught:
        peer.track("t")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("default", ["'x'", "1.5", "x'00'"])
def test_a_default_that_does_not_fit_is_named(make_peer: MakePeer, default: str) -> None:
    peer = make_peer(f"CREATE TABLE t (id INTEGER PRIMARY KEY, n COUNTER DEFAULT {default})")
    with pytest.raises(TableError, match=r"'n' is declared COUNTER.*default is"):
        peer.track("t")


def test_the_realms_merging_decides_for_a_table_that_was_tracked_before(
    make_peer: MakePeer, relay: Relay
) -> None:
    merging, plain = make_peer(POST), make_peer(PLAIN)
    merging.track("post")
    plain.track("post")
    assert types(plain) == dict.fromkeys(("meta", "steps", "tags", "body"), "text") | {
        "likes": "integer"
    }
    relay.sync(merging, plain)
    assert types(merging) == types(plain) == KINDS
    # A rescan keeps what was agreed, also of a column that was renamed.
    for change in ("ADD COLUMN mine TEXT", "RENAME likes TO votes"):
        plain.write(f"ALTER TABLE post {change}")
        relay.sync(plain)
    votes = {"votes" if name == "likes" else name: kind for name, kind in KINDS.items()}
    assert types(plain) == votes | {"mine": "text"}


def test_a_realm_that_does_not_merge_a_column_decides_as_well(
    make_peer: MakePeer, relay: Relay
) -> None:
    plain, merging = make_peer(PLAIN), make_peer(POST)
    plain.track("post")
    merging.track("post")
    relay.sync(plain, merging)
    assert types(merging) == types(plain)
    assert set(types(plain).values()) == {"text", "integer"}


def test_the_realm_decides_for_a_table_that_is_tracked_later(
    make_peer: MakePeer, relay: Relay
) -> None:
    merging, late = make_peer(POST), make_peer(PLAIN)
    merging.track("post")
    relay.sync(merging, late)
    assert late.replica.untracked() == ["post"]
    late.write("INSERT INTO post (id, tags) VALUES (3, 'a, b')")
    with pytest.raises(TableError, match=r"declared TEXT and merges as crdt_set.*key 3 holds"):
        late.track("post")
    late.write("UPDATE post SET tags = '[\"a\"]'")
    late.track("post")
    assert types(late) == KINDS


def test_a_table_tracked_later_need_not_fit_what_the_realm_does_not_merge(
    make_peer: MakePeer, relay: Relay
) -> None:
    plain, late = make_peer(PLAIN), make_peer(POST)
    plain.track("post")
    relay.sync(plain, late)
    late.write("INSERT INTO post (id, tags) VALUES (3, 'a, b')")
    late.track("post")
    assert types(late) == types(plain)


def test_a_column_that_two_files_add_is_what_the_realm_has(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = (make_peer("CREATE TABLE t (id INTEGER PRIMARY KEY)") for _ in range(2))
    for peer in (a, b):
        peer.track("t")
        relay.sync(peer)
    a.write("ALTER TABLE t ADD COLUMN n COUNTER DEFAULT 0")
    b.write("ALTER TABLE t ADD COLUMN n INTEGER DEFAULT 0")
    relay.sync(a, b)
    assert types(a) == types(b) == {"n": "counter"}


def test_a_file_without_the_table_gets_it_as_it_was_declared(
    make_peer: MakePeer, relay: Relay
) -> None:
    a, b = make_peer(POST), make_peer()
    a.track("post")
    relay.sync(a, b)
    assert types(b) == KINDS
    declared = (
        "SELECT name, type, \"notnull\", dflt_value FROM pragma_table_info('post') ORDER BY 1"
    )
    assert b.rows(declared) == a.rows(declared)


def test_no_key_merges_whatever_a_relay_says(make_peer: MakePeer) -> None:
    peer = make_peer()
    local = Table("t", (Column("id", 1, "INTEGER", "integer", key=1),))
    remote = Table("t", (Column("id", 4, "COUNTER", "counter", key=1),), 1)
    with peer.replica.transaction() as state:
        (key,) = match_ids(state, local, remote).columns
    assert (key.id, key.type) == (4, "integer")
