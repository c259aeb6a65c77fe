"""What columns that merge promise, through plain SQL on several files and in Postgres."""

import asyncio
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from reunite import Database
from reunite.adopt import Choice
from reunite_transport import Sync
from tests.conftest import REPOSITORY
from tests.e2e.apart import Case, Outcome, assert_outcome, write_apart
from tests.e2e.pairs import CASES
from tests.e2e.world import (
    assert_quiet,
    contents,
    execute,
    fetch,
    make,
    one,
    plain,
    queued,
    read,
    rejected,
    relay_on,
    settle,
    sync_once,
    track_and_sync,
    write,
)

POST = """CREATE TABLE post (
    id INTEGER PRIMARY KEY,
    slug TEXT UNIQUE,
    votes COUNTER NOT NULL DEFAULT 0,
    body CRDT_TEXT,
    tags CRDT_SET_TEXT DEFAULT '[]',
    steps CRDT_LIST_TEXT DEFAULT '[]',
    meta CRDT_JSON_TEXT DEFAULT '{}'
)"""
MERGING = "SELECT votes, body, tags, steps, meta FROM post WHERE id = 1"
FIRST = """INSERT INTO post VALUES
    (1, 'first', 10, 'one two', '["a","b"]', '[1,2]', '{"k":1,"o":{"x":1}}'),
    (2, 'second', 0, NULL, '[]', '[]', '{}')"""

# Counts once, and writes a word to all else.
USE = """UPDATE post SET votes = votes + 1, body = body || ?,
    tags = json_insert(tags, '$[#]', ?), steps = json_insert(steps, '$[#]', ?),
    meta = json_set(meta, '$.' || ?, 1) WHERE id = 1"""

SEMANTICS = (REPOSITORY / "docs" / "semantics.md").read_text()


async def three_files(folder: Path, url: str, *statements: str) -> tuple[Path, Path, Path]:
    """Files that have synced; the statements make what is in them."""
    first = make(folder / "first.db", *statements)
    second, third = folder / "second.db", folder / "third.db"
    await track_and_sync(first, url)
    for file in (second, third):
        await sync_once(file, url)
    return first, second, third


async def meet(postgres_url: str, url: str, *files: Path, rejections: int = 0) -> None:
    """Sync all until they have caught up, and compare them with one another and with Postgres."""
    for file in (*files, *files):
        await sync_once(file, url)
    held = [contents(file) for file in files]
    assert held[1:] == held[:-1]
    await assert_quiet(postgres_url, *files, rejections=rejections)
    for table in held[0]:
        rows = read(files[0], f"SELECT * FROM {table} ORDER BY id")
        stored = await fetch(postgres_url, f"SELECT * FROM {table} ORDER BY id")
        assert [list(map(as_said, row)) for row in stored] == [list(map(as_said, r)) for r in rows]


