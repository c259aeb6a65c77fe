"""The greeting: what a file says of itself when a session meets a relay, and which session counts.

Several sessions may share one file, of one program or of several, and what a relay says to one may
be older than what another has taken in. Only the session that greeted last speaks for the file:
each verb of `replica` that a session calls names its greeting. The relay has the same rule, and
cannot take back what is on its way.
"""

import sqlite3
from typing import Final, NamedTuple

from reunite import outbox
from reunite.bookkeeping import Meta
from reunite.errors import SyncError
from reunite.state import State

# More pending nonces than this are not listed in a greeting; the rest follow from the order.
NONCES_LISTED_MAX: Final = 65_536
# The codes of the error that ends a session: which is not the last, or which is and began before
# everything was to be loaded again.
FENCED: Final = "fenced"
RELOAD: Final = "reload"


class Greeting(NamedTuple):
    """What this replica says of itself when it meets a relay; see the protocol's Hello."""

    realm: bytes | None
    replica: int
    acknowledged: int
    nonces: tuple[bytes, ...]
    seq: int
    token: bytes
    # How many rows the file has while everything is loaded again.
    reloading_rows: int
    # How many greetings there were, with this one: its number.
    number: int


def greet(state: State) -> Greeting:
    """Greet in another session; those before have ended."""
    meta = state.meta
    meta.greetings = abs(meta.greetings) + 1
    state.save("greetings")
    return Greeting(
        meta.realm,
        meta.replica,
        meta.acknowledged,
        tuple(outbox.nonces(state.conn, NONCES_LISTED_MAX)),
        *_furthest(meta),
        _count_bases(state.conn) if meta.reloading else 0,
        meta.greetings,
    )


def check_latest(meta: Meta, greeting: int | None) -> None:
    """Raise SyncError when another session has greeted after this one, or is to. What is said to
    this one would put the file back, or counts by numbers that mean other work now."""
    if greeting is None or meta.greetings == greeting:
        return
    if meta.greetings < 0:
        raise SyncError("the file is to be loaded again, by another session", RELOAD)
    raise SyncError("another sync of this file took over", FENCED)


def _furthest(meta: Meta) -> tuple[int, bytes]:
    """The last commit of the relay's that the file knows, so that the relay can tell whether it
    still has it: where a load goes on, or the cursor."""
    if meta.load_seq is not None and meta.load_token:
        return meta.load_seq, meta.load_token
    return (meta.seq, meta.token) if meta.loaded else (0, b"")


def _count_bases(conn: sqlite3.Connection) -> int:
    found: int = conn.execute(
        "SELECT count(*) FROM _reunite_rows WHERE base IS NOT NULL"
    ).fetchone()[0]
    return found
