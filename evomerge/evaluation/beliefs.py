"""What is believed of a model's scores on one item set, from all of its answers or from a few; and how it is judged.

Answers to the whole set are facts and beliefs at once. From a part of the answers scores are estimated; everything
that judges a model (losses, violations, feasibility) works on beliefs and does not ask where they came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from evomerge.evaluation.goals import BoundGoals
from evomerge.evaluation.objectives import (
    CostObjective,
    Estimate,
    Objective,
    ObjectiveSpec,
    bounded,
    combine,
    loss,
    objective_values,
    violation,
)
from evomerge.types import Evaluation


class Belief(NamedTuple):
    """A task's score over a whole item set: value, standard error, and how many items were asked."""

    value: float
    se: float
    n: int


@dataclass(frozen=True)
class Beliefs:
    """Scores of one model on one set.

    Attributes:
        tasks: task -> its score.
        values: what does not follow from the tasks' scores: objectives by name, constraints by label, and costs.
    """

    tasks: Mapping[str, Belief]
    values: Mapping[str, Estimate] = field(default_factory=dict)

    def of(self, name: str, objective: Objective) -> Estimate:
        """The value of an objective, or of what a constraint bounds.

        Args:
            name: the objective's name or the constraint's label.
            objective: what is valued.
        """
        if not (isinstance(objective, ObjectiveSpec) and objective.measure.plain):
            return self.values[_key(name, objective)]  # an objective and a task that is bounded may share a name
        return combine(objective, [Estimate(self.tasks[t].value, self.tasks[t].se) for t in objective.tasks])


def _key(name: str, objective: Objective) -> str:
    """Under which name a value is kept; no objective and no label has that of a cost."""
    return f"cost {objective.cost}" if isinstance(objective, CostObjective) else name


def subjects(goals: BoundGoals) -> Iterator[tuple[str, Objective]]:
    """What is valued: objectives by name, then what constraints bound, by label; costs by names of theirs."""
    every = (
        *((o.name, o) for o in goals.objectives),
        *((c.label, bounded(c, goals.objectives)) for c in goals.constraints),
    )
    yield from ((_key(name, objective), objective) for name, objective in every)


def follows_from_scores(objective: Objective) -> bool:
    """Whether the tasks' scores alone decide the value."""
    return isinstance(objective, ObjectiveSpec) and objective.measure.plain


def believed(goals: BoundGoals, evaluation: Evaluation) -> Beliefs:
    """Beliefs from answers to a whole set.

    Raises:
        EvaluationError: as `objective_values`.
    """
    tasks = {name: Belief(a.mean, a.se, len(a.items)) for name, a in evaluation.answers.items()}
    values = {
        name: objective_values(objective, evaluation, goals.references)
        for name, objective in subjects(goals)
        if not follows_from_scores(objective)
    }
    return Beliefs(tasks, values)


def losses(goals: BoundGoals, beliefs: Beliefs) -> tuple[float, ...]:
    """One loss per objective, lower is better."""
    return tuple(loss(o, beliefs.of(o.name, o).value) for o in goals.objectives)


def errors(goals: BoundGoals, beliefs: Beliefs) -> tuple[float, ...]:
    """One standard error per objective."""
    return tuple(beliefs.of(o.name, o).se for o in goals.objectives)


def violations(goals: BoundGoals, beliefs: Beliefs) -> tuple[float, ...]:
    """One violation per constraint; feasible when <= 0."""
    return tuple(
        violation(c, bound, beliefs.of(c.label, bounded(c, goals.objectives)))
        for c, bound in zip(goals.constraints, goals.bounds, strict=True)
    )


def feasible(goals: BoundGoals, beliefs: Beliefs) -> bool:
    """True when nothing is violated."""
    return all(v <= 0 for v in violations(goals, beliefs))


def feasibility(goals: BoundGoals, beliefs: Beliefs) -> float:
    """Probability that every bound is met, treating them as independent and errors as normal; `z` plays no part.

    Gelbart, Snoek and Adams 2014, eq. 3; without an error it is 0 or 1.
    """
    probability = 1.0
    for constraint, bound in zip(goals.constraints, goals.bounds, strict=True):
        estimate = beliefs.of(constraint.label, bounded(constraint, goals.objectives))
        gap, se = violation(replace(constraint, z=0.0), bound, estimate), estimate.se
        probability *= 0.5 * math.erfc(gap / (se * math.sqrt(2))) if se > 0 else float(gap <= 0)
    return probability
