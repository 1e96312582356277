"""Shares that add up to one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(values: Sequence[float]) -> tuple[float, ...]:
    """`exp(x_i) / sum_j exp(x_j)`, in order.

    Args:
        values: at least one, finite.
    """
    powers = [math.exp(x - max(values)) for x in values]
    total = math.fsum(powers)
    return tuple(p / total for p in powers)