def as_said(value: Any) -> Any:
    """JSON without its spelling, and other values as they are."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return json.dumps(json.loads(value), sort_keys=True)
    return value


@pytest.fixture(scope="module")
def outcomes(
    _postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Sequence[Mapping[str, Outcome]]:
    """All cases, run at once in a database of their own, and again with the files syncing in the
    other order."""
    found = []
    for order in ("abc", "cba"):
        folder = tmp_path_factory.mktemp(order)
        name = re.sub(r"\W", "_", f"{folder.parent.name}_{folder.name}")
        url = urlsplit(_postgres_server)._replace(path=f"/{name}").geturl()
        asyncio.run(execute(_postgres_server, f"CREATE DATABASE {name} TEMPLATE template0"))
        try:
            found.append(asyncio.run(write_apart(CASES, folder, url, order)))
        finally:
            asyncio.run(execute(_postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_writes_made_apart(case: Case, outcomes: Sequence[Mapping[str, Outcome]]) -> None:
    for outcome in outcomes:
        assert_outcome(case, outcome[case.name])


def test_twenty_offline_replicas_count_exactly(tmp_path: Path, postgres_url: str) -> None:
    """Half of them are apps, of which some count in transactions; half are other programs."""
    adds = 500
    add = "UPDATE post SET votes = votes + 1 WHERE id = 1"

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, *_ = await three_files(
                tmp_path, relay.url, POST, "INSERT INTO post (id) VALUES (1)"
            )
            files = [tmp_path / f"{number}.db" for number in range(20)]
            for file in files:
                await sync_once(file, relay.url)
            for number, file in enumerate(files):
                if number % 2:
                    with plain(file) as conn:
                        for _ in range(adds):
                            conn.execute(add)
                    continue
                async with Database(file) as db:
                    for _ in range(10):
                        async with db.transaction() as tx:
                            for _ in range(adds // 10 - 1):
                                await tx.execute(add)
                        await db.execute(add)
            await meet(postgres_url, relay.url, first, *files)
            assert one(first, "SELECT votes FROM post WHERE id = 1") == 20 * adds

    asyncio.run(scenario())


def test_columns_that_merge_are_of_ordinary_types_in_postgres(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            await three_files(tmp_path, relay.url, POST, FIRST)
        types = await fetch(
            postgres_url,
            "SELECT data_type FROM information_schema.columns"
            " WHERE table_name = 'post' AND column_name = ANY ($1) ORDER BY ordinal_position",
            ["votes", "body", "tags", "steps", "meta"],
        )
        assert [row[0] for row in types] == ["bigint", "text", "jsonb", "jsonb", "jsonb"]
        found = await fetch(
            postgres_url,
            "SELECT votes + 1, upper(body), tags ? 'a', steps -> 1, meta #> '{o,x}'"
            " FROM post WHERE id = 1",
        )
        assert tuple(found[0]) == (11, "ONE TWO", True, "2", "1")

    asyncio.run(scenario())


def test_a_row_that_is_written_back_as_it_was_is_not_edited(
    tmp_path: Path, postgres_url: str
) -> None:
    """Also where a program spells its JSON otherwise: it reads as all others have it."""
    spelt = """UPDATE post SET slug = slug, votes = votes, body = body,
        tags = '["b", "a", "a"]', steps = '[1, 2]', meta = '{ "o": {"x": 1}, "k": 1 }'
        WHERE id = 1"""
    replaced = "REPLACE INTO post SELECT * FROM post"

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second, third = await three_files(tmp_path, relay.url, POST, FIRST)
            before = contents(first)
            async with Database(first) as db:
                await db.execute(spelt)
                await db.execute(replaced)
                assert contents(first) == before
            write(second, spelt)
            write(second, replaced)
            async with Database(second) as db:
                await db.execute("UPDATE post SET slug = slug")
            for file in (first, second):
                assert queued(file) == 0
                assert contents(file) == before
            await meet(postgres_url, relay.url, first, second, third)

    asyncio.run(scenario())


def test_programs_that_write_all_columns_back_lose_nothing_of_each_other(
    tmp_path: Path, postgres_url: str
) -> None:
    """As an ORM does: each has a fresh copy of the row, changes some of it, and writes it all."""

    def write_back(file: Path, **changes: Any) -> None:
        names = ["votes", "body", "tags", "steps", "meta"]
        (row,) = read(file, MERGING)
        values = dict(zip(names, row, strict=True)) | changes
        given = [json.dumps(v) if isinstance(v, list | dict) else v for v in values.values()]
        write(file, f"UPDATE post SET {' = ?, '.join(names)} = ? WHERE id = 1", *given)

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second, third = await three_files(tmp_path, relay.url, POST, FIRST)
            write_back(first, votes=11, meta={"o": {"x": 1, "y": [{"z": 1}]}, "k": 1})
            write_back(second, body="zero one two", meta={"o": {"x": 2}, "k": 1}, tags=["b", "c"])
            write_back(third, votes=12, body="one two three", steps=[1, 2, 3], tags=["b", "a", "d"])
            await meet(postgres_url, relay.url, first, second, third)
            assert read(first, MERGING) == [
                (
                    13,
                    "zero one two three",
                    '["b","c","d"]',
                    "[1,2,3]",
                    '{"k":1,"o":{"x":2,"y":[{"z":1}]}}',
                )
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize("loose", [False, True], ids=["by the app", "by another program"])
def test_what_is_done_after_a_rejected_edit_survives_alone(
    loose: bool, tmp_path: Path, postgres_url: str
) -> None:
    """The refused transaction leaves no trace in cells that were edited again, and others' edits
    stay; what it did is told as it was meant."""
    bad = """UPDATE post SET slug = 'taken', votes = votes + 3, body = 'one BAD two',
        tags = '["b","bad"]', steps = '["bad",1,2]', meta = '{"k":"bad","o":{"x":1,"bad":{}}}'
        WHERE id = 1"""
    good = """UPDATE post SET votes = votes + 10, body = body || ' end',
        tags = '["b","bad","good"]', steps = '["bad",1,2,3]',
        meta = '{"k":"bad","o":{"x":2,"bad":{}},"good":1}' WHERE id = 1"""
    better = """UPDATE post SET votes = votes + 20, body = 'start ' || body,
        tags = '["b","bad","better","good"]', steps = '[0,"bad",1,2,3]',
        meta = json_set(meta, '$.better', 1) WHERE id = 1"""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second, third = await three_files(tmp_path, relay.url, POST, FIRST)
            write(second, "UPDATE post SET slug = 'taken' WHERE id = 2")
            write(
                second, "UPDATE post SET votes = votes + 100, body = 'zero ' || body WHERE id = 1"
            )
            async with Database(first) as db:
                for statement in (bad, good, better):
                    if loose:
                        write(first, statement)
                        # Look at the file, so that each is a changeset of its own.
                        await db.on_engine(db.replica.outbox_mark)
                    else:
                        await db.execute(statement)
            await sync_once(second, relay.url)
            await meet(postgres_url, relay.url, first, second, third, rejections=1)
            assert one(first, "SELECT slug FROM post WHERE id = 1") == "first"
            ((votes, body, tags, steps, meta),) = read(third, MERGING)
            assert votes == 140
            assert sorted(body.split()) == ["end", "one", "start", "two", "zero"]
            assert re.search("one two end$", body)
            assert tags == '["a","b","better","good"]'
            assert steps == "[0,1,2,3]"
            assert meta == '{"better":1,"good":1,"k":1,"o":{"x":2}}'
            assert rejected(first) == [("post", 1, "update", "constraint")]
            values = json.loads(one(first, 'SELECT "values" FROM reunite_rejected'))
            assert values["slug"] == "taken"
            assert values["votes"] == {"add": 3}
            assert values["tags"] == {"add": ["bad"], "remove": ["a"]}
            assert values["steps"] == {"before": [1, 2], "after": ["bad", 1, 2]}
            assert values["meta"] == {
                "before": {"k": 1, "o": {"x": 1}},
                "after": {"k": "bad", "o": {"bad": {}, "x": 1}},
            }
            assert values["body"]["after"] == values["body"]["before"].replace("one", "one BAD")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "value",
    [
        "votes = 'many'",
        "votes = 1.5",
        "body = x'00ff'",
        "body = 'a' || char(0)",
        "tags = 'a, b'",
        "steps = '[1,'",
        "meta = '{\"a\":NaN}'",
        'meta = \'{"a":"\\u0000"}\'',
    ],
)
def test_a_value_that_postgres_cannot_hold_either_is_rejected(
    value: str, tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second, _ = await three_files(tmp_path, relay.url, POST, FIRST)
            before = contents(first)
            write(first, f"UPDATE post SET {value} WHERE id = 1")
            await meet(postgres_url, relay.url, first, second, rejections=1)
            assert rejected(first) == [("post", 1, "update", "constraint")]
            assert contents(first) == before

    asyncio.run(scenario())


def use(file: Path, word: str) -> None:
    """Count and type as another program."""
    write(file, USE, f" {word}", word, word, word)


async def notice(*files: Path) -> None:
    """Make what other programs wrote a changeset, and close the files again."""
    for file in files:
        async with Database(file) as db:
            await db.on_engine(db.replica.outbox_mark)


def assert_words(file: Path, words: Sequence[str], *, untagged: str = "") -> None:
    """Each word was counted, typed and added once to what was there at first, but for a tag that
    somebody took away again."""
    ((votes, body, tags, steps, meta),) = read(file, MERGING)
    assert votes == 10 + len(words)
    assert sorted(body.split()) == sorted(["one", "two", *words])
    assert json.loads(tags) == sorted({"a", "b", *words} - {untagged})
    assert sorted(map(str, json.loads(steps))) == sorted(["1", "2", *words])
    assert json.loads(meta) == {"k": 1, "o": {"x": 1}} | dict.fromkeys(words, 1)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_copied_file_that_is_used_twice_counts_and_types_once(
    at_once: bool, tmp_path: Path, postgres_url: str
) -> None:
    """Both copies hold the same unsent work, and both go on with it."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second, _ = await three_files(tmp_path, relay.url, POST, FIRST)
            use(first, "before")
            await notice(first)
            use(first, "unseen")
            copy = tmp_path / "copy.db"
            shutil.copy(first, copy)
            for number in range(3):
                use(first, f"first{number}")
                use(copy, f"copy{number}")
                await notice(first, copy)
            if at_once:
                async with (
                    Database(first) as mine,
                    Database(copy) as theirs,
                    Sync(mine, relay.url) as here,
                    Sync(theirs, relay.url) as there,
                ):
                    await settle(here, there)
            await meet(postgres_url, relay.url, first, copy, second)
            words = [f"{who}{n}" for who in ("first", "copy") for n in range(3)]
            # What nobody had looked at when the file was copied, each of them did for itself.
            ((votes, body),) = read(second, "SELECT votes, body FROM post WHERE id = 1")
            assert votes == 10 + 1 + 2 + len(words)
            assert sorted(body.split()) == sorted(
                ["one", "two", "before", "unseen", "unseen", *words]
            )

    asyncio.run(scenario())


