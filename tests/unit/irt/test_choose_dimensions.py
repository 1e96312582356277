"""The held-out choice of dimensions: truths in simulation, small matrices, errors."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.errors import EvaluationError
from evomerge.irt.dimensions import _splits, choose_dimensions
from evomerge.irt.responses import Responses


def named(scores):
    m, n = scores.shape
    return Responses(scores, tuple(map(str, range(m))), tuple(map(str, range(n))))


def simulated(m, n, d, link, seed=0):
    rng = np.random.default_rng(seed)
    slopes = rng.normal(0, 1.1, size=(n, d))
    slopes[:, 0] = np.abs(rng.normal(1.2, 0.4, n))
    z = rng.normal(size=(m, d)) @ slopes.T + rng.normal(size=n)
    if link == "normal":
        return z + rng.normal(size=z.shape)
    return (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(float)


@pytest.mark.parametrize("link", ["logistic", "normal"])
@pytest.mark.parametrize(("m", "n", "d"), [(12, 60, 1), (80, 100, 1), (120, 120, 2)])
def test_finds_the_true_number(link, m, n, d):
    choice = choose_dimensions(named(simulated(m, n, d, link)))
    assert choice.dimensions == d
    assert set(choice.scores) == {1, 2, 3}
    assert choice.scores[d] >= max(choice.scores.values()) - 0.01


def test_same_seed_same_choice_and_holes_are_never_held_out():
    scores = simulated(20, 40, 1, "logistic")
    scores[np.random.default_rng(0).random(scores.shape) < 0.3] = np.nan
    responses = named(scores)
    assert choose_dimensions(responses, (1, 2), seed=3) == choose_dimensions(responses, (2, 1), seed=3)
    masks = list(_splits(responses, 0))
    assert len(masks) == 5
    assert (sum(mask.astype(int) for mask in masks) == responses.seen).all()


def test_large_matrices_are_split_once():
    (mask,) = _splits(named(np.zeros((200, 150))), 0)
    assert mask.mean() == pytest.approx(0.2)


def test_tolerance_prefers_the_simpler():
    scores = simulated(120, 120, 2, "logistic")
    assert choose_dimensions(named(scores), (1, 2), tolerance=10.0).dimensions == 1


@pytest.mark.parametrize("scores", [np.ones((60, 5)), np.array([[0.0, 1.0]]), np.array([[0.0], [9.0]])])
def test_matrices_that_say_nothing_choose_the_simplest(scores):
    choice = choose_dimensions(named(scores), (1, 2))
    assert choice.dimensions == 1
    assert all(np.isfinite(score) for score in choice.scores.values())


def test_errors():
    with pytest.raises(EvaluationError, match="cannot be chosen"):
        choose_dimensions(named(np.zeros((4, 4))), ())
    with pytest.raises(EvaluationError, match="cannot be chosen"):
        choose_dimensions(named(np.array([[1.0, np.nan]])))
    with pytest.raises(EvaluationError, match="that many dimensions"):
        choose_dimensions(named(np.zeros((4, 4))), (6,))
