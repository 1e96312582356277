"""Estimators that rest on the design: unbiased under every design, exact where all is asked."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.irt.estimators.base import Calibration
from evomerge.irt.estimators.design import Mean, Ppi, Stratified
from evomerge.irt.responses import Responses


def calibration(scores: np.ndarray, parents: tuple[int, ...] = ()) -> Calibration:
    m, n = scores.shape
    return Calibration(
        Responses(scores, tuple(f"m{i}" for i in range(m)), tuple(f"i{j}" for j in range(n))), None, parents
    )


def known(m: int = 6, n: int = 7, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((m, n)) < np.linspace(0.2, 0.9, n)).astype(float)


def over_all_samples(estimator, y: np.ndarray, certain: list[int], r: int, target=None):
    """Values and standard errors over every equally likely sample of r of the items that are not certain."""
    n = y.size
    rest = [i for i in range(n) if i not in certain]
    inclusion = np.full(n, r / len(rest))
    inclusion[certain] = 1.0
    rows = []
    for sample in combinations(rest, r):
        row = np.full(n, np.nan)
        row[[*certain, *sample]] = y[[*certain, *sample]]
        rows.append(row)
    return estimator.estimate(np.array(rows), inclusion=inclusion, target=target)


def test_mean_of_a_simple_random_sample_is_the_sample_mean():
    scores = np.array([[1.0, np.nan, 0.0, 1.0, np.nan, np.nan, np.nan]])
    assert Mean(calibration(known())).estimate(scores).value == pytest.approx([2 / 3])


@pytest.mark.parametrize("certain", [[], [2], [0, 5]])
def test_mean_is_unbiased_under_every_mixed_design(certain):
    y = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.25, 1.0])
    found = over_all_samples(Mean(calibration(known())), y, certain, 3)
    assert found.value.mean() == pytest.approx(y.mean())


def test_mean_is_unbiased_for_domains_of_equal_weights():
    """Weights that are 0 or equal, such as those of flips: unbiased over the samples that meet the domain."""
    y, target = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.25, 1.0]), np.array([1, 1, 0, 1, 1, 1, 0]) / 7
    found = over_all_samples(Mean(calibration(known())), y, [], 3, target)
    assert found.value.mean() == pytest.approx(y @ target)


def test_ppi_is_unbiased_whatever_the_parents_answered():
    y = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.25, 1.0])
    for parents in ((0, 1), (2,), (3, 4, 5)):
        found = over_all_samples(Ppi(calibration(known(), parents)), y, [1], 2)
        assert found.value.mean() == pytest.approx(y.mean())


def test_ppi_has_the_smaller_error_where_a_candidate_is_like_its_parents():
    rng = np.random.default_rng(1)
    family = np.repeat(rng.random((1, 60)) < 0.5, 8, axis=0) ^ (rng.random((8, 60)) < 0.08)
    table = calibration(family.astype(float), (0, 1))
    y = (family[7] ^ (rng.random(60) < 0.05)).astype(float)
    scores = np.array(
        [np.where(np.isin(np.arange(60), rng.choice(60, 12, replace=False)), y, np.nan) for _ in range(200)]
    )
    gaps = {kind.name: np.abs(kind(table).estimate(scores).value - y.mean()).mean() for kind in (Mean, Ppi)}
    assert gaps["ppi"] < 0.7 * gaps["mean"]


def test_standard_error_is_the_textbook_one_for_large_samples():
    rng = np.random.default_rng(2)
    y = (rng.random(2000) < 0.3).astype(float)
    asked = rng.permutation(2000) < 500
    found = Mean(calibration(known(4, 2000))).estimate(np.where(asked, y, np.nan)[None])
    textbook = np.sqrt((1 - 500 / 2000) * y[asked].var(ddof=1) / 500)
    assert found.se == pytest.approx([textbook], rel=0.01)


@pytest.mark.parametrize("kind", [Mean, Stratified])
def test_intervals_of_few_answers_cover(kind):
    rng = np.random.default_rng(3)
    table = calibration((rng.random((30, 100)) < np.linspace(0.1, 0.95, 100)).astype(float))
    y = (rng.random((40, 100)) < np.linspace(0.1, 0.95, 100)).astype(float)
    hits = []
    for _ in range(40):
        found = kind(table).estimate(np.where(rng.permutation(100) < 12, y, np.nan))
        hits.append(np.abs(found.value - y.mean(axis=1)) <= 1.645 * found.se)
    assert 0.84 <= np.mean(hits) <= 0.96


def test_strata_lower_the_error_where_items_differ_in_difficulty():
    rng = np.random.default_rng(4)
    p = np.where(np.arange(100) < 50, 0.05, 0.95)
    table = calibration((rng.random((30, 100)) < p).astype(float))
    y = (rng.random(100) < p).astype(float)
    scores = np.array([np.where(rng.permutation(100) < 20, y, np.nan) for _ in range(300)])
    gaps = {kind.name: np.abs(kind(table).estimate(scores).value - y.mean()).mean() for kind in (Mean, Stratified)}
    assert gaps["stratified"] < 0.8 * gaps["mean"]


def test_equal_answers_do_not_claim_to_be_certain():
    scores = np.array([[1.0, 1.0, 1.0, np.nan, np.nan, np.nan, np.nan]])
    assert Mean(calibration(known())).estimate(scores).se[0] > 0.1


def test_nothing_asked_gives_what_the_calibration_says():
    table = calibration(known())
    found = Mean(table).estimate(np.full((2, 7), np.nan))
    assert found.value == pytest.approx(np.full(2, table.item_means.mean()))
    assert np.all(found.se > 0)


def test_no_known_model_at_all_is_enough_for_the_mean():
    empty = Calibration(Responses(np.zeros((0, 4)), (), tuple("abcd")))
    found = Stratified(empty).estimate(np.array([[1.0, 0.0, np.nan, np.nan]]))
    assert found.value == pytest.approx([0.5])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(-3, 3), st.floats(0.1, 4))
def test_mean_follows_shift_and_scale(seed, r, shift, scale):
    """Property: an affine change of all scores changes value and standard error accordingly (normal-link scores)."""
    rng = np.random.default_rng(seed)
    base, row = rng.normal(size=(5, 7)) * 3, rng.normal(size=7) * 3
    row[rng.permutation(7)[r:]] = np.nan
    plain = Mean(calibration(base * 10)).estimate(row[None] * 10)
    moved = Mean(calibration(scale * base * 10 + shift)).estimate(scale * row[None] * 10 + shift)
    assert moved.value == pytest.approx(scale * plain.value + shift)
    assert moved.se == pytest.approx(scale * plain.se)


def test_ppi_without_parents_is_refused():
    with pytest.raises(ConfigError, match="ppi cannot be made"):
        Ppi(calibration(known()))


def test_an_item_that_the_design_never_asks_cannot_have_been_asked():
    scores = np.array([[1.0] + [np.nan] * 6])
    with pytest.raises(ValueError, match="inclusion probability is 0"):
        Mean(calibration(known())).estimate(scores, inclusion=np.zeros(7))


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (np.zeros((1, 3)), {}, "scores have shape"),
        (np.zeros((1, 7)), {"inclusion": np.full(7, 1.5)}, "inclusion must be"),
        (np.zeros((1, 7)), {"target": np.full(7, np.inf)}, "target must be"),
    ],
)
def test_what_does_not_fit_is_refused(scores, arguments, message):
    with pytest.raises(ValueError, match=message):
        Mean(calibration(known())).estimate(scores, **arguments)
