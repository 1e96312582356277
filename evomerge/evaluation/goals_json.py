"""Goals as JSON values, so that whoever reads a run knows its objectives without its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import SCORE, Measure
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    CostObjective,
    CustomObjective,
    Objective,
    ObjectiveSpec,
    Relative,
)
from evomerge.types import Evaluation


def goals_to_json(goals: Goals) -> dict[str, Any]:
    """`objectives` and `constraints`, each a list of mappings."""
    return {
        "objectives": [_objective_to_json(o) for o in goals.objectives],
        "constraints": [_constraint_to_json(c) for c in goals.constraints],
    }


def goals_from_json(found: Mapping[str, Any]) -> Goals:
    """The goals of `goals_to_json`; an objective that a function computed has no function here, only its name."""
    return Goals(
        tuple(_objective_from_json(o) for o in found["objectives"]),
        tuple(_constraint_from_json(c) for c in found["constraints"]),
    )


def _objective_to_json(objective: Objective) -> dict[str, Any]:
    head = {"name": objective.name, "direction": objective.direction}
    if isinstance(objective, CustomObjective):
        return head | {"custom": True}
    if isinstance(objective, CostObjective):
        return head | {"cost": objective.cost}
    return head | {
        "tasks": list(objective.tasks),
        "aggregate": objective.aggregate,
        "weights": list(objective.weights),
        **_measure_to_json(objective.measure),
    }


def _measure_to_json(measure: Measure) -> dict[str, Any]:
    """Nothing for the score, so that runs of before there were measures are recognised."""
    return {} if measure.plain else {"measure": asdict(measure)}


def _measure_from_json(found: Mapping[str, Any]) -> Measure:
    return Measure(**found["measure"]) if "measure" in found else SCORE


def _recorded_only(evaluation: Evaluation) -> float:
    raise LookupError(f"the function of this objective is not known here (set {evaluation.set_name})")


def _objective_from_json(found: Mapping[str, Any]) -> Objective:
    if found.get("custom"):
        return CustomObjective(found["name"], _recorded_only, found["direction"])
    if "cost" in found:
        return CostObjective(found["name"], found["cost"], found["direction"])
    return ObjectiveSpec(
        found["name"],
        tuple(found["tasks"]),
        found["aggregate"],
        tuple(found["weights"]),
        found["direction"],
        _measure_from_json(found),
    )


def _constraint_to_json(constraint: ConstraintSpec) -> dict[str, Any]:
    bound = constraint.bound
    return {
        "kind": constraint.kind,
        "subject": constraint.subject,
        "sense": constraint.sense,
        "bound": {"of": bound.of, "offset": bound.offset} if isinstance(bound, Relative) else bound,
        "z": constraint.z,
        **_measure_to_json(constraint.measure),
    }


def _constraint_from_json(found: Mapping[str, Any]) -> ConstraintSpec:
    bound = found["bound"]
    value = Relative(bound["of"], bound["offset"]) if isinstance(bound, Mapping) else float(bound)
    return ConstraintSpec(found["kind"], found["subject"], found["sense"], value, found["z"], _measure_from_json(found))
