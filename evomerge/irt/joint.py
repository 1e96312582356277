"""Logistic items: the joint maximum a posteriori fit of abilities and items by L-BFGS, over a matrix with holes.

The objective is a sum over observed cells, computed in blocks of items that stay in the processor's cache. Large
matrices are computed in float32 per cell and summed in float64; parameters are always float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.optimize
from scipy.special import logit

from evomerge.irt.responses import Floats

_BLOCK_CELLS = 1 << 16
_SINGLE_FROM = 200_000  # cells; below, float64 costs nothing worth saving
_Z_MAX = 30.0  # sigma(30) is 1 to 1e-13, and exp(30) is far from overflow in float32
_CURVATURE = 0.15  # a typical p (1 - p): only scales the variables


class ItemPrior(NamedTuple):
    """Normal priors of the item parameters; first-dimension slopes are truncated at 0 besides.

    Attributes:
        slope_mean: shape `(D,)`.
        slope_sd: shape `(D,)`, > 0.
        intercept_mean: scalar.
        intercept_sd: scalar, > 0.
    """

    slope_mean: Floats
    slope_sd: Floats
    intercept_mean: float
    intercept_sd: float


class Point(NamedTuple):
    """Parameters of a joint fit: `theta (m, D)`, `slopes (n, D)`, `intercepts (n,)`."""

    theta: Floats
    slopes: Floats
    intercepts: Floats


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


def log_prior(point: Point, prior: ItemPrior) -> tuple[float, Point]:
    """Log prior density up to a constant, and its gradient; abilities are standard normal."""
    t = point.theta
    a = (point.slopes - prior.slope_mean) / prior.slope_sd
    d = (point.intercepts - prior.intercept_mean) / prior.intercept_sd
    value = -0.5 * (float(np.sum(t * t)) + float(np.sum(a * a)) + float(np.sum(d * d)))
    return value, Point(-t, -a / prior.slope_sd, -d / prior.intercept_sd)


def start(scores: Floats, prior: ItemPrior) -> Point:
    """A deterministic starting point: standardised row means, item logits, and the leading residual directions."""
    seen = ~np.isnan(scores)
    n_row, n_column = seen.sum(axis=1), seen.sum(axis=0)
    filled = np.where(seen, scores, 0.0)
    overall = float(filled.sum() / max(1, seen.sum()))
    columns = (filled.sum(axis=0) + overall) / (n_column + 1)
    excess = np.where(seen, scores - columns, 0.0)
    rows = excess.sum(axis=1) / (n_row + 1)
    spread = float(rows.std())
    first = rows / spread if spread > 0 else rows
    d = prior.slope_mean.size
    theta = np.zeros((scores.shape[0], d))
    theta[:, 0] = first
    slopes = np.tile(prior.slope_mean, (scores.shape[1], 1))
    if d > 1:
        theta[:, 1:], slopes[:, 1:] = _residual_directions(excess, theta[:, 0], d - 1)
    return Point(theta, slopes, logit(np.clip(columns, 0.02, 0.98)))


def _residual_directions(excess: Floats, first: Floats, k: int) -> tuple[Floats, Floats]:
    """Leading `k` left and right singular directions of what the first ability leaves over: `(m, k)` and `(n, k)`."""
    m, n = excess.shape
    norm = float(first @ first)
    left = excess - np.outer(first, first @ excess) / norm if norm > 0 else excess
    small = left @ left.T if m <= n else left.T @ left
    k_real = min(k, small.shape[0])
    _, vectors = scipy.linalg.eigh(small, subset_by_index=[small.shape[0] - k_real, small.shape[0] - 1])
    vectors = vectors[:, ::-1]
    u, v = (vectors, left.T @ vectors) if m <= n else (left @ vectors, vectors)
    theta, slopes = np.zeros((m, k)), np.zeros((n, k))
    theta[:, :k_real], slopes[:, :k_real] = _unit_columns(u, 0.5), _unit_columns(v, 0.5)
    return theta, slopes


def _unit_columns(x: Floats, size: float) -> Floats:
    """Columns with root mean square `size`, the entry of largest magnitude positive in none or all: signs kept."""
    rms = np.sqrt(np.mean(x * x, axis=0))
    out: Floats = size * x / np.where(rms > 0, rms, 1.0)
    return out


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
