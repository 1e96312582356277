"""How a search scales: a simulator that takes measured costs, checked against real runs at the sizes that can be run.

    python benchmarks/scaling.py                       # tables for 1 to 1,000 GPUs with the stated hardware
    python benchmarks/scaling.py --check               # the driver's costs measured, the simulator against real runs
    python benchmarks/scaling.py --run RUN             # your own run's candidate times on more workers
    python benchmarks/scaling.py --copy 3.8e12 --flops 4e14 --shared 4e10   # your own hardware

The tables' hardware is stated, not measured: no GPU was at hand. What is measured is the driver (`--check` prints it),
and that the simulator says of sleeping workers what they do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import machine_facts
from scaling_model import Driver, Hardware, Mode, Model, Outcome, Work, candidate_s, latencies, load_s, simulate

from evomerge.api import Quiet
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ObjectiveSpec
from evomerge.execution.ledger import Ledger
from evomerge.loop import Search, SearchSetup
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import make_optimizer
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.runs.records import Evaluated, Opened
from evomerge.runs.replay import read_history
from evomerge.runs.store import RunStore
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.testing.latency import SleepingPool, idle_share, log_normal, searching
from evomerge.types import EvalTask, Evaluation, TaskAnswers, Vector

PARENTS = tuple(ParentRef(name, name) for name in ("base", "a", "b", "c"))
LAYERS, ITEMS = 8, 100
SPACE = SearchSpace(tuple(Real(f"w{i}", 0.0, 1.5, step=0.05) for i in range(3 * LAYERS)))
_INSTANT = 1e-9
MODES: tuple[Mode, ...] = ("generational", "asynchronous")


def recipe_of(vector: Vector) -> Recipe:
    """Task arithmetic with weights of its own in each layer."""
    weights = np.asarray(list(SPACE.decode(vector).values()), dtype=float).reshape(LAYERS, 3)
    return Recipe(
        PARENTS,
        "base",
        tuple(
            Rule(
                "task_arithmetic",
                per_parent={n: {"weight": float(w)} for n, w in zip("abc", row, strict=True)},
                layers=(k,),
            )
            for k, row in enumerate(weights)
        ),
    )


def score(task: EvalTask) -> Evaluation:
    """Answers that depend on the weights and on the item."""
    weights = np.array([v["weight"] for rule in task.recipe["rules"] for v in rule["per_parent"].values()])
    skill = 1 / (1 + float(np.mean((weights - 0.5) ** 2)))
    right = tuple(float((i * 7919 % ITEMS) / ITEMS < skill) for i in range(ITEMS))
    return Evaluation(
        task.set_name, {"add": TaskAnswers("add", tuple(f"{task.set_name}-{i}" for i in range(ITEMS)), right)}
    )


class RealRun(NamedTuple):
    """What a real run came to: seconds and idle share of its search phase, the driver's CPU, each candidate's time."""

    wall_s: float
    idle: float
    driver_s: float
    times: np.ndarray


def real_run(mode: Mode, workers: int, n: int, population: int, *, mean_s: float, cv: float) -> RealRun:
    """The real loop, ledger, journal and optimizer (sep-cma, 24 genes) before workers that sleep."""
    problem = Problem(SPACE.dim, 1, 0, SPACE.start, SPACE.spread, SPACE.step, budget=n, seed=1)

    def make() -> Optimizer:
        return make_optimizer("sep-cma", problem, {"population": population})

    asynchronous = mode == "asynchronous"
    goals = Goals((ObjectiveSpec("add", ("add",)),))
    setup = SearchSetup(SPACE, recipe_of, (), goals, make, n, asynchronous=asynchronous)
    with tempfile.TemporaryDirectory() as folder, RunStore.create(Path(folder) / "run", {"job.yaml": ""}) as store:
        store.append(Opened(1, False, "host", 1, settings={"budget": {"evaluations": n}}))
        pool = SleepingPool(score, workers, log_normal(mean_s, cv, 0))
        ledger = Ledger(
            store,
            pool,
            known={},
            reused=frozenset(),
            stop=lambda: False,
            drain_s=0.0,
            failure_share=0.9,
            watcher=Quiet(),
        )
        began, cpu = time.monotonic(), time.thread_time()
        Search(setup, store, read_history(store.entries()), ledger, Quiet()).run()
        spent = time.thread_time() - cpu
        wall = time.monotonic() - began
        pool.close()
        spans = searching(pool.spans)  # the choice at the end has barriers of its own, which are not modelled
        seconds = max(s.end_s for s in spans) - min(s.start_s for s in spans)
        times = np.array([s.end_s - s.start_s for s in sorted(spans, key=lambda s: s.start_s)])
        return RealRun(seconds if mean_s > _INSTANT else wall, idle_share(spans, workers), spent, times)


def measured_driver(n: int = 400) -> Driver:
    """The driver's costs of one candidate: instant workers, the whole time divided by the candidates."""
    took = min(real_run("generational", 1, n, 16, mean_s=_INSTANT, cv=0.0).wall_s for _ in range(3))
    return Driver(0.3 * took / n, 0.7 * took / n)


