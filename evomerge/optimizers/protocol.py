"""The ask/tell protocol in one place, so that a method is only what it proposes and how it learns.

`AskTell` is the optimizer that the search loop sees; the `Strategy` inside knows nothing of call order, shapes, or
read-only arrays. Notation: `d` genes, `n` vectors in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Optimizer, Problem, Stream, Told
from evomerge.optimizers.stream import OneByOne, StreamStrategy, check_told, read_only
from evomerge.types import Vector

Matrix = npt.NDArray[np.float64]

STALE_BATCHES: Final = 25
"""After this many batches in a row without one vector that was not told before, a search is over."""

_SAME: Final = 1e-9
"""Slack in the comparison of an asked with a told gene: quantising is arithmetic on floats."""


class Strategy(ABC):
    """How a method proposes and learns; called by `AskTell` in the order `propose`, `learn`, `stop`."""

    @abstractmethod
    def propose(self) -> Matrix:
        """The next batch: shape `(n, d)` in `[0, 1]`, n >= 1; the first one holds the injected vectors exactly."""

    @abstractmethod
    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Learn from the last batch.

        Args:
            asked: what was proposed, in order.
            results: aligned; `results[i].vector` is what was evaluated, normally `asked[i]` quantised.
        """

    @abstractmethod
    def stop(self) -> str | None:
        """Why nothing more is to be gained, or None."""

    @abstractmethod
    def mean(self) -> Vector | None:
        """The centre of the search distribution, shape `(d,)` in `[0, 1]`; None where there is none."""

    def stream(self) -> StreamStrategy | None:
        """The same method without generations, which takes this fresh strategy over; None where it needs them."""
        return None


@final
class AskTell(Optimizer):
    """Holds a strategy to the contract of `Optimizer`.

    Args:
        problem: what is optimised.
        strategy: built for the same problem.
    """

    def __init__(self, problem: Problem, strategy: Strategy) -> None:
        self._problem = problem
        self._strategy = strategy
        self._asked: tuple[Vector, ...] | None = None
        self._seen: set[bytes] = set()
        self._stale = 0

    def ask(self) -> tuple[Vector, ...]:
        """See `Optimizer.ask`."""
        if self._asked is not None:
            raise RuntimeError("ask() was called twice without a tell() between")
        self._asked = tuple(read_only(row) for row in self._strategy.propose())
        return self._asked

    def tell(self, results: Sequence[Told]) -> None:
        """See `Optimizer.tell`."""
        if self._asked is None:
            raise RuntimeError("tell() was called, but no batch is out")
        self._check(results, len(self._asked))
        self._strategy.learn(self._asked, results)
        self._count_stale(results)
        self._asked = None

    def should_stop(self) -> str | None:
        """See `Optimizer.should_stop`; also stops a search that only repeats itself."""
        if self._stale >= STALE_BATCHES:
            return f"the last {STALE_BATCHES} batches held only candidates that were known"
        return self._strategy.stop()

    def mean(self) -> Vector | None:
        """See `Optimizer.mean`."""
        centre = self._strategy.mean()
        return None if centre is None else read_only(centre)

    def stream(self) -> Stream | None:
        """See `Optimizer.stream`."""
        if self._asked is not None or self._seen:
            raise RuntimeError("stream() was called, but a batch was asked before")
        strategy = self._strategy.stream()
        return None if strategy is None else OneByOne(self._problem, strategy)

    def _check(self, results: Sequence[Told], n_asked: int) -> None:
        if len(results) != n_asked:
            raise ValueError(f"{n_asked} vectors were asked, but {len(results)} results were told")
        for i, told in enumerate(results):
            check_told(self._problem, told, f"result {i}")

    def _count_stale(self, results: Sequence[Told]) -> None:
        keys = {told.vector.tobytes() for told in results}
        self._stale = 0 if keys - self._seen else self._stale + 1
        self._seen |= keys


def own_sample(problem: Problem, asked: Vector, told: Told) -> Vector:
    """`asked` when the evaluated genes are that vector quantised, else what was evaluated; shape `(d,)`.

    A distribution learns from its own samples: on the grid they lose their spread long before the end. Foreign genes
    come with a history that another numeric library recorded.
    """
    same = np.all(np.abs(asked - told.vector) <= problem.step / 2 + _SAME)
    return asked if same else told.vector


def gaussian_vectors(problem: Problem, n: int, rng: np.random.Generator, scale: float = 1.0) -> Matrix:
    """`n` draws around `problem.start` with `scale * problem.spread`, reflected into `[0, 1]`; shape `(n, d)`."""
    noise = rng.standard_normal((n, problem.dim))
    return reflect(problem.start + scale * problem.spread * noise)


def reflect(values: Matrix) -> Matrix:
    """Fold any real number into `[0, 1]` by mirrors at 0 and 1; the identity inside."""
    inside: Matrix = 1.0 - np.abs(np.mod(values, 2.0) - 1.0)
    # 1 - |x - 1| rounds; a vector that needs no folding must come back exactly as it is
    return np.where((values >= 0) & (values <= 1), values, inside)


def first_batch(problem: Problem, population: int, fresh: Matrix) -> Matrix:
    """The injected vectors, then as many rows of `fresh` as `n_fresh` says; shape `(n, d)`."""
    injected = np.array(problem.injected, dtype=np.float64).reshape(-1, problem.dim)
    return np.vstack([injected, fresh[: n_fresh(problem, population)]])


def n_fresh(problem: Problem, population: int) -> int:
    """How many vectors of its own a method adds to the injected ones: fills its population, at least half of it.

    Half, because a first generation of injected points alone says little about the surroundings of the start.
    """
    return max(population - len(problem.injected), (population + 1) // 2)
