"""What the genes of a mixed problem stand for: which are real, integer or choices, and their values by number.

Notation: `d` genes, `n` vectors; value k of a gene with K values fills the cell `[k / K, (k + 1) / K)`, whose centre
`(k + 1/2) / K` is the gene that methods write. An integer with two values counts as a choice: it has no order to use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Problem
from evomerge.optimizers.protocol import Matrix, gaussian_vectors
from evomerge.types import Vector

Indices = npt.NDArray[np.int64]

FIRST_CHANGES: Final = 2.0
"""Choices that a vector of a first batch has changed on the average: near the start, as real genes are.

Measured on planted paths (docs/optimizers.md): a first batch drawn uniformly says nothing about paths of ten hops.
"""


@final
@dataclass(frozen=True)
class Genes:
    """The kinds of a problem's genes, by column.

    Attributes:
        n_values: values per gene, shape `(d,)`; 0 for a real one.
        ordered: shape `(d,)`, True where values have an order that helps: integers of three values or more.
    """

    n_values: Indices
    ordered: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, problem: Problem) -> Genes:
        """The kinds of `problem`; all real where it names none."""
        kinds = problem.kinds
        n_values = np.array([0 if k.type == "real" else k.n_values for k in kinds] or [0] * problem.dim)
        ordered = np.array([k.type == "integer" and k.n_values > 2 for k in kinds] or [False] * problem.dim)
        return cls(n_values, ordered)

    @property
    def real(self) -> Indices:
        """Columns of real genes."""
        return np.flatnonzero(self.n_values == 0)

    @property
    def integer(self) -> Indices:
        """Columns of integers of three values or more."""
        return np.flatnonzero(self.ordered)

    @property
    def choice(self) -> Indices:
        """Columns of choices, gates and integers of two values."""
        return np.flatnonzero((self.n_values > 0) & ~self.ordered)

    @property
    def discrete(self) -> Indices:
        """Columns of everything that is not real."""
        return np.flatnonzero(self.n_values > 0)

    @property
    def mixed(self) -> bool:
        """True when some gene is not real."""
        return bool(np.any(self.n_values > 0))

    def values(self, vectors: Matrix, columns: Indices) -> Indices:
        """Numbers of the values in some discrete columns of `vectors`, shape `(..., len(columns))`."""
        n = self.n_values[columns]
        return np.minimum(np.floor(vectors[..., columns] * n).astype(np.int64), n - 1)

    def centres(self, values: Indices, columns: Indices) -> Matrix:
        """Genes of the values numbered `values` in discrete columns: the inverse of `values` on cell centres."""
        genes: Matrix = (values + 0.5) / self.n_values[columns]
        return genes


def mixed_vectors(problem: Problem, n: int, rng: np.random.Generator, scale: float = 1.0) -> Matrix:
    """`n` vectors around the start; shape `(n, d)`.

    Real genes and integers are normal (`gaussian_vectors`), integers moved to the centre of their cell. Of the choices,
    `FIRST_CHANGES * scale` on the average are drawn afresh and the others stay. Without a discrete gene the result
    is that of `gaussian_vectors`, bit for bit.
    """
    genes = Genes.of(problem)
    vectors = gaussian_vectors(problem, n, rng, scale)
    if not genes.mixed:
        return vectors
    integer, choice = genes.integer, genes.choice
    vectors[:, integer] = genes.centres(genes.values(vectors, integer), integer)
    if len(choice):
        vectors[:, choice] = _changed_choices(
            problem.start, genes, n, rng, min(1.0, FIRST_CHANGES * scale / len(choice))
        )
    return vectors


def _changed_choices(start: Vector, genes: Genes, n: int, rng: np.random.Generator, rate: float) -> Matrix:
    choice = genes.choice
    values = np.tile(genes.values(start, choice), (n, 1))
    fresh = rng.integers(0, genes.n_values[choice], size=values.shape)
    changed = rng.random(values.shape) < rate
    return genes.centres(np.where(changed, fresh, values), choice)
