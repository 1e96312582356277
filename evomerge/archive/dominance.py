"""Pareto dominance among points of losses (lower is better). Pure numpy.

Notation: `n` points of `m` losses, shape `(n, m)`. A point dominates another when it is nowhere worse and somewhere
better. Equal points do not dominate each other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]


def check_points(points: npt.ArrayLike) -> Points:
    """`points` as a finite float matrix, shape `(n, m)`.

    Raises:
        ValueError: when the shape is not `(n, m)` with m >= 1, then when an entry is not finite.
    """
    matrix = np.asarray(points, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise ValueError(f"points have shape {matrix.shape}, expected (n, m) with m >= 1")
    if not np.all(np.isfinite(matrix)):
        raise ValueError("points must be finite; a failed candidate has no place among them")
    return matrix


def domination_matrix(points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Entry `[i, j]` is True when point i dominates point j; shape `(n, n)`.

    Raises:
        ValueError: as `check_points`.
    """
    p = check_points(points)
    nowhere_worse = np.all(p[:, None, :] <= p[None, :, :], axis=2)
    somewhere_better = np.any(p[:, None, :] < p[None, :, :], axis=2)
    result: npt.NDArray[np.bool_] = nowhere_worse & somewhere_better
    return result


def non_dominated(points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """True for the points that no other point dominates; shape `(n,)`. Equal points are kept together.

    Raises:
        ValueError: as `check_points`.
    """
    result: npt.NDArray[np.bool_] = ~np.any(domination_matrix(points), axis=0)
    return result


def pareto_ranks(points: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Rank 0 is the front, rank k the front of what is left without ranks below k (Deb et al. 2002); shape `(n,)`.

    Raises:
        ValueError: as `check_points`.
    """
    dominates = domination_matrix(points)
    ranks = np.full(len(dominates), -1, dtype=np.int64)
    rank = 0
    while np.any(ranks < 0):
        left = ranks < 0
        front = left & ~np.any(dominates[left], axis=0)
        ranks[front] = rank
        rank += 1
    return ranks


def crowding_distances(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """How lonely each point is among points of one rank (Deb et al. 2002, III-B); shape `(n,)`, larger is lonelier.

    Per loss, the distance between the two neighbours over the range of that loss, summed; infinite for the points
    at either end. A loss that is the same everywhere adds nothing. Points that tie at an end are ordered by index.

    Raises:
        ValueError: as `check_points`.
    """
    p = check_points(points)
    distances = np.zeros(len(p))
    for column in p.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        if len(p) == 0 or ordered[0] == ordered[-1]:
            continue
        distances[order[[0, -1]]] = np.inf
        distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distances
