"""Schedules of successive halving, and who goes on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.irt.race import Rung, halving_schedule, mean_cost, survivors


def test_twenty_candidates_at_a_mean_of_26() -> None:
    rungs = halving_schedule(20, 552, mean_questions=26)
    assert rungs == (Rung(10, 20), Rung(20, 10), Rung(40, 5), Rung(80, 3))
    assert mean_cost(rungs) == 26


def test_the_budget_of_the_pool_asks_everything() -> None:
    assert halving_schedule(7, 40, mean_questions=40) == (Rung(40, 7),)


def test_few_candidates_are_all_finalists() -> None:
    assert halving_schedule(3, 100, mean_questions=30) == (Rung(30, 3),)


def test_a_batch_larger_than_the_pool_is_the_pool() -> None:
    assert halving_schedule(8, 10, mean_questions=5, multiple=16) == (Rung(10, 8),)


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 150),
    pool=st.integers(1, 1500),
    mean=st.floats(0.5, 400),
    factor=st.floats(1.2, 5),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 32)),
)
def test_every_schedule_keeps_its_promises(
    n: int, pool: int, mean: float, factor: float, sizes: tuple[int, int]
) -> None:
    final, multiple = sizes
    rungs = halving_schedule(n, pool, mean_questions=mean, factor=factor, final=final, multiple=multiple)
    questions, keep = [r.questions for r in rungs], [r.keep for r in rungs]
    assert keep[0] == n
    assert all(a < b for a, b in pairwise(questions))
    assert all(a > b for a, b in pairwise(keep))
    assert keep[-1] >= min(final, n)
    assert all(q == pool or (q < pool and q % multiple == 0) for q in questions)
    assert mean_cost(rungs) <= max(mean, min(multiple, pool)) + 1e-9


@settings(deadline=None, max_examples=60)
@given(n=st.integers(4, 100), mean=st.floats(20, 200))
def test_the_budget_is_used(n: int, mean: float) -> None:
    """One more question for the finalists would be too much, or nothing is left to ask."""
    rungs = halving_schedule(n, 10_000, mean_questions=mean)
    assert mean_cost(rungs) + rungs[-1].keep / n > mean


def test_the_cost_is_what_a_walk_through_the_rungs_asks() -> None:
    rungs = halving_schedule(37, 300, mean_questions=31, factor=3, multiple=4)
    asked = np.zeros(37, dtype=int)
    for rung in rungs:
        asked[: rung.keep] = rung.questions
    assert mean_cost(rungs) == pytest.approx(asked.mean())


@pytest.mark.parametrize("bad", [{"n_candidates": 0}, {"pool": 0}, {"final": 0}, {"multiple": 0}])
def test_sizes_must_be_positive(bad: dict[str, int]) -> None:
    arguments = {"n_candidates": 4, "pool": 10} | bad
    with pytest.raises(ValueError, match="must be at least 1"):
        halving_schedule(**arguments, mean_questions=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mean", "factor"), [(0.0, 2.0), (float("nan"), 2.0), (5.0, 1.0)])
def test_budget_and_factor_must_make_sense(mean: float, factor: float) -> None:
    with pytest.raises(ValueError, match="factor > 1 and mean_questions > 0"):
        halving_schedule(4, 10, mean_questions=mean, factor=factor)


def test_the_best_survive_ties_go_to_the_first() -> None:
    assert survivors(np.array([3.0, 1.0, 2.0, 1.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert survivors(np.zeros(4), 2).tolist() == [0, 1]


def test_failures_never_survive() -> None:
    assert survivors(np.array([np.nan, 2.0, np.inf, np.nan]), 3).tolist() == [1, 2]
    assert survivors(np.full(3, np.nan), 2).size == 0


def test_survivors_are_refused_nonsense() -> None:
    with pytest.raises(ValueError, match="keep = -1"):
        survivors(np.zeros(2), -1)
    with pytest.raises(ValueError, match="losses of shape"):
        survivors(np.zeros((2, 2)), 1)
