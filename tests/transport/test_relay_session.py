"""The relay's end of a connection: the order of steps, the windows, the live stream."""

from dataclasses import replace

import pytest

from reunite.overwritten import Loss
from reunite.schema import Column, Table
from reunite_transport import relay_session
from reunite_transport.codec import decode, encode
from reunite_transport.messages import (
    Barrier,
    Behind,
    ClientMessage,
    Commit,
    Describe,
    Entries,
    Error,
    Hello,
    Known,
    Page,
    Pull,
    Push,
    Reached,
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
from reunite_transport.relay.store import FeedPage, Greeting
from reunite_transport.relay_session import (
    HELLO_SECONDS_MAX,
    BarrierRequested,
    Closed,
    Described,
    Event,
    Greeted,
    PullRequested,
    PushReady,
    RecallRequested,
    RelaySession,
)

REALM = b"a realm's name.."
HELLO = Hello(1, (), None, 7, 0, (), 0, b"", 123)
TABLE = Table("todo", (Column("id", 1, "INTEGER", "integer", key=1),), id=1)
NONCE = b"nonce 88"
TOKEN = b"token 88"


def entries(count: int = 1, size: int = 1) -> tuple[Entries, ...]:
    keys = tuple(b"k%d" % number for number in range(count))
    return (Entries(1, keys, (b"d" * size,) * count, (1,) * count),)


def push(number: int, *, last: bool = True, size: int = 1, nonce: bytes = NONCE) -> Push:
    return Push(number, nonce, False, last, entries(size=size))


def commit_frame(seq: int, *acknowledged: int, size: int = 1) -> bytes:
    return encode(Commit(seq, TOKEN, acknowledged, (Section(1, (b"k",), (b"d" * size,)),)))


def say(session: RelaySession, *messages: ClientMessage) -> list[Event]:
    """Have the client send messages; the events that follow."""
    for message in messages:
        session.receive(encode(message))
    return session.events()


def hear(session: RelaySession) -> list[RelayMessage]:
    """What the relay sends, as the client reads it."""
    found = [decode(frame, "client") for frame in session.data_to_send()]
    return [message for message in found if message is not None]


def greeted(hello: Hello = HELLO) -> RelaySession:
    session = RelaySession(0.0)
    assert say(session, hello) == [Greeted(hello)]
    welcome(session)
    return session


def welcome(session: RelaySession, verdict: Verdict = Verdict.CONTINUE) -> None:
    session.welcome(Greeting(1, verdict, (), 10, 999, 0), realm=REALM, registry=(TABLE,))
    (answer,) = hear(session)
    assert answer == Welcome(1, (), REALM, 999, 123, verdict, (), 10, 0, (TABLE,))


def live(seq: int = 10) -> RelaySession:
    session = greeted()
    assert say(session, Pull(0, b"")) == [PullRequested(0, b"")]
    session.page(FeedPage((), seq, b"", True, TOKEN))
    assert hear(session) == [Page((), seq, b"", True, TOKEN)]
    assert session.live_at == seq
    return session


def refused(session: RelaySession, *messages: ClientMessage) -> str:
    """The code with which these messages end the connection."""
    events = say(session, *messages)
    assert isinstance(events[-1], Closed)
    last = hear(session)[-1]
    assert isinstance(last, Error)
    assert last.code == events[-1].code
    assert session.closed
    return last.code


@pytest.mark.parametrize(
    "message", [Pull(0, b""), push(1), Resume(1), Barrier(1), Describe((TABLE,))], ids=str
)
def test_nothing_may_come_before_hello_and_its_welcome(message: ClientMessage) -> None:
    assert refused(RelaySession(0.0), message) == "unexpected"
    waiting = RelaySession(0.0)
    assert refused(waiting, HELLO, message) == "unexpected"


def test_a_connection_without_a_hello_ends_in_time() -> None:
    session = RelaySession(100.0)
    session.tick(100.0 + HELLO_SECONDS_MAX - 0.1)
    assert not session.closed
    session.tick(100.0 + HELLO_SECONDS_MAX)
    assert session.closed
    (error,) = hear(session)
    assert isinstance(error, Error)
    assert error.code == "unexpected"


def test_after_a_hello_time_does_not_matter() -> None:
    session = greeted()
    session.tick(1e9)
    assert not session.closed


def test_garbage_ends_the_connection_with_a_word_why() -> None:
    session = greeted()
    session.receive(b"\0garbage")
    (closed,) = session.events()
    assert isinstance(closed, Closed)
    assert closed.code == "malformed"
    assert isinstance(hear(session)[0], Error)
    session.receive(encode(HELLO))
    session.commit(11, commit_frame(11), 11)
    assert session.events() == []
    assert session.data_to_send() == []


def test_an_unknown_optional_message_is_skipped() -> None:
    session = greeted()
    session.receive(b"\0\x92\x41\x01")
    assert session.events() == []
    assert not session.closed


def test_an_error_of_the_client_closes() -> None:
    assert say(greeted(), Error("internal", "bye")) == [Closed("internal", "bye")]


def test_questions_become_events_and_answers_frames() -> None:
    session = greeted()
    asked = say(session, Describe((TABLE,)), Barrier(5))
    assert asked == [Described((TABLE,)), BarrierRequested(5)]
    session.registry((TABLE,))
    session.reached(5, 11)
    assert hear(session) == [Registry((TABLE,)), Reached(5, 11)]


def test_a_relay_with_history_says_so_and_answers_what_was_overwritten() -> None:
    session = RelaySession(0.0, history=True)
    say(session, HELLO)
    session.welcome(Greeting(1, Verdict.CONTINUE, (), 10, 999, 0), realm=REALM, registry=())
    (answer,) = hear(session)
    assert isinstance(answer, Welcome)
    assert answer.capabilities == ("history",)
    assert say(session, Recall(5, 1, b"k")) == [RecallRequested(5, 1, b"k")]
    losses = (Loss(b"document", bytes(16)), Loss(b"older", bytes(16)))
    session.recalled(5, losses)
    assert hear(session) == [Recalled(5, losses)]


def test_what_no_frame_holds_of_the_past_is_left_out_oldest_first() -> None:
    session = RelaySession(0.0, history=True)
    say(session, HELLO)
    session.welcome(Greeting(1, Verdict.CONTINUE, (), 10, 999, 0), realm=REALM, registry=())
    hear(session)
    large = tuple(Loss(bytes((number,)) * (8 << 20), bytes(16)) for number in range(4))
    session.recalled(1, large)
    assert hear(session) == [Recalled(1, large[:2])]


def test_a_relay_without_history_skips_questions_about_it() -> None:
    session = greeted()
    assert say(session, Recall(5, 1, b"k")) == []
    assert not session.closed
    assert refused(RelaySession(0.0, history=True), Recall(5, 1, b"k")) == "unexpected"


def test_copies_of_a_pull_are_not_answered() -> None:
    """Each answer would be asked to go on, and each copy of that, too."""
    session = greeted()
    first, second = Pull(0, b""), Pull(11, b"place")
    assert len(say(session, first, first)) == 1
    session.page(FeedPage((), 11, b"place", False, TOKEN))
    assert say(session, first) == []
    assert say(session, second, first) == [PullRequested(11, b"place")]
    session.page(FeedPage((), 12, b"", True, TOKEN))
    assert say(session, first, second) == []
    assert session.live_at == 12
    session.behind(13)
    assert say(session, Pull(12, b"")) == [PullRequested(12, b"")]


def test_parts_of_a_changeset_become_one() -> None:
    session = greeted()
    assert say(session, push(1, last=False), push(1, last=False)) == []
    (ready,) = say(session, push(1))
    assert ready == PushReady(1, NONCE, False, entries() * 3, 3, 9)
    assert session.unanswered_bytes == 9


@pytest.mark.parametrize(
    "second",
    [push(2), replace(push(1), loose=True), push(1, nonce=b"another8")],
    ids=["number", "loose", "nonce"],
)
def test_parts_may_not_be_mixed(second: Push) -> None:
    assert refused(greeted(), push(1, last=False), second) == "unexpected"


def test_changesets_come_in_the_order_of_their_numbers() -> None:
    session = greeted(replace(HELLO, acknowledged=4))
    assert len(say(session, push(6), push(7))) == 2
    assert refused(session, push(9)) == "unexpected"
    assert refused(greeted(replace(HELLO, acknowledged=4)), push(4)) == "unexpected"


def test_after_a_rejection_pushes_are_dropped_until_resume() -> None:
    session = greeted()
    assert len(say(session, push(1), push(2), push(3, last=False))) == 2
    session.rejected(1, NONCE, "constraint", "no")
    assert hear(session) == [Rejected(1, NONCE, "constraint", "no")]
    assert say(session, push(3), push(4)) == []
    assert session.unanswered_bytes == 0
    assert len(say(session, Resume(1), push(1, nonce=b"another8"))) == 1
    assert refused(session, push(3)) == "unexpected"


@pytest.mark.parametrize("messages", [(Resume(1),), (Resume(2),)], ids=str)
def test_a_resume_that_nobody_waits_for_is_refused(messages: tuple[Resume, ...]) -> None:
    assert refused(greeted(), *messages) == "unexpected"
    session = greeted()
    say(session, push(5))
    session.rejected(5, NONCE, "constraint", "no")
    assert refused(session, *messages) == "unexpected"


def test_a_changeset_over_the_limit_is_rejected_and_the_connection_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_session, "CHANGESET_BYTES_MAX", 100)
    session = greeted()
    assert say(session, push(1, last=False, size=90), push(1, last=False, size=90)) == []
    assert session.unanswered_bytes == 0
    assert say(session, push(1)) == []
    (rejected,) = hear(session)
    assert isinstance(rejected, Rejected)
    assert (rejected.number, rejected.reason) == (1, "too-large")
    assert len(say(session, Resume(1), push(1))) == 1


