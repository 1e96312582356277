"""One ability common to several tasks: a multi-task item bank of the references, and where a model stands on it.

A handful of references cannot say how well each item separates models. Freely fitted slopes would follow whichever
task the references differ in most, so the prior keeps the slopes close to each other. Ability is then a sum over the
items of all tasks on a scale without ends: a right answer more counts for more where few are missing.

Notation: `n` items over all tasks, `a_i` slopes, `p_i` expected scores at the ability theta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.subjects import answers_of, of_subject
from evomerge.types import Evaluation, TaskAnswers

if TYPE_CHECKING:
    from evomerge.irt.bank import ItemBank

Floats = npt.NDArray[np.float64]

_SLOPE_SD: Final = 0.3
"""Prior standard deviation of slopes about 1. Two specialists, each good at one of two tasks: with the prior fitted to
the items one task gets 3.7 times the slopes of the other, with this one both get the same."""


class Ability(NamedTuple):
    """Posterior mode and Laplace standard deviation, in standard deviations of the bank's models."""

    value: float
    se: float


def _key(task: str, item: str) -> str:
    """Items of different tasks may have equal texts, hence equal hashes."""
    return f"{task}:{item}"


def fit_bank(references: Mapping[str, Evaluation], tasks: Sequence[str], subject: str = "") -> ItemBank:
    """A one-dimensional bank over the items of several tasks, fitted to the references.

    Args:
        references: name -> answers to one item set; at least one.
        tasks: whose items.
        subject: only items of this subject; empty for all.

    Raises:
        EvaluationError: when a task was not scored or has no such subject.
        ValueError: without references.
    """
    from evomerge.irt.fit import FitSettings, fit
    from evomerge.irt.responses import Responses

    if not references:
        raise ValueError("an ability needs models that answered the whole item set")
    columns: dict[str, dict[str, float]] = {}
    for name, reference in references.items():
        for task in tasks:
            answers = of_subject(answers_of(reference, task), subject)
            for item, score in zip(answers.items, answers.scores, strict=True):
                columns.setdefault(_key(task, item), {})[name] = score
    scores = [[given.get(name, np.nan) for given in columns.values()] for name in references]
    responses = Responses(np.array(scores), tuple(references), tuple(columns))
    return fit(responses, FitSettings(dimensions=1, slope_sd=_SLOPE_SD, adaptations=0)).bank


def _row(bank: ItemBank, evaluation: Evaluation, tasks: Sequence[str]) -> Floats:
    """A model's scores over the bank's items, NaN where it was not asked: shape `(n,)`."""
    given: dict[str, float] = {}
    for task in tasks:
        answers = answers_of(evaluation, task)
        given |= {_key(task, i): s for i, s in zip(answers.items, answers.scores, strict=True)}
    return np.array([given.get(item, np.nan) for item in bank.items])


def ability_of(bank: ItemBank, evaluation: Evaluation, tasks: Sequence[str]) -> Ability:
    """A model's ability: the posterior mode with its Laplace standard deviation; items not asked say nothing.

    Raises:
        EvaluationError: when a task was not scored.
    """
    from evomerge.irt.ability import abilities

    found = abilities(bank, _row(bank, evaluation, tasks)[None, :])
    return Ability(float(found.theta[0, 0]), float(np.sqrt(found.covariance[0, 0, 0])))


def ability_answers(bank: ItemBank, evaluation: Evaluation, tasks: Sequence[str]) -> TaskAnswers:
    """The items' parts in an ability: pseudo-values whose mean is theta, for paired comparisons.

    The infinitesimal jackknife (Efron 1982, ch. 6): `theta + n (g_i - mean g) / J` with an item's score function `g_i =
    a_i (y_i - p_i)` (over the noise's variance for normal items) and J the posterior's curvature. Only items that were
    asked have one. Answers of two models keep their pairing by item, and differences in ability can be resampled as
    differences of means can.

    Raises:
        EvaluationError: when a task was not scored.
    """
    theta, se = ability_of(bank, evaluation, tasks)
    row = _row(bank, evaluation, tasks)
    asked = np.flatnonzero(~np.isnan(row))
    at = np.array([theta])
    residual = np.where(bank.fitted, row - bank.predict(at), 0.0)[asked]
    pull = bank.slopes[asked, 0] * residual / bank.noise[asked] ** 2
    values = theta + len(asked) * (pull - pull.mean()) * se**2
    return TaskAnswers("+".join(tasks), tuple(bank.items[i] for i in asked), tuple(float(v) for v in values))
