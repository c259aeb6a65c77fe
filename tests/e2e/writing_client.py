"""A client to be killed: writes rows one after the other and prints each write that returned.

    python -m tests.e2e.writing_client FILE URL PREFIX

Every line on stdout is one write: the tokens of its rows. Each third write is a transaction of
three rows.
"""

import asyncio
import sys

from reunite import Database
from reunite_transport import Sync

INSERT = "INSERT INTO entry (id, token) VALUES (abs(random()), ?)"
# Enough to be killed before the end, and a bound in case nobody kills it.
WRITES_MAX = 20_000


async def main(file: str, url: str, prefix: str) -> None:
    async with Database(file) as db, Sync(db, url):
        for number in range(WRITES_MAX):
            tokens = [f"{prefix}-{number}"]
            if number % 3 == 2:
                tokens = [f"{prefix}-{number}-{part}" for part in range(3)]
                async with db.transaction() as tx:
                    for token in tokens:
                        await tx.execute(INSERT, (token,))
            else:
                await db.execute(INSERT, (tokens[0],))
            print(*tokens, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
