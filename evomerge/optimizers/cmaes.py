"""CMA-ES with restarts: the part that does not depend on whose covariance update is used.

A restart doubles the population (IPOP: Auger and Hansen 2005) when a run has converged: when its whole batch decodes
alike. Constraints and failures enter by rank alone (`ranking`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.optimizers.options import Option, read_options, require_one_objective
from evomerge.optimizers.protocol import AskTell, Matrix, Strategy, first_batch, gaussian_vectors, n_fresh, own_sample
from evomerge.optimizers.ranking import feasibility_ranks, order_key
from evomerge.optimizers.stream import StreamStrategy
from evomerge.seeds import derive_seed, generator
from evomerge.types import Vector

FINEST_STEP: Final = 1e-4
"""A gene without a quantum counts as converged below this: finer changes vanish in a bf16 merge."""

GENERATIONS_WORTH_A_RESTART: Final = 3
"""A restart that could not finish this many generations within the budget is not begun."""


def default_population(dim: int) -> int:
    """Hansen's default, `4 + floor(3 ln d)` (Hansen 2016, eq. 48), at least 6 so that half of it is a direction."""
    return max(6, 4 + int(3 * np.log(dim)))


def options(dim: int) -> dict[str, Option]:
    """What the methods of this family accept."""
    return {
        "population": Option(default_population(dim), 4, 100_000, "candidates per generation"),
        "spread": Option(1.0, 1e-3, 10.0, "multiplies the initial standard deviations of the space"),
        "restarts": Option(9, 0, 100, "at most so many restarts, each with twice the population"),
    }


class Engine(ABC):
    """One run of a CMA-ES without bounds, constraints, failures or restarts to think of."""

    @abstractmethod
    def ask(self, n: int) -> Matrix:
        """`n` new samples, shape `(n, d)`, in `[0, 1]`; those asked before may be forgotten."""

    def ask_one_more(self) -> Vector:
        """One new sample, shape `(d,)`; those asked before are remembered until they are told."""
        row: Vector = self.ask(1)[0]
        return row

    @abstractmethod
    def tell(self, genes: Matrix, ranks: npt.NDArray[np.float64]) -> None:
        """Learn from exactly one population: genes `(population, d)`, ranks `(population,)`, 0 is best.

        Rows that were not asked are points from outside, to be clipped to a plausible distance. Two tells may follow
        each other without an ask between, and rows may be of any earlier distribution of this run.
        """

    @abstractmethod
    def mean(self) -> Vector:
        """The centre of the distribution, shape `(d,)`, in `[0, 1]`."""

    @abstractmethod
    def broken(self) -> bool:
        """True when the numerics of this run are exhausted."""


MakeEngine = Callable[[Vector, int, int], Engine]
"""(start, population, number of the run) -> a fresh engine."""


class _Run(NamedTuple):
    key: tuple[int, float]
    """Median order key of the last told generation."""
    mean: Vector


@final
class CmaStrategy(Strategy):
    """Runs an engine, restarts it when it has converged, remembers the best run's mean.

    Args:
        problem: what is optimised; one objective.
        make_engine: builds the engine of each run.
        population: of the first run.
        restarts: at most so many.
        start_of: number of a later run -> where it starts.
    """

    def __init__(
        self,
        problem: Problem,
        make_engine: MakeEngine,
        *,
        population: int,
        restarts: int,
        start_of: Callable[[int], Vector],
    ) -> None:
        self._problem = problem
        self._make_engine = make_engine
        self._restarts_left = restarts
        self._start_of = start_of
        self._n_run = 0
        self._population = population
        self._engine = make_engine(problem.start, population, 0)
        self._proposed: Matrix = np.empty((0, problem.dim))
        self._n_told = 0
        self._finished: list[_Run] = []
        self._current: _Run | None = None
        self._reason: str | None = None

    def propose(self) -> Matrix:
        """One population; the first batch begins with the injected vectors."""
        if self._n_told == 0:
            fresh = self._engine.ask(n_fresh(self._problem, self._population))
            batch = first_batch(self._problem, self._population, fresh)
        else:
            fresh = batch = self._engine.ask(self._population)
        self._proposed = fresh
        return batch

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Tell the engine the best `population` of the batch, by rank; a batch of failures teaches nothing."""
        self._n_told += len(results)
        if all(t.losses is None for t in results):
            return
        ranks = feasibility_ranks(results)
        # only a first batch is larger than the population
        kept = np.argsort(ranks, kind="stable")[: self._population]
        genes = np.array([own_sample(self._problem, asked[i], results[i]) for i in kept])
        self._engine.tell(genes, ranks[kept])
        keys = sorted(order_key(t) for t in results)
        self._current = _Run(keys[len(keys) // 2], self._engine.mean())
        if self._converged() or self._engine.broken():
            self._restart()

    def stream(self) -> StreamStrategy | None:
        """Samples of the present distribution, which learns from a population of results of whatever age."""
        return CmaStream(self._problem, self)

    @property
    def run(self) -> int:
        """Number of the present run, from 0."""
        return self._n_run

    @property
    def population(self) -> int:
        """Candidates per generation of the present run."""
        return self._population

    def sample(self) -> Vector:
        """One sample of the present run's distribution."""
        row = self._engine.ask_one_more()
        self._proposed = np.vstack([self._proposed, row])[-self._population :]
        return row

    def pass_over(self) -> None:
        """A result teaches nothing, but was paid for."""
        self._n_told += 1

    def stop(self) -> str | None:
        """A converged run for which no restart is left, or none that the budget could pay."""
        return self._reason

    def mean(self) -> Vector | None:
        """The mean of the run whose last generation was best in the median.

        The median, because the best of a generation is the luckiest one; and over all runs, because the mean of a
        run that has just restarted says nothing.
        """
        runs = [*self._finished, *([self._current] if self._current is not None else [])]
        return min(runs, key=lambda run: run.key).mean if runs else self._engine.mean()

    def _converged(self) -> bool:
        if len(self._proposed) < 2:
            return False
        resolution = np.maximum(self._problem.step, FINEST_STEP)
        return bool(np.all(np.ptp(self._proposed, axis=0) < resolution))

    def _restart(self) -> None:
        if self._current is not None:
            self._finished.append(self._current)
        self._current = None
        self._population *= 2
        left = self._problem.budget - self._n_told
        if self._restarts_left == 0 or left < GENERATIONS_WORTH_A_RESTART * self._population:
            self._reason = f"the search distribution has converged after {self._n_run} restarts"
            return
        self._restarts_left -= 1
        self._n_run += 1
        self._engine = self._make_engine(self._start_of(self._n_run), self._population, self._n_run)
        self._proposed = self._proposed[:0]


