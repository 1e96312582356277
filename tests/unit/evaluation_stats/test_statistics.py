"""Intervals and comparisons: closed forms, coverage by simulation, and what must never be called better."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import EvaluationError
from evomerge.evaluation.objectives import CustomObjective, ObjectiveSpec
from evomerge.evaluation.statistics import (
    Interval,
    bootstrap_difference,
    compare,
    compare_all,
    fewest_different,
    normal_quantile,
    objective_interval,
    selection_note,
    task_interval,
    wilson_interval,
)
from evomerge.types import Evaluation, SetName, TaskAnswers

ONE = ObjectiveSpec("one", ("a",))


def evaluation(set_name: SetName = "report", **scores: object) -> Evaluation:
    answers = {}
    for task, values in scores.items():
        row = tuple(map(float, np.asarray(values)))
        answers[task] = TaskAnswers(task, tuple(f"{task}{i}" for i in range(len(row))), row)
    return Evaluation(set_name, answers)


def test_quantiles() -> None:
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(ValueError, match="a confidence of 1"):
        normal_quantile(1.0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I."""
    assert wilson_interval(successes / n, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_wilson_is_never_empty_and_mirrors(n: int, share: float) -> None:
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    assert low < high
    mirrored = wilson_interval(1 - share, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-9)


def test_wilson_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="in 0 trials"):
        wilson_interval(0.5, 0)
    with pytest.raises(ValueError, match="a share of 1"):
        wilson_interval(1.5, 10)


def test_task_intervals_by_metric() -> None:
    binary = TaskAnswers("a", ("x", "y", "z", "w"), (1.0, 0.0, 1.0, 1.0))
    assert task_interval(binary) == wilson_interval(0.75, 4)
    graded = TaskAnswers("a", ("x", "y"), (0.25, 0.75))
    assert task_interval(graded) == pytest.approx((0.5 - 1.959964 * 0.25, 0.5 + 1.959964 * 0.25))


def test_objective_intervals_reduce_to_the_tasks() -> None:
    scored = evaluation(a=[1, 0, 1, 1], b=[1, 1, 1, 1])
    one = task_interval(scored.answers["a"])
    assert objective_interval(ONE, scored) == pytest.approx(one)
    assert objective_interval(ObjectiveSpec("m", ("a",), "min"), scored) == pytest.approx(one)
    doubled = objective_interval(ObjectiveSpec("w", ("a",), "weighted", (-2.0,)), scored)
    assert doubled == pytest.approx((-2 * one.high, -2 * one.low))


def test_objective_interval_of_a_mean_by_hand() -> None:
    scored = evaluation(a=[1, 0, 1, 1], b=[1, 1, 1, 1])
    (la, ua), (lb, ub) = (task_interval(scored.answers[t]) for t in "ab")
    low = 0.875 - math.hypot(0.75 - la, 1 - lb) / 2
    high = 0.875 + math.hypot(ua - 0.75, ub - 1) / 2
    assert objective_interval(ObjectiveSpec("m", ("a", "b")), scored) == pytest.approx((low, high))
    assert objective_interval(ObjectiveSpec("m", ("a", "b"), "min"), scored) == pytest.approx((la, min(ua, ub)))


def test_perfect_scores_still_have_an_interval() -> None:
    low, high = objective_interval(ObjectiveSpec("m", ("a", "b")), evaluation(a=[1] * 50, b=[1] * 50))
    assert high == 1.0
    assert 0.9 < low < 1.0


def test_custom_objectives_use_their_own_standard_error() -> None:
    custom = CustomObjective("c", lambda _: (2.0, 0.5))
    assert objective_interval(custom, evaluation(a=[1])) == pytest.approx((2 - 0.979982, 2 + 0.979982))


@pytest.mark.parametrize("aggregate", ["mean", "weighted"])
def test_objective_intervals_cover(aggregate: str) -> None:
    rng = np.random.default_rng(5)
    weights = (0.7, 0.3) if aggregate == "weighted" else ()
    spec = ObjectiveSpec("m", ("a", "b"), aggregate, weights)  # type: ignore[arg-type]
    truth = 0.7 * 0.9 + 0.3 * 0.4 if weights else 0.65
    hits = 0
    for _ in range(400):
        low, high = objective_interval(spec, evaluation(a=rng.binomial(1, 0.9, 80), b=rng.binomial(1, 0.4, 60)))
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.985


# -- comparisons -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_agrees_with_the_normal_interval_on_many_items() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.binomial(1, 0.7, 2000), rng.binomial(1, 0.6, 2000)
    interval = bootstrap_difference(ONE, evaluation(a=a), evaluation(a=b), seed=1)
    difference = a - b
    half = 1.959964 * difference.std(ddof=1) / math.sqrt(2000)
    assert interval == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.003)


