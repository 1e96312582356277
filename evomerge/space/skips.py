"""Skips: one model's plain stack, each layer of it switched on or off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from evomerge.space.base import Gene
from evomerge.space.dimension import Value
from evomerge.space.dimensions import Gate
from evomerge.space.steps import Genotype, Ground, PathGene, Step, StepPlace, Wanted


@final
@dataclass(frozen=True)
class Skips(Genotype):
    """One gate per layer of A that is not a fixed end; when all are off, A's plain stack runs.

    Attributes:
        ground: sources and limits.
    """

    ground: Ground

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Genotype.genes`."""
        names = ((f"run.layer{layer}", f"layer{layer}") for layer in self.ground.inner)
        return tuple(PathGene(Gene(n, "run", self.ground.first, depth, ""), Gate(n, True)) for n, depth in names)

    @property
    def places(self) -> tuple[StepPlace, ...]:
        """See `Genotype.places`."""
        inner = (StepPlace(f"layer{i}", self.ground.first, f"layer{i}") for i in self.ground.inner)
        return (*inner, *self.ground.end_places)

    def steps(self, values: Mapping[str, Value]) -> tuple[Step, ...]:
        """See `Genotype.steps`."""
        on = [Step(self.ground.first, i, f"layer{i}") for i in self.ground.inner if values[f"run.layer{i}"]]
        return self.ground.with_ends(on)

    def encode(self, wanted: Sequence[Wanted]) -> dict[str, Value] | None:
        """See `Genotype.encode`."""
        inside = self.ground.wanted_inside(wanted)
        if inside is None or not all(self.ground.first in w.sources for w in inside):
            return None
        layers = [w.layer for w in inside]
        if layers != sorted(set(layers) & set(self.ground.inner)):
            return None
        return {f"run.layer{i}": i in layers for i in self.ground.inner}

    def describe(self) -> Mapping[str, Any]:
        """See `Genotype.describe`."""
        return {"genotype": "skips"}
