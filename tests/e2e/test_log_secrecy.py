"""Nothing of a row's contents is in the relay's log, whatever becomes of the row."""

import asyncio
import io
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from reunite import Database
from reunite_transport import Sync
from reunite_transport.client_session import Event, GaveUp
from reunite_transport.relay.admission import Changeset
from reunite_transport.relay.commit import Outcome
from reunite_transport.relay.flusher import Flusher
from reunite_transport.relay.logs import handler
from reunite_transport.relay.store import Store
from tests.e2e.world import (
    SECONDS_MAX,
    execute,
    make,
    one,
    relay_on,
    sync_once,
    track_and_sync,
    until,
)

SECRET = "5ecret-of-nobody"
PERSON = "CREATE TABLE person (id INTEGER PRIMARY KEY, email TEXT UNIQUE, x INTEGER, note TEXT)"
TRIGGER = """
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
CREATE TRIGGER look BEFORE INSERT OR UPDATE ON person FOR EACH ROW EXECUTE FUNCTION look()
"""
FORGED = """
IF NEW.note LIKE 'forged%' THEN
    RAISE EXCEPTION 'no % please', NEW.note
    USING DETAIL = NEW.note, TABLE = NEW.note, CONSTRAINT = NEW.note;
END IF;
"""
# As when the database fails: the batch is tried again.
AWAY = "RAISE EXCEPTION 'no % please', NEW.note USING ERRCODE = '{}';"


def waits(flusher: Flusher) -> bool:
    """True while a changeset is tried again later."""
    return any(line.delay > 0 for line in flusher._line_by_member.values())


def listening(caplog: pytest.LogCaptureFixture, *streams: io.StringIO) -> list[logging.Handler]:
    """Everything that a relay's process may log, by our handlers and by pytest's."""
    # The files' own, which a relay has none of; it says what it writes.
    caplog.set_level(logging.WARNING, "aiosqlite")
    caplog.set_level(logging.DEBUG)
    handlers = [handler(each, as_json=bool(place)) for place, each in enumerate(streams)]
    for each in handlers:
        logging.getLogger().addHandler(each)
    return handlers


def test_what_is_taken_rejected_and_failing_is_not_quoted_in_the_log(
    tmp_path: Path, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []

    async def become(body: str) -> None:
        create, _, _ = TRIGGER.format(body).partition(";\nCREATE TRIGGER")
        await execute(postgres_url, create.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))

    async def scenario() -> None:
        async with relay_on(postgres_url) as relay:
            first, second = make(tmp_path / "first.db", PERSON), tmp_path / "second.db"
            await track_and_sync(first, relay.url)
            await sync_once(second, relay.url)
            await execute(postgres_url, TRIGGER.format(FORGED))

            # What commits takes a poisoned one by an error of ours, whose words quote it.
            commit = relay.service.flusher._commit

            async def poisoned(
                store: Store, batch: Sequence[Changeset], token: bytes, *, patiently: bool
            ) -> Outcome:
                pushed = b"".join(d for c in batch for s in c.sections for d in s.documents)
                if b"poison" in pushed:
                    raise ValueError(f"cannot take {pushed!r}")
                return await commit(store, batch, token, patiently=patiently)

            relay.service.flusher._commit = poisoned
            async with (
                Database(first) as mine,
                Database(second) as theirs,
                Sync(mine, relay.url, on_event=events.append) as sync,
            ):

                async def rejected(sql: str, *parameters: object) -> str:
                    before = len(events)
                    await mine.execute(sql, parameters)
                    await sync.caught_up(SECONDS_MAX)
                    (gave_up,) = [e for e in events[before:] if isinstance(e, GaveUp)]
                    return gave_up.message

                # Taken.
                insert = "INSERT INTO person (id, email, x, note) VALUES (?, ?, ?, ?)"
                await mine.execute(insert, (1, f"{SECRET}@taken", 1, SECRET))
                await sync.caught_up(SECONDS_MAX)
                # Rejected, by messages that quote it.
                await theirs.execute(insert, (2, f"{SECRET}@unique", 1, SECRET))
                await mine.execute(insert, (3, f"{SECRET}@unique", 1, SECRET))
                await sync.caught_up(SECONDS_MAX)
                await sync_once(theirs, relay.url)
                said = await rejected(insert, 4, f"{SECRET}@type", SECRET, SECRET)
                assert SECRET in said
                said = await rejected(insert, 5, f"{SECRET}@forged", 1, f"forged {SECRET}")
                assert SECRET in said
                # Postponed, and failing, until the trigger relents.
                for key, state in ((6, "40001"), (7, "XX000"), (8, "53100")):
                    await become(AWAY.format(state))
                    await mine.execute(insert, (key, f"{SECRET}@{state}", 1, SECRET))
                    await until(partial(waits, relay.service.flusher), f"{state} is met")
                    await become("")
                    await sync.caught_up(SECONDS_MAX)
                # Failing by an error of ours, and given up in the end.
                said = await rejected(insert, 9, f"{SECRET}@ours", 1, f"poison {SECRET}")
                assert "ValueError" in said
                assert one(first, "SELECT count(*) FROM person WHERE id IN (1, 3, 6, 7, 8)") == 5

    text, lines = io.StringIO(), io.StringIO()
    handlers = listening(caplog, text, lines)
    try:
        asyncio.run(scenario())
    finally:
        for each in handlers:
            logging.getLogger().removeHandler(each)
    for said in (caplog.text, text.getvalue(), lines.getvalue()):
        assert SECRET not in said
        # All of it was logged about.
        for words in (
            *("commit 1: ", "is rejected: constraint", "'person'", "is tried again"),
            *("XX000", "53100", "ValueError", "is rejected: invalid"),
        ):
            assert words in said.replace('\\"', "'"), words
