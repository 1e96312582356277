"""A path through the layers of several parents: which layer runs at each step, and how much it adds.

A hop runs one layer on the residual stream. What its attention and its feed-forward network each add to the stream is
multiplied by the hop's gain. For pre-norm blocks this is the same family as the input scales of Akiba et al. 2025: with
the cumulative product c of the scales up to a hop, its gain is 1 / c, up to the epsilon of the norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evomerge.errors import RecipeError

MAX_HOPS: Final = 1024
"""A longer path is refused: every hop costs memory for its cache and time for every token."""


def _invalid(what: str, got: str, allowed: str) -> RecipeError:
    return RecipeError(what, got=got, allowed=allowed, fix="correct the path of the recipe.")


@dataclass(frozen=True, order=True)
class Hop:
    """One step of a path.

    Attributes:
        layer: 0-based layer that runs.
        parent: whose layer it is; None for the layer that the recipe's rules merge.
        gain: what attention and mlp each add to the residual stream is multiplied by it; any finite number.
    """

    layer: int
    parent: str | None = None
    gain: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise _invalid("A hop names no layer.", repr(self.layer), "a whole number >= 0")
        if not math.isfinite(self.gain):
            raise _invalid("The gain of a hop is not finite.", repr(self.gain), "a finite number")
        object.__setattr__(self, "gain", float(self.gain) + 0.0)


Hops = tuple[Hop, ...]


def check_hops(hops: Sequence[Hop], parents: Sequence[str]) -> None:
    """Refuse a path that is no path, whatever the architecture.

    Args:
        hops: the path.
        parents: names of the recipe's parents.

    Raises:
        RecipeError: when it is empty, longer than `MAX_HOPS`, or names a parent that the recipe does not have.
    """
    if not hops:
        raise _invalid("A path has no hops.", "an empty path", "at least one hop; leave `path` out for the plain stack")
    if len(hops) > MAX_HOPS:
        raise _invalid("A path is too long.", f"{len(hops)} hops", f"at most {MAX_HOPS} hops")
    for k, hop in enumerate(hops):
        if hop.parent is not None and hop.parent not in parents:
            raise _invalid("A hop names an unknown parent.", f"hop {k}: {hop.parent!r}", ", ".join(parents))


def check_layers(hops: Sequence[Hop], n_layers: int) -> None:
    """Refuse a path through layers that the architecture does not have.

    Raises:
        RecipeError: for the first such hop.
    """
    for k, hop in enumerate(hops):
        if hop.layer >= n_layers:
            raise _invalid(
                "A hop names a layer that the parents do not have.",
                f"hop {k}: layer {hop.layer}",
                f"layers 0 to {n_layers - 1}",
            )


def plain_path(n_layers: int, parent: str | None = None) -> Hops:
    """Every layer once, in order, with gain 1: the model itself."""
    return tuple(Hop(layer, parent) for layer in range(n_layers))


def gains_of_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Branch gains of per-hop input scales: 1 / cumulative product (see the module docstring).

    Args:
        scales: the factor on the hidden state before each hop; positive.

    Raises:
        RecipeError: for a scale that is not a positive finite number, or a product that leaves the range of floats.
    """
    gains, product = [], 1.0
    for k, scale in enumerate(scales):
        if not (math.isfinite(scale) and scale > 0):
            raise _invalid("An input scale cannot be a gain.", f"hop {k}: {scale!r}", "positive finite numbers")
        product *= scale
        if not (product > 0 and math.isfinite(product) and math.isfinite(1 / product)):
            raise _invalid("Input scales multiply to no usable number.", f"{product!r} at hop {k}", "a finite product")
        gains.append(1 / product)
    return tuple(gains)
