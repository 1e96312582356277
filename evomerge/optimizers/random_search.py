"""Random search: the baseline that every other method must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np

from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.optimizers.options import Option, read_options
from evomerge.optimizers.protocol import AskTell, Matrix, Strategy
from evomerge.optimizers.stream import QueueStream, StreamStrategy
from evomerge.seeds import generator
from evomerge.types import Vector

OPTIONS: Final = {"population": Option(16, 1, 100_000, "vectors per batch")}


@final
class RandomStrategy(Strategy):
    """Uniform draws from the cube, after the injected vectors; learns nothing.

    Args:
        problem: what is optimised.
        population: vectors per batch.
    """

    def __init__(self, problem: Problem, population: int) -> None:
        self._problem = problem
        self._population = population
        self._batch = 0

    def propose(self) -> Matrix:
        """Batch k is a pure function of (seed, k)."""
        rng = generator(self._problem.seed, "random", self._batch)
        injected = self._problem.injected if self._batch == 0 else ()
        n = max(self._population - len(injected), 0 if injected else 1)
        return np.vstack([*injected, rng.random((n, self._problem.dim))])

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Nothing but the batch number advances."""
        self._batch += 1

    def stop(self) -> str | None:
        """Never."""
        return None

    def mean(self) -> Vector | None:
        """None: a uniform distribution has no centre worth scoring."""
        return None

    def stream(self) -> StreamStrategy | None:
        """The same vectors in the same order."""
        return QueueStream(self, self._population)


def random_search(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """Random search with the options of `OPTIONS`.

    Raises:
        ConfigError: for an option that is unknown or out of range.
    """
    return AskTell(problem, RandomStrategy(problem, **read_options("random", options, OPTIONS)))
