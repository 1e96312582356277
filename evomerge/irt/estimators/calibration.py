"""What is known before a candidate answers anything, and the held-out check on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from evomerge.irt.bank import ItemBank
from evomerge.irt.fit import FitSettings, fit
from evomerge.irt.responses import Floats, Indices, Responses
from evomerge.seeds import generator

PSEUDO_MODELS: Final = 2.0
"""How many models' weight the overall mean has in an item's mean."""

FOLDS: Final = 5
FEWEST_HELD_OUT: Final = 5
MOST_HELD_OUT: Final = 120


class Fold(NamedTuple):
    """One part of the held-out check.

    Attributes:
        rows: shape `(h,)`, the calibration models that are held out.
        calibration: what is known without them.
    """

    rows: Indices
    calibration: Calibration


@dataclass(frozen=True)
class Calibration:
    """What is known before a candidate answers anything.

    Attributes:
        responses: answers of known models to the items of the pool; may have holes.
        bank: the item bank of the same items in the same order; None: estimators that need one fit it.
        parents: rows of `responses` that are the parents of what will be estimated.
        seed: of the random choices in the held-out check.
    """

    responses: Responses
    bank: ItemBank | None = None
    parents: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        k = len(self.responses.models)
        if not self.responses.items:
            raise ValueError("a calibration needs at least one item")
        if self.bank is not None and self.bank.items != self.responses.items:
            raise ValueError("the bank's items are not those of the responses, or stand in another order")
        if len(set(self.parents)) != len(self.parents) or not all(0 <= row < k for row in self.parents):
            raise ValueError(f"parents {self.parents} are not different rows of {k} models")

    @property
    def n(self) -> int:
        """Items of the pool."""
        return len(self.responses.items)

    @cached_property
    def grand_mean(self) -> float:
        """Mean of all answers; 0.5 where there are none."""
        scores = self.responses.scores
        return float(np.nanmean(scores)) if bool(np.any(~np.isnan(scores))) else 0.5

    @cached_property
    def item_means(self) -> Floats:
        """Shape `(n,)`: each item's mean over the models that saw it, drawn a little to the mean of all answers."""
        seen = self.responses.seen
        total = np.where(seen, self.responses.scores, 0.0).sum(axis=0)
        means: Floats = (total + PSEUDO_MODELS * self.grand_mean) / (seen.sum(axis=0) + PSEUDO_MODELS)
        return means

    @cached_property
    def filled(self) -> Floats:
        """Shape `(k, n)`: the responses, holes filled by item mean plus how far the model is above the item means."""
        seen = self.responses.seen
        surplus = np.where(seen, self.responses.scores - self.item_means, 0.0).sum(axis=1)
        level = surplus / (seen.sum(axis=1) + PSEUDO_MODELS)
        guess = self.item_means + level[:, None]
        if self.responses.link == "logistic":
            guess = np.clip(guess, 0.0, 1.0)
        full: Floats = np.where(seen, self.responses.scores, guess)
        return full

    @cached_property
    def answer_variance(self) -> float:
        """`variance_within` all items."""
        return self.variance_within(np.arange(self.n))

    @cached_property
    def _guessed_variance(self) -> float:
        seen = self.responses.scores[self.responses.seen]
        return 0.25 if self.responses.link == "logistic" else float(seen.var())

    def variance_within(self, group: Indices) -> float:
        """Mean variance of a model's answers between the items of a group, smoothed by one model's weight of guess.

        The guess is 1/4 for scores in [0, 1], else the variance of all answers.
        """
        guess = self._guessed_variance
        if len(group) < 2:
            return guess
        return float((self.filled[:, group].var(axis=1, ddof=1).sum() + guess) / (len(self.filled) + 1))

    @cached_property
    def fitted_bank(self) -> ItemBank:
        """The bank; where none was given, a one-dimensional one fitted to the responses."""
        return fit(self.responses).bank if self.bank is None else self.bank

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """The held-out check: every complete row that is no parent is held out once, banks fitted without it.

        At most `MOST_HELD_OUT` models are held out. A bank that was calibrated on more models than the responses hold
        came from elsewhere and is used as it is. Empty where fewer than `FEWEST_HELD_OUT` models can be held out.
        """
        rows = np.flatnonzero(self.responses.seen.all(axis=1))
        rows = np.setdiff1d(rows, np.array(self.parents, dtype=np.intp))
        rows = generator(self.seed, "held-out").permutation(rows)[:MOST_HELD_OUT]
        if rows.size < FEWEST_HELD_OUT:
            return ()
        parts = np.array_split(rows, min(FOLDS, rows.size))
        return tuple(Fold(np.sort(part), self._without(part)) for part in parts)

    def _without(self, rows: Indices) -> Calibration:
        kept = np.setdiff1d(np.arange(len(self.responses.models)), rows)
        bank = self.fitted_bank
        if self.bank is None or bank.n_models <= len(self.responses.models):
            bank = fit(self.responses.rows(kept), FitSettings(dimensions=bank.dimensions)).bank
        return self.subset(kept, bank)

    def variance_between(self, group: Indices) -> float:
        """Variance of the models' mean answers to the items of a group, smoothed by one model's weight of guess.

        The guess is half of what single answers vary by.
        """
        guess = 0.5 * self._guessed_variance
        if len(self.filled) == 0 or len(group) == 0:
            return guess
        means = self.filled[:, group].mean(axis=1)
        return float((((means - means.mean()) ** 2).sum() + guess) / len(means))

    @property
    def n_models(self) -> int:
        """How many models stand behind what is known of the items."""
        return max(len(self.responses.models), 0 if self.bank is None else self.bank.n_models)

    def subset(self, rows: Indices, bank: ItemBank | None) -> Calibration:
        """Some of the models (parents that are not among them are parents no more) with a bank fitted to them."""
        place = {int(row): i for i, row in enumerate(rows)}
        parents = tuple(place[row] for row in self.parents if row in place)
        return Calibration(self.responses.rows(rows), bank, parents, self.seed)
