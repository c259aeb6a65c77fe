"""Rows as the app gets them: sqlite3's own, which say what they hold."""

import sqlite3


class Row(sqlite3.Row):
    """A row of a query: `row["title"]`, `row[0]`, `row.keys()`, `tuple(row)`; see `sqlite3.Row`."""

    __slots__ = ()

    def __repr__(self) -> str:
        # Names can be said twice, and be no names of Python's: they are shown as they are.
        named = (f"{name}={value!r}" for name, value in zip(self.keys(), self, strict=True))
        return f"Row({', '.join(named)})"
