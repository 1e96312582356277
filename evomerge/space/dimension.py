"""The contract of one gene in [0, 1] and the values it stands for.

Every dimension is *quantised* (its values are finitely many), *total* (every gene in [0, 1] decodes) and *invertible*:
`decode(encode(v)) == v` for each of its values, and `encode(decode(x)) == quantise(x)` for each gene.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from evomerge.errors import SpaceError
from evomerge.types import GeneKind

Value = float | int | bool | str


def dimension_problem(name: str, what: str, got: object, allowed: str) -> SpaceError:
    """The error of one dimension; to be raised."""
    fix = "correct this dimension of the search space."
    return SpaceError(f"The dimension {name!r} {what}", got=str(got), allowed=allowed, fix=fix)


class Dimension(ABC):
    """One gene. Immutable; equal dimensions decode alike.

    Attributes:
        name: unique in its space.
    """

    name: str

    @property
    @abstractmethod
    def n_values(self) -> int:
        """How many values there are, at least 2."""

    @property
    @abstractmethod
    def kind(self) -> GeneKind:
        """What the gene stands for; for optimizers that treat choices as choices."""

    @property
    @abstractmethod
    def start_value(self) -> Value:
        """The value that search starts from."""

    @property
    @abstractmethod
    def gene_spread(self) -> float:
        """Initial standard deviation of the gene, > 0, in units of the gene."""

    @abstractmethod
    def index_of(self, value: Value) -> int:
        """The index of `value`.

        Raises:
            SpaceError: when it is none of the values.
        """

    @abstractmethod
    def value_at(self, index: int) -> Value:
        """The value of an index in `[0, n_values)`."""

    @abstractmethod
    def index_at(self, gene: float) -> int:
        """The index that a gene in [0, 1] stands for."""

    @abstractmethod
    def gene_at(self, index: int) -> float:
        """The gene that stands for an index."""

    @property
    @abstractmethod
    def gene_step(self) -> float:
        """Distance between the genes of neighbouring values."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """Everything that decides what genes mean, as JSON; enters the space's digest."""


def decode(dimension: Dimension, gene: float) -> Value:
    """The value of a gene.

    Raises:
        SpaceError: for a gene outside [0, 1] or NaN.
    """
    if not 0.0 <= gene <= 1.0:
        raise dimension_problem(dimension.name, "was given an illegal gene.", gene, "a gene in [0, 1]")
    return dimension.value_at(dimension.index_at(gene))


def encode(dimension: Dimension, value: Value) -> float:
    """The gene of a value.

    Raises:
        SpaceError: when it is none of the dimension's values.
    """
    return dimension.gene_at(dimension.index_of(value))


def holds(dimension: Dimension, value: Value) -> bool:
    """Whether `value` is one of the dimension's values, exactly."""
    try:
        dimension.index_of(value)
    except SpaceError:
        return False
    return True


def quantise(dimension: Dimension, gene: float) -> float:
    """The gene that stands for the same value as `gene`; idempotent.

    Raises:
        SpaceError: for a gene outside [0, 1] or NaN.
    """
    return encode(dimension, decode(dimension, gene))
