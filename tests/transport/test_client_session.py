"""The client's end of a connection: what it says to a relay that is played by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reunite.bookkeeping import turn_of
from reunite.clock import NEVER, stamp
from reunite.document import Document
from reunite.document import encode as encode_document
from reunite.keys import pack_key
from reunite.outbox import everything
from reunite.overwritten import Loss
from reunite.replica import Replica
from reunite.schema import Table
from reunite_transport import client_session
from reunite_transport.client_session import ClientSession, Ended, HistoryTold, Live, Received
from reunite_transport.codec import decode, encode
from reunite_transport.messages import (
    Behind,
    ClientMessage,
    Commit,
    Describe,
    Error,
    Hello,
    Known,
    Page,
    Pull,
    Push,
    Recall,
    Recalled,
    Registry,
    Rejected,
    RelayMessage,
    Resume,
    Section,
    Verdict,
    Welcome,
)
from tests.engine.peer import START_MS, Peer, chance

REALM = b"a realm's name.."
WELCOME = Welcome(1, (), REALM, START_MS, START_MS, Verdict.CONTINUE, (), 1, 0, ())
EMPTY_REALM = Page((), 1, b"", True, b"token 88")


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    """A file with three tables of a row each, none of them tracked."""
    statements = [
        statement
        for name in ("one", "two", "three")
        for statement in (
            f"CREATE TABLE {name} (id INTEGER PRIMARY KEY)",
            f"INSERT INTO {name} VALUES (1)",
        )
    ]
    peer = Peer(tmp_path / "file.db", 1, *statements)
    yield peer
    peer.close()


class Played:
    """A client session, and a relay that numbers what is described only when it is told to."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.session = ClientSession(peer.replica, START_MS)
        self.registry: list[Table] = []
        assert [type(message) for message in self.heard()] == [Hello]

    def heard(self) -> list[ClientMessage]:
        """What the client has said since the last call."""
        found = [decode(frame, "relay") for frame in self.session.data_to_send()]
        return [message for message in found if message is not None]

    def say(self, message: RelayMessage) -> list[ClientMessage]:
        """Say something; what the client says to it. It must not end the session."""
        self.session.receive([encode(message)], START_MS)
        return self.heard()

    def tick(self) -> list[ClientMessage]:
        """Let the client notice what happened in its file; what it says to that."""
        self.session.tick(START_MS)
        return self.heard()

    def register(self, *tables: Table) -> Registry:
        """Number these tables; what the relay then tells everybody."""
        for table in tables:
            if table.name not in [known.name for known in self.registry]:
                self.registry.append(replace(table, id=len(self.registry) + 1))
        return Registry(tuple(self.registry))

    def has_ended(self) -> bool:
        """True when the session has ended since the last call."""
        return any(isinstance(event, Ended) for event in self.session.events())


def described(messages: list[ClientMessage]) -> tuple[Table, ...]:
    (message,) = messages
    assert isinstance(message, Describe)
    return message.tables


def test_a_registry_that_comes_unasked_is_not_the_answer(peer: Peer, tmp_path: Path) -> None:
    peer.track("one")
    played = Played(peer)
    tables = described(played.say(WELCOME))
    other = Peer(tmp_path / "other.db", 2, "CREATE TABLE theirs (id INTEGER PRIMARY KEY)")
    other.track("theirs")
    theirs = other.replica.undescribed()
    other.close()
    # Another client's table was registered before ours.
    assert played.say(played.register(*theirs)) == []
    assert not played.has_ended()
    assert played.say(played.register(*tables)) == [Pull(0, b"")]
    assert [type(message) for message in played.say(EMPTY_REALM)] == [Push]
    assert Live() in played.session.events()


def test_tables_that_are_tracked_while_a_description_is_unanswered_are_described_too(
    peer: Peer,
) -> None:
    played = Played(peer)
    assert played.say(WELCOME) == [Pull(0, b"")]
    assert played.say(EMPTY_REALM) == []
    asked = []
    for name in ("one", "two", "three"):
        peer.track(name)
        asked.append(described(played.tick()))
        assert played.tick() == []
    assert [[table.name for table in tables] for tables in asked] == [
        ["one"],
        ["one", "two"],
        ["one", "two", "three"],
    ]
    for tables in asked[:2]:
        assert played.say(played.register(*tables)) == []
    pushed = played.say(played.register(*asked[2]))
    assert [type(message) for message in pushed] == [Push, Push, Push]
    assert not played.has_ended()


