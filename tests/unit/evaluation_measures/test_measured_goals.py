"""Measures in objectives, constraints, bounds, JSON, intervals and comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.beliefs import believed, feasible, losses, violations
from evomerge.evaluation.goal_names import check_goals
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_from_json, goals_to_json
from evomerge.evaluation.measures import Measure, measured
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec, Relative, resolve_bound
from evomerge.evaluation.statistics import (
    bootstrap_difference,
    compare,
    compare_all,
    objective_interval,
    wilson_interval,
)
from evomerge.types import Evaluation, TaskAnswers

FLIPS = Measure("flips", "math")
UNLEARNED = ObjectiveSpec("unlearned", ("add",), direction="minimize", measure=FLIPS)


def evaluation(rows: dict[str, object], margins: object = None, set_name: str = "report") -> Evaluation:
    found = {}
    for task, row in rows.items():
        scores = tuple(float(x) for x in np.asarray(row))
        extra = () if margins is None else tuple(float(x) for x in np.asarray(margins))
        found[task] = TaskAnswers(task, tuple(f"{task}{i}" for i in range(len(scores))), scores, extra)
    return Evaluation(set_name, found)  # type: ignore[arg-type]


RNG = np.random.default_rng(11)
REFERENCES = {name: evaluation({"add": RNG.binomial(1, 0.7, 200)}) for name in ("base", "math", "lang")}
MERGE = evaluation({"add": RNG.binomial(1, 0.6, 200)})


def test_goals_with_flips_bind_and_judge() -> None:
    bound = ConstraintSpec("task", "add", "at_most", 0.05, measure=FLIPS)
    goals = Goals((ObjectiveSpec("add", ("add",)), UNLEARNED), (bound,)).bound(REFERENCES)
    rate = np.mean(np.array(REFERENCES["math"].answers["add"].scores) * (1 - np.array(MERGE.answers["add"].scores)))
    beliefs = believed(goals, MERGE)
    assert losses(goals, beliefs) == pytest.approx((-MERGE.answers["add"].mean, rate))
    assert violations(goals, beliefs) == pytest.approx((rate - 0.05,))
    assert beliefs.values["unlearned"].value == pytest.approx(rate)
    assert not feasible(goals, beliefs)
    assert feasible(goals, believed(goals, REFERENCES["math"]))


def test_the_best_parent_in_flips_is_the_one_with_the_fewest() -> None:
    against_base = Measure("flips", "base")
    rates = {n: measured(against_base, e, ["add"], REFERENCES)["add"].mean for n, e in REFERENCES.items()}
    constraint = ConstraintSpec("task", "add", "at_most", Relative("best_parent", 0.02), measure=against_base)
    assert resolve_bound(constraint, (), REFERENCES) == pytest.approx(min(rates["math"], rates["lang"]) + 0.02)
    most = ConstraintSpec("task", "add", "at_least", Relative("best_parent"))
    assert resolve_bound(most, (), REFERENCES) == max(REFERENCES[n].answers["add"].mean for n in ("math", "lang"))


def test_a_missing_reference_is_said_before_any_candidate_is_judged() -> None:
    with pytest.raises(EvaluationError, match=r"without scores[\s\S]*'math'"):
        Goals((UNLEARNED,)).bound({"lang": REFERENCES["lang"]})
    with pytest.raises(EvaluationError, match="without scores"):
        Goals((ObjectiveSpec("o", ("add",)),), (ConstraintSpec("task", "add", "at_most", 0.1, measure=FLIPS),)).bound(
            {}
        )
    with pytest.raises(EvaluationError, match="there are none"):
        Goals((ObjectiveSpec("o", ("add",), measure=Measure("ability")),)).bound({})


def test_constraints_name_their_measure() -> None:
    assert ConstraintSpec("task", "add", "at_most", 0.05, measure=FLIPS).text == "flips of add against math <= 0.05"
    assert ConstraintSpec("task", "add", "at_least", 0.5, measure=Measure(subject="x")).label == "add (x)"
    with pytest.raises(ConfigError, match="has a measure of its own"):
        ConstraintSpec("objective", "skills", "at_most", 0.05, measure=FLIPS)


def test_goals_survive_json_and_older_ones_are_scores() -> None:
    goals = Goals(
        (UNLEARNED, ObjectiveSpec("m", ("add",), measure=Measure("margin", subject="x"))),
        (ConstraintSpec("task", "add", "at_most", 0.05, 1.0, FLIPS), ConstraintSpec("task", "add", "at_least", 0.5)),
    )
    found = goals_to_json(goals)
    assert goals_from_json(found) == goals
    assert "measure" not in found["constraints"][1]
    for part in (*found["objectives"], *found["constraints"]):
        part.pop("measure", None)
    older = goals_from_json(found)
    assert [o.measure for o in older.objectives if isinstance(o, ObjectiveSpec)] == [Measure(), Measure()]


def test_names_of_references_are_checked() -> None:
    def check(measure: Measure, *, has_base: bool = False) -> None:
        known = {"tasks": ["add"], "parents": ["math", "lang"], "has_base": has_base}
        check_goals([ObjectiveSpec("o", ("add",), measure=measure)], [], **known)  # type: ignore[arg-type]
        constraint = ConstraintSpec("task", "add", "at_most", 0.1, measure=measure)
        check_goals([ObjectiveSpec("o", ("add",))], [constraint], **known)  # type: ignore[arg-type]

    for good in ("math", "any_parent"):
        check(Measure("flips", good))
    check(Measure("flips", "base"), has_base=True)
    with pytest.raises(ConfigError, match=r"'o' counts flips against an unknown model[\s\S]*Did you mean 'math'"):
        check(Measure("flips", "mat"))
    with pytest.raises(ConfigError, match="unknown model"):
        check(Measure("flips", "base"))
    bad = ConstraintSpec("task", "add", "at_most", 0.1, measure=Measure("flips", "best_parent"))
    with pytest.raises(ConfigError, match="constraint on 'add' counts flips against an unknown model"):
        check_goals([ObjectiveSpec("o", ("add",))], [bad], tasks=["add"], parents=["math"], has_base=True)


# -- intervals and comparisons -----------------------------------------------------------------------------------------


def test_the_interval_of_flips_is_wilsons() -> None:
    flips = measured(FLIPS, MERGE, ["add"], REFERENCES)["add"]
    interval = objective_interval(UNLEARNED, MERGE, references=REFERENCES)
    assert interval == pytest.approx(wilson_interval(flips.mean, 200))


def test_differences_of_flips_are_a_paired_bootstrap_over_items() -> None:
    known = np.array(REFERENCES["math"].answers["add"].scores)
    ours, theirs = (known * (1 - np.array(e.answers["add"].scores)) for e in (MERGE, REFERENCES["lang"]))
    rng = np.random.default_rng(0)
    index = rng.integers(0, 200, (10_000, 200))
    slow = np.quantile((ours - theirs)[index].mean(axis=1), [0.025, 0.975])
    fast = bootstrap_difference(UNLEARNED, MERGE, REFERENCES["lang"], seed=1, references=REFERENCES)
    assert fast == pytest.approx(slow, abs=0.008)
    comparison = compare(UNLEARNED, MERGE, REFERENCES["lang"], against="lang", seed=1, references=REFERENCES)
    assert comparison.difference == pytest.approx((ours - theirs).mean())
    assert comparison.n_different == int(np.sum(ours != theirs))
    assert comparison.low < comparison.difference < comparison.high


def test_many_flips_are_worse() -> None:
    forgetful = evaluation({"add": np.array(REFERENCES["math"].answers["add"].scores) * (np.arange(200) % 3 > 0)})
    (comparison,) = compare_all([UNLEARNED], forgetful, {"math": REFERENCES["math"]}, seed=0, references=REFERENCES)
    assert comparison.verdict == "worse"
    assert comparison.difference == pytest.approx(forgetful_rate(forgetful))


def forgetful_rate(forgetful: Evaluation) -> float:
    return REFERENCES["math"].answers["add"].mean - forgetful.answers["add"].mean


def test_margins_tell_models_apart_that_scores_do_not() -> None:
    scores = [1] * 40
    ours, theirs = (evaluation({"add": scores}, RNG.normal(m, 0.2, 40)) for m in (2.0, 1.0))
    clear = ObjectiveSpec("clear", ("add",), measure=Measure("margin"))
    by_score = compare(ObjectiveSpec("score", ("add",)), ours, theirs, against="p", seed=0)
    by_margin = compare(clear, ours, theirs, against="p", seed=0)
    assert (by_score.verdict, by_margin.verdict) == ("not separable", "better")
    value = np.mean(ours.answers["add"].margins)
    half = 1.959964 * np.std(ours.answers["add"].margins, ddof=1) / math.sqrt(40)
    assert objective_interval(clear, ours) == pytest.approx((value - half, value + half))