def test_a_changeset_over_the_limit_waits_for_the_verdict_on_earlier_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_session, "CHANGESET_ROWS_MAX", 2)
    large = Push(2, NONCE, False, True, entries(3))
    session = live()
    assert len(say(session, push(1), large, push(3))) == 1
    assert hear(session) == []
    session.own_commit(11, (1,), commit_frame(11, 1), 11)
    _, rejected = hear(session)
    assert isinstance(rejected, Rejected)
    assert rejected.number == 2

    session = live()
    say(session, push(1), large)
    session.rejected(1, NONCE, "constraint", "no")
    assert len(hear(session)) == 1
    assert len(say(session, Resume(1), push(1))) == 1
    session.known([(1, 11)])
    assert hear(session) == [Known(((1, 11),))]


def test_pushes_that_wait_for_no_answer_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "UNANSWERED_BYTES_MAX", 100)
    session = live()
    say(session, push(1, size=60))
    session.own_commit(11, (1,), commit_frame(11, 1), 11)
    hear(session)
    assert len(say(session, push(2, size=60))) == 1
    assert refused(session, push(3, size=60)) == "overloaded"


def test_live_commits_follow_each_other() -> None:
    session = live(10)
    session.commit(11, commit_frame(11), 11)
    session.own_commit(12, (1,), commit_frame(12, 1), 12)
    assert [message.seq for message in hear(session) if isinstance(message, Commit)] == [11, 12]
    assert session.live_at == 12


