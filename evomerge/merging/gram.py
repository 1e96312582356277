"""Inner products of tensors in fp64, summed in an order that is fixed, so that every machine gets the same number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

_LANES: Final = 1 << 16


def inner_product(x: torch.Tensor, y: torch.Tensor) -> float:
    """`sum_j x_j y_j` of two flat tensors of the same length.

    Each product of two fp32 values is exact in fp64. The sum runs lane by lane (element j in lane j mod 65536), then
    halves the lanes: element-wise operations only, so no library chooses the order.
    """
    lanes = torch.zeros(_LANES, dtype=torch.float64, device=x.device)
    for start in range(0, x.numel(), _LANES):
        part = slice(start, min(start + _LANES, x.numel()))
        product = x[part].to(torch.float32).double().mul_(y[part].to(torch.float32).double())
        lanes[: product.numel()].add_(product)
    width = _LANES
    while width > 1:
        width //= 2
        lanes[:width].add_(lanes[width : 2 * width].clone())
    return float(lanes[0])


def gram_matrix(inputs: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
    """All inner products of flat tensors `(m,)`: a symmetric matrix, shape `(n, n)`."""
    n = len(inputs)
    gram = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            gram[i, j] = gram[j, i] = inner_product(inputs[i], inputs[j])
    return gram
