"""What is measured on held-out models and answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.calibration import quality as q
from evomerge.irt.fit import FitSettings
from evomerge.irt.responses import Responses

Simulate = Callable[..., Responses]


def test_a_bank_of_simulated_answers_predicts_and_means_what_it_says(answers: Simulate) -> None:
    steps: list[None] = []
    found = q.measure(answers(120, 120), FitSettings(), step=lambda: steps.append(None))
    assert (found.n_models, len(steps), found.why_not) == (120, 5, "")
    assert [e.asked for e in found.errors] == [10, 20, 50]
    assert all(e.bank < e.mean for e in found.errors)
    for predictions in (found.new_models, found.new_answers):
        assert predictions is not None
        assert predictions.log_likelihood > predictions.baseline + 0.03
        assert sum(b.n for b in predictions.bins) == predictions.n
        for b in predictions.bins:
            sd = np.sqrt(b.predicted * (1 - b.predicted) / b.n)
            assert abs(b.observed - b.predicted) < 4 * sd + 0.05
    assert found.new_models is not None
    assert found.new_models.n == 120 * (120 - 50)


def test_equal_seeds_give_equal_figures(answers: Simulate) -> None:
    responses = answers(20, 30)
    first = q.measure(responses, FitSettings(), seed=3)
    assert q.measure(responses, FitSettings(), seed=3) == first
    assert q.measure(responses, FitSettings(), seed=4) != first


def test_scores_of_any_size_are_measured(answers: Simulate) -> None:
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(40, 1))
    scores = -20 + 5 * theta + rng.normal(0, 2, size=(40, 30)) + 3 * rng.normal(size=30)
    names = answers(40, 30)
    found = q.measure(Responses(scores, names.models, names.items), FitSettings())
    assert found.errors[0].bank < found.errors[0].mean
    assert found.new_models is not None
    assert found.new_models.log_likelihood > found.new_models.baseline
    assert len(found.new_models.bins) == 10


@pytest.mark.parametrize(("m", "n", "why"), [(3, 30, "3 models and 30 items"), (30, 1, "30 models and 1 item")])
def test_too_little_to_hold_out(answers: Simulate, m: int, n: int, why: str) -> None:
    found = q.measure(answers(m, n), FitSettings())
    assert found.errors == ()
    assert found.why_not == f"{why} are too few to hold some out"


def test_with_holes_no_more_is_asked_than_half_of_what_was_answered(answers: Simulate) -> None:
    full = answers(30, 60)
    hole = np.random.default_rng(0).random(full.scores.shape) > 0.5
    found = q.measure(Responses(np.where(hole, np.nan, full.scores), full.models, full.items), FitSettings())
    assert [e.asked for e in found.errors] == [10]
    assert np.isfinite(found.errors[0].bank)


def test_the_smallest_matrix_that_is_measured(answers: Simulate) -> None:
    found = q.measure(answers(4, 2), FitSettings())
    assert [e.asked for e in found.errors] == [1]
    assert found.new_models is not None
    assert found.new_models.n == 4


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 12), hole=st.floats(0, 0.9))
def test_drawn_items_are_seen_and_leave_half(seed: int, k: int, hole: float) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.random((7, 20)) >= hole
    drawn = q._drawn(seen, k, rng)
    assert not np.any(drawn & ~seen)
    held = seen.sum(axis=1)
    expected = np.minimum(k, np.maximum(1, held // 2))
    np.testing.assert_array_equal(drawn.sum(axis=1), np.minimum(expected, held))


def test_the_baseline_is_the_items_mean_with_one_more_answer() -> None:
    shown = Responses(np.array([[1.0, np.nan], [1.0, 0.0]]), ("a", "b"), ("x", "y"))
    mean, sd = q._baseline(shown)
    np.testing.assert_allclose(mean, [(2 + 2 / 3) / 3, (0 + 2 / 3) / 2])
    np.testing.assert_allclose(sd[0] ** 2, (2 * (1 - 8 / 9) ** 2 + 2 / 9) / 3)


def test_log_likelihoods_by_hand() -> None:
    one = np.array([1.0])
    assert q._log_likelihood(one, np.array([0.25]), one, True)[0] == pytest.approx(np.log(0.25))
    assert q._log_likelihood(one, np.array([0.0]), one, True)[0] == pytest.approx(np.log(1e-3))
    normal = q._log_likelihood(one, np.array([3.0]), np.array([2.0]), False)[0]
    assert normal == pytest.approx(-0.5 - np.log(2) - 0.5 * np.log(2 * np.pi))
