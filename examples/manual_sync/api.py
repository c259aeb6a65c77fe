"""The API that `manual_sync.py` syncs with, as small as it can be: todos in memory, over HTTP.

python api.py 8000

GET    /todos?since=NOW  {"rows": [...], "gone": [ids], "now": NOW}: what changed since
PATCH  /todos/ID         sets columns of a todo, or makes it
DELETE /todos/ID         deletes it, if it is there
"""

import sys
from typing import Any

from aiohttp import web


class Todos:
    """The todos, each with the number of its last change; a deleted one is None."""

    def __init__(self) -> None:
        self.now = 0
        self.by_id: dict[str, tuple[int, dict[str, Any] | None]] = {}

    def write(self, key: str, edit: dict[str, Any] | None) -> None:
        """Set columns of a todo, or delete it."""
        self.now += 1
        _, before = self.by_id.get(key, (0, None))
        todo = {"title": None, "done": 0, **(before or {}), **edit, "id": key} if edit else None
        if todo != before:
            self.by_id[key] = (self.now, todo)


def app(todos: Todos) -> web.Application:
    """The API of these todos."""

    async def read(request: web.Request) -> web.Response:
        since = int(request.query.get("since") or 0)
        news = {key: todo for key, (at, todo) in todos.by_id.items() if at > since}
        rows = [todo for todo in news.values() if todo]
        gone = [key for key, todo in news.items() if not todo]
        return web.json_response({"rows": rows, "gone": gone, "now": str(todos.now)})

    async def patch(request: web.Request) -> web.Response:
        todos.write(request.match_info["id"], await request.json())
        return web.Response()

    async def delete(request: web.Request) -> web.Response:
        todos.write(request.match_info["id"], None)
        return web.Response()

    found = web.Application()
    found.add_routes([web.get("/todos", read)])
    found.add_routes([web.patch("/todos/{id}", patch), web.delete("/todos/{id}", delete)])
    return found


if __name__ == "__main__":
    web.run_app(app(Todos()), host="127.0.0.1", port=int(sys.argv[1]))
