"""Products of low-rank factors that have the same bits on every machine: summed over ranks in one order, by element."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_CHUNK = 1 << 18
"""Elements worked on together: what a core's cache holds, so that the passes over ranks stay in it."""


def parts_of(shape: tuple[int, int], axis: int) -> Iterator[slice]:
    """Slices along `axis` of a matrix, each of about `_CHUNK` elements."""
    step = max(1, _CHUNK // max(1, shape[1 - axis]))
    for start in range(0, shape[axis], step):
        yield slice(start, min(start + step, shape[axis]))


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right` in fp32: for every element the ranks' products, rounded, added one after the other.

    A library's product of matrices may add in any order, which differs between processors.

    Args:
        left: shape `(rows, rank)`, fp32.
        right: shape `(rank, columns)`, fp32.

    Returns:
        Shape `(rows, columns)`, fp32.
    """
    rows, columns = left.shape[0], right.shape[1]
    out = torch.zeros(rows, columns)
    scratch = torch.empty(0)
    for part in parts_of((rows, columns), 0):
        chunk = out[part]
        scratch = scratch.new_empty(chunk.shape) if scratch.shape != chunk.shape else scratch
        for rank in range(left.shape[1]):
            torch.mul(left[part, rank : rank + 1], right[rank : rank + 1], out=scratch)
            chunk.add_(scratch)
    return out


def tree_sum(values: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum along an axis, by halves: front half plus back half, element by element, until one is left.

    Args:
        values: any shape; `axis` is not empty.
        axis: summed, and kept with length 1.
    """
    while (n := values.shape[axis]) > 1:
        half = n // 2
        summed = values.narrow(axis, 0, half) + values.narrow(axis, half, half)
        values = torch.cat((summed, values.narrow(axis, n - 1, 1)), axis) if n % 2 else summed
    return values


def norms(matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Euclidean norms along an axis, in fp64 and rounded to fp32 at the end.

    Args:
        matrix: two axes.
        axis: summed over.

    Returns:
        `matrix`'s shape with length 1 along `axis`, fp32.
    """
    shape = (matrix.shape[0], matrix.shape[1])
    pieces = [
        tree_sum(matrix.narrow(1 - axis, p.start, p.stop - p.start).double().square(), axis)
        for p in parts_of(shape, 1 - axis)
    ]
    return torch.cat(pieces, 1 - axis).sqrt().float()
