"""Abilities given a bank: batched Newton for the posterior mode, Laplace's covariance, and person fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Floats

_MAX_STEPS = 50
_HALVINGS = 30
_STEP_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Abilities:
    """Posterior modes and Laplace covariances of several models.

    Attributes:
        theta: shape `(m, D)`.
        covariance: shape `(m, D, D)`, positive definite.
    """

    theta: Floats
    covariance: Floats


@dataclass(frozen=True)
class _Problem:
    """The log posteriors of `m` models over the `k` items that say anything: answers, items, prior."""

    answers: Floats
    seen: Floats
    slopes: Floats
    intercepts: Floats
    precision_of_noise: Floats
    logistic: bool
    centre: Floats
    precision: Floats

    def rows(self, index: Floats | np.ndarray[tuple[int], np.dtype[np.intp]]) -> _Problem:
        return _Problem(
            self.answers[index],
            self.seen[index],
            self.slopes,
            self.intercepts,
            self.precision_of_noise,
            self.logistic,
            self.centre[index],
            self.precision,
        )

    def value(self, theta: Floats) -> Floats:
        """Log posterior up to a constant, `(m,)`."""
        z = theta @ self.slopes.T + self.intercepts
        if self.logistic:
            cells = self.answers * z - np.logaddexp(0.0, z)
        else:
            cells = -0.5 * self.precision_of_noise * (self.answers - z) ** 2
        off = theta - self.centre
        prior = np.einsum("md,de,me->m", off, self.precision, off)
        out: Floats = np.sum(self.seen * cells, axis=1) - 0.5 * prior
        return out

    def derivatives(self, theta: Floats) -> tuple[Floats, Floats]:
        """Gradient `(m, D)` and negative Hessian `(m, D, D)`."""
        z = theta @ self.slopes.T + self.intercepts
        if self.logistic:
            p = expit(z)
            residual, weight = self.seen * (self.answers - p), self.seen * p * (1 - p)
        else:
            weight = self.seen * self.precision_of_noise
            residual = weight * (self.answers - z)
        d = self.slopes.shape[1]
        gradient = residual @ self.slopes - (theta - self.centre) @ self.precision
        outer = (self.slopes[:, :, None] * self.slopes[:, None, :]).reshape(-1, d * d)
        return gradient, (weight @ outer).reshape(-1, d, d) + self.precision


def _newton(problem: _Problem) -> Abilities:
    """Newton's method on concave functions, halving steps that do not climb; each row stops on its own."""
    theta = problem.centre.copy()
    active = np.arange(theta.shape[0])
    for _ in range(_MAX_STEPS):
        if active.size == 0:
            break
        part = problem.rows(active)
        here = theta[active]
        gradient, curvature = part.derivatives(here)
        step = np.asarray(np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0], dtype=np.float64)
        moved = _climb(part, here, step)
        theta[active] = moved
        active = active[np.max(np.abs(moved - here), axis=1) > _STEP_TOLERANCE * (1 + np.max(np.abs(moved), axis=1))]
    _, curvature = problem.derivatives(theta)
    covariance = np.asarray(np.linalg.inv(curvature), dtype=np.float64)
    return Abilities(theta, 0.5 * (covariance + np.swapaxes(covariance, 1, 2)))


def _climb(problem: _Problem, theta: Floats, step: Floats) -> Floats:
    """`theta + step`, each row's step halved until its log posterior does not fall."""
    before = problem.value(theta)
    length = np.ones(theta.shape[0])
    falls = np.ones(theta.shape[0], dtype=bool)
    for _ in range(_HALVINGS):
        index = np.flatnonzero(falls)
        after = problem.rows(index).value(theta[index] + length[index, None] * step[index])
        slack = 1e-12 * (1 + np.abs(before[index]))
        falls[index] = after < before[index] - slack
        if not falls.any():
            break
        length[falls] *= 0.5
    return theta + length[:, None] * step


def abilities(
    bank: ItemBank, scores: Floats, *, mean: Floats | None = None, covariance: Floats | None = None
) -> Abilities:
    """Maximum a posteriori abilities with Laplace covariances (Mislevy 1986; Reckase 2009, ch. 6).

    Args:
        bank: the items.
        scores: shape `(m, n)` over the bank's items, NaN where not asked.
        mean: prior mean, shape `(D,)` or `(m, D)`; the bank's population by default.
        covariance: prior covariance, shape `(D, D)`, positive definite; the bank's population by default.

    Returns:
        One row per model; rows without an informative answer return the prior.

    Raises:
        ValueError: when a shape does not fit.
    """
    d, n = bank.dimensions, len(bank.items)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != n:
        raise ValueError(f"scores have shape {scores.shape}, expected (models, {n})")
    centre = np.asarray(bank.mean if mean is None else mean, dtype=np.float64)
    if centre.shape not in {(d,), (scores.shape[0], d)}:
        raise ValueError(f"the prior mean has shape {centre.shape}, expected ({d},) or ({scores.shape[0]}, {d})")
    prior = np.asarray(bank.covariance if covariance is None else covariance, dtype=np.float64)
    if prior.shape != (d, d):
        raise ValueError(f"the prior covariance has shape {prior.shape}, expected ({d}, {d})")
    precision = np.asarray(np.linalg.inv(prior), dtype=np.float64)
    used = bank.fitted & np.any(~np.isnan(scores), axis=0)
    asked = ~np.isnan(scores[:, used])
    problem = _Problem(
        np.where(asked, scores[:, used], 0.0),
        asked.astype(np.float64),
        bank.slopes[used],
        bank.intercepts[used],
        bank.noise[used] ** -2,
        bank.link == "logistic",
        np.array(np.broadcast_to(centre, (scores.shape[0], d))),
        precision,
    )
    return _newton(problem)


def person_fit(bank: ItemBank, theta: Floats, scores: Floats) -> Floats:
    """How usual each model's pattern of answers is, given its ability; about standard normal, very negative is odd.

    Logistic items: the standardised log-likelihood l_z (Drasgow, Levine & Williams 1985). Normal items:
    `(k - sum of squared standardised residuals) / sqrt(2 k)`, which has the same direction.

    Args:
        bank: the items.
        theta: shape `(m, D)`.
        scores: shape `(m, n)`, NaN where not asked.

    Returns:
        Shape `(m,)`; 0 where no informative item was asked.
    """
    asked = ~np.isnan(scores) & bank.fitted
    y = np.where(asked, scores, 0.0)
    p = bank.predict(theta)
    if bank.link == "logistic":
        odds = theta @ bank.slopes.T + bank.intercepts  # log(p / (1 - p)), exact where p rounds to 1
        observed = y * odds - np.logaddexp(0.0, odds)
        expected = p * odds - np.logaddexp(0.0, odds)
        spread = p * (1 - p) * odds**2
    else:
        observed, expected = -(((y - p) / bank.noise) ** 2), -np.ones_like(p)
        spread = np.full_like(p, 2.0)
    surplus = np.sum(np.where(asked, observed - expected, 0.0), axis=1)
    variance = np.sum(np.where(asked, spread, 0.0), axis=1)
    informative = variance > 1e-12
    out: Floats = np.where(informative, surplus / np.sqrt(np.where(informative, variance, 1.0)), 0.0)
    return out
