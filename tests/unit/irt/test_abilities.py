"""Abilities and person fit: against a slow posterior on a grid, closed forms, holes, guards."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.ability import abilities, person_fit
from evomerge.irt.bank import ItemBank


def bank_of(seed, n=12, d=1, link="logistic", constants=2):
    rng = np.random.default_rng(seed)
    fixed = np.full(n, np.nan)
    fixed[:constants] = 1.0
    slopes, intercepts = rng.normal(0.8, 0.6, (n, d)), rng.normal(size=n)
    noise = np.ones(n) if link == "logistic" else rng.uniform(0.3, 2.0, n)
    slopes[:constants], intercepts[:constants] = 0.0, 0.0
    root = np.eye(d) + 0.3 * rng.normal(size=(d, d))
    names = tuple(f"item{i}" for i in range(n))
    return ItemBank(names, slopes, intercepts, noise, fixed, rng.normal(size=d), root @ root.T, link, 9)


def answers_of(bank, m, seed, holes=0.3):
    rng = np.random.default_rng(seed)
    expected = bank.predict(rng.normal(size=(m, bank.dimensions)))
    if bank.link == "logistic":
        scores = (rng.random(expected.shape) < expected).astype(float)
    else:
        scores = expected + bank.noise * rng.normal(size=expected.shape)
    scores[rng.random(scores.shape) < holes] = np.nan
    return scores


def slow_log_posterior(bank, theta, row, mean, covariance):
    total = -0.5 * (theta - mean) @ np.linalg.solve(covariance, theta - mean)
    for i, y in enumerate(row):
        if math.isnan(y) or not bank.fitted[i]:
            continue
        z = float(bank.slopes[i] @ theta) + bank.intercepts[i]
        if bank.link == "logistic":
            total += y * z - max(z, 0) - math.log1p(math.exp(-abs(z)))
        else:
            total -= 0.5 * ((y - z) / bank.noise[i]) ** 2
    return total


@pytest.mark.parametrize("link", ["logistic", "normal"])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_modes_and_covariances_are_those_of_the_slow_posterior(link, d):
    bank = bank_of(d, d=d, link=link)
    scores = answers_of(bank, 6, 1)
    found = abilities(bank, scores)
    for j in range(6):
        result = scipy.optimize.minimize(
            lambda t, j=j: -slow_log_posterior(bank, t, scores[j], bank.mean, bank.covariance),
            bank.mean,
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13, "maxfev": 8000},
        )
        assert found.theta[j] == pytest.approx(result.x, abs=1e-4)
        h = 1e-4
        hessian = np.zeros((d, d))
        eye = np.eye(d) * h
        for a in range(d):
            for b in range(d):
                corners = [
                    sign_a
                    * sign_b
                    * slow_log_posterior(
                        bank, found.theta[j] + sign_a * eye[a] + sign_b * eye[b], scores[j], bank.mean, bank.covariance
                    )
                    for sign_a in (1, -1)
                    for sign_b in (1, -1)
                ]
                hessian[a, b] = sum(corners) / (4 * h * h)
        assert found.covariance[j] == pytest.approx(np.linalg.inv(-hessian), abs=1e-4)


@pytest.mark.parametrize("link", ["logistic", "normal"])
def test_rows_without_answers_return_the_prior(link):
    bank = bank_of(0, d=2, link=link)
    scores = np.full((3, 12), np.nan)
    scores[2, :2] = 0.0  # constants say nothing about ability
    found = abilities(bank, scores)
    assert found.theta == pytest.approx(np.tile(bank.mean, (3, 1)))
    for covariance in found.covariance:
        assert covariance == pytest.approx(bank.covariance)


def test_own_prior_per_row():
    bank = bank_of(3, d=2)
    scores = answers_of(bank, 4, 2)
    centres = np.random.default_rng(0).normal(size=(4, 2))
    tight = abilities(bank, scores, mean=centres, covariance=1e-8 * np.eye(2))
    assert tight.theta == pytest.approx(centres, abs=1e-5)
    each = [abilities(bank, scores[j : j + 1], mean=centres[j]).theta[0] for j in range(4)]
    assert abilities(bank, scores, mean=centres).theta == pytest.approx(np.array(each), abs=1e-8)


def test_all_right_and_all_wrong_stay_finite_even_with_steep_items():
    n = 200
    names = tuple(map(str, range(n)))
    bank = ItemBank(
        names, np.full((n, 1), 8.0), np.linspace(-40, 40, n), np.ones(n), np.full(n, np.nan), np.zeros(1), np.eye(1),
        "logistic", 5,
    )  # fmt: skip
    found = abilities(bank, np.stack([np.ones(n), np.zeros(n), (np.arange(n) % 2).astype(float)]))
    assert np.isfinite(found.theta).all()
    assert found.theta[0, 0] > 2 > -2 > found.theta[1, 0]
    assert abs(found.theta[2, 0]) < 1
    assert (found.covariance > 0).all()


def test_far_prior_converges_by_the_guard():
    bank = bank_of(1, n=30)
    scores = answers_of(bank, 5, 0, holes=0.0)
    far = abilities(bank, scores, mean=np.array([60.0]), covariance=1e6 * np.eye(1))
    near = abilities(bank, scores, mean=np.zeros(1), covariance=1e6 * np.eye(1))
    assert far.theta == pytest.approx(near.theta, abs=1e-2)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(["logistic", "normal"]))
def test_rows_do_not_depend_on_each_other_and_answers_shrink_uncertainty(seed, d, link):
    bank = bank_of(seed, d=d, link=link)
    scores = answers_of(bank, 5, seed)
    whole = abilities(bank, scores)
    order = np.random.default_rng(seed).permutation(5)
    assert abilities(bank, scores[order]).theta == pytest.approx(whole.theta[order], abs=1e-7)
    smallest = np.linalg.eigvalsh(bank.covariance - whole.covariance).min(axis=1)
    assert (smallest > -1e-9).all()
    if d == 1:
        better = np.where(np.isnan(scores), np.nan, np.maximum(scores, 1.0) if link == "logistic" else scores + 1)
        if (bank.slopes >= 0).all():
            assert (abilities(bank, better).theta >= whole.theta - 1e-8).all()


def test_duplicated_answers_count_twice():
    bank = bank_of(4, constants=0)
    twice = replace(
        bank,
        items=(*bank.items, *(f"{name}b" for name in bank.items)),
        slopes=np.tile(bank.slopes, (2, 1)),
        intercepts=np.tile(bank.intercepts, 2),
        noise=np.tile(bank.noise, 2),
        constants=np.tile(bank.constants, 2),
    )
    scores = answers_of(bank, 4, 1)
    double = abilities(twice, np.tile(scores, (1, 2)), covariance=bank.covariance)
    halved = abilities(bank, scores, covariance=2 * bank.covariance)  # half the prior's weight, the same mode
    assert double.theta == pytest.approx(halved.theta, abs=1e-7)


@pytest.mark.parametrize(
    ("kind", "match"),
    [("scores", "scores have shape"), ("mean", "prior mean has shape"), ("covariance", "prior covariance has shape")],
)
def test_shapes_are_checked(kind, match):
    bank = bank_of(0, d=2)
    scores = np.zeros((3, 12 if kind != "scores" else 11))
    extra = {"mean": {"mean": np.zeros(3)}, "covariance": {"covariance": np.eye(3)}}.get(kind, {})
    with pytest.raises(ValueError, match=match):
        abilities(bank, scores, **extra)


def slow_l_z(bank, theta, row):
    observed = expected = variance = 0.0
    for i, y in enumerate(row):
        if math.isnan(y) or not bank.fitted[i]:
            continue
        p = 1 / (1 + math.exp(-float(bank.slopes[i] @ theta) - bank.intercepts[i]))
        observed += y * math.log(p) + (1 - y) * math.log(1 - p)
        expected += p * math.log(p) + (1 - p) * math.log(1 - p)
        variance += p * (1 - p) * math.log(p / (1 - p)) ** 2
    return (observed - expected) / math.sqrt(variance)


def test_person_fit_is_drasgows_statistic():
    bank = bank_of(2, d=2)
    scores = answers_of(bank, 5, 3)
    theta = np.random.default_rng(1).normal(size=(5, 2))
    expected = [slow_l_z(bank, theta[j], scores[j]) for j in range(5)]
    assert person_fit(bank, theta, scores) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("link", ["logistic", "normal"])
def test_person_fit_is_standard_normal_for_models_of_the_bank_and_low_for_odd_ones(link):
    bank = bank_of(5, n=400, link=link, constants=0)
    theta = np.random.default_rng(0).normal(size=(300, 1))
    rng = np.random.default_rng(1)
    expected = bank.predict(theta)
    if link == "logistic":
        scores = (rng.random(expected.shape) < expected).astype(float)
        odd = (expected < 0.5).astype(float)  # right where it should be wrong
    else:
        scores = expected + bank.noise * rng.normal(size=expected.shape)
        odd = scores + 3 * bank.noise
    usual = person_fit(bank, theta, scores)
    assert usual.mean() == pytest.approx(0.0, abs=0.2)
    assert usual.std() == pytest.approx(1.0, abs=0.2)
    assert person_fit(bank, theta, odd).max() < -5


@pytest.mark.parametrize("link", ["logistic", "normal"])
def test_person_fit_is_0_where_nothing_informative_was_asked(link):
    bank = bank_of(0, link=link)
    scores = np.full((2, 12), np.nan)
    scores[1, :2] = 1.0
    assert (person_fit(bank, np.zeros((2, 1)), scores) == 0).all()