@final
class CmaStream(StreamStrategy):
    """A CMA-ES without generations.

    Every vector is a sample of the distribution as it is when it is asked for. The distribution learns whenever one
    population of results has come in since it last did, whatever distribution they were drawn from; steps are measured
    from its present mean. The first cohort is as large as the first batch of a generational search. Results that belong
    to a run that has ended are passed over.

    Args:
        problem: what is optimised.
        strategy: fresh; keeps the engine, its restarts and the best mean.
    """

    def __init__(self, problem: Problem, strategy: CmaStrategy) -> None:
        self._problem = problem
        self._strategy = strategy
        self._population = strategy.population
        self._injected = list(problem.injected)
        self._wanted = len(problem.injected) + n_fresh(problem, strategy.population)
        self._run_of: list[int] = []
        self._cohort: list[tuple[Vector, Told]] = []

    @property
    def population(self) -> int:
        """Of the first run."""
        return self._population

    def propose(self) -> Vector:
        """The injected vectors, then samples."""
        self._run_of.append(self._strategy.run)
        number = len(self._run_of) - 1
        return self._injected[number] if number < len(self._injected) else self._strategy.sample()

    def learn(self, number: int, asked: Vector, told: Told) -> None:
        """Add a result to the cohort; tell the strategy when the cohort is complete."""
        run = self._strategy.run
        if self._run_of[number] != run:
            self._strategy.pass_over()
            return
        self._cohort.append((asked, told))
        if len(self._cohort) < self._wanted:
            return
        cohort, self._cohort = self._cohort, []
        self._strategy.learn([a for a, _ in cohort], [t for _, t in cohort])
        self._wanted = self._strategy.population

    def stop(self) -> str | None:
        """See `CmaStrategy.stop`."""
        return self._strategy.stop()

    def mean(self) -> Vector | None:
        """See `CmaStrategy.mean`."""
        return self._strategy.mean()


NewEngine = Callable[[Vector, Vector, int, int], Engine]
"""(start, initial standard deviations, population, seed) -> a fresh engine."""

Around = Callable[[Problem, int, np.random.Generator, float], Matrix]
"""(problem, n, stream, scale) -> `n` vectors around the start, shape `(n, d)`."""


def build(
    name: str, problem: Problem, given: Mapping[str, Any], new_engine: NewEngine, around: Around = gaussian_vectors
) -> Optimizer:
    """The optimizer `name` of this family: checked options, private streams, restarts.

    Args:
        name: the optimizer's name.
        problem: what is optimised.
        given: the options that the user wrote.
        new_engine: builds the engine of each run.
        around: draws the starts of later runs.

    Raises:
        ConfigError: for several objectives, then for an option that is unknown or out of range.
    """
    require_one_objective(name, problem)
    chosen = read_options(name, given, options(problem.dim))
    spread = float(chosen["spread"])

    def make_engine(start: Vector, population: int, run: int) -> Engine:
        return new_engine(start, problem.spread * spread, population, derive_seed(problem.seed, name, run))

    def start_of(run: int) -> Vector:
        rng = generator(problem.seed, name, "start", run)
        start: Vector = around(problem, 1, rng, spread)[0]
        return start

    population, restarts = int(chosen["population"]), int(chosen["restarts"])
    strategy = CmaStrategy(problem, make_engine, population=population, restarts=restarts, start_of=start_of)
    return AskTell(problem, strategy)
