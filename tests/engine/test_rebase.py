"""Pending edits of cells that merge, when what they were made on is refused, or is another row."""

import json
import random
import re
import sqlite3
from collections.abc import Sequence

import pytest

from reunite.adopt import Choice
from reunite.cells.register import Value
from reunite.outbox import pending
from reunite.replica import Outgoing
from tests.engine.conftest import MakePeer
from tests.engine.loopback import Refusal, Relay
from tests.engine.peer import Peer

COLUMNS = (
    "n COUNTER DEFAULT 0, body CRDT_TEXT, tags CRDT_SET_TEXT, l CRDT_LIST_TEXT, j CRDT_JSON_TEXT"
)
MERGING = f"CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT, {COLUMNS})"
PLAIN = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT, n INT DEFAULT 0, body TEXT, tags TEXT, l TEXT,"
    " j TEXT)"
)
OURS = """INSERT INTO t VALUES (1, 'x', 50, 'ours', '["o"]', '["o"]', '{"o":1}')"""
THEIRS = """INSERT INTO t VALUES (1, 'x', 5, 'theirs', '["t"]', '["t"]', '{"t":1}')"""
ROWS = "SELECT n, body, tags, l, j FROM t ORDER BY id"
# One edit of every cell that merges; the word stands before or behind what is there.
EDIT = """UPDATE t SET n = n + {n}, body = {body},
    tags = json_insert(coalesce(tags, '[]'), '$[#]', '{w}'),
    l = json_insert(coalesce(l, '[]'), '$[#]', '{w}'), j = json_set(coalesce(j, '{{}}'), '$.{w}', 1)
    WHERE id = {id}"""


def edit(word: str, *, row: int = 1, number: int = 1, before: bool = False) -> str:
    """The statement that adds a number and a word."""
    body = f"'{word} ' || coalesce(body, '')" if before else f"coalesce(body, '') || ' {word}'"
    return EDIT.format(n=number, body=body, w=word, id=row)


def sync(relay: Relay, *peers: Peer, choice: Choice | None = None) -> None:
    """Connect these with a choice, let all go through, and disconnect."""
    links = [relay.connect(peer, choice=choice) for peer in peers]
    relay.settle()
    for link in links:
        link.close()


def newest(peer: Peer) -> bytes:
    """What the peer's last pending changeset is known by."""
    return list(pending(peer.engine))[-1].nonce


def refuse(relay: Relay, nonces: Sequence[bytes] | set[bytes]) -> None:
    """Refuse these changesets from now on."""

    def verdict(changeset: Outgoing, _after: object) -> Refusal | None:
        return Refusal() if changeset.nonce in nonces else None

    relay.refuse = verdict


@pytest.mark.parametrize(
    ("choice", "row"),
    [
        ("theirs", (6, "theirs w", '["t","w"]', '["t","w"]', '{"t":1,"w":1}')),
        ("ours", (51, "ours w", '["o","w"]', '["o","w"]', '{"o":1,"w":1}')),
    ],
)
@pytest.mark.parametrize("tracked_late", [False, True])
def test_edits_of_an_adopted_row_are_made_on_the_chosen_one(
    choice: Choice, row: tuple[Value, ...], tracked_late: bool, make_peer: MakePeer, relay: Relay
) -> None:
    theirs, ours = make_peer(MERGING, THEIRS), make_peer(MERGING, OURS)
    theirs.track("t")
    sync(relay, theirs)
    if tracked_late:
        sync(relay, ours)
    ours.track("t")
    ours.commit(edit("w"), at=1)
    sync(relay, ours, choice=choice)
    sync(relay, theirs)
    assert theirs.rows(ROWS) == ours.rows(ROWS) == [row]
    assert ours.differences() == []


