"""Expected ranks: closed form, brute force by drawing, constraints, several objectives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from evomerge.archive.dominance import pareto_ranks
from evomerge.irt.ranks import dominance_ranks, expected_ranks
from evomerge.irt.responses import Floats


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_two_candidates_in_closed_form() -> None:
    ranks = expected_ranks(np.array([0.0, 1.0]), np.array([3.0, 4.0]), rng())
    assert ranks == pytest.approx([norm.cdf(-0.2), norm.cdf(0.2)])


def test_common_questions_make_differences_surer() -> None:
    """Var(a - b) = s^2 + t^2 - 2 shared s t."""
    ranks = expected_ranks(np.array([0.0, 1.0]), np.array([3.0, 4.0]), rng(), shared=0.5)
    assert ranks[0] == pytest.approx(norm.cdf(-1 / np.sqrt(9 + 16 - 12)))


def test_exact_values_give_mid_ranks() -> None:
    losses = np.array([2.0, 1.0, 2.0, 0.0, 5.0])
    assert expected_ranks(losses, np.zeros(5), rng()) == pytest.approx(rankdata(losses) - 1)


def test_one_objective_against_drawing() -> None:
    source = np.random.default_rng(1)
    losses, se, p = source.normal(size=6), source.uniform(0.1, 2, 6), source.uniform(0, 1, 6)
    draws = 40_000
    drawn = losses + se * source.normal(size=(draws, 6))
    feasible = source.random((draws, 6)) < p
    key = np.where(feasible, drawn, 1e6 - p)
    slow = (rankdata(key, axis=1) - 1).mean(axis=0)
    assert expected_ranks(losses, se, rng(), feasible_p=p) == pytest.approx(slow, abs=0.03)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), c=st.integers(1, 12))
def test_one_objective_hands_out_all_ranks(seed: int, c: int) -> None:
    source = np.random.default_rng(seed)
    losses, se, p = source.normal(size=c), source.uniform(0, 2, c), source.uniform(0, 1, c)
    ranks = expected_ranks(losses, se, source, feasible_p=p, shared=0.3)
    assert ranks.sum() == pytest.approx(c * (c - 1) / 2)
    assert np.all((ranks >= -1e-12) & (ranks <= c - 1 + 1e-12))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), c=st.integers(1, 15), o=st.integers(2, 3))
def test_exact_points_have_their_pareto_ranks(seed: int, c: int, o: int) -> None:
    points = np.random.default_rng(seed).integers(0, 4, size=(c, o)).astype(np.float64)
    assert np.array_equal(expected_ranks(points, np.zeros((c, o)), rng()), pareto_ranks(points))


def test_draws_of_ranks_one_by_one() -> None:
    source = np.random.default_rng(2)
    losses, feasible = source.normal(size=(30, 7, 2)), source.random((30, 7)) < 0.6
    p = np.array([0.5, 0.9, 0.5, 0.1, 0.2, 0.3, 0.9])
    level = np.array([1, 0, 1, 4, 3, 2, 0])
    fast = dominance_ranks(losses, feasible, p)
    for draw in range(30):
        some = feasible[draw]
        slow = np.zeros(7)
        slow[some] = pareto_ranks(losses[draw][some])
        slow[~some] = (slow[some].max() + 1 if some.any() else 0) + level[~some]
        assert np.array_equal(fast[draw], slow)


def test_noise_moves_neighbours_not_the_far_ones() -> None:
    points = np.array([[0.0, 1.0], [0.05, 1.05], [1.0, 0.0], [9.0, 9.0]])
    ranks = expected_ranks(points, np.full((4, 2), 0.1), rng(), draws=2000)
    assert ranks[0] < ranks[1] < ranks[3]
    assert ranks[1] < 1
    assert 0 < ranks[0] < 0.5


def test_correlated_objectives_dominate_more() -> None:
    """Two equal candidates: independent errors decide for one of them with probability 1/2, equal ones always."""
    points, se = np.zeros((2, 2)), np.ones((2, 2))
    free = expected_ranks(points, se, rng(), draws=4000)
    tied = expected_ranks(points, se, rng(), correlation=np.ones((2, 2)), draws=4000)
    assert free.sum() == pytest.approx(0.5, abs=0.04)
    assert tied.sum() == pytest.approx(1.0)


def test_shared_errors_cancel_between_candidates() -> None:
    points = np.array([[0.0, 0.0], [0.1, 0.1]])
    se = np.ones((2, 2))
    together = expected_ranks(points, se, rng(), shared=0.9999, draws=1000)
    assert together == pytest.approx([0.0, 1.0], abs=0.02)


def test_infeasible_candidates_come_last_by_their_chance() -> None:
    losses = np.array([[0.0, 0.0], [1.0, 1.0], [-9.0, -9.0], [-8.0, -8.0]])
    for values in (losses, losses[:, 0]):
        ranks = expected_ranks(values, np.zeros_like(values), rng(), feasible_p=np.array([1.0, 1.0, 0.0, 0.0]))
        assert ranks[:2] == pytest.approx([0, 1])
        assert ranks[2] == pytest.approx(ranks[3])
        assert ranks[2] >= 2


def test_more_likely_feasible_is_never_worse() -> None:
    values = np.zeros((4, 2))
    ranks = expected_ranks(values, np.ones((4, 2)), rng(), feasible_p=np.array([1.0, 0.7, 0.3, 0.0]), draws=3000)
    assert np.all(np.diff(ranks) > 0)


@pytest.mark.parametrize("o", [1, 2])
def test_failures_share_the_last_places(o: int) -> None:
    values = np.arange(5.0)[:, None] * np.ones((1, o))
    values[[1, 3], 0] = np.nan
    assert expected_ranks(values, np.zeros((5, o)), rng()) == pytest.approx([0, 3.5, 1, 3.5, 2])


def test_nobody_and_nobody_left() -> None:
    assert expected_ranks(np.zeros(0), np.zeros(0), rng()).size == 0
    assert expected_ranks(np.full(3, np.nan), np.zeros(3), rng()) == pytest.approx([1, 1, 1])


def test_the_same_stream_gives_the_same_ranks() -> None:
    points = np.random.default_rng(3).normal(size=(5, 2))
    first, second = (expected_ranks(points, np.ones((5, 2)), rng()) for _ in range(2))
    assert np.array_equal(first, second)


def check(message: str, losses: Floats, se: Floats, **more: object) -> None:
    with pytest.raises(ValueError, match=message):
        expected_ranks(losses, se, rng(), **more)  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    two, pair = np.zeros(2), np.zeros((2, 2))
    check("standard errors of shape", two, np.zeros(3))
    check("standard errors of shape", np.zeros((2, 1, 1)), np.zeros((2, 1, 1)))
    check("feasible_p of shape", two, two, feasible_p=np.zeros(3))
    check("standard error is negative", two, np.array([1.0, -1.0]))
    check("standard error is negative", two, np.array([1.0, np.inf]))
    check("probability is not in", two, two, feasible_p=np.array([0.0, 1.1]))
    check("shared must be in", two, two, shared=1.0)
    check("correlation of shape", pair, pair, correlation=np.eye(3))
