"""What every estimator is given and gives: calibration, a linear functional of the answers, value, standard error.

Notation: `m` models (candidates), `n` items of the pool, `k` calibration models, `D` latent dimensions. The functional
is `sum_i target_i y_i` over all n items; what was not asked is NaN in `scores`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from evomerge.errors import ConfigError
from evomerge.irt.estimators.calibration import Calibration
from evomerge.irt.responses import Bools, Floats, Indices

__all__ = ["Calibration", "Estimated", "Estimator", "HeldOut"]


class Estimated(NamedTuple):
    """A functional of each model's answers over all items.

    Attributes:
        value: shape `(m,)`, in the unit of the target (the mean score by default); higher is better where scores are.
        se: shape `(m,)`, standard error over the items that were not asked; 0 where everything was asked. An interval
            is `value -+ z * se` with z from the normal distribution.
    """

    value: Floats
    se: Floats


class HeldOut(NamedTuple):
    """How an estimator did on calibration models that it had not seen, all asked the same items.

    Attributes:
        rows: shape `(h,)`, which calibration models.
        error: shape `(h,)`, estimate minus the functional's true value.
        se: shape `(h,)`, the standard error it had stated.
    """

    rows: Indices
    error: Floats
    se: Floats


class Pattern(NamedTuple):
    """Rows of a score matrix that were asked the same items.

    Attributes:
        rows: shape `(g,)`.
        asked: shape `(n,)`.
    """

    rows: Indices
    asked: Bools


class Estimator(ABC):
    """Estimates a linear functional of the answers to all items of the pool from the answers to some.

    Contract: `estimate` is deterministic, treats the rows of `scores` independently of each other, changes no argument,
    works with any set of asked items (none: what the calibration alone says), and returns the exact value with se 0 for
    rows that were asked everything.
    """

    name: str

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    @abstractmethod
    def estimate(self, scores: Floats, *, inclusion: Floats | None = None, target: Floats | None = None) -> Estimated:
        """The functional and its standard error.

        Args:
            scores: shape `(m, n)`, NaN where not asked.
            inclusion: shape `(n,)`, probability with which the design asked each item: 1 for items chosen on purpose;
                None: a simple random sample. Estimators that rest on the design use it, others do not need it.
            target: shape `(n,)`, weights of the functional; None: the mean, 1/n each.

        Raises:
            ValueError: a shape does not fit, or an inclusion probability is outside (0, 1] for an item that was asked.
        """

    def raw(self, scores: Floats, inclusion: Floats | None, weights: Floats) -> Estimated:
        """Rows that were all asked the same items, with the standard error before the held-out check corrects it."""
        return self.estimate(scores, inclusion=inclusion, target=weights)

    def held_out(self, asked: Bools, inclusion: Floats | None, weights: Floats) -> HeldOut:
        """What this estimator would have said of calibration models, estimated without them (see `Calibration.folds`).

        Args:
            asked: shape `(n,)`, the items that they are asked.
            inclusion: as in `estimate`.
            weights: shape `(n,)`, the functional.
        """
        rows, errors, ses = [], [], []
        for fold, estimator in zip(self.calibration.folds, self._unseen, strict=True):
            answers = self.calibration.responses.scores[fold.rows]
            said = estimator.raw(np.where(asked, answers, np.nan), inclusion, weights)
            rows.append(fold.rows)
            errors.append(said.value - answers @ weights)
            ses.append(said.se)
        if not rows:
            return HeldOut(np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros(0))
        return HeldOut(np.concatenate(rows), np.concatenate(errors), np.concatenate(ses))

    @cached_property
    def _unseen(self) -> tuple[Estimator, ...]:
        """This estimator without the held-out models, per fold."""
        return tuple(type(self)(fold.calibration) for fold in self.calibration.folds)


def checked(scores: Floats, n: int, inclusion: Floats | None, target: Floats | None) -> tuple[Floats, Floats]:
    """Scores as a float matrix and the target's weights.

    Raises:
        ValueError: a shape does not fit, or an inclusion probability is not in [0, 1].
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != n:
        raise ValueError(f"scores have shape {matrix.shape}, expected (models, {n})")
    if inclusion is not None and (inclusion.shape != (n,) or not np.all((inclusion >= 0) & (inclusion <= 1))):
        raise ValueError(f"inclusion must be {n} probabilities in [0, 1]")
    if target is not None and (target.shape != (n,) or not np.all(np.isfinite(target))):
        raise ValueError(f"target must be {n} finite weights")
    weights = np.full(n, 1.0 / n) if target is None else np.asarray(target, dtype=np.float64)
    return matrix, weights


def patterns(scores: Floats) -> Iterator[Pattern]:
    """Groups of rows that were asked the same items, in the order of their first row."""
    asked = ~np.isnan(scores)
    if len(asked) == 0:
        return
    if bool(np.all(asked == asked[0])):
        yield Pattern(np.arange(len(asked)), asked[0])
        return
    _, first, group = np.unique(np.packbits(asked, axis=1), axis=0, return_index=True, return_inverse=True)
    for g in np.argsort(first, kind="stable"):
        yield Pattern(np.flatnonzero(group.reshape(-1) == g), asked[first[g]])


def inclusion_of(asked: Bools, inclusion: Floats | None) -> Floats:
    """Shape `(n,)`: the inclusion probabilities, those of a simple random sample where none are given.

    Raises:
        ValueError: an item was asked that the design never asks.
    """
    if inclusion is None:
        return np.full(asked.size, max(float(asked.mean()), 1e-12))
    if np.any(inclusion[asked] <= 0):
        raise ValueError("an item was asked whose inclusion probability is 0")
    return np.asarray(inclusion, dtype=np.float64)


def known_part(scores: Floats, weights: Floats) -> Floats:
    """Shape `(m,)`: what the asked items contribute to the functional."""
    known: Floats = np.where(np.isnan(scores), 0.0, scores) @ weights
    return known


def needs_parents(name: str, calibration: Calibration) -> None:
    """Refuses a calibration without parents.

    Raises:
        ConfigError: there are none.
    """
    if not calibration.parents:
        raise ConfigError(
            f"the estimator {name} cannot be made",
            got="a calibration without parents",
            allowed="a calibration whose responses hold the parents' answers, their rows named",
            fix="choose an estimator that needs no parents, for instance p-irt or auto",
        )
