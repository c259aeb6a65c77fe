"""Round after round of the mix of faults, each with a seed of its own, until the time is over.

    python -m tests.e2e.soak [--minutes 30] [--seed 17] [--seconds 60] [--at-once 4]

Ends with exit code 1 at the first round in which a promise is broken, and keeps its files.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.e2e.mix import Settings, run_mix


def main() -> int:
    """Run rounds; at least one."""
    parser = argparse.ArgumentParser(description="real processes under faults, for long")
    parser.add_argument("--minutes", type=float, default=30.0, help="when to begin no more rounds")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults in each round")
    parser.add_argument("--at-once", type=int, default=4, help="faults that happen together")
    given = parser.parse_args()
    until = time.monotonic() + given.minutes * 60
    checks: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    rounds = 0
    while rounds == 0 or time.monotonic() < until:
        seed = given.seed + rounds
        rounds += 1
        folder = Path(tempfile.mkdtemp(prefix="reunite-mix-"))
        settings = Settings(seed, seconds=given.seconds, at_once=given.at_once)
        print(f"round {rounds}, seed {seed}", flush=True)
        report = asyncio.run(run_mix(settings, folder))
        if report.violations:
            print(
                f"{report.told()}\nfiles in {folder}; for another such run: python -m"
                f" tests.e2e.soak --minutes 0 --seed {seed} --seconds {given.seconds:g}"
                f" --at-once {given.at_once}"
            )
            return 1
        shutil.rmtree(folder)
        print(report, flush=True)
        checks.update(report.judgement.checks)
        faults.update(report.faults)
    print(
        f"{rounds} rounds, {faults.total()} faults, {checks.total()} checks; every promise was kept"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