@pytest.mark.parametrize("seq", [9, 10])
def test_a_commit_that_the_last_page_held_is_not_sent_again(seq: int) -> None:
    session = live(10)
    session.commit(seq, commit_frame(seq), 10)
    assert hear(session) == []
    session.own_commit(seq, (1, 2), commit_frame(seq, 1, 2), 10)
    assert hear(session) == [Known(((1, seq), (2, seq)))]
    assert session.live_at == 10


def test_a_gap_ends_the_live_stream() -> None:
    session = live(10)
    session.commit(12, commit_frame(12), 14)
    assert hear(session) == [Behind(14)]
    session.commit(13, commit_frame(13), 14)
    session.own_commit(14, (1,), commit_frame(14, 1), 14)
    assert hear(session) == [Known(((1, 14),))]


def test_a_commit_too_large_to_stream_is_pulled_and_acknowledged() -> None:
    session = live(10)
    session.own_commit(11, (1,), None, 11)
    assert hear(session) == [Known(((1, 11),)), Behind(11)]


def test_who_has_not_pulled_hears_of_own_changesets_only() -> None:
    session = greeted()
    session.commit(11, commit_frame(11), 11)
    session.behind(11)
    session.own_commit(12, (1,), commit_frame(12, 1), 12)
    assert hear(session) == [Known(((1, 12),))]


def test_behind_ends_live_until_the_last_page() -> None:
    session = live(10)
    session.behind(11)
    assert hear(session) == [Behind(11)]
    say(session, Pull(10, b""))
    session.commit(11, commit_frame(11), 11)
    session.page(FeedPage((), 11, b"place", False, b""))
    assert session.live_at is None
    say(session, Pull(11, b"place"))
    session.page(FeedPage((), 12, b"", True, TOKEN))
    session.commit(13, commit_frame(13), 13)
    assert [type(message) for message in hear(session)] == [Page, Page, Commit]


def test_a_slow_reader_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "LIVE_BYTES_MAX", 2_000)
    session = live(10)
    for seq in range(11, 100):
        session.commit(seq, commit_frame(seq, size=200), seq)
    assert session.unsent_bytes < 3_000
    *commits, behind = hear(session)
    assert behind == Behind(commits[-1].seq + 1)  # type: ignore[union-attr]
    assert session.live_at is None


def test_answers_that_nobody_reads_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_session, "UNSENT_BYTES_MAX", 500)
    session = greeted()
    for number in range(100):
        session.reached(number, 1)
    assert session.closed
    (error,) = hear(session)
    assert isinstance(error, Error)
    assert error.code == "overloaded"


def test_a_fork_may_only_say_hello_again() -> None:
    session = RelaySession(0.0)
    say(session, HELLO)
    welcome(session, Verdict.FORK)
    other = replace(HELLO, replica=8)
    assert say(session, other) == [Greeted(other)]
    welcome(session)
    assert len(say(session, push(1))) == 1

    session = RelaySession(0.0)
    say(session, HELLO)
    welcome(session, Verdict.FORK)
    assert refused(session, push(1)) == "unexpected"


def test_a_second_hello_starts_anew() -> None:
    session = live(10)
    say(session, push(1), push(2, last=False))
    session.rejected(1, NONCE, "constraint", "no")
    session.commit(11, commit_frame(11), 11)
    other = replace(HELLO, replica=8, acknowledged=3)
    assert say(session, other) == [Greeted(other)]
    session.commit(12, commit_frame(12), 12)
    session.known([(1, 12)])
    session.rejected(2, NONCE, "constraint", "of another time")
    welcome(session)
    assert session.live_at is None
    assert len(say(session, push(4))) == 1


def test_a_message_of_a_database_fits_a_frame() -> None:
    session = greeted()
    say(session, push(1))
    session.rejected(1, NONCE, "constraint", "\udcff" + "x" * 5_000)
    (rejected,) = hear(session)
    assert isinstance(rejected, Rejected)
    assert rejected.message == "?" + "x" * 1_999
