"""Slots: all layers of all sources in sequence, several times over, each on or off (Akiba et al. 2025, 3.2)."""

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
class Slots(Genotype):
    """One gate per slot; the slots that are on run in order.

    The fixed ends stand outside the slots: A's first layer, the slots that are on, A's last layer.

    Attributes:
        ground: sources and limits.
        repeats: how often the sequence of all layers is laid out, >= 1.
    """

    ground: Ground
    repeats: int

    @cached_property
    def _slots(self) -> tuple[Step, ...]:
        many = self.repeats > 1
        return tuple(
            Step(source, layer, f"{source}.layer{layer}" + (f".round{r + 1}" if many else ""))
            for r in range(self.repeats)
            for source in self.ground.sources
            for layer in range(self.ground.n_layers)
        )

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Genotype.genes`."""
        per_round = len(self.ground.sources) * self.ground.n_layers
        found = []
        for i, (source, layer, place) in enumerate(self._slots):
            start = i < per_round and source == self.ground.first and layer in self.ground.inner
            name = f"slot.{place}"
            found.append(PathGene(Gene(name, "slot", source, f"layer{layer}", ""), Gate(name, start)))
        return tuple(found)

    @property
    def places(self) -> tuple[StepPlace, ...]:
        """See `Genotype.places`."""
        return (*(StepPlace(s.place, s.source, f"layer{s.layer}") for s in self._slots), *self.ground.end_places)

    def steps(self, values: Mapping[str, Value]) -> tuple[Step, ...]:
        """See `Genotype.steps`; slots that come too late for `max_hops` are ignored, as is a path without any."""
        return self.ground.with_ends([slot for slot in self._slots if values[f"slot.{slot.place}"]])

    def encode(self, wanted: Sequence[Wanted]) -> dict[str, Value] | None:
        """See `Genotype.encode`; each hop takes the earliest slot that is left."""
        inside = self.ground.wanted_inside(wanted)
        if inside is None:
            return None
        values: dict[str, Value] = {}
        k = 0
        for slot in self._slots:
            on = k < len(inside) and slot.source in inside[k].sources and slot.layer == inside[k].layer
            values[f"slot.{slot.place}"] = on
            k += on
        return values if k == len(inside) else None

    def describe(self) -> Mapping[str, Any]:
        """See `Genotype.describe`."""
        return {"genotype": "slots", "repeats": self.repeats}
