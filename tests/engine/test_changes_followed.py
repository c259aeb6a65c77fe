"""Whoever applies what the log of changes tells has what the file has, whatever has happened."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from reunite import changes
from reunite.cells.register import Value
from reunite.changes import HERE, Change
from tests.engine.loopback import Relay
from tests.engine.peer import Peer

SCHEMA = (
    "CREATE TABLE todo (id INTEGER PRIMARY KEY, title TEXT, done INTEGER, votes COUNTER)",
    "CREATE TABLE part (todo INTEGER REFERENCES todo (id) ON DELETE CASCADE, place TEXT,"
    " note TEXT, PRIMARY KEY (todo, place))",
)
STEPS = 60
KEYS = 6
Key: TypeAlias = tuple[str, Value | tuple[Value, ...]]


class Mirror:
    """A copy of some tables that is made of what is told alone, by an app that may restart."""

    def __init__(self, peer: Peer, *tables: str) -> None:
        self.peer, self.tables = peer, tables
        self.token: str | None = None
        self.rows: dict[Key, dict[str, Value]] = {}
        # What transactions of this file changed of rows that were there ever since. Of other
        # programs only what came of all that they did is known.
        self.edited: set[Key] = set()
        # All rows that they wrote, or that a refusal took back.
        self.touched: set[Key] = set()

    def look(self) -> None:
        """Apply what is new, and compare."""
        self.peer.replica.follow_changes()
        found = changes.since(self.peer.engine, self.tables, self.token)
        begins, self.token = self.token is None, found.token
        named: dict[Key, set[str]] = {}
        origins: dict[Key, set[str]] = {}
        before = dict(self.rows)
        for change in found:
            key = (change.table, change.key)
            named.setdefault(key, set()).update(change.columns)
            origins.setdefault(key, set()).add(change.origin)
            self._apply(key, change)
        assert self.rows == self._there()
        for key, row in self.rows.items():
            if key in before:
                differ = {name for name in row if row[name] != before[key][name]}
                assert differ <= named.get(key, set())
        if not begins:
            by_here = {key for key, whose in origins.items() if HERE in whose}
            assert by_here <= self.touched
            assert self.edited & self.rows.keys() <= by_here
        self.edited, self.touched = set(), set()

    def _apply(self, key: Key, change: Change) -> None:
        if change.row is None:
            assert change.kind == "deleted"
            self.rows.pop(key, None)
        else:
            assert change.kind == "inserted" or key in self.rows
            self.rows[key] = dict(change.row)

    def _there(self) -> dict[Key, dict[str, Value]]:
        found = table_rows(self.peer)
        return {key: row for key, row in found.items() if not self.tables or key[0] in self.tables}


def table_rows(peer: Peer) -> dict[Key, dict[str, Value]]:
    """All rows of a file by table and key."""
    found: dict[Key, dict[str, Value]] = {}
    for id, title, done, votes in peer.rows("SELECT id, title, done, votes FROM todo"):
        found["todo", id] = {"id": id, "title": title, "done": done, "votes": votes}
    for todo, place, note in peer.rows("SELECT todo, place, note FROM part"):
        found["part", (todo, place)] = {"todo": todo, "place": place, "note": note}
    return found


class World:
    """Two files and a backend that write the same rows; the first is followed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.relay = Relay(page_rows=self.random.choice((2, 100)))
        self.one = Peer(folder / "one.db", 1, *SCHEMA)
        self.two = Peer(folder / "two.db", 2)
        self.one.track("todo", "part")
        self.relay.sync(self.one, self.two)
        if self.random.random() < 0.5:
            self.relay.keep_unique("todo", "title")
        self.at = 0
        everything = [Mirror(self.one) for _ in range(2)]
        self.mirrors = [*everything, Mirror(self.one, "part"), Mirror(self.one, "todo")]

    def close(self) -> None:
        self.one.close()
        self.two.close()

    def step(self) -> None:
        self.at += 10
        chance = self.random.random()
        if chance < 0.4:
            self.edit_here()
        elif chance < 0.6:
            self.edit(self.two)
        elif chance < 0.7:
            self.edit_backend()
        elif chance < 0.9:
            one, two = self.one, self.two
            self.sync(*self.random.choice(((one,), (two,), (one, two))))
        elif chance < 0.93:
            self.one.replica.reload()
        else:
            self.mirrors.append(Mirror(self.one))
        self.seen(table_rows(self.one))
        for mirror in self.mirrors:
            if self.random.random() < 0.25:
                mirror.look()

    def edit_here(self) -> None:
        before = table_rows(self.one)
        write = self.edit(self.one)
        after = table_rows(self.one)
        wrote = {key for key in before | after if before.get(key) != after.get(key)}
        for mirror in self.mirrors:
            mirror.touched |= wrote
            if write == self.one.commit:
                mirror.edited |= wrote & after.keys()

    def sync(self, *peers: Peer) -> None:
        before, births = len(self.one.rejected()), self.births()
        self.relay.sync(*peers)
        # One that others deleted and made again is theirs.
        remade = births.items() - self.births().items()
        for mirror in self.mirrors:
            mirror.edited -= {key for key, _ in remade}
        if len(self.one.rejected()) != before:
            # What is taken back is this file's doing, and what came back was edited by nobody.
            for mirror in self.mirrors:
                mirror.touched |= mirror.rows.keys() | table_rows(self.one).keys()
                mirror.edited.clear()

    def births(self) -> dict[Key, bytes]:
        """When each row that is there was made, as stamps."""
        return {
            (table, key): self.one.document(
                table, *(key if isinstance(key, tuple) else (key,))
            ).born
            for table, key in table_rows(self.one)
        }

    def seen(self, there: dict[Key, dict[str, Value]]) -> None:
        """A row that went is nobody's any more."""
        for mirror in self.mirrors:
            mirror.edited &= there.keys()

    def edit(self, peer: Peer) -> Callable[..., None]:
        statements = [self.statement() for _ in range(self.random.choice((1, 1, 2, 4)))]
        write = self.random.choice((peer.write, peer.commit))
        write(*statements, at=self.at)
        return write

    def statement(self) -> str:
        pick = self.random
        id, place, text = pick.randrange(KEYS), pick.choice("ab"), pick.choice("xyzuvw")
        return pick.choice(
            (
                f"INSERT OR IGNORE INTO todo VALUES ({id}, '{text}', 0, 0)",
                f"INSERT OR REPLACE INTO todo VALUES ({id}, '{text}', 1, 1)",
                f"UPDATE todo SET title = '{text}' WHERE id = {id}",
                f"UPDATE todo SET done = 1 - done WHERE id <= {id}",
                f"UPDATE todo SET votes = votes + 1 WHERE id = {id}",
                f"UPDATE OR IGNORE todo SET id = {id} WHERE id = {pick.randrange(KEYS)}"
                " AND NOT EXISTS (SELECT 1 FROM part WHERE todo = todo.id)",
                f"DELETE FROM todo WHERE id = {id}",
                f"INSERT OR IGNORE INTO part SELECT id, '{place}', '{text}' FROM todo"
                f" WHERE id = {id}",
                f"UPDATE part SET note = '{text}' WHERE place = '{place}'",
                f"DELETE FROM part WHERE todo = {id}",
            )
        )

    def edit_backend(self) -> None:
        id, text = self.random.randrange(KEYS), self.random.choice("xyzuvw")
        if self.random.random() < 0.3:
            self.relay.delete("todo", (id,), self.at)
        else:
            self.relay.edit("todo", (id,), self.at, title=f"backend {text}{self.at}", done=1)


@pytest.fixture(params=range(40))
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(tmp_path, request.param)
    yield world
    world.close()


def test_who_applies_what_is_told_has_what_the_file_has(world: World) -> None:
    for _ in range(STEPS):
        world.step()
    world.sync(world.one, world.two)
    for mirror in world.mirrors:
        mirror.look()
    assert world.one.differences() == []
