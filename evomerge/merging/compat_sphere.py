"""mergekit 0.1.5's spherical methods: slerp, nuslerp, multislerp, karcher.

SLERP computes in fp32 (fp64 for fp64 tensors), the other three in the dtype of the tensors, so that bf16 parents are
averaged in bf16. The Karcher mean takes its norms in fp32 and rounds what it derives from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.linalg import vector_norm

from evomerge.merging.compat_case import Case

_BLOCK = 1024 * 1024
_PARALLEL = 0.9995


def _blocks(x: torch.Tensor, wide: torch.dtype) -> list[torch.Tensor]:
    return [block.to(wide) for block in torch.split(x.view(1, -1), _BLOCK, dim=1)]


def _block_norm(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of the blocks' norms; 1 where it vanishes. Shape `(1, 1)`."""
    norm = vector_norm(torch.stack([vector_norm(block, dim=1, keepdim=True) for block in blocks]), dim=0)
    return torch.where(norm > 1e-8, norm, 1)


def slerp(case: Case) -> torch.Tensor:
    """Great circle from the first to the second tensor, in blocks; a straight line where |cosine| > 0.9995."""
    first, second = (_blocks(x.reshape(-1), case.wide) for x in case.models)
    t = torch.tensor([[case.number("t")]], dtype=case.wide)
    norm_first, norm_second = _block_norm(first), _block_norm(second)
    pairs = list(zip(first, second, strict=True))
    dots = [((a / norm_first) * (b / norm_second)).sum(dim=1, keepdim=True) for a, b in pairs]
    cosine = torch.stack(dots).sum(dim=0).clamp(-1, 1)
    straight = cosine.abs() > _PARALLEL
    theta = torch.acos(torch.where(straight, 0, cosine))
    sine = torch.sin(theta)
    to_first = torch.where(straight, 1 - t, torch.sin((1 - t) * theta) / sine)
    to_second = torch.where(straight, t, torch.sin(t * theta) / sine)
    merged = [(to_first * a + to_second * b).to(case.dtype) for a, b in pairs]
    return torch.cat(merged, dim=1).reshape(case.models[0].shape)


def _arc(t: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """From `a` to `b` along great circles of the last axis; straight where the squared sine is at most 1e-16."""
    units = [x / vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-7) for x in (a, b)]
    cosine = (units[0] * units[1]).sum(dim=-1, keepdim=True).clamp(-1, 1)
    straight = 1 - cosine.square() <= 1e-8**2
    angle = torch.acos(torch.where(straight, 0, cosine))
    bent = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.where(straight, (1 - t) * a + t * b, bent)


def nuslerp(case: Case) -> torch.Tensor:
    """One angle per tensor; with `nuslerp_flatten` off one per row, or per column when `nuslerp_row_wise`.

    The naming is mergekit's: its rows are the vectors along the first axis.
    """
    first, second = case.parameters.column("weight")
    total = first + second
    t = 0.5 if abs(total) < 1e-6 else second / total
    a, b = case.models if case.base is None else [x - case.base for x in case.models]
    if case.flag("nuslerp_flatten"):
        merged = _arc(t, a.reshape(-1), b.reshape(-1)).reshape(a.shape)
    elif case.flag("nuslerp_row_wise"):
        merged = _arc(t, a.transpose(0, -1), b.transpose(0, -1)).transpose(0, -1)
    else:
        merged = _arc(t, a, b)
    return merged if case.base is None else case.base + merged


