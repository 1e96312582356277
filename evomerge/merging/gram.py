"""Inner products of tensors in fp64, summed in an order that is fixed, so that every machine gets the same number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

_LANES: Final = 1 << 16
_BLOCK: Final = 1 << 20


def _wide(x: torch.Tensor, origin: torch.Tensor | None) -> torch.Tensor:
    """`x`, or its fp32 difference from `origin`, in fp64; a new tensor."""
    return (x.float() if origin is None else x.float() - origin.float()).double()


def inner_product(x: torch.Tensor, y: torch.Tensor, origin: torch.Tensor | None = None) -> float:
    """`sum_j x_j y_j` of two flat tensors of the same length, or of their differences from `origin`.

    Each product of two fp32 values is exact in fp64. The sum runs lane by lane (element j in lane j mod 65536), then
    halves the lanes: element-wise operations only, so no library chooses the order.
    """
    used = min(_LANES, 1 << max(x.numel() - 1, 0).bit_length())  # the other lanes would hold zeros
    lanes = torch.zeros(used, dtype=torch.float64, device=x.device)
    for start in range(0, x.numel(), _LANES):
        part = slice(start, min(start + _LANES, x.numel()))
        from_origin = None if origin is None else origin[part]
        product = _wide(x[part], from_origin).mul_(_wide(y[part], from_origin))
        lanes[: product.numel()].add_(product)
    return float(_fold(lanes[None])[0])


def _fold(products: torch.Tensor) -> torch.Tensor:
    """Sums over the second axis, by halving it; changes `products`. Shape `(m, k)` to `(m,)`."""
    width = products.shape[1]
    while width > 1:
        half = (width + 1) // 2
        products[:, : width - half].add_(products[:, half:width].clone())
        width = half
    return products[:, 0]


def gram_matrix(inputs: Sequence[torch.Tensor], origin: torch.Tensor | None = None) -> npt.NDArray[np.float64]:
    """All inner products of flat tensors `(m,)`, or of their differences from `origin`: symmetric, shape `(n, n)`."""
    n = len(inputs)
    gram = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            gram[i, j] = gram[j, i] = inner_product(inputs[i], inputs[j], origin)
    return gram


def vector_length(shape: Sequence[int], *, columns: bool) -> int:
    """Elements per vector of a tensor: along its first axis, or along its last; 1 without axes."""
    if not shape:
        return 1
    return shape[0] if columns else shape[-1]


def vector_products(
    x: torch.Tensor, y: torch.Tensor, origin: torch.Tensor | None, length: int, *, columns: bool
) -> npt.NDArray[np.float64]:
    """The inner product of each pair of vectors of two flat tensors `(n,)`, in a fixed order.

    Args:
        x: one tensor.
        y: the other.
        origin: what is subtracted from both; None for nothing.
        length: elements per vector, which divides n.
        columns: element e lies in vector `e % (n // length)`, else in vector `e // length`.

    Returns:
        Shape `(n // length,)`.
    """
    vectors = x.numel() // length if length else 0
    total = torch.zeros(vectors, dtype=torch.float64, device=x.device)
    width = vectors if columns else length
    step = max(_BLOCK // max(width, 1), 1) * width
    for start in range(0, x.numel(), max(step, 1)):
        part = slice(start, min(start + step, x.numel()))
        from_origin = None if origin is None else origin[part]
        product = _wide(x[part], from_origin).mul_(_wide(y[part], from_origin)).view(-1, width)
        if columns:
            total.add_(_fold(product.t().contiguous()))
        else:
            first = start // length
            total[first : first + product.shape[0]] = _fold(product)
    return total.cpu().numpy()


def vector_grams(
    inputs: Sequence[torch.Tensor], origin: torch.Tensor | None, length: int, *, columns: bool
) -> npt.NDArray[np.float64]:
    """The Gram matrices of every row or column of flat tensors, shape `(vectors, n, n)`; see `vector_products`."""
    n = len(inputs)
    grams = np.zeros((inputs[0].numel() // length if length else 0, n, n))
    for i in range(n):
        for j in range(i, n):
            products = vector_products(inputs[i], inputs[j], origin, length, columns=columns)
            grams[:, i, j] = grams[:, j, i] = products
    return grams
