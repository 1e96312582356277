"""One ability common to several tasks: a multi-task item bank of the references, and where a model stands on it.

Few references would leave most items constant (all of them right, say), and a merge that forgets such an item would
not be noticed. Two imagined models stand beside them, therefore: one has everything right, the other everything wrong.
Items that all references know become easy ones, and missing them costs ability.

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

_IMAGINED: Final = ("everything right", "everything wrong")


class Ability(NamedTuple):
    """Posterior mode and Laplace standard deviation, in standard deviations of the bank's models."""

    value: float
    se: float


def _key(task: str, item: str) -> str:
    """Items of different tasks may have equal texts, hence equal hashes."""
    return f"{task}:{item}"


def fit_bank(references: Mapping[str, Evaluation], tasks: Sequence[str], subject: str = "") -> ItemBank:
    """A one-dimensional bank over the items of several tasks, fitted to the references and the two imagined models.

    Items with scores outside [0, 1] (log-likelihoods) have no right and wrong: there the imagined models are silent.

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
    rows = (*references, *_IMAGINED)
    scores = np.full((len(rows), len(columns)), np.nan)
    for j, given in enumerate(columns.values()):
        scores[: len(references), j] = [given.get(name, np.nan) for name in references]
    seen = scores[: len(references)]
    share = np.nanmin(seen, axis=0) >= 0
    share &= np.nanmax(seen, axis=0) <= 1
    scores[-2, share], scores[-1, share] = 1.0, 0.0
    names = (*(f"reference {name}" for name in references), *_IMAGINED)
    return fit(Responses(scores, names, tuple(columns)), FitSettings(dimensions=1)).bank


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