def test_a_file_that_is_copied_again_and_again_counts_and_types_once(
    tmp_path: Path, postgres_url: str
) -> None:
    """What two copies hold unsent is taken from one of them, and what the other one did on top of
    it counts from there."""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second, _ = await three_files(tmp_path, relay.url, POST, FIRST)
            use(first, "w1")
            await notice(first)
            early, late = tmp_path / "early.db", tmp_path / "late.db"
            shutil.copy(first, early)
            use(first, "w2")
            await notice(first)
            shutil.copy(first, late)
            use(early, "early")
            use(first, "first")
            write(first, "UPDATE post SET tags = json_remove(tags, '$[3]') WHERE id = 1")
            use(late, "late")
            await notice(early, first, late)
            await meet(postgres_url, relay.url, early, late, first, second)
            assert_words(second, ["w1", "w2", "early", "first", "late"], untagged="w2")

    asyncio.run(scenario())


def test_replicas_that_write_while_they_are_connected_count_and_type_once(
    tmp_path: Path, postgres_url: str
) -> None:
    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            files = await three_files(tmp_path, relay.url, POST, FIRST)
            words = [f"{who}{number}" for number in range(8) for who in "abc"]
            async with (
                Database(files[0]) as a,
                Database(files[1]) as b,
                Database(files[2]) as c,
                Sync(a, relay.url) as sync_a,
                Sync(b, relay.url) as sync_b,
                Sync(c, relay.url) as sync_c,
            ):
                for word in words:
                    if word[0] == "c":
                        use(files[2], word)
                        continue
                    async with (a if word[0] == "a" else b).transaction() as tx:
                        await tx.execute(USE, [f" {word}", word, word, word])
                await settle(sync_a, sync_b, sync_c)
            await meet(postgres_url, relay.url, *files)
            assert_words(files[0], words)

    asyncio.run(scenario())


