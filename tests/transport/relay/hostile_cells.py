"""Pushes hostile cells at a relay's arbitration, and looks at what becomes of it.

    .venv/bin/python -m tests.transport.relay.hostile_cells [--updates 300000] [--seed 1] [--json]

Attackers push changesets that are in order but for the bytes of a cell; after every batch what the
relay stored is read by other eyes, and an honest client edits a row that was attacked. A process
that ends by a signal is the worst outcome, so the last batch is in a file, one entry a line.
"""

import argparse
import asyncio
import json
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

from reunite.cells import KINDS, counter, set, yjs
from reunite.cells.kinds import Author
from reunite.cells.register import Value
from reunite.cells.yjs_update import Shape, parse, parse_state
from reunite.clock import NEVER
from reunite.columns import shows
from reunite.document import KIND_MASK, Document, cell_key, decode
from reunite.keys import unpack_key
from reunite.payload import StatedRows, Statement
from reunite.verify import verify
from reunite_transport.messages import EntryKind
from reunite_transport.relay.admission import Changeset, Refused
from reunite_transport.relay.commit import Outcome, Taken, commit_batch
from reunite_transport.relay.sqlite_store import SqliteStore, open_sqlite
from tests.contracts.pushes import at, changeset, column, entries, row, table
from tests.engine.peer import Peer
from tests.transport.relay.hostile_updates import SHAPES, Hostile

NOW: Final = 1_700_000_000_000
HONEST: Final = 50
HONEST_AUTHOR: Final = Author(HONEST, (1 << 52) + 77)
ATTACKERS: Final = 40
# Attacks on the same rows, which get worse by what is taken.
BATCHES_A_ROUND: Final = 15
WILD: Final = (0.0, 0.01, 0.05, 0.3)

COLUMNS: Final = {
    "body": "crdt_text",
    "steps": "crdt_list",
    "meta": "crdt_json",
    "likes": "counter",
    "tags": "crdt_set",
    "plain": "text",
}
NOTE: Final = table("note", *(column(name, kind) for name, kind in COLUMNS.items()))
KEYS: Final = {name: cell_key(2 + place) for place, name in enumerate(COLUMNS)}
YJS_KINDS: Final[Mapping[Shape, int]] = {
    "text": yjs.TEXT_KIND,
    "list": yjs.LIST_KIND,
    "json": yjs.JSON_KIND,
}
SHAPE_OF_KIND: Final[Mapping[int, Shape]] = {kind: shape for shape, kind in YJS_KINDS.items()}
# The column that each kind is for.
KEY_OF_KIND: Final = {
    yjs.TEXT_KIND: KEYS["body"],
    yjs.LIST_KIND: KEYS["steps"],
    yjs.JSON_KIND: KEYS["meta"],
    counter.KIND: KEYS["likes"],
    set.KIND: KEYS["tags"],
}
EMPTY: Final[Mapping[Shape, str]] = {"text": "", "list": "[]", "json": "{}"}
_WORDS: Final = ("one", "two ", "é", "😀", "e\u0301", " ", "three\n")


@dataclass
class Figures:
    """What became of the updates."""

    verdicts: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    honest: int = 0
    too_deep: int = 0
    documents: int = 0
    seconds: float = 0.0
    slowest_ms: float = 0.0


@dataclass
class Target:
    """A row that is attacked: its key, its kind of Yjs cell, and honest updates of that."""

    key: int
    shape: Shape
    honest: list[bytes]
    known: dict[int, int]


def honest_content(chance: Random, shape: Shape, before: Any) -> Any:
    """A content that somebody could make of another."""
    word = chance.choice(_WORDS)
    if shape == "text":
        place = chance.randrange(len(before) + 1)
        return before[:place] + word + before[place + chance.choice((0, 0, 1, 4)) :]
    item = chance.choice((word, 1, 1.0, 2**60, None, True, [word], {"a": [1, {"b": word}]}, {}))
    if shape == "list":
        place = chance.randrange(len(before) + 1)
        return [*before[:place], item, *before[place + chance.choice((0, 0, 1)) :]]
    key = chance.choice(("a", "b", "key", ""))
    return {name: value for name, value in before.items() if name != key} | (
        {key: item} if chance.random() < 0.8 else {}
    )


