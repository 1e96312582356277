"""Fitting an item bank to a response matrix: constants set aside, a posterior mode, a standard population."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from evomerge.errors import EvaluationError
from evomerge.irt import factor, joint
from evomerge.irt.ability import abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.priors import ItemPrior, adapted, population, standardised
from evomerge.irt.responses import Floats, Responses
from evomerge.irt.starting import start

FIT_VERSION = 1
_ROUGH = 1e-6  # tolerance of optima that only serve to adapt the prior


@dataclass(frozen=True)
class FitSettings:
    """How a bank is fitted.

    Attributes:
        dimensions: D, 1 to 5.
        slope_mean: prior mean of first-dimension slopes, >= 0; other dimensions have prior mean 0.
        slope_sd: prior standard deviation of all slopes.
        intercept_mean: prior mean of intercepts.
        intercept_sd: prior standard deviation of intercepts.
        adaptations: how often the prior is refitted to the items (empirical Bayes); 0 takes it as given.
        constant_answers: an item is a constant when at least so many models answered it, all alike. Fewer alike answers
            may be chance: such items are fitted, and the prior keeps them from being called certain.
        max_iterations: of the optimiser, per adaptation.
        tolerance: relative change of the log posterior at which it stops.
    """

    dimensions: int = 1
    slope_mean: float = 1.0
    slope_sd: float = 0.5
    intercept_mean: float = 0.0
    intercept_sd: float = 2.0
    adaptations: int = 2
    constant_answers: int = 50
    max_iterations: int = 500
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        if not 1 <= self.dimensions <= 5:
            raise EvaluationError(
                "An item bank cannot have that many dimensions.",
                got=f"dimensions = {self.dimensions}",
                allowed="1 to 5",
                fix="choose fewer dimensions, or let held-out answers choose them (`auto`).",
            )
        if not (self.slope_mean >= 0 and self.slope_sd > 0 and self.intercept_sd > 0 and self.tolerance > 0):
            raise ValueError("prior standard deviations and the tolerance must be positive, slope_mean not negative")
        if self.max_iterations < 1 or self.adaptations < 0 or self.constant_answers < 1:
            raise ValueError("max_iterations and constant_answers must be at least 1, adaptations at least 0")


@dataclass(frozen=True)
class Fit:
    """A fitted bank and the abilities of the models that it was fitted to.

    Attributes:
        bank: the items; the population of models has mean 0 and covariance I in its units.
        theta: shape `(m, D)`, posterior modes given the bank; about mean 0, and sd 1 where many items were asked.
        log_posterior: of the last optimum, up to a constant that depends only on the matrix's shape (logistic: of
            abilities and items jointly; normal: of the items, abilities integrated out, scores standardised).
        iterations: of the optimiser, all adaptations together.
        converged: whether it met the tolerance within `max_iterations`.
    """

    bank: ItemBank
    theta: Floats
    log_posterior: float
    iterations: int
    converged: bool


class _Solved(NamedTuple):
    """A solver's result in the units of the scores, the population standardised."""

    slopes: Floats
    intercepts: Floats
    noise: Floats
    log_posterior: float
    iterations: int
    converged: bool


def constant_scores(scores: Floats, at_least: int = 1) -> Floats:
    """Per item the score that all its observed answers share, NaN for other items: `(n,)`.

    Args:
        scores: shape `(m, n)`, NaN where not asked.
        at_least: how many answers it takes to call an item constant, >= 1.
    """
    seen = ~np.isnan(scores)
    low = np.where(seen, scores, np.inf).min(axis=0, initial=np.inf)
    high = np.where(seen, scores, -np.inf).max(axis=0, initial=-np.inf)
    return np.where((low == high) & (seen.sum(axis=0) >= at_least), low, np.nan)


