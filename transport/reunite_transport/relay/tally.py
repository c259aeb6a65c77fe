"""What a relay counts of its work, once for each batch, page or verdict and never for each row.

`Tally` counts nothing, for simulations and for services without sockets; `metrics.Metrics` counts
for Prometheus.
"""

from typing import Final


class Tally:
    """Counts nothing. Every method is called on the relay's event loop, and returns at once."""

    def committed(self, *, changesets: int, rows: int, seconds: float) -> None:
        """A commit went through: the changesets it took, the rows it states, how long it took."""

    def failed(self) -> None:
        """A batch failed, by the database or by an error of ours, and is tried again."""

    def rejected(self, reason: str) -> None:
        """A changeset was rejected; see `messages` for the reasons."""

    def postponed(self) -> None:
        """A changeset met a lock, and waits with all that its client pushed after it."""

    def sent_page(self, rows: int) -> None:
        """A page of the feed went to a client."""

    def folded(self, rows: int) -> None:
        """Rows that a backend wrote to the tables became part of a commit."""


UNCOUNTED: Final = Tally()
