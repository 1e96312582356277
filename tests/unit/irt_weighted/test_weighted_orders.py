"""Orders in which uncertain items come early: chances, nestedness, sizes; exact integration and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Floats
from evomerge.irt.weighted import (
    LEAST_SIZE,
    WeightedDesign,
    inclusion_probabilities,
    sizes_of,
    uncertainty,
    weighted_order,
)

sizes = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(1e-3, 1e3))


def bank(slopes: Floats, intercepts: Floats, link: str = "logistic", noise: Floats | None = None) -> ItemBank:
    n = intercepts.size
    return ItemBank(
        items=tuple(f"i{k}" for k in range(n)),
        slopes=slopes.reshape(n, -1),
        intercepts=intercepts,
        noise=np.ones(n) if noise is None else noise,
        constants=np.full(n, np.nan),
        mean=np.zeros(slopes.reshape(n, -1).shape[1]),
        covariance=np.eye(slopes.reshape(n, -1).shape[1]),
        link=link,
        n_models=10,
    )


def slow_chances(size: Floats, k: int) -> Floats:
    """One item after another becomes certain, the largest first, until nobody's share exceeds 1."""
    order = np.argsort(-size, kind="stable")
    for certain in range(size.size + 1):
        rest = order[certain:]
        left = k - certain
        if left <= 0 or rest.size == 0 or left * size[rest[0]] / size[rest].sum() < 1:
            break
    chance = np.zeros(size.size)
    chance[order[:certain]] = 1.0
    if left > 0 and rest.size:
        chance[rest] = left * size[rest] / size[rest].sum()
    return chance


@settings(deadline=None, max_examples=60)
@given(size=sizes, data=st.data())
def test_chances_sum_to_the_number_drawn(size: Floats, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, size.size))
    chance = inclusion_probabilities(size, k)
    assert chance.sum() == pytest.approx(k, abs=1e-9)
    assert np.all((chance >= 0) & (chance <= 1))
    free = chance < 1 - 1e-12
    if free.any() and k:
        assert np.ptp(chance[free] / size[free]) <= 1e-9 * (chance[free] / size[free]).max()
        # who is certain is larger than who is not
        assert size[~free].min(initial=np.inf) >= size[free].max() * (1 - 1e-9)
    np.testing.assert_allclose(chance, slow_chances(size, k), atol=1e-9)


def test_items_of_no_size_are_never_drawn() -> None:
    chance = inclusion_probabilities(np.array([0.0, 1.0, 3.0, 0.0]), 3)
    assert chance.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert inclusion_probabilities(np.zeros(3), 2).tolist() == [0.0] * 3


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data())
def test_chances_grow_with_the_number(size: Floats, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, size.size - 1))
    assert np.all(inclusion_probabilities(size, k + 1) >= inclusion_probabilities(size, k) - 1e-12)


def exact_chances(size: Floats, k: int, grid: int = 4000) -> Floats:
    """P(item i is among the k smallest u / size): the number of smaller others is Poisson-binomial; integral over u."""
    found = np.zeros(size.size)
    u = (np.arange(grid) + 0.5) / grid
    for i in range(size.size):
        smaller = np.zeros((grid, k))
        smaller[:, 0] = 1.0
        for j in range(size.size):
            if j != i:
                p = np.minimum(u / size[i] * size[j], 1.0)[:, None]
                shifted = np.concatenate([np.zeros((grid, 1)), smaller[:, :-1]], axis=1)
                smaller = smaller * (1 - p) + shifted * p
        found[i] = smaller.sum(axis=1).mean()
    return found


SOME_SIZES = np.array([0.05, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.2, 3.0])


def test_orders_draw_items_with_the_exact_chances() -> None:
    rng, k, draws = np.random.default_rng(1), 4, 4000
    counts = np.zeros(SOME_SIZES.size)
    for _ in range(draws):
        counts[weighted_order(SOME_SIZES, rng)[:k]] += 1
    exact = exact_chances(SOME_SIZES, k)
    assert exact.sum() == pytest.approx(k, abs=1e-3)
    error = np.sqrt(exact * (1 - exact) / draws)
    assert np.all(np.abs(counts / draws - exact) < 4 * error + 1e-4)


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_stated_chances_are_near_the_exact_ones(k: int) -> None:
    stated, exact = inclusion_probabilities(SOME_SIZES, k), exact_chances(SOME_SIZES, k)
    assert np.max(np.abs(stated - exact)) < 0.07
    assert np.corrcoef(stated, exact)[0, 1] > 0.995


