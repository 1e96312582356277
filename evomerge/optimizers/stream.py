"""Optimizers without generations: the protocol checks in one place, and the simplest of the strategies.

`OneByOne` is the stream that the search loop sees; the `StreamStrategy` inside is what a method makes of results that
come in any order. A *cohort* is as many results as a method learns from at a time, whatever distribution their vectors
were drawn from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Problem, Stream, Told
from evomerge.types import Vector

STALE_COHORTS: Final = 25
"""After so many cohorts without one vector that was not told before, a search is over."""


class Batches(Protocol):
    """A generational method that learns nothing (`random`, `scan`)."""

    def propose(self) -> npt.NDArray[np.float64]:
        """The next batch, shape `(n, d)`."""

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """The batch is over."""

    def stop(self) -> str | None:
        """Why there is no further batch, or None."""


class StreamStrategy(ABC):
    """How a method proposes one vector at a time, and learns from one result at a time."""

    @property
    @abstractmethod
    def population(self) -> int:
        """See `Stream.population`."""

    @abstractmethod
    def propose(self) -> Vector:
        """The next vector, shape `(d,)` in `[0, 1]`; the first ones are the injected vectors, exactly and in order."""

    @abstractmethod
    def learn(self, number: int, asked: Vector, told: Told) -> None:
        """Learn from one result.

        Args:
            number: of the proposal, from 0.
            asked: what was proposed.
            told: what came of it; `told.vector` is normally `asked` quantised.
        """

    @abstractmethod
    def stop(self) -> str | None:
        """Why nothing more is to be gained, or None."""

    @abstractmethod
    def mean(self) -> Vector | None:
        """See `protocol.Strategy.mean`."""


def read_only(values: npt.NDArray[np.float64]) -> Vector:
    """A fresh read-only copy of `values` with every entry in `[0, 1]`."""
    copy: Vector = np.clip(np.array(values, dtype=np.float64), 0.0, 1.0)
    copy.setflags(write=False)
    return copy


def check_told(problem: Problem, told: Told, what: str) -> None:
    """Refuse a result that does not fit the problem.

    Args:
        problem: what is optimised.
        told: the result.
        what: it is called in the message.

    Raises:
        ValueError: for genes outside the cube, then for a wrong number of losses or violations.
    """
    if told.vector.shape != (problem.dim,) or not np.all((told.vector >= 0) & (told.vector <= 1)):
        raise ValueError(f"{what}: the vector does not lie in [0, 1]^{problem.dim}")
    if told.losses is None:
        return
    if len(told.losses) != problem.n_objectives:
        raise ValueError(f"{what}: {len(told.losses)} losses, expected {problem.n_objectives}")
    if len(told.violations) != problem.n_constraints:
        raise ValueError(f"{what}: {len(told.violations)} violations, expected {problem.n_constraints}")


@final
class OneByOne(Stream):
    """Holds a strategy to the contract of `Stream`.

    Args:
        problem: what is optimised.
        strategy: built for the same problem.
    """

    def __init__(self, problem: Problem, strategy: StreamStrategy) -> None:
        self._problem = problem
        self._strategy = strategy
        self._out: dict[int, Vector] = {}
        self._n_asked = 0
        self._seen: set[bytes] = set()
        self._stale = 0
        self._reason: str | None = None

    @property
    def population(self) -> int:
        """See `Stream.population`."""
        return self._strategy.population

    def ask(self) -> Vector:
        """See `Stream.ask`."""
        vector = read_only(self._strategy.propose())
        self._out[self._n_asked] = vector
        self._n_asked += 1
        self._notice_stop()
        return vector

    def tell(self, number: int, result: Told) -> None:
        """See `Stream.tell`."""
        if number not in self._out:
            raise RuntimeError(f"tell() was called for ask {number}, which is not out")
        check_told(self._problem, result, f"the result of ask {number}")
        self._strategy.learn(number, self._out.pop(number), result)
        key = result.vector.tobytes()
        self._stale = self._stale + 1 if key in self._seen else 0
        self._seen.add(key)
        self._notice_stop()

    def should_stop(self) -> str | None:
        """See `Stream.should_stop`."""
        return self._reason

    def mean(self) -> Vector | None:
        """See `Stream.mean`."""
        centre = self._strategy.mean()
        return None if centre is None else read_only(centre)

    def _notice_stop(self) -> None:
        """Once there is a reason it stays: results that are still under way must not take it back."""
        if self._reason is None and self._stale >= STALE_COHORTS * self.population:
            self._reason = f"the last {self._stale} results were of candidates that were known"
        self._reason = self._reason or self._strategy.stop()


@final
class QueueStream(StreamStrategy):
    """For methods that learn nothing: the vectors of their batches, one after the other.

    Args:
        strategy: whose batches; told nothing but that they are over.
        population: candidates per batch.
    """

    def __init__(self, strategy: Batches, population: int) -> None:
        self._strategy = strategy
        self._population = population
        self._queue: deque[Vector] = deque()

    @property
    def population(self) -> int:
        """Candidates per batch."""
        return self._population

    def propose(self) -> Vector:
        """The next vector of the present batch."""
        while not self._queue:
            self._queue.extend(self._strategy.propose())
            self._strategy.learn((), ())
        return self._queue.popleft()

    def learn(self, number: int, asked: Vector, told: Told) -> None:
        """Nothing."""

    def stop(self) -> str | None:
        """The strategy's reason, once its last batch was asked."""
        return None if self._queue else self._strategy.stop()

    def mean(self) -> Vector | None:
        """None."""
        return None
