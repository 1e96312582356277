"""`auto`: the estimator that erred least on held-out calibration models that were asked the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.irt.estimators.base import Calibration
from evomerge.irt.estimators.registry import make_estimator, possible
from evomerge.irt.responses import Bools, Floats

FALLBACK = "stratified"
"""What is chosen where no calibration model can be held out."""


@dataclass(frozen=True)
class EstimatorChoice:
    """Which estimator is used for a set of asked items, and why.

    Attributes:
        name: see `registry.ESTIMATORS`.
        errors: name -> mean absolute error on held-out calibration models; empty where none could be held out.
        why: one sentence for the report.
    """

    name: str
    errors: Mapping[str, float]
    why: str


def choose_estimator(
    calibration: Calibration,
    asked: Bools,
    *,
    inclusion: Floats | None = None,
    target: Floats | None = None,
    names: Sequence[str] | None = None,
) -> EstimatorChoice:
    """The estimator with the least mean absolute error on held-out calibration models that are asked the same items.

    Args:
        calibration: what is known; its held-out fits are kept with it.
        asked: shape `(n,)`, the items that candidates are asked.
        inclusion: shape `(n,)`, see `Estimator.estimate`.
        target: shape `(n,)`, the functional; None: the mean.
        names: estimators to choose among; None: all that the calibration has enough for.

    Raises:
        ConfigError: a name is not known, or needs parents and there are none.
        ValueError: a shape does not fit.
    """
    weights = np.full(calibration.n, 1.0 / calibration.n) if target is None else target
    if asked.shape != (calibration.n,) or weights.shape != (calibration.n,):
        raise ValueError(f"asked has shape {asked.shape}, target {weights.shape}, expected ({calibration.n},)")
    candidates = tuple(names) if names is not None else possible(calibration)
    estimators = [make_estimator(name, calibration) for name in candidates]
    checks = [estimator.held_out(asked, inclusion, weights) for estimator in estimators]
    n_models = checks[0].error.size
    if n_models == 0:
        name = FALLBACK if FALLBACK in candidates else candidates[0]
        return EstimatorChoice(name, {}, "too few complete calibration models to hold some out")
    errors = {name: float(np.mean(np.abs(check.error))) for name, check in zip(candidates, checks, strict=True)}
    best = min(errors, key=lambda name: errors[name])
    return EstimatorChoice(best, errors, f"least error ({errors[best]:.3f}) on {n_models} held-out calibration models")
