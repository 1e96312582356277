"""What item and ability parameters are expected to be: priors that learn their own centre and width from the items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evomerge.irt.responses import Floats

_PSEUDO_ITEMS = 10.0  # how many items the given prior counts for when it is adapted


class Point(NamedTuple):
    """Parameters of a fit: `theta (m, D)`, `slopes (n, D)`, `intercepts (n,)`."""

    theta: Floats
    slopes: Floats
    intercepts: Floats


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


class Population(NamedTuple):
    """Mean `(D,)` and covariance `(D, D)` of the calibration models' abilities."""

    mean: Floats
    covariance: Floats


def log_prior(point: Point, prior: ItemPrior) -> tuple[float, Point]:
    """Log prior density up to a constant, and its gradient; abilities are standard normal."""
    t = point.theta
    a = (point.slopes - prior.slope_mean) / prior.slope_sd
    d = (point.intercepts - prior.intercept_mean) / prior.intercept_sd
    value = -0.5 * (float(np.sum(t * t)) + float(np.sum(a * a)) + float(np.sum(d * d)))
    return value, Point(-t, -a / prior.slope_sd, -d / prior.intercept_sd)


def population(point: Point, weight: Floats) -> Population:
    """How the abilities are spread: their modes' scatter plus each one's own uncertainty, and one unit model besides.

    Args:
        point: a posterior mode.
        weight: shape `(m, n)`, Fisher weights of the answers, 0 where not asked.
    """
    m, d = point.theta.shape
    outer = (point.slopes[:, :, None] * point.slopes[:, None, :]).reshape(-1, d * d)
    laplace = np.linalg.inv((weight @ outer).reshape(m, d, d) + np.eye(d))
    mean = point.theta.mean(axis=0)
    off = point.theta - mean
    return Population(mean, (off.T @ off + laplace.sum(axis=0) + np.eye(d)) / (m + 1))


def standardised(point: Point, people: Population) -> Point:
    """The same expected answers in units where the population is N(0, I); first slopes keep their sign.

    With `covariance = U U'`, U upper triangular, `theta = mean + U t` and the first column of `slopes U` is the old one
    times a positive number. The later dimensions are turned to their principal axes, largest first, and to a positive
    third moment, so that equal fits look equal.
    """
    upper = np.linalg.cholesky(people.covariance[::-1, ::-1])[::-1, ::-1]
    slopes = point.slopes @ upper
    theta = np.linalg.solve(upper, (point.theta - people.mean).T).T
    intercepts = point.intercepts + point.slopes @ people.mean
    if slopes.shape[1] > 1:
        turn = _principal_axes(slopes[:, 1:])
        slopes[:, 1:], theta[:, 1:] = slopes[:, 1:] @ turn, theta[:, 1:] @ turn
    return Point(theta, slopes, intercepts)


def _principal_axes(slopes: Floats) -> Floats:
    """The rotation `(k, k)` to the principal axes of `slopes (n, k)`."""
    _, axes = np.linalg.eigh(slopes.T @ slopes)
    turn: Floats = axes[:, ::-1]
    return turn * np.where(np.sum((slopes @ turn) ** 3, axis=0) < 0, -1.0, 1.0)


def adapted(given: ItemPrior, current: ItemPrior, point: Point, weight: Floats) -> ItemPrior:
    """One step of empirical Bayes: the prior that the items themselves suggest, the given one counting for ten items.

    The variance is the scatter of the modes plus their Laplace variances (the EM update of a normal prior; Dempster,
    Laird & Rubin 1977). With few models this is what decides how far an item may stray from the others.

    Args:
        given: the prior that the settings name.
        current: the prior under which `point` is the mode.
        point: the mode, its population standardised.
        weight: shape `(m, n)`, Fisher weights of the answers, 0 where not asked.
    """
    n, k = point.intercepts.size, _PSEUDO_ITEMS
    slope_variance = 1 / (current.slope_sd**-2 + weight.T @ point.theta**2)
    intercept_variance = 1 / (current.intercept_sd**-2 + weight.sum(axis=0))
    slope_mean = given.slope_mean.copy()
    slope_mean[0] = (point.slopes[:, 0].sum() + k * given.slope_mean[0]) / (n + k)
    scatter = np.sum((point.slopes - slope_mean) ** 2 + slope_variance, axis=0)
    intercept_mean = (float(point.intercepts.sum()) + k * given.intercept_mean) / (n + k)
    spread = float(np.sum((point.intercepts - intercept_mean) ** 2 + intercept_variance))
    return ItemPrior(
        slope_mean,
        np.sqrt((scatter + k * given.slope_sd**2) / (n + k)),
        intercept_mean,
        float(np.sqrt((spread + k * given.intercept_sd**2) / (n + k))),
    )