def test_a_counter_that_a_trigger_keeps_counts_each_row_once(
    tmp_path: Path, postgres_url: str
) -> None:
    """All files have the trigger, and it runs again where a row arrives: that is no edit."""
    comment = "CREATE TABLE comment (id INTEGER PRIMARY KEY, post INTEGER)"
    trigger = """CREATE TRIGGER counts AFTER INSERT ON comment
        BEGIN UPDATE post SET votes = votes + 1 WHERE id = NEW.post; END"""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            files = await three_files(tmp_path, relay.url, POST, FIRST, comment)
            for number, file in enumerate(files):
                write(file, trigger)
                for comment_id in range(4):
                    write(file, "INSERT INTO comment VALUES (?, 1)", 10 * number + comment_id)
            await meet(postgres_url, relay.url, *files)
            assert one(files[0], "SELECT votes FROM post WHERE id = 1") == 10 + 12

    asyncio.run(scenario())


@pytest.mark.parametrize("merging_first", [True, False])
def test_the_realms_type_decides_where_files_declare_others(
    merging_first: bool, tmp_path: Path, postgres_url: str
) -> None:
    """What was written before the files knew of each other stays, beside what merges; what is done
    to it later is done to what the file shows."""
    named = {"COUNTER": "INTEGER", r"CRDT_(\w+_)?TEXT": "TEXT"}
    plain_post = POST
    for merging_type, plain_type in named.items():
        plain_post = re.sub(merging_type, plain_type, plain_post)
    later = FIRST.replace("10, 'one two'", "20, 'later'")

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            merging = make(tmp_path / "merging.db", POST)
            plainly = make(tmp_path / "plain.db", plain_post)
            for file, rows in ((merging, FIRST), (plainly, later)):
                async with Database(file) as db:
                    await db.track_all()
                    await db.execute(rows)
            order = (merging, plainly) if merging_first else (plainly, merging)
            await meet(postgres_url, relay.url, *order)
            assert read(merging, MERGING)[0][:2] == (20, "later")
            write(plainly, "UPDATE post SET votes = votes + 1, body = body || '!' WHERE id = 1")
            await meet(postgres_url, relay.url, *order)
            assert read(merging, MERGING)[0][:2] == (21, "later!")
            write(merging, "UPDATE post SET votes = votes + 1, body = 'a ' || body WHERE id = 1")
            write(plainly, "UPDATE post SET votes = votes + 2, body = body || ' b' WHERE id = 1")
            await meet(postgres_url, relay.url, *order)
            together = (24, "a later! b") if merging_first else (23, "later! b")
            assert read(merging, MERGING)[0][:2] == together

    asyncio.run(scenario())


