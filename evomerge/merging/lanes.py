"""Sums in fp64 whose order is fixed, whoever adds: eager torch, or a compiled kernel that fills the same lanes."""

from __future__ import annotations

from typing import Final, final

import torch

LANES: Final = 1 << 10
"""Element j goes to lane j mod 1024."""


def halved(lanes: torch.Tensor) -> float:
    """The sum of fp64 lanes, their number a power of two: the upper half is added to the lower until one is left."""
    left = lanes.clone()
    while left.numel() > 1:
        left = left[: left.numel() // 2] + left[left.numel() // 2 :]
    return float(left[0])


@final
class LaneSum:
    """An fp64 sum of values that come part by part."""

    def __init__(self) -> None:
        self._lanes = torch.zeros(LANES, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Add the next values, flat; all but the last call bring a multiple of 1024 of them."""
        wide = values.to(torch.float64)
        whole = wide.numel() // LANES * LANES
        for row in wide[:whole].view(-1, LANES):
            self._lanes.add_(row)
        self._lanes[: wide.numel() - whole].add_(wide[whole:])

    def total(self) -> float:
        """The sum so far."""
        return halved(self._lanes)
