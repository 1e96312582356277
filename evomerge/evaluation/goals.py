"""A job's objectives and constraints together: as written, and with every bound a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.evaluation.costs import COSTS, CostKind
from evomerge.evaluation.measures import References
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    CostObjective,
    Objective,
    ObjectiveSpec,
    bounded,
    resolve_bound,
)
from evomerge.types import Evaluation


@dataclass(frozen=True)
class BoundGoals:
    """Objectives and constraints with every bound a number: what candidates of one item set are judged by.

    Attributes:
        objectives: of the job.
        constraints: of the job.
        bounds: one number per constraint.
        references: the models that the bounds were taken from, with their answers to that item set; flips and
            abilities are measured against them.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[ConstraintSpec, ...]
    bounds: tuple[float, ...]
    references: Mapping[str, Evaluation] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Goals:
    """What a run is after: at least one objective, and constraints or none."""

    objectives: tuple[Objective, ...]
    constraints: tuple[ConstraintSpec, ...] = ()

    @property
    def costs(self) -> tuple[CostKind, ...]:
        """The costs that an objective or a constraint is about: what workers must tell of every model."""
        every = (*self.objectives, *(bounded(c, self.objectives) for c in self.constraints))
        wanted = {o.cost for o in every if isinstance(o, CostObjective)}
        return tuple(cost for cost in COSTS if cost in wanted)

    def bound(self, references: Mapping[str, Evaluation]) -> BoundGoals:
        """The same goals with bounds resolved against models scored on one item set.

        Args:
            references: the parents by name, and the base as `base`.

        Raises:
            EvaluationError: when a measure needs a reference that is not there.
            ConfigError: as `resolve_bound`.
        """
        known = References(references)
        for objective in (*self.objectives, *(bounded(c, self.objectives) for c in self.constraints)):
            if isinstance(objective, ObjectiveSpec):
                known.prepare(objective.measure, objective.tasks)
        bounds = tuple(resolve_bound(c, self.objectives, known) for c in self.constraints)
        return BoundGoals(self.objectives, self.constraints, bounds, known)