def honest_cell(chance: Random, shape: Shape) -> tuple[bytes, list[bytes]]:
    """A cell that two people edited, and updates of it: of the whole and of each edit."""
    kind = KINDS[YJS_KINDS[shape]]
    state, updates = yjs.EMPTY, []
    content: Any = json.loads(EMPTY[shape]) if shape != "text" else ""
    for _ in range(chance.choice((2, 4, 8))):
        content = honest_content(chance, shape, content)
        edit = kind.edit(state, content, Author(1, chance.choice((1, 2, 3))))
        assert edit is not None
        state = edit.after
        updates += [edit.delta, state]
    return state, updates


class Attack:
    """A relay on a file, its attackers, and one who is honest."""

    def __init__(self, store: SqliteStore, path: Path, journal: Path, seed: int) -> None:
        self.store = store
        self.figures = Figures()
        self._reader = sqlite3.connect(path, isolation_level=None)
        self._journal = journal
        self._chance = Random(seed)
        self._hostile = [Hostile(self._chance, wild) for wild in WILD]
        self._numbers = Counter[int]()
        self._nonces, self._keys = count(1), count(1)
        self._targets: list[Target] = []

    def close(self) -> None:
        """Close the connection that reads."""
        self._reader.close()

    async def begin(self) -> None:
        """Make the table and greet."""
        (described,) = await self.store.describe([NOTE], create=True)
        assert [cell_key(part.id) for part in described.cells] == list(KEYS.values())
        for replica in (HONEST, *self._attackers()):
            await self.store.greet(replica, 0, (), 0, b"")

    async def run(self, updates: int) -> Figures:
        """Push so many hostile cells."""
        started = time.perf_counter()
        for number in count():
            left = updates - self.figures.verdicts.total()
            if left <= 0:
                break
            if number % BATCHES_A_ROUND == 0:
                await self._new_rows()
            await self._attack(min(left, ATTACKERS))
            await self._go_on_working()
        self.figures.seconds = time.perf_counter() - started
        return self.figures

    def _attackers(self) -> range:
        return range(HONEST + 1, HONEST + 1 + ATTACKERS)

    async def _new_rows(self) -> None:
        """Rows by the honest client, one for each kind of Yjs cell."""
        chance, mark = self._chance, at(NOW, HONEST)
        self._targets = []
        for shape in SHAPES:
            state, updates = honest_cell(chance, shape)
            target = Target(next(self._keys), shape, updates, {})
            cells: dict[int, Value] = {
                YJS_KINDS[shape]: state,
                counter.KIND: counter.initial(7),
                set.KIND: set.initial(frozenset({'"a"', "1"})),
            }
            whole = {KEY_OF_KIND[kind] | kind: (mark, value) for kind, value in cells.items()}
            await self._honest(target, Document(mark, mark, NEVER, whole))
            self._targets.append(target)

    async def _attack(self, attackers: int) -> None:
        pushed: list[tuple[str, Changeset]] = []
        lines = []
        for target in self._targets:
            state = self._state(target)
            target.known = {
                client: clock
                for client, clock in parse_state(
                    yjs.Yjs(target.shape).loaded(state).get_state()
                ).items()
                if client != HONEST_AUTHOR.session
            }
        for replica in self._attackers()[:attackers]:
            way, key, document = self._entry(replica)
            kind = EntryKind.WHOLE if document.born else EntryKind.PARTIAL
            pushed.append((way, self._changeset(replica, key, document, kind)))
            lines.append(f"{way} {key} {pushed[-1][1].sections[0].documents[0].hex()}\n")
        self._journal.write_text("".join(lines))
        outcome = await self._commit([push for _, push in pushed])
        for (way, push), verdict in zip(pushed, outcome.verdicts, strict=True):
            self._note(way, verdict)
            if isinstance(verdict, Taken):
                self._numbers[push.replica] += 1
        self._look_at(outcome)

    def _entry(self, replica: int) -> tuple[str, int, Document]:
        """What an attacker pushes: how it was made, the row's key, and the document."""
        chance, mark = self._chance, at(NOW, replica)
        hostile, target = chance.choice(self._hostile), chance.choice(self._targets)
        kind = YJS_KINDS[target.shape]
        if chance.random() < 0.15:
            kind = chance.choice((counter.KIND, set.KIND))
            way, data = "counter", hostile.counter(replica)
            if kind == set.KIND:
                way, data = "set", hostile.set(replica)
        else:
            way, data = hostile.update(target.shape, target.honest, target.known)
            if chance.random() < 0.05:
                kind = chance.choice(list(SHAPE_OF_KIND))
        column_key = KEY_OF_KIND[kind]
        if chance.random() < 0.05:
            column_key = chance.choice(list(KEYS.values()))
        if chance.random() < 0.15:
            return (
                way,
                next(self._keys),
                Document(mark, mark, NEVER, {column_key | kind: (mark, data)}),
            )
        return way, target.key, Document(NEVER, mark, NEVER, {column_key | kind: (mark, data)})

    def _note(self, way: str, verdict: object) -> None:
        found = "taken"
        if not isinstance(verdict, Taken):
            assert isinstance(verdict, Refused), verdict
            assert verdict.message, "a refusal says why"
            assert verdict.reason in ("invalid", "need-whole"), verdict
            found = "not ready"
            if verdict.reason == "invalid":
                # What is wrong by itself is told with its table, before any document is looked at.
                alone = verdict.message.startswith(("table ", "a cell names"))
                found = "refused by itself" if alone else "refused at the document"
            if "Yjs fails" in verdict.message:
                found = "YJS FAILED"
            said = re.sub(r"\d+|codec.*", "_", verdict.message)
            self.figures.messages[said] += 1
        self.figures.verdicts[found] += 1
        self.figures.ways[f"{way}: {found}"] += 1

    def _look_at(self, outcome: Outcome) -> None:
        """Read what was stored: by the parser, by a Yjs that has not seen it, and in the table."""
        for stated in outcome.rows:
            document = decode(stated.document)
            self.figures.documents += 1
            for key, (_, state) in document.cells.items():
                kind = key & KIND_MASK
                if not kind:
                    continue
                assert isinstance(state, bytes)
                KINDS[kind].check(state)
                shown = KINDS[kind].value(state)
                if kind in SHAPE_OF_KIND:
                    other = yjs.Yjs(SHAPE_OF_KIND[kind])
                    assert other.value(state) == shown, "the cell's bytes say what it shows"
                    parse(other.loaded(state).get_update(), SHAPE_OF_KIND[kind])
                if shows(document.cells, key):
                    assert self._held(stated.row.key, key & ~KIND_MASK) == shown

    def _held(self, packed_key: bytes, column_key: int) -> Value:
        """What the relay's table holds."""
        name = next(name for name, key in KEYS.items() if key == column_key)
        value: Value
        (value,) = self._reader.execute(
            f"SELECT {name} FROM note WHERE id = ?", unpack_key(packed_key)
        ).fetchone()
        return value

    async def _go_on_working(self) -> None:
        """The honest client edits a row as the relay has it now."""
        chance = self._chance
        target = chance.choice(self._targets)
        cell = YJS_KINDS[target.shape]
        # As another process, which has seen nothing of how the relay came to this.
        kind = yjs.Yjs(target.shape)
        before = self._state(target)
        content = kind.content(kind.value(before))
        if content is None:
            # Its column goes on with a register.
            assert kind.edit(before, kind.content(EMPTY[target.shape]), HONEST_AUTHOR) is None
            self.figures.too_deep += 1
            return
        wanted = honest_content(chance, target.shape, content)
        edit = kind.edit(before, wanted, HONEST_AUTHOR)
        assert edit is not None
        if edit.after == before:
            return
        # Later than all before it, so that it shows.
        mark = at(NOW, HONEST, 1 + self.figures.honest % 60_000)
        cells: dict[int, tuple[bytes, Value]] = {KEY_OF_KIND[cell] | cell: (mark, edit.delta)}
        await self._honest(target, Document(NEVER, mark, NEVER, cells))
        after = self._state(target)
        target.honest += [edit.delta, after]
        self.figures.honest += 1

    async def _honest(self, target: Target, document: Document) -> None:
        kind = EntryKind.WHOLE if document.born else EntryKind.PARTIAL
        outcome = await self._commit([self._changeset(HONEST, target.key, document, kind)])
        assert outcome.verdicts == (Taken(),), outcome.verdicts
        self._numbers[HONEST] += 1
        self._look_at(outcome)

    def _state(self, target: Target) -> bytes:
        """The cell's state as the relay has it."""
        (data,) = self._reader.execute(
            "SELECT document FROM _reunite_documents WHERE key = ?", (row(target.key).key,)
        ).fetchone()
        kind = YJS_KINDS[target.shape]
        state = decode(data).cells[KEY_OF_KIND[kind] | kind][1]
        assert isinstance(state, bytes)
        return state

    def _changeset(self, replica: int, key: int, document: Document, kind: EntryKind) -> Changeset:
        nonce = next(self._nonces).to_bytes(8, "big")
        section = entries((key, document), kind=kind)
        return changeset(replica, 1 + self._numbers[replica], section, nonce=nonce)

    async def _commit(self, batch: Sequence[Changeset]) -> Outcome:
        started = time.perf_counter()
        outcome = await commit_batch(self.store, batch, next(self._nonces).to_bytes(8, "big"))
        took = (time.perf_counter() - started) * 1000
        self.figures.slowest_ms = max(self.figures.slowest_ms, took)
        return outcome


