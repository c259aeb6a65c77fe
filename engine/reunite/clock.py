"""Stamps: hybrid logical time that orders the edits of a row. Owns their form; never reads a clock.

A stamp is 16 bytes, so that byte order is time order and equal stamps come from one edit:

    | bytes | what |
    |---|---|
    | 0-5   | milliseconds since 1970 UTC |
    | 6-7   | counter within the millisecond; it carries into the milliseconds |
    | 8-15  | replica id |

Ids of files are below `RELAYS_FROM`; those from there on are relays', which stamp what backends
write to their tables.

`NEVER` (no bytes) sorts below every stamp: a life that was not born or not deleted.
`FLOOR` (sixteen zeros) sorts below every edit: cells that were adopted with a table or inserted
at their default, which never replace what somebody wrote.

Source: Kulkarni et al., "Logical Physical Clocks" (2014), with the counter as the low 16 bits.
"""

from typing import Final

NEVER: Final = b""
FLOOR: Final = bytes(16)
STAMP_BYTES: Final = 16

# Of the 63 bits of a relay's id the upper 24 are set: the others are enough for 2**39 of them.
RELAYS_FROM: Final = 0xFFFFFF << 39

# A stamp further ahead of the relay's clock than this is refused: one wrong clock must not win
# every conflict for years. A minute covers what an honest clock drifts between two handshakes.
AHEAD_MS_MAX: Final = 60_000

# A measured offset below this is the noise of the network, not a wrong clock.
OFFSET_MS_MIN: Final = 1_000

_TIME_MAX: Final = (1 << 64) - 1


def edit_time(recorded_ms: int, offset_ms: int, seen: int) -> int:
    """The 64-bit time of an edit: when it was made by true time, yet after all that it saw.

    `recorded_ms` is the local clock at the edit, `offset_ms` how far that clock is ahead of the
    relay's, `seen` the greatest 64-bit time in the row as the edit found it (0 when none).
    """
    return min(max((recorded_ms - offset_ms) << 16, seen + 1, 1), _TIME_MAX)


def stamp(time: int, replica: int) -> bytes:
    """The stamp of a 64-bit time (milliseconds << 16 | counter) and a replica id."""
    return time.to_bytes(8, "big") + replica.to_bytes(8, "big")


def time_of(value: bytes) -> int:
    """The 64-bit time of a stamp; 0 for NEVER."""
    return int.from_bytes(value[:8], "big")


def replica_of(value: bytes) -> int:
    """The replica id of a stamp."""
    return int.from_bytes(value[8:], "big")


def is_relay(replica: int) -> bool:
    """True for the id of a relay, which is the author of what backends write."""
    return replica >= RELAYS_FROM
