"""A random order in which uncertain items come early: sampling with probability proportional to a size.

The items that separate candidates are those that some of them get right and others wrong. Asking only these, always
the same, lets a search learn them by heart; asking at random wastes most questions on what all candidates know.
Drawing items at random with chances that grow with their uncertainty does neither, needs no trusted slopes, and every
item keeps a known chance, which design-based estimators need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Bools, Floats, Indices

LEAST_SIZE = 0.02
"""No item's size is below this share of the mean size: what everybody knew may be forgotten by a merge."""

POWER = 2.0
"""Of the variance. 1/2 is optimal for an unbiased mean (Neyman 1934); where a model fills in what was not asked, more
is better: measured on sibling merges of the toy zoo, see `docs/benchmarks.md`."""


@dataclass(frozen=True)
class WeightedDesign:
    """A nested order of questions, asked from the front.

    Attributes:
        order: shape `(n,)`, a permutation of the items.
        size: shape `(n,)`, positive; the chance of an item to be early grows with it.
        first: how many items at the front stand there for certain.
    """

    order: Indices
    size: Floats
    first: int = 0

    def asked(self, k: int) -> Bools:
        """Shape `(n,)`: the items of the first k questions."""
        mask = np.zeros(self.order.size, dtype=np.bool_)
        mask[self.order[:k]] = True
        return mask

    def inclusion(self, k: int) -> Floats:
        """Shape `(n,)`: the chance of each item to be among the first k (Rosén 1997: k times its share, up to 1)."""
        certain = np.zeros(self.order.size, dtype=np.bool_)
        certain[self.order[: min(k, self.first)]] = True
        chance = inclusion_probabilities(np.where(certain, 0.0, self.size), max(0, k - self.first))
        return np.where(certain, 1.0, chance)


def inclusion_probabilities(size: Floats, k: int) -> Floats:
    """Chances proportional to size that sum to k; those that would be above 1 are 1, the others share the rest.

    Args:
        size: shape `(n,)`, not negative; items of size 0 are never drawn.
        k: how many are drawn.
    """
    chance = np.zeros(size.size)
    certain = np.zeros(size.size, dtype=np.bool_)
    for _ in range(size.size):
        rest = ~certain & (size > 0)
        left = k - int(certain.sum())
        if left <= 0 or not rest.any():
            break
        chance[rest] = size[rest] * (left / size[rest].sum())
        over = rest & (chance >= 1)
        if not over.any():
            break
        certain |= over
    chance[certain] = 1.0
    return np.minimum(chance, 1.0)


def weighted_order(size: Floats, rng: np.random.Generator) -> Indices:
    """Sequential Poisson sampling (Ohlsson 1998): items in the order of `u / size` with uniform u.

    Args:
        size: shape `(n,)`, positive.
        rng: source of the draw; one number per item, whatever the sizes.
    """
    draws = rng.random(size.size)
    order: Indices = np.argsort(draws / size, kind="stable")
    return order


def sizes_of(variance: Floats, power: float = POWER) -> Floats:
    """Sizes for `weighted_order`, shape `(n,)`, mean about 1.

    Args:
        variance: shape `(n,)`, of an answer among the candidates, not negative.
        power: how much more often uncertain items are asked.
    """
    size = variance**power
    mean = size.mean() if size.size else 0.0
    if not mean > 0:
        return np.ones(size.size)
    scaled: Floats = np.maximum(size / mean, LEAST_SIZE)
    return scaled


def uncertainty(bank: ItemBank, theta: Floats) -> Floats:
    """Shape `(n,)`: the variance of an answer, averaged over abilities, in units of the largest possible one.

    Slopes play no part in it: with the few models of a search they are mostly noise. For logistic items it is `4 p (1 -
    p)`, for normal ones the residual variance over its mean.

    Args:
        bank: n items.
        theta: shape `(k, D)`.
    """
    variance: Floats = bank.variance(np.atleast_2d(theta)).mean(axis=0)
    if bank.link == "logistic":
        return 4.0 * variance
    mean = variance.mean()
    return variance / mean if mean > 0 else np.ones(variance.size)
