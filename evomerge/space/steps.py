"""The contract between a path space and its genotypes: how genes choose layers, one after the other.

Notation: `A` the source that gives the embeddings, whose plain stack every search starts from; `L` layers per source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from evomerge.space.base import Gene
from evomerge.space.dimension import Dimension, Value

MERGED: Final = "merged"
"""The source whose layers the recipe's rules merge; every other source is a parent."""


class StepPlace(NamedTuple):
    """Where in a genotype a step comes from; a gain belongs to it.

    Attributes:
        name: unique in the genotype.
        source: whose layer always runs there; None where that is searched.
        depth: for reports: `layer3`, `step3`.
    """

    name: str
    source: str | None
    depth: str


class Step(NamedTuple):
    """One layer that runs.

    Attributes:
        source: whose.
        layer: which.
        place: name of the place that chose it.
    """

    source: str
    layer: int
    place: str


class Wanted(NamedTuple):
    """One hop of a path that is to be encoded.

    Attributes:
        sources: whose layer it may be; any of them makes the same model.
        layer: which.
    """

    sources: tuple[str, ...]
    layer: int


class PathGene(NamedTuple):
    """A dimension and what it governs; both have one name."""

    gene: Gene
    dimension: Dimension


@dataclass(frozen=True)
class Ground:
    """What every genotype stands on.

    Attributes:
        sources: distinct names, in order.
        first: A, one of the sources.
        n_layers: L, of every source.
        fixed_ends: whether every path begins with A's first layer and ends with its last one; then L >= 2.
        max_hops: no path is longer; at least L.
    """

    sources: tuple[str, ...]
    first: str
    n_layers: int
    fixed_ends: bool
    max_hops: int

    @property
    def inner(self) -> range:
        """A's layers that genes decide on: all, or those between the fixed ends."""
        return range(1, self.n_layers - 1) if self.fixed_ends else range(self.n_layers)

    def wanted_inside(self, wanted: Sequence[Wanted]) -> Sequence[Wanted] | None:
        """What lies between the fixed ends; None for a path with other ends, or one that is too long."""
        if not wanted or len(wanted) > self.max_hops:
            return None
        if not self.fixed_ends:
            return wanted
        (head, *inside), tail = wanted[:-1] or [wanted[0]], wanted[-1]
        begins = len(wanted) > 1 and self.first in head.sources and head.layer == 0
        return inside if begins and self.first in tail.sources and tail.layer == self.n_layers - 1 else None

    def with_ends(self, inside: Sequence[Step]) -> tuple[Step, ...]:
        """The whole path of what genes chose.

        Whatever would make it too long is left out before the last layer. When it is empty, it is A's plain stack.
        """
        if self.fixed_ends:
            head, tail = Step(self.first, 0, "first"), Step(self.first, self.n_layers - 1, "last")
            return (head, *inside[: self.max_hops - 2], tail)
        return tuple(inside[: self.max_hops]) or tuple(
            Step(self.first, layer, f"plain{layer}") for layer in range(self.n_layers)
        )

    @property
    def end_places(self) -> tuple[StepPlace, ...]:
        """The places of the fixed ends, if there are any."""
        if not self.fixed_ends:
            return ()
        return StepPlace("first", self.first, "layer0"), StepPlace("last", self.first, f"layer{self.n_layers - 1}")


class Genotype(ABC):
    """How genes choose the layers of a path. Immutable and picklable.

    `steps` is total: all values of the genes make a path that is neither empty nor longer than `max_hops`. The values
    that the dimensions start from make A's plain stack.
    """

    @property
    @abstractmethod
    def genes(self) -> tuple[PathGene, ...]:
        """The genes that choose layers; none when there is nothing to choose."""

    @property
    @abstractmethod
    def places(self) -> tuple[StepPlace, ...]:
        """Where steps may come from, in order; steps at other places always have gain 1."""

    @abstractmethod
    def steps(self, values: Mapping[str, Value]) -> tuple[Step, ...]:
        """The path of these values; only values of `genes` are looked at."""

    @abstractmethod
    def encode(self, wanted: Sequence[Wanted]) -> dict[str, Value] | None:
        """Values whose steps are the wanted hops; None when there are none."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """What the digest of a space needs beside its dimensions, as JSON."""