def test_the_bootstrap_equals_drawing_items_one_by_one() -> None:
    """Counts of distinct pairs have the distribution of resampled items; widening apart, so have their means."""
    rng = np.random.default_rng(3)
    a, b = rng.binomial(1, 0.6, 30), rng.binomial(1, 0.5, 30)
    index = rng.integers(0, 30, (20_000, 30))
    drawn = (a[index] - b[index]).mean(axis=1)
    centre = (a - b).mean()
    slow = np.quantile(centre + (drawn - centre) * math.sqrt(30 / 29), [0.025, 0.975])
    assert bootstrap_difference(ONE, evaluation(a=a), evaluation(a=b), seed=1) == pytest.approx(slow, abs=0.012)


def test_tasks_are_resampled_apart() -> None:
    """With stratification a task on which every item agrees adds no width."""
    rng = np.random.default_rng(2)
    a, b = rng.binomial(1, 0.7, 100), rng.binomial(1, 0.6, 100)
    both = ObjectiveSpec("both", ("a", "b"))
    alone = bootstrap_difference(ONE, evaluation(a=a), evaluation(a=b), seed=1)
    pair = bootstrap_difference(both, evaluation(a=a, b=[1] * 50), evaluation(a=b, b=[0] * 50), seed=1)
    assert pair.high - pair.low == pytest.approx((alone.high - alone.low) / 2, rel=0.06)


def test_pairing_pays() -> None:
    """Two models that agree on most items are told apart where independent ones would not be."""
    rng = np.random.default_rng(4)
    parent = rng.binomial(1, 0.5, 300)
    child = parent.copy()
    child[np.flatnonzero(parent == 0)[:15]] = 1
    comparison = compare(ONE, evaluation(a=child), evaluation(a=parent), against="p", seed=0)
    assert comparison.verdict == "better"
    assert comparison.n_different == 15
    assert comparison.difference == pytest.approx(0.05)
    unpaired = 1.96 * math.sqrt(2 * 0.25 / 300)
    assert comparison.low > 0 > comparison.difference - unpaired


def test_identical_answers_are_not_separable() -> None:
    same = evaluation(a=[1, 0, 1])
    comparison = compare(ONE, same, same, against="p", seed=0)
    assert (comparison.low, comparison.difference, comparison.high) == (0.0, 0.0, 0.0)
    assert comparison.verdict == "not separable"


def test_the_order_of_the_baselines_items_does_not_matter() -> None:
    ours = evaluation(a=[1, 0, 1, 1])
    theirs = TaskAnswers("a", ("a3", "a2", "a1", "a0"), (0.0, 1.0, 0.0, 1.0))
    comparison = compare(ONE, ours, Evaluation("report", {"a": theirs}), against="p", seed=0)
    assert comparison.n_different == 1
    assert comparison.difference == 0.25


def test_a_few_items_are_never_enough() -> None:
    """All bootstrap resamples of five equal differences are equal; the sign test says 2 * 2^-5 = 0.0625."""
    n = fewest_different(0.95)
    assert n == 6
    for k, verdict in ((n - 1, "not separable"), (n, "better")):
        comparison = compare(ONE, evaluation(a=[1] * k), evaluation(a=[0] * k), against="p", seed=0)
        assert comparison.low == 1.0
        assert comparison.verdict == verdict


@given(st.floats(0.5, 0.9999))
@settings(deadline=None, max_examples=50)
def test_fewest_different_is_where_the_sign_test_gets_there(confidence: float) -> None:
    k = fewest_different(confidence)
    assert 2.0 ** (1 - k) <= 1 - confidence + 1e-12
    assert 2.0 ** (2 - k) > 1 - confidence - 1e-12


def test_direction_decides_what_is_better() -> None:
    down = ObjectiveSpec("cost", ("a",), direction="minimize")
    more, less = evaluation(a=[1] * 20), evaluation(a=[0] * 20)
    assert compare(down, less, more, against="p", seed=0).verdict == "better"
    assert compare(down, more, less, against="p", seed=0).verdict == "worse"
    assert compare(ONE, more, less, against="p", seed=0).verdict == "better"


