"""Measures of objectives and constraints in the job file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.config.goals import build_goals
from evomerge.errors import ConfigError
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.types import Evaluation

Resolve = Callable[..., Any]
CROSS = "    task: add\n    direction: minimize\n"


def goals(resolved: Any, **functions: Any) -> Any:
    return build_goals(resolved.job, ("add", "rev"), functions, resolved.document)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("measure: margin", ObjectiveSpec("cross", ("add",), measure=Measure("margin"))),
        ("measure: score", ObjectiveSpec("cross", ("add",))),
        ("subject: add_2", ObjectiveSpec("cross", ("add",), measure=Measure(subject="add_2"))),
        ("measure: ability", ObjectiveSpec("cross", ("add",), measure=Measure("ability"))),
        (
            "measure: flips\n    against: math",
            ObjectiveSpec("cross", ("add",), direction="minimize", measure=Measure("flips", "math")),
        ),
        (
            "measure: flips\n    against: any_parent\n    direction: maximize",
            ObjectiveSpec("cross", ("add",), measure=Measure("flips", "any_parent")),
        ),
    ],
)
def test_objectives_have_measures_and_flips_are_minimized(resolve: Resolve, text: str, spec: ObjectiveSpec) -> None:
    assert goals(resolve(CROSS, f"    task: add\n    {text}\n")).objectives[1] == spec


def test_constraints_have_measures(resolve: Resolve) -> None:
    found = goals(
        resolve("{task: rev, at_least: 0.8, z: 1}", "{task: rev, measure: flips, against: base, at_most: 0.05}")
    )
    assert found.constraints[0] == ConstraintSpec("task", "rev", "at_most", 0.05, measure=Measure("flips", "base"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("measure: flip", r"job\.yaml:18[\s\S]*flips"),
        ("measure: flips", r"\(objectives\.1\): measure: flips without against"),
        ("against: math", r"\(objectives\.1\)[\s\S]*set measure: flips"),
        ("measure: flips\n    against: mth", r"\(objectives\.1\): 'mth'[\s\S]*Did you mean 'math'"),
        ("measure: ability\n    aggregate: min", r"\(objectives\.1\)[\s\S]*remove aggregate"),
        ("mesure: margin", r"mesure"),
    ],
)
def test_wrong_measures_say_where_they_stand(resolve: Resolve, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        goals(resolve(CROSS, f"    task: add\n    {text}\n"))


@pytest.mark.parametrize(
    ("new", "match"),
    [
        ("{objective: skills, measure: margin, at_least: 0}", r"\(constraints\.0\)[\s\S]*bound a task"),
        (
            "{task: rev, measure: flips, against: bse, at_most: 0}",
            r"\(constraints\.0\): 'bse'[\s\S]*Did you mean 'base'",
        ),
    ],
)
def test_wrong_measures_of_constraints_say_where_they_stand(resolve: Resolve, new: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        goals(resolve("{task: rev, at_least: 0.8, z: 1}", new))


def test_functions_have_no_measure(resolve: Resolve) -> None:
    def own(evaluation: Evaluation) -> float:
        return 0.5

    resolved = resolve(CROSS, "    measure: margin\n")
    with pytest.raises(ConfigError, match=r"\(objectives\.1\): measure: margin[\s\S]*remove the measure"):
        goals(resolved, cross=own)
