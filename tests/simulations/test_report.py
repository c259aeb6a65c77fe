"""The page of a world: what it shows, what it escapes, and how large it gets."""

import re
from html.parser import HTMLParser

import pytest

from reunite_simulations.conflicts import Conflicts, Merged, Overwritten, Side
from reunite_simulations.failure import command_line
from reunite_simulations.history import History
from reunite_simulations.lanes import MOMENTS_MAX, clock, node_names
from reunite_simulations.outcome import Happening, Report, Settings, Violation
from reunite_simulations.report import LINES_MAX, page
from reunite_simulations.seeds import own_schema, run_seed

HOSTILE = "<script>alert('\"&')</script>"
VOID = {"meta", "path", "circle", "use", "br", "wbr"}


class Elements(HTMLParser):
    """Every element with its attributes; fails where one is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, *classes: str) -> list[dict[str, str]]:
        """The attributes of elements of some classes."""
        return [a for _, a in self.found if set(classes) <= set(a.get("class", "").split())]


def told(
    *happenings: Happening, conflicts: Conflicts | None = None, violations: tuple[str, ...] = ()
) -> Report:
    """A report on what a test says happened."""
    return Report(
        settings=Settings(seed=1, schema="CREATE TABLE t (id INTEGER PRIMARY KEY)"),
        seed=1,
        trace_hash="0" * 64,
        simulated_hours=1.0,
        transactions=0,
        rows_written=0,
        faults={},
        checks={"convergence": 1},
        violations=[Violation("convergence", 1.0, message) for message in violations],
        happenings=happenings,
        history=History(),
        conflicts=conflicts or Conflicts(),
    )


def began(*names: str) -> list[Happening]:
    return [Happening(0.0, "started", (name,)) for name in names]


def test_the_page_has_a_lane_for_each_node_and_needs_nothing_beside_itself() -> None:
    settings = Settings(seed=3, schema=own_schema(), replicas=3, minutes=1.0)
    report = run_seed(settings)
    html = page(report, command_line(settings))
    elements = Elements(html)
    assert node_names(report.happenings) == ["relay1", "relay2", "client1", "client2", "client3"]
    for kind, count in (("relay", 2), ("client", 3), ("curve", 2)):
        assert len(elements.of("row", kind)) == count
    assert "Every promise was kept" in html
    assert "--seed 3 --replicas 3" in html
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", html.replace("// ", ""))
    for _, attributes in elements.found:
        assert attributes.get("href", "#").startswith("#")
        assert "src" not in attributes
    # A browser shows a tooltip for the attribute of an HTML element only.
    assert {tag for tag, each in elements.found if "title" in each} == {"i"}
    assert any("sent" in each["title"] for each in elements.of("at"))
    assert any("rows" in each["title"] for each in elements.of("at"))


def test_partitions_are_shaded_for_as_long_as_they_last_and_tell_their_direction() -> None:
    report = told(
        *began("client1", "client2", "relay1"),
        Happening(10.0, "cut", ("client1", "relay1", True)),
        Happening(20.0, "cut", ("relay1", "client2", False)),
        Happening(30.0, "mend", ("client1", "relay1")),
        Happening(50.0, "healed", ()),
        Happening(100.0, "look", (1, 0)),
    )
    elements = Elements(page(report, "again"))
    (both,) = (each for each in elements.of("cut", "both") if "title" in each)
    assert both["title"] == "client1 and relay1 do not reach each other\n0:10.0 to 0:30.0"
    assert "left:10.00%;width:20.00%" in both["style"]
    (deaf,) = (each for each in elements.of("cut", "deaf") if "title" in each)
    assert deaf["title"].startswith("relay1 does not reach client2, which reaches it")
    assert "left:20.00%;width:30.00%" in deaf["style"]


def test_a_node_that_is_down_looks_so_and_says_why() -> None:
    report = told(
        *began("client1", "relay1"),
        Happening(10.0, "power", ("client1",)),
        Happening(10.0, "died", ("client1",)),
        Happening(15.0, "started", ("client1",)),
        Happening(20.0, "died", ("relay1",)),
        Happening(40.0, "look", (2, 3)),
    )
    elements = Elements(page(report, "again"))
    dead = [each["title"] for each in elements.of("dead") if "title" in each]
    assert dead == [
        "relay1 is down: crash\n0:20.0 to 0:40.0",
        "client1 is down: power loss\n0:10.0 to 0:15.0",
    ]
    marks = [each["title"] for each in elements.of("icon", "death") if "title" in each]
    assert marks == [
        "relay1\n0:20.0: the process dies",
        "client1\n0:10.0: loses its power, and the end of its WAL",
    ]


def test_merged_overwritten_and_rejected_rows_are_told_and_bounded() -> None:
    one, other = Side("client1", 1.0, {"title": "a"}), Side("client2", 2.0, {"done": 1})
    winner = Side("client2", 2.0, {"title": "b"})
    conflicts = Conflicts(
        [Merged("todo", (1,), one, other)],
        [Overwritten("todo", (n,), "title", one, winner) for n in range(LINES_MAX + 7)],
    )
    rows = tuple(("todo", number) for number in range(9))
    report = told(
        *began("client1", "client2"),
        Happening(3.0, "rejected", ("client1", "constraint", "a message", rows)),
        conflicts=conflicts,
    )
    html = page(report, "again")
    assert "and 7 more" in html
    assert "<del>a</del>" in html
    assert "<ins>b</ins>" in html
    assert "todo 4; and 4 more" in html
    marks = [each.get("title", "") for each in Elements(html).of("icon", "merge")]
    assert any(
        "its title of todo 1 and done of client2 at 0:02.0 are both kept" in m for m in marks
    )


def test_names_and_values_from_outside_are_text() -> None:
    one, other = Side(HOSTILE, 1.0, {HOSTILE: HOSTILE}), Side("client1", 2.0, {HOSTILE: None})
    report = told(
        *began("client1", HOSTILE),
        Happening(1.0, "refused", ("client1", HOSTILE)),
        Happening(1.0, "migrated", ("client1", HOSTILE, HOSTILE)),
        Happening(1.0, "fault", (HOSTILE,)),
        Happening(1.0, "rejected", ("client1", HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),))),
        Happening(2.0, "violation", (HOSTILE, HOSTILE)),
        conflicts=Conflicts(
            [Merged(HOSTILE, (HOSTILE,), one, other)],
            [Overwritten(HOSTILE, (HOSTILE,), HOSTILE, one, other)],
        ),
        violations=(HOSTILE,),
    )
    html = page(report, HOSTILE)
    assert [tag for tag, _ in Elements(html).found].count("script") == 1
    assert "alert('" not in html
    assert "A promise was broken" in html


@pytest.mark.parametrize("clients", [2, 60])
def test_a_long_world_stays_a_page_that_opens_quickly(clients: int) -> None:
    names = [f"client{number + 1}" for number in range(clients)]
    happenings = began("relay1", *names)
    for number in range(60_000):
        name = names[number % clients]
        kind = ("wrote", (name, True, 2, ["a"])) if number % 3 else ("died", (name,))
        happenings.append(Happening(number / 10, *kind))
        if number % 3 == 0:
            happenings.append(Happening(number / 10 + 0.05, "started", (name,)))
    html = page(told(*happenings), "again")
    assert len(Elements(html).of("at")) <= MOMENTS_MAX + 2
    assert len(html) < 3_000_000


def test_copies_are_told_from_the_clients_that_were_asked_for() -> None:
    report = told(*began("relay1", "client1", "client2", "client1-copy1", "client2-copy2"))
    assert "2 clients, 2 copies of their files and 1 relay on" in page(report, "again")
    assert "1 client and 2 relays on" in page(told(*began("relay1", "relay2", "client1")), "again")


def test_equal_contents_are_the_base_line() -> None:
    looks = [Happening(at, "look", (count, 0)) for at, count in ((10.0, 3), (20.0, 2), (30.0, 1))]
    html = page(told(*began("client1"), *looks), "again")
    assert "different contents: at most 3, in the end all equal" in html
    assert 'd="M0 8.0H333.3V53.0H666.7V98.0H1000.0"' in html
    assert html.count("nothing queued</small>") == 2
    assert len(Elements(html).of("curve", "flat")) == 1


def test_a_failing_page_begins_with_what_broke_and_says_which_side_is_which() -> None:
    message = "table 't' differs on client2: [((1,), None, (1, 'a'))]"
    html = page(told(*began("client1", "relay1"), violations=(message,)), "again")
    assert html.index("differs on client2") < html.index("Seed <b>1</b>")
    assert "(of each row: its key, what client2 has, what the relay has)" in html
    elements = Elements(html)
    assert elements.of("row", "curve") == elements.of("row", "all") == []
    assert elements.of("violations")
    assert "breaks all by itself" in html


def test_a_long_key_can_be_broken_after_what_divides_it() -> None:
    key = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    one, other = Side("client1", 1.0, {"a": "&" * 20}), Side("client2", 2.0, {"b": 1})
    report = told(*began("client1"), conflicts=Conflicts([Merged("todo", (key,), one, other)], []))
    html = page(report, "again")
    assert "todo 6f9619ff-<wbr>8b86-<wbr>d011-<wbr>b42d-<wbr>00c04fc964ff" in html
    assert "&amp;" * 12 + "<wbr>" + "&amp;" * 8 in html


def test_a_world_in_which_nothing_happened_has_a_page() -> None:
    assert "None." in page(told(), "again")


def test_times_read_as_people_write_them() -> None:
    assert [clock(at) for at in (0, 61.26, 59.97, 3725)] == [
        "0:00.0",
        "1:01.3",
        "1:00.0",
        "1:02:05.0",
    ]
