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
            for row in batch:
                self._study.enqueue_trial(self._params(row))
            n = len(batch)
        else:
            batch = None
            n = self._batch
        self._study.sampler = self._make_sampler(derive_seed(self._problem.seed, "optuna", self._n_trials))
        with _quiet():
            self._open = [self._ask_trial() for _ in range(n)]
        self._n_trials += n
        return np.array([self._genes_of(trial) for trial in self._open]) if batch is None else batch

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Complete the open trials in ask order, with the genes that were evaluated."""
        for told in results:
            self._remember_worst(told)
        for trial, told in zip(self._open, results, strict=True):
            self._set_genes(trial, told.vector)
            self._tell(trial, told)
        self._open = []

    def stop(self) -> str | None:
        """Never."""
        return None

    def mean(self) -> Vector | None:
        """None: no sampler of Optuna has a centre."""
        return None

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

    def _genes_of(self, trial: Trial) -> Vector:
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
