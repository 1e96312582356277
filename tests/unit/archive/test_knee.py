"""The knee: known places, deterministic ties, and what it must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.archive.knee import knee, knee_scores


def test_the_corner_of_an_l_is_the_knee() -> None:
    points = [(0.0, 10.0), (0.5, 5.0), (1.0, 1.0), (5.0, 0.5), (10.0, 0.0)]
    assert knee(points) == 2


def test_scores_are_distances_from_the_chord() -> None:
    """After scaling, the chord joins (0, 1) and (1, 0); (0, 0) would lie sqrt(1/2) below it."""
    points = np.array([(0.0, 8.0), (1.0, 4.0), (4.0, 0.0)])
    scaled = points / [4.0, 8.0]
    slow = [(1 - x - y) / np.sqrt(2) for x, y in scaled]
    assert np.allclose(knee_scores(points), slow)
    assert knee_scores(points)[[0, 2]] == pytest.approx([0.0, 0.0])


def test_a_straight_front_takes_its_most_balanced_point() -> None:
    assert knee([(0.0, 4.0), (1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (4.0, 0.0)]) == 2


def test_two_extremes_tie_and_the_smaller_first_loss_wins() -> None:
    assert knee([(1.0, 0.0), (0.0, 1.0)]) == 1


def test_one_objective_takes_the_best() -> None:
    assert knee([[3.0], [1.0], [2.0]]) == 1
    assert knee([[1.0], [1.0]]) == 0


def test_one_point_and_equal_points() -> None:
    assert knee([(5.0, 5.0)]) == 0
    assert knee([(5.0, 5.0), (5.0, 5.0)]) == 0
    assert knee_scores(np.empty((0, 2))).shape == (0,)


def test_many_objectives() -> None:
    points = np.vstack([np.eye(4), np.full((1, 4), 0.2), np.full((1, 4), 0.3)])
    assert knee(points) == 4


def test_an_objective_without_range_is_left_out() -> None:
    flat = [(0.0, 10.0, 7.0), (1.0, 1.0, 7.0), (10.0, 0.0, 7.0)]
    assert knee(flat) == 1
    assert np.allclose(knee_scores(flat), knee_scores([p[:2] for p in flat]))


def test_a_poor_point_does_not_move_the_knee() -> None:
    front = [(0.0, 1.0), (0.2, 0.3), (1.0, 0.0)]
    assert knee(front) == knee([*front, (100.0, 0.5), (0.5, 100.0)]) == 1


def test_no_points_have_no_knee() -> None:
    with pytest.raises(ValueError, match="no knee"):
        knee(np.empty((0, 2)))


LOSS = st.integers(0, 20).map(float)


@given(st.lists(st.tuples(LOSS, LOSS), min_size=1, max_size=10, unique=True), st.randoms())
@settings(deadline=None, max_examples=60)
def test_order_and_units_do_not_matter(points: list[tuple[float, float]], rng) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(points)
    rng.shuffle(shuffled)
    chosen = points[knee(points)]
    assert shuffled[knee(shuffled)] == chosen
    scaled = [(4.0 * a - 8.0, 0.5 * b) for a, b in points]
    assert points[knee(scaled)] == chosen
