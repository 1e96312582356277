"""Values that cross the borders between packages: what a candidate is told, asked and answered.

Notation: `d` genes, `n` items of one task. Scores are higher-is-better as the benchmark defines them;
losses are lower-is-better and exist only between `evaluation.objectives` and the optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NewType

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
"""Genes of one candidate: shape `(d,)`, every entry in `[0, 1]`."""

GeneType = Literal["real", "integer", "choice"]


class GeneKind(NamedTuple):
    """What a gene in [0, 1] stands for.

    Attributes:
        type: `real`: a point of a fine grid; `integer`: one of `n_values` ordered values; `choice`: one of `n_values`
            without an order. Values of the last two share [0, 1] in equal cells: value k has the gene (k + 1/2) / n.
        n_values: how many there are.
        labels: what the values of a choice are called, in order; empty where names say nothing. Neighbouring genes with
            values of one name are a sequence, and what stands at one of them may move to the next.
    """

    type: GeneType
    n_values: int
    labels: tuple[str, ...] = ()


CandidateId = NewType("CandidateId", str)
Digest = NewType("Digest", str)
"""Hexadecimal sha256 of a canonical form."""

SetName = Literal["search", "select", "report"]
SET_NAMES: tuple[SetName, ...] = ("search", "select", "report")

FailureKind = Literal["nan", "merge", "evaluate", "memory", "crash", "timeout"]


class NonFiniteScores(ValueError):
    """A score is NaN or infinite."""


@dataclass(frozen=True)
class TaskAnswers:
    """The per-item results of one task for one model.

    Attributes:
        task: the task's name.
        items: item hashes, in plan order.
        scores: the task's primary metric per item, aligned with `items`; finite.
        margins: how clearly each item was answered right, in nats, aligned with `items`; finite; empty where a task has
            none. Multiple choice: the best right choice's log-likelihood minus the best wrong one's, each divided by
            what the metric divides it by. Log-likelihood tasks: the target's log-likelihood.
        subjects: the lm-eval task that each item comes from, aligned with `items`; empty unless several were pooled.
    """

    task: str
    items: tuple[str, ...]
    scores: tuple[float, ...]
    margins: tuple[float, ...] = ()
    subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.items) != len(self.scores):
            raise ValueError(f"task {self.task}: {len(self.items)} items but {len(self.scores)} scores")
        for name, aligned in (("margins", self.margins), ("subjects", self.subjects)):
            if aligned and len(aligned) != len(self.items):
                raise ValueError(f"task {self.task}: {len(self.items)} items but {len(aligned)} {name}")
        if not self.items:
            raise ValueError(f"task {self.task}: no items were scored")
        for name, numbers in (("scores", self.scores), ("margins", self.margins)):
            bad = [x for x in numbers if not math.isfinite(x)]
            if bad:
                raise NonFiniteScores(
                    f"task {self.task}: {len(bad)} {name} are not finite; a failure is never a number"
                )

    def at(self, places: Sequence[int]) -> TaskAnswers:
        """The answers at some places of `items`, in the order given."""
        return TaskAnswers(
            self.task,
            tuple(self.items[i] for i in places),
            tuple(self.scores[i] for i in places),
            tuple(self.margins[i] for i in places) if self.margins else (),
            tuple(self.subjects[i] for i in places) if self.subjects else (),
        )

    @property
    def mean(self) -> float:
        """The task's score: the mean over its items."""
        return float(np.mean(self.scores))

    @property
    def se(self) -> float:
        """Standard error of `mean`: sample standard deviation over sqrt(n); 0 for a single item."""
        n = len(self.scores)
        return float(np.std(self.scores, ddof=1) / math.sqrt(n)) if n > 1 else 0.0


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to one item set: what a successful evaluation is.

    Attributes:
        set_name: which of the disjoint sets the items belong to.
        answers: per task, keyed by the task's name, in the suite's order.
        timing_s: seconds by stage (`merge`, `score`); informative, never part of a digest.
        costs: value and standard error of what the model costs (`evaluation.costs`), as far as it was asked for.
        notes: what was unusual on the way, one line each; for the worker's log, never recorded.
    """

    set_name: SetName
    answers: Mapping[str, TaskAnswers]
    timing_s: Mapping[str, float] = field(default_factory=dict, compare=False)
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name, answers in self.answers.items():
            if name != answers.task:
                raise ValueError(f"answers of task {answers.task!r} are filed under {name!r}")

    @property
    def n_questions(self) -> int:
        """How many items were scored."""
        return sum(len(a.items) for a in self.answers.values())


@dataclass(frozen=True)
class Failure:
    """A candidate that has no score. Never converted to a number outside the optimizers.

    Attributes:
        kind: what went wrong; always the candidate's fault: a lost worker costs it nothing.
        message: one line.
        traceback: the worker's traceback, may be empty.
        host: where it happened.
    """

    kind: FailureKind
    message: str
    traceback: str = ""
    host: str = ""


Outcome = Evaluation | Failure


@dataclass(frozen=True)
class EvalTask:
    """What a worker is asked to do; JSON-able, small.

    Attributes:
        id: the candidate.
        recipe: the canonical JSON object of the recipe.
        set_name: which item set to score.
        items: task name -> item hashes to score; None scores the whole set.
        costs: whether to tell the model's costs; False where they are known, since latency would differ.
        route: what the candidate computes, step by step; those that begin alike are given to one worker if possible.
    """

    id: CandidateId
    recipe: Mapping[str, Any]
    set_name: SetName
    items: Mapping[str, tuple[str, ...]] | None = None
    costs: bool = True
    route: tuple[str, ...] = ()