def test_after_a_refusal_changesets_go_one_by_one_until_more_are_taken(peer: Peer) -> None:
    """What follows a refused one is sent again after each refusal."""
    peer.track("one")
    played = Played(peer)
    played.say(played.register(*described(played.say(WELCOME))))
    (adopted,) = played.say(EMPTY_REALM)
    assert isinstance(adopted, Push)
    played.say(Known(((1, 1),)))
    for number in range(2, 9):
        peer.commit(f"INSERT INTO one VALUES ({number})")
    pushed = [message for message in played.tick() if isinstance(message, Push)]
    assert len(pushed) == 7
    again = played.say(Rejected(2, pushed[0].nonce, "constraint", "no", ()))
    assert [type(message) for message in again] == [Resume, Push]
    assert len(played.say(Known(((2, 2),)))) == 2
    assert len(played.say(Known(((3, 3), (4, 3))))) == 3


@pytest.mark.parametrize("verdict", [Verdict.FORK, Verdict.LOST])
def test_a_welcome_that_comes_twice_is_taken_once(verdict: Verdict, peer: Peer) -> None:
    """The second would count by the numbers of a replica that this one is no more."""
    peer.track("one")
    for number in (2, 3):
        peer.commit(f"INSERT INTO one VALUES ({number})")
    played = Played(peer)
    known = ((2, 5),) if verdict is Verdict.FORK else ()
    welcome = replace(WELCOME, verdict=verdict, known=known)
    (hello,) = played.say(welcome)
    assert isinstance(hello, Hello)
    assert hello.sent_ms != START_MS
    waiting = [changeset.seq for changeset in everything(peer.engine)]
    assert played.say(welcome) == []
    assert peer.replica.standing().replica == hello.replica
    assert [changeset.seq for changeset in everything(peer.engine)] == waiting


@pytest.mark.parametrize(
    "answer",
    [
        replace(WELCOME, known=((1, 5), (2, 5))),
        replace(WELCOME, verdict=Verdict.FORK, known=((1, 5), (2, 5))),
        replace(WELCOME, verdict=Verdict.LOST),
    ],
    ids=lambda answer: answer.verdict.value,
)
def test_a_welcome_of_before_another_session_took_the_file_over_is_not_taken(
    answer: Welcome, peer: Peer
) -> None:
    """It counts by the numbers of the replica that greeted, and the file's are another's now."""
    peer.track("one")
    peer.commit("INSERT INTO one VALUES (2)")
    older, newer = Played(peer), Played(peer)
    newer.say(replace(WELCOME, verdict=Verdict.FORK))
    now = peer.replica.standing()
    assert older.say(answer) == []
    assert older.has_ended()
    assert peer.replica.standing() == now
    assert [changeset.seq for changeset in everything(peer.engine)] == [None, None]
    assert peer.replica.acknowledged() == 0