def test_a_minimum_is_compared_by_its_own_bootstrap() -> None:
    rng = np.random.default_rng(7)
    worst = ObjectiveSpec("worst", ("a", "b"), "min")
    ours = evaluation(a=rng.binomial(1, 0.8, 200), b=rng.binomial(1, 0.7, 200))
    theirs = evaluation(a=rng.binomial(1, 0.9, 200), b=rng.binomial(1, 0.3, 200))
    comparison = compare(worst, ours, theirs, against="p", seed=0)
    assert comparison.low < comparison.difference < comparison.high
    assert comparison.verdict == "better"


def test_custom_objectives_are_compared_by_standard_error() -> None:
    custom = CustomObjective("c", lambda e: (e.answers["a"].mean, 0.1))
    comparison = compare(custom, evaluation(a=[1] * 10), evaluation(a=[0] * 10), against="p", seed=0)
    half = 1.959964 * math.hypot(0.1, 0.1)
    assert (comparison.low, comparison.high) == pytest.approx((1 - half, 1 + half))
    assert comparison.verdict == "better"


def test_intervals_are_widened_for_the_number_of_baselines() -> None:
    rng = np.random.default_rng(8)
    candidate = evaluation(a=rng.binomial(1, 0.6, 200))
    baselines = {f"p{i}": evaluation(a=rng.binomial(1, 0.5, 200)) for i in range(4)}
    several = compare_all([ONE], candidate, baselines, seed=0)
    alone = compare(ONE, candidate, baselines["p0"], against="p0", seed=0)
    assert [c.against for c in several] == list(baselines)
    assert [c.confidence for c in several] == [pytest.approx(0.9875)] * 4
    assert several[0].low < alone.low < alone.high < several[0].high
    assert compare_all([ONE], candidate, {}, seed=0) == ()


def test_comparisons_are_a_function_of_the_seed() -> None:
    rng = np.random.default_rng(9)
    a, b = (evaluation(a=rng.random(50)) for _ in range(2))
    assert compare_all([ONE], a, {"b": b}, seed=3) == compare_all([ONE], a, {"b": b}, seed=3)
    assert compare_all([ONE], a, {"b": b}, seed=3) != compare_all([ONE], a, {"b": b}, seed=4)


def test_only_the_same_items_can_be_compared() -> None:
    ours = evaluation(a=[1, 0])
    with pytest.raises(EvaluationError, match="they answered different items"):
        compare(ONE, ours, evaluation(a=[1, 0, 1]), against="p", seed=0)
    with pytest.raises(EvaluationError, match="they answered different items"):
        compare(ONE, ours, evaluation(set_name="search", a=[1, 0]), against="p", seed=0)
    with pytest.raises(EvaluationError, match="'a' was not scored"):
        compare(ONE, ours, evaluation(b=[1, 0]), against="p", seed=0)


def test_equal_models_are_seldom_called_different() -> None:
    """The null: two models of the same ability on every item. `better` is said in at most 2.5 % of the seeds."""
    spec = ObjectiveSpec("m", ("a", "b"))
    verdicts = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        ability = {t: rng.random(n) for t, n in (("a", 100), ("b", 60))}
        one, two = (evaluation(**{t: rng.binomial(1, p) for t, p in ability.items()}) for _ in range(2))
        verdicts.append(compare(spec, one, two, against="p", seed=seed).verdict)
    better, worse = (verdicts.count(v) / len(verdicts) for v in ("better", "worse"))
    assert better + worse <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert better <= 0.05
    assert better + worse > 0  # a test that never speaks has no power


def test_the_chosen_of_many_equal_candidates_is_not_better_than_its_parent() -> None:
    """Select the luckiest of 50 equal candidates, then compare on fresh items: the choice must not leak."""
    said = 0
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        ability = rng.random(100)
        report = rng.random(200)
        luckiest = int(np.argmax(rng.binomial(1, ability, (50, 100)).mean(axis=1)))
        answers = rng.binomial(1, report, (50, 200))[luckiest]
        parents = {f"p{i}": evaluation(a=rng.binomial(1, report)) for i in range(3)}
        verdicts = [c.verdict for c in compare_all([ONE], evaluation(a=answers), parents, seed=seed)]
        said += "better" in verdicts
    assert said / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_a_real_gain_is_found() -> None:
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        ability = rng.random(400)
        better = np.minimum(ability + 0.12, 1.0)
        ours, theirs = evaluation(a=rng.binomial(1, better)), evaluation(a=rng.binomial(1, ability))
        found += compare(ONE, ours, theirs, against="p", seed=seed).verdict == "better"
    assert found >= 32


def test_the_note_says_how_many_were_tried() -> None:
    note = selection_note(160, 4)
    assert "160 candidates" in note
    assert "4 comparisons" in note
    assert "95%" in note
    assert isinstance(Interval(0.0, 1.0).low, float)
