"""p-IRT and gp-IRT: the ability from the answers, the rest of the items from the ability."""

from __future__ import annotations

from functools import cached_property
from typing import Final, final

import numpy as np

from evomerge.irt.estimators.base import Estimated, HeldOut
from evomerge.irt.estimators.design import Mean
from evomerge.irt.estimators.modelled import Modelled, posterior, predicted
from evomerge.irt.responses import Bools, Floats

PRIOR_MODELS: Final = 4.0
"""How many held-out models' weight "all to the model" has in the fitted weight of gp-IRT."""


@final
class PIrt(Modelled):
    """p-IRT (Maia Polo et al. 2024, "tinyBenchmarks") with a maximum a posteriori ability."""

    name = "p-irt"

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        bank = self.calibration.fitted_bank
        return predicted(bank, posterior(bank, scores), scores, weights)


@final
class GpIrt(Modelled):
    """gp-IRT: `w` times the mean plus `1 - w` times p-IRT, w fitted to held-out models instead of the formula.

    The published weight is `b^2 / (b^2 + v)` from the model's bias b on held-out models and the mean's variance v (Maia
    Polo et al. 2024). The same trade-off, without its assumption of independent errors: the w in [0, 1] that minimises
    the held-out mean square error under the very items that were asked, drawn a little to 0.
    """

    name = "gp-irt"

    @cached_property
    def _parts(self) -> tuple[Mean, PIrt]:
        return Mean(self.calibration), PIrt(self.calibration)

    def weight(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> float:
        """The weight of the mean; 0 where no model can be held out."""
        mean, model = (part.held_out(asked, inclusion, weights) for part in self._parts)
        return fitted_weight(mean.error, model.error)

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """See `Estimator.raw`."""
        asked = ~np.isnan(scores[0]) if len(scores) else np.zeros(scores.shape[1], dtype=bool)
        mean, model = (part.raw(scores, inclusion, weights) for part in self._parts)
        return blend(mean, model, self.weight(asked, inclusion, weights))

    def held_out(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> HeldOut:
        """The two parts' held-out errors, blended: one weight is not worth a second level of folds."""
        mean, model = (part.held_out(asked, inclusion, weights) for part in self._parts)
        w = fitted_weight(mean.error, model.error)
        blended = blend(Estimated(mean.error, mean.se), Estimated(model.error, model.se), w)
        return HeldOut(model.rows, blended.value, blended.se)


def fitted_weight(first: Floats, second: Floats) -> float:
    """The w in [0, 1] with the least mean square of `w first + (1 - w) second`, drawn to 0 by `PRIOR_MODELS` models."""
    gap = first - second
    if gap.size == 0 or not np.any(gap):
        return 0.0
    best = -(second @ gap) / (gap @ gap * (1 + PRIOR_MODELS / gap.size))
    return float(np.clip(best, 0.0, 1.0))


def blend(first: Estimated, second: Estimated, w: float) -> Estimated:
    """`w first + (1 - w) second`; standard errors as if the two always erred together."""
    return Estimated(w * first.value + (1 - w) * second.value, w * first.se + (1 - w) * second.se)
