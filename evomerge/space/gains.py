"""How genes say what each hop adds: gains themselves, or the input scales of Akiba et al. 2025, run as gains.

All values lie on a grid and every gain depends on the path up to its hop alone, so that paths that begin alike have
equal gains there, bit for bit, and are computed once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, final

from evomerge.recipe.path import gains_of_scales
from evomerge.space.base import Gene
from evomerge.space.dimension import Value, holds
from evomerge.space.dimensions import Real
from evomerge.space.steps import PathGene, Step, StepPlace

LIMIT: Final = 1e6
"""The cumulative product of input scales is kept between 1 / LIMIT and LIMIT; no useful model leaves them."""

DIGITS: Final = 4
"""Significant digits of gains that come from input scales."""


class Gains(ABC):
    """What the hops of a path add. Immutable and picklable; total, and 1 everywhere at the start."""

    @property
    @abstractmethod
    def genes(self) -> tuple[PathGene, ...]:
        """The genes that decide gains, in order."""

    @abstractmethod
    def of(self, steps: Sequence[Step], values: Mapping[str, Value]) -> tuple[float, ...]:
        """The gain of every step; only values of `genes` are looked at, and only those of places that are used."""

    @abstractmethod
    def encode(self, steps: Sequence[Step], gains: Sequence[float]) -> dict[str, Value] | None:
        """Values that give these steps these gains exactly; None when there are none."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """What the digest of a space needs beside its dimensions, as JSON."""


@final
@dataclass(frozen=True)
class NoGains(Gains):
    """Every gain is 1."""

    @property
    def genes(self) -> tuple[PathGene, ...]:
        """None."""
        return ()

    def of(self, steps: Sequence[Step], values: Mapping[str, Value]) -> tuple[float, ...]:
        """See `Gains.of`."""
        return (1.0,) * len(steps)

    def encode(self, steps: Sequence[Step], gains: Sequence[float]) -> dict[str, Value] | None:
        """See `Gains.encode`."""
        return {} if all(gain == 1.0 for gain in gains) else None

    def describe(self) -> Mapping[str, Any]:
        """See `Gains.describe`."""
        return {"gains": None}


def _gene(parameter: str, place: StepPlace, range_: Real) -> PathGene:
    name = f"{parameter}.{place.name}"
    return PathGene(Gene(name, parameter, place.source, place.depth, ""), replace(range_, name=name))


def _start(genes: Sequence[PathGene]) -> dict[str, Value]:
    return {g.dimension.name: g.dimension.start_value for g in genes}


@final
@dataclass(frozen=True)
class PlaceGains(Gains):
    """A gain per place of the genotype.

    Attributes:
        places: of the genotype.
        range: its grid holds 1.0, where it starts.
    """

    places: tuple[StepPlace, ...]
    range: Real

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Gains.genes`."""
        return tuple(_gene("gain", place, self.range) for place in self.places)

    def of(self, steps: Sequence[Step], values: Mapping[str, Value]) -> tuple[float, ...]:
        """See `Gains.of`."""
        return tuple(float(values.get(f"gain.{step.place}", 1.0)) for step in steps)

    def encode(self, steps: Sequence[Step], gains: Sequence[float]) -> dict[str, Value] | None:
        """See `Gains.encode`."""
        values = _start(self.genes)
        for step, gain in zip(steps, gains, strict=True):
            name = f"gain.{step.place}"
            if gain != 1.0 and (name not in values or not holds(self.range, gain)):
                return None
            if name in values:
                values[name] = gain
        return values

    def describe(self) -> Mapping[str, Any]:
        """See `Gains.describe`."""
        return {"gains": "place"}


def scaled_gains(scales: Sequence[float]) -> tuple[float, ...]:
    """Gains of input scales: 1 / cumulative product, which is kept within `LIMIT`, to `DIGITS` significant digits."""
    product, bounded = 1.0, []
    for scale in scales:
        kept = _kept(product * scale)
        bounded.append(scale if kept == product * scale else kept / product)
        product = kept
    return tuple(float(f"{gain:.{DIGITS}g}") for gain in gains_of_scales(bounded))


def _kept(product: float) -> float:
    return min(LIMIT, max(1 / LIMIT, product))


