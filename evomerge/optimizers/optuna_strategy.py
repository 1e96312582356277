"""Any Optuna sampler as a strategy: an in-memory study that is a function of what was told.

Optuna's samplers keep a random generator that no study stores. So every batch gets a fresh sampler, seeded from the
run's seed and the number of trials so far: what it asks depends on the history alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

import numpy as np

from evomerge.optimizers.base import Problem, Told
from evomerge.optimizers.genes import Genes, mixed_vectors
from evomerge.optimizers.protocol import Matrix, Strategy, first_batch, n_fresh
from evomerge.optimizers.stream import StreamStrategy
from evomerge.seeds import derive_seed, generator
from evomerge.types import Vector

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

MakeSampler = Callable[[int], "BaseSampler"]
"""seed -> a fresh sampler."""

_STUDY: Final = "evomerge"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's "A new study created" and its advice to install more packages; its level is put back at once."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@final
class OptunaStrategy(Strategy):
    """Asks an Optuna study whose samplers are made fresh for every batch.

    A failed candidate is told as complete, with the worst loss and violation told so far. As a failed trial it would
    not count for its generation, and NSGA-II would breed a second batch from the same parents; and a Gaussian process
    would not learn to keep away. With `mark_failures` it carries one more violation, of 1, which ranks it behind
    everything that was scored. Only when nothing was ever scored, there is no worst loss, and it is told as failed.

    Args:
        problem: what is optimised.
        make_sampler: seed -> sampler.
        batch: vectors per batch.
        first: vectors in the first batch, injected ones included (more when there are many of those).
        spread: multiplier of `problem.spread` for the first batch.
        mark_failures: whether the sampler can afford a constraint for failures (it is a model of its own in a GP).
    """

    def __init__(
        self,
        problem: Problem,
        make_sampler: MakeSampler,
        *,
        batch: int,
        first: int,
        spread: float,
        mark_failures: bool,
    ) -> None:
        import optuna

        self._problem = problem
        self._make_sampler = make_sampler
        self._batch = batch
        self._first = first
        self._spread = spread
        self._mark_failures = mark_failures
        self._storage = optuna.storages.InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=make_sampler(1),
                study_name=_STUDY,
                directions=["minimize"] * problem.n_objectives,
            )
        self._genes = [f"x{i:04d}" for i in range(problem.dim)]
        self._kinds = Genes.of(problem)
        self._space = {name: self._distribution(i) for i, name in enumerate(self._genes)}
        self._open: list[Trial] = []
        self._n_trials = 0
        self._worst: list[float] | None = None
        self._worst_violations = [0.0] * problem.n_constraints

    def propose(self) -> Matrix:
        """The first batch is drawn around the start; every later one comes from the sampler."""
        if self._n_trials == 0:
            rng = generator(self._problem.seed, "optuna", "first")
            fresh = mixed_vectors(self._problem, n_fresh(self._problem, self._first), rng, self._spread)
            batch = first_batch(self._problem, self._first, fresh)
            self._open = self.begin(batch)
            return batch
        self._open = self.begin(self._batch)
        return np.array([self.genes_of(trial) for trial in self._open])

    def begin(self, wanted: Matrix | int) -> list[Trial]:
        """Begin trials, with a sampler of their own.

        Args:
            wanted: their genes, shape `(n, d)`, or how many the sampler is to choose.
        """
        n = wanted if isinstance(wanted, int) else len(wanted)
        for row in () if isinstance(wanted, int) else wanted:
            self._study.enqueue_trial(self._params(row))
        self._study.sampler = self._make_sampler(derive_seed(self._problem.seed, "optuna", self._n_trials))
        with _quiet():
            trials = [self._ask_trial() for _ in range(n)]
        self._n_trials += n
        return trials

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Complete the open trials in ask order, with the genes that were evaluated."""
        for told in results:
            self._remember_worst(told)
        for trial, told in zip(self._open, results, strict=True):
            self.complete(trial, told)
        self._open = []

    def complete(self, trial: Trial, told: Told) -> bool:
        """End a trial; False when all that can be said is that it failed."""
        self._remember_worst(told)
        self._set_genes(trial, told.vector)
        self._tell(trial, told)
        return self._worst is not None

    def stream(self) -> StreamStrategy | None:
        """Optuna's own asynchronous mode."""
        n_first = len(self._problem.injected) + n_fresh(self._problem, self._first)
        return OptunaStream(self._problem, self, population=self._batch, n_first=n_first, spread=self._spread)

    def stop(self) -> str | None:
        """Never."""
        return None

    def mean(self) -> Vector | None:
        """None: no sampler of Optuna has a centre."""
        return None

    def join(self, trial: Trial, generation: int) -> None:
        """Make a trial a member of another generation than the one that it was bred for; others have none.

        They choose parents among a generation as soon as it has enough members, and never look at it again: whatever
        was bred for it and comes later would be lost.
        """
        number = trial.number
        study_id = self._storage.get_study_id_from_name(_STUDY)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        for key in self._storage.get_trial(trial_id).system_attrs:
            if key.endswith(":generation"):
                self._storage.set_trial_system_attr(trial_id, key, generation)

    def _ask_trial(self) -> Trial:
        trial = self._study.ask(fixed_distributions=self._space)
        # the genetic samplers enter a trial into its generation when they sample it, and Optuna does not let them
        # sample one that was enqueued: without this the first batch would belong to no generation and be lost
        trial.relative_params  # noqa: B018
        return trial

    def _distribution(self, gene: int) -> BaseDistribution:
        """Of a gene's values: the unit interval, or the numbers of its values with or without their order."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        n = int(self._kinds.n_values[gene])
        if n == 0:
            return FloatDistribution(0.0, 1.0)
        return IntDistribution(0, n - 1) if self._kinds.ordered[gene] else CategoricalDistribution(range(n))

    def _params(self, vector: Vector) -> dict[str, float]:
        """Optuna's parameters of a vector."""
        params: list[float] = vector.tolist()
        discrete = self._kinds.discrete
        for column, value in zip(discrete, self._kinds.values(vector, discrete).tolist(), strict=True):
            params[column] = value
        return dict(zip(self._genes, params, strict=True))

    def genes_of(self, trial: Trial) -> Vector:
        """The genes that a trial was begun with, shape `(d,)`."""
        params = trial.params
        genes = np.array([params[name] for name in self._genes], dtype=np.float64)
        discrete = self._kinds.discrete
        genes[discrete] = self._kinds.centres(genes[discrete].astype(np.int64), discrete)
        return genes

    def _remember_worst(self, told: Told) -> None:
        if told.losses is None:
            return
        worst = told.losses if self._worst is None else self._worst
        self._worst = [max(pair) for pair in zip(worst, told.losses, strict=True)]
        self._worst_violations = [max(p) for p in zip(self._worst_violations, told.violations, strict=True)]

    def _set_genes(self, trial: Trial, vector: Vector) -> None:
        """The asked genes become the evaluated ones: a model must not see one score at several places of a cell."""
        study_id = self._storage.get_study_id_from_name(_STUDY)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        params = trial.params
        for name, new in self._params(vector).items():
            if params[name] != new:
                distribution = self._space[name]
                self._storage.set_trial_param(trial_id, name, distribution.to_internal_repr(new), distribution)

    def _tell(self, trial: Trial, told: Told) -> None:
        import optuna

        if self._worst is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        failed = told.losses is None
        for i, violation in enumerate(self._worst_violations if failed else told.violations):
            trial.set_constraint(f"c{i}", violation)
        if self._mark_failures:
            trial.set_constraint("failed", float(failed))
        self._study.tell(trial, values=list(self._worst if told.losses is None else told.losses))


