"""Hypervolume against areas counted by hand, and the conventions around it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.archive.hypervolume import MARGIN, hypervolume, reference_point


def staircase(points: list[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area under a two-objective front, column by column."""
    inside = sorted(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    area, low = 0.0, reference[1]
    for x, y in inside:
        if y < low:
            area += (reference[0] - x) * (low - y)
            low = y
    return area


@given(st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), max_size=12))
@settings(deadline=None, max_examples=80)
def test_two_objectives_equal_the_staircase(points: list[tuple[float, float]]) -> None:
    assert hypervolume(np.array(points).reshape(-1, 2), (8.0, 7.0)) == pytest.approx(staircase(points, (8.0, 7.0)))


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_three_objectives_equal_counted_unit_cubes(points: list[tuple[int, int, int]]) -> None:
    cubes = sum(
        any(p[0] <= x and p[1] <= y and p[2] <= z for p in points) for x in range(4) for y in range(4) for z in range(4)
    )
    assert hypervolume(points, (4.0, 4.0, 4.0)) == pytest.approx(cubes)


def test_one_objective_is_the_distance_to_the_reference() -> None:
    assert hypervolume([[0.25], [0.5]], [1.0]) == 0.75


def test_what_is_not_better_than_the_reference_adds_nothing() -> None:
    assert hypervolume([[1.0, 0.0], [2.0, -5.0]], (1.0, 1.0)) == 0.0
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([[0.0, 0.0], [1.0, -9.0]], (1.0, 1.0)) == 1.0


def test_adding_points_never_shrinks_it() -> None:
    points = np.random.default_rng(1).random((30, 3))
    volumes = [hypervolume(points[:n], np.ones(3)) for n in range(31)]
    assert np.all(np.diff(volumes) >= 0)
    assert volumes[-1] > volumes[1] > 0


def test_the_reference_lies_beyond_the_worst() -> None:
    assert reference_point([[0.0, 3.0], [2.0, 1.0]]).tolist() == [2.0 + 2 * MARGIN, 3.0 + 2 * MARGIN]
    assert reference_point([[0.0, 3.0], [2.0, 1.0]], margin=0.5).tolist() == [3.0, 4.0]


def test_a_loss_without_range_still_leaves_room() -> None:
    assert reference_point([[-0.5, -8.0]]).tolist() == [-0.5 + MARGIN, -8.0 + 8 * MARGIN]


@pytest.mark.parametrize("reference", [[np.nan, 1.0], [[1.0, 1.0]], [np.inf, 1.0]])
def test_references_are_checked(reference: object) -> None:
    with pytest.raises(ValueError, match="one finite loss per objective"):
        hypervolume([[0.0, 0.0]], reference)  # type: ignore[arg-type]


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match="points of 2 losses do not fit a reference of 3"):
        hypervolume([[0.0, 0.0]], [1.0, 1.0, 1.0])


def test_a_reference_needs_points() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        reference_point(np.empty((0, 2)))
