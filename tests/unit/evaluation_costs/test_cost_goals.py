"""Costs as objectives and constraints: values, bounds, beliefs, intervals, and their JSON."""

from __future__ import annotations

import pytest

from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.beliefs import believed, errors, feasibility, feasible, losses, violations
from evomerge.evaluation.goal_names import check_goals, check_scored
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_from_json, goals_to_json
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import (
    ConstraintSpec,
    CostObjective,
    CustomObjective,
    ObjectiveSpec,
    Relative,
    bounded,
    objective_values,
)
from evomerge.evaluation.statistics import bootstrap_difference, compare, compare_all, objective_interval
from evomerge.racing.importance import importance_of
from evomerge.runs.beliefs import recorded_value
from evomerge.runs.records import Evaluated, task_scores
from evomerge.types import CandidateId, Digest, Evaluation, TaskAnswers

SKILL = ObjectiveSpec("skill", ("add",))
DEPTH = CostObjective("depth", "hops")
SPEED = CostObjective("speed", "latency")
WITHIN = ConstraintSpec("cost", "hops", "at_most", Relative("best_parent", 2.0))


def model(right: int, hops: float, latency: tuple[float, float] = (1e-3, 1e-5)) -> Evaluation:
    items = tuple(f"i{k}" for k in range(10))
    answers = {"add": TaskAnswers("add", items, tuple(float(k < right) for k in range(10)))}
    return Evaluation("search", answers, costs={"hops": (hops, 0.0), "latency": latency})


PARENTS = {"base": model(1, 3), "math": model(5, 4), "lang": model(4, 6)}
GOALS = Goals((SKILL, DEPTH), (WITHIN,))


def test_values_are_what_the_evaluation_tells() -> None:
    assert objective_values(SPEED, model(5, 4)) == (1e-3, 1e-5)
    assert objective_values(DEPTH, model(5, 4)) == (4.0, 0.0)
    with pytest.raises(EvaluationError, match="'hops' of a model is not known"):
        objective_values(DEPTH, Evaluation("search", model(5, 4).answers))


@pytest.mark.parametrize(
    "make", [lambda: CostObjective("x", "hop"), lambda: ConstraintSpec("cost", "hop", "at_most", 1)]
)  # type: ignore[arg-type]
def test_unknown_costs_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match=r"unknown cost[\s\S]*'hop'[\s\S]*hops"):
        make()  # type: ignore[operator]


def test_a_cost_has_no_measure_of_its_own() -> None:
    with pytest.raises(ConfigError, match="measure of its own"):
        ConstraintSpec("cost", "hops", "at_most", 4, measure=Measure("margin"))


def test_the_best_parent_is_the_cheapest_whatever_an_objective_wants() -> None:
    assert WITHIN.text == "hops <= best_parent + 2"
    assert bounded(WITHIN, ()) == CostObjective("hops", "hops", "minimize")
    assert GOALS.bound(PARENTS).bounds == (6.0,)
    deep = Goals((SKILL, CostObjective("deep", "hops", "maximize")), (WITHIN,))
    assert deep.bound(PARENTS).bounds == (6.0,)
    base = Goals((SKILL,), (ConstraintSpec("cost", "hops", "at_most", Relative("base", -1.0)),))
    assert base.bound(PARENTS).bounds == (2.0,)


def test_beliefs_judge_costs_as_any_objective() -> None:
    goals = GOALS.bound(PARENTS)
    cheap, dear = (believed(goals, model(6, hops)) for hops in (4, 7))
    assert losses(goals, cheap) == (-0.6, 4.0)
    assert errors(goals, cheap)[1] == 0.0
    assert (violations(goals, cheap), violations(goals, dear)) == ((-2.0,), (1.0,))
    assert [feasible(goals, b) for b in (cheap, dear)] == [True, False]
    assert [feasibility(goals, b) for b in (cheap, dear)] == [1.0, 0.0]


