"""How much each task matters to what a run is after: questions go where they decide something."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import CostObjective, ObjectiveSpec, bounded

CONSTRAINT: float = 0.5
"""A task that is only bounded matters half as much as one that is an objective."""


def importance_of(goals: Goals, tasks: Sequence[str]) -> dict[str, float]:
    """Task -> weight, not negative: its share of each objective, summed, and half of that for constraints.

    Every task matters alike where a Python function is an objective, since nobody knows what it looks at. No question
    tells a cost.

    Args:
        goals: of the job.
        tasks: of the suite.
    """
    found = dict.fromkeys(tasks, 0.0)
    for objective, factor in (
        *((o, 1.0) for o in goals.objectives),
        *((bounded(c, goals.objectives), CONSTRAINT) for c in goals.constraints),
    ):
        if isinstance(objective, CostObjective):
            continue
        if not isinstance(objective, ObjectiveSpec):
            return dict.fromkeys(tasks, 1.0)
        weights = [abs(w) for w in objective.weights] or [1.0] * len(objective.tasks)
        # any task may be the one that is the minimum
        total = 1.0 if objective.aggregate == "min" else sum(weights)
        for task, weight in zip(objective.tasks, weights, strict=True):
            found[task] += factor * weight / total
    return found


def margin_tasks(goals: Goals) -> frozenset[str]:
    """Tasks whose margins are an objective or bounded."""
    every = [*goals.objectives, *(bounded(c, goals.objectives) for c in goals.constraints)]
    specs = [o for o in every if isinstance(o, ObjectiveSpec) and o.measure.kind == "margin"]
    return frozenset(task for spec in specs for task in spec.tasks)
