"""What a path space says before it is known which models it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evomerge.recipe.path import MAX_HOPS
from evomerge.space.dimensions import Real
from evomerge.space.free import Free
from evomerge.space.gains import Gains, NoGains, PlaceGains, PlaceScales, TransitionScales
from evomerge.space.skips import Skips
from evomerge.space.slots import Slots
from evomerge.space.steps import MERGED, Genotype, Ground
from evomerge.space.windows import Windows

GenotypeName = Literal["slots", "windows", "skips", "free"]
GainsName = Literal["none", "gains", "place scales", "transition scales"]


@dataclass(frozen=True)
class PathPlan:
    """A path space over models that are still to be named.

    Attributes:
        genotype: how genes choose layers.
        sources: whose layers run, in order; None for the merge of an earlier stage, if there is one, and all models.
        embeddings: the source A that gives what stands outside the layers; None for the first one.
        fixed_ends: whether A's first and last layer are mandated.
        max_hops: no path is longer.
        repeats: of slots.
        windows: how many there are.
        max_times: of windows.
        extra: of windows: whose layers the runs behind the first take; None for A's.
        length: of free paths; None for as many steps as layers.
        reach: of free paths.
        gains: how genes say what hops add.
        range: of gains or scales; None without them.
    """

    genotype: GenotypeName
    sources: tuple[str, ...] | None = None
    embeddings: str | None = None
    fixed_ends: bool = False
    max_hops: int = MAX_HOPS
    repeats: int = 1
    windows: int = 1
    max_times: int = 2
    extra: str | None = None
    length: int | None = None
    reach: int | None = None
    gains: GainsName = "none"
    range: Real | None = None

    def sources_of(self, models: tuple[str, ...], with_merged: bool) -> tuple[str, ...]:
        """The sources when these are the models, and there is a merge or not; one that is named is always a source."""
        if self.sources is not None:
            return self.sources
        return (MERGED, *models) if with_merged or MERGED in (self.embeddings, self.extra) else models

    def ground(self, sources: tuple[str, ...], n_layers: int) -> Ground:
        """What the genotype stands on."""
        return Ground(sources, self.embeddings or sources[0], n_layers, self.fixed_ends, self.max_hops)

    def genotype_on(self, ground: Ground) -> Genotype:
        """The genotype."""
        if self.genotype == "slots":
            return Slots(ground, self.repeats)
        if self.genotype == "windows":
            return Windows(ground, self.windows, self.max_times, self.extra or ground.first)
        if self.genotype == "skips":
            return Skips(ground)
        return Free(ground, self.length or ground.n_layers, self.reach)

    def gains_of(self, genotype: Genotype, ground: Ground) -> Gains:
        """The gains over the genotype's places."""
        if self.range is None or self.gains == "none":
            return NoGains()
        if self.gains == "gains":
            return PlaceGains(genotype.places, self.range)
        if self.gains == "place scales":
            return PlaceScales(genotype.places, self.range)
        sources = (ground.first,) if self.genotype == "skips" else ground.sources
        layers = tuple((source, layer) for source in sources for layer in range(ground.n_layers))
        return TransitionScales(layers, self.range)

    def describe(self) -> dict[str, Any]:
        """For digests: what dimensions do not say."""
        return {"fixed_ends": self.fixed_ends, "max_hops": self.max_hops, "gains": self.gains}
