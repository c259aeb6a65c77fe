"""What became of a write: waiting until the relay has it or refused it, and what was refused.

Both are live queries of the file, so they hold after it was closed and opened again, and whichever
process syncs it.
"""

from typing import Final

from reunite.board import Found
from reunite.errors import UsageError
from reunite.row import Row
from reunite.watch import Watch

# A changeset of the app's own keeps its id for as long as it is in the outbox, and no other ever
# gets it. With `seq` it is in at the relay.
STANDING: Final = """
SELECT EXISTS (SELECT 1 FROM _reunite_changesets WHERE id = ?1 AND seq IS NULL) AS waits,
    EXISTS (SELECT 1 FROM _reunite_refused WHERE changeset = ?1) AS refused,
    ?1 BETWEEN 1 AND max(coalesce((SELECT max(id) FROM _reunite_changesets), 0), coalesce(
        (SELECT max(seq) FROM sqlite_sequence WHERE name = '_reunite_changesets'), 0)) AS known"""

REJECTED: Final = (
    'SELECT id, at_ms, "table", key, kind, reason, message, "values"'
    " FROM reunite_rejected ORDER BY id"
)


async def committed(standing: Watch[Row | None], changeset: int) -> bool:
    """Wait until a changeset is resolved; True when the relay has all of it. `standing` follows
    `STANDING`. Raises UsageError for a number that this file never gave."""
    async for row in standing:
        assert row is not None, "it has no FROM"
        if not row["known"]:
            raise UsageError(f"{changeset} is no changeset of this file")
        # What was refused in part may go on with the rest.
        if row["refused"]:
            return False
        if not row["waits"]:
            return True
    raise UsageError("the database was closed before the relay had resolved the changeset")


class Rejections:
    """Who follows the lines of `reunite_rejected`, and was told some."""

    def __init__(self) -> None:
        # By what they hold: the id of a line that was deleted can be another's.
        self._told: dict[int, Row] = {}

    def fresh(self, found: Found) -> list[Row]:
        """The lines that were not told; what was `found` is of `REJECTED`."""
        lines: list[Row] = found.told
        told, self._told = self._told, {line["id"]: line for line in lines}
        return [line for line in lines if told.get(line["id"]) != line]