def test_edits_of_a_stale_copy_are_made_on_what_the_row_became(
    make_peer: MakePeer, relay: Relay
) -> None:
    """The copy was changed before it was tracked, which cannot be told from one that is older."""
    theirs, ours = make_peer(MERGING, THEIRS), make_peer(MERGING, OURS)
    theirs.track("t")
    theirs.commit(edit("since"), "UPDATE t SET x = 'y'", at=1)
    ours.track("t")
    ours.commit(edit("w"), at=2)
    sync(relay, theirs)
    sync(relay, ours, theirs)
    assert theirs.rows(ROWS) == ours.rows(ROWS)
    assert ours.rows(ROWS)[0] == (
        7,
        "theirs since w",
        '["since","t","w"]',
        '["t","since","w"]',
        '{"since":1,"t":1,"w":1}',
    )


def test_a_removal_of_a_copy_that_is_made_anew_takes_away_no_add_that_it_had_not_seen(
    make_peer: MakePeer, relay: Relay
) -> None:
    original, other = make_peer(MERGING, THEIRS), make_peer(MERGING)
    for peer in (original, other):
        peer.track("t")
        sync(relay, peer)
    copy = make_peer(copy_of=original)
    original.commit("UPDATE t SET x = 'since'", at=1)
    copy.commit("UPDATE t SET tags = '[]'", at=1)
    other.commit("UPDATE t SET tags = '[]'", at=1)
    other.commit("""UPDATE t SET tags = '["t"]'""", at=2)
    for peer in (original, other, copy, original, other):
        sync(relay, peer)
    assert [p.rows("SELECT tags FROM t") for p in (original, other, copy)] == [[('["t"]',)]] * 3


def test_edits_that_were_to_merge_are_values_where_the_realm_has_plain_columns(
    make_peer: MakePeer, relay: Relay
) -> None:
    theirs, ours = make_peer(PLAIN, THEIRS), make_peer(MERGING, OURS)
    theirs.track("t")
    sync(relay, theirs)
    ours.track("t")
    ours.commit(edit("w"), at=1)
    sync(relay, ours, choice="theirs")
    sync(relay, theirs)
    assert theirs.rows(ROWS) == ours.rows(ROWS)
    assert ours.rows("SELECT n, body FROM t") == [(51, "ours w")]


def test_an_edit_of_what_stands_beside_a_cell_makes_what_is_wanted(
    make_peer: MakePeer, relay: Relay
) -> None:
    """The cell is brought to it, and all see the same."""
    merging, plain = make_peer(MERGING), make_peer(PLAIN)
    for peer, row, at in ((merging, THEIRS, 1), (plain, OURS, 2)):
        peer.track("t")
        peer.commit(row, at=at)
    sync(relay, merging, plain)
    sync(relay, merging)
    assert merging.rows(ROWS) == plain.rows(ROWS)
    assert merging.rows("SELECT n, body FROM t") == [(50, "ours")]
    merging.commit("UPDATE t SET n = n + 1, body = body || '!'", at=3)
    sync(relay, merging, plain)
    assert merging.rows(ROWS) == plain.rows(ROWS)
    assert plain.rows("SELECT n, body FROM t") == [(51, "ours!")]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_not_refused_counts_exactly(seed: int, make_peer: MakePeer, relay: Relay) -> None:
    """Three replicas edit two rows, as apps and as other programs, and some of it is refused."""
    chance = random.Random(seed)
    peers = [make_peer(MERGING) for _ in range(3)]
    for peer in peers:
        peer.track("t")
        relay.sync(peer)
    peers[0].commit("INSERT INTO t (id) VALUES (1), (2)", at=0)
    relay.sync(*peers)
    refused: set[bytes] = set()
    refuse(relay, refused)
    taken: dict[int, dict[str, int]] = {1: {}, 2: {}}
    for step in range(40):
        peer = chance.choice(peers)
        if chance.random() < 0.25:
            relay.sync(*chance.sample(peers, chance.randint(1, 3)))
            continue
        word, row, number = f"w{step:02}", chance.choice((1, 2)), chance.randint(1, 9)
        statement = edit(word, row=row, number=number, before=chance.random() < 0.5)
        if chance.random() < 0.4:
            peer.write(statement, at=step)
            peer.fold()
        else:
            peer.commit(statement, at=step)
            if chance.random() < 0.3:
                refused.add(newest(peer))
                continue
        taken[row][word] = number
    for _ in range(2):
        relay.sync(*peers)
    assert [peer.rows(ROWS) for peer in peers[1:]] == [peers[0].rows(ROWS)] * 2
    assert sum(len(peer.rejected()) for peer in peers) == len(refused)
    for (n, body, tags, items, keyed), words in zip(
        peers[0].rows(ROWS), taken.values(), strict=True
    ):
        assert n == sum(words.values())
        assert sorted(re.findall(r"w\d\d", str(body or ""))) == sorted(words)
        for held in (tags or "[]", items or "[]", keyed or "{}"):
            assert sorted(json.loads(str(held))) == sorted(words)


