"""Logistic items: the joint maximum a posteriori fit of abilities and items by L-BFGS, over a matrix with holes.

The objective is a sum over observed cells, computed in blocks of items that stay in the processor's cache. Large
matrices are computed in float32 per cell and summed in float64; parameters are always float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize
from scipy.special import expit

from evomerge.irt.priors import ItemPrior, Point, log_prior
from evomerge.irt.responses import Floats

_BLOCK_CELLS = 1 << 16
_SINGLE_FROM = 200_000  # cells; below, float64 costs nothing worth saving
_Z_MAX = 30.0  # sigma(30) is 1 to 1e-13, and exp(30) is far from overflow in float32
_CURVATURE = 0.15  # a typical p (1 - p): only scales the variables


class Optimum(NamedTuple):
    """Where the optimiser stopped."""

    point: Point
    log_posterior: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Cells:
    """The observed cells, items in rows so that blocks of items are contiguous.

    Attributes:
        answers: shape `(n, m)`, 0 where not asked.
        seen: shape `(n, m)`, 1 or 0 in the dtype of `answers`; None when nothing is missing.
    """

    answers: npt.NDArray[Any]
    seen: npt.NDArray[Any] | None

    @staticmethod
    def of(scores: Floats) -> Cells:
        """From a response matrix `(m, n)` with NaN holes."""
        kind = np.float32 if scores.size >= _SINGLE_FROM else np.float64
        missing = np.isnan(scores)
        answers = np.ascontiguousarray(np.where(missing, 0.0, scores).T, dtype=kind)
        seen = np.ascontiguousarray(~missing.T, dtype=kind) if missing.any() else None
        return Cells(answers, seen)

    def loss(self, point: Point) -> tuple[float, Point]:
        """Minus the Bernoulli (quasi-)log-likelihood, and its gradient.

        `sum log(1 + e^z) - y z` over observed cells, `z = slopes . theta + intercept`; scores inside (0, 1) make it a
        quasi-likelihood (Papke & Wooldridge 1996).
        """
        n, m = self.answers.shape
        kind = self.answers.dtype
        theta, slopes = point.theta.astype(kind), point.slopes.astype(kind)
        intercepts = point.intercepts.astype(kind)
        total = 0.0
        g_theta, g_slopes, g_intercepts = np.zeros(point.theta.shape), np.empty(slopes.shape), np.empty(n)
        step = max(1, _BLOCK_CELLS // max(1, m))
        for low in range(0, n, step):
            block = slice(low, low + step)
            y = self.answers[block]
            z = slopes[block] @ theta.T
            z += intercepts[block, None]
            np.clip(z, -_Z_MAX, _Z_MAX, out=z)
            odds = np.exp(z)
            total_odds = odds + 1
            z *= y
            loss = np.log(total_odds)
            loss -= z
            odds /= total_odds
            odds -= y
            if self.seen is not None:
                loss *= self.seen[block]
                odds *= self.seen[block]
            total += float(loss.sum(axis=1).sum(dtype=np.float64))
            g_theta += odds.T @ slopes[block]
            g_slopes[block] = odds @ theta
            g_intercepts[block] = odds.sum(axis=1)
        return total, Point(g_theta, g_slopes, g_intercepts)


def maximise(scores: Floats, prior: ItemPrior, begin: Point, *, max_iterations: int, tolerance: float) -> Optimum:
    """The joint posterior mode of abilities and logistic items.

    Args:
        scores: shape `(m, n)`, in [0, 1], NaN where not asked.
        prior: of the items.
        begin: where to start.
        max_iterations: of L-BFGS-B (Byrd et al. 1995).
        tolerance: stop when the log posterior changes relatively by less than that.
    """
    cells = Cells.of(scores)
    m, n = scores.shape
    d = prior.slope_mean.size
    seen = ~np.isnan(scores)
    scale = np.concatenate(
        [
            np.repeat(np.sqrt(1 + _CURVATURE * seen.sum(axis=1)), d),
            np.sqrt(prior.slope_sd**-2 + _CURVATURE * seen.sum(axis=0)[:, None]).ravel(),
            np.sqrt(prior.intercept_sd**-2 + _CURVATURE * seen.sum(axis=0)),
        ]
    )

    def unpack(x: Floats) -> Point:
        x = x / scale
        return Point(x[: m * d].reshape(m, d), x[m * d : (m + n) * d].reshape(n, d), x[(m + n) * d :])

    def pack(point: Point) -> Floats:
        return np.concatenate([point.theta.ravel(), point.slopes.ravel(), point.intercepts])

    def objective(x: Floats) -> tuple[float, Floats]:
        point = unpack(x)
        loss, down = cells.loss(point)
        value, up = log_prior(point, prior)
        return loss - value, (pack(down) - pack(up)) / scale

    lower = np.full(scale.size, -np.inf)
    lower[m * d : (m + n) * d : d] = 0.0
    result = scipy.optimize.minimize(
        objective,
        np.maximum(pack(begin) * scale, lower),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(lower, np.inf),
        options={
            "maxiter": max_iterations,
            "maxfun": 2 * max_iterations,
            "ftol": tolerance,
            "gtol": 1e-6,
            "maxcor": 12,
        },
    )
    return Optimum(unpack(result.x), -float(result.fun), int(result.nit), bool(result.status == 0))


def fisher_weights(scores: Floats, point: Point) -> Floats:
    """`p (1 - p)` of every observed answer, 0 elsewhere: `(m, n)`."""
    p = expit(point.theta @ point.slopes.T + point.intercepts)
    return np.where(np.isnan(scores), 0.0, p * (1 - p))
