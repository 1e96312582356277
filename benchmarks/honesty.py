"""What a search claims against what is true, on simulated models: real loop, journal and report, no models.

    python benchmarks/honesty.py --jobs 100 --questions all

A null job has nothing to find: parents, base, soup, task arithmetic and all candidates are equally able, and every one
answers every item independently of the others. A planted job has one best merge, 6 points above the best parent.
Either asks the default optimizer for 200 candidates, on 4 tasks. At most 8 of 100 null jobs may end with a claim of a
gain over a parent, and at least 80 of 100 planted gains must be found, that is reported as "better than every parent";
otherwise the exit code is 1.

`--questions` takes what `suite.questions` takes in a job. Answers depend on the job's seed, the model's recipe and the
item, so other settings are measured on the same models and items.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, NamedTuple

import yaml

from evomerge.evaluation.statistics import wilson_interval
from evomerge.testing.honesty import Findings, findings_of
from evomerge.testing.simulated_jobs import SimulatedJob, run_simulated

MOST_FALSE: Final = 0.08
LEAST_FOUND: Final = 0.80
MEMORY: Final = Path("/dev/shm")


class Arm(NamedTuple):
    """All jobs of one kind, and the seconds that each took."""

    name: str
    jobs: tuple[Findings, ...]
    seconds: tuple[float, ...]


def main() -> int:
    """Run the simulation and print its table; 1 when a claim of the module docstring does not hold."""
    arguments = _arguments()
    arms = [_run(name, gain, arguments) for name, gain in (("null", 0.0), ("planted", arguments.gain))]
    if arguments.json:
        jobs = {arm.name: [asdict(found) for found in arm.jobs] for arm in arms}
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        print(json.dumps({"settings": settings, "rows": _rows(arms), "jobs": jobs}, indent=1))
    else:
        print(_table(arms))
    failed = _failed(*arms)
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help="of each kind")
    parser.add_argument("--questions", type=yaml.safe_load, default="all", help="all, auto, a number, or a mapping")
    parser.add_argument("--seed", type=int, default=0, help="of the first job; the others follow")
    parser.add_argument("--gain", type=float, default=0.06, help="that is planted")
    parser.add_argument("--below", type=float, default=0.06, help="the middle of the space under the best parent")
    parser.add_argument("--depth", choices=("model", "each"), default="model", help="3 or 18 genes")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--search-items", type=int, default=100, help="per task")
    parser.add_argument("--select-items", type=int, default=200, help="per task")
    parser.add_argument("--report-items", type=int, default=400, help="per task")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=MEMORY if MEMORY.is_dir() else None, help="for run directories")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _run(name: str, gain: float, arguments: argparse.Namespace) -> Arm:
    jobs = [_job(arguments.seed + i, gain, arguments) for i in range(arguments.jobs)]
    timed = partial(_timed, arguments.scratch)
    if arguments.processes == 1:
        done = [timed(job) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
            done = list(pool.map(timed, jobs))
    return Arm(name, tuple(found for found, _ in done), tuple(seconds for _, seconds in done))


def _job(seed: int, gain: float, arguments: argparse.Namespace) -> SimulatedJob:
    return SimulatedJob(
        seed,
        gain=gain,
        below=arguments.below,
        candidates=arguments.candidates,
        tasks=arguments.tasks,
        search=arguments.search_items,
        select=arguments.select_items,
        report=arguments.report_items,
        depth=arguments.depth,
        questions=arguments.questions,
    )


def _timed(scratch: Path | None, job: SimulatedJob) -> tuple[Findings, float]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        start = time.perf_counter()
        run_simulated(job, Path(folder) / "run")
        seconds = time.perf_counter() - start
        return findings_of(job, Path(folder) / "run"), seconds


def _failed(null: Arm, planted: Arm) -> list[str]:
    """Which of the two claims does not hold."""
    false, found = (sum(map(f, arm.jobs)) for f, arm in ((_claims_anything, null), (_found, planted)))
    failed = []
    if false > MOST_FALSE * len(null.jobs):
        failed.append(f"{false} of {len(null.jobs)} null jobs claim a gain")
    if found < LEAST_FOUND * len(planted.jobs):
        failed.append(f"only {found} of {len(planted.jobs)} planted gains were found")
    return failed


def _claims_anything(job: Findings) -> bool:
    return job.claims_anything


def _found(job: Findings) -> bool:
    """A parent may be "better than every (other) parent", too; that is nothing found."""
    return job.claims_every and job.kind != "parent"


SHARES: Final[tuple[tuple[str, Callable[[Findings], bool]], ...]] = (
    ('told "better than every parent"', lambda j: j.claims_every),
    ("that, and it is a merge", _found),
    ("objective called better than some parent's", lambda j: j.claims_any),
    ("objective or a task called better than some parent's", _claims_anything),
    ("anything falsely called better than any baseline's", lambda j: j.false_claims > 0),
    ("report interval covers the truth", lambda j: j.covers),
    ("report interval covers the expected score on its items", lambda j: j.covers_items),
    ("all difference intervals cover the truth", lambda j: j.differences_covered == j.differences),
    ("interval of its search score covers the truth", lambda j: j.search_covers),
    ("interval of the best search score covers that model's truth", lambda j: j.top_covers),
)

POINTS: Final[tuple[tuple[str, Callable[[Findings], float]], ...]] = (
    ("chosen: true gain over the best parent", lambda j: j.over_parent),
    ("chosen: search score minus truth", lambda j: j.search - j.truth),
    ("chosen: select score minus truth", lambda j: j.select - j.truth),
    ("chosen: report score minus truth", lambda j: j.report - j.truth),
    ("chosen: told differences minus true ones", lambda j: j.difference_error),
    ("best on the search set: score minus truth", lambda j: j.top_search - j.top_truth),
)


def _rows(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One row per measure: its name, and a cell per arm."""
    rows = [_row(name, arms, partial(_share, of)) for name, of in SHARES]
    rows.append(_row("difference intervals that cover", arms, _differences))
    rows += [_row(name, arms, partial(_points, of)) for name, of in POINTS]
    rows.append(_row("questions per model on the search set", arms, _questions))
    rows.append(_row("models scored on it, mean", arms, lambda arm: f"{fmean(j.models for j in arm.jobs):.0f}"))
    rows.append(_row("seconds per job", arms, lambda arm: f"{fmean(arm.seconds):.2f}"))
    return rows