# Values of every kind, and some that a column cannot hold.
TEXTS = [
    "",
    "one two three",
    "one two",
    "two three e\u0301",
    "x 👨\u200d👩\u200d👧 y",
    "x 👨\u200d👩 y",
    None,
]
JSONS = [
    "{}",
    '{"a": 1}',
    '{"a":{"b":1,"c":[1,{"d":2}]}}',
    '{"a":{"b":2},"e":1.0}',
    "[1,2]",
    "[2, 1]",
]
JSONS += ['[{"a":1},{"a":2}]', '[{"a":2}]', "5", "null", "no json", "9007199254740993"]
NUMBERS = ["n + 1", "n - 2", "7", "NULL", "9223372036854775807", "-9223372036854775808", "'many'"]


def write_anything(chance: random.Random, conn: sqlite3.Connection) -> None:
    """One statement of any kind about one of two rows."""
    row, drawn = chance.choice((1, 2)), chance.random()
    if drawn < 0.12:
        conn.execute("DELETE FROM t WHERE id = ?", (row,))
    elif drawn < 0.35:
        clause = chance.choice(("IGNORE", "REPLACE"))
        conn.execute(f"INSERT OR {clause} INTO t (id, x) VALUES (?, 'x')", (row,))
    elif drawn < 0.5:
        conn.execute(f"UPDATE t SET n = {chance.choice(NUMBERS)} WHERE id = ?", (row,))
    else:
        column = chance.choice(("body", "tags", "l", "j"))
        value = chance.choice(TEXTS if column == "body" else [*JSONS, None])
        conn.execute(f"UPDATE t SET {column} = ? WHERE id = ?", (value, row))


@pytest.mark.parametrize("seed", range(20))
def test_files_agree_whatever_was_written_adopted_and_refused(
    seed: int, make_peer: MakePeer, relay: Relay
) -> None:
    """Some have rows when they are tracked, and some declare plain columns."""
    chance = random.Random(seed)
    peers = [make_peer(chance.choice((MERGING, MERGING, PLAIN))) for _ in range(3)]
    choice: Choice = chance.choice(("theirs", "ours"))
    for peer in peers:
        if chance.random() < 0.3:
            peer.write(chance.choice((OURS, THEIRS)))
        peer.track("t")
    refused: set[bytes] = set()
    refuse(relay, refused)
    for step in range(40):
        peer = chance.choice(peers)
        if chance.random() < 0.25:
            sync(relay, *chance.sample(peers, chance.randint(1, 3)), choice=choice)
            continue
        if chance.random() < 0.4:
            peer.write(at=step)
            write_anything(chance, peer.app)
            continue
        with peer.transaction(at=step) as conn:
            for _ in range(chance.randint(1, 3)):
                write_anything(chance, conn)
        if chance.random() < 0.2 and list(pending(peer.engine)):
            refused.add(newest(peer))
    for _ in range(3):
        sync(relay, *peers, choice=choice)
    everything = "SELECT id, x, n, body, tags, l, j FROM t ORDER BY id"
    assert [peer.rows(everything) for peer in peers[1:]] == [peers[0].rows(everything)] * 2
    assert [peer.differences() for peer in peers] == [[]] * 3
