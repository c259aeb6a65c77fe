"""What became of a write: waiting until the relay has it or refused it, and what was refused.

Both are read from the file, so they hold after it was closed and opened again, and whichever
process syncs it. A sync of this process tells at once when to look; for others the file is looked
at now and then, only while somebody waits.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias

from reunite.errors import UsageError
from reunite.row import Row
from reunite.wakeup import Wakeup

# How often the file is looked at for what another process does.
POLL_SECONDS: Final = 0.1

Fetch: TypeAlias = Callable[[str, Sequence[object]], Awaitable[Iterable[Row]]]

# A changeset of the app's own keeps its id for as long as it is in the outbox, and no other ever
# gets it. With `seq` it is in at the relay.
_STANDING: Final = """
SELECT EXISTS (SELECT 1 FROM _reunite_changesets WHERE id = ?1 AND seq IS NULL) AS waits,
    EXISTS (SELECT 1 FROM _reunite_refused WHERE changeset = ?1) AS refused,
    ?1 BETWEEN 1 AND max(coalesce((SELECT max(id) FROM _reunite_changesets), 0), coalesce(
        (SELECT max(seq) FROM sqlite_sequence WHERE name = '_reunite_changesets'), 0)) AS known"""

REJECTED: Final = (
    'SELECT id, at_ms, "table", key, kind, reason, message, "values"'
    " FROM reunite_rejected ORDER BY id"
)


async def committed(fetch: Fetch, progress: Wakeup, changeset: int) -> bool:
    """Wait until a changeset is resolved; True when the relay has all of it. Raises UsageError for
    a number that this file never gave."""
    while True:
        seen = progress.count
        ((waits, refused, known),) = await fetch(_STANDING, (changeset,))
        if not known:
            raise UsageError(f"{changeset} is no changeset of this file")
        # What was refused in part may go on with the rest.
        if refused:
            return False
        if not waits:
            return True
        await progress.after(seen, POLL_SECONDS)


async def rejections(fetch: Fetch, progress: Wakeup) -> AsyncIterator[Row]:
    """The lines of `reunite_rejected` that are there, and then each that comes."""
    # By what they hold: the id of a line that was deleted can be another's.
    told: dict[int, Row] = {}
    version = None
    while True:
        seen = progress.count
        ((now,),) = await fetch("PRAGMA data_version", ())
        if now != version:
            version = now
            lines = {line["id"]: line for line in await fetch(REJECTED, ())}
            fresh = [line for number, line in lines.items() if told.get(number) != line]
            told = lines
            for line in fresh:
                yield line
        await progress.after(seen, POLL_SECONDS)
