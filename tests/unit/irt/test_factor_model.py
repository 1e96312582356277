"""Normal items: the marginal likelihood against the multivariate normal density, and numerical gradients."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from evomerge.irt.factor import Columns, ItemGradient, Marginal, log_item_prior, maximise
from evomerge.irt.priors import ItemPrior
from evomerge.irt.starting import start

NAMES = ItemGradient._fields


def problem(seed, m=5, n=6, d=2, holes=0.3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m, n))
    x[rng.random((m, n)) < holes] = np.nan
    x[0, 0] = 0.5
    items = [rng.normal(size=(n, d)), rng.normal(size=n), np.exp(0.3 * rng.normal(size=n))]
    return x, items, ItemPrior(np.r_[1.0, np.zeros(d - 1)], np.full(d, 0.5), 0.2, 2.0)


def slow_likelihood(x, slopes, intercepts, noise):
    total = 0.0
    for row in x:
        seen = ~np.isnan(row)
        if seen.any():
            covariance = slopes[seen] @ slopes[seen].T + np.diag(noise[seen] ** 2)
            total += scipy.stats.multivariate_normal(intercepts[seen], covariance).logpdf(row[seen])
    return total + 0.5 * np.log(2 * np.pi) * (~np.isnan(x)).sum()


def numerical(function, items, which, step=1e-6):
    moved = [items[0], items[1], np.log(items[2])]
    gradient = np.zeros_like(moved[which])
    for index in np.ndindex(gradient.shape):
        values = []
        for sign in (1, -1):
            new = [v.copy() for v in moved]
            new[which][index] += sign * step
            values.append(function(new[0], new[1], np.exp(new[2])))
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_likelihood_is_the_multivariate_normal_one(d, holes):
    x, items, _ = problem(d, d=d, holes=holes)
    value, gradient = Marginal.of(x).log_likelihood(*items)
    assert value == pytest.approx(slow_likelihood(x, *items), rel=1e-10)
    for which, name in enumerate(NAMES):
        expected = numerical(lambda *v: slow_likelihood(x, *v), items, which)
        assert getattr(gradient, name) == pytest.approx(expected, abs=1e-5)


def test_prior_gradient():
    _, items, prior = problem(1)
    _, gradient = log_item_prior(*items, prior)
    for which, name in enumerate(NAMES):
        expected = numerical(lambda *v: log_item_prior(*v, prior)[0], items, which)
        assert getattr(gradient, name) == pytest.approx(expected, abs=1e-5)


def test_abilities_are_the_conditional_mean():
    x, (slopes, intercepts, noise), _ = problem(2, holes=0.0)
    mean, _, _ = Marginal.of(x).abilities(slopes, intercepts, noise)
    covariance = slopes @ slopes.T + np.diag(noise**2)
    expected = (x - intercepts) @ np.linalg.solve(covariance, slopes)  # regression of theta on x
    assert mean == pytest.approx(expected, rel=1e-9)


def test_mode_beats_its_neighbours_and_noise_stays_positive():
    x, _, prior = problem(4, m=12, n=8, d=1)
    optimum = maximise(x, prior, start(x, prior, "normal"), np.full(8, 0.7), max_iterations=500, tolerance=1e-12)

    def value(slopes, intercepts, noise):
        return slow_likelihood(x, slopes, intercepts, noise) + log_item_prior(slopes, intercepts, noise, prior)[0]

    best = [optimum.point.slopes, optimum.point.intercepts, optimum.noise]
    assert optimum.log_posterior == pytest.approx(value(*best), rel=1e-9)
    assert (optimum.noise > 0.1).all()
    rng = np.random.default_rng(0)
    for _ in range(10):
        near = [np.maximum(best[0] + rng.normal(0, 0.03, best[0].shape), 0)]
        near += [best[1] + rng.normal(0, 0.03, 8), best[2] * np.exp(rng.normal(0, 0.03, 8))]
        assert value(*near) <= optimum.log_posterior + 1e-9


def test_columns_bring_scores_to_mean_0_and_spread_1():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 3)) * np.array([1.0, 20.0, 0.1]) + np.array([0.0, 50.0, -3.0])
    columns = Columns.of(scores)
    x = (scores - columns.centre) / columns.spread
    assert x.mean(axis=0) == pytest.approx(0.0, abs=0.6)  # centres are drawn one answer's worth to the overall mean
    assert x.std(axis=0)[:2] == pytest.approx(1.0, abs=0.05)
    assert (columns.spread > 0).all()


def test_columns_of_one_model_or_of_equal_scores_have_a_spread():
    for scores in (np.array([[1.0, 5.0, np.nan]]), np.full((4, 2), 7.0)):
        columns = Columns.of(scores)
        assert (columns.spread > 0).all()
        assert np.isfinite(columns.centre).all()