@final
class OptunaStream(StreamStrategy):
    """Optuna's samplers as they are meant to be used: a trial begins whenever a vector is asked for.

    TPE counts trials that run as bad ones (the constant liar), GP plans around them, NSGA breeds from the last
    generation that is full; results fill generations in the order in which they come. Until the first cohort is told,
    vectors are drawn around the start.

    Args:
        problem: what is optimised.
        strategy: fresh; keeps the study.
        population: see `Stream.population`.
        n_first: results to wait for before the sampler is asked.
        spread: multiplier of `problem.spread` until then.
    """

    def __init__(
        self, problem: Problem, strategy: OptunaStrategy, *, population: int, n_first: int, spread: float
    ) -> None:
        self._problem = problem
        self._strategy = strategy
        self._population = population
        self._n_first = n_first
        self._spread = spread
        self._trials: dict[int, Trial] = {}
        self._n_asked = self._n_told = self._n_completed = 0

    @property
    def population(self) -> int:
        """Vectors per batch of the generational search."""
        return self._population

    def propose(self) -> Vector:
        """An injected vector, one around the start, or the sampler's."""
        number, injected = self._n_asked, self._problem.injected
        self._n_asked += 1
        if self._n_told >= self._n_first:
            (self._trials[number],) = self._strategy.begin(1)
            return self._strategy.genes_of(self._trials[number])
        if number < len(injected):
            vector = injected[number]
        else:
            rng = generator(self._problem.seed, "optuna", "first", number)
            vector = mixed_vectors(self._problem, 1, rng, self._spread)[0]
        (self._trials[number],) = self._strategy.begin(vector[None, :])
        return vector

    def learn(self, number: int, asked: Vector, told: Told) -> None:
        """Complete the trial."""
        self._n_told += 1
        trial = self._trials.pop(number)
        self._strategy.join(trial, self._n_completed // self._population)
        self._n_completed += self._strategy.complete(trial, told)

    def stop(self) -> str | None:
        """Never."""
        return None

    def mean(self) -> Vector | None:
        """None."""
        return None
