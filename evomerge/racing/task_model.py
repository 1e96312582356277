"""One task's part of the race: its item bank, what is uncertain now, and what few answers say about all items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, final

import numpy as np

from evomerge.irt.ability import abilities
from evomerge.irt.bank import ItemBank
from evomerge.irt.estimators.alarm import unlike
from evomerge.irt.estimators.base import Calibration, Estimated, Estimator, patterns
from evomerge.irt.estimators.choice import choose_estimator
from evomerge.irt.estimators.registry import make_estimator
from evomerge.irt.fit import fit
from evomerge.irt.responses import Bools, Floats
from evomerge.irt.weighted import uncertainty
from evomerge.racing.answers import AnswerTable
from evomerge.types import Digest

RECENT_MODELS: Final = 64
"""Partly asked models that a bank is fitted to, the latest first: items are to be known at the present ability."""

GROWTH: Final = 1.3
"""A bank is fitted anew when there are so many times the models it was fitted to."""

FEWEST_MODELS: Final = 5
"""With fewer models no bank is fitted."""

SEARCH_ESTIMATORS: Final = ("p-irt", "stratified")
"""What `estimator: auto` compares in a search whose items are random samples. Parents-centred ones shrink better merges
to their parents, ridge cannot predict beyond the models that it was fitted to; neither ranks siblings better on the toy
zoos. Where items were chosen for what they tell, it is p-IRT without a comparison: design-based estimators would let a
handful of unlikely items speak for all others."""

LEAST_RANDOM: Final = 8
"""Effective number of answers (Kish) for a score to be taken from them alone."""

DOUBT: Final = 2.0
"""Standard errors of a candidate that the bank does not fit are so many times larger, where it has too few answers."""

_LEAST_SPREAD: Final = 0.15


@dataclass(frozen=True)
class Fitted:
    """A bank with what was chosen on its account.

    Attributes:
        bank: its population is the recent generation's; None where the estimator needs none.
        calibration: what it was fitted to.
        estimator: in use.
        errors: mean absolute error of the estimators on held-out models, empty when none was compared.
        n_models: how many models it was fitted to.
    """

    bank: ItemBank | None
    calibration: Calibration
    estimator: Estimator
    errors: Mapping[str, float]
    n_models: int


class Report(NamedTuple):
    """What a fit has come to, for the journal and for people."""

    n_models: int
    dimensions: int
    estimator: str
    errors: Mapping[str, float]


@final
class TaskModel:
    """See the module docstring.

    Args:
        table: the task's answers, shared with whoever enters them.
        estimator: a name, or `auto`.
        imported: a bank from elsewhere that holds exactly these items in this order; None fits one from the answers.
        seed: of the run.
        banked: whether a bank is wanted; without one only the estimators `mean` and `stratified` work.
    """

    def __init__(
        self,
        table: AnswerTable,
        *,
        estimator: str = "auto",
        imported: ItemBank | None = None,
        seed: int = 0,
        banked: bool = True,
    ) -> None:
        self.table = table
        self._wanted = estimator
        self._banked = banked
        self._imported = imported
        self._seed = seed
        self._fitted: Fitted | None = None

    @property
    def fitted(self) -> Fitted | None:
        """The present bank, None before the first fit."""
        return self._fitted

    def is_due(self) -> bool:
        """Whether there is enough that is new to fit again."""
        n = len(self.table.recipes)
        if n < (FEWEST_MODELS if self._banked else 1):
            return False
        return self._fitted is None or n >= GROWTH * self._fitted.n_models

    def refit(
        self,
        recent: Sequence[Digest],
        asked: Bools,
        inclusion: Floats | None,
        parents: Sequence[Digest] = (),
    ) -> Report:
        """Fit the bank to the answers and choose the estimator by held-out models.

        Args:
            recent: the latest generation; the population that the next one is expected to come from.
            asked: shape `(n,)`, a typical choice of items, for the held-out check.
            inclusion: shape `(n,)`, the chances with which they were chosen.
            parents: of all candidates; some estimators lean on their answers.
        """
        models = self._models()
        responses = self.table.responses(models)
        if not self._banked:
            plain = Calibration(responses, None, (), self._seed)
            estimator = make_estimator(self._wanted, plain)
            self._fitted = Fitted(None, plain, estimator, {}, len(self.table.recipes))
            return Report(len(models), 0, self._wanted, {})
        bank = (
            fit(responses, provenance={"source": "run", "task": self.table.task}).bank
            if self._imported is None
            else self._imported
        )
        bank = self._centred(bank, recent)
        rows = tuple(models.index(recipe) for recipe in parents if recipe in models)
        calibration = Calibration(responses, bank, rows, self._seed)
        errors: Mapping[str, float] = {}
        name = self._wanted
        if name == "auto":
            chosen = inclusion is not None and float(np.ptp(inclusion)) > 1e-9
            names = ("p-irt",) if chosen else SEARCH_ESTIMATORS
            choice = choose_estimator(calibration, asked, inclusion=inclusion, names=names)
            errors = choice.errors
            name = choice.name if errors else "p-irt"
        estimator = make_estimator(name, calibration)
        self._fitted = Fitted(bank, calibration, estimator, errors, len(self.table.recipes))
        return Report(len(models), bank.dimensions, name, errors)

    def _models(self) -> tuple[Digest, ...]:
        """Complete models and the latest others, in the order of learning."""
        complete = set(self.table.complete)
        others = [r for r in self.table.recipes if r not in complete and self.table.asked(r).any()]
        kept = complete | set(others[-RECENT_MODELS:])
        return tuple(r for r in self.table.recipes if r in kept)

    def _centred(self, bank: ItemBank, recent: Sequence[Digest]) -> ItemBank:
        """The bank with the recent models as its population."""
        if not recent:
            return bank
        found = abilities(bank, self.table.rows(recent))
        centre = found.theta.mean(axis=0)
        spread = (found.theta - centre).T @ (found.theta - centre) / len(recent)
        spread = spread + found.covariance.mean(axis=0) + _LEAST_SPREAD * np.eye(bank.dimensions)
        return replace(bank, mean=centre, covariance=spread)

    def uncertainty(self, recent: Sequence[Digest]) -> Floats:
        """Shape `(n,)`: how uncertain an answer to each item is among the recent models (`weighted.uncertainty`)."""
        if self._fitted is None or self._fitted.bank is None:
            return np.ones(len(self.table.items))
        return uncertainty(self._fitted.bank, self._theta(self._fitted.bank, recent))

    def theta(self, recent: Sequence[Digest]) -> Floats:
        """Shape `(m, D)`: abilities of the recent models, the population's mean when there are none.

        Raises:
            RuntimeError: without a bank.
        """
        bank = self._need().bank
        if bank is None:
            raise RuntimeError(f"there is no bank of {self.table.task}")
        return self._theta(bank, recent)

    def _theta(self, bank: ItemBank, recent: Sequence[Digest]) -> Floats:
        return abilities(bank, self.table.rows(recent)).theta if recent else bank.mean[None, :]

    def answer_variance(self, means: Floats | None = None) -> Floats | float:
        """Variance of a single answer: `v (1 - v)` at right-or-wrong scores of mean v, else that of the calibration.

        Args:
            means: shape `(m,)`, estimated mean scores; None where a model's mean is not known.
        """
        known = self._need().calibration
        if means is not None and known.responses.link == "logistic":
            return np.clip(means * (1 - means), 0.0, 0.25)
        return known.answer_variance

    def estimate(
        self, recipes: Sequence[Digest], *, inclusion: Floats | None = None, target: Floats | None = None
    ) -> Estimated:
        """A weighted sum over all items (the mean by default) from what each model has answered.

        Candidates whose answers do not fit the bank (`alarm.unlike`) are estimated from their own answers alone, or
        believed with twice the error where these are too few.

        Args:
            recipes: models with rows in the table.
            inclusion: shape `(n,)`, the chances with which the items were chosen; None: a simple random sample.
            target: shape `(n,)`, the weights.
        """
        fitted = self._need()
        scores = self.table.rows(recipes)
        found = fitted.estimator.estimate(scores, inclusion=inclusion, target=target)
        strange = self._strange(fitted, scores)
        if not strange.any():
            return found
        own = make_estimator("mean", fitted.calibration).estimate(scores, inclusion=inclusion, target=target)
        enough = strange & (_effective(scores, inclusion) >= LEAST_RANDOM)
        doubted = np.where(strange, DOUBT * found.se, found.se)
        return Estimated(np.where(enough, own.value, found.value), np.where(enough, own.se, doubted))

    @staticmethod
    def _strange(fitted: Fitted, scores: Floats) -> Bools:
        """Shape `(m,)`: models whose answers fit the bank far worse than those of held-out models do."""
        strange = np.zeros(len(scores), dtype=np.bool_)
        if fitted.bank is not None:
            for rows, asked in patterns(scores):
                strange[rows] = unlike(fitted.calibration, scores[rows], asked)
        return strange

    def _need(self) -> Fitted:
        if self._fitted is None:
            raise RuntimeError(f"the bank of {self.table.task} is asked before it was fitted")
        return self._fitted


def _effective(scores: Floats, inclusion: Floats | None) -> Floats:
    """Shape `(m,)`: how many equally weighted answers those of each row are worth (Kish 1965)."""
    asked = ~np.isnan(scores)
    if inclusion is None:
        count: Floats = asked.sum(axis=1).astype(np.float64)
        return count
    weights: Floats = np.where(asked & (inclusion > 0), 1.0 / np.maximum(inclusion, 1e-12), 0.0)
    squares = (weights**2).sum(axis=1)
    total = weights.sum(axis=1)
    effective: Floats = np.where(squares > 0, total**2 / np.maximum(squares, 1e-300), 0.0)
    return effective
