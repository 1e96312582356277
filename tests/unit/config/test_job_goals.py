"""Objectives and constraints of a job: what they become, and where a message says that they are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.config.goals import build_goals
from evomerge.errors import ConfigError
from evomerge.evaluation.objectives import ConstraintSpec, CustomObjective, ObjectiveSpec, Relative
from evomerge.types import Evaluation

Resolve = Callable[..., Any]


def goals(resolved: Any, **functions: Any) -> Any:
    return build_goals(resolved.job, ("add", "rev"), functions, resolved.document)


def test_goals_are_as_the_job_says(resolve: Resolve) -> None:
    found = goals(resolve())
    assert found.objectives == (
        ObjectiveSpec("skills", ("add", "rev"), "weighted", (2.0, 0.5), "maximize"),
        ObjectiveSpec("cross", ("add",), "mean", (), "minimize"),
    )
    assert found.constraints == (
        ConstraintSpec("task", "rev", "at_least", 0.8, 1.0),
        ConstraintSpec("objective", "skills", "at_least", Relative("best_parent", -0.01), 0.0),
    )


def test_weights_follow_the_order_of_the_tasks(resolve: Resolve) -> None:
    found = goals(resolve("weights: {add: 2, rev: 0.5}", "weights: {rev: 0.5, add: 2}"))
    assert found.objectives[0].weights == (2.0, 0.5)


@pytest.mark.parametrize(
    ("bound", "spec"),
    [
        ("at_most: 1", ConstraintSpec("task", "rev", "at_most", 1.0, 0.0)),
        ("at_least: 0", ConstraintSpec("task", "rev", "at_least", 0.0, 0.0)),
        ("at_least: {of: base, plus: 0.5}", ConstraintSpec("task", "rev", "at_least", Relative("base", 0.5), 0.0)),
        ("at_most: {of: math}", ConstraintSpec("task", "rev", "at_most", Relative("math", 0.0), 0.0)),
    ],
)
def test_bounds(resolve: Resolve, bound: str, spec: ConstraintSpec) -> None:
    assert goals(resolve("at_least: 0.8, z: 1", bound)).constraints[0] == spec


def own(evaluation: Evaluation) -> float:
    return 0.5


def test_functions_stand_for_objectives_without_a_task(resolve: Resolve) -> None:
    resolved = resolve("    task: add\n", "")
    assert goals(resolved, cross=own).objectives[1] == CustomObjective("cross", own, "minimize")
    with pytest.raises(ConfigError, match=r"job\.yaml:16 \(objectives\.1\): neither task[\s\S]*objectives=\.\.\."):
        goals(resolved)
    with pytest.raises(ConfigError, match=r"'crss' belongs to no objective[\s\S]*Did you mean 'cross'"):
        goals(resolved, crss=own)
    with pytest.raises(ConfigError, match=r"'skills' belongs to no objective[\s\S]*without a task"):
        goals(resolved, skills=own)
    with pytest.raises(ConfigError, match=r"job\.yaml:16 \(objectives\.1\)[\s\S]*remove the weights"):
        goals(resolve("    task: add\n", "    weights: {add: 1}\n"), cross=own)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("    task: add\n", "    task: ad\n", r"job\.yaml:16 \(objectives\.1\): 'ad'[\s\S]*Did you mean 'add'"),
        ("    task: add\n", "", r"job\.yaml:16 \(objectives\.1\): neither task nor tasks"),
        ("    task: add\n", "    task: add\n    tasks: [rev]\n", r"\(objectives\.1\): both task and tasks"),
        ("name: cross", "name: skills", r"job\.yaml:16 \(objectives\.1\)[\s\S]*rename one"),
        ("[add, rev], agg", "[add, add], agg", r"job\.yaml:15 \(objectives\.0\): 'rev'|Got: job\.yaml:15"),
        ("rev: 0.5}", "rve: 0.5}", r"job\.yaml:15 \(objectives\.0\): 'rve'[\s\S]*add, rev"),
        ("rev: 0.5}", "rev: 0}", None),
        ("{add: 2, rev: 0.5}", "{add: 0, rev: 0}", r"job\.yaml:15 \(objectives\.0\)[\s\S]*not all 0"),
        ("{add: 2, rev: 0.5}", "{add: 2}", r"job\.yaml:15 \(objectives\.0\)[\s\S]*one weight per task"),
        ("aggregate: weighted, ", "", r"job\.yaml:15 \(objectives\.0\)[\s\S]*weights only with"),
        ("{task: rev, at", "{task: rve, at", r"job\.yaml:20 \(constraints\.0\): 'rve'[\s\S]*Did you mean 'rev'"),
        ("{task: rev, at", "{task: '', at", r"job\.yaml:20 \(constraints\.0\): ''"),
        ("{task: rev, at", "{at", r"job\.yaml:20 \(constraints\.0\): 0 of task, objective and cost, 1 of"),
        ("{task: rev, at", "{task: rev, objective: skills, at", r"\(constraints\.0\): 2 of task, objective and cost"),
        ("at_least: 0.8", "at_least: 0.8, at_most: 1", r"\(constraints\.0\): 1 of task, objective and cost, 2 of"),
        ("at_least: 0.8, ", "", r"\(constraints\.0\): 1 of task, objective and cost, 0 of"),
        ("objective: skills, ", "objective: skill, ", r"job\.yaml:21 \(constraints\.1\)[\s\S]*Did you mean 'skills'"),
        ("of: best_parent", "of: best-parent", r"job\.yaml:21 \(constraints\.1\)[\s\S]*Did you mean 'best_parent'"),
        ("of: best_parent", "of: mth", r"job\.yaml:21 \(constraints\.1\)[\s\S]*Did you mean 'math'"),
    ],
)
def test_wrong_goals_say_where_they_stand(resolve: Resolve, old: str, new: str, match: str | None) -> None:
    resolved = resolve(old, new)
    if match is None:
        assert goals(resolved).objectives
        return
    with pytest.raises(ConfigError, match=match) as caught:
        goals(resolved)
    assert all((caught.value.what, caught.value.allowed, caught.value.fix))


def test_a_job_without_base_has_none_to_compare_with(resolve: Resolve) -> None:
    resolved = resolve("  base: parents/base\n", "", "constraints.1.at_least.of=base")
    with pytest.raises(ConfigError, match=r"relative to an unknown model[\s\S]*\(constraints\.1\): 'base'"):
        goals(resolved)
