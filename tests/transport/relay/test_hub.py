"""The hub: who hears what of a commit."""

import pytest

from reunite.schema import Column, Table
from reunite_transport import relay_session
from reunite_transport.messages import (
    Behind,
    Commit,
    Error,
    Known,
    Page,
    Registry,
    Rejected,
    RelayMessage,
)
from reunite_transport.relay import hub as hub_module
from reunite_transport.relay.commit import CommittedRow
from reunite_transport.relay.hub import Hub
from reunite_transport.relay.store import RowId
from tests.transport.relay.clients import TODO, Client


def a_hub(head: int = 10) -> Hub:
    return Hub(head=head, registry=(TODO,))


def token(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def row(key: bytes, author: int | None = None, size: int = 1) -> CommittedRow:
    return CommittedRow(RowId(1, key), b"d" * size, author)


def publish(
    hub: Hub, seq: int, *rows: CommittedRow, by: dict[Client, list[int]] | None = None
) -> None:
    acknowledged = {client.member: numbers for client, numbers in (by or {}).items()}
    hub.publish(seq, token(seq), rows, acknowledged)


def keys(message: RelayMessage) -> list[bytes]:
    assert isinstance(message, Commit | Page)
    return [key for section in message.sections for key in section.keys]


def seqs(client: Client) -> list[int]:
    heard = client.hear()
    return [message.seq for message in heard if isinstance(message, Commit | Behind)]


def test_a_commit_is_encoded_once_for_all_but_its_author() -> None:
    hub = a_hub()
    author, one, other = (Client(hub, replica).live() for replica in (1, 2, 3))
    for client in (author, one, other):
        client.frames()
    publish(hub, 11, row(b"a", 1), row(b"b", 2), row(b"c"), by={author: [5, 6]})
    (mine,) = author.hear()
    assert isinstance(mine, Commit)
    assert mine.acknowledged == (5, 6)
    assert keys(mine) == [b"b", b"c"]
    (first,), (second,) = one.frames(), other.frames()
    assert first is second
    assert one.woken
    publish(hub, 12)
    (theirs,) = one.hear()
    assert theirs == Commit(12, token(12), (), ())


def test_a_session_that_read_its_last_page_gets_what_was_committed_since() -> None:
    hub = a_hub()
    client = Client(hub, 1)
    for seq in (11, 12, 13):
        publish(hub, seq, row(b"%d" % seq), by={client: [seq]})
    known = Known(((11, 11),)), Known(((12, 12),)), Known(((13, 13),))
    assert client.hear() == list(known)
    client.live(11)
    page, *commits = client.hear()
    assert isinstance(page, Page)
    # Acknowledged already: these hold all rows, and join nothing by themselves.
    assert [(keys(commit), commit.acknowledged) for commit in commits] == [  # type: ignore[union-attr]
        ([b"12"], ()),
        ([b"13"], ()),
    ]


def test_who_read_too_long_ago_pulls_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RECENT_MAX", 2)
    hub = a_hub()
    for seq in (11, 12, 13):
        publish(hub, seq, row(b"k"))
    assert seqs(Client(hub, 1).live(11))[-2:] == [12, 13]
    assert seqs(Client(hub, 2).live(10))[-1:] == [13]
    assert isinstance(Client(hub, 3).live(10).hear()[-1], Behind)


def test_recent_commits_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RECENT_BYTES_MAX", 1_000)
    hub = a_hub()
    for seq in range(11, 100):
        publish(hub, seq, row(b"k", size=300))
    assert hub._recent_bytes <= 1_000
    assert len(hub._recent) == 3


def test_a_commit_that_is_too_large_is_pulled_but_not_by_its_sole_author(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "LIVE_COMMIT_BYTES_MAX", 1_000)
    hub = a_hub()
    author, other = Client(hub, 1).live(), Client(hub, 2).live()
    author.frames()
    other.frames()
    publish(hub, 11, row(b"a", 1, size=2_000), by={author: [1]})
    assert author.hear() == [Commit(11, token(11), (1,), ())]
    assert other.hear() == [Behind(11)]
    publish(hub, 12, row(b"a", None, size=2_000), by={author: [2]})
    assert author.hear() == [Known(((2, 12),)), Behind(12)]
    assert isinstance(Client(hub, 3).live(11).hear()[-1], Behind)


def test_a_slow_reader_falls_behind_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "LIVE_BYTES_MAX", 2_000)
    hub = a_hub()
    slow, quick = Client(hub, 1).live(), Client(hub, 2).live()
    slow.frames()
    quick.frames()
    for seq in range(11, 60):
        publish(hub, seq, row(b"k", size=300))
        assert seqs(quick) == [seq]
    assert slow.session.unsent_bytes < 4_000
    assert isinstance(slow.hear()[-1], Behind)


