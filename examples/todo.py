"""A to-do list that works offline and syncs when it can.

    python todo.py add "Buy milk"
    python todo.py done 1
    python todo.py list
    python todo.py sync ws://127.0.0.1:8800

The list is the SQLite file `todo.db`, or what TODO_DB names. Two lists that sync with one relay
become one: edits of different columns both stay, and a tick beats an older edit.
"""

import asyncio
import os
import sys
from uuid import uuid4

from reunite import Database, ReuniteError
from reunite_transport import Sync

TABLE = """
    CREATE TABLE IF NOT EXISTS todo (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0)
"""
OPEN_FIRST = "SELECT id, title, done FROM todo ORDER BY done, title, id"


async def main(command: str = "list", argument: str = "") -> None:
    async with Database(os.environ.get("TODO_DB", "todo.db")) as db:
        await db.execute(TABLE)
        await db.track("todo")
        todos = await db.fetch_all(OPEN_FIRST)
        if command == "add":
            # A random key: two lists that are offline never choose the same one.
            await db.execute("INSERT INTO todo (id, title) VALUES (?, ?)", (uuid4().hex, argument))
        elif command == "done":
            if not argument.isdecimal() or not 1 <= int(argument) <= len(todos):
                sys.exit(f"todo: done takes the number of one of {len(todos)} entries")
            key = todos[int(argument) - 1]["id"]
            await db.execute("UPDATE todo SET done = 1 WHERE id = ?", (key,))
        elif command == "sync":
            async with Sync(db, argument) as sync:
                await sync.caught_up(timeout=30)
        elif command != "list":
            sys.exit(__doc__)
        for number, todo in enumerate(await db.fetch_all(OPEN_FIRST), 1):
            print(f"{number:>3} [{'x' if todo['done'] else ' '}] {todo['title']}")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ReuniteError as error:
        # A list that cannot sync now is as good as before, and has lost nothing.
        sys.exit(f"todo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