@pytest.mark.parametrize("adopt", ["theirs", "ours"])
def test_what_was_done_to_an_adopted_row_is_done_to_the_chosen_one(
    adopt: Choice, tmp_path: Path, postgres_url: str
) -> None:
    """The other file's rows are not those that the edits were made on."""
    other = """INSERT INTO post VALUES
        (1, 'first', 50, 'mine', '["c"]', '[3]', '{"m":1}'),
        (2, 'second', 0, NULL, '[]', '[]', '{}')"""

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first = make(tmp_path / "first.db", POST, FIRST)
            await track_and_sync(first, relay.url)
            second = make(tmp_path / "second.db", POST, other)
            async with Database(second) as db:
                await db.track_all()
                await db.execute(USE, [" word", "word", "word", "word"])
                await sync_once(db, relay.url, adopt=adopt)
            await meet(
                postgres_url, relay.url, first, second, rejections=1 if adopt == "theirs" else 0
            )
            if adopt == "theirs":
                assert_words(first, ["word"])
            else:
                chosen = (51, "mine word", '["c","word"]', '[3,"word"]', '{"m":1,"word":1}')
                assert read(first, MERGING) == [chosen]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "function"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SEMANTICS)))
)
def test_a_test_that_the_semantics_name_is_there(path: str, function: str) -> None:
    assert re.search(rf"^def {function}\(", (REPOSITORY / path).read_text(), re.MULTILINE)


def test_the_semantics_name_every_case() -> None:
    assert sorted(re.findall(r"`\[(.+?)\]`", SEMANTICS)) == sorted(case.name for case in CASES)
