"""How many latent dimensions the answers support, by predicting answers that were held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.errors import EvaluationError
from evomerge.irt.ability import abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.fit import FitSettings, fit
from evomerge.irt.responses import Bools, Floats, Responses
from evomerge.seeds import generator

_PARTS = 5
_ENOUGH_CELLS = 20_000  # a fifth of so many cells tells dimensions apart; smaller matrices hold out more parts
_CERTAIN = 1e-3  # a prediction is never held to be surer than that


@dataclass(frozen=True)
class DimensionChoice:
    """The number of dimensions to use.

    Attributes:
        dimensions: the fewest that predict about as well as the best.
        scores: mean log likelihood per held-out answer for each candidate (nats; higher is better).
    """

    dimensions: int
    scores: Mapping[int, float]


def choose_dimensions(
    responses: Responses,
    candidates: Sequence[int] = (1, 2, 3),
    *,
    seed: int = 0,
    settings: FitSettings | None = None,
    tolerance: float = 0.002,
) -> DimensionChoice:
    """Choose D by held-out cells: fit on four fifths of the answers, predict the rest given each model's other answers.

    The simplest candidate wins whose loss against the best is within `tolerance` or within one standard error of the
    paired difference over models (the one-standard-error rule; Hastie, Tibshirani & Friedman 2009, section 7.10).

    Args:
        responses: the calibration models' answers.
        candidates: numbers of dimensions, each 1 to 5.
        seed: of the held-out cells.
        settings: everything else of the fits.
        tolerance: nats per answer that more dimensions must gain to be worth having.

    Raises:
        EvaluationError: when there are no candidates, or fewer than two answers.
    """
    sizes = sorted(set(candidates))
    if not sizes or int(responses.seen.sum()) < 2:
        raise EvaluationError(
            "The number of dimensions cannot be chosen.",
            got=f"candidates {list(candidates)}, {int(responses.seen.sum())} answers",
            allowed="at least one candidate from 1 to 5, and at least two answers",
            fix="name a number of dimensions instead of `auto`, or give more answers.",
        )
    gains = {d: np.zeros(len(responses.models)) for d in sizes}
    counts = np.zeros(len(responses.models))
    for held in _splits(responses, seed):
        counts += held.sum(axis=1)
        for d in sizes:
            likelihood = _held_out(responses, held, replace(settings or FitSettings(), dimensions=d))
            gains[d] += np.where(held, likelihood, 0.0).sum(axis=1)
    scores = {d: float(gains[d].sum() / counts.sum()) for d in sizes}
    best = max(sizes, key=lambda d: scores[d])
    for d in sizes:
        if scores[best] - scores[d] <= max(tolerance, _standard_error(gains[best] - gains[d], counts)):
            return DimensionChoice(d, scores)
    return DimensionChoice(best, scores)


def _splits(responses: Responses, seed: int) -> Iterator[Bools]:
    """Masks `(m, n)` of answers to hold out: disjoint fifths of all answers, as many as the matrix is too small."""
    rows, columns = np.nonzero(responses.seen)
    order = generator(seed, "irt-dimensions").permutation(rows.size)
    parts = min(_PARTS, rows.size)
    wanted = int(np.clip(np.ceil(_ENOUGH_CELLS / rows.size), 1, parts))
    for part in range(wanted):
        chosen = order[part::parts]
        held = np.zeros(responses.scores.shape, dtype=bool)
        held[rows[chosen], columns[chosen]] = True
        yield held


def _held_out(responses: Responses, held: Bools, settings: FitSettings) -> Floats:
    """Log likelihood of every answer, `(m, n)`, under a fit that did not see the held-out ones."""
    kept = np.where(held, np.nan, responses.scores)
    bank = fit(Responses(kept, responses.models, responses.items), settings).bank
    if bank.link != responses.link:  # every score outside [0, 1] was held out
        return np.zeros(kept.shape)
    who = abilities(bank, kept)
    expected = bank.predict(who.theta)
    y = np.where(held, responses.scores, expected)
    if bank.link == "logistic":
        p = np.clip(expected, _CERTAIN, 1 - _CERTAIN)
        return np.asarray(y * np.log(p) + (1 - y) * np.log(1 - p), dtype=np.float64)
    variance = _predictive_variance(bank, who.covariance)
    return np.asarray(-0.5 * (np.log(2 * np.pi * variance) + (y - expected) ** 2 / variance), dtype=np.float64)


def _predictive_variance(bank: ItemBank, covariance: Floats) -> Floats:
    """Variance of a new answer to a normal item, abilities being unsure: `(m, n)`, > 0; constants as if noise 1."""
    spread = np.einsum("nd,mde,ne->mn", bank.slopes, covariance, bank.slopes, optimize=True)
    return np.asarray(spread + bank.noise**2, dtype=np.float64)


def _standard_error(differences: Floats, counts: Floats) -> float:
    """Standard error of the mean difference per answer, models being what varies."""
    asked = counts > 0
    k = int(asked.sum())
    if k < 2:
        return 0.0
    mean = float(differences.sum() / counts.sum())
    residual = differences[asked] - mean * counts[asked]
    return float(np.sqrt(k / (k - 1) * np.sum(residual**2)) / counts.sum())
