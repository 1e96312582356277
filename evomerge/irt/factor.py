"""Normal items: the linear factor model with a noise of its own per item, fitted by expectation maximisation.

Margins and other unbounded scores have no common unit, so columns are brought to mean 0 and spread 1 first, and the
abilities are integrated out: a joint mode over abilities and noises would let some noise go to 0 (Heywood 1931).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evomerge.irt.priors import ItemPrior, Point
from evomerge.irt.responses import Bools, Floats

_NOISE_WEIGHT = 4.0  # answers that the noise prior counts for
_NOISE_SHARE = 0.5  # and the share of a column's variance that it expects to be noise
_SPREAD_WEIGHT = 2.0


class Columns(NamedTuple):
    """Centre and spread of each item's scores, both `(n,)`, spread > 0."""

    centre: Floats
    spread: Floats

    @staticmethod
    def of(scores: Floats) -> Columns:
        """Means and standard deviations per item, drawn towards the matrix's own where few models answered."""
        seen = ~np.isnan(scores)
        count = seen.sum(axis=0)
        filled = np.where(seen, scores, 0.0)
        overall = float(filled.sum() / max(1, count.sum()))
        centre = (filled.sum(axis=0) + overall) / (count + 1)
        squares = np.sum(np.where(seen, scores - filled.sum(axis=0) / np.maximum(count, 1), 0.0) ** 2, axis=0)
        varied = (count > 1) & (squares > 0)
        typical = float(np.median(squares[varied] / (count[varied] - 1))) if varied.any() else 1.0
        spread = np.sqrt((squares + _SPREAD_WEIGHT * typical) / (np.maximum(count - 1, 0) + _SPREAD_WEIGHT))
        return Columns(centre, spread)


class FactorOptimum(NamedTuple):
    """A mode: the point, the noise `(n,)`, the log posterior, iterations, and whether it settled."""

    point: Point
    noise: Floats
    log_posterior: float
    iterations: int
    converged: bool


class _Moments(NamedTuple):
    """Posterior of the abilities given the items: means `(m, D)`, covariances `(m, D, D)`, log likelihood."""

    mean: Floats
    covariance: Floats
    log_likelihood: float


def _expect(x: Floats, seen: Floats, point: Point, noise: Floats) -> _Moments:
    """Normal posterior of each ability, and the marginal log likelihood up to `2 pi` (Woodbury's identity)."""
    m, d = x.shape[0], point.slopes.shape[1]
    w = noise**-2
    outer = (w[:, None, None] * point.slopes[:, :, None] * point.slopes[:, None, :]).reshape(-1, d * d)
    precision = (seen @ outer).reshape(m, d, d) + np.eye(d)
    residual = seen * (x - point.intercepts)
    score = residual @ (w[:, None] * point.slopes)
    covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    mean = np.einsum("mde,me->md", covariance, score)
    cells = float(np.sum(seen @ np.log(w)) - np.sum(residual**2 @ w))
    determinants = np.linalg.slogdet(precision)[1]
    return _Moments(mean, covariance, 0.5 * (cells - float(determinants.sum()) + float(np.sum(mean * score))))


def _regress(x: Floats, seen: Floats, moments: _Moments, prior: ItemPrior, noise: Floats) -> tuple[Floats, Floats]:
    """Slopes and intercepts given the abilities' moments: a ridge regression per item, first slope not negative."""
    m, d = moments.mean.shape
    z = np.concatenate([moments.mean, np.ones((m, 1))], axis=1)
    square = z[:, :, None] * z[:, None, :]
    square[:, :d, :d] += moments.covariance
    w = noise**-2
    left = w[:, None, None] * (seen.T @ square.reshape(m, -1)).reshape(-1, d + 1, d + 1)
    right = w[:, None] * ((seen * x).T @ z)
    ridge = np.append(prior.slope_sd**-2, prior.intercept_sd**-2)
    left += np.diag(ridge)
    right += ridge * np.append(prior.slope_mean, prior.intercept_mean)
    found = np.linalg.solve(left, right[:, :, None])[:, :, 0]
    negative = found[:, 0] < 0
    if negative.any():
        found[negative, 0] = 0.0
        found[negative, 1:] = np.linalg.solve(left[negative, 1:, 1:], right[negative, 1:, None])[:, :, 0]
    return found[:, :d], found[:, d]


def _noise(x: Floats, seen: Floats, moments: _Moments, point: Point) -> Floats:
    """Residual standard deviation per item under a scaled inverse chi-squared prior."""
    d = point.slopes.shape[1]
    residual = seen * (x - moments.mean @ point.slopes.T - point.intercepts)
    outer = (point.slopes[:, :, None] * point.slopes[:, None, :]).reshape(-1, d * d)
    unsure = np.sum((seen.T @ moments.covariance.reshape(-1, d * d)) * outer, axis=1)
    total = np.sum(residual**2, axis=0) + unsure + _NOISE_WEIGHT * _NOISE_SHARE
    out: Floats = np.sqrt(total / (seen.sum(axis=0) + _NOISE_WEIGHT + 2))
    return out


def log_item_prior(point: Point, noise: Floats, prior: ItemPrior) -> float:
    """Log density of slopes, intercepts and noises up to a constant."""
    a = (point.slopes - prior.slope_mean) / prior.slope_sd
    d = (point.intercepts - prior.intercept_mean) / prior.intercept_sd
    noises = (_NOISE_WEIGHT + 2) * np.log(noise**-2) - _NOISE_WEIGHT * _NOISE_SHARE * noise**-2
    return 0.5 * (float(noises.sum()) - float(np.sum(a * a)) - float(np.sum(d * d)))


def maximise(
    x: Floats, prior: ItemPrior, begin: Point, noise: Floats, *, max_iterations: int, tolerance: float
) -> FactorOptimum:
    """The posterior mode of slopes, intercepts and noises with abilities integrated out (Rubin & Thayer 1982).

    Args:
        x: shape `(m, n)`, standardised scores, NaN where not asked.
        prior: of slopes and intercepts.
        begin: where to start; its abilities are not used.
        noise: where the noises start, `(n,)`.
        max_iterations: of expectation and maximisation.
        tolerance: stop when the log posterior grows relatively by less than that.
    """
    missing: Bools = np.isnan(x)
    seen, filled = (~missing).astype(np.float64), np.where(missing, 0.0, x)
    point, value, converged, iterations = begin, -np.inf, False, 0
    moments = _expect(filled, seen, point, noise)
    while iterations < max_iterations and not converged:
        slopes, intercepts = _regress(filled, seen, moments, prior, noise)
        point = Point(moments.mean, slopes, intercepts)
        noise = _noise(filled, seen, moments, point)
        moments = _expect(filled, seen, point, noise)
        before, value = value, moments.log_likelihood + log_item_prior(point, noise, prior)
        converged = value - before <= tolerance * (abs(value) + 1)
        iterations += 1
    return FactorOptimum(Point(moments.mean, point.slopes, point.intercepts), noise, value, iterations, converged)