def multislerp(case: Case) -> torch.Tensor:
    """Normalised weighted mean of the directions times the weighted mean of the norms.

    The step in the tangent space that stands between them is rounding noise: the weighted tangents of a point that is
    the weighted mean of the directions sum to zero. It is computed because mergekit's bits contain it. One model is
    returned as it is, whatever the base.

    Raises:
        MergeError: when the weights to be normalised sum to zero (mergekit writes NaN), or when more than two
            directions cancel.
    """
    if len(case.models) == 1:
        return case.models[0].clone()
    vectors = torch.stack(list(case.models))
    if case.base is not None:
        vectors -= case.base
    shape = vectors.shape[1:]
    weights = torch.tensor(case.parameters.column("weight"), dtype=case.dtype)
    if case.flag("normalize_weights"):
        weights = weights / _nonzero(case, weights.sum())
    eps, column = case.number("eps"), weights.view(-1, 1)
    flat = vectors.view(len(vectors), -1)
    norms = vector_norm(flat, dim=-1, keepdim=True)
    units = flat / (norms + eps)
    mean = (units * column).sum(dim=0)
    length = vector_norm(mean)
    if length < eps:
        merged = _cancelled(case, vectors, weights)
    else:
        mean = mean / length
        tangents = units - (units * mean).sum(dim=-1, keepdim=True) * mean
        tangent = (tangents * column).sum(dim=0)
        angle = vector_norm(tangent) + eps
        direction = mean * torch.cos(angle) + tangent * (torch.sin(angle) / angle)
        merged = (direction * (norms.squeeze(-1) * weights).sum()).view(shape)
    return merged if case.base is None else merged + case.base


def _nonzero(case: Case, total: torch.Tensor) -> torch.Tensor:
    if total == 0:
        raise case.refused(
            "Method 'multislerp' cannot normalise weights that sum to zero.",
            f"weights {list(case.parameters.column('weight'))} in {case.dtype}",
            "weights of another sum, or normalize_weights: false",
            "change a weight.",
        )
    return total


def _cancelled(case: Case, vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What two opposite vectors become: their weighted sum."""
    if len(vectors) == 2:
        return vectors[0] * weights[0] + vectors[1] * weights[1]
    raise case.refused(
        "Method 'multislerp' cannot merge directions that cancel.",
        f"{len(vectors)} models whose weighted directions sum to zero",
        "directions with a mean, or two models",
        "change a weight, or use linear for this tensor.",
    )


def karcher(case: Case) -> torch.Tensor:
    """Karcher mean of the directions, all of one weight, times the mean of the norms, vanishing tensors included."""
    if len(case.models) == 1:
        return case.models[0].clone()
    tol, share = case.number("tol"), 1.0 / len(case.models)
    norms = [vector_norm(x.to(case.wide)) for x in case.models]
    valid = [(x, norm) for x, norm in zip(case.models, norms, strict=True) if norm.item() > tol]
    if not valid:
        return sum((x * 0 for x in case.models), start=torch.zeros_like(case.models[0]))
    units = [(x / norm).to(x.dtype) for x, norm in valid]
    alpha = share / sum([share] * len(units))
    mean = _centre(units, alpha, tol, case.wide)
    for _ in range(int(case.number("max_iter"))):
        tangent = _tangent(mean, units, alpha, tol)
        length = vector_norm(tangent.to(case.wide))
        if length.item() < tol:
            break
        mean = (torch.cos(length) * mean + torch.sin(length) * (tangent / length)).to(mean.dtype)
        norm = vector_norm(mean.to(case.wide))
        if norm.item() > tol:
            mean = (mean / norm).to(mean.dtype)
    scale: torch.Tensor = share * norms[0]
    for norm in norms[1:]:
        scale = scale + share * norm
    return scale * mean


def _centre(units: Sequence[torch.Tensor], alpha: float, tol: float, wide: torch.dtype) -> torch.Tensor:
    """Where the iteration starts: the normalised mean, or the first direction where they cancel."""
    mean = torch.zeros_like(units[0])
    for unit in units:
        mean += alpha * unit
    norm = vector_norm(mean.to(wide))
    return units[0].clone() if norm.item() < tol else (mean / norm).to(mean.dtype)


def _tangent(mean: torch.Tensor, units: Sequence[torch.Tensor], alpha: float, tol: float) -> torch.Tensor:
    """Mean of the logarithms at `mean`; a direction nearer than `tol` counts as zero."""
    tangent = torch.zeros_like(mean)
    for unit in units:
        dot = torch.dot(mean.flatten(), unit.flatten()).clamp(-1.0, 1.0)
        theta = torch.arccos(dot)
        if theta.item() >= tol:
            tangent += alpha * (theta / torch.sin(theta)) * (unit - dot * mean)
    return tangent
