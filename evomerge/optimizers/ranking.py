"""Feasibility first: one order over feasible, infeasible and failed candidates (Deb 2000, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import Told


def total_violation(told: Told) -> float:
    """Sum of the positive violations; 0 for a feasible candidate."""
    return float(sum(v for v in told.violations if v > 0))


def order_key(told: Told) -> tuple[int, float]:
    """Sorts a single-objective candidate: feasible by loss, then infeasible by total violation, then failures."""
    if told.losses is None:
        return (2, 0.0)
    if told.feasible:
        return (0, told.losses[0])
    return (1, total_violation(told))


def feasibility_ranks(results: Sequence[Told]) -> npt.NDArray[np.float64]:
    """Ranks of one generation by `order_key`, 0 is best; equals share the mean of their places.

    Ranks are finite whatever failed, and an evolution strategy uses nothing but the order. Shared places tell it
    that a generation is flat.

    Args:
        results: single-objective results, n of them.

    Returns:
        Shape `(n,)`, summing to `n (n - 1) / 2`.
    """
    keys = [order_key(t) for t in results]
    ordered = sorted(keys)
    first = {key: i for i, key in reversed(list(enumerate(ordered)))}
    last = {key: i for i, key in enumerate(ordered)}
    return np.array([(first[k] + last[k]) / 2 for k in keys])
