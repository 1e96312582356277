"""Idle workers and what is found: generational and asynchronous searches on a log-normal latency trace.

    python benchmarks/asynchronous.py idle             # real time: 16 sleeping threads behind the real driver
    python benchmarks/asynchronous.py quality          # simulated time, several optimizers and seeds

Both run the real loop, ledger and journal; workers score at once, after a time that is log-normal with the given
coefficient of variation. Idle is the share of the workers' time in which they had no task, from the first task of the
search phase to the end of its last one: start, drain and the driver's own work included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from evomerge.archive.hypervolume import hypervolume
from evomerge.runs.replay import History
from evomerge.testing.known_searches import genes_of, known_setup, run_known, scorer_of
from evomerge.testing.latency import SimulatedPool, SleepingPool, Span, idle_share, log_normal, searching
from evomerge.testing.problems import KnownProblem, rotated_ellipsoid, sphere, two_spheres

IDLE_ROWS = (("cma", 16, False), ("cma", 32, False), ("cma", 16, True), ("evolve", 10, True), ("nsga2", 16, True))
PROBLEMS: dict[str, Callable[[int], KnownProblem]] = {
    "sphere": sphere,
    "ellipsoid": rotated_ellipsoid,
    "two-spheres": two_spheres,
}
QUALITY_ROWS = (
    ("cma", "sphere"),
    ("cma", "ellipsoid"),
    ("sep-cma", "sphere"),
    ("evolve", "sphere"),
    ("evolve", "ellipsoid"),
    ("nsga2", "two-spheres"),
    ("tpe", "sphere"),
)
WORST = (0.3, 0.3)


def idle(arguments: argparse.Namespace) -> None:
    """Measure idle shares and evaluations per second in real time."""
    known = sphere(arguments.genes)
    print(f"{arguments.workers} workers, mean {arguments.mean_s} s, cv {arguments.cv}, {arguments.budget} evaluations")
    print("| optimizer | population | mode | idle | evaluations/s | driver CPU per evaluation |")
    print("|---|---|---|---|---|---|")
    for name, population, asynchronous in IDLE_ROWS:
        problem = two_spheres(arguments.genes) if name == "nsga2" else known
        shares, rates, cpu = [], [], []
        for seed in range(arguments.seeds):
            setup = known_setup(
                problem,
                name,
                budget=arguments.budget,
                seed=seed,
                asynchronous=asynchronous,
                options={"population": population},
            )
            pool = SleepingPool(scorer_of(problem), arguments.workers, log_normal(arguments.mean_s, arguments.cv, seed))
            before = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                run_known(setup, pool, Path(folder) / "run")
            spans = searching(pool.spans)
            cpu.append((time.process_time() - before) / len(pool.spans))
            shares.append(idle_share(spans, arguments.workers))
            rates.append(len(spans) / (max(s.end_s for s in spans) - min(s.start_s for s in spans)))
        mode = "asynchronous" if asynchronous else "generational"
        print(
            f"| {name} | {population} | {mode} | {statistics.mean(shares):.1%} (at most {max(shares):.1%}) | "
            f"{statistics.mean(rates):.1f} | {1000 * statistics.mean(cpu):.1f} ms |",
            flush=True,
        )


class Trace(NamedTuple):
    """The candidates of a search in the order of completion: end of each, seconds, and its losses."""

    end_s: list[float]
    losses: list[tuple[float, ...]]

    def best(self, n: int) -> float:
        """Of the first n: the smallest loss, or with two objectives minus the hypervolume."""
        first = self.losses[:n]
        return min(v[0] for v in first) if len(first[0]) == 1 else -hypervolume(first, WORST)

    def done_by(self, end_s: float) -> int:
        """How many were done by then; at least one."""
        return max(1, sum(t <= end_s for t in self.end_s))


def trace_of(known: KnownProblem, spans: list[Span], history: History) -> Trace:
    """What the optimizer asked for, as it came in."""
    ids = {c.id for b in history.batches for c in b.candidates}
    found = sorted((s for s in searching(spans) if s.task.id in ids), key=lambda s: s.end_s)
    return Trace([s.end_s for s in found], [known.answer(genes_of(s.task.recipe, known.dim)).losses for s in found])


def searched(known: KnownProblem, name: str, seed: int, arguments: argparse.Namespace, *, asynchronous: bool) -> Trace:
    """One search in simulated time; an asynchronous one goes on for as long as a generational one may take."""
    setup = known_setup(
        known,
        name,
        budget=arguments.budget * 5 // 2 if asynchronous else arguments.budget,
        seed=seed,
        asynchronous=asynchronous,
        options={"population": arguments.population},
        sized_for=arguments.budget,
    )
    pool = SimulatedPool(scorer_of(known), arguments.workers, log_normal(1.0, arguments.cv, seed))
    with tempfile.TemporaryDirectory() as folder:
        history = run_known(setup, pool, Path(folder) / "run")
    return trace_of(known, pool.spans, history)


def quality(arguments: argparse.Namespace) -> None:
    """Compare what is found after as many evaluations, and after as much time."""
    print(f"{arguments.workers} workers, cv {arguments.cv}, {arguments.budget} evaluations")
    print(f"medians of {arguments.seeds} seeds, populations of {arguments.population}")
    print("two-spheres: minus the hypervolume of the front; others: the smallest loss (the smaller the better)")
    print("| optimizer | problem | generational | as many evaluations | as much time | times the evaluations |")
    print("|---|---|---|---|---|---|")
    for name, problem in (row for row in QUALITY_ROWS if row[0] in (arguments.optimizers or row)):
        known = PROBLEMS[problem](arguments.genes)
        rows = []
        for seed in range(arguments.seeds):
            calm = searched(known, name, seed, arguments, asynchronous=False)
            flow = searched(known, name, seed, arguments, asynchronous=True)
            n, by_then = len(calm.losses), flow.done_by(calm.end_s[-1])
            rows.append((calm.best(n), flow.best(n), flow.best(by_then), by_then / n))
        columns = [statistics.median(column) for column in zip(*rows, strict=True)]
        values = " | ".join(f"{value:.4f}" for value in columns[:3])
        print(f"| {name} | {problem} | {values} | {columns[3]:.2f} |", flush=True)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("idle", "quality"))
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--cv", type=float, default=0.6)
    parser.add_argument("--mean-s", type=float, default=1.0, help="mean latency, seconds")
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--budget", type=int, help="evaluations; 480 for idle, 200 for quality")
    parser.add_argument("--optimizers", nargs="*", help="of the quality table; all of them by default")
    parser.add_argument("--genes", type=int, default=10)
    parser.add_argument("--seeds", type=int, help="1 for idle, 10 for quality")
    arguments = parser.parse_args()
    defaults = (480, 1) if arguments.part == "idle" else (200, 10)
    arguments.budget = arguments.budget or defaults[0]
    arguments.seeds = arguments.seeds or defaults[1]
    (idle if arguments.part == "idle" else quality)(arguments)


if __name__ == "__main__":
    main()
