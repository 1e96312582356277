"""What of a task's answers counts: its score, its margins, what it unlearned (flips), or one common ability.

Every measure but the last is a mean over items of a number that each answer gives, so that standard errors, intervals
and paired comparisons need no special cases. All of them are affine in the answers, `constant + sum w_i y_i`: what a
part of the answers is estimated with (`functional`).

Notation: `n` items of a task; a reference is a parent (or the base) that answered the whole item set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, final

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError, EvaluationError, suggest
from evomerge.evaluation.common_ability import fit_bank
from evomerge.evaluation.subjects import answers_of, of_subject
from evomerge.types import Evaluation, TaskAnswers

if TYPE_CHECKING:
    from evomerge.irt.bank import ItemBank

MeasureKind = Literal["score", "margin", "flips", "ability"]
Channel = Literal["score", "margin"]
MEASURES: Final[tuple[MeasureKind, ...]] = ("score", "margin", "flips", "ability")

BASE: Final = "base"
ANY_PARENT: Final = "any_parent"


@dataclass(frozen=True)
class Measure:
    """What of the answers to a task is measured.

    Attributes:
        kind: `score`, the task's metric; `margin`, mean `TaskAnswers.margins`; `flips`, the share of all items that
            the reference answers right and this model wrong (negative flips, Yan et al. 2021, eq. 1): lower is better;
            `ability`, one latent ability common to several tasks.
        against: flips: the reference: a parent's name, `base`, or `any_parent`: items that at least one parent (the
            base is none) answers right. Empty otherwise.
        subject: only items of this lm-eval task, of a task that pools several; empty for all.
    """

    kind: MeasureKind = "score"
    against: str = ""
    subject: str = ""

    def __post_init__(self) -> None:
        if self.kind not in MEASURES:
            raise ConfigError(
                "There is no such measure.",
                got=f"measure: {self.kind!r}",
                allowed=suggest(self.kind, MEASURES),
                fix="use one of these.",
            )
        if (self.kind == "flips") != bool(self.against):
            raise ConfigError(
                "Flips are counted against a parent." if self.kind == "flips" else "Only flips are against a parent.",
                got=f"measure: {self.kind}" + (f", against: {self.against}" if self.against else " without against"),
                allowed="measure: flips with `against: PARENT`, `against: base` or `against: any_parent`",
                fix="name the parent." if self.kind == "flips" else "remove `against`, or set measure: flips.",
            )

    @property
    def plain(self) -> bool:
        """Whether it is the task's score itself, as journals keep it."""
        return self == SCORE

    @property
    def minimized(self) -> bool:
        """Whether less is better, unless a job says otherwise."""
        return self.kind == "flips"

    def of(self, task: str) -> str:
        """What is measured, for people: `add`, or `flips of add against math`."""
        what = f"{task} ({self.subject})" if self.subject else task
        if self.kind == "score":
            return what
        return f"{self.kind} of {what}" + (f" against {self.against}" if self.against else "")


SCORE: Final = Measure()
"""The task's score itself."""


def check_combination(name: str, measure: Measure, *, n_tasks: int, aggregated: bool) -> None:
    """A measure must fit the tasks of its objective.

    Args:
        name: of the objective.
        measure: of its answers.
        n_tasks: how many tasks it is about.
        aggregated: whether it combines them in another way than by their mean.

    Raises:
        ConfigError: for a subject of several tasks, then for an ability that is aggregated.
    """
    if measure.subject and n_tasks > 1:
        raise ConfigError(
            f"The objective {name!r} is about a subject of several tasks.",
            got=f"subject: {measure.subject} with {n_tasks} tasks",
            allowed="a subject together with the one task that pools it",
            fix="name one task; several subjects are several objectives.",
        )
    if measure.kind == "ability" and aggregated:
        raise ConfigError(
            f"The objective {name!r} aggregates one ability.",
            got="aggregate beside measure: ability",
            allowed="measure: ability without aggregate and weights: it is common to the tasks",
            fix="remove aggregate and weights.",
        )


@final
class References(Mapping[str, Evaluation]):
    """The parents by name and the base as `base`, with their answers to one item set; keeps what is fitted to them."""

    def __init__(self, evaluations: Mapping[str, Evaluation]) -> None:
        self._evaluations = dict(evaluations)
        self._banks: dict[tuple[tuple[str, ...], str], ItemBank] = {}

    @classmethod
    def of(cls, evaluations: Mapping[str, Evaluation]) -> References:
        """The same references, as this type."""
        return evaluations if isinstance(evaluations, References) else cls(evaluations)

    def __getitem__(self, name: str) -> Evaluation:
        return self._evaluations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._evaluations)

    def __len__(self) -> int:
        return len(self._evaluations)

    def prepare(self, measure: Measure, tasks: Sequence[str]) -> None:
        """Whether a measure can be taken with these references, found out before any candidate is measured.

        Raises:
            EvaluationError: as `against` for flips, as `bank` for abilities.
        """
        if measure.kind == "flips":
            self.against(measure.against)
        if measure.kind == "ability":
            self.bank(tasks, measure.subject)

    def bank(self, tasks: Sequence[str], subject: str = "") -> ItemBank:
        """The item bank that the references' common ability is measured with; fitted once.

        Raises:
            EvaluationError: without references, and as `fit_bank`.
        """
        key = (tuple(tasks), subject)
        if key not in self._banks:
            if not self:
                raise EvaluationError(
                    "An ability is measured on models that answered the whole item set, and there are none.",
                    got=f"measure: ability over {', '.join(tasks)}",
                    allowed="parents with scores on the same item set",
                    fix="have the parents scored first.",
                )
            self._banks[key] = fit_bank(self, tasks, subject)
        return self._banks[key]

    def against(self, name: str) -> list[Evaluation]:
        """The references that a measure is against: one, or every parent for `any_parent`.

        Raises:
            EvaluationError: when there is none.
        """
        if name == ANY_PARENT:
            found = [e for reference, e in self.items() if reference != BASE]
        else:
            found = [self[name]] if name in self else []
        if not found:
            raise EvaluationError(
                "Flips are counted against a model without scores.",
                got=repr(name),
                allowed=suggest(name, [*self, ANY_PARENT]),
                fix="correct the name, or have the model scored on the same item set first.",
            )
        return found


