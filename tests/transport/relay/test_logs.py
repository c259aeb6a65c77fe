"""The relay's log: what it says of connections, commits and rejections, as text and as JSON."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from reunite_transport.messages import Commit, Rejected
from reunite_transport.relay.logs import handler, told, trace
from reunite_transport.relay.postgres_errors import translated
from reunite_transport.relay.store import Busy, RowChange, StoreError, Violation
from tests.transport.relay.clients import push, todo
from tests.transport.relay.sockets import running

SECRET = "5ecret of nobody"


@contextmanager
def logged(name: str = "reunite_transport") -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """All that is logged from DEBUG on, as text and as JSON."""
    text, lines = io.StringIO(), io.StringIO()
    logger = logging.getLogger(name)
    handlers = [handler(text, as_json=False), handler(lines, as_json=True)]
    level = logger.level
    logger.setLevel(logging.DEBUG)
    for each in handlers:
        logger.addHandler(each)
    try:
        yield text, lines
    finally:
        for each in handlers:
            logger.removeHandler(each)
        logger.setLevel(level)


def records(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def refuse_bad(changes: Sequence[RowChange]) -> None:
    if any("bad" in str(change.after) for change in changes):
        raise Violation(f"no bad titles: {changes}", table="todo", constraint="no_bad_titles")


def test_a_line_says_what_happened_to_whom() -> None:
    async def scenario() -> None:
        async with running() as world:
            world.store.check = refuse_bad
            client = await world.live(255)
            await client.say(push(1, todo(255, 1, "milk"), todo(255, 2, "tea")))
            await client.next(Commit)
            await client.say(push(2, todo(255, 3, "bad")))
            await client.next(Rejected)
            await (await world.connect()).socket.close()

    with logged() as (text, lines):
        asyncio.run(scenario())
    said = {each["message"]: each for each in records(lines)}
    (commit,) = [each for message, each in said.items() if message.startswith("commit 1: ")]
    assert commit["level"] == "debug"
    assert commit["logger"] == "reunite_transport.relay.flusher"
    assert (commit["seq"], commit["rows"], commit["changesets"]) == (1, 2, 1)
    assert 0 <= commit["seconds"] < 20
    at = datetime.fromisoformat(commit["time"])
    assert at.utcoffset() == timedelta(0)
    (rejection,) = [each for each in said.values() if "reason" in each]
    assert rejection["level"] == "info"
    assert (rejection["replica"], rejection["number"]) == (f"{255:016x}", 2)
    assert rejection["reason"] == "constraint"
    assert (rejection["table"], rejection["constraint"]) == ("todo", "no_bad_titles")
    assert said["connection 1 opened"]["level"] == "info"
    assert said["connection 1 opened"]["replica"] is None
    assert said["connection 1 closed"]["replica"] == f"{255:016x}"
    assert said["connection 2 closed"]["connection"] == 2
    assert said["connection 2 closed"]["replica"] is None
    # The same, for people.
    for message in said:
        assert f"reunite relay: {message}\n" in text.getvalue()


def test_a_table_is_named_where_the_reason_names_none() -> None:
    async def scenario() -> None:
        async with running() as world:
            client = await world.live(1)
            await client.say(push(1, todo(1, 1, "of tomorrow", at=100_000_000)))
            await client.next(Rejected)

    with logged() as (_, lines):
        asyncio.run(scenario())
    (rejection,) = [each for each in records(lines) if "reason" in each]
    assert (rejection["reason"], rejection["table"]) == ("clock-ahead", "todo")
    assert rejection["constraint"] is None


def test_an_error_of_ours_is_logged_with_its_places_and_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever handler the record meets: an app that has the relay in it has its own."""

    def fail(changes: Sequence[RowChange]) -> None:
        try:
            raise Violation(f"no {SECRET}")
        except Violation as error:
            raise ValueError(f"not {[change.after for change in changes]}") from error

    async def scenario() -> None:
        async with running() as world:
            world.store.check = fail
            for replica in (1, 2, 3):
                client = await world.live(replica)
                await client.say(push(1, todo(replica, 1, SECRET)))
                assert await client.error() == "internal"

    caplog.set_level(logging.DEBUG)
    with logged() as (text, lines):
        asyncio.run(scenario())
    for said in (caplog.text, text.getvalue(), lines.getvalue()):
        assert "ValueError" in said
        assert "in fail" in said
        assert "Violation" in said
        assert SECRET not in said


@pytest.mark.parametrize("as_json", [False, True])
def test_errors_that_others_log_are_shown_without_their_words(as_json: bool) -> None:
    """As asyncio does when nobody asks for the outcome of a task."""

    async def scenario() -> None:
        async def failing() -> None:
            raise ValueError(SECRET)

        task = asyncio.create_task(failing())
        await asyncio.wait([task])
        del task

    with logged("asyncio") as streams:
        asyncio.run(scenario())
    said = streams[as_json].getvalue()
    assert "Task exception was never retrieved" in said
    assert "in failing" in said
    assert "ValueError" in said
    assert SECRET not in said


def test_a_line_is_one_json_object_whatever_it_holds() -> None:
    lines = io.StringIO()
    said = {
        "name": "aiohttp",
        "msg": "two\nlines of %s",
        "args": ("\udcff",),
        "levelname": "WARNING",
    }
    extra = {"seq": 1, "odd": {1}, "time": "never"}
    handler(lines, as_json=True).emit(logging.makeLogRecord(said | extra))
    (found,) = records(lines)
    assert found["message"] == "two\nlines of \udcff"
    assert (found["level"], found["seq"], found["odd"]) == ("warning", 1, "set")
    assert datetime.fromisoformat(found["time"])


def test_what_may_be_said_of_an_error() -> None:
    assert told(StoreError("the disk is full")) == "the disk is full"
    assert told(Busy("a lock")) == "a lock"
    assert told(TimeoutError()) == "no answer in time"
    assert told(ValueError(SECRET)) == "ValueError"
    refused = Violation(f"no {SECRET}", table="todo", constraint="no_secrets")
    assert told(refused) == "the database refuses a row, 'todo', 'no_secrets'"
    assert SECRET not in told(Violation(f"no {SECRET}"))


def test_a_trace_tells_the_chain_and_ends_where_the_chain_is_a_ring() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert trace(first) == "builtins.KeyError\nwhich led to:\nbuiltins.ValueError"


@pytest.mark.parametrize("state", ["40001", "XX000", "53100", "57014", "P0001", "23514"])
def test_words_and_names_that_a_function_of_the_app_gives_are_not_logged(state: str) -> None:
    """A trigger may raise any error, with any words, and claim any table and constraint."""
    context = "PL/pgSQL function watch() line 3 at RAISE"
    # By the letters of Postgres's protocol: state, message, context, table and constraint.
    fields = {"C": state, "M": f"no {SECRET}", "W": context, "t": SECRET, "n": SECRET}
    error = asyncpg.PostgresError.new(fields)
    assert SECRET in str(error)
    with pytest.raises(StoreError) as raised, translated("todo"):
        raise error
    said = told(raised.value)
    assert SECRET not in said
    assert ("todo" in said) == (state in ("40001", "57014", "P0001", "23514"))