def check(sizes: Sequence[int], mean_s: float, cv: float) -> None:
    """Print the simulator beside real runs; it is given the times that the real workers took."""
    driver = measured_driver()
    print(f"driver: {1000 * driver.total_s:.2f} ms a candidate (sep-cma, 24 genes, {ITEMS} items, three fsyncs)")
    print(f"workers that sleep {mean_s:g} s on average (log-normal, cv {cv:g}); candidates per hour, idle share")
    print(f"{'mode':13} {'workers':>7} {'population':>10} {'simulated':>16} {'real':>16} {'ratio':>6}")
    for mode in MODES:
        for workers in sizes:
            population = max(16, workers)
            n = 12 * population
            real = real_run(mode, workers, n, population, mean_s=mean_s, cv=cv)
            said = simulate(mode, workers, real.times, driver, population=population)
            found = 3600 * real.times.size / real.wall_s
            print(
                f"{mode:13} {workers:7} {population:10} {said.per_hour:9.0f} {said.idle:6.1%} "
                f"{found:9.0f} {real.idle:6.1%} {said.per_hour / found:6.2f}"
            )


def of_run(run: Path) -> np.ndarray:
    """Seconds of every candidate of a run on the search set, as its journal has them."""
    with RunStore.open(run, write=False) as store:
        found = [r for r in store.records() if isinstance(r, Evaluated) and r.set_name == "search"]
    return np.array([record.timing_s["total"] for record in found if "total" in record.timing_s])


def table(model: Model, work: Work, gpu: Hardware, driver: Driver, sizes: Sequence[int]) -> None:
    """Print one model on clusters of many sizes."""
    merge, rest = candidate_s(model, work, gpu)
    print(
        f"\n{model.parameters / 1e9:g} B parameters, {model.parents} parents, {model.gpus} GPU(s) a worker: "
        f"merge {merge:.3f} s, score {rest:.1f} s"
    )
    print(f"{'GPUs':>5} {'workers':>7} {'load':>8} {'cached':>7} | {'generational':^27} | {'asynchronous':^27}")
    columns = f" | {'per hour':>10} {'idle':>7} {'driver':>8}"
    print(f"{'':5} {'':7} {'s':>8} {'s':>7}{columns}{columns}")
    for gpus in sizes:
        workers = gpus // model.gpus
        if workers == 0:
            continue
        population = max(16, workers)
        times = latencies(merge + rest, work.cv, 20 * population, seed=gpus)
        found: list[Outcome] = [simulate(m, workers, times, driver, population=population) for m in MODES]
        loads = (load_s(model, gpu, gpus, cached=cached) for cached in (False, True))
        print(
            f"{gpus:5} {workers:7} "
            + " ".join(f"{s:{w}.1f}" for s, w in zip(loads, (8, 7), strict=True))
            + "".join(f" | {o.per_hour:10,.0f} {o.idle:7.1%} {o.driver:8.1%}" for o in found)
        )


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--run", type=Path, help="a run directory whose candidate times are used")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256, 1000])
    parser.add_argument("--mean", type=float, default=0.2, help="of --check: seconds that a worker sleeps")
    parser.add_argument("--cv", type=float, default=0.6)
    parser.add_argument("--driver", type=float, default=0.005, help="seconds of the driver per candidate")
    parser.add_argument("--tokens", type=float, default=200_000, help="read per candidate")
    parser.add_argument("--steps", type=float, default=0, help="of decoding, all generated answers in one batch")
    parser.add_argument("--fixed", type=float, default=0.05, help="seconds per candidate, whatever the model")
    parser.add_argument("--memory", type=float, default=141e9)
    parser.add_argument("--copy", type=float, default=3.8e12)
    parser.add_argument("--flops", type=float, default=4e14)
    parser.add_argument("--host", type=float, default=4e10)
    parser.add_argument("--node", type=float, default=1e10)
    parser.add_argument("--shared", type=float, default=4e10)
    args = parser.parse_args()
    print(json.dumps(machine_facts()))
    if args.check:
        check(args.workers, args.mean, args.cv)
        return
    driver = Driver(0.3 * args.driver, 0.7 * args.driver)
    if args.run is not None:
        times = of_run(args.run)
        print(f"{times.size} candidates of {args.run}: {times.mean():.3f} s, cv {times.std() / times.mean():.2f}")
        for workers in args.workers:
            population = max(16, workers)
            drawn = np.random.default_rng(0).choice(times, 20 * population)
            for mode in MODES:
                said = simulate(mode, workers, drawn, driver, population=population)
                told = f"{said.per_hour:,.0f} per hour, idle {said.idle:.1%}, driver {said.driver:.1%}"
                print(f"{mode:13} {workers:5} workers: {told}")
        return
    gpu = Hardware("stated", args.memory, args.copy, args.flops, args.host, args.node, args.shared)
    work = Work(args.tokens, args.steps, args.cv, args.fixed)
    for model in (Model(1e9, 4, 1), Model(8e9, 4, 1), Model(32e9, 4, 4), Model(70e9, 4, 8)):
        table(model, work, gpu, driver, args.gpus)


if __name__ == "__main__":
    main()
