"""Normal items: the linear factor model with a noise of its own per item, abilities integrated out.

Margins and other unbounded scores have no common unit, so columns are brought to mean 0 and spread 1 first. A joint
mode over abilities and noises would let some noise go to 0 (Heywood 1931); the marginal one under a prior does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize

from evomerge.irt.priors import ItemPrior, Point
from evomerge.irt.responses import Floats

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


class ItemGradient(NamedTuple):
    """Gradient in `slopes (n, D)`, `intercepts (n,)` and `log noise (n,)`."""

    slopes: Floats
    intercepts: Floats
    log_noise: Floats


@dataclass(frozen=True)
class Marginal:
    """The marginal likelihood of normal items, from products with the matrix only: no residual matrix is ever made.

    Attributes:
        x: shape `(m, n)`, standardised scores, 0 where not asked.
        seen: shape `(m, n)`, 1 or 0; None when nothing is missing.
        count: shape `(n,)`, answers per item.
        total: shape `(n,)`, sum of each item's scores.
        squares: shape `(n,)`, sum of their squares.
    """

    x: Floats
    seen: Floats | None
    count: Floats
    total: Floats
    squares: Floats

    @staticmethod
    def of(x: Floats) -> Marginal:
        """From standardised scores with NaN holes."""
        there = ~np.isnan(x)
        filled = np.where(there, x, 0.0)
        seen = None if there.all() else there.astype(np.float64)
        count = there.sum(axis=0).astype(np.float64)
        return Marginal(filled, seen, count, filled.sum(axis=0), np.sum(filled**2, axis=0))

    def _over_items(self, per_item: Floats) -> Floats:
        """Sums over the items that each model was asked: `(n, k)` to `(m, k)`."""
        if self.seen is None:
            return np.tile(per_item.sum(axis=0), (self.x.shape[0], 1))
        return self.seen @ per_item

    def _over_models(self, per_model: Floats) -> Floats:
        """Sums over the models that each item was asked of: `(m, k)` to `(n, k)`."""
        if self.seen is None:
            return np.tile(per_model.sum(axis=0), (self.x.shape[1], 1))
        return self.seen.T @ per_model

    def abilities(self, slopes: Floats, intercepts: Floats, noise: Floats) -> tuple[Floats, Floats, Floats]:
        """Posterior means `(m, D)`, precisions `(m, D, D)` and scores `precision . mean` under a N(0, I) population."""
        d = slopes.shape[1]
        weighted = noise[:, None] ** -2 * slopes
        outer = (weighted[:, :, None] * slopes[:, None, :]).reshape(-1, d * d)
        sums = self._over_items(np.concatenate([outer, weighted * intercepts[:, None]], axis=1))
        precision = sums[:, : d * d].reshape(-1, d, d) + np.eye(d)
        score = self.x @ weighted - sums[:, d * d :]
        mean = np.asarray(np.linalg.solve(precision, score[:, :, None])[:, :, 0], dtype=np.float64)
        return mean, precision, score

    def log_likelihood(self, slopes: Floats, intercepts: Floats, noise: Floats) -> tuple[float, ItemGradient]:
        """Log likelihood up to `log 2 pi` (by Woodbury's identity), and its gradient (by Fisher's identity)."""
        d, w = slopes.shape[1], noise**-2
        mean, precision, score = self.abilities(slopes, intercepts, noise)
        squares = self.squares - 2 * intercepts * self.total + intercepts**2 * self.count
        determinants = float(np.linalg.slogdet(precision)[1].sum())
        cells = float(self.count @ np.log(w)) - float(w @ squares)
        value = 0.5 * (cells - determinants + float(np.sum(mean * score)))
        second = np.linalg.inv(precision) + mean[:, :, None] * mean[:, None, :]
        sums = self._over_models(np.concatenate([second.reshape(-1, d * d), mean], axis=1))
        turned = np.einsum("nde,ne->nd", sums[:, : d * d].reshape(-1, d, d), slopes)
        cross = self.x.T @ mean - intercepts[:, None] * sums[:, d * d :]
        residual = self.total - intercepts * self.count - np.sum(slopes * sums[:, d * d :], axis=1)
        left = squares - 2 * np.sum(slopes * cross, axis=1) + np.sum(slopes * turned, axis=1)
        return value, ItemGradient(w[:, None] * (cross - turned), w * residual, w * left - self.count)


def log_item_prior(slopes: Floats, intercepts: Floats, noise: Floats, prior: ItemPrior) -> tuple[float, ItemGradient]:
    """Log density of slopes, intercepts and log noises up to a constant, and its gradient.

    Noise variances are scaled inverse chi-squared (Gelman et al. 2013, section 2.6): four answers' worth of half of the
    column's variance.
    """
    a = (slopes - prior.slope_mean) / prior.slope_sd
    d = (intercepts - prior.intercept_mean) / prior.intercept_sd
    scaled = _NOISE_WEIGHT * _NOISE_SHARE * noise**-2
    value = -0.5 * (float(np.sum(a * a)) + float(np.sum(d * d)) + float(np.sum(scaled)))
    value -= _NOISE_WEIGHT * float(np.sum(np.log(noise)))
    return value, ItemGradient(-a / prior.slope_sd, -d / prior.intercept_sd, scaled - _NOISE_WEIGHT)


def maximise(
    x: Floats, prior: ItemPrior, begin: Point, noise: Floats, *, max_iterations: int, tolerance: float
) -> FactorOptimum:
    """The posterior mode of slopes, intercepts and noises by L-BFGS-B, abilities integrated out.

    Args:
        x: shape `(m, n)`, standardised scores, NaN where not asked.
        prior: of slopes and intercepts.
        begin: where to start; its abilities are not used.
        noise: where the noises start, `(n,)`.
        max_iterations: of the optimiser.
        tolerance: stop when the log posterior changes relatively by less than that.
    """
    marginal = Marginal.of(x)
    n, d = begin.slopes.shape
    curvature = marginal.count * noise**-2
    scale = np.concatenate(
        [
            np.sqrt(prior.slope_sd**-2 + curvature[:, None]).ravel(),
            np.sqrt(prior.intercept_sd**-2 + curvature),
            np.sqrt(2 * (marginal.count + _NOISE_WEIGHT)),
        ]
    )

    def unpack(u: Floats) -> tuple[Floats, Floats, Floats]:
        u = u / scale
        return u[: n * d].reshape(n, d), u[n * d : n * (d + 1)], np.exp(np.clip(u[n * (d + 1) :], -15.0, 15.0))

    def objective(u: Floats) -> tuple[float, Floats]:
        items = unpack(u)
        likelihood, up = marginal.log_likelihood(*items)
        density, pull = log_item_prior(*items, prior)
        gradient = np.concatenate([(g + h).ravel() for g, h in zip(up, pull, strict=True)])
        return -likelihood - density, -gradient / scale

    lower = np.full(scale.size, -np.inf)
    lower[: n * d : d] = 0.0
    begun = np.concatenate([begin.slopes.ravel(), begin.intercepts, np.log(noise)]) * scale
    result = scipy.optimize.minimize(
        objective,
        np.maximum(begun, lower),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(lower, np.inf),
        options={"maxiter": max_iterations, "ftol": tolerance, "gtol": 1e-6, "maxcor": 12},
    )
    slopes, intercepts, noise = unpack(result.x)
    theta = marginal.abilities(slopes, intercepts, noise)[0]
    point = Point(theta, slopes, intercepts)
    return FactorOptimum(point, noise, -float(result.fun), int(result.nit), bool(result.status == 0))
