"""Free paths: at each step any layer of any source, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final

from evomerge.space.base import Gene
from evomerge.space.dimension import Value
from evomerge.space.dimensions import Choice
from evomerge.space.steps import Genotype, Ground, PathGene, Step, StepPlace, Wanted

NONE: Final = "none"


def label(source: str, layer: int) -> str:
    """How a choice names a layer."""
    return f"{source}.{layer}"


@final
@dataclass(frozen=True)
class Free(Genotype):
    """A choice per step between none and layers; steps without a layer are left out.

    Fixed ends are the first step and, behind all others, the last one; they have no genes.

    Attributes:
        ground: sources and limits.
        length: number of steps, L <= length <= max_hops, fixed ends included.
        reach: step t chooses among the layers t - reach .. t + reach of every source; None for all layers.
    """

    ground: Ground
    length: int
    reach: int | None = None

    @property
    def _times(self) -> range:
        return range(1, self.length - 1) if self.ground.fixed_ends else range(self.length)

    def _layers(self, t: int) -> range:
        """The layers that step t may run."""
        if self.reach is None:
            return range(self.ground.n_layers)
        return range(max(0, t - self.reach), min(self.ground.n_layers, t + self.reach + 1))

    def _options(self, t: int) -> tuple[str, ...]:
        return (NONE, *(label(source, i) for i in self._layers(t) for source in self.ground.sources))

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Genotype.genes`."""
        found = []
        for t in self._times:
            start = label(self.ground.first, t) if t in self.ground.inner else NONE
            gene = Gene(f"step{t}", "step", None, f"step{t}", "")
            found.append(PathGene(gene, Choice(gene.name, self._options(t), start)))
        return tuple(found)

    @property
    def places(self) -> tuple[StepPlace, ...]:
        """See `Genotype.places`."""
        return (*(StepPlace(f"step{t}", None, f"step{t}") for t in self._times), *self.ground.end_places)

    @cached_property
    def _named(self) -> dict[str, tuple[str, int]]:
        return {label(s, i): (s, i) for s in self.ground.sources for i in range(self.ground.n_layers)}

    def steps(self, values: Mapping[str, Value]) -> tuple[Step, ...]:
        """See `Genotype.steps`; when every step is none, A's plain stack runs."""
        chosen = ((t, values[f"step{t}"]) for t in self._times)
        return self.ground.with_ends([Step(*self._named[str(v)], f"step{t}") for t, v in chosen if v != NONE])

    def encode(self, wanted: Sequence[Wanted]) -> dict[str, Value] | None:
        """See `Genotype.encode`; each hop takes the earliest step that can run it."""
        inside = self.ground.wanted_inside(wanted)
        if inside is None:
            return None
        values: dict[str, Value] = {}
        k = 0
        for t in self._times:
            source = None
            if k < len(inside) and inside[k].layer in self._layers(t):
                source = next((s for s in self.ground.sources if s in inside[k].sources), None)
            values[f"step{t}"] = NONE if source is None else label(source, inside[k].layer)
            k += source is not None
        return values if k == len(inside) else None

    def describe(self) -> Mapping[str, Any]:
        """See `Genotype.describe`."""
        return {"genotype": "free", "length": self.length, "reach": self.reach}