@pytest.mark.parametrize(
    "answer",
    [
        Known(((2, 5),)),
        Commit(2, b"token 89", (2,), ()),
        Commit(2, b"token 89", (), ()),
        Rejected(2, b"a nonce.", "constraint", "no", ()),
        Page((), 2, b"", True, b"token 89"),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_what_is_told_to_a_session_is_not_taken_once_another_took_the_file_over(
    answer: RelayMessage, peer: Peer
) -> None:
    peer.track("one")
    older = Played(peer)
    older.say(older.register(*described(older.say(WELCOME))))
    assert [type(message) for message in older.say(EMPTY_REALM)] == [Push]
    peer.commit("INSERT INTO one VALUES (2)")
    assert [type(message) for message in older.tick()] == [Push]
    if isinstance(answer, Page):
        older.say(Behind(2))
    elif isinstance(answer, Rejected):
        answer = replace(answer, nonce=list(everything(peer.engine))[1].nonce)
    newer = Played(peer)
    newer.say(replace(WELCOME, verdict=Verdict.FORK))
    now = peer.replica.standing()
    assert older.say(answer) == []
    assert older.has_ended()
    assert peer.replica.standing() == now
    assert [changeset.seq for changeset in everything(peer.engine)] == [None, None]


def test_a_session_sends_nothing_in_the_name_that_another_gave_the_file(peer: Peer) -> None:
    peer.track("one")
    older = Played(peer)
    older.say(older.register(*described(older.say(WELCOME))))
    older.say(EMPTY_REALM)
    Played(peer).say(replace(WELCOME, verdict=Verdict.FORK))
    peer.commit("INSERT INTO one VALUES (2)")
    assert older.tick() == []
    assert older.has_ended()


def one(number: int) -> Section:
    """Some row of the table `one`, as a relay states it."""
    made = stamp(START_MS << 16, 77)
    document = Document(made, made, NEVER, {})
    return Section(1, (pack_key((number,)),), (encode_document(document),))


def test_a_commit_of_before_another_session_greeted_does_not_put_the_file_back(peer: Peer) -> None:
    """It was under way when the relay let the other one in, which has loaded more."""
    peer.track("one")
    older = Played(peer)
    older.say(older.register(*described(older.say(WELCOME))))
    older.say(EMPTY_REALM)
    newer = Played(peer)
    newer.say(replace(WELCOME, tables=older.register().tables))
    newer.say(Page((one(5),), 7, b"", True, b"token 90"))
    now = peer.replica.standing()
    assert now.seq == 7
    assert older.say(Commit(2, b"token 89", (), ())) == []
    assert peer.replica.standing() == now
    assert older.has_ended()


def test_a_page_of_before_another_session_greeted_begins_no_load_anew(peer: Peer) -> None:
    """Where a load goes on is the file's, and both sessions had asked from there."""
    peer.track("one")
    older = Played(peer)
    tables = described(older.say(WELCOME))
    assert [type(message) for message in older.say(older.register(*tables))] == [Pull]
    newer = Played(peer)
    newer.say(replace(WELCOME, tables=older.register().tables))
    newer.say(Page((one(5),), 7, b"", True, b"token 90"))
    older.say(Page((one(5),), 3, b"there", False, b"token 88"))
    assert peer.replica.position() == (7, b"")
    assert older.has_ended()


def test_a_refusal_of_before_another_session_greeted_is_not_taken(peer: Peer) -> None:
    """The other one has pushed the same work, which the relay may take by now: given up, its
    number would go to other work, and that work count as taken."""
    peer.track("one")
    older = Played(peer)
    older.say(older.register(*described(older.say(WELCOME))))
    older.say(EMPTY_REALM)
    peer.commit("INSERT INTO one VALUES (2)")
    older.tick()
    newer = Played(peer)
    _, second = everything(peer.engine)
    newer.say(replace(WELCOME, known=((1, 2),), tables=older.register().tables))
    pushed = newer.say(Page((one(1),), 2, b"", True, b"token 89"))
    assert [message.nonce for message in pushed if isinstance(message, Push)] == [second.nonce]
    older.say(Rejected(2, second.nonce, "constraint", "no", ()))
    peer.commit("INSERT INTO one VALUES (3)")
    newer.tick()
    newer.say(Commit(3, b"token 90", (2,), ()))
    (left,) = everything(peer.engine)
    assert (left.number, left.seq) == (3, None)
    assert peer.rows("SELECT id FROM one") == [(1,), (2,), (3,)]
    assert older.has_ended()


def test_a_session_that_another_followed_sends_nothing(peer: Peer) -> None:
    """What it would send is not in the other's greeting, so that the relay took the file for a
    copy."""
    peer.track("one")
    older = Played(peer)
    older.say(older.register(*described(older.say(WELCOME))))
    older.say(EMPTY_REALM)
    Played(peer)
    peer.commit("INSERT INTO one VALUES (2)")
    assert older.tick() == []
    assert older.has_ended()


def test_what_somebody_else_asked_for_first_is_news_to_a_session_all_the_same(peer: Peer) -> None:
    """As who follows the changes of the same file, or a second session: with nothing to send or
    to hear it would never notice, and who waits until the file is loaded again wait for ever."""
    played = live(peer)
    peer.replica.follow_changes()
    assert played.tick() == []
    peer.write("DELETE FROM two")
    program = Replica(peer.app, chance=chance(9 << 16), clock=peer.clock)
    program.track(["two"])
    peer.replica.follow_changes()
    assert [table.name for table in described(played.tick())] == ["two"]
    program.reload()
    peer.replica.follow_changes()
    assert played.tick() == []
    assert played.has_ended()


def live(peer: Peer) -> Played:
    """A session that is told of commits as they happen; the file's own row is the first."""
    peer.track("one")
    played = Played(peer)
    played.say(played.register(*described(played.say(WELCOME))))
    played.say(EMPTY_REALM)
    played.say(Commit(1, b"token 1.", (1,), ()))
    played.session.events()
    return played


def stated(key: int, at: int) -> Section:
    """A row of the first table, as somebody made it."""
    mark = stamp((START_MS + at) << 16, 99)
    return Section(1, (pack_key((key,)),), (encode_document(Document(mark, mark, NEVER, {})),))


def commits_told(played: Played, *messages: RelayMessage) -> tuple[list[Received], int]:
    """What the session says of messages that come in one go, and how often the file changed."""
    before = turn_of(played.peer.engine)
    played.session.receive([encode(message) for message in messages], START_MS)
    received = [event for event in played.session.events() if isinstance(event, Received)]
    return received, turn_of(played.peer.engine) - before


def test_commits_that_come_together_are_one_transaction(peer: Peer) -> None:
    played = live(peer)
    told = [Commit(n, b"a token.", (), (stated(10 + n, n),)) for n in (2, 3, 4)]
    assert commits_told(played, *told) == ([Received(3, applied=True)], 1)
    assert peer.rows("SELECT id FROM one") == [(1,), (12,), (13,), (14,)]
    assert peer.replica.position().seq == 4


def test_what_comes_between_commits_is_taken_in_between_them(peer: Peer) -> None:
    played = live(peer)
    peer.commit("INSERT INTO one VALUES (20)")
    (pushed,) = played.tick()
    assert isinstance(pushed, Push)
    no = Rejected(pushed.number, pushed.nonce, "constraint", "no", ())
    told = [Commit(n, b"a token.", (), (stated(10 + n, n),)) for n in (2, 3)]
    assert commits_told(played, told[0], no, told[1]) == ([Received(1, applied=True)] * 2, 3)
    assert peer.replica.position().seq == 3


def test_what_the_session_ended_of_is_the_last_that_it_takes_in(peer: Peer) -> None:
    played = live(peer)
    told = [Commit(n, b"a token.", (), (stated(10 + n, n),)) for n in (2, 3)]
    commits_told(played, told[0], Error("internal", "no"), told[1])
    assert peer.replica.position().seq == 2


def test_large_commits_are_transactions_of_their_own(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local write waits for no more than one of them."""
    played = live(peer)
    told = [Commit(n, b"a token.", (), (stated(10 + n, n),)) for n in range(2, 8)]
    size = len(encode(told[0]))
    monkeypatch.setattr(client_session, "FRAME_BYTES_GOAL", 2 * size)
    assert commits_told(played, *told) == ([Received(2, applied=True)] * 3, 3)


@pytest.mark.parametrize(
    ("waited_ms", "relay_ahead_ms", "offset_ms"),
    [
        (10_000, 10_000, 0),  # the relay's database was away, and the clocks agree
        (10_000, 0, 0),  # the answer was long on its way
        (200, 0, 0),
        (10_000, -300, 0),  # so it was, and the clock is hardly wrong
        (10_000, 10_300, 0),
        (200, -60_000, 60_100),
        (10_000, 70_000, -65_000),
    ],
)
def test_a_clock_is_wrong_when_waiting_does_not_explain_it(
    waited_ms: int, relay_ahead_ms: int, offset_ms: int, peer: Peer
) -> None:
    played = Played(peer)
    welcome = replace(WELCOME, sent_ms=START_MS, now_ms=START_MS + relay_ahead_ms)
    played.session.receive([encode(welcome)], START_MS + waited_ms)
    assert not played.has_ended()
    assert peer.replica.offset_ms() == offset_ms


@pytest.mark.parametrize(
    ("waited_ms", "relay_ahead_ms", "offset_ms"),
    [
        (30_000, -59_000, 60_100),  # the answer was long on its way
        (30_000, -31_000, 60_100),  # the relay's database was away
        (10_000, -2_000, 7_000),  # the clock was set, not quite right
        (200, -61_500, 61_600),
        (10_000, 3_000, 0),
    ],
)
def test_what_is_known_of_a_clock_stands_while_waiting_explains_the_rest(
    waited_ms: int, relay_ahead_ms: int, offset_ms: int, peer: Peer
) -> None:
    for waits_ms, ahead_ms in ((200, -60_000), (waited_ms, relay_ahead_ms)):
        played = Played(peer)
        welcome = replace(WELCOME, sent_ms=START_MS, now_ms=START_MS + ahead_ms)
        played.session.receive([encode(welcome)], START_MS + waits_ms)
    assert peer.replica.offset_ms() == offset_ms


def test_only_a_relay_that_keeps_history_is_asked_for_it(peer: Peer) -> None:
    played = Played(peer)
    assert not played.session.keeps_history
    played.say(WELCOME)
    assert not played.session.keeps_history
    played = Played(peer)
    played.say(replace(WELCOME, capabilities=("other", "history")))
    assert played.session.keeps_history
    assert played.session.recall(3, b"key") == 1
    assert played.session.recall(3, b"yek") == 2
    assert played.heard() == [Recall(1, 3, b"key"), Recall(2, 3, b"yek")]
    losses = (Loss(encode_document(Document(NEVER, NEVER, NEVER, {})), bytes(16)),)
    assert played.say(Recalled(2, losses)) == []
    assert HistoryTold(2, losses) in played.session.events()
    assert not played.has_ended()


def test_a_past_that_is_no_document_ends_the_session(peer: Peer) -> None:
    played = Played(peer)
    played.say(replace(WELCOME, capabilities=("history",)))
    played.say(Recalled(1, (Loss(b"none", bytes(16)),)))
    (ended,) = (event for event in played.session.events() if isinstance(event, Ended))
    assert ended.error.code == "malformed"
    assert not played.session.keeps_history
