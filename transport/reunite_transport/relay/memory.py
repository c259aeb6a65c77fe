"""What a store remembers of its database between calls, so that one that went back is noticed.

A database may be restored from a backup while relays run, and other relays may then commit over the
lost numbers before this one looks. What stays true of a history is that its commits are there: so
each call looks, in the snapshot that it reads or writes anyway, for the last commit that was seen.
A session knows nothing that its store has not seen.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

Writer = TypeVar("Writer")


@dataclass(slots=True)
class Memory(Generic[Writer]):
    """Of one history of the database. A call takes the store's memory when it begins and keeps to
    it, and `Store.forget` puts an empty one in its place: so what a call brings late from a history
    that is lost is lost too, and such a call finds out."""

    writer: Writer
    """What writes rows of the registry's tables."""
    registry: int = 0
    """How often the registry had grown when it was read."""
    seq: int = 0
    """The last commit; 0 while none was seen."""
    token: bytes = b""

    def saw(self, seq: int, token: bytes) -> None:
        """A snapshot states this head, or this commit is done. Snapshots may come out of order."""
        if seq > self.seq:
            self.seq, self.token = seq, token

    def refresh(self, registry: int, writer: Writer) -> None:
        """As `read`, also when the registry has not grown: tables were altered under it."""
        if registry >= self.registry:
            self.registry, self.writer = registry, writer

    def read(self, registry: int, writer: Writer) -> None:
        """The registry was read, when it had grown so often."""
        if registry > self.registry:
            self.registry, self.writer = registry, writer
