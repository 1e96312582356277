"""`suite.questions` as a value: defaults, shares, counts, and everything that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.irt.estimators.registry import ESTIMATORS
from evomerge.racing.spec import ORDERS, RACES, SAMPLES, SMALL_TASK, QuestionsSpec, load_questions


def test_nothing_said_is_auto() -> None:
    assert load_questions(None) == load_questions("auto") == load_questions({}) == QuestionsSpec()
    spec = QuestionsSpec()
    assert (spec.number, spec.race, spec.order, spec.estimator) == ("auto",) * 4
    assert spec.rotate
    assert not spec.whole
    assert spec.per_task(SMALL_TASK - 1) == SMALL_TASK - 1
    assert 0 < spec.per_task(100) <= 50
    assert spec.per_task(1000) < 500


@pytest.mark.parametrize("value", ["all", 1.0, {"number": "all"}, {"number": 1.0, "race": "none"}])
def test_everything_is_everything(value: Any) -> None:
    spec = load_questions(value)
    assert spec.whole
    assert spec.per_task(7) == 7


@pytest.mark.parametrize(
    ("value", "n_items", "expected"),
    [
        (10, 100, 10),
        (10, 6, 6),
        (1, 100, 1),
        (0.25, 100, 25),
        (0.001, 100, 1),
        (0.999, 100, 100),
        ({"number": 0.5}, 9, 4),
        ({"number": 12}, 40, 12),
    ],
)
def test_counts_and_shares(value: Any, n_items: int, expected: int) -> None:
    assert load_questions(value).per_task(n_items) == expected


@settings(deadline=None, max_examples=60)
@given(
    number=st.one_of(st.integers(1, 500), st.floats(1e-6, 1.0), st.sampled_from(["auto", "all"])),
    n=st.integers(1, 1000),
)
def test_a_task_is_asked_something_and_at_most_everything(number: Any, n: int) -> None:
    assert 1 <= QuestionsSpec(number=number).per_task(n) <= n


def test_one_question_is_not_everything() -> None:
    assert not load_questions(1).whole
    assert load_questions(1).per_task(50) == 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (0, "questions.number: 0"),
        (-3, "questions.number: -3"),
        (0.0, "questions.number: 0.0"),
        (1.5, "questions.number: 1.5"),
        (float("nan"), "questions.number: nan"),
        (float("inf"), "questions.number: inf"),
        (True, "questions.number: True"),
        ([10], r"questions.number: \[10\]"),
        ("some", "questions.number: 'some'"),
        ("0.5", "questions.number: '0.5'"),
        ({"number": "al"}, r"(?s)questions.number: 'al'.*all"),
        ({"nubmer": 3}, r"(?s)questions.nubmer: 3.*number"),
        ({"race": "halvin"}, r"(?s)questions.race: 'halvin'.*halving"),
        ({"order": "best"}, r"(?s)questions.order: 'best'.*information"),
        ({"estimator": "p-itr"}, r"(?s)questions.estimator: 'p-itr'.*p-irt"),
        ({"calibrate": -1}, "questions.calibrate: -1"),
        ({"refit": 0}, "questions.refit: 0"),
        ({"alpha": 0.0}, "questions.alpha: 0.0"),
        ({"alpha": 1.0}, "questions.alpha: 1.0"),
    ],
)
def test_what_is_refused(value: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_questions(value)
    for part in ("Got", "Allowed", "Fix"):
        assert part in str(caught.value)


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_race_and_order_is_taken(race: str, order: str) -> None:
    if race == "elimination" and order not in SAMPLES:
        return  # refused: see test_elimination_needs_a_random_sample
    spec = load_questions({"race": race, "order": order})
    assert (spec.race, spec.order) == (race, order)


@pytest.mark.parametrize("name", ["auto", *ESTIMATORS])
def test_every_estimator_is_taken(name: str) -> None:
    assert load_questions({"estimator": name}).estimator == name


def test_unset_keys_are_defaults() -> None:
    assert load_questions({"number": None, "calibrate": None, "race": None}) == QuestionsSpec()


def test_banks_start_from_the_jobs_folder(tmp_path: Path) -> None:
    spec = load_questions({"banks": ["a.npz", "/b/c.json", Path("d.npz")]}, tmp_path)
    assert spec.banks == (tmp_path / "a.npz", Path("/b/c.json"), tmp_path / "d.npz")


@pytest.mark.parametrize("order", ["uncertainty", "information"])
def test_elimination_needs_a_random_sample(order: str) -> None:
    with pytest.raises(ConfigError, match="a random sample: auto, stratified, random"):
        load_questions({"race": "elimination", "order": order})
    assert load_questions({"race": "elimination", "order": "random"}).order == "random"
