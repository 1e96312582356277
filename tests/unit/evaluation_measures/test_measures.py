"""Flips, margins and subjects: closed forms, the slow obvious way, and what partial answers are estimated for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.measures import Measure, References, functional, measured
from evomerge.evaluation.objectives import ObjectiveSpec, objective_values
from evomerge.types import Evaluation, NonFiniteScores, TaskAnswers

FLIPS = Measure("flips", "math")
MARGIN = Measure("margin")


def answers(task: str, scores: list[float], margins: tuple[float, ...] = (), subjects: str = "") -> TaskAnswers:
    items = tuple(f"{task}{i}" for i in range(len(scores)))
    return TaskAnswers(task, items, tuple(map(float, scores)), margins, tuple(subjects))


def evaluation(*parts: TaskAnswers) -> Evaluation:
    return Evaluation("search", {p.task: p for p in parts})


def scored(**scores: list[float]) -> Evaluation:
    return evaluation(*(answers(task, row) for task, row in scores.items()))


REFERENCES = {
    "base": scored(add=[1, 1, 0, 0, 0], rev=[1, 0]),
    "math": scored(add=[1, 1, 1, 0, 0], rev=[0, 0]),
    "lang": scored(add=[0, 0, 0, 1, 0], rev=[1, 1]),
}
MERGE = scored(add=[1, 0, 0, 0, 1], rev=[0, 1])


def value(measure: Measure, tasks: tuple[str, ...] = ("add",), of: Evaluation = MERGE) -> float:
    return objective_values(ObjectiveSpec("o", tasks, measure=measure), of, REFERENCES).value


def test_flips_are_what_the_reference_knows_and_the_merge_does_not() -> None:
    assert measured(FLIPS, MERGE, ["add"], REFERENCES)["add"].scores == (0, 1, 1, 0, 0)
    assert value(FLIPS) == pytest.approx(2 / 5)
    assert value(Measure("flips", "base")) == pytest.approx(1 / 5)
    assert value(Measure("flips", "any_parent")) == pytest.approx(3 / 5)  # the base is no parent: it adds nothing
    assert value(FLIPS, ("add", "rev")) == pytest.approx((2 / 5 + 0) / 2)


def test_a_reference_has_no_flips_against_itself() -> None:
    for name, reference in REFERENCES.items():
        assert value(Measure("flips", name), ("add", "rev"), reference) == 0


def test_partly_right_answers_flip_in_part() -> None:
    assert measured(FLIPS, scored(add=[0.25, 1, 0.5, 0, 0.5]), ["add"], REFERENCES)["add"].scores == (
        0.75,
        0,
        0.5,
        0,
        0,
    )


shares = st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12)


@given(shares, shares, shares)
@settings(deadline=None, max_examples=40)
def test_flips_the_slow_way(merge: list[float], one: list[float], two: list[float]) -> None:
    references = {"math": scored(add=one), "lang": scored(add=two)}
    candidate = scored(add=merge)
    flips = measured(FLIPS, candidate, ["add"], references)["add"]
    assert list(flips.scores) == [float(r == 1 and m == 0) for r, m in zip(one, merge, strict=True)]
    gains = sum(r == 0 and m == 1 for r, m in zip(one, merge, strict=True)) / 12
    assert np.mean(merge) == pytest.approx(np.mean(one) - flips.mean + gains)
    union = measured(Measure("flips", "any_parent"), candidate, ["add"], references)["add"]
    assert list(union.scores) == [float(max(a, b) == 1 and m == 0) for a, b, m in zip(one, two, merge, strict=True)]
    rate = flips.mean
    assert flips.se == pytest.approx(math.sqrt(rate * (1 - rate) / 11))


def test_flips_of_a_part_of_the_items_need_only_these() -> None:
    part = evaluation(MERGE.answers["add"].at([3, 1]))
    assert measured(FLIPS, part, ["add"], REFERENCES)["add"].scores == (0, 1)


def test_margins_and_subjects() -> None:
    one = evaluation(answers("mmlu", [1, 0, 1, 0], (2.0, -1.0, 0.5, -3.5), "abba"))
    assert value(MARGIN, ("mmlu",), one) == pytest.approx(-0.5)
    assert value(Measure(subject="b"), ("mmlu",), one) == pytest.approx(0.5)
    assert value(Measure("margin", subject="b"), ("mmlu",), one) == pytest.approx(-0.25)
    assert measured(Measure(subject="a"), one, ["mmlu"])["mmlu"].items == ("mmlu0", "mmlu3")


def test_aggregates_work_on_measures() -> None:
    for aggregate, weights, expected in (
        ("min", (), 0.0),
        ("mean", (), 0.2),
        ("weighted", (2.0, 5.0), 0.8),
    ):
        spec = ObjectiveSpec("o", ("add", "rev"), aggregate, weights, "minimize", FLIPS)  # type: ignore[arg-type]
        assert objective_values(spec, MERGE, REFERENCES).value == pytest.approx(expected)


# -- what partial answers are estimated for ----------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_every_measure_is_affine_in_the_answers(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    rows = st.lists(st.floats(0, 1, width=16), min_size=n, max_size=n)
    right = st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)
    subjects = "a" + "".join(data.draw(st.lists(st.sampled_from("ab"), min_size=n - 1, max_size=n - 1)))
    margins = tuple(data.draw(st.lists(st.floats(-9, 9), min_size=n, max_size=n)))
    candidate = evaluation(answers("t", data.draw(rows), margins, subjects))
    references = {p: evaluation(answers("t", data.draw(right), (), subjects)) for p in ("math", "lang", "base")}
    kind = data.draw(st.sampled_from(["score", "margin", "flips"]))
    against = data.draw(st.sampled_from(["math", "base", "any_parent"])) if kind == "flips" else ""
    measure = Measure(kind, against, data.draw(st.sampled_from(["", "a"])))  # type: ignore[arg-type]
    found = functional(measure, "t", references)
    own = candidate.answers["t"]
    assert found.items == own.items
    y = np.array(own.margins if found.channel == "margin" else own.scores)
    assert found.constant + found.weights @ y == pytest.approx(
        measured(measure, candidate, ["t"], references)["t"].mean
    )


def test_functionals_need_a_whole_set_and_a_mean() -> None:
    with pytest.raises(ValueError, match="not known"):
        functional(Measure(), "add", {})
    with pytest.raises(ValueError, match="no weighted sum"):
        functional(Measure("ability"), "add", REFERENCES)
    with pytest.raises(ValueError, match="no mean over items"):
        measured(Measure("ability"), MERGE, ["add"], REFERENCES)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "flip"}, "Did you mean 'flips'"),
        ({"kind": "flips"}, "counted against a parent"),
        ({"kind": "margin", "against": "math"}, "Only flips are against"),
    ],
)
def test_bad_measures_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Measure(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("a", "b"), "measure": Measure(subject="x")}, "a subject of several tasks"),
        ({"aggregate": "min", "measure": Measure("ability")}, "aggregates one ability"),
    ],
)
def test_measures_must_fit_their_objective(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObjectiveSpec(**{"name": "o", "tasks": ("a",), **fields})  # type: ignore[arg-type]


def test_flips_say_what_they_lack() -> None:
    with pytest.raises(EvaluationError, match=r"without scores[\s\S]*Did you mean 'math'"):
        value(Measure("flips", "mth"))
    with pytest.raises(EvaluationError, match="without scores"):
        measured(Measure("flips", "any_parent"), MERGE, ["add"], {"base": REFERENCES["base"]})
    with pytest.raises(EvaluationError, match=r"same items[\s\S]*1 of 6 items"):
        value(FLIPS, ("add",), scored(add=[1, 0, 0, 0, 1, 1]))
    with pytest.raises(EvaluationError, match="not right or wrong"):
        value(FLIPS, ("add",), scored(add=[1, 0, 0, 0, -2]))
    with pytest.raises(EvaluationError, match="not right or wrong"):
        measured(FLIPS, MERGE, ["add"], {"math": scored(add=[1, 2, 0, 0, 0])})
    with pytest.raises(EvaluationError, match=r"'ad' was not scored[\s\S]*Did you mean 'add'"):
        value(FLIPS, ("ad",))


def test_margins_and_subjects_say_what_they_lack() -> None:
    with pytest.raises(EvaluationError, match="have no margins"):
        value(MARGIN)
    pooled = evaluation(answers("mmlu", [1, 0], (), "ab"))
    with pytest.raises(EvaluationError, match=r"no items of the subject 'c'[\s\S]*a, b"):
        value(Measure(subject="c"), ("mmlu",), pooled)


def test_references_are_wrapped_once() -> None:
    known = References.of(REFERENCES)
    assert References.of(known) is known
    assert dict(known) == REFERENCES
    assert len(known) == 3


def test_measures_read_like_the_job_file() -> None:
    texts = [m.of("add") for m in (Measure(), FLIPS, MARGIN, Measure("margin", subject="x"), Measure(subject="x"))]
    assert texts == ["add", "flips of add against math", "margin of add", "margin of add (x)", "add (x)"]


# -- the answers themselves --------------------------------------------------------------------------------------------


def test_answers_are_aligned_and_finite() -> None:
    with pytest.raises(ValueError, match="2 items but 1 margins"):
        TaskAnswers("t", ("a", "b"), (0.0, 1.0), (0.5,))
    with pytest.raises(ValueError, match="2 items but 3 subjects"):
        TaskAnswers("t", ("a", "b"), (0.0, 1.0), (), ("x", "y", "z"))
    with pytest.raises(NonFiniteScores, match="1 margins are not finite"):
        TaskAnswers("t", ("a", "b"), (0.0, 1.0), (0.5, math.nan))


def test_answers_at_some_places() -> None:
    whole = answers("t", [1, 0, 1], (3.0, 4.0, 5.0), "xyx")
    assert whole.at([2, 0]) == TaskAnswers("t", ("t2", "t0"), (1.0, 1.0), (5.0, 3.0), ("x", "x"))
    assert answers("t", [1, 0]).at([1]) == TaskAnswers("t", ("t1",), (0.0,))
