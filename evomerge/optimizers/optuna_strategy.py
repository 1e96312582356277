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
from evomerge.optimizers.protocol import Matrix, Strategy, first_batch, gaussian_vectors, n_fresh
from evomerge.optimizers.ranking import total_violation
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
    """Without Optuna's "A new study created": its level is put back at once."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@final
class OptunaStrategy(Strategy):
    """Asks an Optuna study whose samplers are made fresh for every batch.

    A failed candidate is told as complete, with the worst loss told so far for every objective and a violation above
    every other: as a trial that failed it would not count for its generation, and NSGA-II would breed a second
    batch from the same parents. Only when nothing was ever scored is there no worst loss, and it is told as failed.

    Args:
        problem: what is optimised.
        make_sampler: seed -> sampler.
        batch: vectors per batch.
        first: vectors in the first batch, injected ones included (more when there are many of those).
        spread: multiplier of `problem.spread` for the first batch.
    """

    def __init__(self, problem: Problem, make_sampler: MakeSampler, *, batch: int, first: int, spread: float) -> None:
        import optuna

        self._problem = problem
        self._make_sampler = make_sampler
        self._batch = batch
        self._first = first
        self._spread = spread
        self._storage = optuna.storages.InMemoryStorage()
        with _quiet():
            self._study = optuna.create_study(
                storage=self._storage,
                sampler=make_sampler(1),
                study_name=_STUDY,
                directions=["minimize"] * problem.n_objectives,
            )
        self._genes = [f"x{i:04d}" for i in range(problem.dim)]
        self._space: dict[str, BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in self._genes
        }
        self._open: list[Trial] = []
        self._n_trials = 0
        self._worst: list[float] | None = None
        self._worst_violation = 0.0

    def propose(self) -> Matrix:
        """The first batch is drawn around the start; every later one comes from the sampler."""
        if self._n_trials == 0:
            rng = generator(self._problem.seed, "optuna", "first")
            fresh = gaussian_vectors(self._problem, n_fresh(self._problem, self._first), rng, self._spread)
            batch = first_batch(self._problem, self._first, fresh)
            for row in batch:
                self._study.enqueue_trial(dict(zip(self._genes, row.tolist(), strict=True)))
            n = len(batch)
        else:
            n = self._batch
        self._study.sampler = self._make_sampler(derive_seed(self._problem.seed, "optuna", self._n_trials))
        self._open = [self._study.ask(fixed_distributions=self._space) for _ in range(n)]
        self._n_trials += n
        return np.array([self._genes_of(trial) for trial in self._open])

    def learn(self, results: Sequence[Told]) -> None:
        """Complete the open trials in ask order."""
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

    def _genes_of(self, trial: Trial) -> list[float]:
        params = trial.params
        return [params[name] for name in self._genes]

    def _remember_worst(self, told: Told) -> None:
        if told.losses is None:
            return
        worst = self._worst or list(told.losses)
        self._worst = [max(a, b) for a, b in zip(worst, told.losses, strict=True)]
        self._worst_violation = max(self._worst_violation, total_violation(told))

    def _set_genes(self, trial: Trial, vector: Vector) -> None:
        """Make the study learn from the genes that were evaluated, where they are not the asked ones."""
        if np.array_equal(self._genes_of(trial), vector):
            return
        study_id = self._storage.get_study_id_from_name(_STUDY)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        for name, value in zip(self._genes, vector.tolist(), strict=True):
            self._storage.set_trial_param(trial_id, name, value, self._space[name])

    def _tell(self, trial: Trial, told: Told) -> None:
        import optuna

        if told.losses is None and self._worst is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        for i in range(self._problem.n_constraints):
            failed_violation = self._worst_violation + 1.0
            trial.set_constraint(f"c{i}", told.violations[i] if told.losses is not None else failed_violation)
        self._study.tell(trial, values=list(told.losses if told.losses is not None else self._worst or []))
