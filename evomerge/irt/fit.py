"""Fitting an item bank to a response matrix: constants set aside, a joint posterior mode, a standard population."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from evomerge.errors import EvaluationError
from evomerge.irt.ability import abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.joint import ItemPrior, Optimum, Point, maximise, start
from evomerge.irt.responses import Bools, Floats, Responses

FIT_VERSION = 1


@dataclass(frozen=True)
class FitSettings:
    """How a bank is fitted.

    Attributes:
        dimensions: D, 1 to 5.
        slope_mean: prior mean of first-dimension slopes; other dimensions have prior mean 0.
        slope_sd: prior standard deviation of all slopes.
        intercept_sd: prior standard deviation of intercepts (mean 0).
        max_iterations: of the optimiser.
        tolerance: relative change of the log posterior at which it stops.
    """

    dimensions: int = 1
    slope_mean: float = 1.0
    slope_sd: float = 1.0
    intercept_sd: float = 3.0
    max_iterations: int = 500
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        if not 1 <= self.dimensions <= 5:
            raise EvaluationError(
                "A bank cannot have that many dimensions.",
                got=f"dimensions = {self.dimensions}",
                allowed="1 to 5",
                fix="choose fewer dimensions, or let them be chosen by held-out answers (`auto`).",
            )
        if not (self.slope_sd > 0 and self.intercept_sd > 0 and self.tolerance > 0 and self.max_iterations >= 1):
            raise ValueError("prior standard deviations, tolerance and max_iterations must be positive")


@dataclass(frozen=True)
class Fit:
    """A fitted bank and the abilities of the models that it was fitted to.

    Attributes:
        bank: the items; the models' abilities have mean 0 and covariance I in its units.
        theta: shape `(m, D)`, posterior modes given the bank.
        log_posterior: at the optimum, up to a constant that depends on neither abilities nor items.
        iterations: of the optimiser.
        converged: whether it met the tolerance within `max_iterations`.
    """

    bank: ItemBank
    theta: Floats
    log_posterior: float
    iterations: int
    converged: bool


class _Population(NamedTuple):
    mean: Floats
    covariance: Floats


def constant_scores(scores: Floats) -> Floats:
    """Per item the score that all its observed answers share, else NaN (also where nothing was observed): `(n,)`."""
    seen = ~np.isnan(scores)
    low = np.where(seen, scores, np.inf).min(axis=0)
    high = np.where(seen, scores, -np.inf).max(axis=0)
    return np.where(low == high, low, np.nan)


def fit(
    responses: Responses, settings: FitSettings | None = None, *, provenance: Mapping[str, Any] | None = None
) -> Fit:
    """Fit item parameters and abilities together.

    Args:
        responses: what the calibration models answered; holes are left out.
        settings: how.
        provenance: where the answers came from, plain JSON, kept in the bank.

    Returns:
        The bank and the models' abilities. Where every item is a constant (one model, or all answers alike) the bank
        holds constants only and all abilities are 0.

    Raises:
        EvaluationError: when there is no answer at all.
    """
    settings = settings or FitSettings()
    scores = responses.scores
    _check_answers(responses)
    constants = constant_scores(scores)
    free = np.isnan(constants)
    if not free.any():
        return _constants_only(responses, settings, constants, provenance or {})
    prior = _prior(settings)
    part = scores[:, free]
    optimum = maximise(
        part,
        prior,
        start(part, prior),
        max_iterations=settings.max_iterations,
        tolerance=settings.tolerance,
    )
    return _finished(responses, settings, optimum=optimum, free=free, constants=constants, provenance=provenance or {})


def _check_answers(responses: Responses) -> None:
    if responses.scores.size == 0 or not responses.seen.any():
        raise EvaluationError(
            "An item bank cannot be fitted: there are no answers.",
            got=f"{len(responses.models)} models, {len(responses.items)} items, 0 answers",
            allowed="at least one answer; two models that differ in an item to learn anything about abilities",
            fix="give answers of some models (log them with --log_samples, or let a run evaluate its parents).",
        )


def _prior(settings: FitSettings) -> ItemPrior:
    mean = np.zeros(settings.dimensions)
    mean[0] = settings.slope_mean
    return ItemPrior(mean, np.full(settings.dimensions, settings.slope_sd), 0.0, settings.intercept_sd)


def _constants_only(
    responses: Responses, settings: FitSettings, constants: Floats, provenance: Mapping[str, Any]
) -> Fit:
    (m, n), d = responses.scores.shape, settings.dimensions
    bank = ItemBank(
        responses.items,
        np.zeros((n, d)),
        np.zeros(n),
        np.ones(n),
        constants,
        np.zeros(d),
        np.eye(d),
        responses.link,
        m,
        _told(settings),
        provenance,
    )
    return Fit(bank, np.zeros((m, d)), 0.0, 0, True)


def _told(settings: FitSettings) -> dict[str, Any]:
    return {**asdict(settings), "version": FIT_VERSION}


def _population(scores: Floats, point: Point) -> _Population:
    """Mean and covariance of the abilities: spread of the modes plus their own uncertainty, one unit model of prior."""
    theta, slopes = point.theta, point.slopes
    m, d = theta.shape
    p = 1 / (1 + np.exp(-np.clip(theta @ slopes.T + point.intercepts, -30, 30)))
    weight = np.where(np.isnan(scores), 0.0, p * (1 - p))
    outer = (slopes[:, :, None] * slopes[:, None, :]).reshape(-1, d * d)
    laplace = np.linalg.inv((weight @ outer).reshape(m, d, d) + np.eye(d))
    mean = theta.mean(axis=0)
    off = theta - mean
    covariance = (off.T @ off + laplace.sum(axis=0) + np.eye(d)) / (m + 1)
    return _Population(mean, covariance)


def _standardised(point: Point, population: _Population) -> tuple[Floats, Floats]:
    """Slopes and intercepts in units where the population is N(0, I), first-dimension slopes still not negative.

    With `covariance = U U'`, U upper triangular, `theta = mean + U t` and `slopes U` has as its first column the old
    one times a positive number. Later dimensions are rotated to their principal axes, largest first.
    """
    flip = population.covariance[::-1, ::-1]
    upper = np.linalg.cholesky(flip)[::-1, ::-1]
    slopes = point.slopes @ upper
    if slopes.shape[1] > 2:
        _, _, axes = np.linalg.svd(slopes[:, 1:], full_matrices=False)
        slopes[:, 1:] = slopes[:, 1:] @ _square(axes, slopes.shape[1] - 1).T
    signs = np.where(np.sum(slopes[:, 1:] ** 3, axis=0) < 0, -1.0, 1.0)
    slopes[:, 1:] *= signs
    return slopes, point.intercepts + point.slopes @ population.mean


def _square(axes: Floats, size: int) -> Floats:
    """The rotation `axes`, or no rotation where too few items define one."""
    return axes if axes.shape == (size, size) else np.eye(size)


def _finished(
    responses: Responses,
    settings: FitSettings,
    *,
    optimum: Optimum,
    free: Bools,
    constants: Floats,
    provenance: Mapping[str, Any],
) -> Fit:
    m, n = responses.scores.shape
    d = settings.dimensions
    slopes, intercepts = np.zeros((n, d)), np.zeros(n)
    population = _population(responses.scores[:, free], optimum.point)
    slopes[free], intercepts[free] = _standardised(optimum.point, population)
    bank = ItemBank(
        responses.items,
        slopes,
        intercepts,
        np.ones(n),
        constants,
        np.zeros(d),
        np.eye(d),
        responses.link,
        m,
        _told(settings),
        provenance,
    )
    theta = abilities(bank, responses.scores).theta
    return Fit(bank, theta, optimum.log_posterior, optimum.iterations, optimum.converged)
