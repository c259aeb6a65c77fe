"""The numbers of a relay for Prometheus. Owns their names, and the registry that they are in.

Each relay has a registry of its own, as several may run in one process. What is counted comes in
through the methods of `Tally`; what is a state of the relay is read when somebody scrapes.
"""

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from reunite_transport.relay.tally import Tally

if TYPE_CHECKING:
    from reunite_transport.relay.service import Service

# Every collector of the last ten years reads this one.
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
# From one row to the largest batch; after the last, a relay counts as unhealthy.
COMMIT_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics(Tally):
    """Counts for Prometheus."""

    def __init__(self) -> None:
        """Start at zero; `watch` adds the states of a service."""
        self._registry = registry = CollectorRegistry()
        # Memory, processor time and open files, under the names that every dashboard knows.
        ProcessCollector(registry=registry)
        self._commit_seconds = Histogram(
            "reunite_commit_seconds",
            "How long commits took, from the start of their batch.",
            buckets=COMMIT_SECONDS,
            registry=registry,
        )
        self._commits = _counter(registry, "reunite_commits", "Commits of this relay.")
        self._changesets = _counter(
            registry, "reunite_changesets_committed", "Changesets that commits of this relay took."
        )
        self._rows = _counter(
            registry, "reunite_rows_committed", "Rows that commits of this relay state."
        )
        self._failures = _counter(
            registry, "reunite_commit_failures", "Batches that failed and were tried again."
        )
        self._rejections = Counter(
            "reunite_rejections",
            "Changesets that were rejected, by the reason that their author was told.",
            ["reason"],
            registry=registry,
        )
        self._postponed = _counter(
            registry, "reunite_postponed", "How often a changeset met a lock and had to wait."
        )
        self._pages = _counter(registry, "reunite_feed_pages", "Pages of the feed that were sent.")
        self._page_rows = _counter(registry, "reunite_feed_rows", "Rows on these pages.")
        self._folded = _counter(
            registry,
            "reunite_backend_rows_folded",
            "Rows written to the tables by a backend that became part of a commit.",
        )

    def watch(self, service: "Service") -> None:
        """Show how this service stands, too. Called once."""
        for name, said, read in (
            ("connections", "Clients that are connected.", lambda: len(service.connections)),
            (
                "queued_changesets",
                "Changesets that wait for their verdict.",
                lambda: service.flusher.queued_changesets,
            ),
            ("queued_bytes", "Their bytes.", lambda: service.flusher.queued_bytes),
            ("head_seq", "The last commit that this relay knows.", lambda: service.hub.head),
            ("database_answers", "1 while the database answers.", lambda: service.answers),
            (
                "captured_rows",
                "Rows written by a backend that wait to be folded in.",
                lambda: service.captured_rows,
            ),
            (
                "captured_lag_seconds",
                "How long the oldest of these rows has waited.",
                lambda: service.captured_lag_seconds,
            ),
        ):
            Gauge(f"reunite_{name}", said, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """All of it in the text format of Prometheus; see CONTENT_TYPE."""
        return generate_latest(self._registry)

    def committed(self, *, changesets: int, rows: int, seconds: float) -> None:
        """Count a commit."""
        self._commit_seconds.observe(seconds)
        self._commits.inc()
        self._changesets.inc(changesets)
        self._rows.inc(rows)

    def failed(self) -> None:
        """Count a batch that is tried again."""
        self._failures.inc()

    def rejected(self, reason: str) -> None:
        """Count a rejection. Reasons are words of ours and few, as a label's values have to be."""
        self._rejections.labels(reason).inc()

    def postponed(self) -> None:
        """Count a changeset that waits for a lock."""
        self._postponed.inc()

    def sent_page(self, rows: int) -> None:
        """Count a page of the feed."""
        self._pages.inc()
        self._page_rows.inc(rows)

    def folded(self, rows: int) -> None:
        """Count rows of a backend."""
        self._folded.inc(rows)


def _counter(registry: CollectorRegistry, name: str, said: str) -> Counter:
    """A counter; its name ends with _total where it is shown."""
    return Counter(name, said, registry=registry)
