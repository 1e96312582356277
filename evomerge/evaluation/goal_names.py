"""Every name that objectives and constraints use must exist, and what they measure; said before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import ConfigError, EvaluationError, suggest
from evomerge.evaluation.costs import COSTS
from evomerge.evaluation.measures import ANY_PARENT, BASE, Measure, no_margins
from evomerge.evaluation.objectives import (
    BEST_PARENT,
    ConstraintSpec,
    CostObjective,
    Objective,
    ObjectiveSpec,
    Relative,
)
from evomerge.evaluation.plan import TaskPlan, has_margins
from evomerge.types import SET_NAMES


def _unknown(what: str, name: str, known: Sequence[str], fix: str) -> ConfigError:
    return ConfigError(what, got=repr(name), allowed=suggest(name, known), fix=fix)


def check_goals(
    objectives: Sequence[Objective],
    constraints: Sequence[ConstraintSpec],
    *,
    tasks: Sequence[str],
    parents: Sequence[str],
    has_base: bool,
) -> None:
    """Every name that objectives and constraints use must exist.

    Raises:
        ConfigError: when there is no objective, when two share a name, when an objective's task is unknown, or the
            model that its flips are against, when a constraint's subject is unknown, or a model that it refers to, or
            when no model can be as cheap as it asks.
    """
    names = [o.name for o in objectives]
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            "A job needs objectives with different names.",
            got=f"objectives: {names}",
            allowed="one or more objectives, each name once",
            fix="add an objective, or rename one.",
        )
    against = [ANY_PARENT, *parents, *([BASE] if has_base else [])]
    for objective in objectives:
        for task in objective.tasks if isinstance(objective, ObjectiveSpec) else ():
            if task not in tasks:
                what = f"The objective {objective.name!r} uses a task that the suite does not have."
                raise _unknown(what, task, tasks, "correct the name, here or in suite.tasks, or add the task there.")
        if isinstance(objective, ObjectiveSpec):
            _check_against(f"The objective {objective.name!r}", objective.measure, against)
    for constraint in constraints:
        known = {"task": tasks, "objective": names, "cost": COSTS}[constraint.kind]
        if constraint.subject not in known:
            what = f"There is no such {constraint.kind} to constrain."
            raise _unknown(what, constraint.subject, known, "correct the name.")
        _check_against(f"The constraint on {constraint.subject!r}", constraint.measure, against)
        models = [BEST_PARENT, *parents, *([BASE] if has_base else [])]
        if isinstance(constraint.bound, Relative) and constraint.bound.of not in models:
            what = f"The constraint on {constraint.subject!r} is relative to an unknown model."
            raise _unknown(what, constraint.bound.of, models, "correct the name.")
        _check_can_be_met(constraint)


def _check_can_be_met(constraint: ConstraintSpec) -> None:
    """Refuse a bound on a cost that every model exceeds.

    Raises:
        ConfigError: for less than one layer or parameter, and for no time at all.
    """
    bound = constraint.bound
    if constraint.kind != "cost" or constraint.sense != "at_most" or isinstance(bound, Relative):
        return
    counted = constraint.subject != "latency"
    if bound < 1 if counted else bound <= 0:
        raise ConfigError(
            f"No model can meet the constraint on {constraint.subject!r}.",
            got=f"measure: {constraint.subject}, at_most: {bound:g}",
            allowed="at_most: 1 or more" if counted else "at_most: a number of seconds above 0",
            fix="raise the bound, or leave the constraint out.",
        )


def check_scored(objectives: Sequence[Objective]) -> None:
    """At least one objective must be about answers.

    Raises:
        ConfigError: when all of them are costs.
    """
    if all(isinstance(o, CostObjective) for o in objectives):
        raise ConfigError(
            "Every objective of the job is a cost.",
            got=", ".join(f"{o.name} (measure: {o.cost})" for o in objectives if isinstance(o, CostObjective)),
            allowed="costs beside at least one objective with a task or a function",
            fix="add what the model must be good at: the cheapest model answers nothing.",
        )


def _check_against(who: str, measure: Measure, known: Sequence[str]) -> None:
    if measure.against and measure.against not in known:
        raise _unknown(f"{who} counts flips against an unknown model.", measure.against, known, "correct the name.")


def check_measurable(measure: Measure, task: TaskPlan) -> None:
    """What is measured must be in the answers to a task.

    Args:
        measure: of an objective or a constraint.
        task: compiled.

    Raises:
        EvaluationError: for margins of a task that has none, for flips of scores that are log-likelihoods, for a
            subject that the task does not pool, then for one without items in an item set.
    """
    if measure.kind == "margin" and not has_margins(task):
        raise no_margins(task.name)
    if measure.kind == "flips" and (task.kind == "loglikelihood_rolling" or task.metric.aggregation != "mean"):
        raise EvaluationError(
            f"The answers to the task {task.name!r} are not right or wrong.",
            got=f"metric: {task.metric.name}",
            allowed="for flips: metrics with a score from 0 (wrong) to 1 (right) per item",
            fix="use measure: score for this task, or another metric.",
        )
    if measure.subject:
        _check_subject(measure.subject, task)


def _check_subject(subject: str, task: TaskPlan) -> None:
    names = [source.task for source in task.sources] if len(task.sources) > 1 else []
    if subject not in names:
        what = f"The task {task.name!r} pools no subject {subject!r}."
        fix = "correct the name; subjects are the lm-eval tasks of a group." if names else "name a group of tasks."
        raise EvaluationError(what, got=repr(subject), allowed=suggest(subject, names), fix=fix)
    for set_name in SET_NAMES:
        if not any(task.sources[task.items[i].source].task == subject for i in task.sets[set_name]):
            raise EvaluationError(
                f"The {set_name} set of the task {task.name!r} has no items of the subject {subject!r}.",
                got=f"{len(task.sets[set_name])} items of {len(names)} subjects",
                allowed="at least one item of the subject in every item set",
                fix="enlarge suite.split, or list the subject in suite.tasks as a task of its own.",
            )