async def _read_by_another(store: SqliteStore, folder: Path) -> None:
    """Load all of it into a file, whose tables have to be the relay's."""
    with closing(Peer(folder / "file.db", 900)) as peer:
        replica = peer.replica
        mine = replica.greeting()
        greeting = await store.greet(mine.replica, mine.acknowledged, mine.nonces, 0, b"")
        replica.welcome(realm=store.realm, offset_ms=0, fork=False, known=greeting.known)
        assert replica.take_registry(await store.registry()) == []
        complete = False
        while not complete:
            page = await store.page(*replica.position(), rows_max=1_000, bytes_max=1 << 20)
            rows = [StatedRows(s.table, s.keys, s.documents) for s in page.sections]
            statement = Statement(rows, page.seq, page.token, page.complete)
            replica.receive(statement, within=page.within)
            complete = page.complete
        assert verify(peer.engine) == []
        found = peer.rows("SELECT * FROM note ORDER BY id")
    with closing(sqlite3.connect(folder / "relay.db")) as conn:
        assert found == conn.execute("SELECT * FROM note ORDER BY id").fetchall()


async def attacked(folder: Path, *, updates: int, seed: int) -> Figures:
    """Push so many hostile cells at a relay of its own in this folder."""
    path = folder / "relay.db"
    store = await open_sqlite(path, clock=lambda: NOW, durable=False)
    try:
        with closing(Attack(store, path, folder / "last_batch", seed)) as attack:
            await attack.begin()
            figures = await attack.run(updates)
        await _read_by_another(store, folder)
    finally:
        await store.close()
    return figures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=300_000, help="cells (default 300000)")
    parser.add_argument("--seed", type=int, default=1, help="of the chance (default 1)")
    parser.add_argument("--folder", type=Path, help="for the files, which stay there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="reunite-hostile-"))
    print(f"files, also of the last batch: {folder}", file=sys.stderr)
    figures = asyncio.run(attacked(folder, updates=options.updates, seed=options.seed))
    if options.json:
        print(json.dumps(vars(figures)))
        return
    print(f"{figures.verdicts.total()} hostile cells in {figures.seconds:.0f} s:")
    for counted in (figures.verdicts, figures.ways, figures.messages):
        print()
        for name, many in counted.most_common():
            print(f"{many:>9}  {name}")
    print(
        f"\n{figures.honest} honest edits taken ({figures.too_deep} rows were too deep for JSON),"
        f" {figures.documents} stored documents read;"
        f" the slowest commit took {figures.slowest_ms:.0f} ms"
    )


if __name__ == "__main__":
    main()
