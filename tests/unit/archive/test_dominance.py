"""Dominance, ranks and crowding against their definitions, written out slowly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.archive.dominance import (
    check_points,
    crowding_distances,
    domination_matrix,
    non_dominated,
    pareto_ranks,
)

Losses = list[tuple[float, ...]]


def clouds(m: int) -> st.SearchStrategy[Losses]:
    """Few distinct values, so that ties and duplicates are common."""
    return st.lists(st.tuples(*[st.integers(0, 4).map(float)] * m), min_size=1, max_size=14)


def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@given(st.one_of(clouds(1), clouds(2), clouds(3)))
@settings(deadline=None, max_examples=80)
def test_matrix_and_front_follow_the_definition(points: Losses) -> None:
    slow = [[beats(a, b) for b in points] for a in points]
    assert domination_matrix(points).tolist() == slow
    assert non_dominated(points).tolist() == [not any(beats(a, b) for a in points) for b in points]


@given(st.one_of(clouds(1), clouds(2), clouds(3)))
@settings(deadline=None, max_examples=60)
def test_ranks_peel_fronts(points: Losses) -> None:
    left = dict(enumerate(points))
    slow = [0] * len(points)
    rank = 0
    while left:
        front = [i for i, p in left.items() if not any(beats(q, p) for q in left.values())]
        for i in front:
            slow[i] = rank
            del left[i]
        rank += 1
    assert pareto_ranks(points).tolist() == slow


def test_with_one_objective_ranks_are_places() -> None:
    assert pareto_ranks([[3.0], [1.0], [2.0], [1.0]]).tolist() == [2, 0, 1, 0]


def test_crowding_by_hand() -> None:
    """Neighbours of (1, 3) are (0, 4) and (4, 0): 4/4 + 4/4."""
    assert crowding_distances([[0, 4], [4, 0], [1, 3]]).tolist() == [np.inf, np.inf, 2.0]
    assert crowding_distances([[0, 4], [1, 3], [2, 2], [4, 0]]).tolist() == [np.inf, 1.0, 1.5, np.inf]


def test_crowding_ignores_a_loss_that_is_the_same_everywhere() -> None:
    assert crowding_distances([[0, 7], [1, 7], [4, 7]]).tolist() == [np.inf, 1.0, np.inf]
    assert crowding_distances([[5, 7], [5, 7]]).tolist() == [0.0, 0.0]


def test_crowding_agrees_with_optunas() -> None:
    import optuna
    from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance

    points = np.random.default_rng(0).random((12, 3))
    trials = [
        optuna.trial.create_trial(values=list(p), params={}, distributions={}, state=optuna.trial.TrialState.COMPLETE)
        for p in points
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    theirs = _calc_crowding_distance(list(trials))
    assert np.allclose(crowding_distances(points), [theirs[i] for i in range(12)])


def test_no_points() -> None:
    empty = np.empty((0, 2))
    assert len(non_dominated(empty)) == len(pareto_ranks(empty)) == len(crowding_distances(empty)) == 0


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)])
def test_shapes_are_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(n, m\\)"):
        check_points(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_failures_are_no_points(bad: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        non_dominated([[0.0, bad]])
