"""`auto`: a blend of the estimators, weighted by how they did on held-out models that were asked the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
from scipy.optimize import nnls

from evomerge.errors import ConfigError, suggest
from evomerge.irt.estimators.alarm import unlike
from evomerge.irt.estimators.base import Calibration, Estimated, Estimator, HeldOut, checked, patterns
from evomerge.irt.estimators.design import Mean
from evomerge.irt.estimators.modelled import inflation, optimism
from evomerge.irt.estimators.table import CLASSES, members
from evomerge.irt.responses import Bools, Floats

PRIOR_MODELS: Final = 20.0
"""How many held-out models' weight the blend by inverse squared errors has against the fitted one."""

TRUSTED_BANK: Final = 30
"""Models behind a bank from elsewhere for it to be believed without a held-out check of its own."""

NEGLIGIBLE: Final = 0.01
"""Weights below this are left out of the blend."""


@dataclass(frozen=True)
class EstimatorChoice:
    """Which estimators are believed for a set of asked items, and why.

    Attributes:
        name: the single best, see `registry.ESTIMATORS`.
        errors: name -> mean absolute error on held-out calibration models; empty where none could be held out.
        why: one line for the report.
        weights: name -> weight in the blend that `auto` uses; they sum to 1.
    """

    name: str
    errors: Mapping[str, float]
    why: str
    weights: Mapping[str, float] = field(default_factory=dict)


@final
class Auto(Estimator):
    """A convex blend of estimators whose weights minimise the held-out error under the very items that were asked.

    Stacking (Wolpert 1992; Breiman 1996) with weights that are not negative and sum to 1, drawn to the inverse of the
    squared mean square errors by `PRIOR_MODELS` models: with few calibration models the estimators that do well share
    the weight, with many the errors' correlations decide. The standard error is that of the blend on held-out models.
    A candidate whose answers fit the item bank far worse than held-out models do gets the plain, design-weighted mean
    instead, where part of its items are a random sample.
    """

    name = "auto"

    def __init__(self, calibration: Calibration, names: Sequence[str] | None = None) -> None:
        super().__init__(calibration)
        chosen = tuple(names) if names is not None else members(calibration)
        unknown = [name for name in chosen if name not in CLASSES]
        if unknown or not chosen:
            raise ConfigError(
                "auto cannot choose among these estimators",
                got=repr(unknown[0]) if unknown else "no names",
                allowed=suggest(unknown[0] if unknown else "", CLASSES),
                fix="name some of these, or none for all that are possible",
            )
        self._members = {name: CLASSES[name](calibration) for name in chosen}
        self._mean = Mean(calibration)

    def choose(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> EstimatorChoice:
        """The blend for a set of asked items; arguments as in `Estimator.held_out`."""
        return self._chosen(self._checks(asked, inclusion, weights))

    def estimate(self, scores: Floats, *, inclusion: Floats | None = None, target: Floats | None = None) -> Estimated:
        """See `Estimator.estimate`."""
        matrix, weights = checked(scores, self.calibration.n, inclusion, target)
        value, se = np.zeros(len(matrix)), np.zeros(len(matrix))
        for rows, asked in patterns(matrix):
            if asked.all():
                value[rows] = matrix[rows] @ weights
                continue
            said = self._blended(matrix[rows], asked, inclusion, weights)
            value[rows], se[rows] = said.value, said.se
        return Estimated(value, se)

    def held_out(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> HeldOut:
        """The members' held-out errors, blended."""
        checks = self._checks(asked, inclusion, weights)
        return _blend_checks(checks, self._chosen(checks).weights)

    def _checks(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> dict[str, HeldOut]:
        return {name: member.held_out(asked, inclusion, weights) for name, member in self._members.items()}

    def _chosen(self, checks: Mapping[str, HeldOut]) -> EstimatorChoice:
        names = tuple(checks)
        errors = np.stack([check.error for check in checks.values()], axis=1)
        if len(errors) == 0:
            return self._unchecked(names)
        mae = {name: float(e) for name, e in zip(names, np.abs(errors).mean(axis=0), strict=True)}
        best = min(mae, key=lambda name: mae[name])
        why = f"{best} errs least ({mae[best]:.3g}) on {len(errors)} held-out calibration models"
        share = zip(names, stacked(errors), strict=True)
        return EstimatorChoice(best, mae, why, {name: float(w) for name, w in share if w > 0})

    def _unchecked(self, names: tuple[str, ...]) -> EstimatorChoice:
        """What is believed where too few complete calibration models are known to hold some out."""
        bank = self.calibration.bank
        wanted = "p-irt" if bank is not None and bank.n_models >= TRUSTED_BANK else "stratified"
        name = wanted if wanted in names else names[0]
        return EstimatorChoice(name, {}, "too few complete calibration models to hold some out", {name: 1.0})

    def _blended(self, scores: Floats, asked: Bools, inclusion: Floats | None, weights: Floats) -> Estimated:
        checks = self._checks(asked, inclusion, weights)
        share = self._chosen(checks).weights
        parts = [(w, self._members[name].raw(scores, inclusion, weights)) for name, w in share.items()]
        factor = inflation(_blend_checks(checks, share)) * optimism(self.calibration, asked, inclusion)
        value = np.sum([w * part.value for w, part in parts], axis=0)
        se = np.sum([w * part.se for w, part in parts], axis=0) * factor
        odd = unlike(self.calibration, scores, asked)
        if odd.any() and (inclusion is None or bool(np.any(inclusion[asked] < 1))):
            plain = self._mean.raw(scores[odd], inclusion, weights)
            value[odd], se[odd] = plain.value, plain.se
        return Estimated(value, se)


def _blend_checks(checks: Mapping[str, HeldOut], share: Mapping[str, float]) -> HeldOut:
    rows = next(iter(checks.values())).rows
    error, se = np.zeros(rows.size), np.zeros(rows.size)
    for name, w in share.items():
        error += w * checks[name].error
        se += w * checks[name].se
    return HeldOut(rows, error, se)


def stacked(errors: Floats) -> Floats:
    """Weights of a convex blend with the least held-out mean square error, drawn to the inverse of squared errors.

    Minimises `|E w|^2 / h + (PRIOR_MODELS / h) s^2 |w - w0|^2` over the simplex, s^2 the mean square of all errors and
    w0 proportional to the estimators' mean square errors to the power -2.

    Args:
        errors: E, shape `(h, c)`, of c estimators on h models, the same in each row.

    Returns:
        Shape `(c,)`, not negative, sum 1; weights below `NEGLIGIBLE` are 0.
    """
    h, c = errors.shape
    square = (errors**2).mean(axis=0)
    scale = float(np.sqrt(square.mean()))
    if scale == 0:
        return np.full(c, 1.0 / c)
    prior = np.maximum(square / square.max(), 1e-6) ** -2
    prior /= prior.sum()
    pull = np.sqrt(PRIOR_MODELS / h) * scale
    tight = 1e3 * scale
    rows = np.vstack([errors / np.sqrt(h), pull * np.eye(c), np.full((1, c), tight)])
    found, _ = nnls(rows, np.concatenate([np.zeros(h), pull * prior, [tight]]))
    found[found < NEGLIGIBLE * found.sum()] = 0.0
    share: Floats = found / found.sum()
    return share


def choose_estimator(
    calibration: Calibration,
    asked: Bools,
    *,
    inclusion: Floats | None = None,
    target: Floats | None = None,
    names: Sequence[str] | None = None,
) -> EstimatorChoice:
    """What to believe of candidates that are asked these items (`make_estimator("auto", calibration)` does so).

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
    return Auto(calibration, names).choose(asked, inclusion, weights)
