"""What a journal says of an objective's value, without the answers."""

from __future__ import annotations

from evomerge.evaluation.objectives import CostObjective, Estimate, Objective, ObjectiveSpec, combine
from evomerge.runs.records import Evaluated


def recorded_value(objective: Objective, record: Evaluated) -> Estimate | None:
    """An objective's value as far as the journal has it; None where it must be computed from the answers.

    Args:
        objective: of the job, or `bounded` of one of its constraints.
        record: from `History.record`, so that an estimate stands where the search had one.
    """
    if isinstance(objective, ObjectiveSpec) and objective.measure.plain:
        return combine(objective, [Estimate(record.tasks[t].mean, record.tasks[t].se) for t in objective.tasks])
    if isinstance(objective, CostObjective):
        return Estimate(*record.costs[objective.cost]) if objective.cost in record.costs else None
    # looked up last: an objective may have the name of a task that is bounded
    return Estimate(*record.values[objective.name]) if objective.name in record.values else None