def _row(name: str, arms: Sequence[Arm], cell: Callable[[Arm], str]) -> dict[str, Any]:
    return {"measure": name, **{arm.name: cell(arm) for arm in arms}}


def _share(of: Callable[[Findings], bool], arm: Arm) -> str:
    return _percent(sum(map(of, arm.jobs)), len(arm.jobs))


def _percent(n: int, total: int) -> str:
    """A count, and its share with Wilson's interval in percent."""
    low, high = wilson_interval(n / total, total)
    return f"{n} of {total} ({100 * n / total:.1f} %, {100 * low:.0f} to {100 * high:.0f})"


def _differences(arm: Arm) -> str:
    covered, total = sum(j.differences_covered for j in arm.jobs), sum(j.differences for j in arm.jobs)
    return f"{covered} of {total} ({100 * covered / total:.1f} %)"  # dependent within a job: no binomial interval


def _points(of: Callable[[Findings], float], arm: Arm) -> str:
    values = [100 * of(job) for job in arm.jobs]
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{fmean(values):+.2f} points (se {error:.2f})"


def _questions(arm: Arm) -> str:
    return f"{sum(j.questions for j in arm.jobs) / sum(j.models for j in arm.jobs):.1f}"


def _table(arms: Sequence[Arm]) -> str:
    names = [arm.name for arm in arms]
    head = f"| | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}"
    return "\n".join([head, *(f"| {' | '.join(row.values())} |" for row in _rows(arms))])


if __name__ == "__main__":
    sys.exit(main())
