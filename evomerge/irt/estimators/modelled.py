"""Estimators that predict the items that were not asked: their standard errors are corrected by the held-out check."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final, NamedTuple

import numpy as np

from evomerge.irt.ability import Abilities, abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.estimators.base import Calibration, Estimated, Estimator, HeldOut, checked, known_part, patterns
from evomerge.irt.responses import Bools, Floats

PRIOR_MODELS: Final = 5.0
"""How many held-out models' weight the prior has in the correction of standard errors."""

PRIOR_INFLATION: Final = 1.5
"""By how much a model's own variance is too small where no held-out model tells."""


QUANTILE_MODELS: Final = 60
"""Held-out models from which on a 90 % quantile is steadier than a mean of squares."""

Z90: Final = 1.6448536269514722
"""Normal quantile of a 90 % interval."""

CHOICE_COST: Final = 30.0
"""See `optimism`."""


class Points(NamedTuple):
    """A discrete posterior of abilities, per model.

    Attributes:
        theta: shape `(m, p, D)`.
        weight: shape `(m, p)`, rows sum to 1.
    """

    theta: Floats
    weight: Floats


class Modelled(Estimator):
    """Value and model-based variance from `raw`; the variance is multiplied by what held-out models ask for."""

    def estimate(self, scores: Floats, *, inclusion: Floats | None = None, target: Floats | None = None) -> Estimated:
        """See `Estimator.estimate`."""
        matrix, weights = checked(scores, self.calibration.n, inclusion, target)
        value, se = np.zeros(len(matrix)), np.zeros(len(matrix))
        for rows, asked in patterns(matrix):
            if asked.all():
                value[rows] = matrix[rows] @ weights
                continue
            said = self.raw(matrix[rows], inclusion, weights)
            value[rows] = said.value
            factor = inflation(self.held_out(asked, inclusion, weights))
            se[rows] = said.se * factor * optimism(self.calibration, asked, inclusion)
        return Estimated(value, se)

    @abstractmethod
    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""


def inflation(check: HeldOut) -> float:
    """Factor of standard errors that makes held-out standardised errors as large as they should be.

    Large: their root mean square; with `QUANTILE_MODELS` models or more the 90 % quantile of their size, which is what
    an interval's coverage hangs on and does not mind a few models that nothing fits. This calibrates the model's
    misspecification: local dependence and items that do not fit make errors larger than the posterior says, and alike
    in all models that are asked the same items.
    """
    known = check.se > 0
    z2 = (check.error[known] / check.se[known]) ** 2
    size = float(z2.sum())
    if z2.size >= QUANTILE_MODELS:
        size = z2.size * float(np.quantile(z2, 0.9)) / Z90**2
    return float(np.sqrt((size + PRIOR_MODELS * PRIOR_INFLATION) / (z2.size + PRIOR_MODELS)))


def optimism(calibration: Calibration, asked: Bools, inclusion: Floats | None) -> float:
    """Factor of standard errors where items were chosen for what the calibration models said of them.

    Such a choice prefers items that are informative by chance, for the held-out models, too, which took part in it. In
    simulated merges the variance of standardised errors at a share s of chosen items and k models was near
    `1 + 30 s / (k + 10)` (k = 16 to 120; near 1 for random items, s = 0).
    """
    if inclusion is None or not asked.any():
        return 1.0
    share = float((inclusion[asked] >= 1).mean())
    return float(np.sqrt(1 + CHOICE_COST * share / (calibration.n_models + 10)))


def cubature(found: Abilities) -> Points:
    """2 D points with the mean and covariance of a normal posterior (third-degree spherical rule, Stroud 1971)."""
    m, d = found.theta.shape
    root = np.linalg.cholesky(found.covariance) * np.sqrt(d)
    steps = np.concatenate([root, -root], axis=2)  # (m, D, 2 D): columns are steps
    theta = found.theta[:, None, :] + np.swapaxes(steps, 1, 2)
    return Points(theta, np.full((m, 2 * d), 0.5 / d))


def predicted(bank: ItemBank, points: Points, scores: Floats, weights: Floats) -> Estimated:
    """Asked items as answered, the others by the posterior's mean; variance from the ability and from single answers.

    Equation (p-IRT) of Maia Polo et al. (2024) with the posterior's mean in place of the prediction at its mode; the
    variance is that of the predicted sum over the posterior, plus that of the answers to the items that were not asked.

    Args:
        bank: the items.
        points: the posterior of abilities.
        scores: shape `(m, n)`, rows all asked the same items.
        weights: shape `(n,)`.
    """
    left = ~asked_by_all(scores)
    if not left.any():  # a task that is asked in full beside others
        return Estimated(known_part(scores, weights), np.zeros(len(scores)))
    m, p, d = points.theta.shape
    flat = points.theta.reshape(m * p, d)
    some = _part(bank, left)
    rest = (some.predict(flat) @ weights[left]).reshape(m, p)
    noise = (some.variance(flat) @ weights[left] ** 2).reshape(m, p)
    mean = (points.weight * rest).sum(axis=1)
    between = (points.weight * (rest - mean[:, None]) ** 2).sum(axis=1)
    within = (points.weight * noise).sum(axis=1)
    return Estimated(known_part(scores, weights) + mean, np.sqrt(between + within))


def asked_by_all(scores: Floats) -> Bools:
    """Shape `(n,)`: items that the rows were asked (all rows alike)."""
    return ~np.isnan(scores[0]) if len(scores) else np.zeros(scores.shape[1], dtype=bool)


def _part(bank: ItemBank, left: Bools) -> ItemBank:
    """The bank's items that were not asked."""
    names = tuple(name for name, keep in zip(bank.items, left, strict=True) if keep)
    return ItemBank(
        names,
        bank.slopes[left],
        bank.intercepts[left],
        bank.noise[left],
        bank.constants[left],
        bank.mean,
        bank.covariance,
        bank.link,
        bank.n_models,
    )


def posterior(bank: ItemBank, scores: Floats) -> Points:
    """The ability posterior under the bank's own population."""
    return cubature(abilities(bank, scores))
