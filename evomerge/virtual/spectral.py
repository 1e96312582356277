"""Linear algebra that the makers share: singular triplets, polar factors, Newton-Schulz.

Decompositions go through the eigenvectors of the smaller Gram matrix in fp64. For matrices whose entries are fp32 that
is more accurate than an fp32 SVD (a singular value is off by about 1e-16 s1^2 / s, not 1e-7 s1) and several times
faster. Directions below `RANK_TOLERANCE` of the largest are rounding noise of fp32 weights: they count as absent, so
that no result hangs on vectors which the linear algebra library is free to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import torch

RANK_TOLERANCE: Final = 1e-5
"""Share of the largest singular value below which a direction counts as absent."""
_QUINTIC: Final = (3.4445, -4.775, 2.0315)
_QUINTIC_STEPS: Final = 8
_CUBIC_STEPS: Final = 6


class Triplets(NamedTuple):
    """A matrix of rank `r` as `u @ diag(s) @ vt`, in fp64, singular values from large to small.

    Attributes:
        u: shape (m, r), orthonormal columns.
        s: shape (r,), positive.
        vt: shape (r, n), orthonormal rows.
    """

    u: torch.Tensor
    s: torch.Tensor
    vt: torch.Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra inside runs on one thread: how many there are changes the order of its sums, hence bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def left_basis(gram: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of a positive semidefinite fp64 matrix whose roots count as present, largest first.

    Args:
        gram: shape (m, m).

    Returns:
        Orthonormal columns, shape (m, r).
    """
    import torch

    values, vectors = torch.linalg.eigh(gram)
    kept = values > max(float(values[-1]), 0.0) * RANK_TOLERANCE**2
    present: torch.Tensor = vectors[:, kept]
    return present.flip(1)


def triplets(matrix: torch.Tensor) -> Triplets:
    """The singular triplets that count as present.

    Args:
        matrix: shape (m, n).
    """
    if matrix.shape[0] > matrix.shape[1]:
        u, s, vt = triplets(matrix.T)
        return Triplets(vt.T, s, u.T)
    x = matrix.double()
    u = left_basis(x @ x.T)
    rows = u.T @ x
    s = rows.square().sum(1).sqrt()
    return Triplets(u, s, rows / s.unsqueeze(1))


def leading(matrix: torch.Tensor, count: int) -> Triplets:
    """The `count` largest singular triplets, or fewer where fewer are present, in memory of their own."""
    u, s, vt = triplets(matrix)
    return Triplets(u[:, :count].clone(), s[:count].clone(), vt[:count].clone())


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest partial isometry on the matrix's range: `u @ vt` of its triplets; fp64, shape (m, n)."""
    u, _, vt = triplets(matrix)
    return u @ vt


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """`polar` by matrix products alone, in fp32: 8 quintic steps, then 6 cubic ones.

    X <- a X + b (X X^T) X + c (X X^T)^2 X with (3.4445, -4.775, 2.0315), then X <- 1.5 X - 0.5 (X X^T) X, from
    X = matrix / its Frobenius norm. Singular values above about 1e-4 of that norm come out as 1 within 1e-4; smaller
    ones between 0 and 1, and directions outside the range stay near 0 (rounding noise grows to a few thousandths).

    Args:
        matrix: shape (m, n).
    """
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    x: torch.Tensor = matrix.float()
    norm = float(x.norm())
    if not norm > 0:
        return x
    x = x / norm
    a, b, c = _QUINTIC
    for _ in range(_QUINTIC_STEPS):
        gram = x @ x.T
        x = x.addmm(gram.addmm(gram, gram, beta=b, alpha=c), x, beta=a)
    for _ in range(_CUBIC_STEPS):
        x = x.addmm(x @ x.T, x, beta=1.5, alpha=-0.5)
    return x
