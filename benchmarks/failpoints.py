"""Kill the driver of small simulated searches at every named place and at random moments, and resume it.

    python benchmarks/failpoints.py --job plain --named 3 --random 300
    python benchmarks/failpoints.py --job raced --chained

Every life is a process of its own; see `evomerge/testing/killable.py` for what is checked behind every kill. The same
against the command line and real models: `benchmarks/kills.py --points`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from evomerge.testing.killable import JOBS, Calm, Disturbed, at_random, calm, check, named


def told(what: str, found: Sequence[Disturbed], started: float) -> str:
    """One line about many runs."""
    kills, lost = sum(f.kills for f in found), sum(f.repeated for f in found)
    took = time.perf_counter() - started
    return (
        f"killed {what}: {kills} kills in {len(found)} runs, all results equal, nothing recorded twice, "
        f"{lost} evaluations begun and lost (at most {kills}); {took:.0f} s"
    )


def random_kills(job: str, work: Path, quiet: Calm, *, kills: int, per_run: int, seed: int) -> list[Disturbed]:
    """Runs that are killed at random moments, until `kills` lives were killed."""
    rng = random.Random(seed)
    found: list[Disturbed] = []
    while (left := kills - sum(f.kills for f in found)) > 0:
        run = work / f"random-{len(found)}"
        n = min(per_run, left)
        found.append(at_random(job, run, n, 2 * quiet.took_s / n, rng))
        check(found[-1], quiet)
        shutil.rmtree(run)
    return found


def main() -> None:
    """Kill as asked and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=sorted(JOBS), default="plain")
    parser.add_argument("--named", type=int, default=0, help="passes of every named place, each in a run of its own")
    parser.add_argument("--chained", action="store_true", help="every named place, many kills in one run")
    parser.add_argument("--random", type=int, default=0, help="kills at random moments")
    parser.add_argument("--per-run", type=int, default=10, help="random kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evomerge-kills-") as folder:
        work = Path(folder)
        quiet = calm(options.job, work)
        print(f"{options.job}: undisturbed {quiet.took_s:.2f} s, {len(set(quiet.places))} named places", flush=True)
        for chained, times in ((False, options.named), (True, int(options.chained))):
            started = time.perf_counter()
            if times:
                found = list(named(options.job, work, quiet, times, chained=chained))
                how = "in one run after the other" if chained else "each in a run of its own"
                print(told(f"at every named place, {how}", found, started), flush=True)
        started = time.perf_counter()
        if options.random:
            found = random_kills(
                options.job, work, quiet, kills=options.random, per_run=options.per_run, seed=options.seed
            )
            print(told("at random moments", found, started), flush=True)


if __name__ == "__main__":
    main()
