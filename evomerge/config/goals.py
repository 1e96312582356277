"""Objectives and constraints of a job file as the values that the search works with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

from evomerge.config.schema import Constraint, Job, Relative
from evomerge.config.schema import Objective as ObjectiveModel
from evomerge.errors import ConfigError, suggest
from evomerge.evaluation.costs import COSTS, CostKind
from evomerge.evaluation.goal_names import check_goals, check_measurable, check_scored
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import MEASURES, SCORE, Measure
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    CostObjective,
    CustomObjective,
    Objective,
    ObjectiveFunction,
    ObjectiveSpec,
)
from evomerge.evaluation.objectives import Relative as RelativeBound
from evomerge.evaluation.plan import EvalPlan
from evomerge.strict_yaml import Document


def build_goals(
    job: Job, tasks: tuple[str, ...], functions: Mapping[str, ObjectiveFunction], document: Document
) -> Goals:
    """The job's goals, every name checked.

    Args:
        job: the resolved job.
        tasks: the suite's tasks.
        functions: objective name -> Python function, for objectives that the API brings.
        document: the job as it was written, for the lines of messages.

    Raises:
        ConfigError: for functions that no objective is named for; then, goal by goal, for goals that do not say what
            they are about, and as `check_goals`; behind the objectives, as `check_scored`.
    """
    _check_functions(job, functions)
    check = partial(check_goals, tasks=tasks, parents=tuple(job.parents.models), has_base=job.parents.base is not None)
    objectives: list[Objective] = []
    for i, model in enumerate(job.objectives):
        with document.placing("objectives", i):
            objectives.append(_objective(model, functions))
            check(objectives, ())
    with document.placing("objectives"):
        check_scored(objectives)
    constraints: list[ConstraintSpec] = []
    for i, bound in enumerate(job.constraints):
        with document.placing("constraints", i):
            constraints.append(_constraint(bound, i))
            check(objectives, constraints[-1:])
    return Goals(tuple(objectives), tuple(constraints))


def check_goals_measurable(goals: Goals, plan: EvalPlan, document: Document) -> None:
    """What the goals measure must be in the answers to their tasks; known only once the tasks are compiled.

    Raises:
        EvaluationError: goal by goal, as `check_measurable`.
    """
    for i, objective in enumerate(goals.objectives):
        with document.placing("objectives", i):
            if isinstance(objective, ObjectiveSpec):
                for task in objective.tasks:
                    check_measurable(objective.measure, plan.task(task))
    for i, constraint in enumerate(goals.constraints):
        with document.placing("constraints", i):
            if constraint.kind == "task":
                check_measurable(constraint.measure, plan.task(constraint.subject))


def _check_functions(job: Job, functions: Mapping[str, ObjectiveFunction]) -> None:
    """Every function belongs to an objective that names no task; a typing error must not drop one silently."""
    waiting = [o.name for o in job.objectives if o.task is None and o.tasks is None and o.measure not in COSTS]
    for name in functions:
        if name not in waiting:
            raise ConfigError(
                f"The function {name!r} belongs to no objective.",
                got=f"objectives={{{name!r}: ...}}",
                allowed=f"names of objectives without a task: {suggest(name, waiting)}",
                fix=f"add {{name: {name}}} to the job's objectives, or correct the name.",
            )


def _cost_of(measure: str | None) -> CostKind | None:
    return next((cost for cost in COSTS if cost == measure), None)


def _cost_objective(model: ObjectiveModel, cost: CostKind) -> CostObjective:
    beside = [key for key in ("task", "tasks", "weights", "against", "subject") if getattr(model, key) is not None]
    beside += ["aggregate"] if model.aggregate != "mean" else []
    if beside:
        raise _cost_beside(f"The objective {model.name!r}", cost, beside[0], getattr(model, beside[0]))
    return CostObjective(model.name, cost, model.direction or "minimize")


def _cost_beside(who: str, cost: str, key: str, value: object) -> ConfigError:
    return ConfigError(
        f"{who} is about a cost, and has {key}.",
        got=f"{key}: {value} beside measure: {cost}",
        allowed=f"measure: {cost} without {key}: a cost does not depend on what is asked",
        fix=f"remove the {key}, or choose a measure of answers: {', '.join(MEASURES)}.",
    )


def _objective(model: ObjectiveModel, functions: Mapping[str, ObjectiveFunction]) -> Objective:
    cost = _cost_of(model.measure)
    if cost is not None and model.name not in functions:
        return _cost_objective(model, cost)
    if model.name in functions:
        beside = [key for key in ("weights", "measure", "against", "subject") if getattr(model, key) is not None]
        if beside:
            raise ConfigError(
                f"The objective {model.name!r} is a function, and has {beside[0]}.",
                got=f"{beside[0]}: {getattr(model, beside[0])}",
                allowed="name and direction beside a function",
                fix=f"remove the {beside[0]}.",
            )
        return CustomObjective(model.name, functions[model.name], model.direction or "maximize")
    if (model.task is None) == (model.tasks is None):
        raise ConfigError(
            f"The objective {model.name!r} does not say what it is about.",
            got="both task and tasks" if model.task is not None else "neither task nor tasks",
            allowed="`task: NAME`, `tasks: [NAME, ...]`, or the measure of a cost",
            fix="name one task or a list of tasks; a Python function is given to `evomerge.search(objectives=...)`, "
            "also when its run is resumed.",
        )
    tasks = (model.task,) if model.task is not None else tuple(model.tasks or ())
    given = dict(model.weights or {})
    unknown = sorted(set(given) - set(tasks))
    if unknown:
        raise ConfigError(
            f"The objective {model.name!r} weighs a task that it is not about.",
            got=repr(unknown[0]),
            allowed=", ".join(tasks),
            fix="correct the name, or add it to the objective's tasks.",
        )
    weights = tuple(float(given[t]) for t in tasks if t in given)
    measure = _measure(model)
    direction = model.direction or ("minimize" if measure.minimized else "maximize")
    return ObjectiveSpec(model.name, tasks, model.aggregate, weights, direction, measure)


def _measure(model: ObjectiveModel | Constraint) -> Measure:
    kind = next(k for k in MEASURES if k == (model.measure or "score"))
    return Measure(kind, model.against or "", model.subject or "")


def _subjects(model: Constraint, index: int) -> list[tuple[Literal["task", "objective", "cost"], str]]:
    """What a constraint is on: everything that it names."""
    cost = _cost_of(model.measure)
    beside = [key for key in ("task", "objective", "against", "subject") if getattr(model, key) is not None]
    if cost is not None and beside:
        raise _cost_beside(f"Constraint number {index + 1}", cost, beside[0], getattr(model, beside[0]))
    found: list[tuple[Literal["task", "objective", "cost"], str | None]] = [
        ("task", model.task),
        ("objective", model.objective),
        ("cost", cost),
    ]
    return [(kind, name) for kind, name in found if name is not None]


def _constraint(model: Constraint, index: int) -> ConstraintSpec:
    subjects = _subjects(model, index)
    bounds = [(sense, b) for sense, b in (("at_least", model.at_least), ("at_most", model.at_most)) if b is not None]
    if len(subjects) != 1 or len(bounds) != 1:
        raise ConfigError(
            f"Constraint number {index + 1} is not one bound on one thing.",
            got=f"{len(subjects)} of task, objective and cost, {len(bounds)} of at_least and at_most",
            allowed="one of task, objective and the measure of a cost, and one of at_least and at_most",
            fix="write, for instance, {task: rev, at_least: 0.8} or {measure: hops, at_most: 12}; two bounds are two "
            "constraints.",
        )
    (kind, name), (sense, bound) = subjects[0], bounds[0]
    value = RelativeBound(bound.of, bound.plus - bound.minus) if isinstance(bound, Relative) else float(bound)
    return ConstraintSpec(
        kind=kind,
        subject=name,
        sense="at_least" if sense == "at_least" else "at_most",
        bound=value,
        z=float(model.z),
        measure=SCORE if kind == "cost" else _measure(model),
    )