def test_a_commit_of_another_relay_is_pulled() -> None:
    hub = a_hub()
    client = Client(hub, 1).live()
    client.frames()
    assert hub.observe(12, token(12), in_flight=None)
    assert client.hear() == [Behind(12)]
    assert not hub.observe(12, token(12), in_flight=None)
    # Ours came before theirs, and is published after it was seen.
    publish(hub, 11, row(b"k"), by={client: [1]})
    assert client.hear() == [Known(((1, 11),))]
    assert hub.head == 12


def test_a_commit_under_way_is_not_mistaken_for_another_relays() -> None:
    hub = a_hub()
    client = Client(hub, 1).live()
    client.frames()
    assert not hub.observe(11, token(11), in_flight=token(11))
    publish(hub, 11, row(b"k"))
    assert seqs(client) == [11]
    assert hub.observe(13, token(13), in_flight=token(13))
    assert client.hear() == [Behind(12)]
    client.live(12)
    publish(hub, 13, row(b"k"))
    assert isinstance(client.hear()[-1], Commit)


def test_an_old_reading_of_the_head_changes_nothing() -> None:
    hub = a_hub()
    client = Client(hub, 1).live()
    publish(hub, 11, row(b"k"))
    client.frames()
    assert not hub.observe(10, token(10), in_flight=None)
    assert client.hear() == []
    assert hub.head == 11


def test_a_database_that_went_back_ends_all_sessions_and_begins_anew() -> None:
    hub = a_hub()
    client = Client(hub, 1).live()
    publish(hub, 11, row(b"lost"))
    client.frames()
    hub.go_back()
    (error,) = client.hear()
    assert isinstance(error, Error)
    assert error.code == "restored"
    assert client.woken
    assert (hub.head, hub.registry, hub.history) == (0, (), 1)
    # What others wrote over the lost numbers is not sent from memory.
    again = Client(hub, 1, term=2).live(10)
    assert hub.observe(11, b"another8", in_flight=None)
    assert isinstance(again.hear()[-1], Behind)
    again.live(11)
    publish(hub, 12, row(b"k"))
    assert seqs(again)[-1:] == [12]


def test_a_gap_between_own_commits_is_pulled() -> None:
    hub = a_hub()
    client = Client(hub, 1).live()
    client.frames()
    publish(hub, 12, row(b"k"))
    assert client.hear() == [Behind(12)]
    assert isinstance(Client(hub, 2).live(10).hear()[-1], Behind)


def test_a_replica_that_connects_again_ends_its_older_session() -> None:
    hub = a_hub()
    old = Client(hub, 1, term=1)
    new = Client(hub, 1, term=2).live()
    (error,) = old.hear()
    assert isinstance(error, Error)
    assert error.code == "fenced"
    overtaken = Client(hub, 1, term=1)
    assert overtaken.session.closed
    new.frames()
    hub.leave(old.member)
    publish(hub, 11, row(b"k"))
    assert seqs(new) == [11]


def test_a_registry_is_sent_when_it_has_grown_and_never_shrinks() -> None:
    hub = a_hub()
    one, other = Client(hub, 1), Client(hub, 2)
    wider = Table(TODO.name, (*TODO.columns, Column("done", 4, "INTEGER", "integer")), id=1)
    hub.grow((wider,), besides=one.member)
    hub.grow((TODO,))
    hub.grow((wider,))
    assert one.hear() == []
    assert other.hear() == [Registry((wider,))]
    assert hub.registry == (wider,)


def test_bad_news_reaches_only_who_is_still_here() -> None:
    hub = a_hub()
    client = Client(hub, 1)
    hub.reject(client.member, 1, b"nonce 88", "constraint", "no")
    assert client.hear() == [Rejected(1, b"nonce 88", "constraint", "no")]
    hub.leave(client.member)
    hub.reject(client.member, 2, b"nonce 88", "constraint", "no")
    publish(hub, 11, by={client: [2]})
    assert client.hear() == []
