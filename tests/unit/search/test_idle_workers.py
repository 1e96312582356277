"""Without barriers workers are busy; with them, half of the time they are not. The whole driver, in simulated time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from evomerge.testing.known_searches import genes_of, known_setup, run_known, scorer_of
from evomerge.testing.latency import SimulatedPool, SleepingPool, idle_share, log_normal, searching
from evomerge.testing.pool_suite import sample_task
from evomerge.testing.problems import sphere
from evomerge.types import CandidateId, EvalTask

WORKERS = 16
KNOWN = sphere(6)


def idle(folder: Path, name: str, population: int, *, asynchronous: bool) -> float:
    setup = known_setup(KNOWN, name, budget=320, seed=1, asynchronous=asynchronous, options={"population": population})
    pool = SimulatedPool(scorer_of(KNOWN), WORKERS, log_normal(1.0, 0.6, 1))
    history = run_known(setup, pool, folder)
    assert history.counts.evaluated + history.counts.failed == 320
    # the centre of the last distribution is scored alone, after everything was told
    return idle_share([s for s in searching(pool.spans) if not s.task.id.startswith("mean")], WORKERS)


@pytest.mark.parametrize(("name", "population"), [("cma", 16), ("random", 5)])
def test_at_most_a_tenth_of_the_time_is_idle_without_barriers(tmp_path: Path, name: str, population: int) -> None:
    assert idle(tmp_path / "run", name, population, asynchronous=True) <= 0.10


@pytest.mark.parametrize(("population", "at_least"), [(16, 0.5)])
def test_generations_leave_workers_idle(tmp_path: Path, population: int, at_least: float) -> None:
    assert idle(tmp_path / "run", "cma", population, asynchronous=False) >= at_least


def test_the_trace_has_its_mean_and_variation() -> None:
    latency = log_normal(2.0, 0.6, 3)
    draws = [latency(sample_task(i)) for i in range(4000)]
    mean = sum(draws) / len(draws)
    sd = (sum((d - mean) ** 2 for d in draws) / len(draws)) ** 0.5
    assert mean == pytest.approx(2.0, rel=0.05)
    assert sd / mean == pytest.approx(0.6, rel=0.1)
    assert draws == [latency(sample_task(i)) for i in range(4000)]


def test_sleeping_workers_keep_to_the_contract() -> None:
    """Every task once; nobody begins one before the last answer was taken and the pool was called again."""
    pool = SleepingPool(scorer_of(KNOWN), 2, lambda _: 0.01)
    setup = known_setup(KNOWN, "random", budget=1, seed=0, asynchronous=True)
    recipe = setup.known[0].request.recipe
    assert genes_of(recipe, KNOWN.dim).tolist() == [0.4] * KNOWN.dim
    with pool:
        for i in range(6):
            pool.submit(EvalTask(CandidateId(f"c{i:04d}"), recipe, "search"))
        answers = [pool.next_outcome(5.0) for _ in range(6)]
        assert pool.next_outcome(0.0) is None
    assert sorted(a.task.id for a in answers if a) == [f"c{i:04d}" for i in range(6)]
    for worker in range(2):
        spans = sorted((s.start_s, s.end_s) for s in pool.spans if s.worker == worker)
        assert all(later[0] >= earlier[1] for earlier, later in pairwise(spans))
