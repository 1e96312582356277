"""Who is unlike the calibration models: person fit, measured by how well held-out calibration models fit."""

from __future__ import annotations

from typing import Final

import numpy as np

from evomerge.irt.ability import abilities, person_fit
from evomerge.irt.bank import ItemBank
from evomerge.irt.estimators.calibration import Calibration, Fold
from evomerge.irt.responses import Bools, Floats

ODD: Final = -4.0
"""Standard deviations below the held-out models' mean at which a model counts as unlike them."""


def unlike(calibration: Calibration, scores: Floats, asked: Bools) -> Bools:
    """Shape `(m,)`: whose answers fit the item bank much worse than those of held-out calibration models do.

    The statistic (Drasgow, Levine and Williams 1985) is not standard normal at an estimated ability and under a
    misspecified model, so its centre and spread are those of held-out models that are asked the same items (normal
    theory where too few can be held out; never a smaller spread than that).

    Args:
        calibration: the known models.
        scores: shape `(m, n)`, all rows asked the same items.
        asked: shape `(n,)`, these items.
    """
    fits = _fit_of(calibration.fitted_bank, scores)
    if not np.any(fits < ODD):  # the held-out models can only make the alarm less sensitive
        return np.zeros(len(fits), dtype=bool)
    known = [_fit_of(fold.calibration.fitted_bank, _masked(calibration, fold, asked)) for fold in calibration.folds]
    centre, spread = 0.0, 1.0
    if known:
        reference = np.concatenate(known)
        centre, spread = min(float(reference.mean()), 0.0), max(float(reference.std()), 1.0)
    odd: Bools = (fits - centre) / spread < ODD
    return odd


def _masked(calibration: Calibration, fold: Fold, asked: Bools) -> Floats:
    return np.where(asked, calibration.responses.scores[fold.rows], np.nan)


def _fit_of(bank: ItemBank, scores: Floats) -> Floats:
    return person_fit(bank, abilities(bank, scores).theta, scores)
