"""Beliefs judge as the answers themselves do when every item was answered; feasibility in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from evomerge.errors import EvaluationError
from evomerge.evaluation.beliefs import (
    Belief,
    Beliefs,
    believed,
    errors,
    feasibility,
    feasible,
    follows_from_scores,
    losses,
    subjects,
    violations,
)
from evomerge.evaluation.goals import BoundGoals, Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    CustomObjective,
    Estimate,
    ObjectiveSpec,
    Relative,
    bounded,
    loss,
    objective_values,
    violation,
)
from evomerge.types import Evaluation, TaskAnswers

TASKS = ("add", "rev", "srt")
N = 30


def answers_of_model(seed: int, tasks: tuple[str, ...] = TASKS) -> Evaluation:
    rng = np.random.default_rng(seed)
    found = {}
    for task in tasks:
        margins = rng.normal(0.3, 1.0, N)
        items = tuple(f"{task}{i}" for i in range(N))
        subject = tuple("ab"[i % 2] for i in range(N))
        scores = tuple(float(m > 0) for m in margins)
        found[task] = TaskAnswers(task, items, scores, tuple(float(m) for m in margins), subject)
    return Evaluation("search", found)


PARENTS = {name: answers_of_model(100 + i) for i, name in enumerate(("base", "math", "lang"))}
FLIPS = Measure("flips", "math")

OBJECTIVES = {
    "score": ObjectiveSpec("o", ("add",)),
    "minimized": ObjectiveSpec("o", ("add",), direction="minimize"),
    "mean": ObjectiveSpec("o", TASKS),
    "min": ObjectiveSpec("o", TASKS, "min"),
    "weighted": ObjectiveSpec("o", TASKS, "weighted", (0.5, -1.0, 2.0)),
    "margin": ObjectiveSpec("o", ("add", "srt"), measure=Measure("margin")),
    "margin-min": ObjectiveSpec("o", ("add", "srt"), "min", measure=Measure("margin")),
    "flips": ObjectiveSpec("o", ("add", "rev"), direction="minimize", measure=FLIPS),
    "flips-any": ObjectiveSpec("o", ("add",), direction="minimize", measure=Measure("flips", "any_parent")),
    "subject": ObjectiveSpec("o", ("rev",), measure=Measure(subject="b")),
    "ability": ObjectiveSpec("o", TASKS, measure=Measure("ability")),
    "custom": CustomObjective("o", lambda e: (e.answers["add"].mean ** 2, 0.01)),
}
CONSTRAINTS = (
    ConstraintSpec("task", "add", "at_least", Relative("best_parent", -0.05)),
    ConstraintSpec("task", "rev", "at_most", 0.15, measure=FLIPS, z=1.0),
    ConstraintSpec("task", "srt", "at_least", 0.1, measure=Measure("margin"), z=2.0),
    ConstraintSpec("task", "rev", "at_least", 0.4, measure=Measure(subject="a")),
    ConstraintSpec("objective", "o", "at_least", -10.0, z=0.5),
)


def bound(*objectives: Any, constraints: tuple[ConstraintSpec, ...] = ()) -> BoundGoals:
    return Goals(objectives, constraints).bound(PARENTS)


def judged(goals: BoundGoals, evaluation: Evaluation) -> tuple[float, ...]:
    """Violations straight from the answers, constraint by constraint."""
    pairs = zip(goals.constraints, goals.bounds, strict=True)
    values = [(c, b, objective_values(bounded(c, goals.objectives), evaluation, goals.references)) for c, b in pairs]
    return tuple(violation(c, b, value) for c, b, value in values)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_whole_answers_are_judged_as_the_goals_do(name: str) -> None:
    goals = bound(OBJECTIVES[name], constraints=CONSTRAINTS)
    verdicts = set()
    for seed in range(6):
        evaluation = answers_of_model(seed)
        beliefs = believed(goals, evaluation)
        value, se = objective_values(goals.objectives[0], evaluation, goals.references)
        assert losses(goals, beliefs) == (loss(goals.objectives[0], value),)
        assert errors(goals, beliefs) == (se,)
        assert violations(goals, beliefs) == judged(goals, evaluation)
        assert feasible(goals, beliefs) == (max(judged(goals, evaluation)) <= 0)
        verdicts.add(feasible(goals, beliefs))
    assert {n: beliefs.tasks[n].n for n in TASKS} == dict.fromkeys(TASKS, N)
    assert False in verdicts


def test_feasible_is_without_violations() -> None:
    easy = bound(OBJECTIVES["mean"], constraints=(ConstraintSpec("task", "add", "at_least", 0.0),))
    assert feasible(easy, believed(easy, answers_of_model(0)))
    assert feasibility(bound(OBJECTIVES["mean"]), believed(easy, answers_of_model(0))) == 1.0


def test_an_objective_with_the_name_of_a_bounded_task_keeps_its_own_value() -> None:
    """An objective called `add` about margins, and a bound on the score of the task `add`."""
    margins = ObjectiveSpec("add", ("add",), measure=Measure("margin"))
    goals = bound(margins, constraints=(ConstraintSpec("task", "add", "at_least", 0.5),))
    evaluation = answers_of_model(3)
    beliefs = believed(goals, evaluation)
    assert violations(goals, beliefs) == judged(goals, evaluation)
    assert losses(goals, beliefs) == (-objective_values(margins, evaluation).value,)
    assert violations(goals, beliefs)[0] != pytest.approx(0.5 + losses(goals, beliefs)[0])


def test_what_follows_from_scores_is_not_kept_twice() -> None:
    goals = bound(*(v for k, v in OBJECTIVES.items() if k in ("mean",)), constraints=CONSTRAINTS)
    assert [name for name, _ in subjects(goals)] == ["o", *(c.label for c in CONSTRAINTS)]
    beliefs = believed(goals, answers_of_model(1))
    assert set(beliefs.values) == {c.label for c in CONSTRAINTS if not c.measure.plain}
    plain = {name for name, o in OBJECTIVES.items() if follows_from_scores(o)}
    assert plain == {"score", "minimized", "mean", "min", "weighted"}


def one_bound(value: float, se: float, level: float, z: float, sense: Any) -> tuple[BoundGoals, Beliefs]:
    goals = bound(OBJECTIVES["mean"], constraints=(ConstraintSpec("task", "add", sense, level, z=z),))
    return goals, Beliefs({t: Belief(value, se, 5) for t in TASKS})


@settings(deadline=None, max_examples=40)
@given(
    value=st.floats(-2, 2),
    se=st.floats(1e-3, 1),
    level=st.floats(-2, 2),
    z=st.sampled_from([0.0, 1.0, 2.0]),
    sense=st.sampled_from(["at_least", "at_most"]),
)
def test_feasibility_is_a_normal_tail(value: float, se: float, level: float, z: float, sense: Any) -> None:
    goals, beliefs = one_bound(value, se, level, z, sense)
    sign = 1 if sense == "at_least" else -1
    expected = norm.cdf(sign * (value - level) / se)  # how surely a bound must be met is another question
    assert feasibility(goals, beliefs) == pytest.approx(expected, abs=1e-12)
    if z == 0 and abs(expected - 0.5) > 1e-9:
        assert feasible(goals, beliefs) == (expected > 0.5)


@pytest.mark.parametrize(("value", "p"), [(0.4, 0.0), (0.5, 1.0), (0.6, 1.0)])
def test_feasibility_without_an_error_is_certain(value: float, p: float) -> None:
    goals, beliefs = one_bound(value, 0.0, 0.5, 2.0, "at_least")
    assert feasibility(goals, beliefs) == p == float(feasible(goals, beliefs))


def test_feasibility_of_several_bounds_is_their_product() -> None:
    some = (ConstraintSpec("task", "add", "at_least", 0.5), ConstraintSpec("task", "rev", "at_most", 0.7))
    goals = bound(OBJECTIVES["mean"], constraints=some)
    beliefs = Beliefs({"add": Belief(0.55, 0.1, 9), "rev": Belief(0.6, 0.2, 9), "srt": Belief(0.1, 0.1, 9)})
    assert feasibility(goals, beliefs) == pytest.approx(norm.cdf(0.5) * norm.cdf(0.5))


def test_feasibility_agrees_with_draws() -> None:
    goals, beliefs = one_bound(0.52, 0.06, 0.5, 0.0, "at_least")
    draws = np.random.default_rng(0).normal(0.52, 0.06, 20000)
    assert feasibility(goals, beliefs) == pytest.approx(np.mean(draws >= 0.5), abs=4 * 0.5 / math.sqrt(20000))


def test_estimates_combine_as_measured_scores_do() -> None:
    beliefs = Beliefs({"add": Belief(0.4, 0.03, 3), "rev": Belief(0.6, 0.04, 3), "srt": Belief(0.5, 0.0, 3)})
    weighted = beliefs.of("o", OBJECTIVES["weighted"])
    assert weighted == pytest.approx((0.5 * 0.4 - 0.6 + 2 * 0.5, math.hypot(0.5 * 0.03, 0.04)))
    assert beliefs.of("o", OBJECTIVES["min"]) == Estimate(0.4, 0.03)


def test_answers_that_an_objective_needs_and_nobody_gave() -> None:
    goals = bound(OBJECTIVES["flips"])
    with pytest.raises(EvaluationError, match="rev"):
        believed(goals, answers_of_model(0, ("add", "srt")))
    margins = bound(OBJECTIVES["margin"])
    plain = {t: TaskAnswers(t, a.items, a.scores) for t, a in answers_of_model(0).answers.items()}
    with pytest.raises(EvaluationError, match="no margins"):
        believed(margins, Evaluation("search", plain))
