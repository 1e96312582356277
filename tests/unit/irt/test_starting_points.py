"""Where fits begin: finite, close to the answer, and away from the saddle at 0."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.irt.priors import ItemPrior
from evomerge.irt.starting import start


def prior(d):
    return ItemPrior(np.r_[1.0, np.zeros(d - 1)], np.full(d, 0.5), 0.0, 2.0)


def test_first_ability_is_the_standardised_row_mean():
    scores = (np.random.default_rng(0).random((30, 40)) < 0.6).astype(float)
    point = start(scores, prior(1), "logistic")
    rows = scores.mean(axis=1)
    assert point.theta[:, 0] == pytest.approx((rows - rows.mean()) / rows.std())


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_second_direction_is_found(shape):
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=shape[0]), rng.normal(size=shape[1])
    scores = np.outer(u, v) + 0.1 * rng.normal(size=shape)
    scores -= scores.mean(axis=1, keepdims=True)
    point = start(scores, prior(2), "normal")
    assert abs(np.corrcoef(point.theta[:, 1], u)[0, 1]) > 0.9
    assert abs(np.corrcoef(point.slopes[:, 1], v)[0, 1]) > 0.9
    assert np.sqrt(np.mean(point.theta[:, 1] ** 2)) == pytest.approx(0.5, rel=0.01)
    assert np.sum(point.slopes[:, 1] ** 3) >= 0


@pytest.mark.parametrize("scores", [np.ones((1, 1)), np.full((3, 2), np.nan), np.eye(3), np.ones((4, 5))])
def test_small_and_empty_matrices_have_a_finite_start(scores):
    point = start(scores, prior(5), "logistic")
    assert all(np.isfinite(each).all() for each in point)
    assert point.theta.shape == (scores.shape[0], 5)
