"""An optimizer: a (1 + n) evolution strategy whose step follows its success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.optimizers.options import Option, read_options, require_one_objective
from evomerge.optimizers.protocol import AskTell, Matrix, Strategy, first_batch, gaussian_vectors, reflect
from evomerge.seeds import generator
from evomerge.types import Vector

OPTIONS: Final = {"population": Option(6, 1, 1000, "vectors per batch")}


def _rank(told: Told) -> tuple[bool, float, float]:
    """Sorts candidates: failures last, then by violation, then by loss."""
    if told.losses is None:
        return (True, 0.0, 0.0)
    return (False, sum(max(v, 0.0) for v in told.violations), told.losses[0])


@final
class Climber(Strategy):
    """Draws around the best vector so far; a better one widens the step, a batch without one narrows it."""

    def __init__(self, problem: Problem, population: int) -> None:
        self._problem = problem
        self._population = population
        self._best: tuple[tuple[bool, float, float], Vector] | None = None
        self._scale = 1.0
        self._batch = 0

    def propose(self) -> Matrix:
        """A pure function of the problem, the batch's number and what was learnt."""
        rng = generator(self._problem.seed, "example-climber", self._batch)
        if self._best is None:
            fresh = gaussian_vectors(self._problem, self._population, rng)
            return first_batch(self._problem, self._population, fresh) if self._batch == 0 else fresh
        noise = rng.standard_normal((self._population, self._problem.dim))
        return reflect(self._best[1] + self._scale * self._problem.spread * noise)

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Keep the best; failures alone teach nothing."""
        self._batch += 1
        best = min(results, key=_rank)
        if best.losses is not None and (self._best is None or _rank(best) < self._best[0]):
            self._best = (_rank(best), best.vector.copy())
            self._scale = min(2.0, 1.3 * self._scale)
        else:
            self._scale = max(0.05, 0.8 * self._scale)

    def stop(self) -> str | None:
        """Never: the budget ends the search."""
        return None

    def mean(self) -> Vector | None:
        """The vector that is drawn around."""
        return None if self._best is None else self._best[1]


def climber(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """The entry point: a factory `(problem, options) -> Optimizer`.

    Raises:
        ConfigError: for unknown options, then for several objectives.
    """
    values = read_options("example-climber", options, OPTIONS)
    require_one_objective("example-climber", problem)
    return AskTell(problem, Climber(problem, **values))
