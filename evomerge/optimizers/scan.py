"""Scan: every combination of the integers and choices once, real genes at their start; learns nothing.

Combinations are numbered like the digits of a counter, the last gene fastest. When the budget holds them all they are
asked in that order, so that neighbours in a batch share most of their genes. When it does not, every stride-th is
asked, round and round, the stride being near a golden section of their number and coprime to it: wherever the
budget ends, the combinations asked are spread evenly over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.optimizers.genes import Genes
from evomerge.optimizers.options import Option, read_options
from evomerge.optimizers.protocol import AskTell, Matrix, Strategy
from evomerge.optimizers.stream import QueueStream, StreamStrategy
from evomerge.types import Vector

MOST_COMBINATIONS: Final = 100_000
"""More than this is no scan but a search."""

OPTIONS: Final = {"population": Option(16, 1, 100_000, "combinations per batch")}

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


def stride(n: int) -> int:
    """The number coprime to `n` that is nearest to its golden section: steps of it spread evenly over `range(n)`."""
    wanted = max(1, round(n * _GOLDEN))
    near = sorted(range(1, n + 1), key=lambda s: abs(s - wanted)) if n < 100 else _around(wanted, n)
    return next(s for s in near if math.gcd(s, n) == 1)


def _around(wanted: int, n: int) -> list[int]:
    """Candidates around `wanted`; among so many neighbours of a number below 100,000 one is always coprime to it."""
    return sorted(range(max(1, wanted - 40), min(n, wanted + 40)), key=lambda s: abs(s - wanted))


@final
class ScanStrategy(Strategy):
    """Asks the injected vectors, then all combinations; see the module docstring.

    Args:
        problem: what is optimised.
        population: combinations per batch.
    """

    def __init__(self, problem: Problem, population: int) -> None:
        self._problem = problem
        self._population = population
        self._genes = Genes.of(problem)
        self._radix = self._genes.n_values[self._genes.discrete]
        self._n = int(np.prod(self._radix))
        fits = self._n + len(problem.injected) <= problem.budget
        self._stride = 1 if fits else stride(self._n)
        self._asked = 0
        self._begun = False

    def propose(self) -> Matrix:
        """The next combinations; the first batch begins with the injected vectors."""
        places = np.arange(self._asked, min(self._asked + self._population, self._n))
        rows = self._vectors(places * self._stride % self._n)
        injected = () if self._begun else self._problem.injected
        self._begun = True
        self._asked += len(places)
        return np.vstack([*injected, rows])

    def learn(self, asked: Sequence[Vector], results: Sequence[Told]) -> None:
        """Nothing."""

    def stop(self) -> str | None:
        """When every combination was asked."""
        return f"all {self._n} combinations were asked" if self._asked >= self._n else None

    def mean(self) -> Vector | None:
        """None: a scan has no centre."""
        return None

    def stream(self) -> StreamStrategy | None:
        """The same vectors in the same order."""
        return QueueStream(self, self._population)

    def _vectors(self, numbers: npt.NDArray[np.signedinteger]) -> Matrix:
        digits = np.stack(np.unravel_index(numbers, tuple(self._radix.tolist())), axis=1)
        vectors = np.tile(self._problem.start, (len(numbers), 1))
        vectors[:, self._genes.discrete] = self._genes.centres(digits, self._genes.discrete)
        return vectors


def scan(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """All combinations of the discrete genes, any number of objectives.

    Raises:
        ConfigError: for a space without a discrete gene, then for one with too many combinations, then for an option
            that is unknown or out of range.
    """
    genes = Genes.of(problem)
    if not genes.mixed:
        raise ConfigError(
            "The optimizer 'scan' has nothing to go through.",
            got=f"a space of {problem.dim} real genes",
            allowed="a space with at least one integer, choice or gate",
            fix="set optimizer.name to auto, or search a space with discrete genes, such as repeat windows.",
        )
    n = math.prod(int(k) for k in genes.n_values[genes.discrete])
    if n > MOST_COMBINATIONS:
        raise ConfigError(
            "The optimizer 'scan' would have to go through too many combinations.",
            got=f"{n:.3g} combinations of {len(genes.discrete)} discrete genes",
            allowed=f"at most {MOST_COMBINATIONS} combinations",
            fix="narrow the space (fewer windows, a smaller reach), or set optimizer.name to auto.",
        )
    return AskTell(problem, ScanStrategy(problem, **read_options("scan", options, OPTIONS)))
