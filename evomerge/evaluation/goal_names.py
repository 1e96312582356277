"""Every name that objectives and constraints use must exist; said before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import ConfigError, suggest
from evomerge.evaluation.measures import BASE
from evomerge.evaluation.objectives import BEST_PARENT, ConstraintSpec, Objective, ObjectiveSpec, Relative


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
        ConfigError: when there is no objective, when two share a name, when an objective's task is unknown, when a
            constraint's subject is unknown, or when the model that it refers to is.
    """
    names = [o.name for o in objectives]
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            "A job needs objectives with different names.",
            got=f"objectives: {names}",
            allowed="one or more objectives, each name once",
            fix="add an objective, or rename one.",
        )
    for objective in objectives:
        for task in objective.tasks if isinstance(objective, ObjectiveSpec) else ():
            if task not in tasks:
                what = f"The objective {objective.name!r} uses a task that the suite does not have."
                raise _unknown(what, task, tasks, "correct the name, here or in suite.tasks, or add the task there.")
    for constraint in constraints:
        known = tasks if constraint.kind == "task" else names
        if constraint.subject not in known:
            what = f"There is no such {constraint.kind} to constrain."
            raise _unknown(what, constraint.subject, known, "correct the name.")
        models = [BEST_PARENT, *parents, *([BASE] if has_base else [])]
        if isinstance(constraint.bound, Relative) and constraint.bound.of not in models:
            what = f"The constraint on {constraint.subject!r} is relative to an unknown model."
            raise _unknown(what, constraint.bound.of, models, "correct the name.")
