"""Worlds of five minutes in which an engine, or a checker, was once caught.

    python -m tests.simulations.long_worlds

`make test` does without them: what each of them found has a test of its own, which takes a second,
and fails when the mistake is made again. Some of these worlds do not, as a world changes with what
can happen in it. Ends with exit code 1 when a promise is broken.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

from reunite_simulations import faults
from reunite_simulations.outcome import Settings, Violation
from reunite_simulations.seeds import own_schema, run_seed


@dataclass(frozen=True)
class LongWorld:
    """A seed, what was wrong in it, and the test that tells that by itself."""

    seed: int
    replicas: int
    was_wrong: str
    test: str
    minutes: float = 5.0

    @property
    def settings(self) -> Settings:
        """Some of all faults, as the seed draws them."""
        return Settings(
            seed=self.seed,
            schema=own_schema(),
            replicas=self.replicas,
            minutes=self.minutes,
            faults=faults.named("all"),
        )


ENGINE: Final = "tests/engine"
RELAY: Final = "tests/transport/relay"
SIMULATIONS: Final = "tests/simulations"

LONG_WORLDS: Final = (
    LongWorld(
        117,
        5,
        "a waiting commit's acknowledgement is lost in a reconnect",
        f"{ENGINE}/test_rejoin.py::"
        "test_what_a_waiting_commit_acknowledged_is_not_asked_for_after_a_reconnect",
    ),
    LongWorld(
        365,
        5,
        "a copy and its original both send one changeset",
        f"{RELAY}/test_commit.py::test_a_changeset_of_a_copied_file_is_in_once_whoever_sends_it",
    ),
    LongWorld(
        257,
        10,
        "a cell that went back within a transaction is taken for an edit",
        f"{SIMULATIONS}/test_checkers.py::"
        "test_a_cell_that_went_back_within_a_transaction_was_not_edited",
    ),
    LongWorld(
        138,
        8,
        "what builds on a refused offer is kept as it was, and stops sync",
        f"{RELAY}/test_merging_schedules.py::"
        "test_what_is_offered_on_top_of_what_is_refused_is_made_anew",
    ),
    LongWorld(
        96,
        5,
        "a counter that is written anew takes in what it had not seen",
        f"{RELAY}/test_merging_schedules.py::"
        "test_counters_that_copies_write_anew_are_made_again_as_they_were",
    ),
    LongWorld(
        1043,
        6,
        "a set's removal that is made anew hides what it had not seen",
        f"{ENGINE}/test_rebase.py::"
        "test_a_removal_of_a_copy_that_is_made_anew_takes_away_no_add_that_it_had_not_seen",
    ),
    LongWorld(
        1191,
        5,
        "a backup brings back a file that was lost meanwhile",
        f"{SIMULATIONS}/test_faults.py::"
        "test_a_backup_may_bring_back_a_file_that_was_lost_meanwhile",
    ),
    LongWorld(
        1045,
        5,
        "an older edit beats what its file offers after a second restore",
        f"{ENGINE}/test_refill.py::test_nor_after_a_second_restore_while_it_offers",
    ),
    LongWorld(
        1019,
        10,
        "what two copies of a file are left with counts twice",
        f"{RELAY}/test_merging_schedules.py::test_work_that_two_copies_split_alike_counts_once",
    ),
    LongWorld(
        2070,
        6,
        "what a copy counts in the same name hides what is pending",
        f"{RELAY}/test_merging_schedules.py::test_what_a_copy_does_in_the_same_name_hides_nothing",
    ),
    LongWorld(
        4,
        8,
        "an older edit beats what its file offers to a restored relay",
        f"{ENGINE}/test_refill.py::test_an_edit_that_had_not_seen_what_is_offered_does_not_beat_it",
    ),
)


def live(world: LongWorld) -> tuple[LongWorld, list[Violation]]:
    """Run a world to its end; also what it broke."""
    return world, list(run_seed(world.settings).violations)


def tell(lived: Iterable[tuple[LongWorld, list[Violation]]]) -> int:
    """Print what became of worlds, as they end; the exit code."""
    count = failed = 0
    for world, violations in lived:
        count, failed = count + 1, failed + bool(violations)
        told = [f"at {each.at:.1f} s, {each.promise}: {each.message}" for each in violations]
        said = "\n    ".join(told) or "every promise was kept"
        print(f"seed {world.seed} of {world.replicas} replicas: {said}", flush=True)
    print(f"{failed} of {count} worlds broke a promise")
    return 1 if failed else 0


def main() -> int:
    """Run all of them, as many at once as there are cores."""
    quiet = logging.disable, (logging.CRITICAL,)  # What relays say of faults.
    with get_context("spawn").Pool(None, *quiet) as pool:
        return tell(pool.imap_unordered(live, LONG_WORLDS))


if __name__ == "__main__":
    sys.exit(main())
