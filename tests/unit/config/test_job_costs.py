"""Costs in the objectives and constraints of the job file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.config.goals import build_goals
from evomerge.errors import ConfigError
from evomerge.evaluation.objectives import ConstraintSpec, CostObjective, Relative

Resolve = Callable[..., Any]
CROSS = "  - name: cross\n    task: add\n    direction: minimize\n"
REV = "{task: rev, at_least: 0.8, z: 1}"


def goals(resolved: Any, **functions: Any) -> Any:
    return build_goals(resolved.job, ("add", "rev"), functions, resolved.document)


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("{name: depth, measure: hops}", CostObjective("depth", "hops")),
        ("{name: size, measure: parameters}", CostObjective("size", "parameters")),
        ("{name: speed, measure: latency}", CostObjective("speed", "latency")),
        ("{name: depth, measure: hops, direction: maximize}", CostObjective("depth", "hops", "maximize")),
    ],
)
def test_costs_are_objectives_without_tasks(resolve: Resolve, text: str, objective: CostObjective) -> None:
    assert goals(resolve(CROSS, f"  - {text}\n")).objectives[1] == objective


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("{measure: hops, at_most: 12}", ConstraintSpec("cost", "hops", "at_most", 12.0)),
        ("{measure: hops, at_most: 1}", ConstraintSpec("cost", "hops", "at_most", 1.0)),
        ("{measure: latency, at_most: 1.0e-9}", ConstraintSpec("cost", "latency", "at_most", 1e-9)),
        ("{measure: hops, at_least: 0}", ConstraintSpec("cost", "hops", "at_least", 0.0)),
        (
            "{measure: latency, at_most: {of: best_parent, plus: 2}, z: 1}",
            ConstraintSpec("cost", "latency", "at_most", Relative("best_parent", 2.0), z=1.0),
        ),
    ],
)
def test_costs_are_bounded_without_tasks(resolve: Resolve, text: str, constraint: ConstraintSpec) -> None:
    assert goals(resolve(REV, text)).constraints[0] == constraint


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{name: depth, measure: hop}", r"job\.yaml:16[\s\S]*hops"),
        ("{name: depth, measure: hops, task: add}", r"\(objectives\.1\): task: add beside measure: hops"),
        ("{name: depth, measure: hops, tasks: [add]}", r"\(objectives\.1\): tasks[\s\S]*remove the tasks"),
        ("{name: depth, measure: hops, aggregate: min}", r"\(objectives\.1\): aggregate: min"),
        ("{name: depth, measure: hops, against: math}", r"\(objectives\.1\): against: math"),
        ("{name: depth}", r"neither task nor tasks[\s\S]*measure of a cost"),
    ],
)
def test_wrong_costs_say_where_they_stand(resolve: Resolve, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        goals(resolve(CROSS, f"  - {text}\n"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{measure: hops, task: rev, at_most: 12}", r"\(constraints\.0\): task: rev beside measure: hops"),
        ("{measure: hops, objective: cross, at_most: 1}", r"\(constraints\.0\): objective: cross"),
        ("{measure: hops}", r"1 of task, objective and cost, 0 of at_least and at_most"),
        ("{measure: margin, at_most: 1}", r"0 of task, objective and cost"),
        ("{measure: hops, at_most: {of: mth}}", r"\(constraints\.0\)[\s\S]*Did you mean 'math'"),
        ("{measure: hops, at_most: 0}", r"No model can meet[\s\S]*\(constraints\.0\): measure: hops, at_most: 0"),
        ("{measure: hops, at_most: -3}", r"at_most: -3[\s\S]*Allowed: at_most: 1 or more"),
        ("{measure: parameters, at_most: 0.5}", r"at_most: 0\.5[\s\S]*Allowed: at_most: 1 or more"),
        ("{measure: latency, at_most: 0}", r"Allowed: at_most: a number of seconds above 0"),
    ],
)
def test_wrong_bounds_on_costs_say_where_they_stand(resolve: Resolve, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        goals(resolve(REV, text))


def test_a_job_of_costs_alone_is_refused(resolve: Resolve) -> None:
    first = "{name: skills, tasks: [add, rev], aggregate: weighted, weights: {add: 2, rev: 0.5}}"
    resolved = resolve(f"  - {first}\n{CROSS}", "  - {name: skills, measure: hops}\n  - {name: s, measure: latency}\n")
    with pytest.raises(ConfigError, match=r"Every objective of the job is a cost[\s\S]*answers nothing"):
        goals(resolved)


def test_functions_are_not_for_objectives_that_are_costs(resolve: Resolve) -> None:
    resolved = resolve(CROSS, "  - {name: depth, measure: hops}\n")
    with pytest.raises(ConfigError, match="belongs to no objective"):
        goals(resolved, depth=lambda evaluation: 0.0)
