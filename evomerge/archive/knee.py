"""The knee of a front: the point where a gain in one objective begins to cost much in another.

Losses are lower-is-better and are first scaled to `[0, 1]` over the points given, so that units do not matter.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from evomerge.archive.dominance import check_points, non_dominated

TIE: Final = 1e-12
"""Distances closer than this are equal: the scaling rounds."""


def knee_scores(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """How far each point lies below the plane through the extremes, after scaling; shape `(n,)`, larger is better.

    With every loss scaled to `[0, 1]`, the extremes of a two-objective front are (0, 1) and (1, 0), and the distance
    from their chord is `(1 - sum(losses)) / sqrt(2)` (Das 1999; Branke et al. 2004). For m objectives the plane
    `sum = 1` takes the chord's place, with the sign kept: positive towards the ideal point. With one objective it is
    the scaled gain itself. A loss that is the same everywhere is left out.

    Raises:
        ValueError: as `check_points`.
    """
    p = check_points(points)
    if len(p) == 0:
        return np.zeros(0)
    span = np.ptp(p, axis=0)
    varying = span > 0
    if not np.any(varying):
        return np.zeros(len(p))
    scaled = (p[:, varying] - p[:, varying].min(axis=0)) / span[varying]
    result: npt.NDArray[np.float64] = (1.0 - scaled.sum(axis=1)) / np.sqrt(varying.sum())
    return result


def knee(points: npt.ArrayLike) -> int:
    """Index of the knee among the non-dominated of `points`.

    The scaling uses the non-dominated points alone, so that a poor point does not move the knee. Of equal scores the
    one with the smallest worst scaled loss wins (the most balanced), then the lexicographically smallest losses, then
    the first.

    Args:
        points: losses, shape `(n, m)`, n >= 1.

    Raises:
        ValueError: as `check_points`, then when there are no points.
    """
    p = check_points(points)
    if len(p) == 0:
        raise ValueError("there is no knee among no points")
    front = np.flatnonzero(non_dominated(p))
    losses = p[front]
    scores = knee_scores(losses)
    span = np.ptp(losses, axis=0)
    scaled = (losses - losses.min(axis=0)) / np.where(span > 0, span, 1.0)
    best = np.flatnonzero(scores >= scores.max() - TIE)
    keys = [(round(float(scaled[i].max()), 12), tuple(losses[i].tolist()), int(front[i])) for i in best]
    return min(keys)[-1]
