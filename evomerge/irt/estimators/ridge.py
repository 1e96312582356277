"""Ridge regression of the items that were not asked on those that were."""

from __future__ import annotations

from typing import Final, NamedTuple, final

import numpy as np

from evomerge.irt.estimators.base import Estimated, known_part
from evomerge.irt.estimators.modelled import Modelled, asked_by_all
from evomerge.irt.responses import Floats

PENALTIES: Final = np.geomspace(0.1, 1000.0, 17)
"""Ridge penalties that are tried, in units of the asked answers' mean variance over the calibration models."""


class Line(NamedTuple):
    """A fitted regression.

    Attributes:
        centre: shape `(a,)`, mean answers to the asked items.
        slopes: shape `(a,)`.
        level: mean of the part that was not asked.
        se: root mean square of the leave-one-out residuals.
    """

    centre: Floats
    slopes: Floats
    level: float
    se: float


@final
class Ridge(Modelled):
    """The part that was not asked, regressed on the answers over the calibration models.

    "Random sample and regression" of Zhang et al. 2025 ("How Benchmark Prediction from Fewer Data Misses the Mark").
    The penalty is the one with the least leave-one-out error (in closed form, Allen 1974), whose root mean square is
    the standard error.
    """

    name = "ridge"

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        asked = asked_by_all(scores)
        known = self.calibration.filled
        answers = np.where(np.isnan(scores), 0.0, scores)[:, asked]
        if len(known) == 0:
            level, spread = (
                float(self.calibration.item_means[~asked] @ weights[~asked]),
                np.sqrt(self.calibration.answer_variance) * float(np.abs(weights[~asked]).sum()),
            )
            return Estimated(known_part(scores, weights) + level, np.full(len(scores), spread))
        line = regress(known[:, asked], known[:, ~asked] @ weights[~asked])
        rest = line.level + (answers - line.centre) @ line.slopes
        return Estimated(known_part(scores, weights) + rest, np.full(len(scores), line.se))


def regress(x: Floats, y: Floats) -> Line:
    """Ridge regression with an intercept, its penalty chosen by leave-one-out.

    Args:
        x: shape `(k, a)`.
        y: shape `(k,)`.
    """
    k = len(y)
    centre, level = x.mean(axis=0), float(y.mean())
    left, values, right = np.linalg.svd(x - centre, full_matrices=False)
    target = left.T @ (y - level)
    unit = max(float((values**2).sum()) / max(k, 1) / max(x.shape[1], 1), 1e-12)
    best, best_error = PENALTIES[-1], np.inf
    for penalty in PENALTIES:
        shrink = values**2 / (values**2 + penalty * unit)
        leverage = np.minimum((left**2) @ shrink + 1.0 / k, 1 - 1e-6)
        residual = (y - level - left @ (shrink * target)) / (1 - leverage)
        error = float(np.mean(residual**2))
        if error < best_error:
            best, best_error = penalty, error
    slopes = right.T @ (values / (values**2 + best * unit) * target)
    return Line(centre, slopes, level, float(np.sqrt(best_error)))
