"""The arithmetic of estimators that rest on the design: a random sample is expanded to what was not asked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from evomerge.irt.responses import Bools, Floats

PRIOR_ANSWERS = 3.0
"""How many answers' weight the calibration models' variance has against the sample's own."""


class Sampled(NamedTuple):
    """The part of a functional that was not asked on purpose.

    Attributes:
        value: shape `(m,)`.
        variance: shape `(m,)`.
        freedom: degrees of freedom of the variance.
    """

    value: Floats
    variance: Floats
    freedom: float

    def widened(self) -> Floats:
        """Shape `(m,)`: the variance for which a normal 90 % interval is as wide as Student's."""
        wide: Floats = self.variance * float(stdtrit(self.freedom, 0.95) / ndtri(0.95)) ** 2
        return wide


def expand(
    answers: Floats,
    chosen: Bools,
    inclusion: Floats,
    weights: Floats,
    *,
    centre: float,
    variance: float,
    between: float,
) -> Sampled:
    """Estimates `sum_i weights_i y_i` over a group of items from a random sample of them.

    The difference form `mu W + sum_s w_i / pi_i (y_i - mu)` with `W` the sum of the weights and `mu` the mean of the
    sample weighted by `|w_i| / pi_i`: with equal weights the sample mean times W, with weights of one sign the ratio
    (Hajek) estimator, whose bias vanishes where weights are equal or 0 (Sarndal, Swensson and Wretman 1992, ch. 5).
    `s^2` is drawn to the given variance, so that a sample of equal answers does not claim to be certain.

    Args:
        answers: shape `(m, g)`, anything where not chosen.
        chosen: shape `(g,)`: which items of the group were asked.
        inclusion: shape `(g,)`.
        weights: shape `(g,)`.
        centre: expected answer where none of the chosen items has a weight.
        variance: expected variance of an answer around the centre.
        between: expected variance of a model's mean answer in this group, for where no answer tells.
    """
    m, total = len(answers), float(weights.sum())
    r = int(chosen.sum())
    if r == chosen.size:
        return Sampled(answers @ weights, np.zeros(m), PRIOR_ANSWERS)
    expanded = weights[chosen] / inclusion[chosen]
    size = np.abs(expanded)
    if r == 0 or size.sum() == 0:
        everything = total**2 * between + float((weights**2).sum()) * variance
        return Sampled(np.full(m, centre * total), np.full(m, everything), PRIOR_ANSWERS)
    sample = answers[:, chosen]
    mu = sample @ size / size.sum()
    residual = sample - mu[:, None]
    value = mu * total + residual @ expanded
    freedom = r - 1 + PRIOR_ANSWERS
    spread = (residual**2) @ size**2 / (size**2).sum()
    s2 = (r * spread + PRIOR_ANSWERS * variance) / freedom
    return Sampled(value, s2 * _leverage(chosen, inclusion, weights), max(r - 1.0, PRIOR_ANSWERS))


def _leverage(chosen: Bools, inclusion: Floats, weights: Floats) -> float:
    """Variance of the expansion per unit variance of the answers.

    Weights of one sign: `V^2 sum_s v^2 / (sum_s v)^2 + sum_rest w^2` with `v = |w| / pi` and V the sum of the weights
    that were not asked. For a simple random sample and equal weights that is the textbook's with its finite-population
    correction, and it is 0 where all that counts was asked. Else the design's own `sum_s (1 - pi) (w / pi)^2`.
    """
    expanded = weights[chosen] / inclusion[chosen]
    if np.any(weights > 0) and np.any(weights < 0):
        return float(((1 - inclusion[chosen]) * expanded**2).sum())
    left = weights[~chosen]
    mean = float((expanded**2).sum() / expanded.sum() ** 2)
    return float(left.sum() ** 2 * mean + (left**2).sum())