NO_REFERENCES: Final[Mapping[str, Evaluation]] = MappingProxyType({})


def measured(
    measure: Measure,
    evaluation: Evaluation,
    tasks: Sequence[str],
    references: Mapping[str, Evaluation] = NO_REFERENCES,
) -> Mapping[str, TaskAnswers]:
    """Answers whose scores are what is measured, item by item; their means are the measure's values.

    Args:
        measure: not `ability`, which no single item has (see `common_ability`).
        evaluation: a model's answers, to the whole item set or a part of it.
        tasks: which tasks.
        references: the parents by name, and the base as `base`, on the same item set; flips need them.

    Returns:
        Task -> answers, in the order of `tasks`.

    Raises:
        EvaluationError: when a task was not scored, has no such subject, or no margins; for flips, when the reference
            is unknown, did not answer an item, or a score does not lie in [0, 1].
        ValueError: for `ability`.
    """
    found = {}
    for task in tasks:
        answers = of_subject(answers_of(evaluation, task), measure.subject)
        if measure.kind == "margin":
            answers = replace(answers, scores=_margins(answers))
        elif measure.kind == "flips":
            known = known_items(task, References.of(references).against(measure.against))
            answers = replace(answers, scores=_flips(answers, known))
        elif measure.kind != "score":
            raise ValueError(f"{measure.kind} is no mean over items")
        found[task] = answers
    return found


def _margins(answers: TaskAnswers) -> tuple[float, ...]:
    if not answers.margins:
        raise no_margins(answers.task)
    return answers.margins


def no_margins(task: str) -> EvaluationError:
    """What is said of a task whose answers have no margins."""
    return EvaluationError(
        f"The answers to the task {task!r} have no margins.",
        got=f"task: {task}, measure: margin",
        allowed="multiple-choice tasks whose metric is acc, acc_norm, acc_bytes or exact_match, and tasks of single "
        "log-likelihoods",
        fix="use measure: score for this task; scores of perplexity tasks are log-likelihoods themselves.",
    )


def known_items(task: str, references: Sequence[Evaluation]) -> Mapping[str, bool]:
    """Item hash -> whether at least one of the references answers it right, with a score of 1.

    Raises:
        EvaluationError: when a reference did not answer the task, or scores do not lie in [0, 1].
    """
    known: dict[str, bool] = {}
    for reference in references:
        answers = answers_of(reference, task)
        _check_share(answers)
        for item, score in zip(answers.items, answers.scores, strict=True):
            known[item] = known.get(item, False) or score == 1.0
    return known


def _check_share(answers: TaskAnswers) -> None:
    if not all(0.0 <= s <= 1.0 for s in answers.scores):
        raise EvaluationError(
            f"The answers to the task {answers.task!r} are not right or wrong.",
            got=f"scores from {min(answers.scores):g} to {max(answers.scores):g}",
            allowed="for flips: scores from 0 (wrong) to 1 (right)",
            fix="use measure: margin or score for this task, or another metric.",
        )


def _flips(answers: TaskAnswers, known: Mapping[str, bool]) -> tuple[float, ...]:
    """How much of what the reference has right is wrong here: `1 - score` for its right answers, else 0."""
    _check_share(answers)
    missing = sum(item not in known for item in answers.items)
    if missing:
        raise EvaluationError(
            f"Flips on the task {answers.task!r} need a reference that answered the same items.",
            got=f"{missing} of {len(answers.items)} items that it was not asked",
            allowed="references and candidates scored on the same item set",
            fix="score the reference on that set.",
        )
    return tuple(1.0 - s if known[item] else 0.0 for item, s in zip(answers.items, answers.scores, strict=True))


class Functional(NamedTuple):
    """A measure as an affine function of one model's answers to a whole item set: `constant + weights @ y`.

    Attributes:
        channel: whether y are scores or margins.
        items: hashes of the whole set, in plan order.
        weights: shape `(n,)`, aligned with `items`.
        constant: added.
    """

    channel: Channel
    items: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    constant: float


def functional(measure: Measure, task: str, references: Mapping[str, Evaluation]) -> Functional:
    """What partial answers to a task are to be estimated for: `measured` on all items, as weights of the answers.

    Args:
        measure: not `ability`.
        task: whose answers.
        references: at least one model that answered the whole item set, in plan order.

    Raises:
        EvaluationError: as `measured`.
        ValueError: for `ability`, and when there are no references.
    """
    if measure.kind == "ability":
        raise ValueError("ability is no weighted sum of answers")
    if not references:
        raise ValueError("without a model that answered the whole set its items are not known")
    whole = answers_of(next(iter(references.values())), task)
    inside = set(of_subject(whole, measure.subject).items)
    weights = np.array([item in inside for item in whole.items], dtype=np.float64) / len(inside)
    if measure.kind != "flips":
        return Functional("margin" if measure.kind == "margin" else "score", whole.items, weights, 0.0)
    known = known_items(task, References.of(references).against(measure.against))
    lost = weights * np.array([known[item] for item in whole.items])
    return Functional("score", whole.items, -lost, float(lost.sum()))
