"""How mergekit 0.1.5 thins out task vectors: by magnitude, between two magnitudes, at random, at random by rank.

Densities are truncated (`int(density * numel)`), equal magnitudes keep the order of an unstable sort, every tensor is
thinned out (norm gains too), and rescaling restores the L1 norm of the tensor instead of dividing by the density.
"""

from __future__ import annotations

import torch

from evomerge.merging.compat_case import Case


def _masked(delta: torch.Tensor, mask: torch.Tensor, rescale: bool) -> torch.Tensor:
    """The delta under a mask; with `rescale` times the factor that restores its L1 norm."""
    masked = delta * mask
    if not rescale:
        return masked
    before, after = delta.abs().sum(), masked.abs().sum()
    return masked if before < 1e-7 or after < 1e-7 else masked * (before / after)


def _mask_of(delta: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Ones at the flat indices `kept`, in the delta's shape and dtype."""
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[kept] = 1
    return mask.reshape(delta.shape)


def _drawn_dtype(delta: torch.Tensor) -> torch.dtype:
    """What probabilities are held in: bf16 for bf16, fp32 for everything else."""
    return delta.dtype if delta.dtype == torch.bfloat16 else torch.float32


def largest(case: Case, delta: torch.Tensor, index: int) -> torch.Tensor:
    """The `int(density * numel)` largest entries, at least one."""
    density = case.parameters.column("density")[index]
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    count = max(1, int(density * delta.numel()))
    order = torch.argsort(delta.abs().reshape(-1).float(), descending=True)
    return _masked(delta, _mask_of(delta, order[:count]), case.flag("rescale"))


def middle(case: Case, delta: torch.Tensor, index: int) -> torch.Tensor:
    """`int(density * numel)` entries below the `int(gamma * numel)` largest; fewer of those where too few are left."""
    density, gamma = (case.parameters.column(name)[index] for name in ("density", "gamma"))
    if density >= 1:
        return delta
    n = delta.numel()
    count = int(density * n)
    first = max(0, n - count - int(gamma * n))
    order = torch.sort(delta.abs().reshape(-1).float()).indices
    return _masked(delta, _mask_of(delta, order[first : first + count]), case.flag("rescale"))


def random(case: Case, delta: torch.Tensor, index: int) -> torch.Tensor:
    """Every entry with the probability `density`."""
    density = case.parameters.column("density")[index]
    if density >= 1:
        return delta
    dtype = _drawn_dtype(delta)
    mask = case.draws.bernoulli(index, torch.full(delta.shape, density, dtype=dtype))
    return _masked(delta.to(dtype), mask, case.flag("rescale")).to(delta.dtype)


def by_rank(case: Case, delta: torch.Tensor, index: int) -> torch.Tensor:
    """Every entry with a probability from `density - epsilon` to `density + epsilon`, by its rank along the axis 1.

    A tensor with one axis is one row. Ranks are held in bf16 for bf16 deltas, where few of them differ.

    Raises:
        MergeError: when an axis of ranks has one entry, whose probability mergekit finds to be NaN.
    """
    density, epsilon = (case.parameters.column(name)[index] for name in ("density", "epsilon"))
    if density >= 1:
        return delta
    if density <= 0:
        return torch.zeros_like(delta)
    dtype = _drawn_dtype(delta)
    rows = delta.unsqueeze(0) if delta.dim() < 2 else delta
    if rows.dim() == 1 or rows.shape[1] < 2:
        raise case.refused(
            f"Method {case.method!r} cannot rank the entries of rows of one element.",
            f"shape {list(delta.shape)}",
            "two or more columns, or density 1",
            "merge this tensor by another method.",
        )
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(dtype) + 1
    low, high = ranks.min(dim=1, keepdim=True).values, ranks.max(dim=1, keepdim=True).values
    relative = ((ranks - low) / (high - low)).clamp(0, 1)
    mask = case.draws.bernoulli(index, (density - epsilon) + relative * 2 * epsilon)
    return _masked(rows.to(dtype), mask, case.flag("rescale")).to(delta.dtype).reshape(delta.shape)
