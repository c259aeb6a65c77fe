"""Whatever happens around it, a client hears of every commit once, in order, and of its own work.

Random schedules over hubs, sessions and the codec: own commits, commits of another relay seen early
or late, pages whose snapshot is ahead of the hub, readers that are slow. A model of a client checks
each message as it comes and must end equal to the realm.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from reunite_transport.messages import Behind, Commit, Known, Page, Pull, Section
from reunite_transport.relay.commit import CommittedRow
from reunite_transport.relay.hub import Hub
from reunite_transport.relay.store import FeedPage, RowId
from tests.transport.relay.clients import Client

REPLICAS = (1, 2, 3)


@dataclass
class Realm:
    """What the database holds: each row's document names the commit that wrote it last."""

    head: int = 0
    rows: dict[bytes, bytes] = field(default_factory=dict)

    def commit(self, keys: set[bytes]) -> int:
        self.head += 1
        for key in keys:
            self.rows[key] = b"%d" % self.head
        return self.head

    def page(self) -> FeedPage:
        keys, documents = tuple(self.rows), tuple(self.rows.values())
        sections = (Section(1, keys, documents),) if keys else ()
        return FeedPage(sections, self.head, b"", True, token(self.head) if self.head else b"")


class Model:
    """A client that checks what it is told."""

    def __init__(self, hub: Hub, replica: int) -> None:
        self.client = Client(hub, replica)
        self.cursor = 0
        self.live = self.asked = False
        self.rows: dict[bytes, bytes] = {}
        # The own rows of each changeset that has no verdict, and the seq of those that wait.
        self.pending: dict[int, dict[bytes, bytes]] = {}
        self.known: dict[int, int] = {}
        self.last = 0
        self.page: FeedPage | None = None

    def pull(self, realm: Realm) -> None:
        """Ask for a page, first and after Behind; its snapshot is taken now, and it arrives with
        `answer`."""
        if not self.live and not self.asked:
            self.client.say(Pull(self.cursor, b""))
            self.asked = True
            self.page = realm.page()

    def answer(self, hub: Hub) -> None:
        if self.page is not None:
            self.client.session.page(self.page)
            self.page = None
            hub.catch_up(self.client.member)

    def read(self) -> None:
        for message in self.client.hear():
            match message:
                case Page(sections, seq):
                    assert seq >= self.cursor
                    self.apply(sections)
                    self.reach(seq)
                    self.live, self.asked = True, False
                case Commit(seq, _, acknowledged, sections):
                    assert self.live, "a commit between pages"
                    assert seq == self.cursor + 1
                    for number in acknowledged:
                        self.rows.update(self.pending.pop(number))
                    self.apply(sections)
                    self.reach(seq)
                case Behind(seq):
                    assert seq > self.cursor
                    self.live = False
                case Known(pairs):
                    for number, seq in pairs:
                        assert number in self.pending
                        self.known[number] = seq
                    self.reach(self.cursor)
                case other:
                    raise AssertionError(other)

    def apply(self, sections: tuple[Section, ...]) -> None:
        for section in sections:
            self.rows.update(zip(section.keys, section.documents, strict=True))

    def reach(self, seq: int) -> None:
        self.cursor = seq
        for number in [number for number, in_seq in self.known.items() if in_seq <= seq]:
            del self.known[number], self.pending[number]


def token(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


steps = st.one_of(
    # A commit of ours: its authors, and whether another relay's head is looked at before it is
    # published, and with or without the token of ours.
    st.tuples(
        st.just("own"),
        st.sets(st.sampled_from(REPLICAS), max_size=3),
        st.sampled_from(["unseen", "seen", "overtaken"]),
    ),
    st.tuples(st.just("foreign"), st.booleans()),
    st.tuples(st.just("look")),
    st.tuples(st.just("pull"), st.sampled_from(REPLICAS)),
    st.tuples(st.just("answer"), st.sampled_from(REPLICAS)),
    st.tuples(st.just("read"), st.sampled_from(REPLICAS)),
)


@given(st.lists(steps, max_size=40))
@settings(max_examples=500)
def test_a_client_hears_of_every_commit_once_and_in_order(
    schedule: list[tuple[object, ...]],
) -> None:
    realm, hub = Realm(), Hub(head=0, registry=())
    models = {replica: Model(hub, replica) for replica in REPLICAS}
    shared = b"shared"

    def look(in_flight: bytes | None = None) -> None:
        found = token(realm.head) if realm.head else b""
        hub.observe(realm.head, found, in_flight=in_flight)

    for step in schedule:
        match step:
            case ("own", set(authors), seen):
                own_keys = {replica: b"of %d" % replica for replica in authors}
                seq = realm.commit({shared, *own_keys.values()})
                document = b"%d" % seq
                rows = [CommittedRow(RowId(1, shared), document, None)]
                acknowledged = {}
                for replica, key in own_keys.items():
                    model = models[replica]
                    model.last += 1
                    model.pending[model.last] = {key: document}
                    rows.append(CommittedRow(RowId(1, key), document, replica))
                    acknowledged[model.client.member] = (model.last,)
                if seen == "seen":
                    look(in_flight=token(seq))
                if seen == "overtaken":
                    realm.commit({shared})
                    look(in_flight=token(seq))
                hub.publish(seq, token(seq), rows, acknowledged)
            case ("foreign", noticed):
                realm.commit({shared})
                if noticed:
                    look()
            case ("look",):
                look()
            case ("pull", int(replica)):
                models[replica].read()
                models[replica].pull(realm)
            case ("answer", int(replica)):
                models[replica].answer(hub)
            case ("read", int(replica)):
                models[replica].read()
    look()
    for model in models.values():
        model.answer(hub)
        model.read()
        if not model.live:
            model.pull(realm)
            model.answer(hub)
            model.read()
        assert model.rows == realm.rows
        assert model.cursor == realm.head
        assert not model.pending