def _scale_for(gain: float, product: float, range_: Real) -> float:
    """The scale of the grid that leads from a product of scales to a gain; at the limits, one that surely does."""
    value = {LIMIT: range_.low, 1 / LIMIT: range_.high}.get(gain, 1 / (gain * product))
    x = (value - range_.low) / (range_.high - range_.low)
    return range_.value_at(range_.index_at(min(1.0, max(0.0, x))))


@final
@dataclass(frozen=True)
class PlaceScales(Gains):
    """An input scale per place of the genotype; a hop's gain is 1 / the product of the scales up to it.

    Attributes:
        places: of the genotype.
        range: linear, positive; its grid holds 1.0, where it starts.
    """

    places: tuple[StepPlace, ...]
    range: Real

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Gains.genes`."""
        return tuple(_gene("scale", place, self.range) for place in self.places)

    def of(self, steps: Sequence[Step], values: Mapping[str, Value]) -> tuple[float, ...]:
        """See `Gains.of`."""
        return scaled_gains([float(values.get(f"scale.{step.place}", 1.0)) for step in steps])

    def encode(self, steps: Sequence[Step], gains: Sequence[float]) -> dict[str, Value] | None:
        """See `Gains.encode`."""
        scales = _solved([f"scale.{step.place}" for step in steps], gains, self.range)
        values = _start(self.genes)
        if scales is None or not all(name in values or scale == 1.0 for name, scale in scales.items()):
            return None
        return values | {name: scale for name, scale in scales.items() if name in values}

    def describe(self) -> Mapping[str, Any]:
        """See `Gains.describe`."""
        return {"gains": "place scales", "limit": LIMIT, "digits": DIGITS}


def _solved(names: Sequence[str], gains: Sequence[float], range_: Real) -> dict[str, float] | None:
    """Scales of the grid whose gains are the wanted ones, by gene; None when none are found.

    They are found whenever the product of the scales stays within the limits, where every gain has one scale.

    Args:
        names: per hop, the gene of its scale; a hop without one has an empty name and scale 1.
        gains: per hop.
        range_: the grid.
    """
    found: dict[str, float] = {}
    scales: list[float] = []
    product = 1.0
    for name, gain in zip(names, gains, strict=True):
        if gain <= 0:
            return None
        scale = found.get(name, _scale_for(gain, product, range_)) if name else 1.0
        if name:
            found[name] = scale
        scales.append(scale)
        product = _kept(product * scale)
    return found if scaled_gains(scales) == tuple(gains) else None


@final
@dataclass(frozen=True)
class TransitionScales(Gains):
    """The paper's matrix W: an input scale per ordered pair of layers (Akiba et al. 2025, section 3.2).

    Going from layer i to layer j multiplies the hidden state by W[i, j]; only pairs that the path uses act. The first
    hop, which no layer comes before, has scale 1.

    Attributes:
        layers: (source, layer) of all M layers.
        range: linear, positive; its grid holds 1.0, where it starts.
    """

    layers: tuple[tuple[str, int], ...]
    range: Real

    @cached_property
    def genes(self) -> tuple[PathGene, ...]:
        """See `Gains.genes`."""
        found = []
        for before in self.layers:
            for source, layer in self.layers:
                name = _pair(before, (source, layer))
                gene = Gene(name, "scale", source, f"layer{layer}", "")
                found.append(PathGene(gene, replace(self.range, name=name)))
        return tuple(found)

    def of(self, steps: Sequence[Step], values: Mapping[str, Value]) -> tuple[float, ...]:
        """See `Gains.of`."""
        return scaled_gains([float(values[name]) if name else 1.0 for name in self._names(steps)])

    def encode(self, steps: Sequence[Step], gains: Sequence[float]) -> dict[str, Value] | None:
        """See `Gains.encode`."""
        scales = _solved(self._names(steps), gains, self.range)
        return None if scales is None else {**_start(self.genes), **scales}

    @staticmethod
    def _names(steps: Sequence[Step]) -> list[str]:
        """The gene of every hop's scale; empty for the first hop."""
        layers = [(s.source, s.layer) for s in steps]
        return ["", *(_pair(a, b) for a, b in pairwise(layers))]

    def describe(self) -> Mapping[str, Any]:
        """See `Gains.describe`."""
        return {"gains": "transition scales", "limit": LIMIT, "digits": DIGITS}


def _pair(before: tuple[str, int], after: tuple[str, int]) -> str:
    return f"scale.{before[0]}.layer{before[1]}.to.{after[0]}.layer{after[1]}"
