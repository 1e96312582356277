"""How well a bank predicts what it was not fitted to: models that it never saw, and answers that it did not see.

The matrix is fitted several times without some of its models and without a tenth of the other models' answers. A
model that was left out is asked a few random items and its mean over all items is predicted; the answers that were
left out are predicted one by one. Every fit serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from evomerge.calibration.sheets import counted
from evomerge.irt.ability import abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.fit import FitSettings, fit
from evomerge.irt.responses import Bools, Floats, Responses
from evomerge.seeds import generator

ASKED: Final = (10, 20, 50, 100)
"""Numbers of items after which the mean of an unknown model is predicted."""

MIN_MODELS: Final = 4
"""With fewer there is nobody to hold out."""

_HIDDEN_SHARE: Final = 0.1
_N_BINS: Final = 10
_MANY_CELLS: Final = 1_000_000
"""Above it one fit in place of five: its held-out answers are many enough."""


class Error(NamedTuple):
    """Mean absolute errors of the predicted mean score after `asked` random items: by the bank, by their plain mean."""

    asked: int
    bank: float
    mean: float


class Bin(NamedTuple):
    """Answers with similar predictions: their mean prediction, their mean score, and how many there are."""

    predicted: float
    observed: float
    n: int


@dataclass(frozen=True)
class Predictions:
    """Predictions of single answers.

    Attributes:
        n: how many answers.
        log_likelihood: mean log-likelihood per answer, in nats (normal items: of the density).
        baseline: the same when every item is predicted by its mean over the known models.
        bins: for the calibration curve, ascending.
    """

    n: int
    log_likelihood: float
    baseline: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Quality:
    """Everything that held-out models and answers say.

    Attributes:
        n_models: models that were held out, each once.
        errors: of their predicted means, by number of items asked.
        new_models: single answers of held-out models, predicted from the largest number of items asked.
        new_answers: single left-out answers of models that the bank knows.
        why_not: why something is missing; empty otherwise.
    """

    n_models: int = 0
    errors: tuple[Error, ...] = ()
    new_models: Predictions | None = None
    new_answers: Predictions | None = None
    why_not: str = ""


class _Cells(NamedTuple):
    """Predicted cells of one fold, each of shape `(k,)`; `sd` is the residual deviation of normal items."""

    observed: Floats
    predicted: Floats
    sd: Floats
    base: Floats
    base_sd: Floats


def measure(
    responses: Responses, settings: FitSettings, *, seed: int = 0, step: Callable[[], None] = lambda: None
) -> Quality:
    """Fit without some models and answers, and predict them.

    Args:
        responses: all answers.
        settings: of the bank that is judged.
        seed: which models and answers are held out together.
        step: called after every one of `n_folds(responses)` fits.
    """
    m, n = responses.scores.shape
    if n_folds(responses) == 0:
        return Quality(why_not=f"{counted(m, 'model')} and {counted(n, 'item')} are too few to hold some out")
    order = generator(seed, "calibrate", "folds").permutation(m)
    parts = np.array_split(order, 5)[: n_folds(responses)]
    sizes = asked_sizes(int(np.median(responses.seen.sum(axis=1))))
    offs: list[Floats] = []
    new_models: list[_Cells] = []
    new_answers: list[_Cells] = []
    for number, held in enumerate(parts):
        rng = generator(seed, "calibrate", "fold", number)
        known = np.setdiff1d(order, held)
        scores = responses.scores[known]
        hidden = responses.seen[known] & (rng.random(scores.shape) < _HIDDEN_SHARE)
        shown = Responses(np.where(hidden, np.nan, scores), tuple(responses.models[i] for i in known), responses.items)
        bank = fit(shown, settings).bank
        base = _baseline(shown)
        new_answers.append(_cells(bank, base, shown.scores, scores, hidden))
        offs.append(_mean_errors(bank, responses.scores[held], sizes, rng))
        asked = _drawn(responses.seen[held], sizes[-1], rng)
        rest = responses.seen[held] & ~asked
        told = np.where(asked, responses.scores[held], np.nan)
        new_models.append(_cells(bank, base, told, responses.scores[held], rest))
        step()
    off = np.concatenate(offs)
    errors = [Error(k, *(float(e) for e in np.nanmean(off[:, i], axis=0))) for i, k in enumerate(sizes)]
    logistic = responses.link == "logistic"
    return Quality(off.shape[0], tuple(errors), _predictions(new_models, logistic), _predictions(new_answers, logistic))


def n_folds(responses: Responses) -> int:
    """How many fits `measure` makes; 0 where nothing can be held out."""
    m, n = responses.scores.shape
    if m < MIN_MODELS or n < 2:
        return 0
    return 1 if responses.scores.size > _MANY_CELLS else min(5, m)


def asked_sizes(n_answered: int) -> tuple[int, ...]:
    """Those of `ASKED` that leave half of the answers to predict; half of the answers where none does.

    Args:
        n_answered: how many items a usual model answered.
    """
    return tuple(k for k in ASKED if 2 * k <= n_answered) or (max(1, n_answered // 2),)


def _drawn(seen: Bools, k: int, rng: np.random.Generator) -> Bools:
    """`k` random ones of every row's seen items (half of them where there are fewer than `2 k`); shape as `seen`."""
    key = np.where(seen, rng.random(seen.shape), np.inf)
    rank = key.argsort(axis=1).argsort(axis=1)
    few = np.minimum(k, np.maximum(1, seen.sum(axis=1) // 2))
    out: Bools = seen & (rank < few[:, None])
    return out


def _mean_errors(bank: ItemBank, scores: Floats, sizes: Sequence[int], rng: np.random.Generator) -> Floats:
    """Absolute errors of predicted means, shape `(models, sizes, 2)`: the bank's, and the plain mean's."""
    seen = ~np.isnan(scores)
    truth = np.nanmean(scores, axis=1)
    out = np.empty((scores.shape[0], len(sizes), 2))
    for i, k in enumerate(sizes):
        asked = _drawn(seen, k, rng)
        told = np.where(asked, scores, np.nan)
        predicted = bank.predict(abilities(bank, told).theta)
        filled = np.where(asked, scores, predicted)
        out[:, i, 0] = np.abs(np.mean(filled, axis=1, where=seen) - truth)
        out[:, i, 1] = np.abs(np.nanmean(told, axis=1) - truth)
    return out


def _baseline(shown: Responses) -> tuple[Floats, Floats]:
    """Per item the mean over the known models, drawn to the overall one by one answer, and the deviation from it."""
    scores = shown.scores
    overall = float(np.nanmean(scores))
    count = shown.seen.sum(axis=0)
    mean = (np.nansum(scores, axis=0) + overall) / (count + 1)
    total = float(np.nanvar(scores)) or 1.0
    spread = (np.nansum((scores - mean) ** 2, axis=0) + total) / (count + 1)
    return mean, np.sqrt(spread)


def _cells(bank: ItemBank, base: tuple[Floats, Floats], told: Floats, truth: Floats, wanted: Bools) -> _Cells:
    """Predictions of the wanted cells from what was told."""
    theta = abilities(bank, told).theta
    predicted = bank.predict(theta)
    shape = predicted.shape
    noise = np.where(bank.fitted, bank.noise, base[1])
    return _Cells(
        truth[wanted],
        predicted[wanted],
        np.broadcast_to(noise, shape)[wanted],
        np.broadcast_to(base[0], shape)[wanted],
        np.broadcast_to(base[1], shape)[wanted],
    )


def _predictions(folds: Sequence[_Cells], logistic: bool) -> Predictions | None:
    observed, predicted, sd, base, base_sd = (np.concatenate(parts) for parts in zip(*folds, strict=True))
    if not observed.size:
        return None
    return Predictions(
        observed.size,
        float(np.mean(_log_likelihood(observed, predicted, sd, logistic))),
        float(np.mean(_log_likelihood(observed, base, base_sd, logistic))),
        _bins(observed, predicted, logistic),
    )


def _log_likelihood(observed: Floats, predicted: Floats, sd: Floats, logistic: bool) -> Floats:
    if not logistic:
        z = (observed - predicted) / sd
        out: Floats = -0.5 * z * z - np.log(sd) - 0.5 * np.log(2 * np.pi)
        return out
    p = np.clip(predicted, 1e-3, 1 - 1e-3)  # a constant item that breaks its rule costs 6.9 nats, not infinity
    return np.asarray(observed * np.log(p) + (1 - observed) * np.log1p(-p))


def _bins(observed: Floats, predicted: Floats, logistic: bool) -> tuple[Bin, ...]:
    """Tenths of [0, 1] for probabilities, tenths of the predictions in order for other scores."""
    if logistic:
        place = np.minimum((predicted * _N_BINS).astype(np.intp), _N_BINS - 1)
    else:
        place = predicted.argsort(kind="stable").argsort(kind="stable") * _N_BINS // predicted.size
    found = [place == b for b in range(_N_BINS)]
    return tuple(
        Bin(float(predicted[inside].mean()), float(observed[inside].mean()), int(inside.sum()))
        for inside in found
        if inside.any()
    )
