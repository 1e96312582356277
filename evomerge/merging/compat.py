"""mergekit 0.1.5's arithmetic, one plain function per method, without speed target.

Written from its documented formulas, faults included: linear and SLERP accumulate in fp32; task arithmetic, TIES and
DARE compute in the stored dtype (weights too); an exact cancellation elects the positive sign; equal magnitudes are
kept in the order of an unstable sort. On one CPU thread and the same torch the results are mergekit's bit for bit,
except for random masks: mergekit draws them from a global generator, here they come from the element hash.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.elements import at_most, hash_indices, keep_bound, salt
from evomerge.merging.methods import Parameters

_BLOCK = 1024 * 1024
_PARALLEL = 0.9995


def linear(inputs: Sequence[torch.Tensor], parameters: Parameters) -> torch.Tensor:
    """`sum_i w_i x_i` by fused multiply-add in fp32, then divided by the fp32 sum of the weights."""
    weights = torch.tensor(parameters.column("weight"), dtype=torch.float32)
    total = torch.zeros(inputs[0].shape, dtype=torch.float32)
    for x, weight in zip(inputs, weights, strict=True):
        total.addcmul_(x, weight)
    if parameters.shared["normalize"]:
        total.div_(weights.sum())
    return total.to(inputs[0].dtype)


def _blocks(x: torch.Tensor) -> list[torch.Tensor]:
    return [block.float() for block in torch.split(x.view(1, -1), _BLOCK, dim=1)]


def _norm(x: torch.Tensor) -> torch.Tensor:
    """Norm of the blocks' norms; 1 where it vanishes. Shape `(1, 1)`."""
    parts = [torch.linalg.vector_norm(block, dim=1, keepdim=True) for block in _blocks(x)]
    norm = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return torch.where(norm > 1e-8, norm, 1)


def slerp(inputs: Sequence[torch.Tensor], parameters: Parameters) -> torch.Tensor:
    """Great circle from the first to the second tensor, in fp32 blocks; a straight line where |cosine| > 0.9995."""
    first, second = (x.reshape(-1) for x in inputs)
    if not first.numel():
        return inputs[0].clone()
    t = torch.tensor([[float(parameters.shared["t"])]], dtype=torch.float32)
    norm_first, norm_second = _norm(first), _norm(second)
    pairs = list(zip(_blocks(first), _blocks(second), strict=True))
    dots = [((a / norm_first) * (b / norm_second)).sum(dim=1, keepdim=True) for a, b in pairs]
    cosine = torch.stack(dots).sum(dim=0).clamp(-1, 1)
    straight = cosine.abs() > _PARALLEL
    theta = torch.acos(torch.where(straight, 0, cosine))
    sine = torch.sin(theta)
    to_first = torch.where(straight, 1 - t, torch.sin((1 - t) * theta) / sine)
    to_second = torch.where(straight, t, torch.sin(t * theta) / sine)
    merged = [(to_first * a + to_second * b).to(first.dtype) for a, b in pairs]
    return torch.cat(merged, dim=1).reshape(inputs[0].shape)


def _largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The delta with only its `int(density * numel)` largest entries, at least one."""
    if density >= 1:
        return delta
    if density <= 0 or delta.numel() == 0:
        return torch.zeros_like(delta)
    count = max(1, int(density * delta.numel()))
    order = torch.argsort(delta.abs().reshape(-1).float(), descending=True)
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[order[:count]] = 1
    return delta * mask.reshape(delta.shape)


def _random(delta: torch.Tensor, density: float, rescale: bool, salt_word: int) -> torch.Tensor:
    """The delta under a random mask, scaled to the L1 norm that it had, when `rescale`."""
    if density >= 1:
        return delta
    bound = keep_bound(density)
    if bound is None:
        return torch.zeros_like(delta)
    indices = torch.arange(delta.numel()).to(torch.int32)
    masked = delta * at_most(hash_indices(indices, salt_word), bound).reshape(delta.shape).to(delta.dtype)
    before, after = delta.abs().sum(), masked.abs().sum()
    if not rescale or before < 1e-7 or after < 1e-7:
        return masked
    return masked * (before / after)


def _arithmetic(
    base: torch.Tensor, deltas: Sequence[torch.Tensor], parameters: Parameters, *, elect: bool
) -> torch.Tensor:
    """Weighted deltas, elected or not, summed in the dtype of the base."""
    column = torch.tensor(parameters.column("weight"), dtype=base.dtype)
    weights = column.view(-1, *[1] * base.dim())
    stacked = torch.stack(list(deltas)).mul_(weights)
    if elect:
        positive = stacked.sum(dim=0) >= 0
        majority = positive.to(base.dtype) * 2 - 1
        mask = stacked.sign() == majority
        merged = (stacked * mask).sum(dim=0)
        divisor = (weights * mask).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        merged, divisor = stacked.sum(dim=0), weights.sum(dim=0)
        divisor[divisor.abs() < 1e-8] = 1
    if parameters.shared["normalize"]:
        merged /= divisor
    if parameters.shared["lambda"] != 1:
        merged *= float(parameters.shared["lambda"])
    return base + merged


def merge_compat(
    method: str, base: torch.Tensor | None, inputs: Sequence[torch.Tensor], parameters: Parameters
) -> torch.Tensor:
    """One tensor, merged as mergekit 0.1.5 does.

    Args:
        method: one of `plan.MERGEKIT_METHODS`.
        base: in the dtype that the merge computes in; None for linear and SLERP.
        inputs: the same dtype and shape.
        parameters: complete.

    Returns:
        The merged tensor, in the dtype of the inputs.
    """
    if method == "linear":
        return linear(inputs, parameters)
    if method == "slerp":
        return slerp(inputs, parameters)
    if base is None:
        raise ValueError(f"{method} needs a base")
    deltas = [x - base for x in inputs]
    densities = parameters.column("density") if method != "task_arithmetic" else ()
    if method == "ties":
        deltas = [_largest(d, density) for d, density in zip(deltas, densities, strict=True)]
    elif method != "task_arithmetic":
        rescale = bool(parameters.shared["rescale"])
        words = [salt("mask", parameters.seed, parameters.tensor, p) for p in parameters.parents]
        columns = zip(deltas, densities, words, strict=True)
        deltas = [_random(d, density, rescale, word) for d, density, word in columns]
    return _arithmetic(base, deltas, parameters, elect=method in {"ties", "dare_ties"})
