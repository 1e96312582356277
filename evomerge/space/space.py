"""A search space: named dimensions in order, and vectors of genes that always decode.

Notation: `d` dimensions; a vector has shape `(d,)` and entries in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from evomerge.digest import digest_json
from evomerge.errors import SpaceError, suggest
from evomerge.space.dimension import Dimension, Value, decode, encode
from evomerge.types import Digest, GeneKind, Vector


def _read_only(values: list[float]) -> Vector:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


@final
@dataclass(frozen=True)
class SearchSpace:
    """Ordered named dimensions over [0, 1]^d.

    Total: every vector in [0, 1]^d decodes. Invertible: `decode(encode(v)) == v` for legal values, and
    `encode(decode(x)) == quantise(x)`.

    Attributes:
        dimensions: at least one; names are unique.
    """

    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        names = [d.name for d in self.dimensions]
        if not names:
            raise SpaceError(
                "The search space has nothing to search.",
                got="no dimension (every parameter is fixed)",
                allowed="one dimension or more",
                fix="give at least one parameter a range, such as {low: 0, high: 1.5}.",
            )
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise SpaceError(
                "Two dimensions of the search space have one name.",
                got=", ".join(twice),
                allowed="unique names",
                fix="rename one of them.",
            )

    @property
    def dim(self) -> int:
        """Number of genes, d."""
        return len(self.dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the genes."""
        return tuple(d.name for d in self.dimensions)

    @property
    def start(self) -> Vector:
        """Shape (d,): where search starts; quantised."""
        return _read_only([encode(d, d.start_value) for d in self.dimensions])

    @property
    def spread(self) -> Vector:
        """Shape (d,): initial standard deviation per gene, > 0."""
        return _read_only([d.gene_spread for d in self.dimensions])

    @property
    def step(self) -> Vector:
        """Shape (d,): distance between the genes of neighbouring values, > 0."""
        return _read_only([d.gene_step for d in self.dimensions])

    @property
    def kinds(self) -> tuple[GeneKind, ...]:
        """What each gene stands for, in order."""
        return tuple(d.kind for d in self.dimensions)

    @property
    def digest(self) -> Digest:
        """Equal for spaces whose vectors mean the same values and start at the same place."""
        return digest_json([d.describe() for d in self.dimensions])

    def decode(self, vector: Vector) -> dict[str, Value]:
        """The values of a vector, by name, in order.

        Raises:
            SpaceError: when the shape is not (d,), or an entry is outside [0, 1] or NaN.
        """
        if vector.shape != (self.dim,):
            raise SpaceError(
                "A vector does not belong to this search space.",
                got=f"shape {vector.shape}",
                allowed=f"shape ({self.dim},)",
                fix="use vectors of this space only.",
            )
        return {d.name: decode(d, float(x)) for d, x in zip(self.dimensions, vector, strict=True)}

    def encode(self, values: Mapping[str, Value]) -> Vector:
        """The quantised vector of these values: shape (d,), read-only.

        Raises:
            SpaceError: for a name that is missing or unknown, then for a value that its dimension does not hold.
        """
        for name in sorted(values.keys() ^ set(self.names)):
            state = "is unknown" if name in values else "is missing"
            raise SpaceError(
                f"The values do not fit the search space: {name!r} {state}.",
                got=repr(name),
                allowed=suggest(name, self.names),
                fix="give exactly one value per dimension.",
            )
        return _read_only([encode(d, values[d.name]) for d in self.dimensions])

    def quantise(self, vector: Vector) -> Vector:
        """The vector that stands for the same values: shape (d,), read-only; idempotent.

        Raises:
            SpaceError: as `decode`.
        """
        return self.encode(self.decode(vector))
