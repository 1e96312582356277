"""Abilities given a bank: batched Newton for the posterior mode, Laplace's covariance, and person fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Floats, Indices

_BLOCK_CELLS = 1 << 17  # rows are solved in blocks that stay in the processor's cache
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


class _Local(NamedTuple):
    """A log posterior at a point: values `(m,)`, gradients `(m, D)`, negative Hessians `(m, D, D)`."""

    value: Floats
    gradient: Floats
    curvature: Floats


@dataclass(frozen=True)
class _Problem:
    """The log posteriors of `m` models over the `k` items that say anything: answers, items, prior."""

    answers: Floats
    seen: Floats
    slopes: Floats
    intercepts: Floats
    noise_precision: Floats
    logistic: bool
    centre: Floats
    precision: Floats

    def rows(self, index: Indices | slice) -> _Problem:
        """The same for some of the models."""
        return replace(self, answers=self.answers[index], seen=self.seen[index], centre=self.centre[index])

    def at(self, theta: Floats) -> _Local:
        """Value (up to a constant), gradient and curvature at `theta (m, D)`."""
        z = theta @ self.slopes.T
        z += self.intercepts
        if self.logistic:
            small = np.exp(-np.abs(z))
            cells = self.answers * z - self.seen * (np.maximum(z, 0.0) + np.log(1 + small))
            p = np.where(z >= 0, 1.0, small) / (1 + small)
            residual, weight = self.answers - self.seen * p, self.seen * (p * (1 - p))
        else:
            weight = self.seen * self.noise_precision
            residual = weight * (self.answers - z)
            cells = -0.5 * residual * (self.answers - z)
        d = self.slopes.shape[1]
        pull = (theta - self.centre) @ self.precision
        value = np.sum(cells, axis=1) - 0.5 * np.sum(pull * (theta - self.centre), axis=1)
        outer = (self.slopes[:, :, None] * self.slopes[:, None, :]).reshape(-1, d * d)
        curvature = (weight @ outer).reshape(-1, d, d) + self.precision
        return _Local(value, residual @ self.slopes - pull, curvature)


def _newton(problem: _Problem) -> Abilities:
    """Newton's method on concave functions, halving steps that do not climb; each row stops on its own."""
    theta = problem.centre.copy()
    curvature = np.tile(problem.precision, (theta.shape[0], 1, 1))
    active = np.arange(theta.shape[0])
    local = problem.at(theta)
    for _ in range(_MAX_STEPS):
        if active.size == 0:
            break
        part, here = problem.rows(active), theta[active]
        step = np.asarray(np.linalg.solve(local.curvature, local.gradient[:, :, None])[:, :, 0], dtype=np.float64)
        moved, local = _climb(part, here, local, step)
        theta[active], curvature[active] = moved, local.curvature
        going = np.max(np.abs(moved - here), axis=1) > _STEP_TOLERANCE * (1 + np.max(np.abs(moved), axis=1))
        active, local = active[going], _Local(*(each[going] for each in local))
    covariance = np.asarray(np.linalg.inv(curvature), dtype=np.float64)
    return Abilities(theta, 0.5 * (covariance + np.swapaxes(covariance, 1, 2)))


def _climb(problem: _Problem, theta: Floats, before: _Local, step: Floats) -> tuple[Floats, _Local]:
    """`theta + step`, each row's step halved until its log posterior does not fall."""
    length = np.ones(theta.shape[0])
    after = problem.at(theta + step)
    floor = before.value - 1e-12 * (1 + np.abs(before.value))
    for _ in range(_HALVINGS):
        falls = after.value < floor
        if not falls.any():
            break
        length[falls] *= 0.5
        after = problem.at(theta + length[:, None] * step)
    return theta + length[:, None] * step, after


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
        One row per model; rows without an informative answer return the prior. Scores of constants are not looked at.

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
    block = max(1, _BLOCK_CELLS // max(1, problem.answers.shape[1]))
    blocks = range(0, scores.shape[0], block)
    parts = [_newton(problem.rows(slice(low, low + block))) for low in blocks] or [_newton(problem)]
    return Abilities(np.concatenate([p.theta for p in parts]), np.concatenate([p.covariance for p in parts]))


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
