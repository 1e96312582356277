"""Control points from the values between them: the inverse of interpolation over depth, on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from evomerge.space.dimension import Dimension

MOST_SOLVED: Final = 1000
"""Finer grids are not searched: the time grows with the square of the number of values."""


class Between(NamedTuple):
    """A value that two neighbouring control points make.

    Attributes:
        left: part of the earlier one.
        right: part of the later one.
        value: its index.
    """

    left: float
    right: float
    value: int


def solve_knots(
    dimension: Dimension, guesses: Sequence[int], fixed: Mapping[int, int], between: Mapping[int, Sequence[Between]]
) -> list[int] | None:
    """Indices of control points that make all the values; of several, those nearest to the guesses.

    Args:
        dimension: the grid of every point.
        guesses: per point, an index.
        fixed: point -> the index that it must have.
        between: point -> the values between it and the next one.

    Returns:
        One index per point; None when there are none, or the grid is too fine to search.
    """
    n = dimension.n_values
    if n > MOST_SOLVED:
        return None
    costs: list[npt.NDArray[np.float64]] = []
    back: list[npt.NDArray[np.int64]] = []
    for k, guess in enumerate(guesses):
        cost = np.abs(np.arange(n) - guess).astype(np.float64)
        if k in fixed:
            cost[np.arange(n) != fixed[k]] = np.inf
        if k > 0:
            steps = np.where(_allowed(dimension, between.get(k - 1, ())), costs[-1][:, None], np.inf)
            back.append(np.argmin(steps, axis=0))
            cost = cost + np.min(steps, axis=0)
        costs.append(cost)
    if not np.isfinite(costs[-1]).any():
        return None
    found = [int(np.argmin(costs[-1]))]
    for choice in reversed(back):
        found.append(int(choice[found[-1]]))
    return found[::-1]


def _allowed(dimension: Dimension, values: Sequence[Between]) -> npt.NDArray[np.bool_]:
    """Which pairs of neighbouring points make the values; rows are the earlier point's indices."""
    n = dimension.n_values
    genes = np.array([dimension.gene_at(i) for i in range(n)])
    allowed = np.ones((n, n), dtype=np.bool_)
    for left, right, value in values:
        mixed = np.minimum(1.0, left * genes[:, None] + right * genes[None, :])  # as `MergeSpace` mixes them
        rows, columns = np.nonzero(allowed & (np.abs(mixed - dimension.gene_at(value)) <= dimension.gene_step))
        near = np.zeros_like(allowed)
        for i, j in zip(rows, columns, strict=True):
            near[i, j] = dimension.index_at(float(mixed[i, j])) == value
        allowed = near
    return allowed
