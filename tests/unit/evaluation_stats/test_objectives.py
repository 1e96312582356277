"""Objectives, constraints, and the one place where direction becomes sign."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.beliefs import believed, feasible, losses, violations
from evomerge.evaluation.goal_names import check_goals
from evomerge.evaluation.goals import BoundGoals, Goals
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    CustomObjective,
    Estimate,
    Objective,
    ObjectiveSpec,
    Relative,
    loss,
    objective_values,
    resolve_bound,
    violation,
)
from evomerge.types import Evaluation, TaskAnswers


def evaluation(**scores: list[float]) -> Evaluation:
    answers = {t: TaskAnswers(t, tuple(f"{t}{i}" for i in range(len(s))), tuple(s)) for t, s in scores.items()}
    return Evaluation("search", answers)


SCORED = evaluation(add=[1, 0, 1, 1], rev=[0, 0, 1, 0], srt=[1, 1, 1, 1])
SE = math.sqrt(0.1875 / 3)  # of a mean of 1/4 or 3/4 over four items


def test_a_task() -> None:
    assert objective_values(ObjectiveSpec("add", ("add",)), SCORED) == pytest.approx((0.75, SE))


def test_the_mean_combines_standard_errors() -> None:
    value, se = objective_values(ObjectiveSpec("m", ("add", "rev", "srt")), SCORED)
    assert value == pytest.approx((0.75 + 0.25 + 1.0) / 3)
    assert se == pytest.approx(math.sqrt(SE**2 + SE**2 + 0) / 3)


def test_the_minimum_has_the_standard_error_of_the_worst_task() -> None:
    assert objective_values(ObjectiveSpec("m", ("add", "rev", "srt"), "min"), SCORED) == pytest.approx((0.25, SE))
    tied = evaluation(a=[0.5, 0.5], b=[0.0, 1.0])
    assert objective_values(ObjectiveSpec("m", ("a", "b"), "min"), tied) == pytest.approx((0.5, 0.5))


def test_the_weighted_sum() -> None:
    spec = ObjectiveSpec("w", ("add", "rev"), "weighted", (2.0, -0.5))
    assert objective_values(spec, SCORED) == pytest.approx((1.375, math.sqrt(4 * SE**2 + 0.25 * SE**2)))


def test_the_standard_error_of_the_mean_is_what_repeated_draws_show() -> None:
    rng = np.random.default_rng(0)
    spec = ObjectiveSpec("m", ("a", "b"))
    draws = [
        objective_values(spec, evaluation(a=list(rng.binomial(1, 0.7, 60)), b=list(rng.binomial(1, 0.2, 30))))
        for _ in range(600)
    ]
    assert np.mean([d.se for d in draws]) == pytest.approx(np.std([d.value for d in draws]), rel=0.08)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_equal_weights_are_the_mean_and_one_task_is_itself(scores: list[list[float]]) -> None:
    scored = evaluation(**{f"t{i}": s for i, s in enumerate(scores)})
    tasks = tuple(scored.answers)
    n = len(tasks)
    mean = objective_values(ObjectiveSpec("m", tasks), scored)
    assert objective_values(ObjectiveSpec("w", tasks, "weighted", (1 / n,) * n), scored) == pytest.approx(mean)
    assert objective_values(ObjectiveSpec("m", tasks, "min"), scored).value <= mean.value + 1e-12
    one = (scored.answers["t0"].mean, scored.answers["t0"].se)
    for aggregate in ("mean", "min"):
        assert objective_values(ObjectiveSpec("o", ("t0",), aggregate), scored) == pytest.approx(one)


def test_direction_becomes_sign_in_losses_only() -> None:
    up, down = ObjectiveSpec("up", ("add",)), ObjectiveSpec("down", ("add",), direction="minimize")
    assert objective_values(up, SCORED) == objective_values(down, SCORED)
    assert (loss(up, 0.75), loss(down, 0.75)) == (-0.75, 0.75)


def test_a_custom_objective_returns_a_value_or_a_pair() -> None:
    def spread(e: Evaluation) -> float:
        return e.answers["add"].mean - e.answers["rev"].mean

    assert objective_values(CustomObjective("s", spread), SCORED) == Estimate(0.5, 0.0)
    assert objective_values(CustomObjective("s", lambda _: (2.0, 0.1)), SCORED) == Estimate(2.0, 0.1)
    assert loss(CustomObjective("s", spread, "minimize"), 0.5) == 0.5


@pytest.mark.parametrize("result", [math.nan, math.inf, (0.0, math.nan), (0.0, -1.0)])
def test_a_custom_objective_must_be_finite(result: object) -> None:
    with pytest.raises(EvaluationError, match="'mine' did not return a usable value"):
        objective_values(CustomObjective("mine", lambda _: result), SCORED)  # type: ignore[arg-type,return-value]


def test_a_missing_task_is_named_with_the_nearest() -> None:
    with pytest.raises(EvaluationError, match="'ad' was not scored on the search set") as error:
        objective_values(ObjectiveSpec("m", ("ad",)), SCORED)
    assert "Did you mean 'add'" in error.value.allowed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ()}, "needs tasks"),
        ({"tasks": ("a", "a")}, "needs tasks"),
        ({"aggregate": "maen"}, "Did you mean 'mean'"),
        ({"direction": "up"}, "no usable direction"),
        ({"aggregate": "weighted"}, "1 finite numbers"),
        ({"aggregate": "weighted", "weights": (0.0,)}, "not all 0"),
        ({"aggregate": "weighted", "weights": (math.nan,)}, "finite numbers"),
        ({"weights": (1.0,)}, "only with aggregate: weighted"),
    ],
)
def test_bad_objectives_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectiveSpec(**{"name": "o", "tasks": ("a",), **fields})  # type: ignore[arg-type]


# -- constraints -------------------------------------------------------------------------------------------------------

SKILLS = ObjectiveSpec("skills", ("add", "rev"))
COST = ObjectiveSpec("cost", ("srt",), direction="minimize")
OBJECTIVES: tuple[Objective, ...] = (SKILLS, COST)
PARENTS = {
    "math": evaluation(add=[1, 1, 1, 1], rev=[0, 0, 0, 0], srt=[1, 1, 0, 0]),
    "text": evaluation(add=[0, 0, 0, 1], rev=[1, 1, 1, 1], srt=[1, 1, 1, 1]),
    "base": evaluation(add=[1, 1, 0, 0], rev=[1, 1, 1, 1], srt=[0, 0, 0, 1]),
}


def at_least(kind: str, subject: str, bound: float | Relative, z: float = 0.0) -> ConstraintSpec:
    return ConstraintSpec(kind, subject, "at_least", bound, z)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("constraint", "bound"),
    [
        (at_least("task", "add", 0.8), 0.8),
        (at_least("task", "add", Relative("best_parent", -0.01)), 0.99),
        (at_least("task", "rev", Relative("best_parent")), 1.0),
        (at_least("task", "add", Relative("text", 0.1)), 0.35),
        (at_least("task", "srt", Relative("base")), 0.25),
        (at_least("objective", "skills", Relative("best_parent", -0.01)), 0.615),
        (ConstraintSpec("objective", "cost", "at_most", Relative("best_parent")), 0.5),
    ],
)
def test_bounds_are_resolved_against_the_references(constraint: ConstraintSpec, bound: float) -> None:
    """The base is no parent: its 0.75 in skills does not count for the best one."""
    assert resolve_bound(constraint, OBJECTIVES, PARENTS) == pytest.approx(bound)


def test_a_model_without_scores_bounds_nothing() -> None:
    with pytest.raises(ConfigError, match="refers to a model without scores"):
        resolve_bound(at_least("task", "add", Relative("base")), OBJECTIVES, {"math": PARENTS["math"]})
    with pytest.raises(ConfigError, match="without scores"):
        resolve_bound(at_least("task", "add", Relative("best_parent")), OBJECTIVES, {})


def test_violation_is_bound_minus_value_plus_z_standard_errors() -> None:
    estimate = Estimate(0.7, 0.04)
    assert violation(at_least("task", "add", 0.8), 0.8, estimate) == pytest.approx(0.1)
    assert violation(at_least("task", "add", 0.8, z=2.0), 0.8, estimate) == pytest.approx(0.18)
    above = ConstraintSpec("task", "add", "at_most", 0.8, z=2.0)
    assert violation(above, 0.8, estimate) == pytest.approx(-0.02)


def test_exactly_the_bound_is_feasible_by_default() -> None:
    assert violation(at_least("task", "add", Relative("math")), 0.75, Estimate(0.75, 0.1)) == 0.0


def test_violations_follow_the_constraints_order() -> None:
    constraints = [at_least("task", "rev", 0.5), at_least("objective", "skills", 0.4)]
    goals = BoundGoals(OBJECTIVES, tuple(constraints), (0.5, 0.4))
    assert violations(goals, believed(goals, SCORED)) == pytest.approx((0.25, -0.1))
    few = BoundGoals(OBJECTIVES, tuple(constraints), (0.5,))
    with pytest.raises(ValueError, match="shorter"):
        violations(few, believed(few, SCORED))


def test_goals_bind_and_judge() -> None:
    goals = Goals(OBJECTIVES, (at_least("task", "rev", Relative("best_parent", -0.8)),))
    bound = goals.bound(PARENTS)
    assert bound == BoundGoals(OBJECTIVES, goals.constraints, bound.bounds)
    assert bound.bounds == pytest.approx((0.2,))
    beliefs = believed(bound, SCORED)
    assert violations(bound, beliefs) == pytest.approx((-0.05,))
    assert feasible(bound, beliefs)
    assert not feasible(bound, believed(bound, PARENTS["math"]))
    assert losses(bound, beliefs) == (-0.5, 1.0)
    assert feasible(Goals((SKILLS,)).bound({}), beliefs)


@pytest.mark.parametrize(
    ("objectives", "constraints", "message"),
    [
        ([], [], "different names"),
        ([SKILLS, SKILLS], [], "different names"),
        ([ObjectiveSpec("o", ("rve",))], [], "Did you mean 'rev'"),
        ([SKILLS], [at_least("task", "ad", 0.1)], "Did you mean 'add'"),
        ([SKILLS], [at_least("objective", "skill", 0.1)], "Did you mean 'skills'"),
        ([SKILLS], [at_least("task", "add", Relative("best_parnet"))], "Did you mean 'best_parent'"),
        ([SKILLS], [at_least("task", "add", Relative("base"))], "relative to an unknown model"),
    ],
)
def test_names_are_checked(objectives: list[Objective], constraints: list[ConstraintSpec], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_goals(objectives, constraints, tasks=["add", "rev", "srt"], parents=["math", "text"], has_base=False)


def test_good_names_pass() -> None:
    constraints = [at_least("task", "add", Relative(of)) for of in ("best_parent", "base", "math")]
    custom = CustomObjective("own", lambda _: 0.0)
    check_goals([SKILLS, custom], constraints, tasks=["add", "rev"], parents=["math"], has_base=True)


def test_constraints_read_like_the_job_file() -> None:
    texts = [at_least("task", "rev", bound).text for bound in (0.8, Relative("base"), Relative("best_parent", -0.01))]
    assert texts == ["rev >= 0.8", "rev >= base", "rev >= best_parent - 0.01"]
    assert ConstraintSpec("objective", "cost", "at_most", Relative("math", 0.5)).text == "cost <= math + 0.5"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_constraints_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="bounds nothing"):
        at_least("task", "a", bad)
    with pytest.raises(ValueError, match="bounds nothing"):
        Relative("base", bad)
    with pytest.raises(ValueError, match="must be finite and not negative"):
        at_least("task", "a", 0.0, z=bad)
    with pytest.raises(ValueError, match="must be finite and not negative"):
        at_least("task", "a", 0.0, z=-1.0)
