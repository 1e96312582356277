"""The hypervolume indicator of losses: the volume that a set of points dominates, up to a reference point.

The computing is moocore's (Guerreiro, Fonseca and Paquete 2021); here stand the conventions. Losses are
lower-is-better, a point that is not better than the reference in every loss adds nothing, and the reference point of a
run is fixed once, so that the curve of a run never falls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.archive.dominance import Points, check_points

MARGIN = 0.1
"""The reference lies this share of the range beyond the worst point (Ishibuchi et al. 2018), so that ends count."""


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Volume dominated by `points` and bounded by `reference`; 0 for no points.

    Args:
        points: losses, shape `(n, m)`, finite; dominated points and duplicates do no harm.
        reference: shape `(m,)`, finite.

    Raises:
        ValueError: for points or a reference of the wrong shape or with entries that are not finite.
    """
    ref = np.asarray(reference, dtype=np.float64)
    if ref.ndim != 1 or not np.all(np.isfinite(ref)):
        raise ValueError(f"reference {ref.tolist()} must be one finite loss per objective")
    p = np.asarray(points, dtype=np.float64)
    if p.size == 0:
        return 0.0
    p = check_points(p)
    if p.shape[1] != len(ref):
        raise ValueError(f"points of {p.shape[1]} losses do not fit a reference of {len(ref)}")
    inside = p[np.all(p < ref, axis=1)]
    if len(inside) == 0:
        return 0.0
    import moocore  # brings compiled code

    return float(moocore.hypervolume(inside, ref=ref))


def reference_point(points: npt.ArrayLike, margin: float = MARGIN) -> Points:
    """A reference for a run: the worst loss per objective, plus `margin` times the range; shape `(m,)`.

    Call it on points that are known before the search (the parents and the baselines) and keep the result. Where
    all points agree in a loss, the range is taken as the larger of |loss| and 1.

    Raises:
        ValueError: as `check_points`, then when there are no points.
    """
    p = check_points(points)
    if len(p) == 0:
        raise ValueError("a reference point needs at least one point")
    worst = p.max(axis=0)
    span = worst - p.min(axis=0)
    span = np.where(span > 0, span, np.maximum(np.abs(worst), 1.0))
    result: Points = worst + margin * span
    return result
