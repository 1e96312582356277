"""The CMA family: restarts, the mean that is handed out, constraints by rank, points from outside."""

import numpy as np
import numpy.typing as npt
import pytest

from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.cmaes import GENERATIONS_WORTH_A_RESTART, CmaStrategy, Engine
from evomerge.optimizers.lra import LraEngine
from evomerge.optimizers.protocol import AskTell, Matrix
from evomerge.optimizers.pycma import SHORT_RUN, PycmaEngine, damping
from evomerge.optimizers.registry import make_optimizer
from evomerge.testing.optimizer_suite import drive
from evomerge.testing.problems import ItemResponseProblem, half_space_sphere, rotated_ellipsoid, sphere
from evomerge.types import Vector


class Still(Engine):
    """Asks its start for ever, so that every generation has converged; keeps what it was told."""

    def __init__(self, start: Vector, population: int) -> None:
        self.start = start
        self.population = population
        self.told: list[tuple[Matrix, npt.NDArray[np.float64]]] = []

    def ask(self, n: int) -> Matrix:
        return np.tile(self.start, (n, 1))

    def tell(self, genes: Matrix, ranks: npt.NDArray[np.float64]) -> None:
        assert genes.shape == (self.population, len(self.start))
        self.told.append((genes, ranks))

    def mean(self) -> Vector:
        return self.start

    def broken(self) -> bool:
        return False


def strategy_of(budget: int, restarts: int, injected: tuple[Vector, ...] = ()) -> tuple[AskTell, list[Still]]:
    engines: list[Still] = []

    def make(start: Vector, population: int, run: int) -> Engine:
        assert run == len(engines)
        engines.append(Still(start, population))
        return engines[-1]

    problem = sphere(2).problem(budget=budget, injected=injected)
    starts = {1: np.array([0.7, 0.7]), 2: np.array([0.1, 0.1])}
    inner = CmaStrategy(problem, make, population=4, restarts=restarts, start_of=starts.__getitem__)
    return AskTell(problem, inner), engines


def step(optimizer: AskTell) -> None:
    known = sphere(2)
    optimizer.tell([known.told(v) for v in optimizer.ask()])


def centre(optimizer: Optimizer) -> Vector:
    mean = optimizer.mean()
    assert mean is not None
    return mean


def test_a_converged_run_restarts_with_twice_the_population() -> None:
    optimizer, engines = strategy_of(budget=1000, restarts=2)
    for _ in range(2):
        step(optimizer)
    assert [e.population for e in engines] == [4, 8, 16]
    assert optimizer.should_stop() is None
    step(optimizer)
    assert optimizer.should_stop() == "the search distribution has converged after 2 restarts"


def test_no_restart_that_the_budget_could_not_pay() -> None:
    enough = 4 + GENERATIONS_WORTH_A_RESTART * 8
    for budget, n_engines in ((enough, 2), (enough - 1, 1)):
        optimizer, engines = strategy_of(budget=budget, restarts=9)
        step(optimizer)
        assert len(engines) == n_engines
        assert (optimizer.should_stop() is None) == (n_engines == 2)


def test_the_mean_is_that_of_the_best_run() -> None:
    """The second run stands on the optimum; the third, worse again, does not take its place."""
    optimizer, _ = strategy_of(budget=1000, restarts=2)
    assert np.array_equal(centre(optimizer), [0.4, 0.4])
    step(optimizer)
    step(optimizer)
    assert np.array_equal(centre(optimizer), [0.7, 0.7])
    step(optimizer)
    assert np.array_equal(centre(optimizer), [0.7, 0.7])


def test_a_large_first_batch_tells_the_engine_its_best() -> None:
    injected = tuple(np.full(2, v) for v in (0.0, 0.65, 0.7, 0.75, 1.0))
    optimizer, engines = strategy_of(budget=1000, restarts=0, injected=injected)
    step(optimizer)
    genes, ranks = engines[0].told[0]
    assert genes[:3].tolist() == [[0.7, 0.7], [0.65, 0.65], [0.75, 0.75]]
    assert np.all(np.diff(ranks) >= 0)