def fit(
    responses: Responses, settings: FitSettings | None = None, *, provenance: Mapping[str, Any] | None = None
) -> Fit:
    """Fit item parameters and abilities together; equal arguments give equal bits on one machine and thread count.

    One model, one item, items that nobody was asked and matrices of equal answers are all fitted: where the answers say
    nothing, the prior speaks. Items without any answer get the typical item's parameters. Where every item is a
    constant (see `FitSettings.constant_answers`) the bank holds constants only and all abilities are 0.

    Args:
        responses: what the calibration models answered; holes are left out. Scores inside (0, 1) are treated as
            quasi-likelihood; with any score outside [0, 1] the items are normal (`Responses.link`).
        settings: how; the defaults suit ten models as well as thousands.
        provenance: where the answers came from, plain JSON, kept in the bank.

    Raises:
        EvaluationError: when there is no answer at all.
    """
    settings = settings or FitSettings()
    if not responses.seen.any():
        raise EvaluationError(
            "An item bank cannot be fitted: there are no answers.",
            got=f"{len(responses.models)} models, {len(responses.items)} items, 0 answers",
            allowed="at least one answer; only models that differ say something about ability",
            fix="give answers of some models (lm-eval's --log_samples, or a run that evaluated its parents).",
        )
    scores = responses.scores
    constants = constant_scores(scores, settings.constant_answers)
    free = np.isnan(constants)
    solve = _solve_logistic if responses.link == "logistic" else _solve_normal
    solved = solve(scores[:, free], settings) if free.any() else None
    n, d = free.size, settings.dimensions
    slopes, intercepts, noise = np.zeros((n, d)), np.zeros(n), np.ones(n)
    if solved is not None:
        slopes[free], intercepts[free], noise[free] = solved.slopes, solved.intercepts, solved.noise
    bank = ItemBank(
        responses.items,
        slopes,
        intercepts,
        noise,
        constants,
        np.zeros(d),
        np.eye(d),
        responses.link,
        len(responses.models),
        {**asdict(settings), "version": FIT_VERSION},
        provenance or {},
    )
    theta = abilities(bank, scores).theta
    if solved is None:
        return Fit(bank, theta, 0.0, 0, True)
    return Fit(bank, theta, solved.log_posterior, solved.iterations, solved.converged)


def _prior(settings: FitSettings) -> ItemPrior:
    mean = np.zeros(settings.dimensions)
    mean[0] = settings.slope_mean
    width = np.full(settings.dimensions, settings.slope_sd)
    return ItemPrior(mean, width, settings.intercept_mean, settings.intercept_sd)


def _solve_logistic(scores: Floats, settings: FitSettings) -> _Solved:
    given = prior = _prior(settings)
    point = start(scores, prior, "logistic")
    iterations = 0
    for left in range(settings.adaptations, -1, -1):
        tolerance = max(settings.tolerance, _ROUGH if left else 0.0)
        optimum = joint.maximise(scores, prior, point, max_iterations=settings.max_iterations, tolerance=tolerance)
        iterations += optimum.iterations
        weight = joint.fisher_weights(scores, optimum.point)
        point = standardised(optimum.point, population(optimum.point, weight))
        prior = adapted(given, prior, point, weight) if left else prior
    noise = np.ones(scores.shape[1])
    return _Solved(point.slopes, point.intercepts, noise, optimum.log_posterior, iterations, optimum.converged)


def _solve_normal(scores: Floats, settings: FitSettings) -> _Solved:
    columns = factor.Columns.of(scores)
    x = (scores - columns.centre) / columns.spread
    given = prior = _prior(settings)._replace(intercept_mean=0.0)
    point, noise, iterations = start(x, prior, "normal"), np.full(x.shape[1], 0.7), 0
    for left in range(settings.adaptations, -1, -1):
        tolerance = max(settings.tolerance, _ROUGH if left else 0.0)
        optimum = factor.maximise(x, prior, point, noise, max_iterations=settings.max_iterations, tolerance=tolerance)
        iterations, noise = iterations + optimum.iterations, optimum.noise
        weight = np.where(np.isnan(x), 0.0, noise**-2)
        point = standardised(optimum.point, population(optimum.point, weight))
        prior = adapted(given, prior, point, weight) if left else prior
    slopes = columns.spread[:, None] * point.slopes
    intercepts = columns.centre + columns.spread * point.intercepts
    return _Solved(slopes, intercepts, columns.spread * noise, optimum.log_posterior, iterations, optimum.converged)
