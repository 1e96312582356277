"""Fitting banks: recovery of known truths, few models, degenerate matrices, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.errors import EvaluationError
from evomerge.irt.ability import abilities
from evomerge.irt.fit import FitSettings, constant_scores, fit
from evomerge.irt.responses import Responses


def named(scores):
    scores = np.asarray(scores, dtype=float)
    m, n = scores.shape
    return Responses(scores, tuple(f"model{j}" for j in range(m)), tuple(f"item{i}" for i in range(n)))


def simulated(m, n, d=1, seed=0, link="logistic"):
    rng = np.random.default_rng(seed)
    theta, slopes = rng.normal(size=(m, d)), np.abs(rng.normal(1.1, 0.4, size=(n, d)))
    slopes[:, 1:] = rng.normal(0, 0.8, size=(n, d - 1))
    intercepts = rng.normal(0.5, 1.5, n)
    z = theta @ slopes.T + intercepts
    if link == "normal":
        return z + 0.5 * rng.normal(size=z.shape), theta, slopes, intercepts
    return (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(float), theta, slopes, intercepts


@pytest.mark.parametrize("link", ["logistic", "normal"])
def test_recovers_known_items_and_abilities_through_holes(link):
    scores, theta, slopes, intercepts = simulated(300, 200, link=link)
    scores[np.random.default_rng(1).random(scores.shape) < 0.2] = np.nan
    found = fit(named(scores))
    assert found.converged
    assert found.bank.link == link
    assert np.corrcoef(found.theta[:, 0], theta[:, 0])[0, 1] > 0.97
    free = found.bank.fitted
    assert np.corrcoef(found.bank.slopes[free, 0], slopes[free, 0])[0, 1] > 0.8
    assert np.corrcoef(found.bank.intercepts[free], intercepts[free])[0, 1] > 0.97
    assert found.bank.slopes[free, 0].mean() == pytest.approx(slopes[free, 0].mean(), rel=0.1)
    assert found.theta.mean() == pytest.approx(0.0, abs=0.05)
    assert found.theta.std() == pytest.approx(1.0, abs=0.05)
    if link == "normal":
        assert np.median(found.bank.noise) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("link", ["logistic", "normal"])
def test_two_dimensions_predict_what_one_cannot(link):
    scores, theta, slopes, intercepts = simulated(200, 150, d=2, link=link)
    z = theta @ slopes.T + intercepts
    truth = z if link == "normal" else 1 / (1 + np.exp(-z))
    errors = {}
    for d in (1, 2):
        found = fit(named(scores), FitSettings(dimensions=d))
        errors[d] = np.sqrt(np.mean((found.bank.predict(found.theta) - truth) ** 2))
    assert errors[2] < 0.7 * errors[1]
    assert (found.bank.slopes[:, 0] >= 0).all()
    assert np.cov(found.theta.T) == pytest.approx(np.eye(2), abs=0.12)


@pytest.mark.parametrize("m", [10, 30])
def test_few_models_predict_new_ones_better_than_item_means_and_their_own_mean(m):
    losses = []
    for seed in range(4):
        scores, theta, slopes, intercepts = simulated(m + 40, 100, seed=seed)
        truth = 1 / (1 + np.exp(-(theta @ slopes.T + intercepts)))[m:]
        known, new = scores[:m], scores[m:]
        asked = np.zeros(100, dtype=bool)
        asked[np.random.default_rng(seed).permutation(100)[:20]] = True
        bank = fit(named(known)).bank
        irt = bank.predict(abilities(bank, np.where(asked, new, np.nan)).theta)[:, ~asked]
        items = np.tile((known[:, ~asked].sum(axis=0) + 1) / (m + 2), (40, 1))
        own = np.tile(new[:, asked].mean(axis=1, keepdims=True), (1, 80))
        losses.append([np.mean((p - truth[:, ~asked]) ** 2) for p in (irt, items, own)])
    irt, items, own = np.mean(losses, axis=0)
    assert irt < 0.6 * items
    assert irt < 0.6 * own


def test_fewer_models_shrink_slopes_together():
    few, many = (fit(named(simulated(m, 100)[0])).bank for m in (10, 400))
    spread = [b.slopes[b.fitted, 0].std() for b in (few, many)]
    assert spread[0] < spread[1]


def test_adaptation_improves_on_a_wrong_prior():
    scores, theta, slopes, intercepts = simulated(15, 200, seed=5)
    truth = 1 / (1 + np.exp(-(theta @ slopes.T + intercepts)))
    wrong = {"slope_sd": 0.05, "intercept_sd": 0.3}
    errors = []
    for rounds in (0, 3):
        found = fit(named(scores), FitSettings(adaptations=rounds, **wrong))
        errors.append(np.mean((found.bank.predict(found.theta) - truth) ** 2))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("d", [1, 3])
def test_equal_arguments_give_equal_bits(d):
    scores = simulated(25, 60, d=d)[0]
    scores[3, 4] = np.nan
    first, second = (fit(named(scores), FitSettings(dimensions=d)) for _ in range(2))
    assert first.bank.slopes.tobytes() == second.bank.slopes.tobytes()
    assert first.theta.tobytes() == second.theta.tobytes()
    assert first.log_posterior == second.log_posterior


def test_unanimous_items_are_constants_only_when_enough_models_agree():
    scores = simulated(60, 20)[0]
    scores[:, 3], scores[:, 5] = 1.0, 0.0
    scores[15:, 5] = np.nan
    bank = fit(named(scores)).bank
    assert bank.constants[3] == 1.0
    assert bank.slopes[3, 0] == 0.0
    assert bank.fitted[5]  # fifteen wrong answers may be chance
    assert 0 < bank.predict(np.zeros(1))[5] < 0.2
    strict = fit(named(scores), FitSettings(constant_answers=15)).bank
    assert strict.constants[5] == 0.0


def test_constant_scores():
    scores = np.array([[1.0, 0.5, np.nan, 0.0], [1.0, 0.5, np.nan, 1.0], [np.nan, 0.5, np.nan, 1.0]])
    assert constant_scores(scores) == pytest.approx([1.0, 0.5, np.nan, np.nan], nan_ok=True)
    assert constant_scores(scores, 3) == pytest.approx([np.nan, 0.5, np.nan, np.nan], nan_ok=True)


def test_an_item_nobody_was_asked_is_typical():
    scores = simulated(40, 30)[0]
    scores[:, 7] = np.nan
    bank = fit(named(scores)).bank
    others = np.arange(30) != 7
    assert bank.slopes[7, 0] == pytest.approx(bank.slopes[others, 0].mean(), abs=0.3)
    assert bank.intercepts[7] == pytest.approx(bank.intercepts[others].mean(), abs=0.6)


def test_items_that_better_models_get_wrong_have_slope_0_not_a_negative_one():
    scores = simulated(200, 40)[0]
    scores[:, 0] = scores[:, 1:].mean(axis=1) < np.median(scores[:, 1:].mean(axis=1))
    bank = fit(named(scores)).bank
    assert bank.slopes[0, 0] == 0.0
    assert bank.predict(np.zeros(1))[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("d", [1, 2])
def test_near_constant_items_stay_sane(d):
    scores = simulated(200, 40)[0]
    scores[:, :10] = 1.0
    scores[np.argmin(scores[:, 10:].sum(axis=1)), :10] = 0.0
    bank = fit(named(scores), FitSettings(dimensions=d)).bank
    assert np.abs(bank.slopes[:10]).max() < 5
    assert (bank.predict(np.zeros((1, d)))[0, :10] > 0.95).all()


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), np.zeros((3, 0)), np.full((2, 2), np.nan)])
def test_no_answers_is_an_error(scores):
    with pytest.raises(EvaluationError, match="there are no answers"):
        fit(named(scores))


@pytest.mark.parametrize("d", [0, 6])
def test_dimensions_are_1_to_5(d):
    with pytest.raises(EvaluationError, match="cannot have that many dimensions"):
        FitSettings(dimensions=d)


@pytest.mark.parametrize("bad", [{"slope_sd": 0.0}, {"tolerance": -1.0}, {"slope_mean": -1.0}])
def test_settings_refuse_bad_numbers(bad):
    with pytest.raises(ValueError, match="must be positive"):
        FitSettings(**bad)
    with pytest.raises(ValueError, match="must be at least"):
        FitSettings(max_iterations=0)


def test_all_constant_matrix_of_enough_models_holds_constants_only():
    found = fit(named(np.ones((60, 4))))
    assert found.bank.constants == pytest.approx(np.ones(4))
    assert (found.theta == 0).all()
    assert found.converged


def test_one_model_predicts_its_own_answers_softly():
    scores = np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 1.0]])
    found = fit(named(scores))
    p = found.bank.predict(found.theta)[0]
    assert p[:3].min() > p[3:5].max()
    assert 0 < p.min() < p.max() < 1
    assert abs(found.theta[0, 0]) < 0.5


SCORES = st.one_of(st.sampled_from([0.0, 1.0, np.nan]), st.floats(0, 1), st.floats(-50, 50))


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=SCORES), st.integers(1, 3))
def test_any_matrix_with_an_answer_gives_a_finite_bank(scores, d):
    if np.isnan(scores).all():
        scores[0, 0] = 1.0
    found = fit(named(scores), FitSettings(dimensions=d, constant_answers=3))
    assert np.isfinite(found.theta).all()
    assert np.isfinite(found.log_posterior)
    assert (found.bank.slopes[:, 0] >= 0).all()
    assert np.abs(found.theta).max() < 10


def test_provenance_and_settings_are_kept():
    bank = fit(named(simulated(5, 6)[0]), provenance={"files": ["a.jsonl"]}).bank
    assert bank.provenance == {"files": ["a.jsonl"]}
    assert bank.settings["dimensions"] == 1
    assert bank.n_models == 5
