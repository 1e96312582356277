"""One ability over several tasks: what it says, how surely, and that its items' parts are its jackknife."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from evomerge.errors import EvaluationError
from evomerge.evaluation.common_ability import ability_answers, ability_of, fit_bank
from evomerge.evaluation.measures import Measure, References
from evomerge.evaluation.objectives import ObjectiveSpec, objective_values
from evomerge.evaluation.statistics import bootstrap_difference, compare, objective_interval
from evomerge.types import Evaluation, TaskAnswers

TASKS = ("add", "rev")
N = 80
DIFFICULTY = np.random.default_rng(5).normal(0, 1.2, (2, N))
SKILL = ObjectiveSpec("skill", TASKS, measure=Measure("ability"))


def model(abilities: Sequence[float], seed: int) -> Evaluation:
    """Independent answers of a model with an ability per task; both tasks' items have the same hashes."""
    rng = np.random.default_rng(seed)
    found = {}
    for task, ability, difficulty in zip(TASKS, abilities, DIFFICULTY, strict=True):
        right = rng.random(N) < 1 / (1 + np.exp(difficulty - ability))
        found[task] = TaskAnswers(task, tuple(f"i{j}" for j in range(N)), tuple(right.astype(float)))
    return Evaluation("report", found)


def all_of(score: float) -> Evaluation:
    items = tuple(f"i{j}" for j in range(N))
    return Evaluation("report", {t: TaskAnswers(t, items, (score,) * N) for t in TASKS})


REFERENCES = References({"base": model((0, 0), 1), "math": model((1, 0), 2), "lang": model((0, 1), 3)})
BANK = REFERENCES.bank(TASKS)


def test_the_bank_is_fitted_once_and_holds_both_tasks() -> None:
    assert REFERENCES.bank(TASKS) is BANK
    assert len(BANK.items) == 2 * N
    assert BANK.dimensions == 1


def test_ability_follows_what_was_drawn() -> None:
    truth = np.repeat(np.linspace(-2, 2, 9), 4)
    found = [ability_of(BANK, model((t, t), 100 + i), TASKS).value for i, t in enumerate(truth)]
    assert np.corrcoef(found, truth)[0, 1] > 0.97


def test_a_task_in_which_the_references_differ_most_does_not_outweigh_the_others() -> None:
    specialists = {"one": model((3, -1), 7), "two": model((-1, 1), 8)}
    slopes = fit_bank(specialists, TASKS).slopes[:, 0]
    assert slopes[:N].mean() == pytest.approx(slopes[N:].mean(), rel=0.1)


def test_forgetting_what_every_reference_knows_costs_ability() -> None:
    rows = np.array([np.concatenate([e.answers[t].scores for t in TASKS]) for e in REFERENCES.values()])
    known = np.flatnonzero(rows.all(axis=0))
    assert known.size > 10
    math_scores = {t: np.array(REFERENCES["math"].answers[t].scores) for t in TASKS}
    forgetful = Evaluation(
        "report",
        {
            t: TaskAnswers(
                t,
                REFERENCES["math"].answers[t].items,
                tuple(np.where(np.isin(np.arange(N) + k * N, known[:10]), 0.0, math_scores[t])),
            )
            for k, t in enumerate(TASKS)
        },
    )
    assert ability_of(BANK, forgetful, TASKS).value < ability_of(BANK, REFERENCES["math"], TASKS).value - 0.2


def test_the_extremes_are_finite() -> None:
    best, worst = (ability_of(BANK, all_of(s), TASKS) for s in (1.0, 0.0))
    assert worst.value < ability_of(BANK, REFERENCES["base"], TASKS).value < best.value
    assert all(math.isfinite(x) for x in (*best, *worst))


def test_the_standard_error_is_the_curvature_of_the_posterior() -> None:
    answered = model((0.5, 0.5), 9)
    theta, se = ability_of(BANK, answered, TASKS)
    y = np.concatenate([answered.answers[t].scores for t in TASKS])

    def log_posterior(t: float) -> float:
        z = BANK.slopes[:, 0] * t + BANK.intercepts
        prior = -((t - BANK.mean[0]) ** 2) / (2 * BANK.covariance[0, 0])
        return float(np.sum(y * z - np.logaddexp(0, z)) + prior)

    h = 1e-3
    around = [log_posterior(theta + d) for d in (-h, 0.0, h)]
    assert around[1] == max(around)
    assert se == pytest.approx(math.sqrt(-(h**2) / (around[0] - 2 * around[1] + around[2])), rel=1e-4)


