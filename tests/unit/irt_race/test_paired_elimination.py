"""Paired elimination: exact tests by enumeration, and the error over all looks in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, hypergeom, norm

from evomerge.irt.elimination import RADEMACHER, EliminationRule, better_p, eliminated
from evomerge.irt.responses import Floats


def pair(wins: int, losses: int, n: int) -> Floats:
    scores = np.zeros((2, n))
    scores[0, :wins] = 1
    scores[1, wins : wins + losses] = 1
    return scores


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (5, 1), (9, 2), (12, 0)])
def test_right_and_wrong_is_mcnemar(wins: int, losses: int) -> None:
    p = better_p(pair(wins, losses, 20))
    assert p[0, 1] == pytest.approx(binomtest(wins, wins + losses, alternative="greater").pvalue)
    assert p[1, 0] == 1


@pytest.mark.parametrize("pool", [6, 9, 14])
def test_a_finite_pool_takes_the_worst_case(pool: int) -> None:
    """No pool in which the winner is not better gives the observed wins a larger chance."""
    for n in range(1, 7):
        for differ in range(1, n + 1):
            for wins in range(differ // 2 + 1, differ + 1):
                p = better_p(pair(wins, differ - wins, n), pool=pool)[0, 1]
                worst = max(
                    hypergeom.sf(wins - 1, total, good, differ)
                    for total in range(differ, differ + pool - n + 1)
                    for good in range(total // 2 + 1)
                )
                assert p == pytest.approx(worst, abs=1e-12)


def test_a_finite_pool_is_surer_and_at_its_end_certain() -> None:
    scores = pair(8, 3, 20)
    assert better_p(scores, pool=40)[0, 1] < better_p(scores, pool=400)[0, 1] < better_p(scores)[0, 1]
    assert better_p(scores, pool=20)[0, 1] == 0
    assert better_p(scores * [[1.0], [0.5]], pool=20)[0, 1] == 0


def test_other_scores_by_self_normalised_sums() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 15))
    scores[0] += 1
    d = scores[0] - scores[1]
    assert better_p(scores)[0, 1] == pytest.approx(RADEMACHER * norm.sf(d.sum() / np.sqrt(np.sum(d**2))))


def test_the_normal_bound_holds_for_all_signs() -> None:
    """P(sum of signed differences >= observed) by enumeration of 2^10 signs never exceeds the p value."""
    source = np.random.default_rng(1)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1)
    for spread in (0.1, 1.0, 3.0):
        d = np.exp(spread * source.normal(size=10))
        sums = d @ signs
        for row in signs.T[::37]:
            exact = np.mean(sums >= d @ row - 1e-9)
            assert better_p(np.array([d * row, np.zeros(10)]))[0, 1] >= exact - 1e-9 or d @ row <= 0


def test_weights_are_multiplied_in() -> None:
    scores = np.random.default_rng(2).integers(0, 2, size=(3, 12)).astype(np.float64)
    weights = np.linspace(0.5, 2, 12)
    assert better_p(scores, weights=weights) == pytest.approx(better_p(scores * weights))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), c=st.integers(1, 8), n=st.integers(1, 30), keep=st.integers(1, 3))
def test_the_leaders_are_never_out_and_order_does_not_matter(seed: int, c: int, n: int, keep: int) -> None:
    source = np.random.default_rng(seed)
    scores = source.integers(0, 2, size=(c, n)).astype(np.float64) * source.integers(0, 2, size=(c, 1))
    rule = EliminationRule(8, 2, 0.5, keep)
    out = eliminated(scores, rule)
    assert not out[np.argsort(-scores.sum(axis=1), kind="stable")[:keep]].any()
    people, items = source.permutation(c), source.permutation(n)
    assert np.array_equal(eliminated(scores[people][:, items], rule), out[people])


def test_identical_candidates_stay() -> None:
    assert not eliminated(np.ones((4, 50)), EliminationRule(4, 1, 0.9)).any()
    assert not eliminated(np.tile(np.linspace(0, 1, 50), (4, 1)), EliminationRule(4, 1, 0.9)).any()


def test_clear_losers_go() -> None:
    scores = np.vstack([np.ones((2, 40)), np.zeros((3, 40))])
    assert eliminated(scores, EliminationRule(5, 4)).tolist() == [False, False, True, True, True]
    assert eliminated(scores, EliminationRule(5, 4, keep=2)).tolist() == [False, False, True, True, True]
    assert not eliminated(scores, EliminationRule(5, 4, keep=3)).any()


def test_failures_are_out_and_eliminate_nobody() -> None:
    scores = np.vstack([np.full(40, np.nan), np.zeros(40), np.ones(40)])
    assert eliminated(scores, EliminationRule(3, 1)).tolist() == [True, True, False]
    assert eliminated(scores[:2], EliminationRule(3, 1)).tolist() == [True, False]
    assert not eliminated(np.zeros((3, 0)), EliminationRule(3, 1)).any()


def race_errors(kind: str, rule: EliminationRule, looks: tuple[int, ...], runs: int) -> float:
    """Share of races in which the `keep`-th best of the pool was eliminated at some look."""
    source = np.random.default_rng(7)
    c, pool, errors = rule.n_candidates, rule.pool or 0, 0
    for _ in range(runs):
        scores: Floats = (source.random((c, pool)) < source.uniform(0.1, 0.9, size=pool)).astype(np.float64)
        weights = None
        if kind == "numbers":
            scores = scores + source.standard_t(3, size=(c, pool))
        if kind == "weighted":
            weights = source.choice([0.5, 1.0, 3.0], size=pool)
        total = scores.sum(axis=1) if weights is None else scores @ weights
        sought = int(np.argsort(-total, kind="stable")[rule.keep - 1])
        alive = np.arange(c)
        for k in looks:
            out = eliminated(scores[alive, :k], rule, weights=None if weights is None else weights[:k])
            alive = alive[~out]
        errors += sought not in alive
    return errors / runs


@pytest.mark.parametrize("kind", ["right", "numbers", "weighted"])
@pytest.mark.parametrize(("c", "keep"), [(2, 1), (6, 1), (6, 3)])
def test_the_best_is_rarely_eliminated_at_any_look(kind: str, c: int, keep: int) -> None:
    """At alpha = .3 over four looks: equal candidates in expectation, the hardest case."""
    looks = (8, 16, 32, 64)
    rule = EliminationRule(c, len(looks), 0.3, keep, pool=128)
    assert race_errors(kind, rule, looks, 150) <= 0.3


def test_looking_without_control_errs_more() -> None:
    """The same simulation sees the error that the shared level prevents."""
    looks = (8, 16, 32, 64)
    careless = EliminationRule(2, 1, 0.3, pool=128)
    careful = EliminationRule(2, len(looks), 0.3, pool=128)
    assert race_errors("right", careless, looks, 200) > 2 * race_errors("right", careful, looks, 200)


def test_what_is_refused() -> None:
    rule = EliminationRule(2, 1, pool=5)
    for scores in (np.zeros(3), np.zeros((3, 2)), np.zeros((2, 6))):
        with pytest.raises(ValueError, match="scores of shape"):
            eliminated(scores, rule)
    for weights in (np.zeros(3), np.array([1.0, -1.0]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="weights of shape"):
            eliminated(np.zeros((2, 2)), rule, weights=weights)
    with pytest.raises(ValueError, match="at least 1"):
        EliminationRule(0, 1)
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="alpha must be"):
            EliminationRule(2, 1, alpha)
    with pytest.raises(ValueError, match="at least one item"):
        EliminationRule(2, 1, pool=0)
