"""The logistic joint posterior: against a slow obvious one, numerical gradients, float32 against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.joint import Cells, fisher_weights, maximise
from evomerge.irt.priors import ItemPrior, Point, log_prior
from evomerge.irt.starting import start


def problem(seed, m=6, n=5, d=2, holes=0.3):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 2, size=(m, n)).astype(float)
    scores[0, 0] = 0.25
    scores[rng.random((m, n)) < holes] = np.nan
    point = Point(rng.normal(size=(m, d)), np.abs(rng.normal(size=(n, d))), rng.normal(size=n))
    prior = ItemPrior(np.r_[1.0, np.zeros(d - 1)], np.full(d, 0.5), 0.3, 2.0)
    return scores, point, prior


def slow_loss(scores, point):
    total = 0.0
    for j in range(scores.shape[0]):
        for i in range(scores.shape[1]):
            y = scores[j, i]
            if not math.isnan(y):
                z = sum(a * t for a, t in zip(point.slopes[i], point.theta[j], strict=True)) + point.intercepts[i]
                p = 1 / (1 + math.exp(-z))
                total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    return total


def slow_prior(point, prior):
    total = -sum(t * t for t in point.theta.ravel()) / 2
    for a, d in zip(point.slopes, point.intercepts, strict=True):
        total -= sum(((a - prior.slope_mean) / prior.slope_sd) ** 2) / 2
        total -= ((d - prior.intercept_mean) / prior.intercept_sd) ** 2 / 2
    return total


def numerical(function, array, step=1e-6):
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("d", [1, 2, 3])
def test_loss_is_the_slow_one(d):
    scores, point, _ = problem(d, d=d)
    assert Cells.of(scores).loss(point)[0] == pytest.approx(slow_loss(scores, point), rel=1e-12)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_loss_gradient_is_numerical(d, holes):
    scores, point, _ = problem(7, d=d, holes=holes)
    cells = Cells.of(scores)
    _, gradient = cells.loss(point)
    for name in Point._fields:
        expected = numerical(lambda v, name=name: cells.loss(point._replace(**{name: v}))[0], getattr(point, name))
        assert getattr(gradient, name) == pytest.approx(expected, abs=1e-6)


def test_prior_and_its_gradient():
    _, point, prior = problem(3)
    value, gradient = log_prior(point, prior)
    assert value == pytest.approx(slow_prior(point, prior), rel=1e-12)
    for name in Point._fields:
        expected = numerical(
            lambda v, name=name: log_prior(point._replace(**{name: v}), prior)[0], getattr(point, name)
        )
        assert getattr(gradient, name) == pytest.approx(expected, abs=1e-5)


def test_float32_cells_agree_with_float64():
    rng = np.random.default_rng(0)
    m, n = 100, 2100
    scores = rng.integers(0, 2, size=(m, n)).astype(float)
    point = Point(rng.normal(size=(m, 2)), rng.normal(size=(n, 2)), rng.normal(size=n))
    single = Cells.of(scores)
    assert single.answers.dtype == np.float32
    double = Cells(single.answers.astype(np.float64), None)
    (a, ga), (b, gb) = single.loss(point), double.loss(point)
    assert a == pytest.approx(b, rel=1e-6)
    for left, right in zip(ga, gb, strict=True):
        assert left == pytest.approx(right, abs=2e-3)


def test_extreme_logits_stay_finite():
    point = Point(np.array([[1e4], [-1e4]]), np.array([[1.0], [1e3]]), np.zeros(2))
    loss, gradient = Cells.of(np.array([[0.0, 1.0], [1.0, 0.0]])).loss(point)
    assert math.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradient)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_mode_is_stationary_and_no_neighbour_is_better(seed, d):
    scores, _, prior = problem(seed, m=8, n=7, d=d)
    optimum = maximise(scores, prior, start(scores, prior, "logistic"), max_iterations=2000, tolerance=1e-14)
    point = optimum.point
    assert (point.slopes[:, 0] >= 0).all()
    assert optimum.log_posterior == pytest.approx(slow_prior(point, prior) - slow_loss(scores, point), rel=1e-9)
    _, down = Cells.of(scores).loss(point)
    _, up = log_prior(point, prior)
    for name in Point._fields:
        slope = getattr(up, name) - getattr(down, name)
        if name == "slopes":  # at the bound the posterior may fall towards positive slopes
            bound = point.slopes[:, 0] < 1e-9
            assert (slope[bound, 0] < 1e-2).all()
            slope[bound, 0] = 0.0
        assert slope == pytest.approx(0.0, abs=2e-2)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        near = Point(*(v + rng.normal(0, 0.05, v.shape) for v in point))
        near = near._replace(slopes=np.concatenate([np.maximum(near.slopes[:, :1], 0), near.slopes[:, 1:]], axis=1))
        assert slow_prior(near, prior) - slow_loss(scores, near) <= optimum.log_posterior + 1e-6


def test_weights_are_variances_of_observed_answers():
    scores, point, _ = problem(5)
    weight = fisher_weights(scores, point)
    p = 1 / (1 + np.exp(-(point.theta @ point.slopes.T + point.intercepts)))
    seen = ~np.isnan(scores)
    assert weight[seen] == pytest.approx((p * (1 - p))[seen])
    assert (weight[~seen] == 0).all()
