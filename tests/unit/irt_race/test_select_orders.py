"""Orders by information and over the difficulties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Floats
from evomerge.irt.select import information_order, stratified_order, usable_information


def make_bank(slopes: Floats, intercepts: Floats, constants: Floats | None = None) -> ItemBank:
    n, d = slopes.shape
    fixed = np.full(n, np.nan) if constants is None else constants
    names = tuple(f"item{i}" for i in range(n))
    return ItemBank(names, slopes, intercepts, np.ones(n), fixed, np.zeros(d), np.eye(d), "logistic", 30)


def random_bank(seed: int, n: int, d: int) -> ItemBank:
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(n, d))
    slopes[:, 0] = np.abs(slopes[:, 0]) + 0.1
    return make_bank(slopes, rng.normal(size=n))


def test_one_dimension_is_lords_information() -> None:
    """a^2 p (1 - p), item by item."""
    bank = random_bank(0, 12, 1)
    p = 1 / (1 + np.exp(-(0.7 * bank.slopes[:, 0] + bank.intercepts)))
    expected = np.argsort(-(bank.slopes[:, 0] ** 2) * p * (1 - p), kind="stable")
    assert np.array_equal(information_order(bank, np.array([0.7])), expected)


def test_several_abilities_average_their_information() -> None:
    bank = random_bank(1, 15, 2)
    abilities = np.random.default_rng(2).normal(size=(4, 2))
    slow = np.mean([bank.information(theta) for theta in abilities], axis=0)
    rises = [i for i in range(15) if usable_information(bank, abilities)[i] > 0]
    assert np.allclose(usable_information(bank, abilities)[rises], slow[rises])
    assert len(rises) > 5


def test_misleading_items_then_constants_come_last() -> None:
    slopes = np.array([[0.0], [-5.0], [0.2], [1.0], [0.0]])
    bank = make_bank(slopes, np.zeros(5), np.array([1.0, np.nan, np.nan, np.nan, 0.0]))
    assert information_order(bank, np.zeros(1)).tolist() == [3, 2, 1, 0, 4]
    assert usable_information(bank, np.zeros(1)).tolist() == pytest.approx([0, 0, 0.01, 0.25, 0])


def test_an_axis_may_point_down_as_long_as_the_item_rises_with_the_score() -> None:
    """The sign of an axis is a convention: mirroring it changes nothing."""
    bank = random_bank(3, 20, 2)
    mirrored = make_bank(bank.slopes * [1, -1], bank.intercepts)
    theta = np.array([0.3, -0.4])
    assert np.array_equal(information_order(bank, theta), information_order(mirrored, theta * [1, -1]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), d=st.integers(1, 3), k=st.integers(1, 3))
def test_every_order_is_a_permutation_with_falling_information(seed: int, n: int, d: int, k: int) -> None:
    bank = random_bank(seed, n, d)
    theta = np.random.default_rng(seed).normal(size=(k, d))
    order = information_order(bank, theta)
    assert sorted(order) == list(range(n))
    assert np.all(np.diff(usable_information(bank, theta)[order]) <= 0)


@pytest.mark.parametrize("theta", [np.zeros(2), np.zeros((1, 3)), np.zeros((0, 1)), np.zeros((1, 1, 1))])
def test_abilities_of_another_dimension_are_refused(theta: Floats) -> None:
    with pytest.raises(ValueError, match="for a bank of 1 dimensions"):
        information_order(random_bank(0, 4, 1), theta)


def test_an_ability_must_be_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        information_order(random_bank(0, 4, 1), np.array([np.nan]))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9999), n=st.integers(0, 70))
def test_every_prefix_covers_the_difficulties(seed: int, n: int) -> None:
    """2^h questions reach every arc of more than n / 2^h + 1 neighbours twice over, whatever the start."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    order = stratified_order(difficulty, rng)
    assert sorted(order) == list(range(n))
    rank = np.argsort(np.argsort(difficulty))
    size = 1 << (n - 1).bit_length() if n else 1
    k = 1
    while k <= n:
        places = np.sort(rank[order[:k]])
        if k >= 2:
            gaps = np.diff(np.append(places, places[0] + n))
            assert gaps.max() <= 4 * size / k
        k *= 2


def test_every_item_is_equally_likely_at_every_place() -> None:
    n, draws = 7, 2500
    counts = np.zeros((n, n))
    rng = np.random.default_rng(5)
    difficulty = np.arange(7.0) ** 2
    for _ in range(draws):
        counts[np.arange(n), stratified_order(difficulty, rng)] += 1
    assert np.all(np.abs(counts / draws - 1 / n) < 5 * np.sqrt(1 / n * (1 - 1 / n) / draws))


def test_stratified_prefixes_estimate_a_mean_better_than_random_ones() -> None:
    rng = np.random.default_rng(6)
    difficulty = rng.random(size=100)
    stratified = [difficulty[stratified_order(difficulty, rng)[:16]].mean() for _ in range(300)]
    random = [difficulty[rng.permutation(100)[:16]].mean() for _ in range(300)]
    assert np.std(stratified) < 0.5 * np.std(random)
    assert abs(np.mean(stratified) - difficulty.mean()) < 4 * np.std(stratified) / np.sqrt(300)
