"""A test of your own app: its schema and its transactions, in a world where everything goes wrong.

    pytest test_groceries.py

Each seed is one world: clients that come and go, a network that loses, crashes, wrong clocks. When
all has healed, every client must hold the same rows, and nothing that anybody wrote may be lost.
A failure names its seed and the shortest history that was found, and the call that replays it.
"""

import sqlite3
from random import Random

import pytest

from reunite_simulations import simulate

SCHEMA = """
    CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE item (
        id INTEGER PRIMARY KEY,
        shop_id INTEGER REFERENCES shop (id) ON DELETE CASCADE,
        what TEXT NOT NULL,
        bought INTEGER NOT NULL DEFAULT 0);
    INSERT INTO shop VALUES (1, 'bakery'), (2, 'market');
"""


# Transactions as the app has them. All that they choose comes from `chance`: what came from
# elsewhere would be another in each run.
def add_item(conn: sqlite3.Connection, chance: Random) -> None:
    shops = conn.execute("SELECT id FROM shop ORDER BY id").fetchall()
    if shops:
        item = (chance.getrandbits(62), chance.choice(shops)[0], chance.choice(["bread", "tea"]))
        conn.execute("INSERT INTO item (id, shop_id, what) VALUES (?, ?, ?)", item)


def buy_all_of_a_shop(conn: sqlite3.Connection, chance: Random) -> None:
    conn.execute("UPDATE item SET bought = 1 WHERE shop_id = ?", (chance.randint(1, 2),))


def close_a_shop(conn: sqlite3.Connection, chance: Random) -> None:
    conn.execute("DELETE FROM shop WHERE id = ?", (chance.randint(1, 2),))


def open_a_shop(conn: sqlite3.Connection, chance: Random) -> None:
    # IntegrityError when there is one: the app is refused, as it would be without sync.
    conn.execute("INSERT INTO shop VALUES (?, ?)", (chance.randint(1, 2), "new"))


WORKLOAD = [(add_item, 6.0), (buy_all_of_a_shop, 2.0), (close_a_shop, 0.5), (open_a_shop, 1.0)]


@pytest.mark.parametrize("seed", range(1, 4))
def test_groceries_survive(seed: int) -> None:
    simulate(SCHEMA, WORKLOAD, "partition,crash,clock", seed, replicas=3, minutes=2)