def test_equal_sizes_are_simple_random_sampling() -> None:
    n, k = 9, 4
    np.testing.assert_allclose(inclusion_probabilities(np.full(n, 2.5), k), k / n)
    np.testing.assert_allclose(exact_chances(np.full(n, 2.5), k), k / n, atol=1e-3)
    seed = 3
    expected = np.argsort(np.random.default_rng(seed).random(n), kind="stable")
    assert weighted_order(np.full(n, 2.5), np.random.default_rng(seed)).tolist() == expected.tolist()


def test_the_draw_takes_one_number_per_item_whatever_the_sizes() -> None:
    one, other = np.random.default_rng(2), np.random.default_rng(2)
    weighted_order(np.ones(7), one)
    weighted_order(np.linspace(1, 9, 7), other)
    assert one.random() == other.random()


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data())
def test_designs_are_nested_and_state_their_chances(size: Floats, data: st.DataObject) -> None:
    n = size.size
    first = data.draw(st.integers(0, n))
    design = WeightedDesign(weighted_order(size, np.random.default_rng(data.draw(st.integers(0, 99)))), size, first)
    assert sorted(design.order) == list(range(n))
    for k in range(n + 1):
        asked = design.asked(k)
        assert asked.sum() == k
        assert not np.any(design.asked(max(0, k - 1)) & ~asked)
        chance = design.inclusion(k)
        assert chance.sum() == pytest.approx(k, abs=1e-9)
        assert np.all(chance[design.order[: min(k, first)]] == 1.0)
        if k > first:  # an item that was asked had a chance
            assert np.all(chance[asked] > 0)
    assert np.all(design.asked(n))
    np.testing.assert_allclose(design.inclusion(n), 1.0)


def test_horvitz_thompson_with_stated_chances_is_nearly_unbiased() -> None:
    rng = np.random.default_rng(4)
    y = rng.random(60) < 0.5
    size = rng.uniform(0.3, 2.0, 60)
    chance = inclusion_probabilities(size, 15)
    totals = [np.sum(y[o] / chance[o]) for o in (weighted_order(size, rng)[:15] for _ in range(1500))]
    assert np.mean(totals) == pytest.approx(y.sum(), abs=4 * np.std(totals) / np.sqrt(1500) + 0.02 * y.sum())


@settings(deadline=None, max_examples=40)
@given(
    variance=hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)),
    power=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_sizes_follow_the_variance_and_have_a_floor(variance: Floats, power: float) -> None:
    size = sizes_of(variance, power)
    assert np.all(size >= (LEAST_SIZE if (variance**power).mean() > 0 else 1.0))
    assert np.all(np.diff(size[np.argsort(variance, kind="stable")]) >= 0)
    above = size > LEAST_SIZE
    if above.sum() > 1 and (variance**power).mean() > 0:
        ratio = variance[above] ** power / size[above]
        assert np.ptp(ratio) <= 1e-9 * ratio.max()


def test_sizes_of_nothing_known_are_alike() -> None:
    assert sizes_of(np.zeros(4)).tolist() == [1.0] * 4
    assert sizes_of(np.zeros(0)).size == 0


def test_uncertainty_of_logistic_items_is_closed() -> None:
    slopes, intercepts = np.array([0.5, 2.0, 1.0]), np.array([0.0, 3.0, -1.0])
    theta = np.array([[-0.5], [1.0]])
    p = expit(theta * slopes + intercepts)
    found = uncertainty(bank(slopes, intercepts), theta)
    np.testing.assert_allclose(found, (4 * p * (1 - p)).mean(axis=0))
    np.testing.assert_allclose(uncertainty(bank(slopes, intercepts), theta[0]), (4 * p * (1 - p))[0])
    assert uncertainty(bank(slopes, np.zeros(3)), np.zeros((1, 1))).tolist() == [1.0] * 3


def test_uncertainty_of_normal_items_has_mean_one() -> None:
    noise = np.array([0.5, 1.0, 2.0])
    found = uncertainty(bank(np.ones(3), np.zeros(3), "normal", noise), np.zeros((2, 1)))
    np.testing.assert_allclose(found, noise**2 / np.mean(noise**2))


def test_constants_are_certain() -> None:
    plain = bank(np.array([1.0, 0.0]), np.zeros(2))
    constant = ItemBank(**{**vars(plain), "constants": np.array([np.nan, 1.0])})
    assert uncertainty(constant, np.zeros((1, 1))).tolist() == [1.0, 0.0]