def test_a_cost_and_another_objective_of_its_name_are_kept_apart() -> None:
    flips = ObjectiveSpec("hops", ("add",), direction="minimize", measure=Measure("flips", "math"))
    goals = Goals((flips,), (WITHIN,)).bound(PARENTS)
    beliefs = believed(goals, model(3, 5))
    assert losses(goals, beliefs) == pytest.approx((0.2,))
    assert violations(goals, beliefs) == (-1.0,)


def test_which_costs_workers_must_tell() -> None:
    assert Goals((SKILL,)).costs == ()
    assert Goals((SKILL, SPEED), (WITHIN,)).costs == ("hops", "latency")
    assert Goals((SKILL, DEPTH), (ConstraintSpec("objective", "depth", "at_most", 4),)).costs == ("hops",)


def test_goals_with_costs_survive_json() -> None:
    goals = Goals((SKILL, DEPTH, SPEED), (WITHIN, ConstraintSpec("cost", "parameters", "at_most", 1e9)))
    assert goals_from_json(goals_to_json(goals)) == goals


def test_goals_without_costs_have_the_json_they_had() -> None:
    found = goals_to_json(Goals((SKILL,), (ConstraintSpec("task", "add", "at_least", 0.5),)))
    assert "cost" not in str(found)


def test_costs_alone_are_no_goal() -> None:
    with pytest.raises(ConfigError, match=r"Every objective of the job is a cost[\s\S]*depth \(measure: hops\)"):
        check_scored([DEPTH, SPEED])
    check_scored([DEPTH, SKILL])
    check_scored([DEPTH, CustomObjective("f", lambda e: 0.0)])
    check_goals([DEPTH, SKILL], [WITHIN], tasks=["add"], parents=["math"], has_base=False)
    wrong = ConstraintSpec("cost", "hops", "at_most", Relative("mth"))
    with pytest.raises(ConfigError, match="relative to an unknown model"):
        check_goals([SKILL], [wrong], tasks=["add"], parents=["math"], has_base=False)


def test_intervals_need_no_bootstrap() -> None:
    low, high = objective_interval(SPEED, model(5, 4))
    assert (low, high) == pytest.approx((1e-3 - 1.96e-5, 1e-3 + 1.96e-5), rel=1e-3)
    assert objective_interval(DEPTH, model(5, 4)) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("objective", "theirs", "verdict"),
    [
        (DEPTH, model(5, 6), "better"),
        (DEPTH, model(5, 3), "worse"),
        (DEPTH, model(5, 4), "not separable"),
        (SPEED, model(5, 4, (1.01e-3, 1e-5)), "not judged"),
        (SPEED, model(5, 4, (1.1e-3, 1e-5)), "not judged"),
    ],
)
def test_comparisons_of_costs_rest_on_no_items(objective: CostObjective, theirs: Evaluation, verdict: str) -> None:
    found = compare(objective, model(5, 4), theirs, against="b", seed=1)
    assert (found.verdict, found.n_items, found.n_different) == (verdict, 0, 0)
    assert compare_all([objective], model(5, 4), {"b": theirs}, seed=1) == (found,)


def test_items_still_count_beside_costs() -> None:
    found = compare(SKILL, model(9, 4), model(0, 4), against="b", seed=1)
    assert (found.verdict, found.n_items, found.n_different) == ("better", 10, 9)
    interval = bootstrap_difference(SKILL, model(9, 4), model(0, 4), seed=1)
    assert (found.low, found.high) == interval


def test_no_question_tells_a_cost() -> None:
    assert importance_of(Goals((SKILL, DEPTH), (WITHIN,)), ("add", "rev")) == {"add": 1.0, "rev": 0.0}


def test_the_journal_has_costs_and_is_as_it_was_without() -> None:
    evaluation = model(5, 4)
    head = (CandidateId("c"), Digest("d"), "search", task_scores(evaluation))
    with_costs, without = Evaluated(*head, costs=evaluation.costs), Evaluated(*head)  # type: ignore[arg-type]
    assert Evaluated.from_json(with_costs.to_json()) == with_costs
    assert set(with_costs.to_json()) - set(without.to_json()) == {"costs"}
    assert recorded_value(DEPTH, with_costs) == (4.0, 0.0)
    assert recorded_value(DEPTH, without) is None
