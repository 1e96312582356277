"""Standardising and adapting: what must not change, and what must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.priors import ItemPrior, Point, Population, adapted, population, standardised


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_standardising_keeps_expected_answers_and_signs(seed, d):
    rng = np.random.default_rng(seed)
    point = Point(rng.normal(size=(9, d)), rng.normal(size=(7, d)), rng.normal(size=7))
    root = rng.normal(size=(d, d))
    people = Population(rng.normal(size=d), root @ root.T + 0.1 * np.eye(d))
    new = standardised(point, people)
    before = point.theta @ point.slopes.T + point.intercepts
    assert new.theta @ new.slopes.T + new.intercepts == pytest.approx(before, abs=1e-8)
    assert (np.sign(new.slopes[:, 0]) == np.sign(point.slopes[:, 0])).all()
    gram = new.slopes[:, 1:].T @ new.slopes[:, 1:]
    assert gram - np.diag(np.diag(gram)) == pytest.approx(0.0, abs=1e-8 * (1 + np.abs(gram).max(initial=0)))


def test_standardising_gives_mean_0_and_covariance_i():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + 2
    point = Point(theta, rng.normal(size=(20, 3)), np.zeros(20))
    new = standardised(point, Population(theta.mean(axis=0), np.cov(theta.T)))
    assert new.theta.mean(axis=0) == pytest.approx(0.0, abs=1e-10)
    assert np.cov(new.theta.T) == pytest.approx(np.eye(3), abs=1e-8)


def test_population_of_models_without_answers_is_the_prior():
    people = population(Point(np.zeros((4, 2)), np.ones((3, 2)), np.zeros(3)), np.zeros((4, 3)))
    assert people.covariance == pytest.approx(np.eye(2))
    assert people.mean == pytest.approx(np.zeros(2))


def test_adapted_prior_of_many_sure_items_is_their_own_mean_and_spread():
    rng = np.random.default_rng(0)
    n = 20_000
    point = Point(rng.normal(size=(5, 1)), rng.normal(1.5, 0.3, size=(n, 1)), rng.normal(-1.0, 0.7, n))
    given_prior = ItemPrior(np.ones(1), np.full(1, 0.5), 0.0, 2.0)
    new = adapted(given_prior, given_prior, point, np.full((5, n), 1e6))
    assert new.slope_mean == pytest.approx([1.5], abs=0.02)
    assert new.slope_sd == pytest.approx([0.3], abs=0.02)
    assert new.intercept_mean == pytest.approx(-1.0, abs=0.02)
    assert new.intercept_sd == pytest.approx(0.7, abs=0.03)


def test_adapted_prior_without_answers_is_the_given_one():
    given_prior = ItemPrior(np.array([1.0, 0.0]), np.full(2, 0.5), 0.3, 2.0)
    point = Point(np.ones((4, 2)), np.tile([1.0, 0.0], (6, 1)), np.full(6, 0.3))
    new = adapted(given_prior, given_prior, point, np.zeros((4, 6)))
    for left, right in zip(new, given_prior, strict=True):
        assert left == pytest.approx(right)