def test_a_generation_of_failures_teaches_nothing() -> None:
    optimizer, engines = strategy_of(budget=1000, restarts=0)
    optimizer.tell([Told(v, None) for v in optimizer.ask()])
    assert engines[0].told == []
    optimizer.tell([Told(v, None if i else (0.0,)) for i, v in enumerate(optimizer.ask())])
    ((_, ranks),) = engines[0].told
    assert ranks.tolist() == [0.0, 2.0, 2.0, 2.0]


def test_a_real_run_converges_restarts_and_keeps_its_mean() -> None:
    known = sphere(2)
    optimizer = make_optimizer("cma", known.problem(budget=2000), {})
    trace, _ = drive(optimizer, known, 600)
    sizes = {len(batch) for batch in trace}
    assert sizes >= {6, 12}
    assert np.allclose(centre(optimizer), 0.7, atol=0.02)


def test_separable_and_full_differ_where_they_should() -> None:
    """On a rotated ellipsoid, given time, only the full matrix follows the axes."""
    known = rotated_ellipsoid(6, condition=1000.0)
    best = {}
    for name in ("cma", "sep-cma"):
        runs = [drive(make_optimizer(name, known.problem(seed=s, budget=900), {}), known, 900)[1] for s in range(3)]
        best[name] = np.median([min(t.losses[0] for t in r if t.losses) for r in runs])
    assert best["cma"] < best["sep-cma"]


def test_the_best_feasible_point_is_approached_from_the_feasible_side() -> None:
    known = half_space_sphere(6)
    for name in ("cma", "sep-cma"):
        optimizer = make_optimizer(name, known.problem(seed=1, budget=400), {})
        _, results = drive(optimizer, known, 400)
        best = min(t.losses[0] for t in results if t.losses is not None and t.feasible)
        assert known.optimum[0] <= best < known.optimum[0] + 0.003


@pytest.mark.parametrize("new", [LraEngine, lambda *a: PycmaEngine(*a, diagonal=False, damping=1.0)])
def test_a_far_point_from_outside_moves_the_mean_by_a_plausible_step(new) -> None:  # type: ignore[no-untyped-def]
    """Hansen 2011: an injected corner, 20 standard deviations away, must not tear the distribution apart."""
    dim, population = 4, 8
    engine = new(np.full(dim, 0.5), np.full(dim, 0.02), population, 7)
    genes = engine.ask(population)
    genes[0] = 1.0
    engine.tell(genes, np.arange(population, dtype=float))
    assert np.all(np.abs(engine.mean() - 0.5) < 0.1)


@pytest.mark.parametrize("new", [LraEngine, lambda *a: PycmaEngine(*a, diagonal=False, damping=1.0)])
def test_engines_start_where_and_as_wide_as_they_are_told(new) -> None:  # type: ignore[no-untyped-def]
    stds = np.array([0.02, 0.1])
    samples = new(np.array([0.3, 0.6]), stds, 10, 3).ask(2000)
    assert np.allclose(samples.mean(axis=0), [0.3, 0.6], atol=0.01)
    assert np.allclose(samples.std(axis=0), stds, rtol=0.1)


def test_engines_start_on_the_border_of_the_cube() -> None:
    for name in ("cma", "sep-cma", "lra-cma"):
        known = sphere(3, optimum=0.9)
        problem = known.problem(budget=150)
        at_zero = type(problem)(3, 1, 0, np.zeros(3), problem.spread, problem.step, 150, 2)
        _, results = drive(make_optimizer(name, at_zero, {}), known, 150)
        assert min(t.losses[0] for t in results if t.losses is not None) < 0.05


def test_short_runs_are_damped_less() -> None:
    assert damping(sphere(6).problem(budget=9 * SHORT_RUN - 1)) == 0.5
    assert damping(sphere(6).problem(budget=9 * SHORT_RUN)) == 1.0


@pytest.mark.parametrize("name", ["cma", "sep-cma", "lra-cma"])
def test_under_item_noise_the_mean_gains_on_items_that_no_search_saw(name: str) -> None:
    gains = []
    for seed in range(3):
        task = ItemResponseProblem(12, 200, 0.3, seed=seed)
        optimizer = make_optimizer(name, task.as_known().problem(seed=seed, budget=200), {})
        drive(optimizer, task.as_known(), 200)
        gains.append(task.true_score(centre(optimizer)) - task.true_score(np.full(12, 0.4)))
    assert np.mean(gains) > 0.15