def test_the_standard_error_is_about_what_repeated_draws_show() -> None:
    found = [ability_of(BANK, model((0.5, 0.5), 300 + i), TASKS) for i in range(150)]
    assert np.mean([f.se for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.3)


def test_few_answers_are_enough_and_less_sure() -> None:
    whole = model((1, 1), 10)
    part = Evaluation("report", {t: a.at(range(0, N, 4)) for t, a in whole.answers.items()})
    some, every = (ability_of(BANK, e, TASKS) for e in (part, whole))
    assert some.se > every.se
    assert abs(some.value - every.value) < 3 * some.se
    assert len(ability_answers(BANK, part, TASKS).items) == 2 * N // 4


def test_the_items_parts_are_the_jackknife() -> None:
    answered = model((0.3, 0.3), 12)
    theta = ability_of(BANK, answered, TASKS).value
    parts = ability_answers(BANK, answered, TASKS)
    assert parts.mean == pytest.approx(theta)
    slow = []
    for k, task in enumerate(TASKS):
        for i in range(N):
            left = {**answered.answers, task: answered.answers[task].at([j for j in range(N) if j != i])}
            slow.append(2 * N * theta - (2 * N - 1) * ability_of(BANK, Evaluation("report", left), TASKS).value)
        assert parts.items[k * N] == f"{task}:i0"
    assert np.corrcoef(slow, parts.scores)[0, 1] > 0.999
    assert parts.se == pytest.approx(np.std(slow, ddof=1) / math.sqrt(2 * N), rel=0.05)


def test_objectives_take_ability_intervals_and_comparisons() -> None:
    ours, theirs = model((1.5, 1.5), 20), REFERENCES["base"]
    value, se = objective_values(SKILL, ours, REFERENCES)
    assert (value, se) == ability_of(BANK, ours, TASKS)
    assert objective_interval(SKILL, ours, references=REFERENCES) == pytest.approx(
        (value - 1.959964 * se, value + 1.959964 * se)
    )
    found = compare(SKILL, ours, theirs, against="base", seed=0, references=REFERENCES)
    assert found.difference == pytest.approx(value - ability_of(BANK, theirs, TASKS).value)
    assert found.low < found.difference < found.high
    assert found.verdict == "better"
    scores = [np.concatenate([e.answers[t].scores for t in TASKS]) for e in (ours, theirs)]
    assert (found.n_items, found.n_different) == (2 * N, int(np.sum(scores[0] != scores[1])))
    itself = compare(SKILL, ours, ours, against="self", seed=0, references=REFERENCES)
    assert (itself.low, itself.high, itself.verdict) == (0.0, 0.0, "not separable")


def test_the_interval_of_a_difference_covers() -> None:
    """Two models of equal ability, again and again: 0 lies in the interval of their difference."""
    hits = 0
    for i in range(120):
        pair = (model((0.5, 0.5), 1000 + 2 * i), model((0.5, 0.5), 1001 + 2 * i))
        low, high = bootstrap_difference(SKILL, *pair, seed=i, n_resamples=1000, references=REFERENCES)
        hits += low <= 0 <= high
    assert hits / 120 >= 0.9


def test_log_likelihoods_have_an_ability_too() -> None:
    def graded(level: float, seed: int) -> Evaluation:
        noise = np.random.default_rng(seed).normal(0, 1, N)
        items = tuple(f"i{j}" for j in range(N))
        return Evaluation("report", {"add": TaskAnswers("add", items, tuple(-9 + level - DIFFICULTY[0] + noise))})

    bank = fit_bank({"a": graded(0, 1), "b": graded(1, 2), "c": graded(0.5, 3)}, ["add"])
    assert bank.link == "normal"
    found = [ability_of(bank, graded(level, 9), ["add"]).value for level in (-1.0, 0.0, 1.0, 3.0)]
    assert found == sorted(found)


def test_subjects_and_missing_tasks() -> None:
    items = tuple(f"i{j}" for j in range(4))
    pooled = Evaluation("report", {"mmlu": TaskAnswers("mmlu", items, (1.0, 0.0, 1.0, 0.0), (), ("x", "x", "y", "y"))})
    assert len(fit_bank({"a": pooled}, ["mmlu"], "x").items) == 2
    with pytest.raises(EvaluationError, match="no items of the subject 'z'"):
        fit_bank({"a": pooled}, ["mmlu"], "z")
    with pytest.raises(EvaluationError, match="'add' was not scored"):
        ability_of(BANK, pooled, TASKS)
    with pytest.raises(EvaluationError, match="there are none"):
        References({}).bank(TASKS)
    with pytest.raises(ValueError, match="needs models"):
        fit_bank({}, TASKS)
